"""Local time stamps to seconds since 1970, across changes of the clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

QUARTER_US = 900 * 1_000_000
"""Offsets from UTC change on the quarter of an hour."""


def epoch_s(stamps: NDArray[np.datetime64], zone: str, where: str) -> NDArray[np.float64]:
    """Seconds since 1970 of local times.

    In the hour that comes twice when clocks are put back, times count as the first passage until they jump back.

    Args:
        stamps: Local times in the order of the file, (n,).
        zone: Name of the zone: ``UTC``, ``Europe/Berlin``.
        where: The file, for messages.

    Raises:
        InputError: The zone is unknown, or has no such time.
    """
    try:
        rules = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(
            f"zone {zone!r}", "is not known here", "Give a name such as UTC or Europe/Berlin (pip install tzdata)"
        ) from None
    local_us = stamps.astype("datetime64[us]").astype(np.int64)
    quarters, index = np.unique(local_us // QUARTER_US, return_inverse=True)
    offsets_us = np.array([_offsets_us(int(q) * QUARTER_US, rules, where) for q in quarters], np.int64).reshape(-1, 2)
    offset_us = offsets_us[index]
    twice = offset_us[:, 0] != offset_us[:, 1]
    jumped = np.zeros(len(local_us), bool)
    if len(local_us):
        latest = np.maximum.accumulate(np.where(twice, local_us, np.iinfo(np.int64).min))
        # Put back by an hour or so: well more than a meter's clock is ever corrected by.
        jumped = twice & (np.maximum.accumulate(latest - local_us > QUARTER_US))
    return np.asarray((local_us - np.where(jumped, offset_us[:, 1], offset_us[:, 0])) / 1e6)


def _offsets_us(local_us: int, rules: ZoneInfo, where: str) -> tuple[int, int]:
    """Offsets from UTC at a local time, microseconds: of its first and its second passage, mostly the same."""
    naive = datetime(1970, 1, 1) + timedelta(microseconds=local_us)
    first, second = (naive.replace(tzinfo=rules, fold=fold) for fold in (0, 1))
    if first.astimezone(UTC).astimezone(rules).replace(tzinfo=None) != naive:
        raise InputError(where, f"there is no {naive:%Y-%m-%d %H:%M} in {rules.key}", "Check --zone")
    micro = timedelta(microseconds=1)
    return tuple((moment.utcoffset() or timedelta()) // micro for moment in (first, second))  # type: ignore[return-value]
