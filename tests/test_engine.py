"""Cases of one slot worked by hand, in milliseconds, for both engines: what is scheduled when."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.prefix import home
from llmcluster.simulator.kernels.state import C_DONE, C_SENT, C_SENT_TOKENS, FINISHED, REJECTED, TIMED_OUT
from llmcluster.simulator.reference.engine import ReferenceEngine
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.workload.table import RequestTable
from llmcluster.tests.by_hand import END, FLAT, MS, PLAIN, W_MS, J, call, ms, served
from llmcluster.tests.machine import Call, Compiled, Factory, Machine, build, tables

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


def test_a_batch_that_crosses_the_ridge_of_the_roofline(make: Factory) -> None:
    # Decodes over c tokens: 10 + max(2 + 3 c, 20 + c), even at c = 9.
    engine = served(make, replace(PLAIN, memory_ps=20 * MS, attention_ps=3 * MS), call(0, 4, 8))
    decodes = [35, 36, 37, 38, 39, 10 + 32, 10 + 35]
    assert ms(engine, 0) == (0, 10 + 8 + 30, 48 + sum(decodes))
    # 100 W for all of it, 200 W for compute and 50 W for memory: 38 and 20 ms for the prompt, then for c of 5 to 11.
    compute, memory = 38 + 7 * 2 + 3 * sum(range(5, 12)), 20 + 7 * 20 + sum(range(5, 12))
    assert engine.bins["energy"][0, 0] == 50 * J + (100 * 320 + 200 * compute + 50 * memory) * W_MS


def test_the_queue_is_first_come_first_served_within_max_num_seqs(make: Factory) -> None:
    engine = served(make, replace(FLAT, max_num_seqs=1), call(0, 2, 2), call(1, 2, 1), call(2, 1, 1))
    assert [ms(engine, row) for row in range(3)] == [(0, 15, 30), (30, 45, 45), (45, 60, 60)]


def test_a_client_gives_up_only_past_its_patience(make: Factory) -> None:
    calls = [call(0, 2, 2), call(1, 2, 1, timeout_ms=28), call(2, 1, 1, timeout_ms=28)]
    engine = served(make, replace(FLAT, max_num_seqs=1), *calls)
    # At 30 the second has waited for 29, the third for exactly its 28.
    assert engine.requests["status"].tolist() == [FINISHED, TIMED_OUT, FINISHED]
    assert engine.requests["finish_ps"][1] == 30 * MS and ms(engine, 2) == (30, 45, 45)


def test_who_waits_for_blocks_gives_up_in_mid_leap(make: Factory) -> None:
    # The first decodes up to 18 + 15 · 15 = 243; the second does not fit beside it, the third does once it is gone.
    machine = replace(FLAT, block_size=1, kv_blocks=20)
    engine = served(make, machine, call(0, 4, 16), call(1, 17, 1, timeout_ms=47), call(2, 1, 1))
    # At 48 it has waited for 47: not yet. At 63 it has gone, and the third joins: 10 + max(4, 5).
    assert engine.requests["status"].tolist() == [FINISHED, TIMED_OUT, FINISHED]
    assert engine.requests["finish_ps"][1] == 63 * MS
    assert ms(engine, 2) == (63, 78, 78) and ms(engine, 0) == (0, 18, 243)


def test_the_context_of_the_model_is_a_limit_as_well(make: Factory) -> None:
    calls = [call(0, 10, 8), call(1, 10, 9), call(2, 18, 1)]
    engine = served(make, replace(PLAIN, block_size=4, kv_blocks=5, max_model_len=18), *calls)
    assert engine.requests["status"].tolist() == [FINISHED, REJECTED, REJECTED]
    assert engine.requests["finish_ps"].tolist()[1:] == [MS, 2 * MS]


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


def test_a_preempted_decode_returns_the_block_it_has_just_taken(make: Factory) -> None:
    machine = replace(FLAT, block_size=2, kv_blocks=6, max_num_seqs=2, max_batched_tokens=4, by_priority=True)
    engine = served(make, machine, call(0, 2, 6, level=1), call(1, 8, 1, level=0))
    # 15 for the prompt of the first; then twice a decode beside 3 tokens of the second, 10 + 8, to 51. Of 6 blocks the
    # first has 2, which are full, the second 3. The first takes the last, but the second is more urgent and needs one:
    # the first goes and returns 3. The second has its last 2 tokens in 15. The first computes its 2 + 3 tokens anew in
    # 18 and 15, and decodes twice.
    assert [ms(engine, row) for row in range(2)] == [(0, 15, 66 + 18 + 15 + 30), (15, 66, 66)]
    assert engine.requests["preemptions"].tolist() == [1, 0]
    assert engine.slots["free_blocks"][0] == 6


def test_a_prefill_that_preempts_a_decode_in_vain(make: Factory) -> None:
    machine = replace(FLAT, block_size=1, kv_blocks=10, max_num_seqs=3, max_batched_tokens=6, by_priority=True)
    engine = served(make, machine, call(0, 1, 4, level=0), call(0, 1, 8, level=2), call(1, 9, 1, level=1))
    # 15 for two prompts; 22 for both decodes and 4 tokens of the third, to 37: blocks 2, 2 and 4. Both decodes take one
    # more; the third needs 4 and gets 3 when the second goes, so it goes itself. The first decodes alone, to 52.
    # Then 5 tokens of the third beside it in 22, which is its last; at 74 the other 4 in 18, while 1 block is left for
    # the second, which needs 2 for what the budget allows. At 92 its 1 + 2 tokens are computed anew in 16, its third;
    # and it decodes 5 times.
    assert [ms(engine, row) for row in range(3)] == [(0, 15, 74), (0, 15, 92 + 16 + 75), (15, 92, 92)]
    assert engine.requests["preemptions"].tolist() == [0, 1, 1]
    assert engine.slots["free_blocks"][0] == 10


@pytest.mark.parametrize("earlier", [0, 1])
def test_of_one_level_who_arrived_last_is_preempted(make: Factory, earlier: int) -> None:
    # The prompts of both, who arrive a millisecond apart while a third runs, are computed together at 15; they are
    # admitted by level, then in the order of routing.
    machine = replace(FLAT, block_size=2, kv_blocks=4, max_num_seqs=2, by_priority=True)
    calls = [call(0, 2, 1), call(1, 2, 4), call(1 + earlier, 2, 4)]
    engine = served(make, machine, *calls)
    # 18 for both; two decodes of 15, to 63: full blocks and none free. The later goes, of equals the one of the higher
    # row. The other has its last token 15 later; 5 tokens are recomputed in 20.
    assert [ms(engine, row)[2] for row in range(3)] == [15, 78, 98]
    assert engine.requests["preemptions"].tolist() == [0, 0, 1]


def test_the_preempted_return_to_their_place_in_their_level(make: Factory) -> None:
    machine = replace(FLAT, block_size=2, kv_blocks=4, max_num_seqs=2, by_priority=True)
    calls = [call(0, 2, 6, level=0), call(0, 2, 4, level=1), call(1, 3, 1, level=1), call(2, 1, 1, level=0)]
    engine = served(make, machine, *calls)
    # As under FCFS the second goes at 48, now behind the fourth but before the third, which arrived later. At 63
    # the fourth takes the 1 block that is left, until 78. At 93 the first is done; 5 tokens of the second take 3 of the
    # 4 blocks, so that the third, which needs 2, has to wait for 10 + 10.
    assert [ms(engine, row)[0] for row in (3, 2)] == [63, 113]
    assert [ms(engine, row) for row in (0, 1)] == [(0, 18, 93), (0, 18, 113)]


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


@pytest.mark.parametrize(("watermark", "admitted"), [(1, 118), (2, 133)])
def test_a_hit_leaves_the_watermark_free_as_well(make: Factory, watermark: int, admitted: int) -> None:
    machine = replace(FLAT, block_size=2, kv_blocks=6, watermark=watermark)
    calls = [call(0, 4, 1, hashes=(1, 2)), call(100, 4, 2), call(105, 4, 1, hashes=(1, 9))]
    engine = served(make, machine, *calls, unit_tokens=2)
    # At 118 the second has 3 of the 6 blocks. The third needs one of the free ones for its hit and another; it waits
    # for the second to finish at 133 if 2 are to be left.
    assert ms(engine, 2)[0] == admitted


def test_a_cache_that_was_cleared_knows_nothing(make: Factory) -> None:
    engine = build(PAGED, [call(100 * i, 6, 1, hashes=(1, 2, 3)) for i in range(3)], unit_tokens=2)
    driver = make(engine)
    driver.advance(150 * MS)
    driver.clear(0)
    driver.advance(END)
    # The second finds 2 units and takes 19, the third does not.
    assert [ms(engine, row)[2] for row in range(3)] == [22, 119, 222]


def test_the_cache_finds_what_lay_behind_an_evicted_unit_in_the_hash_table(make: Factory) -> None:
    machine = replace(PAGED, kv_blocks=6)
    empty = build(machine, [], unit_tokens=2)
    first = home(empty, 1)
    also = next(key for key in count(2) if home(empty, key) == first)
    beside = next(key for key in count(2) if home(empty, key) == (first + 1) % empty.table.shape[1])
    hashes = [(1,), (also,), (beside,), (), (also,), (beside,)]
    calls = [call(100 * i, 3, 1, hashes=h) for i, h in enumerate(hashes)]
    engine = served(make, machine, *calls, unit_tokens=2)
    # Each takes 2 blocks, and the fourth evicts the unit of the first. A hit leaves 1 token that reads 2: 10 + 7; else
    # it is 10 + max(6, 5).
    assert [ms(engine, row)[2] - 100 * row for row in range(6)] == [16, 16, 16, 16, 17, 17]


def test_who_waits_with_a_hit_needs_less_when_that_is_evicted(make: Factory) -> None:
    machine = replace(FLAT, block_size=2, kv_blocks=10, max_num_seqs=2, max_batched_tokens=4)
    calls = [call(0, 12, 1, hashes=(1, 2, 3)), call(60, 2, 1), call(100, 4, 8), call(110, 15, 1, hashes=(1, 2, 3))]
    engine = served(make, machine, *calls, unit_tokens=4)
    # At 118 the third has 3 blocks, and free are units 3, 2 and 1, of 2 blocks each, and the one of the second. The
    # last one could use all units and compute 3 tokens beside a decode: 8 blocks, but 7 are free. At 148 the third
    # takes a block of unit 3, with which the other one loses its hash. Now 2 units and 3 tokens make 6 blocks, and so
    # many are free.
    assert ms(engine, 3)[0] == 148


# ------------------------------------------------------------------------------------------- of one of the engines only


def test_the_bound_of_a_slot_holds_if_a_preemption_makes_the_batch_faster() -> None:
    # Two decodes take 110 each, one alone 60.
    machine = Machine(10 * MS, 0, 0, memory_each_ps=50 * MS, block_size=2, kv_blocks=6, max_num_seqs=2)
    engine = build(machine, [call(0, 2, 10), call(0, 2, 10)])
    driver = Compiled(engine)
    driver.advance(220 * MS)
    # Prefill to 210. Two more blocks each, at 210 and 430, then at 650 one block too few: the second has to go, and the
    # first finishes long before 210 + 9 · 110.
    finish_ms = 210 + 4 * 110 + 5 * 60
    assert engine.slots["bound_ps"][0] <= finish_ms * MS
    driver.advance(END)
    assert ms(engine, 0) == (0, 210, finish_ms)


def test_the_bound_of_a_slot_is_the_finish_of_its_next_request_while_it_only_decodes() -> None:
    engine = build(FLAT, [call(0, 4, 9), call(0, 4, 30)])
    driver = Compiled(engine)
    driver.advance(40 * MS)
    # 10 + 16 for both prompts, and 8 decodes of 15: far ahead, since nothing can happen before.
    assert engine.slots["bound_ps"][0] == 146 * MS
    driver.advance(END)
    assert ms(engine, 0)[2] == 146


def test_a_cluster_passes_its_tables_to_the_engine() -> None:
    spec = ClusterSpec.model_validate(
        {
            "rows": [{"racks": [{"servers": [{"gpu": "H100-80GB", "gpus": 1, "model": "Llama-3.1-8B"}]}]}],
            "engine": {"max_num_seqs": PLAIN.max_num_seqs, "max_num_batched_tokens": PLAIN.max_batched_tokens},
        }
    )
    blueprint = replace(Blueprint.of(spec), tables=tables([PLAIN]))
    requests = RequestTable.from_columns([0, 20 * MS], [4, 2], [3, 2])
    cluster = Cluster(blueprint, requests, np.random.default_rng(0))
    cluster.advance(END)
    # As in the case of two requests that overlap.
    assert (ms(cluster.engine, 0), ms(cluster.engine, 1)) == ((0, 18, 59), (38, 59, 77))
    assert cluster.finished and cluster.done.tolist() == [0, 1]


def test_the_cache_of_a_slot_with_requests_is_not_cleared() -> None:
    driver = ReferenceEngine(build(PLAIN, [call(0, 4, 3)]))
    driver.advance(MS)
    with pytest.raises(InputError, match="Drain it"):
        driver.clear(0)
