"""Agents by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ..envs.actions import ALL_ROUTERS
from ..envs.scenario import Scenario
from ..simulator.errors import InputError
from . import best_constant, greedy_energy, proactive
from .base import Agent, Task
from .budget_caps import ForecastCap, ProportionalCap
from .greedy_energy import GreedyEnergy
from .headroom import ForecastHeadroom, Headroom
from .mpc import Mpc
from .offline_optimal import agent as offline_optimal
from .offline_optimal.agent import OfflineOptimal
from .pals.controller import Pals
from .pals.forecast import PalsForecast
from .proactive import FollowPower, ForecastLoad
from .safety import PREFIX, Safe
from .scaling import Clairvoyant, FollowLoad, tuned_over
from .static import LeastOutstanding, PowerOfTwo, PrefixAffinity, Random, RoundRobin, UniformCap
from .tapas.controller import ForecastTapas, Tapas

AGENTS: dict[str, Callable[[Task], Agent]] = {
    "random": Random,
    "round-robin": RoundRobin,
    "least-outstanding": LeastOutstanding,
    "power-of-two": PowerOfTwo,
    "prefix-affinity": PrefixAffinity,
    "uniform-cap": UniformCap,
    "proportional-cap": ProportionalCap,
    "forecast-cap": ForecastCap,
    "headroom": Headroom,
    "forecast-headroom": ForecastHeadroom,
    "follow-load": FollowLoad,
    "follow-power": FollowPower,
    "greedy-energy": GreedyEnergy,
    "offline-optimal": OfflineOptimal,
    "forecast-load": ForecastLoad,
    "mpc": Mpc,
    "clairvoyant": Clairvoyant,
    "pals": Pals,
    "pals-forecast": PalsForecast,
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
    "forecast-load": partial(tuned_over, ForecastLoad),
    "clairvoyant": partial(tuned_over, Clairvoyant),
}
"""Agents of which an evaluation first chooses the best candidate on validation traffic; see ``experiments/tune.py``."""


def is_registered(name: str) -> bool:
    """Whether an agent of that name, in the safety layer or not, can be made for any task."""
    return name.removeprefix(PREFIX) in {*AGENTS, *CANDIDATES}


def candidates_of(name: str, task: Task) -> Mapping[str, Agent] | None:
    """What an evaluation chooses the agent of that name from; None where there is nothing to choose."""
    if name.startswith(PREFIX):
        found = candidates_of(name.removeprefix(PREFIX), task)
        return found and {title: Safe(agent, task) for title, agent in found.items()}
    return CANDIDATES[name](task) if name in CANDIDATES else None


def scenario_for(name: str, scenario: Scenario) -> Scenario:
    """The scenario as an agent needs it: a router that bears the agent's name is among those to choose from."""
    router = name.removeprefix(PREFIX)
    if router not in ALL_ROUTERS or router in scenario.actions.routers:
        return scenario
    routers = (*scenario.actions.routers, router)
    return scenario.model_copy(update={"actions": scenario.actions.model_copy(update={"routers": routers})})


def make_agent(name: str, task: Task) -> Agent:
    """An agent by name, or from the folder that training wrote; with ``safe:`` before it, in the safety layer.

    Raises:
        InputError: There is neither an agent nor a folder of that name.
    """
    if name.startswith(PREFIX):
        return Safe(make_agent(name.removeprefix(PREFIX), task), task)
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
    raise InputError(
        f"agent '{name}'",
        "there is none of that name",
        f"Use {known}, or a folder of `llmcluster train`, with or without {PREFIX}",
    )
