"""Small cases worked by hand, in milliseconds, for every engine that follows docs/engine.md: one slot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import (
    BIN_PS,
    C_DONE,
    C_SENT,
    C_SENT_TOKENS,
    FINISHED,
    REJECTED,
    Engine,
)
from llmcluster.simulator.reference.engine import ReferenceEngine
from llmcluster.tests.machine import ENGINES, Call, Factory, Machine, Policy, build

MS = 10**9
END = BIN_PS
J = 10**14
W_MS = J // 1000

# An iteration over t tokens that reads c cached ones takes 10 + max(2 t, 5 + c) ms.
PLAIN = Machine(10 * MS, 2 * MS, 5 * MS, kv_read_ps=MS)
# The same without reading: 10 + max(2 t, 5) ms.
FLAT = replace(PLAIN, kv_read_ps=0)


@pytest.fixture(params=list(ENGINES))
def make(request: pytest.FixtureRequest) -> Factory:
    return ENGINES[request.param]


def call(arrival_ms: int, prompt: int, output: int, timeout_ms: int = -1, **more: object) -> Call:
    return Call(arrival_ms * MS, prompt, output, timeout_ms * MS if timeout_ms >= 0 else -1, **more)  # type: ignore[arg-type]


def ms(engine: Engine, row: int) -> tuple[float, float, float]:
    """Admission, first token and finish."""
    admit, first, finish = (int(engine.requests[row][name]) for name in ("admit_ps", "first_token_ps", "finish_ps"))
    return admit / MS, first / MS, finish / MS


def served(make: Factory, machine: Machine, *calls: Call, unit_tokens: int = 0, policy: Policy | None = None) -> Engine:
    engine = build(machine, calls, policy, unit_tokens=unit_tokens)
    make(engine).advance(END)
    return engine


# --------------------------------------------------------------------------------------------------------- iterations


def test_one_request(make: Factory) -> None:
    engine = served(make, PLAIN, call(7, 4, 3))
    # Prefill 10 + max(8, 5); the decodes read 5 and 6 tokens: 10 + max(2, 10), 10 + max(2, 11). So TTFT is 18 ms and
    # TPOT (20 + 21) / 2 ms.
    assert ms(engine, 0) == (7, 7 + 18, 7 + 18 + 20 + 21)
    assert engine.requests["status"][0] == FINISHED and engine.requests["generated"][0] == 3
    # 50 W all the second, 100 W for 59 ms, 200 W for 8 + 2 + 2 ms of compute, 50 W for 5 + 10 + 11 ms of memory.
    second = engine.bins[0, 0]
    assert second["energy"] == 50 * J + (5900 + 2400 + 1300) * W_MS
    assert (second["prompt_tokens"], second["output_tokens"]) == (4, 3)
    assert engine.cursor[C_DONE] == engine.cursor[C_SENT] == 1 and engine.cursor[C_SENT_TOKENS] == 4


def test_a_single_token_comes_with_the_prefill(make: Factory) -> None:
    engine = served(make, PLAIN, call(0, 4, 1), call(0, 3, 1))
    # Both in one iteration of 7 tokens: 10 + 14.
    assert ms(engine, 0) == ms(engine, 1) == (0, 24, 24)
    assert engine.slots["free_blocks"][0] == PLAIN.kv_blocks


def test_two_requests_that_overlap(make: Factory) -> None:
    engine = served(make, PLAIN, call(0, 4, 3), call(20, 2, 2))
    # Boundaries at 18 and 38. There the second joins: 3 tokens, the first's decode reads 6: 10 + max(6, 11) = 21.
    assert ms(engine, 0) == (0, 18, 59)
    # Alone it decodes and reads 3 tokens: 10 + max(2, 8) = 18.
    assert ms(engine, 1) == (38, 59, 77)


@pytest.mark.parametrize(
    ("attention", "first", "finish"),
    [
        # Chunks of 4, 4 and 2 read 0, 4 and 8: 10 + max(8, 5), 10 + max(8, 9), 10 + max(4, 13); then 10 + max(2, 16).
        (0, 18 + 19 + 23, 18 + 19 + 23 + 26),
        # With 1 ms per pair, of which there are 10, 26 and 19: 10 + 18, 10 + 34, 10 + 23; the decode attends 11.
        (1, 28 + 44 + 33, 28 + 44 + 33 + 26),
    ],
)
def test_a_prefill_in_three_chunks(make: Factory, attention: int, first: int, finish: int) -> None:
    machine = replace(PLAIN, attention_ps=attention * MS, max_batched_tokens=4, max_num_seqs=3)
    assert ms(served(make, machine, call(0, 10, 2)), 0) == (0, first, finish)


def test_decodes_take_their_share_of_the_budget_first(make: Factory) -> None:
    engine = served(make, replace(FLAT, max_batched_tokens=4, max_num_seqs=3), call(0, 4, 4), call(1, 7, 1))
    # 18 to the first token; then chunks of 3, 3 and 1 beside one decode: 10 + 8, 10 + 8, 10 + max(4, 5).
    assert ms(engine, 0) == (0, 18, 18 + 18 + 18 + 15)
    assert ms(engine, 1) == (18, 69, 69)


@pytest.mark.parametrize(("late_ps", "admitted"), [(0, 38), (1, 59)])
@pytest.mark.parametrize("cut", [False, True])
def test_an_arrival_on_a_boundary_joins_there_and_a_picosecond_later_it_does_not(
    make: Factory, late_ps: int, admitted: int, cut: bool
) -> None:
    engine = build(PLAIN, [call(0, 4, 3), Call(38 * MS + late_ps, 2, 2)])
    driver = make(engine)
    if cut:
        driver.advance(38 * MS)
        driver.advance(38 * MS + 1)
    driver.advance(END)
    assert ms(engine, 0) == (0, 18, 59)
    assert ms(engine, 1)[0] == admitted


def test_a_request_that_no_slot_could_hold_is_rejected_on_arrival(make: Factory) -> None:
    machine = replace(PLAIN, kv_blocks=3, block_size=2, watermark=1)
    # 4 of the 6 tokens of room are left beside the watermark.
    engine = served(make, machine, call(1, 4, 1), call(2, 3, 1))
    assert engine.requests["status"].tolist() == [REJECTED, FINISHED]
    assert engine.requests["finish_ps"][0] == 1 * MS and engine.cursor[C_SENT] == 2


# --------------------------------------------------------------------------------------------------- blocks, preemption


def test_the_newest_is_preempted_and_recomputed(make: Factory) -> None:
    engine = served(make, replace(FLAT, block_size=2, kv_blocks=4, max_num_seqs=2), call(0, 2, 6), call(0, 2, 4))
    # Prefill of both 18; two iterations of 15 to 48, when both have 4 tokens and full blocks, and none is free. The
    # second goes; the first decodes alone at 63, 78 and, with its last block, 93. The other needs 3 blocks and waits
    # for that; 5 tokens are recomputed in 20 and yield its fourth.
    assert ms(engine, 0) == (0, 18, 93)
    assert ms(engine, 1) == (0, 18, 113)
    assert engine.requests["preemptions"].tolist() == [0, 1]
    assert engine.bins["prompt_tokens"][0, 0] == 2 + 2 + 5
    assert engine.bins["output_tokens"][0, 0] == 6 + 4


def test_a_prefill_that_finds_no_block_starts_over(make: Factory) -> None:
    machine = replace(FLAT, block_size=1, kv_blocks=8, max_num_seqs=3, max_batched_tokens=4)
    engine = served(make, machine, call(0, 2, 3), call(0, 6, 1))
    # 2 + 2 tokens in 18; then the decode takes a block, and the chunk of 3 finds 3 left: 10 + 8, to 36. Now the decode
    # takes the last but none is left for the sixth token: preempted, decode alone to 51, and all 6 anew in 18 + 15.
    assert ms(engine, 0) == (0, 18, 51)
    assert ms(engine, 1) == (0, 51 + 18 + 15, 51 + 18 + 15)
    assert engine.requests["preemptions"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("by_priority", "times", "preemptions"),
    [
        # 15 ms for the prompt of the first, 16 for its decode with the other's prompt, 15 with both decoding, to 46.
        # Then the first has 4 tokens cached and needs a block, but none is free. Its level is higher: it goes. The
        # other finishes at 76; at 61 there is 1 block for the 3 that 5 tokens need, at 76 all 4: 20, and 15 twice.
        (True, [(0, 15, 126), (15, 31, 76)], [1, 0]),
        # The other was admitted last: it goes, with 2 tokens generated. It needs 2 blocks, but the first has 3 of the 4
        # until its sixth token at 91. Then 4 tokens are recomputed in 18 for the other's third, and 15 for its fourth.
        (False, [(0, 15, 91), (15, 31, 124)], [0, 1]),
    ],
)
def test_who_is_preempted(
    make: Factory, by_priority: bool, times: list[tuple[int, int, int]], preemptions: list[int]
) -> None:
    machine = replace(FLAT, block_size=2, kv_blocks=4, max_num_seqs=2, by_priority=by_priority)
    engine = served(make, machine, call(0, 2, 6, level=1), call(1, 2, 4, level=0))
    assert [ms(engine, row) for row in range(2)] == times
    assert engine.requests["preemptions"].tolist() == preemptions


def test_a_lower_level_overtakes_in_the_queue(make: Factory) -> None:
    machine = replace(FLAT, max_num_seqs=1, by_priority=True)
    engine = served(make, machine, call(0, 1, 1, level=1), call(1, 1, 1, level=1), call(2, 1, 1, level=0))
    assert [ms(engine, row)[0] for row in range(3)] == [0, 30, 15]


@pytest.mark.parametrize(("watermark", "admitted"), [(0, 0), (1, 33)])
def test_admission_leaves_the_watermark_free(make: Factory, watermark: int, admitted: int) -> None:
    machine = replace(FLAT, block_size=2, kv_blocks=4, watermark=watermark, max_model_len=6)
    engine = served(make, machine, call(0, 4, 2), call(0, 4, 1))
    # 2 blocks each. With 1 to be left free, the second waits until the first has left: 18, and a decode of 15.
    assert ms(engine, 1)[0] == admitted


# ------------------------------------------------------------------------------------------------------ prefix caching

PAGED = replace(PLAIN, block_size=2, kv_blocks=8)


def test_a_prefix_hit(make: Factory) -> None:
    calls = [call(0, 6, 1, hashes=(1, 2, 3)), call(100, 6, 1, hashes=(1, 2, 4)), call(200, 6, 1, hashes=(1, 2, 3))]
    engine = served(make, PAGED, *calls, unit_tokens=2)
    # All 6 tokens: 10 + max(12, 5). Then 2 tokens that read 4: 10 + max(4, 9). The third could find 3 units of 2
    # tokens, but its last token is to be computed, and so its last unit is: 2 tokens that read 4 again.
    assert [ms(engine, row)[2] for row in range(3)] == [22, 119, 219]
    assert engine.bins["prompt_tokens"][0, 0] == 6 + 2 + 2
    assert engine.slots["free_blocks"][0] == PAGED.kv_blocks


def test_without_prefix_caching_hashes_mean_nothing(make: Factory) -> None:
    engine = served(make, PAGED, call(0, 6, 1, hashes=(1, 2, 3)), call(100, 6, 1, hashes=(1, 2, 3)))
    assert [ms(engine, row)[2] for row in range(2)] == [22, 122]


def test_units_larger_than_blocks(make: Factory) -> None:
    calls = [call(0, 6, 1, hashes=(1,)), call(100, 6, 1, hashes=(1,))]
    # One unit of 4 tokens, 2 blocks.
    assert ms(served(make, PAGED, *calls, unit_tokens=4), 1)[2] == 119


@pytest.mark.parametrize(
    ("between", "took"),
    [
        # The first prompt leaves the queue of free blocks as: a block without a hash, its third unit, second, first.
        # One prompt of 2 blocks takes the unhashed one and the third unit: 2 tokens are to be computed that read 4.
        (4, 10 + 9),
        # One of 3 blocks takes the second unit also: 4 tokens that read 2, 10 + max(8, 7).
        (6, 10 + 8),
    ],
)
def test_the_tail_of_what_is_unused_longest_is_evicted_first(make: Factory, between: int, took: int) -> None:
    machine = replace(PAGED, kv_blocks=4)
    other = call(100, between, 1, hashes=(7, 8, 9)[: between // 2])
    calls = [call(0, 6, 1, hashes=(1, 2, 3)), other, call(200, 6, 1, hashes=(1, 2, 3))]
    assert ms(served(make, machine, *calls, unit_tokens=2), 2) == (200, 200 + took, 200 + took)


def test_blocks_that_others_hold_are_shared(make: Factory) -> None:
    calls = [call(0, 4, 4, hashes=(1, 2)), call(1, 6, 1, hashes=(1, 2, 3))]
    engine = served(make, replace(PAGED, kv_blocks=5), *calls, unit_tokens=2)
    # At 18 the first decodes with a third block, so 2 are free. The second needs 3 of which it shares 2: 3 tokens, the
    # decode reads 5 and the chunk 4: 10 + max(6, 14) = 24.
    assert ms(engine, 1) == (18, 42, 42)
    # Alone again, it reads 6 and 7: 21, 22.
    assert ms(engine, 0) == (0, 18, 85)


# ------------------------------------------------------------------------------------------------------- power and heat

# 10 + max(20 t / f, 5) ms at clock f.
CAPPED = Machine(10 * MS, 20 * MS, 5 * MS, clock=(0.25, 0.5, 1.0), scale=(0.1, 0.25, 1.0))


@pytest.mark.parametrize(
    ("cap_w", "last_ms", "last_w_ms"),
    [
        # At half the clock a token takes 10 + 40 ms, at 50 + 25 W, 50 W more for 40 ms and 50 W more for 5 ms: 6000 mJ
        # or 120 W on average. At a quarter 10 + 80 ms at 50 + 10 W, 20 W more for 80 ms and 50 W for 5 ms: 7250 mJ.
        (120.0, 50, 6000),
        (119.99, 90, 7250),
        (1.0, 90, 7250),  # where no clock keeps under the cap, the lowest one serves
    ],
)
def test_a_cap_that_changes_in_mid_decode(make: Factory, cap_w: float, last_ms: int, last_w_ms: int) -> None:
    engine = build(CAPPED, [call(0, 1, 4)])
    driver = make(engine)
    driver.advance(70 * MS)
    engine.slots["cap_w"], engine.slots["governed"] = cap_w, 0
    driver.advance(END)
    # At the full clock a token takes 30 ms: 150 W, 200 W more for 20 ms and 50 W for 5 ms: 8750 mJ. The third decode is
    # the first that begins after the change, at 90 ms: the iteration in flight is not slowed.
    assert ms(engine, 0) == (0, 30, 90 + last_ms)
    assert engine.bins["energy"][0, 0] == (3 * 8750 + last_w_ms + 50 * (1000 - 90 - last_ms)) * W_MS


def test_a_locked_clock(make: Factory) -> None:
    engine = build(CAPPED, [call(0, 1, 1)], clock_limit=1)
    make(engine).advance(END)
    assert ms(engine, 0) == (0, 50, 50)


def test_decodes_keep_their_clock_until_the_second_closes(make: Factory) -> None:
    # 100 ms and 1 ms per pair at the top: 150 W and 200 W more for the share of time that is compute. At 154 W, that
    # may be 2 % of it: 1 / 101 for the prompt, 2 / 102 for the first decode, but 3 / 103 for the next.
    machine = Machine(100 * MS, 0, 0, attention_ps=MS)
    engine = build(machine, [call(0, 1, 11)], cap_w=154.0)
    driver = make(engine)
    driver.advance(2 * END)
    # Iterations with 1 to 10 pairs end at 101, 203, … 1055. The last one, of 11 pairs, has a new clock: at 0.75 it
    # draws 100 W and less than 100 W · 15 / 115 more. It takes 100 ms and 11 times round(10⁹ / 0.75) ps.
    assert engine.requests["finish_ps"][0] == 1055 * MS + 100 * MS + 11 * 1_333_333_333
    assert engine.bins["clock_ratio"][:2, 0].tolist() == [1.0, 0.75]


def test_energy_of_an_iteration_across_the_edge_of_a_second(make: Factory) -> None:
    engine = build(Machine(800 * MS, 0, 0, averaging=False), [call(0, 1, 2)])
    make(engine).advance(2 * END)
    # 150 W to 1600 ms, then 50 W.
    assert engine.bins["energy"][:2, 0].tolist() == [150 * J, 110 * J]
    # The meter shows the instant at the end of the second.
    assert engine.bins["metered_w"][:2, 0].tolist() == [150.0, 50.0]
    assert engine.bins["output_tokens"][:2, 0].tolist() == [1, 1]
    assert engine.bins["running"][:2, 0].tolist() == [1, 0]


def test_the_end_of_a_second_comes_before_the_end_of_an_iteration(make: Factory) -> None:
    engine = build(Machine(500 * MS, 0, 0, block_size=1, kv_blocks=4), [call(0, 1, 2), call(900, 1, 1)])
    make(engine).advance(2 * END)
    # Both tokens of the first request count in the first second, yet it is still there as that ends.
    assert engine.bins["output_tokens"][:2, 0].tolist() == [2, 1]
    assert engine.bins["running"][:2, 0].tolist() == [1, 0]
    assert engine.bins["waiting"][:2, 0].tolist() == [1, 0]
    assert engine.bins["kv_used"][:2, 0].tolist() == [0.5, 0.0]
    assert engine.bins["energy"][:2, 0].tolist() == [150 * J, 100 * J]
    assert engine.bins["metered_w"][:2, 0].tolist() == [150.0, 100.0]


def test_heat_forces_the_clock_down_until_it_is_cool(make: Factory) -> None:
    # A degree per watt, at once: 150 W make 175 °C, then a quarter of the ladder, 75 W, makes 100 °C.
    machine = Machine(100 * MS, 0, 0, resistance=(1.0, 0.0), decay=(0.0, 0.0), throttle_c=175.0, resume_c=100.0)
    engine = build(machine, [call(0, 1, 30)])
    make(engine).advance(3 * END)
    assert engine.bins["temperature_c"][:3, 0].tolist() == [175.0, 100.0, 175.0]
    assert engine.bins["clock_ratio"][:3, 0].tolist() == [1.0, 0.5, 1.0]
    assert engine.bins["energy"][:3, 0].tolist() == [150 * J, 75 * J, 150 * J]
    assert (engine.slots["throttle_events"][0], engine.slots["throttled"][0]) == (2, 1)


def test_a_pole_remembers(make: Factory) -> None:
    # 50 W on 2 GPUs. The first pole forgets half a second's rise, the second keeps nine tenths: 25 · 0.04 · 0.5 K and
    # 25 · 0.02 · 0.1 K are added each second.
    machine = Machine(MS, 0, 0, gpus=2, resistance=(0.04, 0.02), decay=(0.5, 0.9))
    engine = build(machine, [])
    make(engine).advance(2 * END)
    rise = 0.5 + 0.05
    assert engine.bins["temperature_c"][:2, 0] == pytest.approx([25 + rise, 25 + rise + 0.25 + 0.045], rel=1e-14)


# ------------------------------------------------------------------------------------------------ of the reference only


def test_the_cache_of_a_slot_with_requests_is_not_cleared() -> None:
    driver = ReferenceEngine(build(PLAIN, [call(0, 4, 3)]))
    driver.advance(MS)
    with pytest.raises(InputError, match="Drain it"):
        driver.clear(0)
