"""What a file of telemetry does not say of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .resample import MAX_GAP_S

NOMINAL_S = 0.25
"""Between readings of files without time stamps, unless told otherwise: what the published ones were taken at."""


@dataclass(frozen=True)
class Options:
    """How to read a file.

    Attributes:
        zone: Time zone of local time stamps.
        max_gap_s: Readings further apart than this have a gap between them.
        columns: Queries of an nvidia-smi file without a header.
        period_s: Time between readings of a file without time stamps.
        engine: Counters of the engine, joined by their time since 1970.
    """

    zone: str = "UTC"
    max_gap_s: float = MAX_GAP_S
    columns: tuple[str, ...] = ()
    period_s: float = NOMINAL_S
    engine: Path | None = None
