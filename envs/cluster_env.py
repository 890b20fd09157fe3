"""The environment."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..simulator.blueprint import Blueprint
from ..simulator.cluster import EngineName
from ..simulator.drivers import ENGINE_NAMES
from ..simulator.errors import InputError
from ..simulator.snapshot import Snapshot, State, fingerprint, generator_from, generator_state
from ..simulator.workload.spec import WorkloadSpec, generate
from ..simulator.workload.table import RequestTable
from ..simulator.workload.traces import resolve
from .codec import ActionCodec
from .features import senses_of
from .observation import Observation, ObservationBuilder
from .perception import make_perception
from .plant import SimulatedPlant, TickOutcome, fleet_of
from .rendering import draw_ansi, draw_rgb
from .reward import reward_terms
from .scenario import Scenario, load_scenario
from .telemetry import Telemetry
from .traces import read_trace, with_trace


class LLMClusterEnv(gym.Env[Observation, NDArray[Any]]):
    """A cluster of GPUs that serves language models: how to use as little power as will do.

    ## Description
    Requests with prompts and outputs of measured lengths arrive at a gateway and are routed to slots: groups of GPUs
    that hold one model instance each, with continuous batching and a paged KV cache. Every tick the agent sets routing
    weights, power caps and the life of each instance. Loading and waking take tens of seconds, traffic swings, and the
    site's power budget moves.

    ## Observation
    A flat Dict of float32 Boxes in [-10, 10]; names, units and scales are in ``env.unwrapped.observations``.

    | key | shape | meaning |
    |---|---|---|
    | ``slots`` | (R·F,) | slot by slot: state, load, metered power, temperature, … |
    | ``cluster`` | (C,) | traffic, SLO attainment, power, the budget now and announced 30 s and 60 s ahead |
    | ``forecast`` | ((R + 1)·12,) | per slot, then for all: power in 30 s, in 60 s, and mean until then, by quantile |

    ## Action
    ``MultiDiscrete`` (default): one head per slot and group, group by group in the order ``route``, ``cap``, ``clock``,
    ``lifecycle``, ``concurrency``, ``reconfigure``, then the router and the slot for a pending instance, as far as the
    scenario switches them on. ``encoding="box"``: the same heads as numbers in [-1, 1]. ``action_masks()`` says what is
    open. Life-cycle levels are targets: 0 keep the last one, 1 sleep, 2 off, 3 + m serve model m. Concurrency goes in
    equal ratios from one request in flight to no limit. Reconfigure: 0 keep, 1 + v serve with the slot's variant v.

    ## Reward
    The sum of ``info["reward_terms"]``: energy (cost), output tokens of requests that met their SLO, SLO misses (cost),
    overshoot of the budget and of the rows' limits (cost), pending instances (cost), and the price and the CO₂ of the
    energy (costs), each about 1 at full load times its weight. ``info["cost"]`` is the constraint cost: overshoot of
    all limits plus the share of requests that missed plus tripped breakers and servers shed, without weights.

    ## Episode
    Starts as the scenario says; never terminates; is truncated after ``horizon_s``.

    ## Planning
    ``snapshot = env.unwrapped.save_state()`` keeps the whole state, ``restore_state(snapshot)`` returns to it; what
    follows is the same to the byte. ``snapshot.to_bytes()`` takes it to another process.

    Args:
        scenario: A name, the path of a TOML file, a dict of the same content, or a :class:`Scenario`.
        workload: Replaces the scenario's workload: a trace (path, or name of a fetched one), to which the reward is
            then scaled, or a dict like the scenario's.
        encoding: ``discrete`` or ``box``.
        forecaster: Replaces the scenario's forecaster: ``none``, ``persistence``, ``gru`` (trained on simulated
            telemetry), ``oracle`` (rolls the run forward as if nothing were done any more; clairvoyant), or a file of
            weights that ``llmcluster forecast train`` wrote.
        engine: ``compiled``, or ``reference``: SimPy, one event per iteration, the same result much slower.
        render_mode: ``rgb_array``, ``ansi`` or ``None``.

    Raises:
        InputError: An argument or the scenario does not hold.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 5}  # noqa: RUF012 - Gymnasium's own signature

    def __init__(
        self,
        scenario: str | Path | dict[str, Any] | Scenario = "default",
        *,
        workload: str | Path | dict[str, Any] | WorkloadSpec | None = None,
        encoding: str = "discrete",
        forecaster: str | None = None,
        engine: EngineName = "compiled",
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise InputError("render_mode", f"'{render_mode}' is unknown", "Use 'rgb_array' or 'ansi'")
        if engine not in ENGINE_NAMES:
            raise InputError("engine", f"'{engine}' is unknown", f"Use one of {', '.join(ENGINE_NAMES)}")
        self.engine: EngineName = engine
        self.scenario = _with_workload(load_scenario(scenario), workload)
        try:
            self.blueprint = Blueprint.of(self.scenario.cluster)
        except InputError as fault:
            raise InputError(f"{self.scenario.source}: {fault.where}", fault.problem, fault.remedy) from fault
        self.fleet = fleet_of(self.blueprint)
        actions = self.scenario.actions
        self.codec = ActionCodec(self.fleet, actions.groups, actions.levels, encoding, actions.routers)
        reward = self.scenario.reward
        senses = senses_of(self.scenario, self.fleet)
        self.observations = ObservationBuilder(self.fleet, reward.requests_per_s, TOKENS_PER_S, senses)
        self.observation_space: gym.spaces.Dict = self.observations.space()  # type: ignore[assignment]
        self.action_space = self.codec.space()
        self.render_mode = render_mode
        name, folder = (forecaster, Path()) if forecaster else (self.scenario.forecaster, self.scenario.folder)
        try:
            self.perception = make_perception(name, self.fleet, folder)
        except InputError as fault:
            where = fault.where if forecaster else f"{self.scenario.source}: {fault.where}"
            raise InputError(where, fault.problem, fault.remedy) from fault
        if self.perception.clairvoyant and engine != "compiled":
            raise InputError("forecaster", f"'{name}' cannot take the reference engine back", "Use the compiled one")
        self.plant: SimulatedPlant | None = None
        self._tdp_w = float(self.fleet.cap_max_w.sum())
        self._ticks = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Seeds everything that is random from here on.
            options: ``{"requests": RequestTable}`` plays just these requests; ``{"observer": Observer}`` lets one watch
                the reference engine.

        Returns:
            Observation and info.
        """
        super().reset(seed=seed)
        workload_rng, plant_rng = self.np_random.spawn(2)
        requests = (options or {}).get("requests")
        if requests is None:
            scenario = self.scenario
            requests = generate(
                scenario.workload,
                scenario.horizon_s,
                workload_rng,
                self.blueprint.models,
                tuple(scenario.slo),
                scenario.folder,
            )
        elif not isinstance(requests, RequestTable):
            raise InputError("options['requests']", f"is a {type(requests).__name__}", "Give a RequestTable")
        elif len(requests) and requests.slo_class.max() >= len(self.scenario.slo):
            known = ", ".join(self.scenario.slo)
            raise InputError("options['requests']", "has SLO classes that the scenario lacks", f"It has {known}")
        observer = (options or {}).get("observer")
        self.plant = SimulatedPlant(
            self.scenario, self.blueprint, self.fleet, requests, plant_rng, self.engine, observer
        )
        self._ticks = 0
        self.telemetry = self.plant.read()
        observation = self.observations.build(self.telemetry, self.perception.reset(self.plant))
        return observation, {"action_mask": self.action_masks(), "time_s": 0.0}

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Carries the action out and runs one tick.

        Args:
            action: An element of ``action_space``.

        Returns:
            Observation, reward, terminated (never), truncated (at the horizon) and info with ``reward_terms``,
            ``cost``, ``action_mask``, ``time_s`` and readings of the tick.
        """
        plant = self.begin(action)
        return self.finish(plant.advance())

    def begin(self, action: ArrayLike) -> SimulatedPlant:
        """The first half of a step: carries the action out, and gives the plant whose tick is to be run."""
        if self.plant is None:
            raise gym.error.ResetNeeded("Call env.reset() before env.step().")
        self.plant.apply(self.codec.decode(action))
        return self.plant

    def finish(self, outcome: TickOutcome) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """The second half of a step: what :meth:`step` returns, once the tick has been run."""
        assert self.plant is not None
        self.telemetry = self.plant.read()
        observation = self.observations.build(self.telemetry, self.perception.forecast(self.plant, self.telemetry))
        terms = reward_terms(outcome, self.scenario, self._tdp_w)
        self._ticks += 1
        misses = outcome.misses + outcome.overdue
        over_j = outcome.over_budget_j + sum(outcome.over_rows_j)
        info = {
            "reward_terms": terms,
            "cost": over_j / (self._tdp_w * self.scenario.tick_s)
            + misses / max(outcome.left, 1)
            + outcome.trips
            + outcome.sheds,
            "action_mask": self.action_masks(),
            "time_s": float(self._ticks * self.scenario.tick_s),
            "energy_j": outcome.energy_j,
            "good_tokens": outcome.good_tokens,
            "slo_misses": misses,
            "over_budget_j": outcome.over_budget_j,
            "over_rows_j": list(outcome.over_rows_j),
            "energy_cost": outcome.energy_cost,
            "carbon_g": outcome.carbon_g,
            "trips": outcome.trips,
            "sheds": outcome.sheds,
            "braked_s": outcome.braked_s,
        }
        return observation, float(sum(terms.values())), False, self._ticks >= self.scenario.ticks, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which options of which head are open, flat over the heads; what sb3-contrib's MaskablePPO asks for."""
        if self.plant is None:
            raise gym.error.ResetNeeded("Call env.reset() before env.action_masks().")
        return self.codec.masks(self.telemetry)

    def render(self) -> Any:
        """A picture (H, W, 3) uint8, or a text table, of the tick that has just ended."""
        if self.plant is None or self.render_mode is None:
            return None
        draw = draw_rgb if self.render_mode == "rgb_array" else draw_ansi
        return draw(self.fleet, self.telemetry, self.plant)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the scenario and the forecaster."""
        return fingerprint(self.scenario.model_dump_json(), self.perception.identity)

    def save_state(self) -> Snapshot:
        """The state of the episode, requests included, and of the generator that later episodes are drawn from.

        For planning: save, try actions, restore, as often as one likes. The state may also be restored into another
        environment of the same scenario, here or, as bytes, in another process. The state of wrappers and of
        ``action_space.sample()`` is not in it: call it as ``env.unwrapped.save_state()``.

        Raises:
            InputError: There are SimPy processes in ``plant.cluster.world``, which cannot be saved.
        """
        if self.plant is None:
            raise gym.error.ResetNeeded("Call env.reset() before env.save_state().")
        return Snapshot(
            self.fingerprint,
            {
                "plant": self.plant.save_state(),
                "requests": _columns(self.plant.cluster.requests),
                "ticks": self._ticks,
                "forecaster": self.perception.save_state(),
                # Telemetry looks into the history, which is written over after a restore.
                "telemetry": {
                    n: v.copy() if isinstance(v, np.ndarray) else v for n, v in _columns(self.telemetry).items()
                },
                "np_random": generator_state(self.np_random),
            },
        )

    def restore_state(self, snapshot: Snapshot) -> None:
        """Goes back, or on, to a saved state; what follows is the same, to the byte, as what followed then.

        Raises:
            InputError: It was taken of another scenario or with another forecaster.
        """
        state = snapshot.state_for(self.fingerprint)
        plant: Snapshot = state["plant"]
        if self.plant is None or self.plant.cluster.fingerprint != plant.state["cluster"].of:
            columns: Any = {n: tuple(v) if isinstance(v, list) else v for n, v in state["requests"].items()}
            requests = RequestTable(**columns)
            # Whatever it draws is replaced.
            self.plant = SimulatedPlant(self.scenario, self.blueprint, self.fleet, requests, np.random.default_rng(0))
        self.plant.restore_state(plant)
        self._ticks = state["ticks"]
        self.perception.restore_state(state["forecaster"])
        self.telemetry = Telemetry(**state["telemetry"])
        self.np_random = generator_from(state["np_random"])


TOKENS_PER_S = 10_000.0
"""Token rate of one slot that an observation shows as 1."""


def _with_workload(scenario: Scenario, workload: str | Path | dict[str, Any] | WorkloadSpec | None) -> Scenario:
    if workload is None:
        return scenario
    if isinstance(workload, str | Path):
        return with_trace(scenario, resolve(workload), read_trace(workload))
    if not isinstance(workload, dict | WorkloadSpec):
        raise InputError("workload", f"is a {type(workload).__name__}", "Give the path of a trace, or a dict")
    if isinstance(workload, WorkloadSpec):
        return scenario.model_copy(update={"workload": workload})
    return load_scenario({**scenario.model_dump(), "workload": workload, "folder": scenario.folder})


def _columns(table: RequestTable | Telemetry) -> State:
    return {field.name: getattr(table, field.name) for field in fields(table)}
