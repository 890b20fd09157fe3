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
        self.where, self.problem, self.remedy = where, problem, remedy
        super().__init__(f"{where}: {problem}. {remedy}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        """Lets the error pass from one process to another."""
        return type(self), (self.where, self.problem, self.remedy)
