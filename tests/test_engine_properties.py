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
    BIN_PS,
    C_DONE,
    C_GATEWAY_COUNT,
    C_RELEASES,
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
many = settings(deadline=None, max_examples=200)
some = settings(deadline=None, max_examples=80)


@dataclass(frozen=True)
class Case:
    """One slot's table, its requests as (gap, prompt, output, timeout, think) and its caps as (gap, watts)."""

    table: Table
    rows: tuple[tuple[int, int, int, int, int], ...]
    caps: tuple[tuple[int, float], ...]
    cap_w: float

    def jobs(self) -> list[Job]:
        """A closed-loop request waits for the one before it, whose session it shares."""
        jobs, now = [], 0
        for i, (gap, prompt, output, timeout, think) in enumerate(self.rows):
            now += gap
            jobs.append(Job(now, prompt, output, timeout, think if i else -1))
            if i and think >= 0:
                jobs[i - 1].follower = i
        return jobs

    def cap_times(self) -> list[tuple[int, float]]:
        times, now = [], 0
        for gap, watts in self.caps:
            now += gap
            times.append((now, watts))
        return times


@st.composite
def tables(draw: st.DrawFn, tight: bool = True) -> Table:
    """Times in a unit of 10 µs, so that arrivals, boundaries and bin edges often coincide, or of something odd."""
    unit = draw(st.sampled_from([10**7, 9_999_991]))
    seqs = draw(st.integers(1, 8))
    budget = draw(st.integers(seqs + 1, 40))
    size = draw(st.sampled_from([1, 3, 4, 16]))
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
        kv_blocks=draw(st.integers(30, 150)) // size if tight else 1000,
        block_size=size,
        max_model_len=draw(st.sampled_from([10_000, 60])),
        max_num_seqs=seqs,
        max_batched_tokens=budget,
        clock=step,
        scale=tuple(f**exponent for f in step),
        throttle_c=throttle,
        resume_c=throttle - 3,
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
    return Case(table, rows, tuple(caps), draw(st.one_of(st.just(1e9), watts)))


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
            advance(engine, now)
            self.history.take(engine.bins, now // BIN_PS, engine.slots["status"])
            if ahead and ahead[0] == now:
                ahead.pop(0)
            if now in watts:
                engine.slots["cap_w"] = watts[now]
                engine.slots["governed"] = 0
        self.end = (now // LONGEST_PS + 1) * LONGEST_PS
        advance(engine, self.end)
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
    np.testing.assert_allclose(history.column("temperature_c")[:, 0], [s.temperature_c for s in seconds], rtol=1e-9)
    assert history.column("output_tokens")[:, 0].tolist() == [s.output_tokens for s in seconds]
    assert history.column("prompt_tokens")[:, 0].tolist() == [s.prompt_tokens for s in seconds]
    assert result.engine.slots["throttle_events"][0] == slow.throttle_events


def assert_at_rest(engine: Engine) -> None:
    """Nothing is left in any queue, heap or block, and each request has left once."""
    slots, n = engine.slots, len(engine.requests)
    assert sorted(engine.done.tolist()) == list(range(n))
    assert engine.cursor[C_DONE] == n
    assert engine.cursor[C_RELEASES] == 0 and engine.cursor[C_GATEWAY_COUNT] == 0
    assert np.isin(engine.requests["status"], [FINISHED, REJECTED, TIMED_OUT]).all()
    for name in ("outstanding", "waiting", "decodes", "context", "joiners"):
        assert not slots[name].any(), name
    for name in ("partial", "queue_head", "queue_tail", "flight_end_ps"):
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
