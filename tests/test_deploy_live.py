"""The live machine is the simulator: requests that are sent as it goes on do what a table told in advance does."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.deploy.rehearsal.live import SCENARIO, LiveMachine
from llmcluster.deploy.rehearsal.requests import LiveRequest, NotServingError
from llmcluster.envs.actions import ClusterAction
from llmcluster.envs.plant import SimulatedPlant
from llmcluster.envs.scenario import Scenario, load_scenario
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import DRAINING, EMPTY, FINISHED, LOADING, LOST, SERVING, SLEEPING, TIMED_OUT
from llmcluster.simulator.lifecycle import Target
from llmcluster.simulator.units import PS_PER_S
from llmcluster.simulator.workload.spec import generate

SECONDS = 40


@pytest.fixture
def machine() -> LiveMachine:
    return LiveMachine(capacity=1000)


def told_in_advance() -> SimulatedPlant:
    """The same scenario with its own workload, on the compiled engine."""
    scenario = load_scenario(SCENARIO)
    twin = LiveMachine(scenario, capacity=1)
    requests = generate(scenario.workload, SECONDS - 10, np.random.default_rng(5), twin.plant.fleet.models)
    return SimulatedPlant(
        scenario, twin.cluster.blueprint, twin.plant.fleet, requests, np.random.default_rng(0), "compiled"
    )


def test_requests_sent_live_do_what_the_same_table_does() -> None:
    plant, machine = told_in_advance(), LiveMachine(capacity=1000)
    caps = np.array([700.0, 900.0, 1100.0, 1400.0])
    plant.cluster.cap(caps)
    machine.cluster.cap(caps)
    plant.cluster.advance(SECONDS * PS_PER_S)
    rows = plant.cluster.engine.requests
    assert len(rows) > 60 and len(set(rows["slot"].tolist())) == 4
    live = []
    for row in rows:
        machine.advance_to(int(row["arrival_ps"]) / PS_PER_S)
        while machine.cluster.now_ps < row["arrival_ps"]:  # seconds as floats may fall short of it
            machine.cluster.advance(int(row["arrival_ps"]))
        live.append(machine.submit(int(row["slot"]), int(row["prompt"]), int(row["output"])))
    machine.advance_to(SECONDS)
    for name in ("energy", "metered_w", "temperature_c", "clock_ratio", "running", "waiting", "kv_used"):
        np.testing.assert_array_equal(machine.cluster.history.column(name), plant.cluster.history.column(name), name)
    for name in ("first_token_ps", "finish_ps", "status", "generated"):
        np.testing.assert_array_equal(machine.cluster.engine.requests[name][: len(rows)], rows[name], name)
    assert {request.status for request in live} == {FINISHED}
    assert machine.cluster.sent == plant.cluster.sent and machine.cluster.held_at_gateway == 0


def test_counters_go_on_between_and_at_seconds(machine: LiveMachine) -> None:
    for prompt, output in ((900, 120), (1500, 40)):
        machine.submit(1, prompt, output)
    before = machine.counts(1)
    for time_s in np.arange(0.05, 12.0, 0.05):
        machine.advance_to(time_s)
        now = machine.counts(1)
        assert now.energy > before.energy and now.prompt_tokens >= before.prompt_tokens
        assert before.busy_ps <= now.busy_ps <= machine.cluster.now_ps
        before = now
    machine.advance_to(12.0)
    end, history = machine.counts(1), machine.cluster.history
    assert (end.prompt_tokens, end.output_tokens) == (2400, 160)
    assert end.energy == sum(history.column("energy")[:, 1].tolist())
    assert 0 < end.busy_ps < 12 * PS_PER_S
    assert end.power_w == history.column("metered_w")[-1, 1], "at rest"


def test_a_cancelled_request_leaves_and_frees_what_it_held(machine: LiveMachine) -> None:
    gone, stays = machine.submit(0, 1000, 500), machine.submit(0, 1000, 150)
    machine.advance_to(1.0)
    assert gone.generated > 0 and machine.queues(0)[0] == 2
    machine.cancel(gone)
    machine.advance_to(1.1)
    assert gone.status == TIMED_OUT and gone.is_over and machine.queues(0)[0] == 1
    machine.advance_to(6.0)
    assert stays.status == FINISHED and stays.generated == 150
    assert machine.queues(0) == (0, 0, 0.0)
    machine.cancel(stays)
    assert stays.status == FINISHED


def test_a_request_can_be_cancelled_before_it_runs_and_while_its_prompt_is_computed(machine: LiveMachine) -> None:
    first, waits = machine.submit(0, 20_000, 5), machine.submit(0, 20_000, 5)
    machine.cancel(waits)
    machine.advance_to(0.01)
    assert waits.status == TIMED_OUT and first.generated == 0 and machine.queues(0)[:2] == (1, 0)
    machine.cancel(first)
    machine.advance_to(3.0)
    assert first.status == TIMED_OUT and machine.queues(0) == (0, 0, 0.0)
    assert machine.counts(0).prompt_tokens < 20_000


@pytest.fixture(scope="module")
def cramped() -> Scenario:
    """So little memory that requests lose their cache."""
    content = load_scenario(SCENARIO).model_dump()
    content["cluster"]["engine"] |= {"gpu_memory_utilization": 0.445, "max_model_len": 8192}
    return load_scenario(content)


moves = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 3), st.integers(1, 4000), st.integers(1, 300)),
        st.tuples(st.just("cancel"), st.integers(0, 50), st.just(0), st.just(0)),
        st.tuples(st.just("pass"), st.integers(1, 3000), st.just(0), st.just(0)),
        st.tuples(st.just("kill"), st.integers(0, 3), st.just(0), st.just(0)),
    ),
    min_size=5,
    max_size=60,
)


@settings(max_examples=30, deadline=None)
@given(moves)
def test_nothing_is_lost_whatever_comes_and_goes(cramped: Scenario, moves: list[tuple[str, int, int, int]]) -> None:
    machine, sent, cancelled = LiveMachine(cramped, capacity=100), [], set()
    for what, number, prompt, output in moves:
        if what == "send" and machine.status(number) == SERVING:
            sent += [machine.submit(number, prompt, output) for _ in range(1 + 3 * (prompt > 3000))]
        elif what == "cancel" and number < len(sent):
            cancelled.add(sent[number])
            machine.cancel(sent[number])
        elif what == "pass":
            machine.advance_to(machine.now_s + number / 1000)
        elif what == "kill":
            machine.kill(number)
    machine.advance_to(machine.now_s + 200.0)
    assert all(request.is_over for request in sent) and len(machine.cluster.done) == len(sent)
    assert all(request.generated == request.output_tokens for request in sent if request.status == FINISHED)
    assert {request for request in sent if request.status == TIMED_OUT} <= cancelled
    for slot in range(4):
        assert machine.queues(slot) == (0, 0, 0.0) and machine.in_flight(slot) == []


def test_the_cramped_machine_preempts(cramped: Scenario) -> None:
    machine = LiveMachine(cramped, capacity=100)
    for _ in range(30):
        machine.submit(0, 3000, 300)
    machine.advance_to(60.0)
    assert machine.tally.preemptions[0] > 0 and machine.tally.preemptions[1] == 0


def test_tick_ends_are_read_as_the_environment_reads_them(machine: LiveMachine) -> None:
    machine.submit(2, 800, 100)
    machine.advance_to(10.0)
    assert machine.telemetry.power_w.shape == (10, 4)
    assert machine.telemetry.arrivals_per_s == 0.1 and machine.telemetry.arriving_tokens_per_s == 80.0
    assert machine.telemetry.output_tokens_per_s.tolist() == [0.0, 0.0, 10.0, 0.0]
    machine.plant.apply(ClusterAction(cap_w=np.full(4, 800.0)))
    machine.advance_to(20.0)
    assert machine.telemetry.cap_w.tolist() == [800.0] * 4 and machine.telemetry.arrivals_per_s == 0.0


def test_a_slot_drains_sleeps_wakes_and_dies(machine: LiveMachine) -> None:
    seen: list[tuple[int, int, int]] = []
    machine.on_status.append(lambda *change: seen.append(change))
    request = machine.submit(3, 500, 60)
    machine.command(3, Target.SLEEP)
    assert machine.status(3) == DRAINING
    with pytest.raises(NotServingError, match="slot3 is draining"):
        machine.submit(3, 10, 10)
    machine.advance_to(8.0)
    assert request.status == FINISHED and machine.status(3) == SLEEPING
    machine.serve(3)
    assert machine.status(3) == LOADING
    machine.advance_to(60.0)
    assert machine.status(3) == SERVING
    lost = machine.submit(3, 500, 60)
    machine.advance_to(60.5)
    machine.kill(3)
    assert lost.status == LOST and machine.status(3) == EMPTY and machine.queues(3)[:2] == (0, 0)
    machine.advance_to(120.0)
    assert machine.status(3) == EMPTY, "nobody starts it"
    machine.serve(3)
    machine.advance_to(240.0)
    assert machine.status(3) == SERVING
    assert [now for slot, _, now in seen] == [DRAINING, SLEEPING, LOADING, SERVING, EMPTY, LOADING, SERVING]
    assert machine.cluster.held_at_gateway == 0


def test_what_cannot_be_served_is_refused(machine: LiveMachine) -> None:
    with pytest.raises(InputError, match="not within"):
        machine.submit(0, machine.max_tokens(0), 1)
    with pytest.raises(InputError, match="cannot hold 'Llama"):
        machine.serve(0, "Llama-3.1-8B")
    with pytest.raises(InputError, match="none of that name"):
        machine.number("slot9")
    small = LiveMachine(capacity=1)
    small.submit(0, 1, 1)
    with pytest.raises(NotServingError, match="made for"):
        small.submit(0, 1, 1)
    disaggregated = load_scenario("small").model_dump()
    for server in disaggregated["cluster"]["rows"][0]["racks"][0]["servers"]:
        server["role"] = "prefill" if server["gpu"].startswith("H100") else "decode"
    with pytest.raises(InputError, match="hand over"):
        LiveMachine(load_scenario(disaggregated))


def test_it_keeps_up_with_a_clock_and_tells_those_who_wait(machine: LiveMachine) -> None:
    async def follow(request: LiveRequest) -> list[int]:
        seen = [0]
        while not request.is_over:
            seen.append(await request.move(seen[-1]))
        return seen

    async def rehearse() -> tuple[list[int], float]:
        running = asyncio.create_task(machine.run(speed=20.0))
        await asyncio.sleep(0)
        seen = await follow(machine.submit(0, 300, 100))
        machine.command(0, Target.SLEEP)
        assert await machine.until(0, SLEEPING) == SLEEPING
        running.cancel()
        return seen, machine.now_s

    seen, now_s = asyncio.run(rehearse())
    assert seen[-1] == 100 and len(seen) > 5 and seen == sorted(seen)
    assert 1.0 < now_s < 100.0
