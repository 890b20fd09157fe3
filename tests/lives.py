"""Random lives of a small cluster: commands, failures and tenants, as strategies and as a player of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.faults import RandomFault, ScheduledFault
from llmcluster.simulator.kernels.state import EMPTY, SLEEPING, TENANT
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.workload.table import RequestTable

SMALL, OTHER, LARGE = "Llama-3.1-8B", "Qwen3-8B", "Llama-3.1-70B"
MODELS = (SMALL, OTHER, LARGE)
SPEC = {
    "models": MODELS,
    "engine": {"scheduling_policy": "priority"},
    "gateway": {"on_failure": "restart", "retries": 1},
    "rows": [
        {
            "racks": [
                {"servers": [{"gpu": "H100-80GB", "gpus": 2, "model": SMALL}]},
                {"servers": [{"gpu": "A100-80GB", "gpus": 1, "model": OTHER, "initial": "sleeping"}]},
            ]
        },
        {"racks": [{"servers": [{"gpu": "H100-80GB", "gpus": 4, "tp": 4, "initial": "empty"}]}]},
    ],
}
PLAN = Blueprint.of(ClusterSpec.model_validate(SPEC))
SLOTS = len(PLAN.slots)

# (pause in seconds, what is done, slot, parameter): a target, the seconds of a repair, watts, or a power limit.
_slot = st.integers(0, SLOTS - 1)
DEEDS = st.tuples(
    st.floats(0.0, 30.0),
    st.one_of(
        st.tuples(st.just("command"), _slot, st.integers(0, 2 + len(MODELS))),
        st.tuples(st.just("fail"), _slot, st.floats(0.0, 60.0)),
        st.tuples(st.just("occupy"), _slot, st.floats(0.0, 900.0)),
        st.tuples(st.just("set_load"), _slot, st.floats(0.0, 900.0)),
        st.tuples(st.just("vacate"), _slot, st.just(0.0)),
        st.tuples(st.just("cap"), _slot, st.floats(100.0, 700.0)),
        st.tuples(st.just("route"), _slot, st.floats(0.0, 1.0)),
    ),
)
LIVES = st.lists(DEEDS, max_size=15)
FAULTS = (
    ScheduledFault(at_s=17.5, server=0, repair_s=9.0),
    RandomFault(mtbf_s=400.0, repair_s=12.0),
    RandomFault(unit="server", mtbf_s=300.0, repair="exponential", repair_s=5.0),
)


def requests(seed: int, n: int = 60) -> RequestTable:
    """Open and closed loops, impatient clients, priorities, shared prefixes, and requests for one model or any."""
    rng = np.random.default_rng(seed)
    session = rng.integers(0, 12, n)
    prompt = rng.integers(1, 3000, n)
    shared = np.minimum(rng.integers(0, 100, n), prompt // 16)
    hashes = [family * 1000 + np.arange(blocks) for family, blocks in zip(rng.integers(1, 4, n), shared, strict=True)]
    return RequestTable.from_columns(
        np.sort(rng.integers(0, to_ps(60), n)),
        prompt,
        rng.integers(1, 300, n),
        models=(SMALL, OTHER),
        model=rng.integers(-1, 2, n),
        session=session,
        priority=rng.integers(0, 3, n),
        prefix_offset=np.concatenate([[0], shared.cumsum()]),
        prefix_hash=np.concatenate(hashes),
        think_ps=np.where(rng.random(n) < 0.3, rng.integers(0, to_ps(3), n), -1),
        timeout_ps=np.where(rng.random(n) < 0.3, rng.integers(0, to_ps(20), n), -1),
    )


def cluster(seed: int, faults: tuple[Any, ...] = FAULTS) -> Cluster:
    return Cluster(PLAN, requests(seed), np.random.default_rng(seed), 8, faults)


def act(world: Cluster, what: str, slot: int, value: Any) -> bool:
    """Does what was drawn; returns whether it was possible."""
    status, engine = world.engine.slots["status"][slot], world.engine
    if what == "occupy" and status not in (EMPTY, SLEEPING):
        return False
    if what in ("vacate", "set_load") and status != TENANT:
        return False
    if what == "command":
        world.command(slot, value)
    elif what == "fail":
        world.fail(slot, repair_s=value)
    elif what == "occupy":
        world.occupy(slot, value)
    elif what == "set_load":
        world.lifecycle.set_load(slot, value)
    elif what == "vacate":
        world.vacate(slot)
    elif what == "cap":
        world.cap(np.where(np.arange(SLOTS) == slot, value, engine.slots["cap_w"]))
    else:
        world.route(np.where(np.arange(SLOTS) == slot, value, 1.0), "round-robin" if value < 0.3 else None)
    return True


def play(world: Cluster, life: list[Any]) -> None:
    for pause, deed in life:
        world.advance(world.now_ps + to_ps(pause))
        act(world, *deed)


def seconds(world: Cluster) -> float:
    return world.now_ps / PS_PER_S
