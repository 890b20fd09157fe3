"""What backends are believed to have in their prefix caches: the beginnings of prompts that were sent to them.

The true content is the engine's affair. As vLLM's cache, this one forgets what was least recently used, and matches
whole units from the beginning; a unit is known by a hash of itself and all before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Hashes of units, the most recently used last.

    Args:
        most: How many it holds.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._units: OrderedDict[int, None] = OrderedDict()

    def hits(self, prefix: Sequence[int]) -> int:
        """How many leading units are here."""
        found = 0
        while found < len(prefix) and prefix[found] in self._units:
            found += 1
        return found

    def add(self, prefix: Sequence[int]) -> None:
        """A prompt was sent. Its end is forgotten before its beginning, without which it would be of no use."""
        for unit in reversed(prefix):
            self._units[unit] = None
            self._units.move_to_end(unit)
        while len(self._units) > self._most:
            self._units.popitem(last=False)


def units_of(prompt: str | Sequence[int], size: int) -> tuple[int, ...]:
    """Hashes of a prompt's whole units of ``size`` characters or token ids."""
    hashes, before = [], 0
    for end in range(size, len(prompt) + 1, size):
        unit = prompt[end - size : end]
        before = hash((before, unit if isinstance(unit, str) else tuple(unit)))
        hashes.append(before)
    return tuple(hashes)
