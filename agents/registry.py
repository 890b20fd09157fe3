"""Agents by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ..simulator.errors import InputError
from . import best_constant, greedy_energy, proactive
from .base import Agent, Task
from .greedy_energy import GreedyEnergy
from .offline_optimal import agent as offline_optimal
from .offline_optimal.agent import OfflineOptimal
from .proactive import FollowPower
from .scaling import Clairvoyant, FollowLoad, tuned_over
from .static import LeastOutstanding, Random, RoundRobin, UniformCap
from .tapas.controller import ForecastTapas, Tapas

AGENTS: dict[str, Callable[[Task], Agent]] = {
    "random": Random,
    "round-robin": RoundRobin,
    "least-outstanding": LeastOutstanding,
    "uniform-cap": UniformCap,
    "follow-load": FollowLoad,
    "follow-power": FollowPower,
    "greedy-energy": GreedyEnergy,
    "offline-optimal": OfflineOptimal,
    "clairvoyant": Clairvoyant,
    "tapas": Tapas,
    "tapas-forecast": ForecastTapas,
}
"""Agents that need nothing but the task. Add your own here, or pass any object with ``predict`` to the evaluator."""

CANDIDATES: dict[str, Callable[[Task], Mapping[str, Agent]]] = {
    "best-constant": best_constant.candidates,
    "follow-load": partial(tuned_over, FollowLoad),
    "follow-power": proactive.candidates,
    "greedy-energy": greedy_energy.candidates,
    "offline-optimal": offline_optimal.candidates,
    "clairvoyant": partial(tuned_over, Clairvoyant),
}
"""Agents of which an evaluation first chooses the best candidate on validation traffic; see ``experiments/tune.py``."""


def make_agent(name: str, task: Task) -> Agent:
    """An agent by name, or from the folder that training wrote.

    Raises:
        InputError: There is neither an agent nor a folder of that name.
    """
    if name in AGENTS:
        return AGENTS[name](task)
    if Path(name).is_dir():
        from .learned import LearnedAgent  # torch is loaded only by those who need it

        return LearnedAgent(task, Path(name))
    if name in CANDIDATES:
        raise InputError(
            f"agent '{name}'", "is found by tuning, which only an evaluation does", "Use `llmcluster evaluate`"
        )
    known = ", ".join(dict.fromkeys([*AGENTS, *CANDIDATES]))
    raise InputError(f"agent '{name}'", "there is none of that name", f"Use {known}, or a folder of `llmcluster train`")
