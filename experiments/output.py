"""Where results go: tables for people on standard output, JSON for programs, progress on standard error."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..simulator.errors import InputError
from ..simulator.files import whole


def _writable(json_file: str | None) -> str | None:
    """Refuses a place that cannot be written to before the work is done rather than after."""
    if json_file not in (None, "-") and not Path(json_file).absolute().parent.is_dir():
        raise InputError(f"--json {json_file}", "its folder does not exist", "Make the folder first")
    return json_file


JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", callback=_writable, help="Write the result as JSON to this file; - is stdout"
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything that is drawn")]
ScenarioOption = Annotated[str, typer.Option(help="Name of a scenario, or path of a TOML file")]
WorkloadOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="A trace (or the name of a fetched one) in place of the scenario's own"),
]


FILE_WIDTH = 140
"""Columns of output that goes to a file or a pipe, which has no width of its own."""


def people(json_file: str | None) -> Console:
    """The console for people: standard output, unless JSON has it for itself."""
    console = Console(stderr=json_file == "-", highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    return console


def announce_compilation() -> None:
    """Says why the first run takes longer, where the engine is not compiled yet."""
    from ..simulator.kernels.compile import is_compiled  # numba is loaded only by those who need it

    if not is_compiled():
        Console(stderr=True).print("compiling the engine; only the first run does, and it takes about half a minute")


def progress_bar(console: Console | None = None) -> Progress:
    """A bar with counts and times, on standard error by default."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console or Console(stderr=True))


def tell(text: str) -> None:
    """Warns in a line on standard error."""
    Console(stderr=True, highlight=False).print(f"warning: {text}", markup=False, soft_wrap=True)


@contextmanager
def plain_warnings(kind: type[Warning]) -> Iterator[list[str]]:
    """Tells each warning of a kind once, in a line of its own without the line of code it comes from; yields them."""
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", kind)
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, kind):
                usual(message, category, filename, lineno, file, line)
            elif str(message) not in told:
                told.append(str(message))
                tell(str(message))

        warnings.showwarning = show
        yield told


def write_json(result: dict[str, Any], json_file: str | None) -> None:
    """Writes ``result`` to a file, whole or not at all, or to standard output; without a file, nowhere."""
    if json_file is None:
        return
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if json_file == "-":
        sys.stdout.write(text)
        return
    with whole(Path(json_file)) as partial:
        partial.write_text(text, encoding="utf-8")
