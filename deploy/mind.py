"""Who decides: the simulator's own observation, forecast and action, and an agent between them."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..agents.base import Agent, State, Task
from ..agents.registry import make_agent, scenario_for
from ..envs.actions import ClusterAction
from ..envs.cluster_env import LLMClusterEnv
from ..envs.observation import Observation
from ..envs.perception import Metered
from ..envs.scenario import load_scenario
from ..envs.telemetry import Plant, Telemetry
from ..simulator.errors import InputError
from .polling import Poll
from .readings import ReadingError


class MindError(Exception):
    """No decision came about.

    Args:
        kind: ``forecast`` or ``agent``, as :data:`~llmcluster.deploy.fallback.RESPONSES` names them.
        text: Why.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind, self.text = kind, text


@dataclass(frozen=True, eq=False)
class Decision:
    """What was seen, foreseen and decided.

    Attributes:
        observation: As the agent saw it.
        forecast_w: Watts (R + 1, targets, quantiles).
        action: What it decided.
        seconds: How long that took.
    """

    observation: Observation
    forecast_w: NDArray[np.float64]
    action: ClusterAction
    seconds: float


class Mind:
    """An agent with all that it has in the simulator.

    Args:
        scenario: What it was trained on.
        agent: Its name, or the folder that training wrote.
        forecaster: In place of the scenario's.
        patience_s: How long a decision may take.

    Raises:
        InputError: There is no such scenario, agent or forecaster, or it knows the future, which nobody has here.
    """

    def __init__(self, scenario: str, agent: str, forecaster: str | None = None, patience_s: float = 5.0) -> None:
        self.env = env = LLMClusterEnv(scenario_for(agent, load_scenario(scenario)), forecaster=forecaster)
        if not isinstance(env.perception, Metered):
            remedy = 'Give forecaster = "gru", "persistence" or "none"'
            raise InputError("forecaster", "'oracle' knows the future, which nobody does here", remedy)
        self._perception: Metered = env.perception
        self.task = Task.of(env)
        self._agent: Agent = make_agent(agent, self.task)
        if getattr(self._agent, "clairvoyant", False):
            raise InputError(f"agent '{agent}'", "knows the future, which nobody does here", "Deploy another one")
        self._patience_s = patience_s
        self._state: State = None
        self._forecast_w: NDArray[np.float64] | None = None
        self._start = np.array([True])
        self._late: Poll[ClusterAction] | None = None

    def begin(self, plant: Plant) -> None:
        """Forgets all that was before; the next decision is made without a forecast, as at the start of an episode."""
        self._forecast_w = self._perception.reset(plant)
        self._state, self._start = None, np.array([True])

    def warm_up(self, plant: Plant, now: Telemetry) -> None:
        """Decides once for nothing, in whatever time that takes: code is compiled and weights are read at first use.

        If it fails, so will the next decision, which says why.
        """
        self.begin(plant)
        with suppress(Exception):
            observation = self.env.observations.build(now, self._perception.forecast(plant, now))
            self._think(observation, self.env.codec.masks(now))

    def decide(self, plant: Plant, now: Telemetry) -> Decision:
        """The decision at the end of a tick.

        Raises:
            MindError: There is none.
        """
        forecast_w = self.foresee(plant, now)
        observation = self.env.observations.build(now, forecast_w)
        began_s = time.monotonic()
        action = self._ask(observation, self.env.codec.masks(now))
        return Decision(observation, forecast_w, action, time.monotonic() - began_s)

    def foresee(self, plant: Plant, now: Telemetry) -> NDArray[np.float64]:
        """The forecast by all seconds until now; to be asked once a tick, also where nothing is decided."""
        forecast_w, self._forecast_w = self._forecast_w, None
        if forecast_w is not None:
            return forecast_w
        try:
            forecast_w = self._perception.forecast(plant, now)
        except Exception as fault:
            raise MindError("forecast", f"{type(fault).__name__}: {fault}") from fault
        if not np.isfinite(forecast_w).all():
            raise MindError("forecast", "it is not made of numbers")
        return forecast_w

    def _ask(self, observation: Observation, masks: NDArray[np.bool_]) -> ClusterAction:
        if self._late is not None and not self._late.is_over:
            raise MindError("agent", "it still thinks about an earlier decision")
        self._late = Poll("the agent", lambda: self._think(observation, masks))
        self._late.ask()
        try:
            return self._late.take(time.monotonic() + self._patience_s)
        except ReadingError as fault:
            raise MindError("agent", str(fault)) from fault

    def _think(self, observation: Observation, masks: NDArray[np.bool_]) -> ClusterAction:
        encoded, self._state = self._agent.predict(
            observation, self._state, self._start, deterministic=True, action_masks=masks
        )
        self._start = np.array([False])
        return self.env.codec.decode(encoded)
