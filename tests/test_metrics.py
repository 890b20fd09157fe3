"""The summary of a run against the same figures worked out row by row, and its edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.kernels.state import FINISHED, PENDING, REJECTED, TIMED_OUT
from llmcluster.simulator.lifecycle import Target
from llmcluster.simulator.metrics import Latencies, SloLimits, met_slo, overdue, summarize
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.workload.table import RequestTable

LOOSE = SloLimits(np.array([to_ps(1000)] * 2), np.array([to_ps(1000)] * 2))
CLASSES = ("fast", "slow")


def blueprint(initial: str = "serving", **sections: Any) -> Blueprint:
    server = {"gpu": "H100-80GB", "gpus": 2, "model": "Llama-3.1-8B", "initial": initial}
    engine = {"max_num_seqs": 8, "max_model_len": 4000}
    spec = {"rows": [{"racks": [{"servers": [server]}]}], "engine": engine, **sections}
    return Blueprint.of(ClusterSpec.model_validate(spec))


BUSY, ASLEEP = blueprint(), blueprint("sleeping")


def run(requests: RequestTable, until_s: float, plan: Blueprint = BUSY) -> Cluster:
    cluster = Cluster(plan, requests, np.random.default_rng(0))
    cluster.advance(to_ps(until_s))
    return cluster


def mixed(n: int = 240) -> RequestTable:
    """Requests that finish, wait too long, are too long, have one token, or are still there at the end."""
    rng = np.random.default_rng(7)
    output = np.where(rng.random(n) < 0.1, 1, rng.integers(1, 700, n))
    prompt = np.where(rng.random(n) < 0.05, 3999, rng.integers(1, 1500, n))
    timeout = np.where(rng.random(n) < 0.3, to_ps(1.5), -1)
    arrival = np.sort(rng.integers(0, 40 * PS_PER_S, n))
    slo_class = rng.integers(0, 2, n)
    return RequestTable.from_columns(
        arrival, prompt, output, timeout_ps=timeout, slo_class=slo_class, slo_classes=CLASSES
    )


@pytest.mark.parametrize("warmup_s", [0, 11])
def test_the_summary_equals_a_direct_recomputation(warmup_s: int) -> None:
    cluster = run(mixed(300), 38)
    limits = SloLimits(np.array([to_ps(0.4), to_ps(3)]), np.array([to_ps(0.0083), to_ps(0.02)]))
    budget = np.linspace(300, 1100, 38)
    summary = summarize(cluster, limits, budget, warmup_s)

    table, seen = cluster.requests, cluster.engine.requests
    counted, ttft, tpot, e2e = [], [], [], []
    tokens = prompts = good = met = 0
    for i in range(len(table)):
        arrival = int(table.arrival_ps[i])
        if not warmup_s * PS_PER_S <= arrival < 38 * PS_PER_S:
            continue
        counted.append(i)
        if seen["status"][i] != FINISHED:
            continue
        first, last, n = int(seen["first_token_ps"][i]), int(seen["finish_ps"][i]), int(table.output_tokens[i])
        ttft.append((first - arrival) / 1e12)
        e2e.append((last - arrival) / 1e12)
        if n > 1:
            tpot.append((last - first) / 1e12 / (n - 1))
        tokens += n
        prompts += int(table.prompt_tokens[i])
        fast = table.slo_class[i] == 0
        if ttft[-1] <= (0.4 if fast else 3) and (n == 1 or tpot[-1] <= (0.0083 if fast else 0.02)):
            met += 1
            good += n
    power = cluster.history.column("energy_j").sum(axis=1)[warmup_s:]
    over = np.maximum(power - budget[warmup_s:], 0)
    status = seen["status"][counted]

    assert summary.requests == len(counted)
    assert summary.requests_completed == len(ttft) == np.count_nonzero(status == FINISHED)
    assert summary.requests_rejected == np.count_nonzero(status == REJECTED)
    assert summary.requests_timed_out == np.count_nonzero(status == TIMED_OUT)
    parts = summary.requests_completed, summary.requests_rejected, summary.requests_timed_out
    assert summary.requests_unfinished == summary.requests - sum(parts)
    assert all(part > 0 for part in (*parts, summary.requests_unfinished)), "the run must show these outcomes"
    assert summary.requests_failed == 0
    assert (summary.prompt_tokens, summary.output_tokens) == (prompts, tokens)
    assert summary.simulated_s == 38 - warmup_s
    assert summary.energy_j == pytest.approx(power.sum(), rel=1e-12)
    assert summary.mean_power_w == pytest.approx(power.mean(), rel=1e-12)
    assert summary.peak_power_w == power.max()
    generated = cluster.history.column("output_tokens")[warmup_s:].sum()
    assert summary.energy_per_output_token_j == pytest.approx(power.sum() / generated, rel=1e-12)
    assert 0 < met < len(ttft), "the limits must split the requests"
    assert summary.slo_attainment == pytest.approx(met / len(counted), rel=1e-12)
    assert summary.goodput_tokens_per_s == pytest.approx(good / (38 - warmup_s), rel=1e-12)
    assert 0 < np.count_nonzero(over) < len(over), "the budget must split the seconds"
    assert summary.over_budget_s == np.count_nonzero(over)
    assert summary.over_budget_j == pytest.approx(over.sum(), rel=1e-12)
    for found, sample in ((summary.ttft_s, ttft), (summary.tpot_s, tpot), (summary.e2e_s, e2e)):
        expected = [*np.percentile(sample, [50, 90, 99]), np.mean(sample)]
        assert [found.p50, found.p90, found.p99, found.mean] == pytest.approx(expected, rel=1e-12)


def test_the_energy_of_the_parts_is_that_of_the_whole() -> None:
    cluster = run(mixed(300), 38)
    whole, rest = summarize(cluster, LOOSE).energy_j, summarize(cluster, LOOSE, warmup_s=11).energy_j
    assert whole - rest == pytest.approx(cluster.history.column("energy_j")[:11].sum(), rel=1e-12)


@pytest.mark.parametrize(("late_ttft", "late_tpot", "met"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_an_slo_is_met_exactly_at_the_limit(late_ttft: int, late_tpot: int, met: bool) -> None:
    cluster = run(RequestTable.from_columns([12345], [100], [2]), 5)
    row = cluster.engine.requests[0]
    ttft = np.array([row["first_token_ps"] - 12345 - late_ttft])
    tpot = np.array([row["finish_ps"] - row["first_token_ps"] - late_tpot])
    limits = SloLimits(ttft, tpot)
    assert met_slo(cluster, np.array([0]), limits).tolist() == [met]
    summary = summarize(cluster, limits)
    assert (summary.slo_attainment, summary.goodput_tokens_per_s) == (float(met), 2 * met / 5)


def test_the_tpot_limit_is_on_the_mean() -> None:
    cluster = run(RequestTable.from_columns([0], [100], [11]), 5)
    row = cluster.engine.requests[0]
    spent = int(row["finish_ps"] - row["first_token_ps"])
    enough = -(-spent // 10)
    for limit, met in ((enough, True), (enough - 1, False)):
        assert met_slo(cluster, np.array([0]), SloLimits(np.array([PS_PER_S]), np.array([limit]))).tolist() == [met]


def test_a_single_token_has_no_tpot_to_miss() -> None:
    cluster = run(RequestTable.from_columns([0, 0], [100, 100], [1, 2]), 5)
    limits = SloLimits(np.array([PS_PER_S]), np.array([0]))
    assert met_slo(cluster, np.array([0, 1]), limits).tolist() == [True, False]
    assert summarize(cluster, limits).slo_attainment == 0.5


def test_limits_go_by_class() -> None:
    requests = RequestTable.from_columns([0, 0], [100, 100], [5, 5], slo_class=[0, 1], slo_classes=CLASSES)
    limits = SloLimits(np.array([0, PS_PER_S]), np.array([PS_PER_S, PS_PER_S]))
    assert met_slo(run(requests, 5), np.array([1, 0]), limits).tolist() == [True, False]


def test_what_does_not_finish_misses_however_loose_the_limits() -> None:
    requests = RequestTable.from_columns([0, 1, 2], [10, 3999, 10], [10, 10, 3900])
    summary = summarize(run(requests, 2), LOOSE)
    outcomes = summary.requests_completed, summary.requests_rejected, summary.requests_unfinished
    assert outcomes == (1, 1, 1)
    assert summary.slo_attainment == pytest.approx(1 / 3)


@pytest.mark.parametrize("on_failure", ["fail", "retry", "restart"])
@pytest.mark.parametrize("until_s", [3.0, 12.25, 21.0, 900.0])
def test_every_request_that_arrived_has_one_outcome(on_failure: str, until_s: float) -> None:
    """Impatient clients that try again after a second, and slots that fail with requests on them."""
    gateway = {"on_failure": on_failure, "retries": 1, "retry_backoff_s": 1.0}
    requests = mixed()
    cluster = Cluster(blueprint(gateway=gateway), requests, np.random.default_rng(0))
    for failure_s, slot in ((8.0, 0), (12.0, 1)):
        if until_s > failure_s:
            cluster.advance(to_ps(failure_s))
            cluster.fail(slot, repair_s=2.0)
            cluster.command(slot, Target.SERVE)
    cluster.advance(to_ps(until_s))
    summary = summarize(cluster, LOOSE)
    lost = summary.requests_rejected + summary.requests_timed_out + summary.requests_failed
    assert summary.requests == np.count_nonzero(requests.arrival_ps < to_ps(until_s))
    assert summary.requests == summary.requests_completed + lost + summary.requests_unfinished
    if until_s > 12:
        assert (summary.requests_failed > 0) == (on_failure != "restart")
    if until_s == 21:
        again = cluster.engine.requests["attempts"] > 0
        pausing = cluster.engine.requests["status"][again] == PENDING
        assert pausing.any(), "the run must be cut while clients wait to try again"


def test_requests_that_have_not_arrived_do_not_count() -> None:
    requests = RequestTable.from_columns([0, 2 * PS_PER_S, 2 * PS_PER_S + 1], [10] * 3, [2] * 3)
    cluster = Cluster(BUSY, requests, np.random.default_rng(0))
    for until_ps, counted in ((2 * PS_PER_S, 1), (2 * PS_PER_S + 1, 2), (3 * PS_PER_S, 3)):
        cluster.advance(until_ps)
        assert summarize(cluster, LOOSE).requests == counted


def test_the_warm_up_is_over_at_its_last_instant() -> None:
    requests = RequestTable.from_columns([2 * PS_PER_S - 1, 2 * PS_PER_S], [10] * 2, [2] * 2)
    assert summarize(run(requests, 5), LOOSE, warmup_s=2).requests == 1


def test_a_client_that_still_waits_for_an_answer_has_not_sent_its_next_request() -> None:
    """In a closed loop ``arrival_ps`` is but a lower bound until the request is released."""
    requests = RequestTable.from_columns(
        [0, 0, 1], [10] * 3, [3000, 10, 10], session=[1, 1, 2], think_ps=[-1, PS_PER_S, -1]
    )
    cluster = run(requests, 2)
    assert cluster.engine.requests["status"][1] == PENDING
    summary = summarize(cluster, LOOSE)
    assert (summary.requests, summary.requests_completed, summary.requests_unfinished) == (2, 1, 1)
    assert overdue(cluster, SloLimits(np.array([to_ps(0.5)]), np.array([PS_PER_S]))) == 0
    assert cluster.drain()
    assert summarize(cluster, LOOSE).requests_completed == 3


def test_overdue_are_those_past_their_limit_without_a_token() -> None:
    requests = RequestTable.from_columns([0, to_ps(1), to_ps(5)], [10] * 3, [10] * 3)
    cluster = run(requests, 3, ASLEEP)
    limits = SloLimits(np.array([to_ps(2)]), np.array([PS_PER_S]))
    assert overdue(cluster, limits) == 1  # the second has waited for exactly its 2 s
    cluster.advance(cluster.now_ps + 1)
    assert overdue(cluster, limits) == 2
    cluster.command(0, int(Target.SERVE))
    assert cluster.drain() and overdue(cluster, limits) == 0


def test_without_requests_ratios_are_not_numbers() -> None:
    summary = summarize(run(RequestTable.from_columns([], [], []), 3), LOOSE)
    assert summary.requests == summary.output_tokens == 0
    assert math.isnan(summary.slo_attainment) and math.isnan(summary.energy_per_output_token_j)
    for latencies in (summary.ttft_s, summary.tpot_s, summary.e2e_s):
        assert all(math.isnan(x) for x in (latencies.p50, latencies.p90, latencies.p99, latencies.mean))
    assert summary.goodput_tokens_per_s == 0 and summary.energy_j > 0
    assert summary.over_budget_s == summary.over_budget_j == 0


def test_only_single_tokens_have_no_tpot() -> None:
    summary = summarize(run(RequestTable.from_columns([0], [10], [1]), 3), LOOSE)
    assert math.isnan(summary.tpot_s.mean) and summary.ttft_s.mean == summary.e2e_s.mean > 0


def test_a_run_of_no_whole_second_has_no_power() -> None:
    summary = summarize(run(RequestTable.from_columns([0], [10], [2]), 0.5), LOOSE)
    assert (summary.simulated_s, summary.energy_j, summary.mean_power_w, summary.peak_power_w) == (0, 0, 0, 0)
    assert summary.requests_completed == 1


def test_percentiles_of_one_value_are_that_value() -> None:
    assert Latencies.of(np.array([2.5])) == Latencies(2.5, 2.5, 2.5, 2.5)


def test_starts_and_throttle_events_are_counted_from_the_start() -> None:
    cluster = Cluster(ASLEEP, RequestTable.from_columns([], [], []), np.random.default_rng(0))
    for slot in (0, 1):
        cluster.command(slot, int(Target.SERVE))
    cluster.advance(to_ps(50))
    summary = summarize(cluster, LOOSE, warmup_s=40)
    assert (summary.starts, summary.throttle_events) == (2, 0)
