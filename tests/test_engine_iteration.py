"""Iterations worked by hand for both engines in which all takes time: host, gaps, sampling, state, links."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.simulator.kernels.state import FINISHED
from llmcluster.tests.by_hand import END, MS, W_MS, call, ms
from llmcluster.tests.machine import ENGINES, Factory, Machine, build

# An iteration over t tokens of n sequences, of c cached tokens and p pairs, at clock f, in milliseconds:
# H = 4 + n, G = 2, S = n, L = 3, C = (2 t + 3 p) / f, M = 5 + 2 n + c. It draws 50 W all along, 100 W but for H, 200 W
# for C (both times a quarter at half the clock), 50 W for M and S, and 30 W for L.
WHOLE = Machine(
    link_ps=3 * MS,
    compute_ps=2 * MS,
    memory_ps=5 * MS,
    step_ps=4 * MS,
    sequence_ps=MS,
    gap_ps=2 * MS,
    sample_ps=MS,
    state_ps=2 * MS,
    kv_read_ps=MS,
    attention_ps=3 * MS,
    link_w=30.0,
    clock=(0.25, 0.5, 1.0),
    scale=(0.1, 0.25, 1.0),
)
IDLE_W = 50


def test_decodes_that_turn_from_memory_to_compute(make: Factory) -> None:
    """One request alone: 5 + 2 + 1 + 3 ms and the greater of C and M."""
    engine = build(WHOLE, [call(0, 1, 5)])
    make(engine).advance(END)
    #           p   c   C   M   T    energy, mJ
    # prompt    1   0   5   7  18    900 + 1300 + 1000 + 50 ·  8 + 90 = 3690
    # decodes   2   2   8   9  20   1000 + 1500 + 1600 + 50 · 10 + 90 = 4690
    #           3   3  11  10  22   1100 + 1700 + 2200 + 50 · 11 + 90 = 5640
    #           4   4  14  11  25   1250 + 2000 + 2800 + 50 · 12 + 90 = 6740
    #           5   5  17  12  28   1400 + 2300 + 3400 + 50 · 13 + 90 = 7840
    assert ms(engine, 0) == (0, 18, 18 + 20 + 22 + 25 + 28)
    busy = 3690 + 4690 + 5640 + 6740 + 7840
    assert engine.bins["energy"][0, 0] == (busy + IDLE_W * (1000 - 113)) * W_MS


def test_decodes_beside_a_prompt(make: Factory) -> None:
    """A second request of 4 + 2 tokens arrives while the prompt of the first is computed."""
    engine = build(WHOLE, [call(0, 1, 4), call(10, 4, 2)])
    make(engine).advance(END)
    #                    t  n   p  c   H   C   M   T    energy, mJ
    # first alone        1  1   1  0   5   5   7  18     900 + 1300 +  1000 + 50 ·  8 + 90 =  3690
    # with four tokens   5  2  12  2   6  46  11  59    2950 + 5300 +  9200 + 50 · 13 + 90 = 18190
    # both decode        2  2   8  8   6  28  17  41    2050 + 3500 +  5600 + 50 · 19 + 90 = 12190
    # first alone        1  1   4  4   5  14  11  25    1250 + 2000 +  2800 + 50 · 12 + 90 =  6740
    assert ms(engine, 0) == (0, 18, 143)
    assert ms(engine, 1) == (18, 77, 118)
    busy = 3690 + 18190 + 12190 + 6740
    assert engine.bins["energy"][0, 0] == (busy + IDLE_W * (1000 - 143)) * W_MS


def test_the_clock_slows_compute_alone(make: Factory) -> None:
    engine = build(WHOLE, [call(0, 1, 3)], clock_limit=1)
    make(engine).advance(END)
    #           p   c   C   M   T    energy, mJ
    # prompt    1   0  10   7  21   1050 + (1600 + 2000) / 4 + 50 ·  8 + 90 = 2440
    # decodes   2   2  16   9  27   1350 + (2200 + 3200) / 4 + 50 · 10 + 90 = 3290
    #           3   3  22  10  33   1650 + (2800 + 4400) / 4 + 50 · 11 + 90 = 4090
    assert ms(engine, 0) == (0, 21, 21 + 27 + 33)
    assert engine.bins["energy"][0, 0] == (2440 + 3290 + 4090 + IDLE_W * (1000 - 81)) * W_MS


@pytest.mark.parametrize(("cap_w", "first_ms"), [(205.01, 18), (204.99, 21)])
def test_a_cap_counts_every_part(make: Factory, cap_w: float, first_ms: int) -> None:
    """The prompt draws 3690 mJ in 18 ms at the full clock, which are 205 W: 5 W of them links, 2.8 W sampling."""
    engine = build(WHOLE, [call(0, 1, 1)], cap_w=cap_w)
    make(engine).advance(END)
    assert ms(engine, 0) == (0, first_ms, first_ms)


@pytest.mark.parametrize(("cap_w", "first_ms"), [(234.51, 20), (234.49, 27)])
def test_a_cap_counts_every_part_of_a_decode(make: Factory, cap_w: float, first_ms: int) -> None:
    """The first decode draws 4690 mJ in 20 ms, 234.5 W; the prompt before it is below."""
    engine = build(WHOLE, [call(0, 1, 2)], cap_w=cap_w)
    make(engine).advance(END)
    assert ms(engine, 0) == (0, 18, 18 + first_ms)


FIXED = ("link_ps", "step_ps", "sequence_ps", "gap_ps", "sample_ps")
ROOFLINE = ("compute_ps", "attention_ps", "memory_ps", "memory_each_ps", "state_ps", "kv_read_ps")
POWERS = ("idle_w", "active_w", "compute_w", "memory_w", "link_w")
UNTIL_S = 200
lengths = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=4)


@pytest.mark.parametrize("factory", list(ENGINES.values()), ids=list(ENGINES))
@given(
    term=st.sampled_from(FIXED + ROOFLINE + POWERS), more=st.integers(1, 20), lengths=lengths, step=st.integers(0, 2)
)
def test_no_term_that_grows_saves_time_or_energy(
    factory: Factory, term: str, more: int, lengths: list[tuple[int, int]], step: int
) -> None:
    """Requests that begin together, at a locked clock: the batches are the same, and the energy of as many seconds."""
    grown = replace(WHOLE, **{term: getattr(WHOLE, term) + more * (MS if term.endswith("ps") else 1)})
    finishes, energies = [], []
    for machine in (WHOLE, grown):
        engine = build(machine, [call(0, *each) for each in lengths], clock_limit=step)
        factory(engine).advance(UNTIL_S * END)
        assert (engine.requests["status"] == FINISHED).all()
        finishes.append(engine.requests["finish_ps"].copy())
        energies.append(int(engine.bins["energy"][:UNTIL_S, 0].sum()))
    assert (finishes[0] <= finishes[1]).all() and energies[0] <= energies[1]
    if term not in ROOFLINE:
        assert (finishes[0] < finishes[1]).all() == (term in FIXED)
    # The host's time is drawn as idle; where there are prompts alone, nothing that is cached is read.
    if term not in ("step_ps", "sequence_ps", "kv_read_ps"):
        assert energies[0] < energies[1]
