"""What goes wrong with the machines around a running cluster, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

from .readings import ReadingError


class DeployError(ReadingError):
    """A part did not do what it was asked for.

    Args:
        where: The part at fault.
        problem: What is wrong with it; what is usually wrong if not given.
    """

    problem = "it failed"
    remedy = "Look at its log"

    def __init__(self, where: str, problem: str | None = None) -> None:
        super().__init__(where, problem)
        self.where = where
        self.problem = problem or self.problem

    def __str__(self) -> str:
        """The message."""
        return f"{self.where}: {self.problem}. {self.remedy}"


def by_name(name: str, where: str, problem: str) -> DeployError:
    """The exception whose class has that name, made anew on the other side of a socket."""
    kinds = {kind.__name__: kind for kind in _kinds(DeployError)}
    return kinds.get(name, DeployError)(where, problem)


def _kinds(kind: type[DeployError]) -> Iterator[type[DeployError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)
