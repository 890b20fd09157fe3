"""How far forecasts are off, second by second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from .base import QUANTILES
from .frames import TOGETHER, Floats
from .targets import targets_of
from .telemetry import Telemetry


@dataclass(frozen=True, eq=False)
class Losses:
    """Sums over the channels that are judged at each second, (T, 4) by target.

    Attributes:
        absolute: Error of the median, watts.
        squared: Its square.
        pinball: Pinball loss, mean over the quantiles, watts.
        covered: Whether the truth lies between the outer quantiles.
        count: Channels judged, (T, 1).
    """

    absolute: Floats
    squared: Floats
    pinball: Floats
    covered: Floats
    count: Floats

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Losses of several series, one after the other."""
        names = ("absolute", "squared", "pinball", "covered", "count")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def judge(
    predict: Callable[[Telemetry], Floats], telemetry: Telemetry, first_s: int = 0, last_s: int | None = None
) -> Losses:
    """Compares forecasts with what came.

    Args:
        predict: Gives watts (T, C, 4, 3) for a series.
        telemetry: The series; what is before ``first_s`` is history.
        first_s: First second whose forecast counts.
        last_s: The second after the last one whose forecast counts; by default the end.

    Returns:
        Losses of the seconds from ``first_s`` to before ``last_s``. Only those count that have a reading themselves and
        a whole minute without a gap after them.
    """
    judged = slice(first_s, last_s)
    sums: list[Floats] = []
    for first in range(0, len(telemetry.channels), TOGETHER):
        some = telemetry.select(telemetry.channels[first : first + TOGETHER])
        truth, forecast = targets_of(some.power_w)[judged], predict(some)[judged]
        counts = ~np.isnan(truth[..., :1])
        off = truth[..., None] - forecast
        levels = np.array(QUANTILES)
        losses = (
            np.abs(off[..., 1]),
            off[..., 1] ** 2,
            np.maximum(levels * off, (levels - 1) * off).mean(axis=-1),
            ((off[..., 0] >= 0) & (off[..., -1] <= 0)).astype(np.float64),
            np.ones_like(truth),
        )
        part = [np.where(counts, loss, 0.0).sum(axis=1) for loss in losses]
        sums = part if not sums else [a + b for a, b in zip(sums, part, strict=True)]
    absolute, squared, pinball, covered, count = sums
    return Losses(absolute, squared, pinball, covered, count[:, :1])


def figures(losses: Losses) -> dict[str, Floats]:
    """Mean absolute, root mean square and pinball error in watts, and coverage, each (4,) by target."""
    count = losses.count.sum()
    return {
        "mae_w": losses.absolute.sum(axis=0) / count,
        "rmse_w": np.sqrt(losses.squared.sum(axis=0) / count),
        "pinball_w": losses.pinball.sum(axis=0) / count,
        "coverage_80": losses.covered.sum(axis=0) / count,
    }
