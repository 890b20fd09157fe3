"""What the benchmarks found, for people."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def print_engine(result: dict[str, Any], console: Console) -> None:
    """Prints what ``llmcluster bench engine`` found."""
    console.print(
        f"{result['replicas']} x {result['gpu']} (tp {result['tp']}), {result['model']}, {result['router']}: "
        f"{result['requests_completed']:,} of {result['requests']:,} requests completed, "
        f"{result['output_tokens']:,} output tokens, {result['energy_j'] / 3.6e6:,.3f} kWh"
    )
    rows = (
        ("requests per second", f"{result['requests_per_s']:,.0f}"),
        ("events per second", f"{result['events_per_s']:,.0f}"),
        ("simulated seconds per second", f"{result['simulated_s_per_s']:,.0f}"),
        ("best of rounds", f"{result['wall_s']:.3f} s"),
        ("median of rounds", f"{result['wall_s_median']:.3f} s"),
        ("processor's time, best of rounds", f"{result['cpu_s']:.3f} s"),
        ("memory per request", f"{result['bytes_per_request']:,.0f} bytes"),
        ("compiling", f"{result['compile_s']:.2f} s"),
        ("reading the workload", f"{result['load_s']:.2f} s"),
        ("repeating it", f"{result['repeat_s']:.2f} s"),
    )
    _pairs(rows, console)
    if "scaling" in result:
        _print_scaling(result["scaling"], console)
    if "profile" in result:
        _print_profile(result["profile"], console)


def print_env(result: dict[str, Any], console: Console) -> None:
    """Prints what ``llmcluster bench env`` found."""
    vector = result["vector"]
    console.print(
        f"{result['scenario']}, {result['slots']} slots, {result['ticks']} steps of {result['tick_s']} s, "
        f"{result['requests']:,} requests"
    )
    table = Table("", "alone", f"{vector['copies']} copies", box=box.SIMPLE)
    for title, key, form in (
        ("reset, best of rounds", "reset_ms", "{:,.2f} ms"),
        ("reset, median of rounds", "reset_ms_median", "{:,.2f} ms"),
        ("step, best of rounds", "step_ms", "{:,.3f} ms"),
        ("step, median of rounds", "step_ms_median", "{:,.3f} ms"),
        ("step, processor's time", "step_cpu_ms", "{:,.3f} ms"),
        ("steps per second, of every copy", "steps_per_s", "{:,.0f}"),
    ):
        table.add_row(title, form.format(result[key]), form.format(vector[key]))
    console.print(table)
    console.print(
        f"{result['simulated_s_per_s']:,.0f} simulated seconds per second alone; copies together are "
        f"{vector['gain']:.2f} times as fast; "
        f"made in {result['make_s']:.2f} s, first reset {result['first_reset_s']:.2f} s"
    )


def print_gateway(result: dict[str, Any], console: Console) -> None:
    """Prints what ``llmcluster bench gateway`` found."""
    table = Table("ms", "p50", "p90", "p99", box=box.SIMPLE)
    for title, key in (
        ("request without gateway", "direct_ms"),
        ("request through the gateway", "gateway_ms"),
        ("difference", "added_ms"),
        ("token of a stream, from write to read", "token_delay_ms"),
    ):
        table.add_row(title, *(f"{value:.3f}" for value in result[key].values()))
    console.print(table)
    console.print(
        f"{result['completed']:,} of {result['load']['streams']:,} streams came to their end, "
        f"{result['stretch']:.1%} later than planned at most; a token took {result['gateway_us_per_token']:.1f} µs of "
        f"the gateway's processor time, of which it had {result['gateway_cpu']:.2f} cores"
    )


def print_day(result: dict[str, Any], console: Console) -> None:
    """Prints what ``llmcluster bench day`` found."""
    console.print(
        f"{result['gpus']:,} GPUs in {result['servers']:,} servers, {result['simulated_s']:,} s: "
        f"{result['requests_completed']:,} of {result['requests']:,} requests completed, "
        f"{result['output_tokens']:,} output tokens, {result['energy_j'] / 3.6e9:,.2f} MWh"
    )
    requests = result["requests"]
    phases = ((f"{name.removesuffix('_s')}, processor's time", s) for name, s in result["phases"].items())
    rows = (
        ("wall clock", f"{result['wall_s']:.1f} s with {result['workers']} processes"),
        ("requests per second", f"{result['requests_per_s']:,.0f}"),
        *((name, f"{s:.1f} s, {s / requests * 1e6:.3f} us per request") for name, s in phases),
        ("memory, all processes at their most", f"{result['peak_memory_bytes'] / 2**30:.2f} GiB"),
        (
            "results",
            f"{result['result_bytes'] / 1e9:.3f} GB, {result['result_bytes'] / requests:.1f} bytes per request",
        ),
    )
    _pairs(rows, console)


def _pairs(rows: tuple[tuple[str, str], ...], console: Console) -> None:
    table = Table("", "", box=box.SIMPLE, show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def _print_scaling(found: dict[str, Any], console: Console) -> None:
    table = Table(
        "series", "run", "requests", "output tokens each", "busy slot-s each", "us per request", box=box.SIMPLE
    )
    for run in found["runs"]:
        n = run["requests"]
        table.add_row(
            run["series"],
            run["run"],
            f"{n:,}",
            f"{run['output_tokens'] / n:,.0f}",
            f"{run['busy_slot_s'] / n:.2f}",
            f"{run['cpu_s'] / n * 1e6:.3f}",
        )
    console.print(table)
    request, token, slot = (found[f"per_{name}"] for name in ("request", "output_token", "slot_second"))
    console.print(
        f"time against requests: {request['slope_s'] * 1e6:.3f} us each, "
        f"{request['intercept_s'] * 1e3:+.2f} ms at none, residual {request['residual']:.1%}"
    )
    console.print(
        f"time per request against its output tokens: {token['slope_s'] * 1e9:.3f} ns each, "
        f"{token['intercept_s'] * 1e6:.3f} us at none, residual {token['residual']:.1%}"
    )
    console.print(
        f"all runs: {slot['request_s'] * 1e6:.3f} us a request, {slot['busy_slot_s'] * 1e6:.3f} us a second in which a "
        f"slot works, {slot['idle_slot_s'] * 1e6:.3f} us one in which it does not, residual {slot['residual']:.1%}"
    )


def _print_profile(found: dict[str, Any], console: Console) -> None:
    table = Table("function", "seconds of its own", "share", box=box.SIMPLE)
    for row in found["functions"]:
        table.add_row(row["function"], f"{row['seconds']:.3f}", f"{row['share']:.1%}")
    console.print(table)
    console.print(f"the same stretch without a request: {found['idle_s']:.3f} s")
