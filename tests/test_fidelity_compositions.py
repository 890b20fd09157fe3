"""Iterations of a run without a clock, and what a cost makes of them, against the engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.experiments.fidelity.batches import governed, needs
from llmcluster.experiments.fidelity.compositions import DRAIN, RAMP_UP, STEADY, Run, compose, compositions_of
from llmcluster.experiments.fidelity.prediction import steady_power_w, summarise
from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.tables import IterationCost
from llmcluster.simulator.reference.observer import Observer
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.workload.table import RequestTable

PS_PER_MS = 1e9


def some_run(requests: int = 60, places: int = 8, kv_tokens: int = 100_000, seed: int = 0) -> Run:
    rng = np.random.default_rng(seed)
    prompt, output = rng.integers(1, 400, requests), rng.integers(1, 300, requests)
    return Run(prompt.tolist(), output.tolist(), places, kv_tokens, 512)


class Watch(Observer):
    """Remembers iterations."""

    def __init__(self) -> None:
        self.length_ps: list[int] = []
        self.decodes: list[int] = []

    def iteration(
        self, slot: int, start_ps: int, end_ps: int, decodes: int, prefill_tokens: int, step: int, energy: int
    ) -> None:
        self.length_ps.append(end_ps - start_ps)
        self.decodes.append(decodes)


def cluster_of(run: Run, engine: str, observer: Observer | None = None) -> Cluster:
    server = {"gpu": "H100-80GB", "gpus": 1, "model": "Qwen3-8B"}
    limits = {
        "max_num_seqs": run.max_num_seqs,
        "max_num_batched_tokens": run.max_num_batched_tokens,
        "enable_prefix_caching": False,
    }
    spec = ClusterSpec.model_validate({"rows": [{"racks": [{"servers": [server]}]}], "engine": limits})
    requests = RequestTable.from_columns(np.zeros(len(run.prompt_tokens)), run.prompt_tokens, run.output_tokens)
    return Cluster(Blueprint.of(spec), requests, np.random.default_rng(0), engine=engine, observer=observer)  # type: ignore[arg-type]


def test_iterations_are_those_of_the_engine() -> None:
    watch = Watch()
    run = some_run()
    cluster = cluster_of(run, "reference", watch)
    deployment = cluster.blueprint.deployments[0]
    run = Run(run.prompt_tokens, run.output_tokens, run.max_num_seqs, deployment.kv_blocks * 16, 512)
    assert cluster.drain()
    work = compose(run)
    times = governed(deployment.cost, deployment.power, work.batches).times
    assert work.count.sum() == len(watch.length_ps)
    assert work.count @ work.decodes == sum(watch.decodes)
    assert work.count @ times.length == pytest.approx(sum(watch.length_ps) / 1e12, rel=1e-6)
    gaps = np.repeat(watch.length_ps, watch.decodes) / PS_PER_MS
    seen = summarise(work, times)
    for share, ours in ((50, seen.itl_ms), (90, seen.itl_p90_ms), (99, seen.itl_p99_ms)):
        assert ours == pytest.approx(np.percentile(gaps, share), rel=2e-3)
    mean_s = (work.count * work.decodes) @ times.length / sum(watch.decodes)
    assert 1e3 * mean_s == pytest.approx(gaps.mean(), rel=1e-6)


def test_energy_and_time_are_those_of_the_compiled_engine() -> None:
    run = some_run(requests=400, places=16, seed=1)
    cluster = cluster_of(run, "compiled")
    deployment = cluster.blueprint.deployments[0]
    assert cluster.drain()
    work = compose(Run(run.prompt_tokens, run.output_tokens, 16, deployment.kv_blocks * 16, 512))
    _, times, watts = governed(deployment.cost, deployment.power, work.batches)
    finish_s = cluster.engine.requests["finish_ps"].max() / 1e12
    assert work.count @ times.length == pytest.approx(finish_s, rel=1e-6)
    drawn_j = float(cluster.history.column("energy_j").sum())
    idle_j = deployment.power.idle_w * (cluster.now_ps / 1e12 - finish_s)
    assert work.count @ (watts * times.length) == pytest.approx(drawn_j - idle_j, rel=2e-3)


def test_a_power_limit_lowers_the_clock_until_it_holds() -> None:
    deployment = cluster_of(some_run(), "compiled").blueprint.deployments[0]
    work = compose(some_run())
    free = governed(deployment.cost, deployment.power, work.batches)
    held = governed(deployment.cost, deployment.power._replace(cap_max_w=350.0), work.batches)
    assert (free.power_w > 350).any()
    assert (held.power_w <= 350).all()
    assert (held.times.length >= free.times.length).all()
    assert steady_power_w(work, held) < steady_power_w(work, free)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 30), st.integers(704, 4000), st.integers(0, 99))
def test_every_token_is_generated_once(places: int, more: int, kv_tokens: int, seed: int) -> None:
    run = some_run(places + 2 + more, places, kv_tokens, seed)
    work = compose(run)
    again = work.preemptions
    assert work.count @ (work.decodes + work.started) == sum(run.output_tokens)
    assert work.started.sum() >= len(run.prompt_tokens)
    assert again or work.started.sum() == len(run.prompt_tokens)
    assert again or work.count @ work.tokens == sum(run.prompt_tokens) + work.count @ work.decodes
    assert (work.sequences <= places).all() and (work.tokens <= run.max_num_batched_tokens).all()
    assert (work.read <= kv_tokens).all()
    assert (np.diff(work.phase) >= 0).all() and STEADY in work.phase


def test_phases_follow_the_starts_and_the_ends() -> None:
    work = compose(Run([10] * 12, [100] * 12, 4, 10_000, 512))
    started = np.cumsum(work.started)
    assert set(work.phase) == {RAMP_UP, STEADY, DRAIN}
    assert started[work.phase == RAMP_UP][-1] == 4
    # The first four end together, then the second four: with five or fewer left it drains.
    assert work.count[work.phase != DRAIN].sum() == 1 + 2 * 99 + 1


def test_prompts_that_come_again_are_found_in_the_cache() -> None:
    once = some_run(requests=40)
    twice = Run(2 * once.prompt_tokens, 2 * once.output_tokens, 8, once.kv_tokens, 512, repeats=2)
    work, cold = compose(twice), compose(replace(twice, repeats=1))
    computed, without = (int(w.count @ (w.tokens - w.decodes)) for w in (work, cold))
    assert without == 2 * sum(once.prompt_tokens)
    # All full blocks but those of the token that has to be computed.
    assert without - computed == sum((tokens - 1) // 16 * 16 for tokens in once.prompt_tokens)
    assert int(work.count @ (work.decodes + work.started)) == sum(twice.output_tokens)
    assert work.pairs @ work.count < cold.pairs @ cold.count


def test_prompts_are_forgotten_where_the_cache_is_small() -> None:
    once = some_run(requests=40)
    ample, small = (
        compose(Run(2 * once.prompt_tokens, 2 * once.output_tokens, 8, kv_tokens, 512, repeats=2))
        for kv_tokens in (100_000, 2_000)
    )
    assert small.count @ (small.tokens - small.decodes) > ample.count @ (ample.tokens - ample.decodes)


def test_a_longer_context_is_read_with_every_token() -> None:
    work = compose(Run([16] * 3, [200] * 3, 1, 1000, 512))
    alone = work.decodes == 1
    assert work.count[alone] @ work.read[alone] == 3 * sum(range(17, 17 + 199))


def test_predictions_scale_with_the_cost() -> None:
    work = compose(some_run())
    table = np.linspace(1e9, 2e9, 513).astype(np.int64)
    cost = IterationCost(10**8, 10**6, 3 * 10**8, 2 * 10**6, 0 * table, table, table // 2, 1000, 0, 1000)
    slow = IterationCost(*(2 * value for value in cost))
    one, two = (summarise(work, needs(each, work.batches).at(1.0)) for each in (cost, slow))
    assert two.itl_ms == pytest.approx(2 * one.itl_ms)
    assert two.throughput == pytest.approx(one.throughput / 2)
    assert two.batch == pytest.approx(one.batch)


def test_compositions_are_kept(tmp_path: Path) -> None:
    run = some_run()
    made = compositions_of(run, tmp_path)
    (path,) = tmp_path.iterdir()
    kept = compositions_of(run, tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(vars(made).values(), vars(kept).values(), strict=True))
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="holds no compositions"):
        compositions_of(run, tmp_path)


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (Run([1] * 9, [0] * 9, 2, 100), "empty"),
        (Run([5] * 3, [5] * 3, 2, 100), "keep 2 places full"),
        (Run([50] * 9, [60] * 9, 2, 100), "does not fit"),
        (Run([5] * 9, [6] * 9, 4, 100, 4), "does not exceed"),
    ],
)
def test_impossible_runs_are_refused(run: Run, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        compose(run)
