"""Small cases worked by hand, in milliseconds: fixed time, compute and memory of each iteration are small integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.kernels.cluster import advance
from llmcluster.simulator.kernels.state import BIN_PS, FINISHED, REJECTED, TIMED_OUT, Engine, Tables
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.workload.table import RequestTable
from llmcluster.tests.oracle import Job, Oracle, Table, compiled

MS = 10**9
END = BIN_PS

# An iteration over t tokens that reads c cached ones takes 10 + max(2 t, 5 + c) ms.
PLAIN = Table.linear(10 * MS, 2 * MS, 5 * MS, kv_read_ps=MS)


def job(arrival_ms: int, prompt: int, output: int, timeout_ms: int = -1) -> Job:
    return Job(arrival_ms * MS, prompt, output, timeout_ms * MS if timeout_ms >= 0 else -1)


def ms(engine: Engine, row: int) -> tuple[float, float, float]:
    """Admission, first token and finish."""
    names = ("admit_ps", "first_token_ps", "finish_ps")
    return tuple(engine.requests[row][name] / MS for name in names)  # type: ignore[return-value]


def served(table: Table, *jobs: Job) -> Engine:
    engine = compiled(table, list(jobs))
    advance(engine, END, True)
    return engine


def test_one_request() -> None:
    engine = served(PLAIN, job(7, 4, 3))
    # Prefill 10 + max(8, 5); the decodes read 5 and 6 tokens: 10 + max(2, 10), 10 + max(2, 11).
    assert ms(engine, 0) == (7, 7 + 18, 7 + 18 + 20 + 21)
    assert engine.requests["status"][0] == FINISHED
    # 50 W idle, and 100 W for 59 ms, 200 W for 8 + 2 + 2 ms of compute, 50 W for 5 + 10 + 11 ms of memory.
    assert engine.bins["energy"][0, 0] * 1e-14 == pytest.approx(50 + 5.9 + 2.4 + 1.3, rel=1e-12)
    assert (engine.bins["prompt_tokens"][0, 0], engine.bins["output_tokens"][0, 0]) == (4, 3)


def test_a_single_token_comes_with_the_prefill() -> None:
    engine = served(PLAIN, job(0, 4, 1), job(0, 3, 1))
    # Both in one iteration of 7 tokens: 10 + 14.
    assert ms(engine, 0) == ms(engine, 1) == (0, 24, 24)
    assert engine.slots["free_blocks"][0] == PLAIN.kv_blocks


def test_two_requests_that_overlap() -> None:
    engine = served(PLAIN, job(0, 4, 3), job(20, 2, 2))
    # Boundaries at 18 and 38. There the second joins: 3 tokens, the first's decode reads 6: 10 + max(6, 11) = 21.
    assert ms(engine, 0) == (0, 18, 59)
    # Alone it decodes over 3 tokens: 10 + max(2, 8) = 18.
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
def test_a_prefill_in_three_chunks(attention: int, first: int, finish: int) -> None:
    table = Table.linear(
        10 * MS, 2 * MS, 5 * MS, kv_read_ps=MS, attention_ps=attention * MS, max_batched_tokens=4, max_num_seqs=3
    )
    assert ms(served(table, job(0, 10, 2)), 0) == (0, first, finish)


def test_decodes_take_their_share_of_the_budget_first() -> None:
    table = Table.linear(10 * MS, 2 * MS, 5 * MS, max_batched_tokens=4, max_num_seqs=3)
    engine = served(table, job(0, 4, 4), job(1, 7, 1))
    # 18 to the first token; then chunks of 3, 3 and 1 beside one decode: 10 + 8, 10 + 8, 10 + max(4, 5).
    assert ms(engine, 0) == (0, 18, 18 + 18 + 18 + 15)
    assert ms(engine, 1) == (18, 69, 69)


def test_the_newest_is_preempted_and_recomputed() -> None:
    table = Table.linear(10 * MS, 2 * MS, 5 * MS, block_size=2, kv_blocks=4, max_num_seqs=2)
    engine = served(table, job(0, 2, 6), job(0, 2, 4))
    # Prefill of both 18; two iterations of 15 to 48, when both have 3 tokens and full blocks, and none is free. The
    # second goes; the first decodes alone at 63, 78 and, with its last block, 93. The other needs 3 blocks and waits
    # for that; 5 tokens are recomputed in 20 and yield its fourth.
    assert ms(engine, 0) == (0, 18, 93)
    assert ms(engine, 1) == (0, 18, 113)
    assert engine.requests["preemptions"].tolist() == [0, 1]
    assert engine.bins["prompt_tokens"][0, 0] == 2 + 2 + 5
    assert engine.bins["output_tokens"][0, 0] == 6 + 4


def test_a_prefill_that_finds_no_block_starts_over() -> None:
    table = Table.linear(10 * MS, 2 * MS, 5 * MS, block_size=1, kv_blocks=8, max_num_seqs=3, max_batched_tokens=4)
    engine = served(table, job(0, 2, 3), job(0, 6, 1))
    # 2 + 2 tokens in 18; then the decode takes a block, and the chunk of 3 finds 3 left: 10 + 8, to 36. Now the decode
    # takes the last but none is left for the sixth token: preempted, decode alone to 51, and all 6 anew in 18 + 15.
    assert ms(engine, 0) == (0, 18, 51)
    assert ms(engine, 1) == (0, 51 + 18 + 15, 51 + 18 + 15)
    assert engine.requests["preemptions"].tolist() == [0, 1]


def test_a_cap_that_changes_in_mid_decode() -> None:
    table = Table.linear(10 * MS, 20 * MS, 5 * MS, clock=(0.5, 1.0), scale=(0.25, 1.0))
    engine = compiled(table, [job(0, 1, 4)])
    advance(engine, 70 * MS, True)
    # 50 + 100 + 200 × 20/30 + 50 × 5/30 W at the full clock, 50 + (100 + 200 × 40/50)/4 + 50 × 5/50 W at half of it.
    full, half = 50 + 100 + 400 / 3 + 25 / 3, 50 + 65 + 5
    engine.slots["cap_w"], engine.slots["governed"] = half, 0
    advance(engine, END, True)
    # The iteration in flight, 60 to 90, is not slowed; the next one takes 10 + 40.
    assert ms(engine, 0) == (0, 30, 140)
    assert engine.bins["energy"][0, 0] * 1e-14 == pytest.approx(0.09 * full + 0.05 * half + 0.86 * 50, rel=1e-12)


def test_the_lowest_clock_serves_where_no_clock_keeps_to_the_cap() -> None:
    table = Table.linear(10 * MS, 20 * MS, 5 * MS, clock=(0.5, 1.0), scale=(0.25, 1.0))
    engine = compiled(table, [job(0, 1, 1)], cap_w=1.0)
    advance(engine, END, True)
    assert ms(engine, 0) == (0, 50, 50)


@pytest.mark.parametrize(("late_ps", "admitted"), [(0, 38), (1, 59)])
@pytest.mark.parametrize("sliced", [False, True])
def test_an_arrival_on_a_boundary_joins_there_and_a_picosecond_later_it_does_not(
    late_ps: int, admitted: int, sliced: bool
) -> None:
    second = Job(38 * MS + late_ps, 2, 2)
    engine = compiled(PLAIN, [job(0, 4, 3), second])
    if sliced:
        advance(engine, 38 * MS, True)
        assert engine.slots["now_ps"][0] == 38 * MS and engine.slots["flight_end_ps"][0] == -1
        advance(engine, 38 * MS + 1, True)
        assert engine.slots["flight_end_ps"][0] == 59 * MS
    advance(engine, END, True)
    assert ms(engine, 0) == (0, 18, 59)
    assert ms(engine, 1)[0] == admitted


def test_a_batch_that_crosses_the_ridge_of_the_roofline() -> None:
    # Decodes over c tokens: 10 + max(2 + 3 c, 20 + c), even at c = 9.
    table = Table.linear(10 * MS, 2 * MS, 20 * MS, kv_read_ps=MS, attention_ps=3 * MS)
    engine = served(table, job(0, 4, 8))
    decodes = [35, 36, 37, 38, 39, 10 + 32, 10 + 35]
    assert ms(engine, 0) == (0, 10 + 8 + 30, 48 + sum(decodes))


def test_the_queue_is_first_come_first_served_within_max_num_seqs() -> None:
    table = Table.linear(10 * MS, 2 * MS, 5 * MS, max_num_seqs=1)
    engine = served(table, job(0, 2, 2), job(1, 2, 1), job(2, 1, 1))
    assert [ms(engine, i) for i in range(3)] == [(0, 15, 30), (30, 45, 45), (45, 60, 60)]


def test_a_client_gives_up_only_past_its_patience() -> None:
    table = Table.linear(10 * MS, 2 * MS, 5 * MS, max_num_seqs=1)
    engine = served(table, job(0, 2, 2), job(1, 2, 1, timeout_ms=28), job(2, 1, 1, timeout_ms=28))
    # At 30 the second has waited for 29, the third for exactly its 28.
    assert engine.requests["status"].tolist() == [FINISHED, TIMED_OUT, FINISHED]
    assert engine.requests["finish_ps"][1] == 30 * MS and ms(engine, 2) == (30, 45, 45)


def test_who_waits_for_blocks_gives_up_in_mid_leap() -> None:
    """The first decodes up to 18 + 15 × 15 = 243; the second does not fit beside it, the third does once it is gone."""
    table = Table.linear(10 * MS, 2 * MS, 5 * MS, block_size=1, kv_blocks=20)
    engine = served(table, job(0, 4, 16), job(1, 17, 1, timeout_ms=47), job(2, 1, 1))
    # At 48 it has waited for 47: not yet. At 63 it has gone, and the third joins: 10 + max(4, 5).
    assert engine.requests["status"].tolist() == [FINISHED, TIMED_OUT, FINISHED]
    assert engine.requests["finish_ps"][1] == 63 * MS
    assert ms(engine, 2) == (63, 78, 78)
    assert ms(engine, 0) == (0, 18, 243)


def test_a_preemption_does_not_finish_a_batch_before_its_bound() -> None:
    """Two decodes take 110 each, one alone 15: after the preemption the first finishes long before 18 + 9 × 110."""
    slow = tuple((0, 5, 100)[min(t, 2)] * MS for t in range(65))
    table = Table(tuple([10 * MS] * 65), tuple([0] * 65), slow, block_size=2, kv_blocks=6, max_num_seqs=2)
    engine = compiled(table, [job(0, 2, 10), job(0, 2, 10)])
    advance(engine, 120 * MS, True)
    # Prefill to 110. Two more blocks each, at 110 and 330, then at 550 one block too few: the second has to go.
    assert engine.slots["bound_ps"][0] <= 110 * MS + 4 * 110 * MS + 5 * 15 * MS
    advance(engine, END, True)
    assert ms(engine, 0) == (0, 110, 110 + 4 * 110 + 5 * 15)


@pytest.mark.parametrize(("early_ps", "slot"), [(0, 1), (1, 0)])
def test_a_finish_at_the_very_instant_of_an_arrival_counts_for_its_route(early_ps: int, slot: int) -> None:
    """The second is done on slot 1 at 59, as in the case of one request; before that both slots have one."""
    engine = compiled([PLAIN, PLAIN], [job(0, 4, 30), job(0, 4, 3), Job(59 * MS - early_ps, 1, 1)])
    advance(engine, 45 * MS, True)
    assert engine.slots["bound_ps"][1] == 59 * MS
    advance(engine, END, True)
    assert engine.requests["slot"].tolist() == [0, 1, slot]


def test_requests_that_can_never_fit_are_rejected() -> None:
    table = replace(PLAIN, block_size=4, kv_blocks=5, max_model_len=18)
    engine = served(table, job(0, 10, 8), job(1, 10, 9), job(2, 18, 1))
    assert engine.requests["status"].tolist() == [FINISHED, REJECTED, REJECTED]
    assert engine.requests["finish_ps"].tolist()[1:] == [MS, 2 * MS]
    tight = replace(table, max_model_len=100)
    engine = served(tight, job(0, 10, 10), job(1, 10, 11))
    assert engine.requests["status"].tolist() == [FINISHED, REJECTED]


def test_heat_follows_the_power_of_whole_seconds() -> None:
    table = replace(PLAIN, resistance=(0.1, 0.2), decay=(0.0, 0.5))
    engine = compiled(table, [])
    advance(engine, 3 * BIN_PS, True)
    # 50 W: the first pole is at 5 K at once, the second halves its distance to 10 K each second.
    assert engine.bins["temperature_c"][:3, 0].tolist() == pytest.approx([25 + 5 + 5, 25 + 5 + 7.5, 25 + 5 + 8.75])


def test_the_throttle_acts_on_the_next_iteration_and_releases_below() -> None:
    """At the full clock 350 W, throttled to a quarter of the ladder 50 + 300/4 = 125 W; one pole of 0.1 K/W at once."""
    table = Table.linear(2, 500 * MS - 1, 0, resistance=(0.1, 0.0), decay=(0.0, 0.0), throttle_c=50.0, resume_c=40.0)
    engine = compiled(table, [Job(0, 1, 5)])
    advance(engine, 10 * BIN_PS, True)
    # Two iterations of 500 ms heat the die to 60 °C; the third runs at half the clock and takes the whole next second,
    # in which the die cools to 37.5 °C; the fourth and fifth heat it again.
    assert engine.requests["first_token_ps"][0] == 500 * MS + 1
    assert engine.requests["finish_ps"][0] == 3000 * MS + 4
    assert engine.bins["temperature_c"][:4, 0].tolist() == pytest.approx([60, 37.5, 60, 30], rel=1e-6)
    assert engine.slots["throttle_events"][0] == 2 and engine.slots["throttled"][0] == 0


@pytest.mark.parametrize("stops_ms", [[], [500], [850, 1000]])
def test_a_meter_that_does_not_average_shows_the_iteration_at_the_end_of_the_second(stops_ms: list[int]) -> None:
    """Iterations of 100 ms, 90 of them compute; the tenth, which ends with the second, reads 10 tokens in 50 ms."""
    table = Table.linear(10 * MS, 90 * MS, 0, kv_read_ps=5 * MS, averaging=False)
    engine = compiled(table, [job(0, 1, 15)])
    for stop in [*stops_ms, 3000]:
        advance(engine, stop * MS, True)
    assert engine.bins["metered_w"][:3, 0].tolist() == pytest.approx([50 + 100 + 180 + 25, 50, 50], rel=1e-6)


def test_the_cluster_passes_its_tables_to_the_engine() -> None:
    spec = ClusterSpec.model_validate(
        {
            "rows": [{"racks": [{"servers": [{"gpu": "H100-80GB", "gpus": 1, "model": "Llama-3.1-8B"}]}]}],
            "engine": {"max_num_seqs": PLAIN.max_num_seqs, "max_num_batched_tokens": PLAIN.max_batched_tokens},
        }
    )
    stacked = compiled(PLAIN, [])
    tables = Tables(stacked.deployments, stacked.cost, stacked.ladder, stacked.watt, stacked.thermal)
    blueprint = replace(Blueprint.of(spec), tables=tables)
    requests = RequestTable.from_columns([0, 20 * MS], [4, 2], [3, 2])
    cluster = Cluster(blueprint, requests, np.random.default_rng(0))
    cluster.advance(END)
    assert ms(cluster.engine, 0) == (0, 18, 59)
    assert ms(cluster.engine, 1) == (38, 59, 77)
    assert cluster.finished and cluster.done.tolist() == [0, 1]


def test_the_oracle_itself_gives_the_figures_worked_by_hand() -> None:
    jobs = [job(0, 4, 3), job(20, 2, 2)]
    oracle = Oracle(PLAIN, jobs, [(0, 1e9)]).run(END)
    assert [(j.admit // MS, j.first // MS, j.finish // MS) for j in jobs] == [(0, 18, 59), (38, 59, 77)]
    # 100 W for 77 ms; 200 W for 8 + 2 + 6 + 2 ms; 50 W for 5 + 10 + 11 + 8 ms.
    assert oracle.seconds[0].energy_j == pytest.approx(50 + 7.7 + 3.6 + 1.7, rel=1e-12)
