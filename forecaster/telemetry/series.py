"""What a forecaster reads: power of several channels on a grid of one second, with gaps marked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

Floats = NDArray[np.float64]

COVARIATES = (
    *("running", "waiting", "prompt_tokens", "output_tokens", "cap_w", "temperature_c", "sm_clock_mhz"),
    *("kv_used", "serving", "asleep", "ready_in_s", "route_weight", "arrivals", "arriving_tokens"),
    *("budget_w", "budget_in_60s_w", "slots"),
)
"""What may be known beside power: requests that run and wait, tokens per second, cap, die temperature and clock; share
of the KV cache in use; whether an instance serves or sleeps, when it will be ready, and its routing weight; requests
and prompt tokens per second that come to the gateway, and the power budget now and in a minute, per slot of the
cluster; and how many slots a channel is the sum of."""
GROUPS = (
    ("running", "waiting", "prompt_tokens", "output_tokens", "kv_used"),
    ("cap_w", "temperature_c", "sm_clock_mhz"),
    ("serving", "asleep", "ready_in_s", "route_weight"),
    ("arrivals", "arriving_tokens", "budget_w", "budget_in_60s_w"),
    ("slots",),
)
"""Covariates that are there or lacking together: those of an engine, a GPU, a router, a gateway."""
ADDED_UP = ("running", "waiting", "prompt_tokens", "output_tokens", "cap_w", "slots")
"""Covariates of a group that are sums over its channels; of the others a group has the mean."""


@dataclass(frozen=True, eq=False)
class Telemetry:
    """Power of C channels over T seconds, and what else was measured.

    A second without a reading is a gap: ``nan``. Nothing is filled in.

    Attributes:
        power_w: Mean power of each second, watts, (T, C).
        channels: Names of the channels: GPUs, slots, servers.
        start_s: When the first second begins, seconds; since 1970 where the source has a calendar.
        covariates: By a name of :data:`COVARIATES`, (T, C), in the unit of the name or per second.
        scale_w: Watts by which figures of a channel are divided when channels learn from one another, (C,): the board's
            limit, say. By default 1: a model then works in watts.
        source: Where it comes from, for messages.
        warnings: What was left out on reading, in words.
    """

    power_w: Floats
    channels: tuple[str, ...]
    start_s: float = 0.0
    covariates: Mapping[str, Floats] = field(default_factory=dict)
    scale_w: Floats = field(default_factory=lambda: np.ones(0))
    source: str = "telemetry"
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks that shapes and names agree."""
        shape = self.power_w.shape
        if len(shape) != 2 or shape[1] != len(self.channels):
            raise InputError(self.source, f"power of shape {shape} for {len(self.channels)} channels", "Give (T, C)")
        if self.scale_w.size == 0:
            object.__setattr__(self, "scale_w", np.ones(len(self.channels)))
        if self.scale_w.shape != (shape[1],) or not (self.scale_w > 0).all():
            raise InputError(self.source, "scale_w is not a positive figure per channel", "Give watts, (C,)")
        for name, values in self.covariates.items():
            if name not in COVARIATES:
                raise InputError(self.source, f"no covariate is called {name!r}", f"Use {', '.join(COVARIATES)}")
            if values.shape != shape:
                raise InputError(self.source, f"{name} has shape {values.shape}, power {shape}", "Give (T, C)")

    def __len__(self) -> int:
        """Number of seconds."""
        return len(self.power_w)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Where there is a reading, (T, C)."""
        return ~np.isnan(self.power_w)

    @property
    def bounds_s(self) -> Floats:
        """Where each second begins and the last one ends, (T + 1,)."""
        return self.start_s + np.arange(len(self) + 1, dtype=np.float64)

    def part(self, first_s: int, last_s: int) -> Self:
        """The seconds from ``first_s`` to before ``last_s``, counted from the first one."""
        covariates = {name: values[first_s:last_s] for name, values in self.covariates.items()}
        start_s = self.start_s + range(len(self))[first_s:last_s].start
        return replace(self, power_w=self.power_w[first_s:last_s], covariates=covariates, start_s=start_s)

    def select(self, channels: Iterable[str]) -> Self:
        """Only these channels, in this order."""
        names = tuple(channels)
        if unknown := [name for name in names if name not in self.channels]:
            raise InputError(self.source, f"no channel {unknown[0]!r}", f"It has {', '.join(self.channels)}")
        columns = [self.channels.index(name) for name in names]
        return replace(
            self,
            power_w=self.power_w[:, columns],
            channels=names,
            covariates={name: values[:, columns] for name, values in self.covariates.items()},
            scale_w=self.scale_w[columns],
        )

    def grouped(self, groups: Mapping[str, Sequence[str]]) -> Self:
        """Sums over groups of channels: servers out of GPUs, the cluster out of slots.

        A group's second is a gap where one of its channels has a gap.

        Args:
            groups: Channels by name of the group.

        Returns:
            Telemetry with the groups as its channels.
        """
        parts = [self.select(names) for names in groups.values()]
        covariates = {
            name: np.stack(
                [
                    p.covariates[name].sum(axis=1) if name in ADDED_UP else p.covariates[name].mean(axis=1)
                    for p in parts
                ],
                axis=1,
            )
            for name in self.covariates
        }
        return replace(
            self,
            power_w=np.stack([part.power_w.sum(axis=1) for part in parts], axis=1),
            channels=tuple(groups),
            covariates=covariates,
            scale_w=np.array([part.scale_w.sum() for part in parts]),
        )
