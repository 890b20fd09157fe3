"""The verbs `llmcluster validate` and `llmcluster calibrate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..output import JsonOption, SeedOption, announce_compilation, people, progress_bar, write_json
from .registry import SOURCES, load

if TYPE_CHECKING:
    from .source import Advance

SourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help=f"One of {', '.join(SOURCES)}")]
FilesArgument = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Measured files of the source's layout")]
CatalogOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="TOML file whose GPUs, models and figures are added to the built-in")
]


def validate_command(
    source: SourceArgument,
    files: FilesArgument,
    catalog: CatalogOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Write every row beside what was simulated of it")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Say how far the simulator is from measured rows: median errors with 95 % intervals. Nothing is fitted.

    Errors are relative to what was measured, by quantity, over all rows and by GPU, model and part of the split.
    """
    from ...simulator.catalog import Catalog
    from .figures import with_file
    from .show import print_validation
    from .validate import as_json, check_folder, read, validate, write_rows

    check_folder(out)
    chosen, known = load(source), Catalog.builtin()
    if catalog is not None:
        chosen, known = with_file(chosen, known, catalog)
    rows = read(chosen, files, known)
    announce_compilation()
    with _bar("simulating rows", len(rows)) as advance:
        result = validate(chosen, rows, known, seed, advance)
    console = people(json_file)
    print_validation(result, console)
    if out is not None:
        write_rows(result.comparison, out)
        console.print(f"rows: {out}", markup=False)
    write_json(as_json(result), json_file)


def calibrate_command(
    source: SourceArgument,
    files: FilesArgument,
    out: Annotated[Path, typer.Option(metavar="TOML", help="Write the fitted figures here, for --catalog")],
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Fit to the held-out rows too, which then tell nothing more")
    ] = False,
    catalog: CatalogOption = None,
    seed: SeedOption = 0,
    bootstrap: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Intervals from N fits to resampled configurations; else the source's"),
    ] = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-one-model-out", help="Also predict each model from figures fitted to the others")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Fit figures of the catalogue to measured rows, and write them as a TOML file.

    Only rows of the split's fit part are looked at. Prints the figures with 95 % intervals, and the residuals.
    """
    import numpy as np

    from ...simulator.catalog import Catalog
    from .calibrate import as_json, calibrate, calibrated, header, spread
    from .figures import with_file, write_toml
    from .leave_out import leave_one_model_out
    from .show import print_calibration, print_left_out
    from .validate import check_folder, read

    check_folder(out)
    chosen, known = load(source), Catalog.builtin()
    if catalog is not None:
        chosen, known = with_file(chosen, known, catalog)
    fitting = calibrated(chosen)
    rows = read(fitting, files, known)
    announce_compilation()
    rng = np.random.default_rng(seed)
    with _bar("fitting", None) as advance:
        result = calibrate(fitting, rows, known, rng, advance, all_rows=all_rows, bootstrap=bootstrap)
    console = people(json_file)
    print_calibration(result, console)
    write_toml(result.tables, header(result, files), out, fitting, known)
    console.print(f"figures: {out}", markup=False)
    told: dict[str, Any] = {**as_json(result, files), "out": str(out)}
    if leave_out:
        models = len({row.groups.get("model") for row in rows})
        with _bar("leaving one model out", models) as advance:
            left_out = leave_one_model_out(fitting, rows, known, seed, rng, advance)
        print_left_out(left_out, fitting.quantities, console)
        told["leave_one_model_out"] = {
            **spread(left_out.summaries(rng)),
            "models": {m: spread(left_out.chosen(i).summaries(rng)) for m, i in left_out.groups["model"].items()},
            "skipped": [one.as_json() for one in left_out.omissions],
        }
    write_json(told, json_file)


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Advance]:
    """A progress bar on standard error."""
    with progress_bar() as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
