"""What a scenario says of the world around the cluster: budget, events, weather, grid, and who asks for slots."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..simulator.protection import ShedSpec
from ..simulator.signals import Points, SignalSpec, ascend
from .spec import Spec

Span = float | tuple[float, float]
"""A number, or the two ends between which it is drawn evenly."""


class BudgetSpec(Spec):
    """The site's GPU power budget: it holds a level for a while, then ramps to another, or follows a schedule."""

    levels: tuple[float, ...] = Field(default=(1.0,), min_length=1, description="Shares of the sum of all TDPs.")
    mean_hold_s: float = Field(default=300.0, gt=0)
    ramp_s: float = Field(default=60.0, gt=0)
    schedule: Points = Field(
        default=(), description="Breakpoints `[[t_s, share], …]` in place of the levels; equal times make a step."
    )
    shed: ShedSpec | None = Field(default=None, description="What the site does above it; by default it only counts.")

    @model_validator(mode="after")
    def _shares_hold(self) -> BudgetSpec:
        if min(self.levels) <= 0 or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels {list(self.levels)} must be positive and differ from one another")
        if self.schedule and self.levels != (1.0,):
            raise ValueError("give levels or a schedule, not both")
        if any(share <= 0 for _, share in self.schedule):
            raise ValueError(f"schedule {[list(p) for p in self.schedule]} must have positive shares")
        ascend(self.schedule, "the times of schedule")
        return self

    @property
    def lowest(self) -> float:
        """The lowest share there ever is."""
        return min(share for _, share in self.schedule) if self.schedule else min(self.levels)


class EventSpec(Spec):
    """Something that befalls the site: a share of its cooling air or of its power is lost for a while."""

    kind: Literal["cooling-failure", "power-feed-failure", "demand-response"] = Field(
        description="What is lost: airflow; power, without a warning; or power, with one."
    )
    at_s: Span = Field(description="When it begins, seconds, or `[earliest, latest]`.")
    duration_s: Span = Field(description="How long it lasts, seconds, or `[shortest, longest]`.")
    severity: float = Field(gt=0, lt=1, description="Share that is lost.")
    ramp_s: float = Field(default=0.0, ge=0, description="Time it takes to come, and again to go, seconds.")
    row: int | Literal["random"] | None = Field(
        default=None, description="Row it befalls, or `random`; by default all rows' air, or the site's power."
    )
    notice_s: float = Field(default=0.0, ge=0, description="How long before demand response is announced, seconds.")

    @model_validator(mode="after")
    def _fields_go_together(self) -> EventSpec:
        for name, span in (("at_s", self.at_s), ("duration_s", self.duration_s)):
            ends = span if isinstance(span, tuple) else (span, span)
            if ends[0] < 0 or ends[0] > ends[1]:
                raise ValueError(f"{name} {list(ends)} must ascend from 0 on")
        if self.kind == "demand-response" and self.row is not None:
            raise ValueError("demand response is asked of the site; leave out row")
        if self.kind != "demand-response" and self.notice_s:
            raise ValueError("failures give no notice; leave out notice_s")
        return self


USUAL_PRICE_PER_KWH = 0.0806
"""What industrial customers in the US paid on average in 2023, dollars (EIA, Electric Power Monthly, March 2024)."""
USUAL_CARBON_G_PER_KWH = 390.0
"""CO₂ of the electricity generated in the US in 2022: 1,650 Mt for 4,231 TWh (EIA, State Electricity Profiles, tables 5
and 7)."""


class GridSpec(Spec):
    """The electricity that the GPUs use. Where nothing is said, results alone are told at averages of the US."""

    price_per_kwh: SignalSpec | None = Field(default=None, description="Price, in a currency of your choice.")
    carbon_g_per_kwh: SignalSpec | None = Field(default=None, description="Carbon intensity, grams of CO₂.")


class InstancesSpec(Spec):
    """Instances that ask for a slot while the run goes on; the `place` action gives them one."""

    model: str
    mean_interval_s: float = Field(gt=0, description="Mean time between requests, exponentially distributed.")
