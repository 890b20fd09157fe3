"""The result of one run for people."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

LATENCIES = (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("e2e_s", "end to end"))


def print_summary(result: dict[str, Any], console: Console) -> None:
    """Prints what ``llmcluster simulate`` found."""
    lost = {key: result[f"requests_{key}"] for key in ("rejected", "timed_out", "failed", "unfinished")}
    others = ", ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in lost.items() if count)
    console.print(
        f"[bold]{result['requests_completed']:,}[/] of {result['requests']:,} requests completed"
        + (f"; {others}" if others else "")
    )
    table = Table("latency", "p50", "p90", "p99", "mean", box=box.SIMPLE)
    for key, title in LATENCIES:
        figures = result[key]
        table.add_row(
            title,
            *("-" if figures[p] is None else f"{figures[p] * 1000:,.1f} ms" for p in ("p50", "p90", "p99", "mean")),
        )
    console.print(table)
    per_token = result["energy_per_output_token_j"]
    console.print(
        f"{result['output_tokens']:,} output tokens, {result['energy_j'] / 3.6e6:,.3f} kWh"
        + ("" if per_token is None else f", {per_token:.3f} J per output token")
    )
    if "host_energy_j" in result:
        console.print(f"CPUs of the hosts, not counted above: {result['host_energy_j'] / 3.6e6:,.3f} kWh")
    attained = result["slo_attainment"]
    console.print(
        f"power {result['mean_power_w']:,.0f} W mean, {result['peak_power_w']:,.0f} W peak, "
        f"{result['over_budget_s']:,.0f} s over budget; "
        f"{'no request' if attained is None else f'{attained:.2%}'} within SLO; "
        f"goodput {result['goodput_tokens_per_s']:,.0f} tokens/s"
    )
    if result["over_rows_s"]:
        console.print(f"a row above its power limit for {result['over_rows_s']:,.0f} s")
    happened = {
        "{:,} breaker(s) tripped": result["trips"],
        "{:,} server(s) shed": result["sheds"],
        "{:,.0f} slot-seconds under a power brake": result["braked_s"],
        "{:,.0f} throttled by heat": result["throttled_s"],
    }
    if told := ", ".join(text.format(count) for text, count in happened.items() if count):
        console.print(told)
    console.print(f"energy: costs {result['energy_cost']:,.3f}, {result['carbon_g']:,.0f} g of CO₂")
    if result["quality"] is not None:
        console.print(f"quality of the models that answered: {result['quality']:.1%}")
    for deployment, told in result["confidence"].items():
        console.print(f"{deployment}: {told['text']}", style="dim")
    console.print(
        f"{result['simulated_s']:,.0f} s simulated in {result['wall_s']:.2f} s; agent {result['agent']}, "
        f"scenario {result['scenario']}, seed {result['seed']}",
        style="dim",
    )
