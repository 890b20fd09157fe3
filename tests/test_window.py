"""A workload that is played chunk by chunk fares exactly as if it were played whole."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.playback import play
from llmcluster.simulator.results import Names, ResultsWriter
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S
from llmcluster.simulator.workload.stream import RequestStream
from llmcluster.simulator.workload.table import RequestTable

OUTCOME = ("status", "slot", "admit_ps", "first_token_ps", "finish_ps", "preemptions", "attempts", "generated")


def _blueprint(role: str = "mixed", policy: str = "fcfs") -> Blueprint:
    server = {"gpu": "A100-80GB", "gpus": 2, "model": "Llama-3.1-8B"}
    other = {**server, "gpus": 1, "role": role}
    engine = {"max_num_seqs": 12, "max_num_batched_tokens": 512, "scheduling_policy": policy}
    gateway = {"retries": 1, "retry_backoff_s": 0.5}
    spec = {"rows": [{"racks": [{"servers": [server, other]}]}], "engine": engine, "gateway": gateway}
    return Blueprint.of(ClusterSpec.model_validate(spec))


PLANS = {key: _blueprint(*key) for key in (("mixed", "fcfs"), ("decode", "fcfs"), ("mixed", "priority"))}


def _requests(seed: int, n: int) -> RequestTable:
    rng = np.random.default_rng(seed)
    blocks = np.append(1, rng.integers(0, 6, n - 1))
    return RequestTable.from_columns(
        np.sort(rng.integers(0, n * PS_PER_S // 20, n)),
        rng.integers(96, 900, n),
        rng.integers(1, 300, n),
        timeout_ps=np.where(rng.random(n) < 0.5, rng.integers(0, 4 * PS_PER_S, n), -1),
        priority=np.arange(n) % 2,
        prefix_offset=np.concatenate([[0], np.cumsum(blocks)]),
        prefix_hash=np.concatenate([np.arange(k) + 10 * rng.integers(0, 3) for k in blocks]),
        prefix_block_tokens=16,
        models=("Llama-3.1-8B",),
        model=np.zeros(n),
    )


@given(
    st.sampled_from(sorted(PLANS)),
    st.integers(0, 2**32),
    st.integers(2, 120),
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.sampled_from(["round-robin", "least-outstanding", "power-of-two", "prefix-affinity"]),
    st.sampled_from([0, 4]),
)
def test_chunks_fare_as_the_whole(
    plan: tuple[str, str], seed: int, n: int, cuts: list[int], router: str, limit: int
) -> None:
    table = _requests(seed, n)
    bounds = np.unique(np.clip(np.cumsum([2, *cuts]), 0, n))

    def cluster(requests: RequestTable) -> Cluster:
        made = Cluster(PLANS[plan], requests, np.random.default_rng(1))
        made.route(np.ones(3), router)
        made.limit(limit)
        return made

    whole = cluster(table)
    for row in bounds[:-1] if bounds[-1] == n else bounds:
        whole.advance(int(table.arrival_ps[row]))
    assert whole.drain()

    first = cluster(table.rows(0, int(bounds[0])))
    ids, seen = np.arange(bounds[0]), {}
    edges = [*bounds.tolist(), n] if bounds[-1] < n else bounds.tolist()
    for start, stop in itertools.pairwise(edges):
        first.advance(int(table.arrival_ps[start]))
        seen |= {int(ids[row]): first.engine.requests[row].copy() for row in first.done}
        stay = first.follow_with(table.rows(start, stop))
        ids = np.concatenate([ids[stay], np.arange(start, stop)])
    assert first.drain()
    seen |= {int(ids[row]): first.engine.requests[row].copy() for row in first.done}

    assert sorted(seen) == list(range(n))
    for name in OUTCOME:
        assert [seen[i][name] for i in range(n)] == whole.engine.requests[name].tolist(), name
    seconds = min(len(whole.history), len(first.history))
    assert (whole.history.records[:seconds] == first.history.records[:seconds]).all()


def test_a_stream_is_played_to_files_that_hold_every_request_once(tmp_path: Path) -> None:
    table = _requests(3, 500)
    plan = PLANS["mixed", "fcfs"]
    names = Names([slot.name for slot in plan.slots], plan.models)
    counted: list[int] = []
    with ResultsWriter(tmp_path, names) as writer:
        cluster = play(
            plan,
            RequestStream.from_table(table, rows=64),
            np.random.default_rng(1),
            writer,
            lambda made: made.route(np.ones(3), "least-outstanding"),
            counted.append,
        )
    assert len(cluster.engine.requests) < 200 and sum(counted) == 500

    whole = Cluster(plan, table, np.random.default_rng(1))
    whole.route(np.ones(3), "least-outstanding")
    assert whole.drain()
    rows = pq.read_table(tmp_path / "requests.parquet").to_pydict()
    order = np.argsort(rows["id"])
    assert np.array(rows["id"])[order].tolist() == list(range(500))
    assert np.array(rows["finish_ps"])[order].tolist() == whole.engine.requests["finish_ps"].tolist()
    energy = pq.read_table(tmp_path / "seconds.parquet")["energy_j"].to_numpy().sum()
    assert energy == pytest.approx(whole.history.column("energy_j").sum(), rel=1e-9)


def test_what_goes_back_in_time_is_refused() -> None:
    table = _requests(0, 20)
    cluster = Cluster(PLANS["mixed", "fcfs"], table, np.random.default_rng(0))
    with pytest.raises(InputError, match="back in time"):
        cluster.follow_with(table.rows(0, 5))


def test_a_closed_loop_is_not_followed() -> None:
    waits = RequestTable.from_columns([0, 1], [5, 5], [5, 5], session=[1, 1], think_ps=[-1, 10])
    cluster = Cluster(PLANS["mixed", "fcfs"], waits, np.random.default_rng(0))
    with pytest.raises(InputError, match="closed loop"):
        cluster.follow_with(_requests(0, 5))


def test_prefix_hashes_that_come_late_are_refused() -> None:
    table = _requests(0, 20)
    bare = replace(table, prefix_offset=np.zeros(21, np.int64), prefix_hash=np.zeros(0, np.int64))
    cluster = Cluster(PLANS["mixed", "fcfs"], bare.rows(0, 10), np.random.default_rng(0))
    with pytest.raises(InputError, match="after a first chunk"):
        cluster.follow_with(table.rows(10, 20))
