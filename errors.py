"""The one error that users cause and can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: a file, a field or an argument that does not hold, with what to do instead.

    The command line prints the message and exits with 2.

    Args:
        where: The file and line, or the field, at fault (``trace.csv:17``, ``cluster.servers[0].tp``).
        problem: What is wrong with it.
        remedy: What to do instead.
    """

    def __init__(self, where: str, problem: str, remedy: str) -> None:
        # All three are the exception's arguments, so that SimPy and other processes can make it anew.
        super().__init__(where, problem, remedy)
        self.where, self.problem, self.remedy = where, problem, remedy

    def __str__(self) -> str:
        """The message."""
        return f"{self.where}: {self.problem}. {self.remedy}"
