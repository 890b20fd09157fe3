"""Where requests go, for both engines: cases worked by hand, and what holds for every workload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import (
    AT_GATEWAY,
    C_GATEWAY_COUNT,
    DECODE,
    EMPTY,
    EXTERNAL,
    LEAST_OUTSTANDING,
    POWER_OF_TWO,
    PREFILL,
    PREFIX_AFFINITY,
    REJECTED,
    ROUND_ROBIN,
    Engine,
)
from llmcluster.simulator.reference.engine import ReferenceEngine
from llmcluster.simulator.reference.routers import mix
from llmcluster.tests.by_hand import END, MS, PLAIN, call
from llmcluster.tests.machine import ENGINES, Factory, Policy, build, note_coupling
from llmcluster.tests.runs import Run
from llmcluster.tests.strategies import ROUTERS, Case, cases

some = settings(max_examples=100)
every_engine = pytest.mark.parametrize("factory", list(ENGINES.values()), ids=list(ENGINES))


def routed(make: Factory, router: int, n: int, weights: list[float], seed: int = 0) -> list[int]:
    """Slots of ``n`` requests, a picosecond apart, none of which finishes meanwhile."""
    calls = [replace(call(0, 1, 50), arrival_ps=i) for i in range(n)]
    engine = build(PLAIN, calls, Policy(router=router, seed=seed), slots=[0] * len(weights), route_weight=weights)
    make(engine).advance(MS)
    return engine.requests["slot"].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("weights", "slots"),
    [
        # Credits after earning: (2, 1), (1, 2), (3, 0), each time the richest pays 3: (-1, 1), (1, -1), (0, 0).
        ([2.0, 1.0], [0, 1, 0, 0, 1, 0]),
        # (3, 1), (2, 2), (1, 3), (4, 0), each time the richest, the first of equals, pays 4.
        ([3.0, 1.0], [0, 0, 1, 0, 0, 0, 1, 0]),
    ],
)
def test_round_robin_is_smooth(make: Factory, weights: list[float], slots: list[int]) -> None:
    assert routed(make, ROUND_ROBIN, len(slots), weights) == slots


def test_least_outstanding_weighs_and_takes_the_first_of_equals(make: Factory) -> None:
    # Scores (1/1, 1/2), (1/1, 2/2), (2/1, 2/2), (2/1, 3/2), (2/1, 4/2).
    assert routed(make, LEAST_OUTSTANDING, 5, [1.0, 2.0]) == [1, 0, 1, 1, 0]


@pytest.mark.parametrize("router", [ROUND_ROBIN, LEAST_OUTSTANDING, POWER_OF_TWO, PREFIX_AFFINITY])
def test_a_slot_of_weight_zero_is_left_out_unless_all_are(make: Factory, router: int) -> None:
    assert routed(make, router, 4, [0.0, 1.0, 0.0]) == [1, 1, 1, 1]
    assert sorted(set(routed(make, router, 40, [0.0, 0.0, 0.0]))) == [0, 1, 2]


def test_power_of_two_choices(make: Factory) -> None:
    # The first number of Vigna's splitmix64.c with seed 0 is its finaliser of this constant.
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    # Of seed 0, the tickets 1 to 6 draw slots (1, 0), (2, 1), (2, 1), (0, 1), (1, 0), (2, 1) of three. Loads before
    # each: 000, 010, 011, 012, 112, 122; the first drawn is taken unless the second has less.
    assert routed(make, POWER_OF_TWO, 6, [1.0, 1.0, 1.0]) == [1, 2, 2, 0, 1, 2]
    # With weights the scores (loads + 1) / weight decide: 1/3 and 1; 1 and 2/3; 1 and 3/3, equal; 1 and 3/3; 3/3 and 2;
    # 2 and 4/3.
    assert routed(make, POWER_OF_TWO, 6, [1.0, 3.0, 1.0]) == [1, 1, 2, 0, 1, 1]
    # The top bit of the draw is cleared: 0x6220a8397b1dcdaf mod 3 is 2.
    assert routed(make, POWER_OF_TWO, 1, [1.0, 1.0, 1.0], seed=0x9E3779B97F4A7C14 - 2**64) == [2]
    assert routed(make, POWER_OF_TWO, 2, [1.0]) == [0, 0]


def test_prefix_affinity_goes_to_the_cache_within_bounds(make: Factory) -> None:
    calls = [call(t, 4, output, hashes=(1, 2)) for t, output in ((0, 1), (100, 50), (101, 50), (102, 50))]
    machine = replace(PLAIN, block_size=2)
    engine = build(machine, calls, Policy(router=PREFIX_AFFINITY), slots=[0, 0], unit_tokens=2, route_weight=[0.0, 1.0])
    driver = make(engine)
    driver.advance(50 * MS)
    engine.slots["route_weight"] = 1.0
    driver.advance(150 * MS)
    # The first could only go to slot 1, which caches its prompt. 1.25 · (m + 1) / 2, rounded up, is 1, 2 and 2 for
    # m = 0, 1 and 2 requests in flight: so two more go there, the last one may not.
    assert engine.requests["slot"].tolist() == [1, 1, 1, 0]


def test_prefix_affinity_bounds_by_weight_and_breaks_ties_by_load(make: Factory) -> None:
    calls = [call(t, 4, output, hashes=(1, 2)) for t, output in ((0, 1), (100, 50), (101, 50), (102, 50), (103, 50))]
    machine = replace(PLAIN, block_size=2)
    engine = build(machine, calls, Policy(router=PREFIX_AFFINITY), slots=[0, 0], unit_tokens=2, route_weight=[0.0, 1.0])
    driver = make(engine)
    driver.advance(50 * MS)
    engine.slots["route_weight"] = [3.0, 1.0]
    driver.advance(150 * MS)
    # Slot 1 has the prompt and may have 1.25 · (m + 1) / 4 requests, rounded up: 1, 1, 1 and 2 for m = 0 to 3. So one
    # more goes there, two go to slot 0, which caches the prompt at once. For the last one it is a tie of caches, and
    # 3/3 is less than 2/1.
    assert engine.requests["slot"].tolist() == [1, 1, 0, 0, 0]


def test_prefix_affinity_prefers_the_longer_prefix(make: Factory) -> None:
    prefixes = ((1, 2), (1, 3), (1, 3, 5), (1, 2, 6), (9, 3))
    calls = [call(100 * i, 6, 1, hashes=hashes) for i, hashes in enumerate(prefixes)]
    engine = build(
        replace(PLAIN, block_size=2), calls, Policy(router=PREFIX_AFFINITY), slots=[0, 0], unit_tokens=2, limit=[9, 0]
    )
    driver = make(engine)
    driver.advance(50 * MS)
    engine.slots["limit"] = [0, 9]
    note_coupling(engine)
    driver.advance(150 * MS)
    engine.slots["limit"] = 9
    note_coupling(engine)
    driver.advance(END)
    # The first could only go to slot 0, the second only to slot 1. Both slots know unit 1; 3 is on slot 1, 2 on slot 0.
    # A unit counts only if all before it do: the last one finds nothing, and goes to the first of equals.
    assert engine.requests["slot"].tolist() == [0, 1, 1, 0, 0]


def test_prefix_affinity_looks_into_no_cache_for_a_prompt_that_is_sent_on(make: Factory) -> None:
    calls = [call(0, 4, 30, hashes=(1, 2)), call(100, 4, 2, hashes=(1, 2))]
    policy, roles = Policy(router=PREFIX_AFFINITY), [PREFILL, DECODE, DECODE]
    engine = build(replace(PLAIN, block_size=2), calls, policy, slots=[0, 0, 0], unit_tokens=2, role=roles)
    make(engine).advance(END)
    # The first slot to decode knows the prompt and might have a second request, but the other has none.
    assert engine.requests["slot"].tolist() == [1, 2]


def test_a_finish_at_the_very_instant_of_an_arrival_counts_for_its_route(make: Factory) -> None:
    # The second is done on slot 1 at 59, as in the case of one request; before that both slots have one.
    for early_ps, slot in ((0, 1), (1, 0)):
        calls = [call(0, 4, 30), call(0, 4, 3), replace(call(59, 1, 1), arrival_ps=59 * MS - early_ps)]
        engine = build(PLAIN, calls, slots=[0, 0])
        driver = make(engine)
        driver.advance(45 * MS)
        driver.advance(END)
        assert engine.requests["slot"].tolist() == [0, 1, slot]


def test_a_router_object_is_asked_for_every_request() -> None:
    asked: list[tuple[int, list[int], list[int]]] = []
    engine = build(PLAIN, [call(t, 4, 3) for t in range(3)], Policy(router=EXTERNAL), slots=[0, 0, 0])
    engine.slots["status"][1] = EMPTY

    def router(row: int, candidates: list[int]) -> int:
        asked.append((row, candidates, engine.slots["outstanding"].tolist()))
        return -1 if len(asked) == 2 else candidates[-1]

    driver = ReferenceEngine(engine)
    driver.router = router
    driver.advance(10 * MS)
    assert asked == [(0, [0, 2], [0, 0, 0]), (1, [0, 2], [0, 0, 1]), (2, [0, 2], [0, 0, 1])]
    assert engine.requests["slot"].tolist() == [2, -1, 2]
    assert engine.requests["status"][1] == AT_GATEWAY and engine.cursor[C_GATEWAY_COUNT] == 1
    # It is asked again after control.
    driver.advance(END)
    assert [row for row, _, _ in asked] == [0, 1, 2, 1] and engine.requests["slot"][1] == 2


@pytest.mark.parametrize(
    ("router", "problem"), [(None, "no router object"), (lambda row, candidates: 7, "7 is none of")]
)
def test_a_router_object_must_be_there_and_choose_a_candidate(
    router: Callable[[int, list[int]], int] | None, problem: str
) -> None:
    driver = ReferenceEngine(build(PLAIN, [call(0, 4, 3)], Policy(router=EXTERNAL)))
    driver.router = router
    with pytest.raises(InputError, match=problem):
        driver.advance(END)


# --------------------------------------------------------------------------------------------- whatever the workload is


@st.composite
def fleets(draw: st.DrawFn, router: int, *, roomy: bool = False) -> Case:
    """Cases in which only arrivals and finishes decide where a request goes; if roomy, every slot could take any."""
    case = draw(cases(control=False))
    calls = [replace(c, timeout_ps=-1, think_ps=-1, follower=-1, model=-1 if roomy else c.model) for c in case.calls]
    slots = len(case.homes)
    weight = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]), min_size=slots, max_size=slots))
    return replace(
        case,
        machines=tuple(replace(m, max_model_len=10_000, kv_blocks=1000) if roomy else m for m in case.machines),
        calls=tuple(sorted(calls, key=lambda c: c.arrival_ps)),
        policy=Policy(router=router),
        columns={"route_weight": tuple(weight), "cap_w": case.columns["cap_w"]},
    )


def in_order(engine: Engine) -> list[int]:
    """Rows in the order in which they were routed."""
    rows = engine.requests
    return sorted(np.flatnonzero(rows["slot"] >= 0).tolist(), key=lambda i: (rows[i]["arrival_ps"], i))


@every_engine
@some
@given(case=fleets(LEAST_OUTSTANDING, roomy=True))
def test_least_outstanding_picks_a_least_loaded_slot(factory: Factory, case: Case) -> None:
    rows = (engine := Run(case, factory).to_the_end().engine).requests
    given_weights = case.columns["route_weight"]
    weights = given_weights if any(given_weights) else (1.0,) * len(given_weights)
    before: list[int] = []
    for i in in_order(engine):
        load = Counter(int(rows[j]["slot"]) for j in before if rows[j]["finish_ps"] > rows[i]["arrival_ps"])
        scores = [(load[r] + 1) / weight if weight else np.inf for r, weight in enumerate(weights)]
        assert rows[i]["slot"] == scores.index(min(scores))
        before.append(i)


@every_engine
@some
@given(case=fleets(ROUND_ROBIN, roomy=True))
def test_weighted_round_robin_keeps_to_its_shares(factory: Factory, case: Case) -> None:
    engine, weight = Run(case, factory).to_the_end().engine, np.array(case.columns["route_weight"])
    share = (weight if weight.any() else np.ones(len(weight))) / (weight.sum() or len(weight))
    got = np.zeros(len(weight))
    for n, i in enumerate(in_order(engine), 1):
        got[engine.requests[i]["slot"]] += 1
        assert (np.abs(got - n * share) <= 1 + 1e-9).all()
    assert (got[share == 0] == 0).all()


@every_engine
@some
@given(case=st.sampled_from(ROUTERS).flatmap(fleets))
def test_a_request_goes_where_it_fits(factory: Factory, case: Case) -> None:
    rows = Run(case, factory).to_the_end().engine.requests
    for call_, row in zip(case.calls, rows, strict=True):
        tokens = call_.prompt + call_.output
        able = {home for home, machine in enumerate(case.machines) if call_.model in (-1, machine.model)}
        able = {home for home in able if case.machines[home].max_tokens >= tokens}
        if able:
            assert case.homes[row["slot"]][0] in able
        else:
            assert (row["status"], row["slot"], row["finish_ps"]) == (REJECTED, -1, row["arrival_ps"])
