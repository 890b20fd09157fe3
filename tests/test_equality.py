"""Whatever the case: both engines agree to the bit, lose nothing, and do not care into how many calls a run is cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.simulator.kernels.state import (
    ARRAYS,
    AT_GATEWAY,
    BIN_PS,
    C_GATEWAY_COUNT,
    C_SENT,
    C_SENT_TOKENS,
    C_TIMERS,
    FINISHED,
    IN_TRANSFER,
    LEAST_OUTSTANDING,
    LOST,
    PENDING,
    REJECTED,
    RESTART,
    TIMED_OUT,
)
from llmcluster.simulator.reference.engine import ReferenceEngine
from llmcluster.simulator.reference.observer import Observer
from llmcluster.tests.machine import ENGINES, Driver, Factory
from llmcluster.tests.runs import Run, assert_same, rest_energy
from llmcluster.tests.strategies import Case, cases

many = settings(max_examples=300, deadline=None)
some = settings(max_examples=100, deadline=None)
cuts = st.lists(st.one_of(st.integers(1, 4 * BIN_PS), st.integers(1, 400).map(lambda k: k * 10**10)), max_size=30)
every_engine = pytest.mark.parametrize("factory", list(ENGINES.values()), ids=list(ENGINES))


def agree(case: Case) -> None:
    one, other = (Run(case, ENGINES[name]).to_the_end() for name in ("reference", "compiled"))
    assert_same(one, other)


@many
@given(cases())
def test_both_engines_agree(case: Case) -> None:
    agree(case)


@pytest.mark.slow
@settings(max_examples=8_000, deadline=None)
@given(cases())
def test_both_engines_agree_at_length(case: Case) -> None:
    agree(case)


@every_engine
@some
@given(cases(), cuts)
def test_it_does_not_matter_into_how_many_calls_a_run_is_cut(factory: Factory, case: Case, cuts: list[int]) -> None:
    assert_same(Run(case, factory).to_the_end(), Run(case, factory).to_the_end(cuts))


@every_engine
@some
@given(cases())
def test_nothing_is_lost(factory: Factory, case: Case) -> None:
    run = Run(case, factory).to_the_end()
    engine, rows = run.engine, run.engine.requests
    assert sorted(engine.done.tolist()) == list(range(len(rows)))
    assert np.isin(rows["status"], [FINISHED, REJECTED, TIMED_OUT, LOST]).all()
    assert engine.cursor[C_GATEWAY_COUNT] == engine.cursor[C_TIMERS] == 0
    for name, empty in (("decodes", 0), ("context", 0), ("joiners", 0), ("partial", -1), ("queue_head", -1)):
        assert (engine.slots[name] == empty).all(), name
    assert (engine.slots["flight_end_ps"] == -1).all() and not engine.phase.any()
    assert engine.cursor[C_SENT] == (rows["attempts"] + 1).sum()
    assert engine.cursor[C_SENT_TOKENS] == ((rows["attempts"] + 1) * rows["prompt"]).sum()
    assert not engine.slots["outstanding"].any() and not engine.slots["waiting"].any()
    assert (engine.slots["free_blocks"] == engine.deployments["kv_blocks"][engine.slots["deployment"]]).all()
    finished, gone = rows[rows["status"] == FINISHED], rows[rows["status"] != FINISHED]
    assert (finished["generated"] == finished["output"]).all() and (gone["generated"] < gone["output"]).all()
    ordered = [finished[name] for name in ("arrival_ps", "admit_ps", "first_token_ps", "finish_ps")]
    assert all((a <= b).all() for a, b in pairwise(ordered)) and (ordered[1] < ordered[2]).all()
    # A request that begins anew has its earlier tokens for nothing.
    tokens = run.seconds["output_tokens"].sum()
    assert tokens == rows["generated"].sum() if case.policy.on_failure != RESTART else tokens >= rows["generated"].sum()
    patient = rows[(rows["admit_ps"] >= 0) & (rows["timeout_ps"] >= 0)]
    assert (patient["admit_ps"] <= patient["sent_ps"] + patient["timeout_ps"]).all()
    out = rows[rows["status"] == TIMED_OUT]
    assert (out["finish_ps"] > out["sent_ps"] + out["timeout_ps"]).all() and (out["timeout_ps"] >= 0).all()
    assert (out["attempts"] == case.policy.retries).all() and (out["generated"] == 0).all()


@every_engine
@some
@given(cases())
def test_a_client_answers_exactly_after_its_think_time(factory: Factory, case: Case) -> None:
    rows = Run(case, factory).to_the_end().engine.requests
    for i, (call, row) in enumerate(zip(case.calls, rows, strict=True)):
        due = rows["finish_ps"][i - 1] + max(call.think_ps, 1)
        assert row["arrival_ps"] == (call.arrival_ps if call.think_ps < 0 else max(due, call.arrival_ps))


@every_engine
@settings(max_examples=40, deadline=None)
@given(cases())
def test_the_same_run_twice_gives_the_same_bytes(factory: Factory, case: Case) -> None:
    one, two = (Run(case, factory).to_the_end() for _ in range(2))
    for name in ARRAYS:
        assert getattr(one.engine, name).tobytes() == getattr(two.engine, name).tobytes(), name
    assert one.seconds.tobytes() == two.seconds.tobytes()


# ------------------------------------------------------------------------------------------ of the compiled engine only


@some
@given(cases(control=False), cuts)
def test_no_request_leaves_before_the_bound_of_its_slot(case: Case, cuts: list[int]) -> None:
    """Routing and closed loops leave a slot alone until its bound; who left before it would be seen too late."""
    calls = tuple(replace(call, arrival_ps=0, think_ps=-1, follower=-1) for call in case.calls)
    columns = {name: case.columns[name] for name in ("route_weight", "cap_w")}
    policy = replace(case.policy, router=LEAST_OUTSTANDING, retries=0)
    case = replace(case, calls=calls, columns=columns, policy=policy)
    whole, run = Run(case, ENGINES["compiled"]).to_the_end(), Run(case, ENGINES["compiled"])
    slot_of, left_ps = whole.engine.requests["slot"], whole.engine.requests["finish_ps"]
    for stop in sorted(set(cuts)):
        run.advance(stop)
        for slot, bound_ps in enumerate(run.engine.slots["bound_ps"].tolist()):
            later = left_ps[(slot_of == slot) & (left_ps > stop)]
            assert bound_ps <= later.min(initial=bound_ps)


# ------------------------------------------------------------------------------------------------ of the reference only


class Ledger(Observer):
    """Books what it is told."""

    def __init__(self) -> None:
        self.iterations: list[tuple[int, ...]] = []
        self.inside: Counter[int] = Counter()
        self.most: Counter[int] = Counter()
        self.preemptions: Counter[int] = Counter()
        self.hits: dict[int, int] = {}
        self.seconds: Counter[int] = Counter()

    def iteration(self, slot: int, start_ps: int, end_ps: int, *rest: int) -> None:
        self.iterations.append((slot, start_ps, end_ps, *rest))

    def queued(self, slot: int, request: int, t: int) -> None:
        self.inside[slot] += 1

    def admitted(self, slot: int, request: int, t: int, hit_tokens: int) -> None:
        self.hits[request] = hit_tokens

    def preempted(self, slot: int, request: int, t: int) -> None:
        self.preemptions[request] += 1

    def left(self, slot: int, request: int, t: int, status: int) -> None:
        self.inside[slot] -= 1
        assert status in (FINISHED, REJECTED, TIMED_OUT, LOST, IN_TRANSFER, PENDING, AT_GATEWAY)

    def second(self, slot: int, edge_ps: int, record: object) -> None:
        self.seconds[slot] += 1


def observed(case: Case) -> tuple[Run, Ledger]:
    ledger = Ledger()

    def factory(engine: object) -> Driver:
        return ReferenceEngine(engine, ledger)  # type: ignore[arg-type]

    return Run(case, factory).to_the_end(), ledger


@some
@given(cases())
def test_energy_is_that_of_the_iterations_and_of_the_rest_between_them(case: Case) -> None:
    run, ledger = observed(case)
    for slot in range(len(case.homes)):
        mine = [i for i in ledger.iterations if i[0] == slot]
        busy = [(start, end) for _, start, end, *_ in mine]
        assert all(end <= start for (_, end), (start, _) in pairwise(busy)), "one iteration at a time"
        drawn = sum(energy for *_, energy in mine) + rest_energy(run, slot, busy)
        assert sum(run.seconds["energy"][:, slot].tolist()) == drawn  # may exceed 64 bits
        assert run.seconds["prompt_tokens"][:, slot].sum() <= sum(prefill for _, _, _, _, prefill, _, _ in mine)


@some
@given(cases())
def test_what_an_observer_is_told(case: Case) -> None:
    run, ledger = observed(case)
    rows = run.engine.requests
    assert all(ledger.inside[slot] == 0 for slot in range(len(case.homes)))
    assert [ledger.preemptions[row] for row in range(len(rows))] == rows["preemptions"].tolist()
    assert all(0 <= hit <= rows["prompt"][row] for row, hit in ledger.hits.items())
    assert set(ledger.hits) == set(np.flatnonzero(rows["admit_ps"] >= 0).tolist())
    assert set(ledger.seconds.values()) == {run.now_ps // BIN_PS}
    most = {m.max_num_seqs for m in case.machines}
    assert all(decodes <= max(most) for _, _, _, decodes, _, _, _ in ledger.iterations)
    largest = max(m.max_batched_tokens for m in case.machines)
    assert all(0 < decodes + prefill <= largest for _, _, _, decodes, prefill, _, _ in ledger.iterations)


@some
@given(cases(control=False))
def test_heat_follows_energy(case: Case) -> None:
    run, _ = observed(case)
    for slot, (home, *_) in enumerate(case.homes):
        machine = case.machines[home]
        decay, resistance = np.array(machine.decay), np.array(machine.resistance)
        rise, hot, events = np.zeros(2), False, 0
        for second in run.seconds[:, slot]:
            settled = resistance * (second["energy"] * 1e-14 / machine.gpus)
            rise = settled + (rise - settled) * decay
            temperature = 25.0 + rise.sum()
            assert second["temperature_c"] == pytest.approx(temperature, rel=1e-6)
            if not hot and temperature >= machine.throttle_c:
                hot, events = True, events + 1
            elif hot and temperature <= machine.resume_c:
                hot = False
            if machine.averaging:
                assert second["metered_w"] == pytest.approx(second["energy"] * 1e-14, rel=1e-6)
        assert run.engine.slots["throttle_events"][slot] == events
