"""The worlds that the claims of PALS are tried in: its nodes, budgets and traffic, as scenarios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...agents.base import Task
from ...agents.pals.profiles import Profiles
from ...envs.cluster_env import LLMClusterEnv
from ...envs.scenario import Scenario, load_scenario

GPU = "H100-80GB"
STATIC_BATCH = 64
"""The largest batch of the paper, which its baseline has at all times (section 4.3)."""
LEVELS = 17
"""Caps from the lowest to the TDP, and batches from 1 to 256 with all powers of two among them."""
HORIZON_S = 300
LOADS, MAIN_LOAD = (0.4, 0.7, 0.9), 0.7
"""Traffic of section 5.1 as shares of the unconstrained throughput."""
BUDGETS = (0.75, 0.5)
"""Budgets of section 5.2 as shares of the TDPs. The paper's 4,800 W for three nodes leave 3,590 W to their twelve GPUs
of 400 W, if a node draws 1.05 times its GPUs and 345 W (its section 3.1): three quarters. Half is tried beside it."""
SIGNAL = ((0, 0.6), (120, 0.6), (150, 0.4), (210, 0.4), (210, 0.5), (270, 0.5), (270, 0.4), (330, 0.4), (360, 0.6))
"""Budget of section 5.3 in shares of the TDPs: ramps and steps, all below what the GPUs draw at full load."""
LOW_SHARE = 0.41
"""Budgets below are low."""
OVERLOAD = 1.6
"""Traffic over unconstrained throughput where requests are never to run out, whatever the batch."""
ENDLESS = 1e9
"""A throughput target that nothing but the budget limits, tokens per second."""
PATIENT = {"ttft_s": 86_400.0, "tpot_s": 86_400.0}
"""Latencies that nothing exceeds."""


@dataclass(frozen=True)
class Node:
    """A server whose slots hold one model.

    Attributes:
        model: The model.
        gpus: GPUs of the server.
        tp: GPUs of a slot.
    """

    model: str
    gpus: int
    tp: int = 1


SINGLE = {"dense": Node("Llama-3.1-8B", 4), "mixture of experts": Node("Qwen3-30B-A3B", 4)}
"""Nodes of sections 5.1 and 5.3, one for each kind of model."""
SHARED: dict[str, dict[Node, float]] = {
    "dense": {Node("Qwen3-8B", 2): 0.9, Node("gemma-3-12b-it", 2): 0.6, Node("Llama-3.1-8B", 2): 0.75},
    "mixtures of experts": {
        Node("Qwen3-30B-A3B", 2): 0.9,
        Node("Mixtral-8x7B", 2, 2): 0.6,
        Node("gpt-oss-120b", 2): 0.75,
    },
}
"""Three nodes under one budget (section 5.2), with the throughput asked of each as a share of the unconstrained."""


def serving(node: Node, load: float) -> Scenario:
    """A node with traffic that it can serve, and latencies that count."""
    rates = _rates((node,), load)
    return _scenario(f"{node.model} at {load:.0%} load", rates, slo={"default": {}})


def crowded(nodes: Sequence[Node], budget: float) -> Scenario:
    """Nodes under one budget, with more requests than they can serve."""
    rates = _rates(nodes, OVERLOAD)
    name = f"{', '.join(node.model for node in nodes)} at {budget:.0%} of TDP"
    return _scenario(name, rates, budget={"levels": (budget,)})


def following(node: Node) -> Scenario:
    """A node with more requests than it can serve, and a budget that moves."""
    rates = _rates((node,), OVERLOAD)
    horizon_s = int(SIGNAL[-1][0]) + 60
    return _scenario(f"{node.model} under a moving budget", rates, budget={"schedule": SIGNAL}, horizon_s=horizon_s)


def unconstrained(nodes: Sequence[Node]) -> dict[Node, float]:
    """Tokens per second that each node generates at the highest cap and the static batch."""
    task, profiles = _profiles(nodes)
    deployments = task.blueprint.deployments
    able = {node: 0.0 for node in nodes}
    for d in task.blueprint.initial:
        node = next(n for n in nodes if n.model == task.fleet.models[deployments[d].model])
        able[node] += float(profiles.table(int(d)).tokens_per_s[-1, -1])
    return able


def _rates(nodes: Sequence[Node], load: float) -> dict[Node, float]:
    """Requests per second that ask for a share of the unconstrained throughput."""
    _, profiles = _profiles(nodes)
    return {node: load * able / float(profiles.output_tokens[0]) for node, able in unconstrained(nodes).items()}


def _profiles(nodes: Sequence[Node]) -> tuple[Task, Profiles]:
    task = Task.of(LLMClusterEnv(_scenario("unconstrained", dict.fromkeys(nodes, 1.0))))
    return task, Profiles(task, STATIC_BATCH, cap=False, given={})


def _scenario(name: str, rates_per_s: Mapping[Node, float], **sections: Any) -> Scenario:
    """Nodes with requests for each; by default no latency counts and no budget limits."""
    streams = [
        {
            "model": node.model,
            "requests": {"kind": "azure-2023-conv"},
            "arrivals": {"kind": "poisson", "rate_per_s": rate},
        }
        for node, rate in rates_per_s.items()
    ]
    servers = [{"gpu": GPU, "gpus": node.gpus, "tp": node.tp, "model": node.model} for node in rates_per_s]
    given = {
        "name": name,
        "tick_s": 1,
        "horizon_s": HORIZON_S,
        "cluster": {"rows": [{"racks": [{"servers": servers}]}]},
        "workload": {"streams": streams},
        "slo": {"default": PATIENT},
        "actions": {"groups": ["route", "cap", "concurrency"], "levels": LEVELS},
        "reward": {"requests_per_s": sum(rates_per_s.values())},
    }
    return load_scenario(given | sections)
