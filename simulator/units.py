"""Units: time is int64 picoseconds (a range of 106 days); everything else is SI and names its unit."""

from __future__ import annotations

PS_PER_S = 1_000_000_000_000
PS_PER_MS = 1_000_000_000
J_PER_KWH = 3.6e6
MAX_TIME_S = (2**63 - 1) // PS_PER_S


def to_ps(seconds: float) -> int:
    """Seconds to the nearest picosecond."""
    return round(seconds * PS_PER_S)
