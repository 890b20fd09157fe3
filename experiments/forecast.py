"""The verb `llmcluster forecast`: models of GPU power 30 s and 60 s ahead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from .output import JsonOption, SeedOption, people, progress_bar, write_json

if TYPE_CHECKING:
    from ..forecaster.telemetry import Options, Telemetry

LISTS = ("--train", "--test")

app = typer.Typer(help="Forecasts of GPU power 30 s and 60 s ahead.", no_args_is_help=True)


class ManyFiles(TyperCommand):
    """A command whose ``--train`` and ``--test`` take all files that follow them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Names the option again before every further file of its list."""
        return super().parse_args(ctx, spread(args))


def spread(arguments: list[str]) -> list[str]:
    """``--train a b`` as ``--train a --train b``."""
    out: list[str] = []
    option = None
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument.startswith("-"):
            option = argument if argument in LISTS else None
        elif option and before != option:
            out.append(option)
        out.append(argument)
    return out


@app.command(
    "backtest",
    cls=ManyFiles,
    epilog="Example: llmcluster forecast backtest --train monday.csv tuesday.csv --test friday.csv --json -",
)
def backtest_command(
    test: Annotated[
        list[str], typer.Option(metavar="FILE…", help="Telemetry to judge on; POWER+ENGINE joins two files")
    ],
    train: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE…", help="Telemetry to fit on; without it, each test file's own past, fold by fold"),
    ] = None,
    models: Annotated[str | None, typer.Option(help="Names of models, by comma; the naive ones by default")] = None,
    folds: Annotated[int, typer.Option(min=1, help="Folds of each test file where there is no --train")] = 4,
    layout: Annotated[str | None, typer.Option(help="Layout of the files; told from each by default")] = None,
    zone: Annotated[str, typer.Option(help="Time zone of local time stamps: Europe/Berlin")] = "UTC",
    max_gap: Annotated[float, typer.Option(min=0.0, help="Readings further apart than this, in s, have a gap")] = 1.5,
    period: Annotated[float, typer.Option(min=0.0, help="Time between readings, in s, of files without stamps")] = 0.25,
    columns: Annotated[str, typer.Option(help="Queries of nvidia-smi files without header, by comma")] = "",
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Judge models on telemetry they have not seen, with a forecast every second.

    Targets are power 30 s and 60 s ahead, and its mean until then. Errors are in watts, with 95 % intervals by a block
    bootstrap. Skill is 1 - MAE over that of the naive model with the lowest MAE on the same seconds.
    """
    from ..forecaster.models import NAIVE
    from ..forecaster.telemetry import Options
    from .forecast_backtest import backtest, folds_of

    names = [name.strip() for name in (models or ",".join(NAIVE)).split(",") if name.strip()]
    queries = tuple(name.strip() for name in columns.split(",") if name.strip())
    options = Options(zone, max_gap, queries, period)
    training, tests = ([_read(file, layout, options) for file in files] for files in (train or [], test))
    console = people(json_file)
    warnings = [warning for telemetry in (*training, *tests) for warning in telemetry.warnings]
    for warning in dict.fromkeys(warnings):
        Console(stderr=True).print(f"warning: {warning}", markup=False, soft_wrap=True)
    parts = folds_of(training, tests, folds)
    with progress_bar() as progress:
        bar = progress.add_task("backtesting", total=len(parts) * len(dict.fromkeys([*NAIVE, *names])))
        result = backtest(parts, names, seed, lambda: progress.advance(bar))
    result = {"train": train or [], "test": test, "warnings": list(dict.fromkeys(warnings)), **result}
    _print(result, console)
    write_json(result, json_file)


def _read(file: str, layout: str | None, options: Options) -> Telemetry:
    """A file of power, with the engine's counters that a + joins to it."""
    from dataclasses import replace

    from ..forecaster.telemetry import read_telemetry

    power, plus, engine = file.partition("+")
    if plus and not Path(file).exists():
        return read_telemetry(Path(power), layout, replace(options, engine=Path(engine)))
    return read_telemetry(Path(file), layout, options)


def _print(result: dict[str, Any], console: Console) -> None:
    for target, naive in result["best_naive"].items():
        table = Table("model", box=box.SIMPLE, title=f"{target}: the best naive model is {naive}", title_justify="left")
        for heading in ("MAE, W", "95 %", "RMSE, W", "pinball, W", "covered of 80 %", "skill", "95 %"):
            table.add_column(heading, justify="right")
        for model, targets in sorted(result["results"].items(), key=lambda row: row[1][target]["mae_w"]):
            row, bounds = targets[target], targets[target]["intervals"]
            table.add_row(
                model,
                f"{row['mae_w']:.2f}",
                _range(bounds["mae_w"], "{:.2f}"),
                f"{row['rmse_w']:.2f}",
                f"{row['pinball_w']:.2f}",
                f"{row['coverage_80']:.1%}",
                "-" if row["skill"] is None else f"{row['skill']:+.1%}",
                _range(bounds["skill"], "{:+.1%}"),
            )
        console.print(table)
    for source, lags in result["autocorrelation"].items():
        console.print(
            f"{source}: autocorrelation {', '.join(f'{r:.2f} at {lag}' for lag, r in lags.items())}", markup=False
        )
    console.print(f"{result['forecasts']:,} forecasts of each model over {result['seconds']:,} s", style="dim")


def _range(bounds: list[float | None], form: str) -> str:
    return "-" if None in bounds else " to ".join(form.format(bound) for bound in bounds)
