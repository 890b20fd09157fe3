"""What breaks: faults at given times and places, and faults by chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .agenda import Agenda
from .errors import InputError
from .lifecycle import Lifecycle
from .snapshot import State, generator_from, generator_state
from .topology import Slot
from .units import to_ps

GPU_MTBF_S = 16_384 * 54 * 86_400 / 148
"""Of one H100 in Meta's training of Llama 3 (arXiv 2407.21783, table 5): 148 interruptions by a faulty GPU in 54 days
on 16,384 GPUs, which makes 16 years."""


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScheduledFault(_Spec):
    """A fault at a given time and place: all slots there fail at one instant."""

    kind: Literal["scheduled"] = "scheduled"
    at_s: float = Field(ge=0, description="When, seconds after the start.")
    slot: int | None = Field(default=None, ge=0, description="Number of the slot; give this or another place.")
    server: int | None = Field(default=None, ge=0, description="Number of the server in the facility.")
    rack: int | None = Field(default=None, ge=0, description="Number of the rack in the facility.")
    row: int | None = Field(default=None, ge=0, description="Number of the row.")
    repair_s: float = Field(gt=0, description="Time until the slots can be loaded again, seconds.")

    @model_validator(mode="after")
    def _one_place(self) -> ScheduledFault:
        given = [level for level in PLACES if getattr(self, level) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(PLACES)}, not {' and '.join(given) or 'none'}")
        return self

    @property
    def place(self) -> tuple[str, int]:
        """Level and number of what fails."""
        return next((level, number) for level in PLACES if (number := getattr(self, level)) is not None)


class RandomFault(_Spec):
    """Faults by chance, at exponential times, of every GPU or every server alike."""

    kind: Literal["random"] = "random"
    unit: Literal["gpu", "server"] = Field(
        default="gpu", description="What fails: a GPU, and its slot with it, or a server with all its slots."
    )
    mtbf_s: float = Field(
        default=GPU_MTBF_S,
        ge=1,
        description="Mean time between failures of one unit, seconds; by default that of a GPU in the training of "
        "Llama 3 (arXiv 2407.21783, table 5).",
    )
    repair: Literal["lognormal", "exponential"] = Field(
        default="lognormal",
        description="Distribution of repair times; lognormal as in Schroeder and Gibson (DSN 2006).",
    )
    repair_s: float = Field(
        default=3600.0,
        gt=0,
        description="Mean time to repair, seconds; Schroeder and Gibson found less than an hour to more than a day.",
    )
    repair_sigma: float = Field(
        default=1.0, ge=0, le=4, description="Standard deviation of the logarithm of lognormal repair times; assumed."
    )


PLACES = ("slot", "server", "rack", "row")

FaultSpec = Annotated[ScheduledFault | RandomFault, Field(discriminator="kind")]


class Faults:
    """Carries faults out as events of the agenda.

    Alike units that each fail at exponential times make one Poisson process: its next event is drawn, then the unit
    that it hits. A unit under repair may be hit again, which counts if the new repair ends later.

    Args:
        specs: What breaks.
        slots: The slots and their places.
        agenda: Events to come.
        lifecycle: Carries out failures.
        rng: Source of times, units and repairs.

    Raises:
        InputError: A place does not exist.
    """

    def __init__(
        self,
        specs: Sequence[ScheduledFault | RandomFault],
        slots: Sequence[Slot],
        agenda: Agenda,
        lifecycle: Lifecycle,
        rng: np.random.Generator,
    ) -> None:
        self.specs = tuple(specs)
        self._agenda, self._lifecycle, self._rng = agenda, lifecycle, rng
        self._units = {
            "slot": np.arange(len(slots)),
            "gpu": np.repeat(np.arange(len(slots)), [slot.spec.tp * slot.spec.pp for slot in slots]),
            **{level: np.array([getattr(slot, level) for slot in slots]) for level in PLACES[1:]},
        }
        agenda.on("fault", self._strike)
        for number, spec in enumerate(self.specs):
            if isinstance(spec, ScheduledFault):
                self._check(f"faults[{number}]", *spec.place)
                agenda.at(to_ps(spec.at_s), "fault", number)
            else:
                self._await(number, spec)

    def _check(self, where: str, level: str, number: int) -> None:
        last = int(self._units[level].max())
        if number > last:
            raise InputError(f"{where}.{level}", f"there is no {level} {number}", f"Give a number of at most {last}")

    def _await(self, number: int, spec: RandomFault) -> None:
        units = len(self._units["gpu"]) if spec.unit == "gpu" else int(self._units["server"].max()) + 1
        wait_s = self._rng.exponential(spec.mtbf_s / units)
        self._agenda.at(self._agenda.now_ps + to_ps(wait_s), "fault", number)

    def _strike(self, values: tuple[int, ...]) -> None:
        (number,) = values
        spec = self.specs[number]
        if isinstance(spec, ScheduledFault):
            level, place = spec.place
            hit, repair_s = np.flatnonzero(self._units[level] == place), spec.repair_s
        else:
            hit, repair_s = self._draw_unit(spec), self._draw_repair_s(spec)
        self._lifecycle.fail(*hit.tolist(), repair_ps=to_ps(repair_s))
        if isinstance(spec, RandomFault):
            self._await(number, spec)

    def _draw_unit(self, spec: RandomFault) -> NDArray[np.int64]:
        """The slots that one unit takes with it."""
        units = self._units[spec.unit]
        if spec.unit == "gpu":
            return units[self._rng.integers(len(units), size=1)]
        return np.flatnonzero(units == self._rng.integers(units.max() + 1))

    def _draw_repair_s(self, spec: RandomFault) -> float:
        if spec.repair == "exponential":
            return float(self._rng.exponential(spec.repair_s))
        sigma = spec.repair_sigma
        return float(self._rng.lognormal(np.log(spec.repair_s) - sigma**2 / 2, sigma))

    def save_state(self) -> State:
        """What is not in the agenda: the generator."""
        return {"rng": generator_state(self._rng)}

    def restore_state(self, state: State) -> None:
        """Takes up a state of :meth:`save_state`."""
        self._rng = generator_from(state["rng"])
