"""The verbs of `llmcluster bench`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ...simulator.errors import InputError
from ..output import JsonOption, SeedOption, announce_compilation, people, progress_bar, write_json

app = typer.Typer(
    help="Speed of engine, environment, forecasts and gateway, and a day of a large cluster.", no_args_is_help=True
)

GpuOption = Annotated[str, typer.Option(help="Name of a GPU in the catalogue")]
ModelOption = Annotated[str, typer.Option(help="Name of a model in the catalogue")]


@app.command("engine", epilog="Example: llmcluster bench engine --workload trace.csv --repeat 50 --replicas 8 --json -")
def engine_command(
    workload: Annotated[str, typer.Option(metavar="FILE", help="A trace, or the name of a fetched one")],
    repeat: Annotated[int, typer.Option(min=1, help="Play it this many times over")] = 1,
    rate_factor: Annotated[float, typer.Option(help="Play it this many times as fast")] = 1.0,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas of the model")] = 8,
    gpu: GpuOption = "H100-80GB",
    model: ModelOption = "Llama-3.1-8B",
    tp: Annotated[int, typer.Option(min=1, max=16, help="GPUs per replica (tensor parallelism)")] = 1,
    router: Annotated[str, typer.Option(help="How requests are dealt; load-aware ones run replicas in step")] = (
        "round-robin"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Runs; the fastest counts")] = 3,
    compile: Annotated[bool, typer.Option("--compile", help="Measure a cold compile, in a process of its own")] = False,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Fit the cost per request, per output token and per second of a slot")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time goes")] = False,
    json_file: JsonOption = None,
) -> None:
    """Time the engine on a workload: requests per second on one core, with power, meters and heat on.

    Only the simulation is timed. `compile_s` is what this process spends on compiling, 0 if the cache holds the code;
    with `--compile`, what a process with an empty cache spends.
    """
    from ...simulator.workload.combine import repeat as repeat_table
    from ...simulator.workload.formats import read_workload
    from ...simulator.workload.traces import resolve
    from .compilation import cold_compile_s, compile_s
    from .engine import bytes_per_request, measure
    from .engine import profile as profile_run
    from .scaling import FACTORS, SIZES
    from .scaling import scaling as scaling_runs
    from .setup import Setup
    from .tables import print_engine

    began = time.perf_counter()
    requests = read_workload(resolve(workload))
    loaded = time.perf_counter()
    requests = repeat_table(requests.scaled(rate_factor), repeat)
    repeated = time.perf_counter()
    setup = Setup(gpu, model, tp, replicas, router)
    setup.blueprint()
    announce_compilation()
    compiling_s = compile_s()
    total = rounds * (1 + (len(SIZES) + len(FACTORS) if scaling else 0))
    with progress_bar() as progress:
        bar = progress.add_task("simulating", total=total)

        def tick() -> None:
            progress.advance(bar)

        result: dict[str, Any] = {
            "engine": "compiled",
            "workload": workload,
            "repeat": repeat,
            "rate_factor": rate_factor,
            "gpu": gpu,
            "model": model,
            "tp": tp,
            "replicas": replicas,
            "router": router,
            **measure(setup, requests, rounds, tick),
            "bytes_per_request": bytes_per_request(setup, requests),
            "compile_s": cold_compile_s() if compile else compiling_s,
            "load_s": loaded - began,
            "repeat_s": repeated - loaded,
        }
        if scaling:
            result["scaling"] = scaling_runs(setup, requests, rounds, tick)
        if profile:
            result["profile"] = profile_run(setup, requests)
    print_engine(result, people(json_file))
    write_json(result, json_file)


@app.command("forecast", epilog="Example: llmcluster bench forecast --forecaster gru --json -")
def forecast_command(
    forecaster: Annotated[str, typer.Option(help="none, persistence, gru, or a file of weights")] = "gru",
    rounds: Annotated[int, typer.Option(min=1, help="Updates; their median counts")] = 2000,
    json_file: JsonOption = None,
) -> None:
    """Time a forecaster's updates, at 8 and 64 slots, for one metered second and for ten, and all of it in the loop."""
    from .forecast import measure

    result = measure(forecaster, rounds)
    for slots, by_seconds in result["update_us"].items():
        for seconds, update_us in by_seconds.items():
            people(json_file).print(f"{slots} slots, {seconds} s of samples: {update_us:.1f} µs")
    for slots, perception_us in result["perception_us"].items():
        people(json_file).print(f"{slots} slots, readings and update of a tick of 10 s: {perception_us:.1f} µs")
    write_json(result, json_file)


@app.command("env", epilog="Example: llmcluster bench env --scenario default --copies 8 --json -")
def env_command(
    scenario: Annotated[str, typer.Option(help="Name or file of a scenario")] = "default",
    copies: Annotated[int, typer.Option(min=1, help="Copies of the vector environment")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Episodes of each kind; the fastest counts")] = 3,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Time a reset and a step of the environment, alone and in several copies that advance at once.

    Only `reset` and `step` are timed, on one core, under actions that let all slots serve at full power.
    """
    from ...envs.scenario import load_scenario
    from .compilation import compile_s
    from .environment import measure_env
    from .tables import print_env

    loaded = load_scenario(scenario)
    announce_compilation()
    compiling_s = compile_s()
    with progress_bar() as progress:
        bar = progress.add_task("playing", total=2 * rounds)
        measured = measure_env(loaded, copies, rounds, seed, lambda: progress.advance(bar))
    result = {**measured, "compile_s": compiling_s}
    print_env(result, people(json_file))
    write_json(result, json_file)


@app.command("gateway", epilog="Example: llmcluster bench gateway --streams 1000 --tokens-per-s 20 --json -")
def gateway_command(
    requests: Annotated[int, typer.Option(min=1, help="Short requests, one after the other")] = 2000,
    streams: Annotated[int, typer.Option(min=1, help="Streams at once")] = 1000,
    tokens_per_s: Annotated[float, typer.Option(min=0.1, help="Tokens per second of a stream")] = 20.0,
    length_s: Annotated[float, typer.Option(min=0.1, help="Length of a stream, seconds")] = 10.0,
    json_file: JsonOption = None,
) -> None:
    """Time what the gateway adds to a request, and try how many streams it carries, in three processes."""
    try:
        from ...deploy.gateway.load import Load, measure
    except ModuleNotFoundError as fault:
        raise InputError("bench gateway", f"needs {fault.name}", "Run pip install 'llmcluster[deploy]'") from fault
    from .tables import print_gateway

    result = measure(Load(requests, streams, tokens_per_s, length_s))
    print_gateway(result, people(json_file))
    write_json(result, json_file)


@app.command(
    "day",
    epilog="Example: llmcluster bench day --servers 125 --gpus 8 --requests 100000000 --workers 2 --out runs/day",
)
def day_command(
    out: Annotated[
        Path, typer.Option(help="Folder of the results: a Parquet file per server in requests/ and seconds/")
    ],
    servers: Annotated[int, typer.Option(min=1, help="Servers, each with a share of the requests")] = 125,
    gpus: Annotated[int, typer.Option(min=1, max=16, help="GPUs per server, each of which holds the model")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Requests of the day, at least")] = 100_000_000,
    workers: Annotated[int, typer.Option(min=1, help="Processes")] = 2,
    gpu: GpuOption = "H100-80GB",
    model: ModelOption = "Llama-3.1-8B",
    every_s: Annotated[int, typer.Option(min=1, help="Seconds to a row of the slots' record")] = 60,
    length_s: Annotated[int, typer.Option(min=1, help="Length of the day, seconds")] = 86_400,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Simulate a day of a large cluster under generated conversations, and write what became of every request."""
    from .compilation import compile_s
    from .day import Day, simulate_day
    from .tables import print_day

    announce_compilation()
    day = Day(servers, gpus, requests, out, seed, gpu, model, every_s, length_s)
    compiling_s = compile_s()  # once, before several processes would do it
    with progress_bar() as progress:
        bar = progress.add_task("simulating servers", total=servers)
        result = {
            **simulate_day(day, workers, lambda: progress.advance(bar)),
            "compile_s": compiling_s,
            "out": str(out),
        }
    print_day(result, people(json_file))
    write_json(result, json_file)
