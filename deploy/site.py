"""What no meter of a server tells: the power budget, weather, prices; numbers, schedules or files that others write."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..envs.telemetry import LEAD_TIMES_S
from ..simulator.signals import Points, ascend, through
from .readings import ReadingError

F64 = NDArray[np.float64]


class SourceSpec(BaseModel):
    """A value over time; it holds between writes, and after the last breakpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float | None = Field(default=None, description="A value that never changes.")
    schedule: Points = Field(
        default=(), description="Breakpoints `[[t_s, value], …]`, seconds since the loop began; known ahead."
    )
    file: Path | None = Field(
        default=None,
        description="A text file that something else keeps up to date: one number, or three, for now, 30 s and 60 s "
        "ahead. Read at every decision.",
    )
    scale: float = Field(default=1.0, description="What numbers of the file are multiplied by.")

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_a_value(cls, given: object) -> object:
        return {"value": given} if isinstance(given, int | float) else given

    @model_validator(mode="after")
    def _one_of_them(self) -> SourceSpec:
        if (self.value is not None) + bool(self.schedule) + (self.file is not None) != 1:
            raise ValueError("give a number, { schedule = [[t_s, value], …] } or { file = PATH }")
        ascend(self.schedule, "the times of schedule")
        return self

    @property
    def lowest(self) -> float | None:
        """The lowest value there ever is, where that is known."""
        return min(value for _, value in self.schedule) if self.schedule else self.value


class Source:
    """A value as it is known now and ahead.

    Args:
        spec: Where it comes from.
        clock: Monotonic seconds.
    """

    def __init__(self, spec: SourceSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._spec, self._clock, self._began_s = spec, clock, clock()

    def read(self) -> F64:
        """The value now, in 30 s and in 60 s, (3,).

        Raises:
            ReadingError: The file cannot be read, or does not hold.
        """
        ahead_s = np.array(LEAD_TIMES_S, np.float64)
        if self._spec.schedule:
            return through(self._spec.schedule).at(self._clock() - self._began_s + ahead_s)
        if self._spec.file is None:
            return np.full(len(ahead_s), self._spec.value)
        return self._from(self._spec.file)

    def dip(self, ahead_s: float) -> float:
        """The lowest breakpoint of a schedule in the next seconds, which may lie between lead times; else infinite."""
        now_s = self._clock() - self._began_s
        return min((value for at_s, value in self._spec.schedule if 0 <= at_s - now_s <= ahead_s), default=math.inf)

    def _from(self, file: Path) -> F64:
        try:
            numbers = [float(word) * self._spec.scale for word in file.read_text(encoding="utf-8").split()]
        except OSError as fault:
            raise ReadingError(f"{file} cannot be read ({fault.strerror})") from fault
        except ValueError as fault:
            raise ReadingError(f"{file} is not made of numbers ({fault})") from fault
        if len(numbers) not in (1, len(LEAD_TIMES_S)) or not np.isfinite(numbers).all():
            raise ReadingError(f"{file} holds {numbers}; write one number, or {len(LEAD_TIMES_S)}")
        return np.broadcast_to(np.array(numbers), len(LEAD_TIMES_S)).copy()
