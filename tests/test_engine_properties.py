"""Whatever the workload: the compiled engine equals the oracle, loses nothing and does not care how it is called."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.simulator.history import History
from llmcluster.simulator.kernels.cluster import advance
from llmcluster.simulator.kernels.state import (
    ARRAYS,
    BIN_PS,
    C_DONE,
    C_GATEWAY_COUNT,
    C_TIMERS,
    FINISHED,
    LEAST_OUTSTANDING,
    REJECTED,
    ROUND_ROBIN,
    TIMED_OUT,
    Engine,
)
from llmcluster.tests.oracle import Job, Oracle, Table, compiled

MS = 10**9
LONGEST_PS = 60 * BIN_PS
many = settings(max_examples=200)
some = settings(max_examples=80)


@dataclass(frozen=True)
class Case:
    """One slot's table, its requests as (gap, prompt, output, timeout, think) and its caps as (gap, watts)."""

    table: Table
    rows: tuple[tuple[int, int, int, int, int], ...]
    caps: tuple[tuple[int, float], ...]
    cap_w: float

    def jobs(self) -> list[Job]:
        """A closed-loop request waits for the one before it, whose session it shares.

        Their earliest times differ by picoseconds, since the order of releases at one instant is nobody's promise.
        """
        jobs, now = [], 0
        for i, (gap, prompt, output, timeout, think) in enumerate(self.rows):
            now += gap
            waits = i > 0 and think >= 0
            jobs.append(Job(now + i * waits, prompt, output, timeout, think if waits else -1))
            if waits:
                jobs[i - 1].follower = i
        return jobs

    def cap_times(self) -> list[tuple[int, float]]:
        times, now = [], 0
        for gap, watts in self.caps:
            now += gap
            times.append((now, watts))
        return times


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Times in a unit of 10 µs, so that arrivals, boundaries and bin edges often coincide, or of something odd."""
    unit = draw(st.sampled_from([10**7, 9_999_991]))
    seqs = draw(st.integers(1, 8))
    budget = draw(st.integers(seqs + 1, 40))
    size = draw(st.sampled_from([1, 2, 4, 16]))
    # Time on either side of the roofline, so that the cache's growth carries a batch over the ridge in both directions.
    kv, attention = draw(st.tuples(st.integers(0, 40), st.integers(0, 8)))
    step = draw(st.sampled_from([(0.25, 0.5, 0.75, 1.0), (0.3, 0.47, 0.61, 0.83, 0.9, 1.0), (1.0,)]))
    exponent = draw(st.floats(1.0, 3.0))
    throttle = draw(st.sampled_from([1000.0, 40.0, 32.0]))
    return Table.linear(
        draw(st.integers(1, 3000)) * unit,
        draw(st.integers(0, 60)) * unit,
        draw(st.integers(0, 2000)) * unit,
        draw(st.integers(0, 20)) * unit,
        kv_read_ps=kv * unit,
        attention_ps=attention * unit,
        kv_blocks=draw(st.integers(30, 150)) // size,
        block_size=size,
        max_model_len=draw(st.sampled_from([10_000, 60])),
        max_num_seqs=seqs,
        max_batched_tokens=budget,
        clock=step,
        scale=tuple(f**exponent for f in step),
        throttle_c=throttle,
        resume_c=throttle - 3,
        averaging=draw(st.booleans()),
    )


Row = tuple[int, int, int, int, int]


@st.composite
def crowds(draw: st.DrawFn, capacity: int, *, timeouts: bool, closed: bool) -> list[Row]:
    """Up to 60 requests at a rate that keeps the slot busy; hypothesis by itself prefers short lists.

    Most fit into ``capacity`` tokens, but not many at once; long outputs on short prompts cause preemptions.
    """
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0, 1, 10 * MS, 200 * MS]))
    round_to = draw(st.sampled_from([1, 10 * MS]))
    gap = rng.integers(0, spread + 1, n) // round_to * round_to
    prompt = rng.integers(1, max(2, int(capacity * draw(st.sampled_from([0.1, 0.3, 0.8])))), n)
    output = rng.integers(1, max(2, int(capacity * draw(st.sampled_from([0.01, 0.3, 0.5])))), n)
    timeout = np.where(rng.random(n) < (0.5 if timeouts else 0), rng.integers(0, 3 * BIN_PS, n), -1)
    think = np.where(rng.random(n) < (0.7 if closed else 0), rng.integers(0, BIN_PS // 4, n), -1)
    return list(zip(*(column.tolist() for column in (gap, prompt, output, timeout, think)), strict=True))


def requests(capacity: int, *, timeouts: bool, closed: bool) -> st.SearchStrategy[list[Row]]:
    """Gaps are whole steps of 10 ms or any picosecond; think times differ, so that no two releases fall together."""
    gap = st.one_of(st.just(0), st.integers(0, 60).map(lambda k: k * 10 * MS), st.integers(0, 2 * BIN_PS))
    prompt = st.one_of(st.integers(1, 20), st.integers(1, 120))
    output = st.one_of(st.just(1), st.integers(1, 12), st.integers(1, 60))
    timeout = st.one_of(st.just(-1), st.integers(0, 2 * BIN_PS)) if timeouts else st.just(-1)
    think = st.one_of(st.just(-1), st.integers(0, BIN_PS)) if closed else st.just(-1)
    few = st.lists(st.tuples(gap, prompt, output, timeout, think), min_size=1, max_size=12)
    return st.one_of(few, crowds(capacity, timeouts=timeouts, closed=closed))


@st.composite
def cases(draw: st.DrawFn, *, timeouts: bool = False, closed: bool = False) -> Case:
    table = draw(tables())
    watts = st.floats(table.idle_w, table.full_power_w)
    caps = draw(st.lists(st.tuples(st.integers(1, 4 * BIN_PS), watts), max_size=4))
    rows = tuple(draw(requests(min(table.kv_blocks * table.block_size, 150), timeouts=timeouts, closed=closed)))
    return Case(table, rows, tuple(caps), draw(st.one_of(st.just(1e4), watts)))


class Run:
    """Runs an engine to the end, second by second or to given stops as well, and keeps the record."""

    def __init__(self, engine: Engine, caps: list[tuple[int, float]] = (), stops: list[int] = ()) -> None:  # type: ignore[assignment]
        self.engine = engine
        self.history = History(len(engine.slots), 1)
        ahead = sorted({t for t, _ in caps} | set(stops))
        watts = dict(caps)
        now = 0
        while engine.cursor[C_DONE] < len(engine.requests) or ahead:
            assert now < 10_000 * BIN_PS, "the engine makes no progress"
            now = min([*ahead, (now // LONGEST_PS + 1) * LONGEST_PS])
            advance(engine, now, True)
            self.history.take(engine.bins, now // BIN_PS, engine.slots["status"])
            if ahead and ahead[0] == now:
                ahead.pop(0)
            if now in watts:
                engine.slots["cap_w"] = watts[now]
                engine.slots["governed"] = 0
        self.end = (now // LONGEST_PS + 1) * LONGEST_PS
        advance(engine, self.end, True)
        self.history.take(engine.bins, self.end // BIN_PS, engine.slots["status"])

    def times(self) -> list[tuple[int, ...]]:
        rows = self.engine.requests
        names = ("status", "arrival_ps", "admit_ps", "first_token_ps", "finish_ps", "preemptions")
        return [tuple(row[name].item() for name in names) for row in rows]


def run(case: Case, router: int = LEAST_OUTSTANDING, stops: list[int] = ()) -> Run:  # type: ignore[assignment]
    return Run(compiled(case.table, case.jobs(), router, case.cap_w), case.cap_times(), stops)


def oracle(case: Case, until: int) -> Oracle:
    return Oracle(case.table, case.jobs(), [(0, case.cap_w), *case.cap_times()]).run(until)


def assert_equal_to_oracle(case: Case, result: Run) -> None:
    slow = oracle(case, result.end)
    fields = [(j.status, j.arrival, j.admit, j.first, j.finish, j.preemptions) for j in slow.jobs]
    assert result.times() == fields
    assert sorted(result.engine.done.tolist()) == sorted(slow.left)
    seconds = [slow.seconds[b] for b in range(result.end // BIN_PS)]
    history = result.history
    np.testing.assert_allclose(history.column("energy_j")[:, 0], [s.energy_j for s in seconds], rtol=1e-9)
    np.testing.assert_allclose(history.column("temperature_c")[:, 0], [s.temperature_c for s in seconds], rtol=1e-6)
    assert history.column("output_tokens")[:, 0].tolist() == [s.output_tokens for s in seconds]
    assert history.column("prompt_tokens")[:, 0].tolist() == [s.prompt_tokens for s in seconds]
    assert result.engine.slots["throttle_events"][0] == slow.throttle_events


def assert_at_rest(engine: Engine) -> None:
    """Nothing is left in any queue, heap or block, and each request has left once."""
    slots, n = engine.slots, len(engine.requests)
    assert sorted(engine.done.tolist()) == list(range(n))
    assert engine.cursor[C_DONE] == n
    assert engine.cursor[C_TIMERS] == 0 and engine.cursor[C_GATEWAY_COUNT] == 0
    assert np.isin(engine.requests["status"], [FINISHED, REJECTED, TIMED_OUT]).all()
    for name in ("outstanding", "waiting", "decodes", "context", "joiners"):
        assert not slots[name].any(), name
    for name in ("partial", "queue_head", "flight_end_ps"):
        assert (slots[name] == -1).all(), name
    assert (engine.phase == 0).all()
    assert (slots["free_blocks"] == engine.deployments["kv_blocks"][slots["deployment"]]).all()


@many
@given(cases())
def test_equals_the_oracle(case: Case) -> None:
    assert_equal_to_oracle(case, run(case))


@many
@given(cases(timeouts=True))
def test_equals_the_oracle_with_impatient_clients(case: Case) -> None:
    assert_equal_to_oracle(case, run(case))


@many
@given(cases(timeouts=True, closed=True))
def test_equals_the_oracle_in_a_closed_loop(case: Case) -> None:
    assert_equal_to_oracle(case, run(case))


@pytest.mark.slow
@settings(max_examples=20_000)
@given(cases(timeouts=True, closed=True))
def test_equals_the_oracle_at_length(case: Case) -> None:
    assert_equal_to_oracle(case, run(case))


stops = st.lists(st.one_of(st.integers(1, 4 * BIN_PS), st.integers(1, 400).map(lambda k: k * 10 * MS)), max_size=40)


@many
@given(cases(timeouts=True, closed=True), stops, st.sampled_from([ROUND_ROBIN, LEAST_OUTSTANDING]))
def test_neither_the_slicing_nor_the_router_of_one_slot_matters(case: Case, stops: list[int], router: int) -> None:
    whole, sliced = run(case), run(case, router, stops)
    assert whole.times() == sliced.times()
    for name in ("prompt_tokens", "output_tokens", "running", "waiting", "kv_used", "clock_ratio"):
        a, b = (x.history.column(name)[: min(whole.end, sliced.end) // BIN_PS] for x in (whole, sliced))
        assert a.tolist() == b.tolist(), name
    for name in ("energy_j", "metered_w", "temperature_c"):
        a, b = (x.history.column(name)[: min(whole.end, sliced.end) // BIN_PS] for x in (whole, sliced))
        np.testing.assert_allclose(a, b, rtol=1e-9)


@many
@given(cases(timeouts=True, closed=True))
def test_nothing_is_lost(case: Case) -> None:
    result = run(case)
    engine, table = result.engine, case.table
    assert_at_rest(engine)
    rows = engine.requests
    finished, gone = rows[rows["status"] == FINISHED], rows[rows["status"] != FINISHED]
    assert (finished["generated"] == finished["output"]).all()
    ordered = [finished[name] for name in ("arrival_ps", "admit_ps", "first_token_ps", "finish_ps")]
    assert all((a <= b).all() for a, b in pairwise(ordered)) and (ordered[1] < ordered[2]).all()
    assert (gone["first_token_ps"] < 0).all()
    history = result.history
    assert history.column("output_tokens").sum() == finished["output"].sum()
    if not gone["preemptions"].any():
        prefilled = history.column("prompt_tokens").sum()
        again = int((finished["prompt"] + finished["output"]) @ finished["preemptions"])
        assert finished["prompt"].sum() <= prefilled <= finished["prompt"].sum() + again
    energy = history.column("energy_j")
    assert (energy >= table.idle_w * (1 - 1e-12)).all() and (energy <= table.full_power_w * (1 + 1e-12)).all()


@many
@given(cases(timeouts=True))
def test_requests_too_long_are_rejected_on_arrival_and_no_others(case: Case) -> None:
    engine, table = run(case).engine, case.table
    rows = engine.requests
    tokens = rows["prompt"] + rows["output"]
    too_long = (tokens > table.max_model_len) | (tokens > table.kv_blocks * table.block_size)
    assert ((rows["status"] == REJECTED) == too_long).all()
    assert (rows["finish_ps"] == rows["arrival_ps"])[too_long].all()
    assert (rows["slot"][too_long] == -1).all() and (rows["slot"][~too_long] == 0).all()


@many
@given(cases(timeouts=True))
def test_clients_leave_once_their_patience_is_over_and_never_with_a_token(case: Case) -> None:
    rows = run(case).engine.requests
    out = rows[rows["status"] == TIMED_OUT]
    assert (out["timeout_ps"] >= 0).all() and (out["finish_ps"] > out["arrival_ps"] + out["timeout_ps"]).all()
    admitted = rows[(rows["admit_ps"] >= 0) & (rows["timeout_ps"] >= 0)]
    assert (admitted["admit_ps"] <= admitted["arrival_ps"] + admitted["timeout_ps"]).all()


@many
@given(cases(timeouts=True, closed=True))
def test_a_closed_loop_client_answers_exactly_after_its_think_time(case: Case) -> None:
    rows = run(case).engine.requests
    bounds = [job.arrival for job in case.jobs()]
    for i, row in enumerate(rows):
        if i and row["think_ps"] >= 0:
            due = rows[i - 1]["finish_ps"] + max(row["think_ps"], 1)
            assert row["arrival_ps"] == max(due, bounds[i])
        else:
            assert row["arrival_ps"] == bounds[i]


@many
@given(cases(), st.lists(st.integers(1, 4 * BIN_PS), min_size=1, max_size=20))
def test_no_request_finishes_before_the_bound_of_its_slot(case: Case, stops: list[int]) -> None:
    """Routing and closed loops leave a slot alone until its bound; a finish before it would be seen too late."""
    case = replace(case, caps=(), rows=tuple((0, *row[1:]) for row in case.rows))
    finish = np.sort(run(case).engine.requests["finish_ps"])
    engine = compiled(case.table, case.jobs(), LEAST_OUTSTANDING, case.cap_w)
    for stop in sorted(stops):
        advance(engine, stop, True)
        later = finish[finish > stop]
        if len(later):
            assert engine.slots["bound_ps"][0] <= later[0]


# -------------------------------------------------------------------------------------------------------- several slots


@st.composite
def fleets(draw: st.DrawFn, closed: bool = False) -> tuple[list[Table], list[Job]]:
    """Two to four slots of unequal speed and size, which share block size, budget and ladder."""
    first = draw(tables())
    fleet = [first]
    for _ in range(draw(st.integers(1, 3))):
        factor = draw(st.integers(1, 3))
        fleet.append(
            replace(
                first,
                fixed_ps=tuple(factor * t for t in first.fixed_ps),
                kv_blocks=draw(st.integers(1, 3)) * first.kv_blocks,
                max_num_seqs=draw(st.integers(1, first.max_num_seqs)),
            )
        )
    rows = draw(crowds(min(first.kv_blocks * first.block_size, 150), timeouts=False, closed=closed))
    return fleet, Case(first, tuple(rows), (), 1e9).jobs()


routers = st.sampled_from([ROUND_ROBIN, LEAST_OUTSTANDING])


@many
@given(fleets(closed=True), routers, stops)
def test_a_fleet_loses_nothing_and_each_slot_equals_the_oracle(
    fleet: tuple[list[Table], list[Job]], router: int, stops: list[int]
) -> None:
    """What the router has sent to a slot is served as if the slot were alone in the world."""
    specs, jobs = fleet
    result = Run(compiled(specs, jobs, router), stops=stops)
    assert_at_rest(result.engine)
    rows = result.engine.requests
    for r, table in enumerate(specs):
        # At the same instant, what the workload holds is routed before what a finish has released.
        mine = np.flatnonzero(rows["slot"] == r).tolist()
        mine.sort(key=lambda i: (rows[i]["arrival_ps"], jobs[i].think >= 0, i))
        alone = [Job(int(rows[i]["arrival_ps"]), jobs[i].prompt, jobs[i].output) for i in mine]
        Oracle(table, alone, [(0, 1e9)]).run(result.end)
        assert [(j.admit, j.first, j.finish, j.preemptions) for j in alone] == [
            tuple(rows[i][name].item() for name in ("admit_ps", "first_token_ps", "finish_ps", "preemptions"))
            for i in mine
        ]


@many
@given(fleets(closed=True), routers, stops)
def test_slicing_does_not_matter_to_a_fleet(
    fleet: tuple[list[Table], list[Job]], router: int, stops: list[int]
) -> None:
    specs, jobs = fleet
    whole, sliced = Run(compiled(specs, jobs, router)), Run(compiled(specs, jobs, router), stops=stops)
    assert whole.times() == sliced.times()
    assert whole.engine.requests["slot"].tolist() == sliced.engine.requests["slot"].tolist()


def routed(engine: Engine) -> list[int]:
    """Rows in the order in which they were routed: the engine's own order of arrival."""
    rows = engine.requests
    return sorted(np.flatnonzero(rows["slot"] >= 0).tolist(), key=lambda i: (rows[i]["arrival_ps"], i))


@many
@given(fleets(), st.data())
def test_least_outstanding_picks_a_least_loaded_slot(fleet: tuple[list[Table], list[Job]], data: st.DataObject) -> None:
    specs, jobs = fleet
    weight = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=len(specs), max_size=len(specs)))
    specs = [replace(t, kv_blocks=specs[0].kv_blocks) for t in specs]
    engine = compiled(specs, jobs, LEAST_OUTSTANDING)
    engine.slots["route_weight"] = weight
    Run(engine)
    rows, before = engine.requests, []
    for i in routed(engine):
        arrival = rows[i]["arrival_ps"]
        load = Counter(int(rows[j]["slot"]) for j in before if rows[j]["finish_ps"] > arrival)
        scores = [(load[r] + 1) / weight[r] for r in range(len(specs))]
        assert rows[i]["slot"] == scores.index(min(scores))
        before.append(i)


@many
@given(fleets(), st.data())
def test_weighted_round_robin_keeps_to_its_shares(fleet: tuple[list[Table], list[Job]], data: st.DataObject) -> None:
    specs, jobs = fleet
    weight = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(specs), max_size=len(specs))), float)
    specs = [replace(t, kv_blocks=specs[0].kv_blocks) for t in specs]
    engine = compiled(specs, jobs, ROUND_ROBIN)
    engine.slots["route_weight"] = weight
    Run(engine)
    share = (weight if weight.any() else np.ones(len(specs))) / (weight.sum() or len(specs))
    got = np.zeros(len(specs))
    for n, i in enumerate(routed(engine), 1):
        got[engine.requests[i]["slot"]] += 1
        assert (np.abs(got - n * share) <= 1 + 1e-9).all()
    assert (got[share == 0] == 0).all()


@some
@given(fleets(), routers)
def test_a_request_goes_where_it_fits(fleet: tuple[list[Table], list[Job]], router: int) -> None:
    specs, jobs = fleet
    rows = Run(compiled(specs, jobs, router)).engine.requests
    capacity = np.array([min(t.max_model_len, t.kv_blocks * t.block_size) for t in specs])
    tokens = rows["prompt"] + rows["output"]
    assert ((rows["status"] == REJECTED) == (tokens > capacity.max())).all()
    served = rows["slot"] >= 0
    assert (tokens[served] <= capacity[rows["slot"][served]]).all()


@some
@given(fleets(), routers)
def test_the_same_run_twice_gives_the_same_bytes(fleet: tuple[list[Table], list[Job]], router: int) -> None:
    specs, jobs = fleet
    one, two = (Run(compiled(specs, jobs, router)) for _ in range(2))
    for name in ARRAYS:
        assert getattr(one.engine, name).tobytes() == getattr(two.engine, name).tobytes(), name
    assert one.history.column("energy_j").tobytes() == two.history.column("energy_j").tobytes()
