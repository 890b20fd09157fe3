"""Samples at any times to means of whole seconds, with gaps marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .series import Floats, Telemetry

MAX_GAP_S = 1.5
"""Samples further apart than this have a gap between them."""
MAX_STEP_BACK_S = 5.0
"""By how much a clock may be put back (by time synchronisation); more is another log or a change to winter time."""
LEAST_COVERED = 0.5
"""Share of a second that samples must cover for its mean to count."""
MAX_SPAN_S = 400 * 86_400
"""Longest stretch of one file; more is a stamp gone wrong."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Readings of one channel as they came.

    Attributes:
        time_s: When each was taken, seconds, (n,).
        power_w: Watts, (n,); ``nan`` where the meter gave none.
        covariates: By name, (n,).
        line: Line of the file of each, (n,), for messages; empty if there are no lines.
    """

    time_s: Floats
    power_w: Floats
    covariates: Mapping[str, Floats] = field(default_factory=dict)
    line: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def telemetry_of(
    samples: Mapping[str, Samples], source: str, max_gap_s: float = MAX_GAP_S, warnings: tuple[str, ...] = ()
) -> Telemetry:
    """Puts channels on one grid of whole seconds.

    A reading holds until the next one, so no second knows of a reading that came after it. A second counts if readings
    no more than ``max_gap_s`` apart cover half of it or more; its value is the mean over what they cover.

    Args:
        samples: Readings by channel.
        source: The file, for messages.
        max_gap_s: Readings further apart than this have a gap between them.
        warnings: What has been left out so far.

    Returns:
        The telemetry.

    Raises:
        InputError: There are no readings, power is negative or infinite, time goes back, or the readings are so far
            apart that there are only gaps.
    """
    ordered = {}
    for channel, raw in samples.items():
        _check_power(raw, f"{source}: {channel}")
        ordered[channel], more = in_order(raw, f"{source}: {channel}")
        warnings += more
    if not ordered or min(len(s.time_s) for s in ordered.values()) < 2:
        raise InputError(source, "fewer than two readings of a channel", "Record for longer")
    start = int(np.floor(min(s.time_s[0] for s in ordered.values())))
    end = int(np.ceil(max(s.time_s[-1] for s in ordered.values())))
    if end - start > MAX_SPAN_S:
        raise InputError(source, f"spans {(end - start) / 86_400:,.0f} days", "Mend its time stamps, or split it")
    grid_s = np.arange(start, end + 1, dtype=np.float64)
    power_w = np.stack([second_means(s.time_s, s.power_w, grid_s, max_gap_s) for s in ordered.values()], axis=1)
    known = ~np.isnan(power_w)
    if not known.any():
        apart_s = float(np.median(np.diff(next(iter(ordered.values())).time_s)))
        raise InputError(
            source,
            f"no second is covered: readings are {apart_s:.3g} s apart and the longest gap is {max_gap_s:g} s",
            "Record once a second (step=1 in a range query), or allow longer gaps with --max-gap",
        )
    kept = slice(int(np.argmax(known.any(axis=1))), len(known) - int(np.argmax(known[::-1].any(axis=1))))
    names = dict.fromkeys(name for s in ordered.values() for name in s.covariates)
    nothing = np.full(len(power_w), np.nan)
    covariates = {
        name: np.stack(
            [
                second_means(s.time_s, s.covariates[name], grid_s, max_gap_s) if name in s.covariates else nothing
                for s in ordered.values()
            ],
            axis=1,
        )[kept]
        for name in names
    }
    return Telemetry(power_w[kept], tuple(ordered), grid_s[kept.start], covariates, source=source, warnings=warnings)


def _check_power(samples: Samples, where: str) -> None:
    bad = np.flatnonzero((samples.power_w < 0) | np.isinf(samples.power_w))
    if bad.size:
        line = f", line {samples.line[bad[0]]}" if samples.line.size else ""
        raise InputError(where, f"power is {samples.power_w[bad[0]]:g} W{line}", "Mend or remove the line")


def in_order(samples: Samples, where: str) -> tuple[Samples, tuple[str, ...]]:
    """Leaves out what repeats a time (the last one counts) or goes back a little; refuses what goes back further."""
    time_s = samples.time_s
    latest = np.maximum.accumulate(time_s) if len(time_s) else time_s
    back_s = latest - time_s
    if len(back_s) and back_s.max() > MAX_STEP_BACK_S:
        at = int(np.argmax(back_s > MAX_STEP_BACK_S))
        line = f", line {samples.line[at]}" if samples.line.size else ""
        raise InputError(
            where,
            f"time goes back by {back_s[at]:,.1f} s{line}",
            "Give the time zone with --zone if clocks were put back, or split the file where another log begins",
        )
    backwards = back_s > 0
    repeated = np.zeros(len(time_s), bool)
    forwards = np.flatnonzero(~backwards)
    repeated[forwards[:-1]] = np.diff(time_s[forwards]) == 0
    warnings = []
    if backwards.any():
        warnings.append(f"{where}: {backwards.sum()} readings left out whose time goes back")
    if repeated.any():
        warnings.append(f"{where}: {repeated.sum()} readings left out whose time is given again")
    kept = ~(backwards | repeated)
    covariates = {name: values[kept] for name, values in samples.covariates.items()}
    line_kept = samples.line[kept] if samples.line.size else samples.line
    return Samples(time_s[kept], samples.power_w[kept], covariates, line_kept), tuple(warnings)


def second_means(time_s: Floats, values: Floats, grid_s: Floats, max_gap_s: float = MAX_GAP_S) -> Floats:
    """Time-weighted means of the seconds of a grid; ``nan`` where less than half of one is covered.

    Args:
        time_s: When readings were taken, rising, (n,).
        values: The readings, each of which holds until the next, (n,).
        grid_s: Whole seconds (T + 1,).
        max_gap_s: A reading that holds for longer says nothing.

    Returns:
        Means, (T,).
    """
    lasts_s = np.diff(time_s)
    holds = (lasts_s <= max_gap_s) & ~np.isnan(values[:-1])
    amount = np.concatenate([[0.0], np.cumsum(np.where(holds, values[:-1] * lasts_s, 0.0))])
    covered_s = np.concatenate([[0.0], np.cumsum(np.where(holds, lasts_s, 0.0))])
    sums, share = (np.diff(np.interp(grid_s, time_s, total)) for total in (amount, covered_s))
    enough = share >= LEAST_COVERED * (1 - 1e-9)
    return np.where(enough, sums / np.where(enough, share, 1.0), np.nan)


def second_counts(time_s: Floats, counter: Floats, grid_s: Floats, max_gap_s: float = MAX_GAP_S) -> Floats:
    """By how much a counter rose in each second of a grid, as its readings showed it by then.

    Args:
        time_s: When the counter was read, rising, (n,).
        counter: Its readings, (n,); a fall is a restart, and the second of it a gap.
        grid_s: Whole seconds (T + 1,).
        max_gap_s: Readings further apart than this have a gap between them.

    Returns:
        Rises, (T,); ``nan`` where a bound of the second lies in a gap or outside the readings.
    """
    last = np.searchsorted(time_s, grid_s, side="right") - 1
    following = np.minimum(last + 1, len(time_s) - 1)
    inside = (last >= 0) & (grid_s <= time_s[-1]) & (time_s[following] - time_s[last] <= max_gap_s)
    at_bound = np.where(inside, counter[last], np.nan)
    rises = np.diff(at_bound)
    return np.where(rises >= 0, rises, np.nan)
