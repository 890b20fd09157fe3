"""The command line: ``llmcluster VERB``. Verbs import what they need when they run, so that help is quick."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from typer.exceptions import TyperException

from .. import __version__
from ..simulator.errors import InputError
from .output import (
    JsonOption,
    ScenarioOption,
    SeedOption,
    WorkloadOption,
    announce_compilation,
    people,
    progress_bar,
    write_json,
)

if TYPE_CHECKING:
    from ..simulator.cluster import EngineName

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="A simulator of LLM-serving GPU clusters, as a Gymnasium environment, with agents that run it.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version")
    ] = False,
) -> None:
    """Options that go before the verb."""


@app.command(
    epilog="Example: llmcluster simulate --workload trace.csv --agent least-outstanding --out runs/one --json -"
)
def simulate(
    scenario: ScenarioOption = "default",
    workload: WorkloadOption = None,
    agent: Annotated[str, typer.Option(help="Name of an agent, or a folder that `train` wrote")] = "least-outstanding",
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for requests.parquet and seconds.parquet")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Play a workload larger than memory in chunks; needs --workload and --out")
    ] = False,
    engine: Annotated[str, typer.Option(help="compiled, or reference: one SimPy event per iteration")] = "compiled",
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a trace for ui.perfetto.dev; needs --engine reference"),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Run one agent through a workload, to the last token, and report latency, tokens and energy.

    With `--stream`, no agent acts: `--agent` names the router (round-robin, least-outstanding, power-of-two or
    prefix-affinity), and all slots stay as they are.
    """
    from ..envs.scenario import load_scenario
    from ..envs.traces import read_trace
    from .simulate import simulate as run
    from .simulate import write_tables
    from .summary import print_summary

    chosen = load_scenario(scenario)
    if stream:
        from .stream import simulate_stream

        if workload is None or out is None:
            raise InputError("--stream", "needs a trace and a folder", "Give --workload FILE and --out FOLDER")
        if engine != "compiled" or trace is not None:
            raise InputError("--stream", "runs on the compiled engine alone", "Leave out --engine and --trace")
        announce_compilation()
        with progress_bar() as progress:
            result = simulate_stream(chosen, workload, agent, seed, out, progress)
        for key, value in result.items():
            people(json_file).print(f"{key}: {value}", markup=False)
        write_json(result, json_file)
        return
    requests = read_trace(workload) if workload else None
    announce_compilation()
    with progress_bar() as progress:
        plant, result = run(chosen, agent, seed, progress, requests, cast("EngineName", engine), trace)
    console = people(json_file)
    print_summary(result, console)
    if out is not None:
        for name, path in write_tables(plant, out).items():
            console.print(f"{name}: {path}")
    if trace is not None:
        console.print(f"trace: {trace} (open it at ui.perfetto.dev)")
    write_json(result, json_file)


@app.command(epilog="Example: llmcluster train --algo maskable-ppo --timesteps 300000 --out runs/ppo")
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; give it again to go on after a stop")],
    algo: Annotated[str, typer.Option(help="ppo or maskable-ppo")] = "ppo",
    scenario: ScenarioOption = "default",
    workload: WorkloadOption = None,
    timesteps: Annotated[int, typer.Option(min=1, help="Environment steps in all")] = 300_000,
    seed: SeedOption = 0,
    parallel: Annotated[bool, typer.Option(help="Step every environment in a process of its own")] = False,
    json_file: JsonOption = None,
) -> None:
    """Train an agent. TensorBoard logs and checkpoints go into the folder; a killed run goes on where it was."""
    from ..envs.scenario import load_scenario
    from .splits import Split
    from .train import TrainConfig, use_one_thread
    from .train import train as run

    use_one_thread()
    config = TrainConfig(algo, load_scenario(scenario), timesteps, seed, parallel=parallel)
    if workload:
        split = Split(config.scenario, workload, out.with_name(f"{out.name}-workload"))
        config = replace(config, scenario=split.scenario("training"))
    console = people(json_file)
    announce_compilation()
    result = run(config, out, people("-"))
    console.print(f"{result['timesteps']:,} steps, {result['timesteps_now']:,} of them now: {out}")
    write_json(result, json_file)


@app.command(epilog="Example: llmcluster doctor --json -")
def doctor(json_file: JsonOption = None) -> None:
    """Show what is installed, compiled and reachable here."""
    from .doctor import examine

    facts = examine()
    console = people(json_file)
    for key, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        console.print(f"{key}: {shown or 'none'}", markup=False)
    write_json(facts, json_file)


def _add_groups() -> None:
    from .bench.verbs import app as bench
    from .data import app as data
    from .deploy_verbs import app as deploy
    from .evaluate_verb import EXAMPLE, evaluate_command
    from .fidelity.verbs import calibrate_command, validate_command
    from .forecast import app as forecast

    app.command("evaluate", epilog=EXAMPLE)(evaluate_command)
    app.command("validate", epilog="Example: llmcluster validate energy-inference grid.csv --json -")(validate_command)
    app.command("calibrate", epilog="Example: llmcluster calibrate energy-inference grid.csv --out figures.toml")(
        calibrate_command
    )
    app.add_typer(data, name="data")
    app.add_typer(bench, name="bench")
    app.add_typer(forecast, name="forecast")
    app.add_typer(deploy, name="deploy")


def main() -> None:
    """Runs the command line; exits with 0 on success, 2 on bad input, 1 if interrupted or if a verb found fault."""
    _add_groups()
    try:
        if ended := app(standalone_mode=False):
            sys.exit(ended)
    except InputError as fault:
        typer.echo(f"error: {fault}", err=True)
        sys.exit(2)
    except TyperException as fault:
        # Without a message it is the help, which has been shown.
        if str(fault):
            typer.echo(f"error: {fault.format_message().rstrip('.')}. See `llmcluster --help`.", err=True)
        sys.exit(2)
    except OSError as fault:
        typer.echo(f"error: {fault.filename}: {fault.strerror}. Check the path.", err=True)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("interrupted", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
