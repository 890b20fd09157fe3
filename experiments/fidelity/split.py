"""The published split of measured configurations: 60 % to fit figures to, 40 % held out."""

from __future__ import annotations

import hashlib
from typing import Literal

Part = Literal["fit", "held_out"]
FIT: Part = "fit"
HELD_OUT: Part = "held_out"


def part(configuration: str) -> Part:
    """The part that all rows of a configuration belong to.

    The first 8 bytes of the SHA-256 of its text (UTF-8), as a big-endian integer, modulo 10: 0 to 5 is ``fit``. There
    is no salt and no seed, so that anyone can repeat it, and nobody could choose it.

    Args:
        configuration: As in ``Row.configuration``.

    Returns:
        ``fit`` or ``held_out``.
    """
    digest = hashlib.sha256(configuration.encode("utf-8")).digest()
    return FIT if int.from_bytes(digest[:8], "big") % 10 < 6 else HELD_OUT
