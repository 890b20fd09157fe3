"""Telemetry as models take it: divided by its scale, gaps bridged by the last reading, with the truth beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .targets import LONGEST_S, targets_of
from .telemetry import Telemetry

Floats = NDArray[np.float64]

FIT, VALIDATION, CALIBRATION, UNUSED = range(4)
SHARES = (0.6, 0.2)
"""Shares of a series, from its beginning, to fit on and to make choices on; intervals are calibrated on the rest."""
TOGETHER = 8
"""Channels that are worked on at once: enough to be quick, few enough to fit in memory over days."""


@dataclass(frozen=True, eq=False)
class Frame:
    """Some channels of one series.

    Attributes:
        power: Power over scale, (T, C). In a gap it is the last reading, before the first one it is the first.
        covariates: Held likewise, in their own units, (T, C, K); ``nan`` where nothing has been read so far.
        truth: Targets over scale, (T, C, 4); ``nan`` where there are none.
        begun: Where there has been a reading of power, (T, C).
        part: What each second is for, (T,): ``FIT``, ``VALIDATION``, ``CALIBRATION``, or ``UNUSED`` between them, so
            that no target of one part reaches into the next.
    """

    power: Floats
    covariates: Floats
    truth: Floats
    begun: NDArray[np.bool_]
    part: NDArray[np.int8]

    def rows(self, *parts: int) -> NDArray[np.bool_]:
        """Where there is a truth in one of these parts, (T, C)."""
        return np.isin(self.part, parts)[:, None] & ~np.isnan(self.truth[..., 0])


def frames_of(telemetry: Telemetry, covariates: Sequence[str] = ()) -> Iterator[Frame]:
    """A series as frames of a few channels each."""
    for first in range(0, len(telemetry.channels), TOGETHER):
        yield frame_of(telemetry.select(telemetry.channels[first : first + TOGETHER]), covariates)


def frame_of(telemetry: Telemetry, covariates: Sequence[str] = ()) -> Frame:
    """A series as one frame; a covariate that it lacks is unknown throughout."""
    scaled = telemetry.power_w / telemetry.scale_w
    held = hold(scaled)
    begun = ~np.isnan(held)
    first = np.where(begun.any(axis=0), held[np.argmax(begun, axis=0), np.arange(held.shape[1])], 0.0)
    nothing = np.full(scaled.shape, np.nan)
    columns = [hold(telemetry.covariates.get(name, nothing)) for name in covariates]
    return Frame(
        np.where(begun, held, first),
        np.stack(columns, axis=-1) if columns else np.zeros((*scaled.shape, 0)),
        targets_of(scaled),
        begun,
        parts_of(len(telemetry)),
    )


def hold(values: Floats) -> Floats:
    """The last reading so far, along the first axis."""
    known = ~np.isnan(values)
    last = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None], -1), axis=0)
    held = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(last >= 0, held, np.nan)


def parts_of(seconds: int) -> NDArray[np.int8]:
    """What each second of a series is for; a part's last minute is left out, as its targets lie in the next one."""
    part = np.full(seconds, UNUSED, np.int8)
    validation, calibration = (int(seconds * share) for share in np.cumsum(SHARES))
    part[: max(validation - LONGEST_S, 0)] = FIT
    part[validation : max(calibration - LONGEST_S, validation)] = VALIDATION
    part[calibration:] = CALIBRATION
    return part
