"""Scenarios: the whole of a problem as one TOML file."""

from __future__ import annotations

import math
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from ..simulator.errors import InputError
from ..simulator.faults import FaultSpec
from ..simulator.signals import SignalSpec
from ..simulator.tenants import TenantsSpec
from ..simulator.topology import ClusterSpec
from ..simulator.workload.spec import WorkloadSpec
from .actions import ROUTERS, RouterName
from .spec import SloSpec, Spec
from .world_spec import BudgetSpec, EventSpec, GridSpec, InstancesSpec


class ActionSpec(Spec):
    """What an agent may decide."""

    groups: tuple[Literal["route", "cap", "clock", "lifecycle", "concurrency", "reconfigure", "place"], ...] = Field(
        default=("route", "cap", "lifecycle"), description="What it decides; see `ClusterAction`."
    )
    levels: int = Field(default=5, ge=2, le=101, description="Options where it decides on a number.")
    routers: tuple[RouterName, ...] = Field(
        default=ROUTERS, min_length=1, description="Routers to choose from; also `power-of-two`, `prefix-affinity`."
    )

    @model_validator(mode="after")
    def _routers_differ(self) -> ActionSpec:
        if len(set(self.routers)) < len(self.routers):
            raise ValueError(f"routers {list(self.routers)} must differ from one another")
        return self


class RewardSpec(Spec):
    """Weights of the reward's terms; each term is about 1 at full load."""

    energy: float = Field(default=1.0, ge=0, description="Energy of the tick, relative to all GPUs at TDP.")
    tokens: float = Field(default=1.0, ge=0, description="Output tokens of requests that met their SLO.")
    slo: float = Field(default=1.0, ge=0, description="Requests that missed their SLO.")
    budget: float = Field(
        default=5.0, ge=0, description="Mean overshoot of the budget and of the rows' limits, relative to all TDPs."
    )
    pending: float = Field(default=0.1, ge=0, description="Instances that wait for a slot.")
    cost: float = Field(default=0.0, ge=0, description="Price of the energy, relative to all TDPs at the mean price.")
    carbon: float = Field(default=0.0, ge=0, description="Its CO₂, relative to all TDPs at the mean intensity.")
    requests_per_s: float = Field(default=10.0, gt=0, description="Rate at which `tokens` and `slo` are about 1.")
    tokens_per_request: float = Field(default=200.0, gt=0)


class Scenario(Spec):
    """A problem: cluster, workload, limits, objectives, actions and time."""

    name: str = "unnamed"
    description: str = ""
    tick_s: int = Field(default=10, ge=1, le=60, description="Time between decisions, seconds.")
    horizon_s: int = Field(default=1800, ge=1, description="Length of an episode, seconds.")
    cluster: ClusterSpec
    workload: WorkloadSpec
    slo: dict[str, SloSpec] = Field(default={"default": SloSpec()}, min_length=1)
    budget: BudgetSpec = BudgetSpec()
    events: tuple[EventSpec, ...] = ()
    outside_c: SignalSpec | None = Field(default=None, description="Outside temperature, °C.")
    grid: GridSpec = GridSpec()
    faults: tuple[FaultSpec, ...] = Field(default=(), description="What breaks: GPUs, servers, racks or rows.")
    instances: tuple[InstancesSpec, ...] = ()
    tenants: TenantsSpec | None = Field(default=None, description="Foreign machines that hold slots; none by default.")
    actions: ActionSpec = ActionSpec()
    reward: RewardSpec = RewardSpec()
    forecaster: str = Field(
        default="gru",
        description="`none`, `persistence`, `gru`, `oracle` (clairvoyant), or a file of weights, `.safetensors`.",
    )
    source: str = Field(default="scenario", exclude=True, description="Where it was read from, for messages.")
    folder: Path = Field(default=Path(), exclude=True, description="Where relative paths of the file start.")

    @model_validator(mode="after")
    def _ticks_fill_the_horizon(self) -> Scenario:
        if self.horizon_s % self.tick_s:
            raise ValueError(f"horizon_s {self.horizon_s} must be a multiple of tick_s {self.tick_s}")
        return self

    @model_validator(mode="after")
    def _instances_have_models(self) -> Scenario:
        known = self.cluster.served_models()
        for number, spec in enumerate(self.instances):
            if spec.model not in known:
                raise ValueError(
                    f"instances[{number}].model: the cluster does not have '{spec.model}'; use one of "
                    f"{', '.join(known)}, or add it to cluster.models"
                )
        return self

    @model_validator(mode="after")
    def _variants_are_there(self) -> Scenario:
        if "reconfigure" in self.actions.groups and not self.cluster.variants:
            raise ValueError("actions.groups: 'reconfigure' has nothing to choose from; add [[cluster.variants]]")
        return self

    @model_validator(mode="after")
    def _events_find_what_they_take(self) -> Scenario:
        rows = self.cluster.rows
        for number, event in enumerate(self.events):
            where, what = f"events[{number}]", "airflow_m3_per_s"
            if isinstance(event.row, int) and not 0 <= event.row < len(rows):
                raise ValueError(f"{where}.row: there is no row {event.row}; give 0 to {len(rows) - 1}")
            befallen = rows[event.row : event.row + 1] if isinstance(event.row, int) else rows
            if event.kind == "power-feed-failure":
                what, befallen = "power_limit_share", () if event.row is None else befallen
            if event.kind != "demand-response" and any(getattr(row, what) is None for row in befallen):
                raise ValueError(f"{where}: nothing can fail where a row has no {what}; give it one")
        return self

    def lowest_limit(self, row: int | None = None) -> float:
        """The lowest power limit there may be of the site, or of a row, as a share of the TDPs there."""
        planned = self.budget.lowest if row is None else self.cluster.rows[row].power_limit_share or 1.0
        places = (None,) if row is None else (row, "random")
        cuts = (1 - e.severity for e in self.events if e.kind != "cooling-failure" and e.row in places)
        return planned * math.prod(cuts)

    @property
    def ticks(self) -> int:
        """Decisions in an episode."""
        return self.horizon_s // self.tick_s


def scenario_names() -> tuple[str, ...]:
    """Names of the scenarios that come with the package."""
    files = resources.files(__package__).joinpath("scenarios").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def load_scenario(source: str | Path | dict[str, Any] | Scenario) -> Scenario:
    """Reads a scenario.

    Args:
        source: A name (see :func:`scenario_names`), the path of a TOML file, a dict of the same content, or a scenario.

    Returns:
        The scenario.

    Raises:
        InputError: There is no such scenario, or it does not hold; the message names file, field and remedy.
    """
    if isinstance(source, Scenario):
        return source
    if isinstance(source, dict):
        return _parse(source, "scenario")
    if not isinstance(source, str | Path):
        raise InputError("scenario", f"is a {type(source).__name__}", "Give a name, a path, a dict or a Scenario")
    text = str(source)
    if text in scenario_names():
        file = resources.files(__package__).joinpath("scenarios", f"{text}.toml")
        return _parse(tomllib.loads(file.read_text()), f"{text}.toml")
    path = Path(source)
    if path.suffix != ".toml":
        raise InputError(
            f"scenario '{text}'",
            "there is none of that name",
            f"Use one of {', '.join(scenario_names())}, or the path of a .toml file",
        )
    try:
        content = tomllib.loads(path.read_text())
    except OSError as fault:
        raise InputError(text, f"cannot be read ({fault.strerror})", "Check the path") from fault
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise InputError(text, f"is not TOML: {fault}", "Mend the syntax at that place") from fault
    return _parse({"folder": path.parent, **content}, text)


def _parse(content: dict[str, Any], where: str) -> Scenario:
    try:
        return Scenario.model_validate({"source": where, **content})
    except ValidationError as fault:
        remedy = "See docs/reference.md for what a scenario may say"
        raise InputError(where, *explain(fault, "the scenario", remedy)) from fault


def explain(fault: ValidationError, what: str, remedy: str) -> tuple[str, str]:
    """The first errors of pydantic as problem and remedy; what follows from an error further in is left out.

    Args:
        fault: The errors.
        what: What the file is of, for errors that are of no field of it.
        remedy: What to do about all but a key that is not known.
    """
    problems, unknown = [], False
    places = [error["loc"] for error in fault.errors()]
    causes = [e for e in fault.errors() if not any(p != e["loc"] and p[: len(e["loc"])] == e["loc"] for p in places)]
    for error in causes[:3]:
        field = ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in error["loc"]).replace(
            ".[", "["
        )
        unknown |= error["type"] == "extra_forbidden"
        message = (
            "is not a known key" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
        )
        problems.append(f"{field or what}: {message}")
    return "; ".join(problems), "Remove it or check its spelling" if unknown else remedy
