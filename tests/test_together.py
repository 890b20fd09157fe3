"""Clusters advanced in one call, and routers in Python: both must change nothing but the way."""

from __future__ import annotations

import numpy as np
import pytest

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import ARRAYS, C_NOW
from llmcluster.simulator.lifecycle import Target
from llmcluster.simulator.routing import HOLD
from llmcluster.simulator.together import advance_together
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S
from llmcluster.simulator.workload.table import RequestTable

SERVER = {"gpu": "A100-80GB", "gpus": 3, "model": "Llama-3.1-8B"}
PLAN = Blueprint.of(ClusterSpec.model_validate({"rows": [{"racks": [{"servers": [SERVER]}]}]}))


def made(seed: int, n: int = 400) -> Cluster:
    rng = np.random.default_rng(seed)
    requests = RequestTable.from_columns(
        np.sort(rng.integers(0, n * PS_PER_S // 10, n)),
        rng.integers(1, 2000, n),
        rng.integers(1, 200, n),
        timeout_ps=np.where(rng.random(n) < 0.3, PS_PER_S, -1),
    )
    return Cluster(PLAN, requests, np.random.default_rng(seed))


def assert_same(one: Cluster, other: Cluster) -> None:
    assert one.now_ps == other.now_ps
    for name in ARRAYS:
        assert getattr(one.engine, name).tobytes() == getattr(other.engine, name).tobytes(), name
    assert one.history.records.tobytes() == other.history.records.tobytes()


def test_together_is_as_one_by_one() -> None:
    alone, side_by_side = [made(seed) for seed in range(4)], [made(seed) for seed in range(4)]
    for clusters in (alone, side_by_side):
        clusters[1].route(np.ones(3), "round-robin")
        clusters[2].command(0, Target.SLEEP)
        clusters[3].limit(2)
        clusters[3].route(np.ones(3), "power-of-two")
    for step in (1, 90, 91, 300):
        times = [step * PS_PER_S + 7 * i for i in range(4)]
        for cluster, until in zip(alone, times, strict=True):
            cluster.advance(until)
        advance_together(side_by_side, times)
    for one, other in zip(alone, side_by_side, strict=True):
        assert_same(one, other)


def least_outstanding(cluster: Cluster, request: int, candidates: list[int]) -> int:
    return min(candidates, key=lambda r: (cluster.engine.slots["outstanding"][r], r))


@pytest.mark.parametrize("limit", [0, 3])
def test_a_router_object_that_does_the_same_gives_the_same(limit: int) -> None:
    built_in, own = made(5), made(5)
    built_in.route(np.ones(3), "least-outstanding")
    own.route(np.ones(3), least_outstanding)
    for cluster in (built_in, own):
        cluster.limit(limit)
        cluster.advance(20 * PS_PER_S)
        cluster.command(1, Target.SLEEP)
        assert cluster.drain()
    for name in ("slot", "admit_ps", "first_token_ps", "finish_ps", "status"):
        assert own.engine.requests[name].tolist() == built_in.engine.requests[name].tolist(), name
    assert (own.history.records == built_in.history.records).all()


def test_a_router_may_hold_requests_until_it_wants_them() -> None:
    cluster = made(6, 30)
    opens = 2 * PS_PER_S
    cluster.route(np.ones(3), lambda c, request, slots: slots[-1] if c.engine.cursor[C_NOW] >= opens else HOLD)
    cluster.advance(opens)
    assert cluster.held_at_gateway > 0 and not (cluster.engine.requests["admit_ps"] >= 0).any()
    assert cluster.drain()
    finished = cluster.engine.requests[cluster.engine.requests["first_token_ps"] >= 0]
    assert len(finished) and (finished["slot"] == 2).all() and finished["admit_ps"].min() >= opens


def test_a_router_that_chooses_no_candidate_is_told() -> None:
    cluster = made(7, 10)
    cluster.route(np.ones(3), lambda *_: 17)
    with pytest.raises(InputError, match="slot 17"):
        cluster.advance(10 * PS_PER_S)
