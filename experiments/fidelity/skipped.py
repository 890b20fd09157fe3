"""Why rows are not simulated, or not compared."""

from __future__ import annotations

from dataclasses import dataclass

from ...simulator.catalog import Catalog
from ...simulator.errors import InputError


@dataclass(frozen=True, order=True)
class Skipped:
    """What a source gives for a row that it cannot simulate.

    Attributes:
        reason: What stands against it; the same for all rows that it holds of, so that they can be counted.
        remedy: What to do about it.
    """

    reason: str
    remedy: str

    @classmethod
    def of(cls, fault: InputError) -> Skipped:
        """A row that the simulator refuses."""
        return cls(f"{fault.where}: {fault.problem}", fault.remedy)

    def __str__(self) -> str:
        """Both, for people."""
        return f"{self.reason}. {self.remedy}"


ZERO = Skipped("measured as 0, of which nothing is a share", "Correct the cell, or leave it empty")
NO_FIGURE = Skipped("the simulation has no finite figure for it", "The row's other quantities are compared")


def missing(catalog: Catalog, *, gpu: str, model: str | None = None) -> Skipped | None:
    """That the catalogue lacks a row's GPU or model; none where it has them."""
    asked = {"GPU": (catalog.gpu, gpu)} | ({"model": (catalog.model, model)} if model is not None else {})
    for kind, (find, name) in asked.items():
        try:
            find(name)
        except InputError:
            return Skipped(f"the catalogue has no {kind} {name}", "Give its entry with --catalog FILE")
    return None
