"""The verbs `llmcluster deploy …`: agents on real GPUs, and the rehearsal without any."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..simulator.errors import InputError
from .output import JsonOption, ScenarioOption, SeedOption, announce_compilation, people, write_json

app = typer.Typer(
    help="Agents on real GPUs: loop, gateway, keeper, recorder; and the rehearsal without any.", no_args_is_help=True
)
EXTRA = ("aiohttp", "httptools", "prometheus_client", "starlette", "uvicorn", "uvloop")

ConfigOption = Annotated[Path, typer.Option("--config", metavar="TOML", help="See `llmcluster deploy init`")]
AgentOption = Annotated[str, typer.Option(help="Name of an agent, or a folder that `train` wrote")]


@contextmanager
def _explained() -> Iterator[None]:
    """What is missing on this machine becomes a message: a package is bad input (2), the rest ends with 1."""
    from ..deploy.audit import AuditError
    from ..deploy.readings import ReadingError

    try:
        yield
    except ModuleNotFoundError as fault:
        if fault.name not in EXTRA:
            raise
        raise InputError(f"package {fault.name}", "is not installed", "pip install 'llmcluster[deploy]'") from fault
    except (AuditError, ReadingError) as fault:
        typer.echo(f"error: {fault}", err=True)
        raise typer.Exit(1) from fault


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


@app.command("init", epilog="Example: llmcluster deploy init deploy.toml")
def init_command(
    file: Annotated[Path, typer.Argument(help="File to write")] = Path("deploy.toml"),
    json_file: JsonOption = None,
) -> None:
    """Write a commented example of a configuration."""
    with _explained():
        from ..deploy.config import example
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(example())
    except FileExistsError:
        raise InputError(str(file), "is there already", "Name another file") from None
    people(json_file).print(f"{file}: fill in GPUs and addresses, then `llmcluster deploy status --config {file}`")
    write_json({"file": str(file)}, json_file)


@app.command("run", epilog="Example: llmcluster deploy run --config deploy.toml --agent runs/ppo --apply")
def run_command(
    config: ConfigOption,
    agent: AgentOption,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write limits and steer; without, it only says what it would")
    ] = (False),
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds; until SIGTERM or SIGINT by default")] = None,
    json_file: JsonOption = None,
) -> None:
    """Let an agent run a cluster: look, forecast, decide, guard, write; everything is restored at the end.

    Without `--apply` nothing is changed. Every decision and every write is a line of the audit log.
    """
    with _explained():
        from ..deploy.loop import Progress
        from ..deploy.stack import opened_stack, stopped_by_signals

        console = people(json_file)
        announce_compilation()

        def tell(progress: Progress) -> None:
            now, plan = progress.telemetry, progress.plan
            assert now is not None and plan is not None
            who = "agent" if progress.decision else "fallback"
            line = f"{progress.ticks}: {who}, {now.power_w[-1].sum():.0f} of {plan.budget_w:.0f} W"
            troubles = "; ".join(f"{t.kind} {t.what}: {t.text}" for t in progress.troubles)
            with suppress(OSError):  # where output goes to a full disk, the loop goes on
                console.print(line + (f" ({troubles})" if troubles else ""), markup=False)

        with opened_stack(config, agent, apply=apply, told=tell) as stack, stopped_by_signals(stack.loop.stop):
            console.print(f"metrics: {stack.exporter.url}", markup=False)
            if not apply:
                console.print("dry run: nothing is changed; --apply lets it")
            progress = stack.loop.run(duration)
        result = {
            "applied": apply,
            "decisions": progress.ticks,
            "fallbacks": progress.fallbacks,
            "late": progress.late,
        }
        console.print(f"{progress.ticks} decisions, {sum(progress.fallbacks.values())} without the agent")
        write_json(result, json_file)


@app.command("status", epilog="Example: llmcluster deploy status --config deploy.toml --json -")
def status_command(config: ConfigOption, json_file: JsonOption = None) -> None:
    """Show GPUs, servers, gateway and keeper as they are now; 1 if anything is wrong."""
    with _explained():
        from ..deploy.status import status_of

        found = status_of(config)
    console = people(json_file)
    for kind in ("gpus", "engines"):
        for name, told in found[kind].items():
            console.print(f"{name}: {told['fault'] or _line(told)}", markup=False)
    for name in ("gateway", "keeper"):
        console.print(f"{name}: {found[name]['fault'] or 'answers'}", markup=False)
    write_json(found, json_file)
    if not found["sound"]:
        raise typer.Exit(1)


def _line(told: dict[str, Any]) -> str:
    """The figures of a reading in one line."""
    shown = ("power_w", "enforced_w", "temperature_c", "running", "waiting", "kv_used", "asleep")
    return ", ".join(f"{name} {told[name]:g}" for name in shown if told.get(name) is not None)


@app.command("restore", epilog="Example: llmcluster deploy restore --config deploy.toml")
def restore_command(config: ConfigOption, json_file: JsonOption = None) -> None:
    """Set every power limit and clock back to what it was before the loop."""
    with _explained():
        from ..deploy.status import restore

        gpus = restore(config)
    people(json_file).print("everything is as it was")
    write_json({"gpus": gpus}, json_file)


@app.command("record", epilog="Example: llmcluster deploy record --config deploy.toml --out run.csv --duration 3600")
def record_command(
    config: ConfigOption,
    out: Annotated[Path, typer.Option(help="Folder and beginning of the names of the files, such as run.csv")],
    period: Annotated[float, typer.Option(min=0.05, max=10, help="Seconds between readings")] = 0.25,
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds; until SIGTERM or SIGINT by default")] = None,
    json_file: JsonOption = None,
) -> None:
    """Record GPUs and servers, two CSV files a slot, as `forecast`, `calibrate` and `validate power-trace` read them.

    Nothing is changed: it only reads.
    """
    with _explained():
        from ..deploy.recording import record_to
        from ..deploy.stack import stopped_by_signals

        stop = threading.Event()
        with stopped_by_signals(stop.set):
            files, lines = record_to(config, out, period, duration, stop)
    console = people(json_file)
    for file in files:
        console.print(str(file), markup=False)
    write_json({"files": [str(file) for file in files], "lines": lines}, json_file)


@app.command("gateway", epilog="Example: llmcluster deploy gateway --config deploy.toml")
def gateway_command(config: ConfigOption) -> None:
    """Run the gateway: an OpenAI-compatible proxy that the loop steers."""
    with _explained():
        from ..deploy.config import load_config
        from ..deploy.gateway.server import run

        _log_to_stderr()
        run(load_config(config).gateway)


@app.command("keeper", epilog="Example: sudo llmcluster deploy keeper --config /etc/llmcluster/deploy.toml")
def keeper_command(
    config: ConfigOption,
    restore: Annotated[
        bool, typer.Option("--restore", help="Restore what a killed keeper left behind, and end")
    ] = False,
) -> None:
    """Run the keeper: the one small process that may set limits, and restores them when the loop dies.

    It takes the place of this process, so that nothing but what it needs runs with its rights.
    """
    with _explained():
        from ..deploy.config import load_config

        arguments = load_config(config).keeper_arguments()
    command = [sys.executable, "-m", "llmcluster.deploy.keeper", *arguments, *(["--restore"] if restore else [])]
    os.execv(sys.executable, command)


@app.command("sidecar", epilog="Example: llmcluster deploy sidecar --scenario default --agent runs/ppo --port 8090")
def sidecar_command(
    agent: AgentOption,
    scenario: ScenarioOption = "default",
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on")] = 8090,
    tokens: Annotated[
        Path | None, typer.Option(help="File of bearer tokens that callers must give, a line each")
    ] = None,
) -> None:
    """Serve decisions over HTTP: `POST /decide` takes telemetry and answers what the agent would do."""
    with _explained():
        from pydantic import ValidationError

        from ..deploy.sidecar import SidecarConfig, run

        _log_to_stderr()
        announce_compilation()
        try:
            settings = SidecarConfig(agent=agent, scenario=scenario, host=host, port=port, tokens=tokens)
        except ValidationError as fault:
            raise InputError("--host", fault.errors()[0]["msg"], "Give --tokens, or listen at 127.0.0.1") from fault
        run(settings)


def _interrupt() -> None:
    """Ends what is under way as Ctrl-C does, once: nothing interrupts the clearing up."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@app.command("rehearse", epilog="Example: llmcluster deploy rehearse --scenario rehearsal --duration 60 --json -")
def rehearse_command(
    scenario: Annotated[
        str, typer.Option(help="Name of a scenario, `rehearsal`, or path of a TOML file")
    ] = "rehearsal",
    agent: AgentOption = "uniform-cap",
    duration: Annotated[float, typer.Option(min=5, max=3600, help="Seconds of traffic")] = 60.0,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Run the whole stack with no GPU: emulated GPUs and servers, keeper, gateway, loop and clients."""
    with _explained():
        from ..deploy.rehearsal.rehearse import rehearse
        from ..deploy.stack import stopped_by_signals

        announce_compilation()
        with stopped_by_signals(_interrupt):
            report = rehearse(scenario, agent, duration, seed, (sys.executable, "-m", "llmcluster.experiments.cli"))
    console = people(json_file)
    for key, value in report.items():
        console.print(f"{key}: {value}", markup=False)
    write_json(report, json_file)
    if not report["passed"]:
        raise typer.Exit(1)
