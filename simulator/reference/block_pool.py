"""The paged KV cache of one slot: the queue of free blocks, and the prefix cache in it (after vLLM's ``BlockPool``)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Unit:
    """Blocks that stay together: those under one prefix hash, or a run of free ones.

    Attributes:
        blocks: How many.
        hash: Under which others find them, if they are registered.
        holders: Requests that hold them; without one, they are in the queue of free blocks.
    """

    blocks: int
    hash: int | None = None
    holders: int = 0


class BlockPool:
    """KV blocks of one slot.

    Args:
        blocks: How many there are.
        unit_blocks: Blocks under one prefix hash.
    """

    def __init__(self, blocks: int, unit_blocks: int) -> None:
        self.blocks = self.free = blocks
        self._unit_blocks = unit_blocks
        self._queue: OrderedDict[Unit, None] = OrderedDict({Unit(blocks): None})
        self._registered: dict[int, Unit] = {}

    def find(self, hashes: Iterable[int]) -> list[Unit]:
        """The longest run of leading units that are cached."""
        units: list[Unit] = []
        for prefix_hash in hashes:
            unit = self._registered.get(prefix_hash)
            if unit is None:
                break
            units.append(unit)
        return units

    def hold(self, units: Iterable[Unit]) -> None:
        """One more request holds ``units``; those that were free leave the queue."""
        for unit in units:
            if unit.holders == 0:
                del self._queue[unit]
                self.free -= unit.blocks
            unit.holders += 1

    def take(self, blocks: int) -> None:
        """Takes free blocks from the front of the queue; a registered unit that loses one is forgotten."""
        self.free -= blocks
        while blocks > 0:
            unit = next(iter(self._queue))
            if unit.hash is not None:
                del self._registered[unit.hash]
                unit.hash = None
            taken = min(blocks, unit.blocks)
            unit.blocks -= taken
            blocks -= taken
            if unit.blocks == 0:
                del self._queue[unit]

    def register(self, prefix_hash: int) -> Unit:
        """A unit of blocks that a request has taken; it is a copy without a hash if that is registered already."""
        unit = Unit(self._unit_blocks, holders=1)
        if prefix_hash not in self._registered:
            unit.hash = prefix_hash
            self._registered[prefix_hash] = unit
        return unit

    def give_back(self, blocks: int, units: Sequence[Unit]) -> None:
        """Frees what one request holds: ``blocks`` of which the first are in ``units``, from the last to the first."""
        behind = blocks - sum(unit.blocks for unit in units)
        if behind:
            self._append(Unit(behind))
        for unit in reversed(units):
            unit.holders -= 1
            if unit.holders == 0:
                self._append(unit)

    def _append(self, unit: Unit) -> None:
        self._queue[unit] = None
        self.free += unit.blocks
