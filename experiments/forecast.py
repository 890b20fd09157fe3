"""The verb `llmcluster forecast`: models of GPU power 30 s and 60 s ahead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from ..simulator.errors import InputError
from .output import JsonOption, SeedOption, people, plain_warnings, progress_bar, tell, write_json

if TYPE_CHECKING:
    from ..forecaster.models.learned import TrainSettings
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


TrainOption = Annotated[list[str], typer.Option(metavar="FILE…", help="Telemetry to fit on; POWER+ENGINE joins two")]
LayoutOption = Annotated[str | None, typer.Option(help="Layout of the files; told from each by default")]
ZoneOption = Annotated[str, typer.Option(help="Time zone of local time stamps: Europe/Berlin")]
GapOption = Annotated[float, typer.Option(min=0.0, help="Readings further apart than this, in s, have a gap")]
PeriodOption = Annotated[float, typer.Option(min=0.0, help="Time between readings, in s, of files without stamps")]
ColumnsOption = Annotated[str, typer.Option(help="Queries of nvidia-smi files without header, by comma")]
ScaleOption = Annotated[
    float,
    typer.Option(min=1.0, help="Watts that models see power as shares of; the board's limit for weights as shipped"),
]
TestOption = Annotated[list[str], typer.Option(metavar="FILE…", help="Telemetry to judge on; POWER+ENGINE joins two")]
PastOption = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE…", help="Telemetry to fit on; without it, each test file's own past, fold by fold"),
]
FoldsOption = Annotated[int, typer.Option(min=1, help="Folds of each test file where there is no --train")]
HiddenOption = Annotated[int, typer.Option(min=4, help="Width of a network; a multiple of 4")]
EpochsOption = Annotated[int, typer.Option(min=1, help="Passes over the data at most")]
DeviceOption = Annotated[str, typer.Option(help="Where networks train: cpu, cuda, or auto for a GPU if there is one")]
CovariatesOption = Annotated[
    str | None, typer.Option(help="Covariates that models may read, by comma, or none; all that are there by default")
]


@app.command(
    "train",
    cls=ManyFiles,
    epilog="Example: llmcluster forecast train --model gru --train monday.csv tuesday.csv --out runs/gru",
)
def train_command(
    train: TrainOption,
    out: Annotated[
        Path, typer.Option(help="Folder of the weights and their card; give it again to go on after a stop")
    ],
    model: Annotated[str, typer.Option(help="Name of a model")] = "gru",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds to train with; the one that validates best is kept")] = 3,
    seed: SeedOption = 0,
    hidden: HiddenOption = 32,
    epochs: EpochsOption = 100,
    device: DeviceOption = "auto",
    covariates: CovariatesOption = None,
    layout: LayoutOption = None,
    zone: ZoneOption = "UTC",
    max_gap: GapOption = 1.5,
    period: PeriodOption = 0.25,
    columns: ColumnsOption = "",
    scale: ScaleOption = 1.0,
    json_file: JsonOption = None,
) -> None:
    """Fit a model of power and write its weights and card."""
    from ..forecaster.models import LEARNED, make_model
    from .forecast_train import train as run

    make_model(model)  # an unknown name is told before files are read
    console = people(json_file)
    settings = _settings(hidden, epochs, device, console, trains=model in LEARNED)
    series = _read_all(train, layout, _options(zone, max_gap, columns, period), covariates, scale)
    with progress_bar() as progress:
        bars: dict[int, Any] = {}

        def advance(number: int, done: int, of: int, best: float) -> None:
            if number not in bars:
                bars[number] = progress.add_task(f"seed {number}", total=of)
            progress.update(bars[number], completed=done, description=f"seed {number}: validation {best:.4f}")

        card = run(model, series, range(seed, seed + seeds), settings, out, advance)
    for target, row in card["figures"]["validation"].items():
        console.print(f"{target}: MAE {row['mae_w']:.2f} W on the validation part")
    console.print(f"seed {card['seed']} of {', '.join(card['seeds'])}: {out / model}.safetensors", markup=False)
    write_json(card, json_file)


@app.command(
    "backtest",
    cls=ManyFiles,
    epilog="Example: llmcluster forecast backtest --train monday.csv tuesday.csv --test friday.csv --json -",
)
def backtest_command(
    test: TestOption,
    train: PastOption = None,
    models: Annotated[
        str | None, typer.Option(help="Names of models, or files of weights, by comma; the naive ones by default")
    ] = None,
    folds: FoldsOption = 4,
    covariates: CovariatesOption = None,
    layout: LayoutOption = None,
    zone: ZoneOption = "UTC",
    max_gap: GapOption = 1.5,
    period: PeriodOption = 0.25,
    columns: ColumnsOption = "",
    scale: ScaleOption = 1.0,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Judge models on telemetry they have not seen, with a forecast every second.

    Targets are power 30 s and 60 s ahead, and its mean until then. Errors are in watts, with 95 % intervals by a block
    bootstrap. Skill is 1 - MAE over that of the naive model with the lowest MAE on the same seconds.
    """
    from ..forecaster.models import NAIVE
    from ..forecaster.models.base import UnlikeTraining
    from .forecast_backtest import backtest, check_models, folds_of

    names = _names(models or ",".join(NAIVE))
    check_models(names)
    options = _options(zone, max_gap, columns, period)
    training, tests = (_read_all(files, layout, options, covariates, scale) for files in (train or [], test))
    parts = folds_of(training, tests, folds)
    with progress_bar() as progress, plain_warnings(UnlikeTraining) as unlike:
        bar = progress.add_task("backtesting", total=len(parts) * len(dict.fromkeys([*NAIVE, *names])))
        result = backtest(parts, names, seed, lambda: progress.advance(bar))
    warnings = dict.fromkeys(warning for telemetry in (*training, *tests) for warning in telemetry.warnings)
    result = {"train": train or [], "test": test, "scale_w": scale, "warnings": [*warnings, *unlike], **result}
    _print(result, people(json_file))
    write_json(result, json_file)


@app.command(
    "compare",
    cls=ManyFiles,
    epilog="Example: llmcluster forecast compare --test w1.csv w2.csv --across --models ridge-ar,gru --out table.md",
)
def compare_command(
    test: TestOption,
    train: PastOption = None,
    across: Annotated[bool, typer.Option("--across", help="Fit on each test file and judge on each other one, too")] = (
        False
    ),
    models: Annotated[str | None, typer.Option(help="Names or files of weights, by comma; all by default")] = None,
    folds: FoldsOption = 4,
    hidden: HiddenOption = 32,
    epochs: EpochsOption = 100,
    device: DeviceOption = "auto",
    covariates: CovariatesOption = None,
    layout: LayoutOption = None,
    zone: ZoneOption = "UTC",
    max_gap: GapOption = 1.5,
    period: PeriodOption = 0.25,
    columns: ColumnsOption = "",
    scale: ScaleOption = 1.0,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables as Markdown")] = None,
    json_file: JsonOption = None,
) -> None:
    """Set models side by side on every series: a table for each target, of skill over the best naive model."""
    from ..files import whole
    from ..forecaster.models import LEARNED, MODELS, NAIVE
    from ..forecaster.models.base import UnlikeTraining
    from .forecast_backtest import check_models
    from .forecast_compare import cases_of, compare, markdown, tables

    names = _names(models or ",".join(MODELS))
    check_models(names)
    console = people(json_file)
    settings = _settings(hidden, epochs, device, console, trains=any(name in LEARNED for name in names))
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}", "its folder does not exist", "Make the folder first")
    options = _options(zone, max_gap, columns, period)
    training, tests = (_read_all(files, layout, options, covariates, scale) for files in (train or [], test))
    cases = cases_of(training, tests, folds, across=across)
    with progress_bar() as progress, plain_warnings(UnlikeTraining) as unlike:
        total = sum(len(parts) for _, parts in cases) * len(dict.fromkeys([*NAIVE, *names]))
        bar = progress.add_task("comparing", total=total)
        result = compare(cases, names, seed, lambda: progress.advance(bar), settings)
    result["scale_w"], result["warnings"] = scale, unlike
    for target, headings, rows in tables(result):
        table = Table(*headings, box=box.SIMPLE, title=target, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if out is not None:
        with whole(out) as partial:
            partial.write_text(markdown(result), encoding="utf-8")
    write_json(result, json_file)


@app.command("value", epilog="Example: llmcluster forecast value --scenario power-budget --episodes 30 --json -")
def value_command(
    scenario: Annotated[str, typer.Option(help="Name of a scenario, or path of a TOML file")] = "default",
    agent: Annotated[str, typer.Option(help="Controller, tuned for each forecaster alike")] = "follow-power",
    forecasters: Annotated[
        str,
        typer.Option(help="none, persistence, gru, oracle, or files of weights, by comma; the first is compared to"),
    ] = "none,persistence,gru,oracle",
    episodes: Annotated[int, typer.Option(min=1, help="Held-out episodes")] = 30,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Show what a forecast is worth to a controller, on the same traffic with each forecaster."""
    from ..envs.scenario import load_scenario
    from .forecast_value import check, value
    from .output import announce_compilation

    chosen, names = load_scenario(scenario), _names(forecasters)
    total = (check(chosen, agent, names) + episodes) * len(names)
    announce_compilation()
    with progress_bar() as progress:
        bar = progress.add_task("playing", total=total)
        result = value(chosen, agent, names, episodes, seed, lambda: progress.advance(bar))
    _print_value(result, people(json_file))
    write_json(result, json_file)


def _print_value(result: dict[str, Any], console: Console) -> None:
    title = f"{result['agent']} on {result['scenario']}, {result['episodes']} held-out episodes"
    table = Table("forecaster", box=box.SIMPLE, title=title, title_justify="left")
    for heading in ("reward", "95 %", f"difference to {result['reference']}", "95 %"):
        table.add_column(heading, justify="right")
    table.add_column("chosen on validation traffic")
    for name, row in result["results"].items():
        (mean, *bounds), (gap, *gap_bounds) = row["reward"], row["difference"]
        label = f"{name} †" if row["clairvoyant"] else name
        table.add_row(
            label, f"{mean:.1f}", _range(bounds, "{:.1f}"), f"{gap:+.1f}", _range(gap_bounds, "{:+.1f}"), row["chosen"]
        )
    console.print(table)
    if any(row["clairvoyant"] for row in result["results"].values()):
        console.print("† knows the arrivals to come, so it does not compete", style="dim")


def _settings(hidden: int, epochs: int, device: str, console: Console, *, trains: bool) -> TrainSettings:
    """How networks are trained, where there are any to train: then it says on which device."""
    from dataclasses import replace

    from ..forecaster.models.learned import TrainSettings

    if hidden % 4:
        raise InputError(f"--hidden {hidden}", "is no multiple of 4", "Give 32, say")
    settings = TrainSettings(hidden=hidden, epochs=epochs, device=device)
    if not trains:
        return settings
    from ..forecaster.training import device_of  # PyTorch is loaded only by those who train

    chosen = device_of(device)
    console.print(f"networks train on {chosen}", style="dim")
    return replace(settings, device=chosen)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _options(zone: str, max_gap: float, columns: str, period: float) -> Options:
    from ..forecaster.telemetry import Options

    return Options(zone, max_gap, tuple(_names(columns)), period)


def _read_all(
    files: list[str], layout: str | None, options: Options, covariates: str | None, scale_w: float
) -> list[Telemetry]:
    """Files of power with the covariates that are asked for; what was left out on reading is told."""
    from dataclasses import replace

    import numpy as np

    series = [_read(file, layout, options) for file in files]
    series = [replace(t, scale_w=np.full(len(t.channels), scale_w)) for t in series]
    for warning in dict.fromkeys(warning for telemetry in series for warning in telemetry.warnings):
        tell(warning)
    if covariates is None:
        return series
    wanted = [] if covariates == "none" else _names(covariates)
    for telemetry in series:
        if missing := [name for name in wanted if name not in telemetry.covariates]:
            there = " or ".join(filter(None, [", ".join(telemetry.covariates), "none"]))
            raise InputError(telemetry.source, f"has no covariate {missing[0]}", f"Give --covariates {there}")
    return [replace(t, covariates={name: t.covariates[name] for name in wanted}) for t in series]


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
