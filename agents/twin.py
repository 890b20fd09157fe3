"""A planning model: a cluster set up as one observation tells it, under traffic as an agent believes it to be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..envs.actions import SERVE, ClusterAction
from ..envs.observation import BACKLOG_SCALE
from ..envs.plant import SimulatedPlant
from ..envs.telemetry import LEAD_TIMES_S
from ..envs.world import World
from ..simulator.kernels.state import RESISTANCE
from ..simulator.limits import Feeds, PowerLimit, RowLimits
from ..simulator.signals import PiecewiseLinear, SignalSpec, constant, through
from ..simulator.snapshot import Snapshot
from ..simulator.units import PS_PER_S, to_ps
from ..simulator.workload.fitted import FittedLengths
from ..simulator.workload.table import ANY_MODEL, NO_TIMEOUT, RequestTable
from .base import Task, View
from .limits import known_limits

POOL = 4096
"""Pairs of lengths drawn once for each stream, among which those of the planned requests are chosen."""
SETTLING_PS = PS_PER_S // 1000
"""Requests in flight find their slots in this time, before any plan is tried."""
MAX_BACKLOG = 2000
"""More waiting requests than these are not played: no plan works them off within its horizon."""
NOMINAL = 0.2
"""Weight of the scenario's own rates where traffic is split by model, lest one that is not served be forgotten."""
FOREVER_S = 86_400.0
ZERO_C = 30.0
"""Temperatures are observed above this."""


@dataclass(frozen=True, eq=False)
class Stream:
    """A stream of the scenario's workload, as far as it is known beforehand: who asks for what, and how much.

    Attributes:
        model: Model asked for, or ANY_MODEL.
        slo_class: Number of its SLO class.
        timeout_ps: Patience of its clients.
        rate: Nominal rate, requests per second.
        prompt: Prompt lengths to choose from.
        output: Output lengths of the same requests.
    """

    model: int
    slo_class: int
    timeout_ps: int
    rate: float
    prompt: NDArray[np.int32]
    output: NDArray[np.int32]


def streams_of(task: Task, rng: np.random.Generator) -> list[Stream]:
    """The streams of the workload. What a trace holds is not looked at: its lengths are taken to be those of chat."""
    scenario, found = task.scenario, []
    for spec in scenario.workload.streams or (scenario.workload,):
        lengths = spec.requests or FittedLengths(kind="azure-2023-conv")
        prompt, output = lengths.sample(POOL, rng)
        model = ANY_MODEL if spec.model is None else task.fleet.models.index(spec.model)
        slo_class = 0 if spec.slo_class is None else list(scenario.slo).index(spec.slo_class)
        timeout_ps = NO_TIMEOUT if spec.timeout_s is None else to_ps(spec.timeout_s)
        rate = getattr(spec.arrivals, "rate_per_s", None) or 1.0
        found.append(Stream(model, slo_class, timeout_ps, rate, prompt, output))
    return found


class Twin:
    """Sets up planning models for one task.

    Args:
        task: What may be known beforehand.
        horizon_s: Length of the plans, seconds.
        rng: Source of the lengths.
    """

    def __init__(self, task: Task, horizon_s: int, rng: np.random.Generator) -> None:
        self.task, self.horizon_s = task, horizon_s
        self._streams = streams_of(task, rng)
        nothing = {"faults": (), "events": (), "instances": (), "tenants": None}
        self.scenario = task.scenario.model_copy(update={**nothing, "horizon_s": horizon_s})
        self._row = np.array([slot.row for slot in task.blueprint.slots])

    def begin(self, view: View, requests_per_s: float, rng: np.random.Generator) -> tuple[SimulatedPlant, Snapshot]:
        """A plant in the observed state with traffic at a believed rate, and its state, to which plans go back.

        Args:
            view: The observation.
            requests_per_s: Rate of the traffic to come.
            rng: Source of its arrivals and of all else that is drawn.

        Returns:
            The plant, a thousandth of a second after the observation, and its saved state.
        """
        task, status = self.task, self._status(view)
        starts = np.where(status == "loading", "sleeping", np.where(np.isin(status, ["serving"]), "serving", "empty"))
        starts[np.isin(status, ["sleeping", "draining"])] = "sleeping"
        models = self._models(view)
        slots = tuple(
            replace(slot, spec=slot.spec.model_copy(update={"initial": str(start)}))
            for slot, start in zip(task.blueprint.slots, starts, strict=True)
        )
        initial = self._deployments(view, models)
        blueprint = replace(task.blueprint, slots=slots, initial=initial)
        table = self._requests(view, models, requests_per_s, rng)
        plant = SimulatedPlant(self.scenario, blueprint, task.fleet, table, rng, world=self._world(view))
        cluster = plant.cluster
        for r in np.flatnonzero(status == "failed"):
            cluster.fail(int(r), repair_s=FOREVER_S)
        for r in np.flatnonzero(status == "tenant"):
            cluster.occupy(int(r), max(float(view.slot("power")[r]), 0.0))
        for r in np.flatnonzero(status == "loading"):
            cluster.command(int(r), SERVE + int(models[r]))
        cluster.settle()
        for r in np.flatnonzero(status == "loading"):
            cluster.lifecycle.finish_at(int(r), to_ps(float(view.slot("ready_in")[r])))
        self._warm(plant, view)
        plant.apply(ClusterAction("least-outstanding", view.slot("route_weight"), view.slot("cap")))
        cluster.advance(SETTLING_PS)
        return plant, plant.save_state()

    def _status(self, view: View) -> NDArray[np.str_]:
        """What each slot does (R,)."""
        names = ["empty", "loading", "serving", "draining", "sleeping"]
        names += ["failed"] * bool(self.task.scenario.faults) + ["tenant"] * (self.task.scenario.tenants is not None)
        shown = np.stack([view.slot(f"is_{name}") for name in names])
        found: NDArray[np.str_] = np.array(names)[shown.argmax(axis=0)]
        return found

    def _models(self, view: View) -> NDArray[np.int64]:
        """The model that each slot holds or held last, one that fits where none is seen (R,)."""
        shown = np.stack([view.slot(f"model_{name}") for name in self.task.fleet.models], axis=1)
        return np.asarray((shown * self.task.fleet.fits + 1e-3 * self.task.fleet.fits).argmax(axis=1))

    def _deployments(self, view: View, models: NDArray[np.int64]) -> NDArray[np.int64]:
        """What each slot holds its model with (R,): the variant that is seen, or as it is laid out."""
        blueprint = self.task.blueprint
        held = blueprint.index[np.arange(len(models)), models].copy()
        if "reconfigure" in self.task.codec.groups:
            for r, own in enumerate(blueprint.variants):
                seen = [v.deployment for v in own if view.slot(f"variant_{v.name}")[r] > 0]
                held[r] = seen[0] if seen else held[r]
        return held

    def _warm(self, plant: SimulatedPlant, view: View) -> None:
        """Gives the GPUs their temperatures, shared over the poles as in a steady state."""
        engine = plant.cluster.engine
        scenario = self.task.scenario
        if scenario.outside_c is not None or any(row.airflow_m3_per_s for row in scenario.cluster.rows):
            engine.slots["inlet_c"] = view.slot("inlet") + ZERO_C
        resistance = engine.thermal[engine.slots["deployment"], RESISTANCE]
        rise_k = np.clip(view.slot("temperature") + ZERO_C - engine.slots["inlet_c"], 0.0, None)
        engine.pole_k[:] = rise_k[:, None] * resistance / resistance.sum(axis=1, keepdims=True)

    def _world(self, view: View) -> World:
        """Limits, prices and weather as they have been announced; what has not been stays as it is."""
        scenario, rows = self.task.scenario, len(self.task.scenario.cluster.rows)
        tdp_w = self.task.fleet.cap_max_w
        usual = Feeds.of(scenario.cluster, np.arange(rows)[:, None] == self._row, tdp_w)
        limits: list[PowerLimit | None] = [None] * rows
        for limit in known_limits(self.task, view, LEAD_TIMES_S[-1])[1:]:
            limits[int(self._row[limit.slots][0])] = PowerLimit(constant(limit.watts))
        outside_c = constant(view.cluster("outside_in_0s") + ZERO_C) if scenario.outside_c is not None else None
        site = PowerLimit(through(tuple((lead, view.cluster(f"budget_in_{lead}s")) for lead in LEAD_TIMES_S)))
        return World(
            budget=site,
            rows=RowLimits(limits, self._row, tdp_w),
            feeds=Feeds(tuple(limits), usual.breakers, site),
            airflow=((),) * rows,
            outside_c=outside_c,
            price_per_kwh=_announced(view, "price", scenario.grid.price_per_kwh),
            carbon_g_per_kwh=_announced(view, "carbon", scenario.grid.carbon_g_per_kwh),
        )

    def _requests(
        self, view: View, models: NDArray[np.int64], requests_per_s: float, rng: np.random.Generator
    ) -> RequestTable:
        """Requests in flight and those to come, Poisson at the believed rate.

        Of those in a batch the prompt is taken to be computed and part of the answer to be given; those that wait begin
        anew. They are shared out by model, and within it by the streams' rates.
        """
        share = self._shares(view, models)
        held = _count(view.cluster("held_at_gateway"))
        running, waiting = view.slot("running"), _count(view.slot("waiting"))
        parts: list[tuple[NDArray[np.int64], ...]] = []
        for number, stream in enumerate(self._streams):
            here = np.full(len(models), True) if stream.model == ANY_MODEL else models == stream.model
            alike = [i for i, other in enumerate(self._streams) if other.model == stream.model]
            own = share[number] / max(float(share[alike].sum()), 1e-9)
            begun = round(own * float(running[here].sum()))
            backlog = min(round(own * float(waiting[here].sum()) + share[number] * float(held)), MAX_BACKLOG)
            coming = int(rng.poisson(share[number] * requests_per_s * self.horizon_s))
            pick = rng.integers(POOL, size=begun + backlog + coming)
            arrival = np.zeros(len(pick), np.int64)
            arrival[begun + backlog :] = np.sort(rng.integers(self.horizon_s * PS_PER_S, size=coming))
            prompt, output = stream.prompt[pick].astype(np.int64), stream.output[pick].astype(np.int64)
            prompt[:begun] = 1
            output[:begun] = np.ceil(output[:begun] * rng.random(begun)).clip(min=1)
            parts.append((arrival, prompt, output, np.full(len(pick), number)))
        arrival, prompt, output, number_of = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(arrival, kind="stable")
        of = number_of[order]
        return RequestTable.from_columns(
            arrival[order],
            prompt[order],
            output[order],
            model=np.array([s.model for s in self._streams])[of],
            slo_class=np.array([s.slo_class for s in self._streams])[of],
            timeout_ps=np.array([s.timeout_ps for s in self._streams], np.int64)[of],
            models=self.task.blueprint.models,
            slo_classes=tuple(self.task.scenario.slo),
        )

    def _shares(self, view: View, models: NDArray[np.int64]) -> NDArray[np.float64]:
        """Share of each stream in the requests: by the prompts that its model's slots have computed, and as nominal."""
        nominal = np.array([stream.rate for stream in self._streams])
        nominal /= nominal.sum()
        prompts = view.slot("prompt_tokens_per_s")
        served = np.empty(len(self._streams))
        for i, stream in enumerate(self._streams):
            here = slice(None) if stream.model == ANY_MODEL else models == stream.model
            alike = sum(n for n, other in zip(nominal, self._streams, strict=True) if other.model == stream.model)
            served[i] = prompts[here].sum() / float(stream.prompt.mean()) * nominal[i] / alike
        if not served.any():
            return nominal
        return np.asarray((1 - NOMINAL) * served / served.sum() + NOMINAL * nominal)


def _count(shown: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Requests, from how a backlog is observed."""
    return np.asarray(BACKLOG_SCALE * (np.exp2(shown) - 1))


def _announced(view: View, name: str, spec: SignalSpec | None) -> PiecewiseLinear | None:
    if spec is None:
        return None
    leads = LEAD_TIMES_S if spec.announced else LEAD_TIMES_S[:1]
    return through(tuple((lead, view.cluster(f"{name}_in_{lead}s")) for lead in leads))
