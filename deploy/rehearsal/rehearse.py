"""A rehearsal from beginning to end: the whole stack without a GPU, under traffic, and what came of it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...envs.scenario import load_scenario
from ...simulator.workload.spec import generate
from ...simulator.workload.table import RequestTable
from ..config import load_config
from ..deployable import check_deployable
from ..site import Source, SourceSpec
from .live import SCENARIO
from .load import Tally, play
from .stage import Stage

OWN = "rehearsal"
"""The scenario that is made for this."""
BUDGET_SHARES = (0.8, 0.6)
"""Of all TDPs, before and after it falls: the caps have to come down while traffic goes on."""
FALLS_AFTER = 0.75
"""It falls after this share of the time; 30 s before that, agent and guards know."""
SETTLES_S = 2.0
"""After a decision, limits are in force and meters show it within this time."""
MARGIN = 0.005
"""Power may pass the budget by this share: what comes of a governor that changes clocks in steps."""
WATT = 1.0
RESTORED_WITHIN_S = 2.0


@dataclass(frozen=True)
class Held:
    """How the budget was kept.

    Attributes:
        seconds: Seconds that were looked at.
        over: Of these, seconds above the budget.
        highest_share: The highest power relative to the budget of its second.
    """

    seconds: int
    over: int
    highest_share: float


def rehearse(scenario: str, agent: str, duration_s: float, seed: int, cli: Sequence[str]) -> dict[str, Any]:
    """Runs keeper, gateway, loop and clients against emulated GPUs and servers.

    Args:
        scenario: ``rehearsal``, another name, or a file.
        agent: Name of the agent, or its folder.
        duration_s: Seconds of traffic.
        seed: Of the traffic and of the simulator.
        cli: The command line that ``deploy run`` and its options are added to.

    Returns:
        Requests sent and lost, latency, how the budget was kept, what was written and read back, and whether all was
        as it should be: ``passed``.
    """
    source = str(SCENARIO) if scenario == OWN else scenario
    check_deployable(load_scenario(source), f"scenario {scenario}")
    with tempfile.TemporaryDirectory(prefix="llmcluster-rehearsal-") as folder:
        stage = Stage(source, Path(folder), cli, seed)
        high_w, low_w = (share * stage.tdp_w for share in BUDGET_SHARES)
        falls_s = FALLS_AFTER * duration_s
        stage.configure(limits={"budget_w": {"schedule": [[0.0, high_w], [falls_s, high_w], [falls_s, low_w]]}})
        requests = traffic(stage, duration_s, seed)
        with stage:
            found_w = stage.limits_w()
            stage.start_loop(agent, "--apply")
            tally = asyncio.run(play(stage.gateway_url, requests, stage.machine.plant.fleet.models))
            stage.until(lambda: len(stage.lines("decision")) > 1, "a second decision")
            held = budget_kept(stage)
            apart_w = read_back(stage)
            exported = stage.metrics()
            restored_s: list[float] = []

            def watch() -> None:
                restored_s.append(stage.until(lambda: stage.limits_w() == found_w, "limits to be restored"))

            code = stage.stop("loop", watch)
            report = _report(stage, tally, held)
    report |= {
        "scenario": scenario,
        "agent": agent,
        "read_back_apart_w": apart_w,
        "exported_metrics": sum(not line.startswith("#") for line in exported.splitlines()),
        "loop_exit_code": code,
        "restored_in_s": round(restored_s[0], 3),
    }
    report["passed"] = not (
        report["requests_lost"]
        or held.over
        or not held.seconds
        or not report["limits_written"]
        or apart_w > WATT
        or code
        or report["fallbacks"]
        or report["restored_in_s"] > RESTORED_WITHIN_S
    )
    return report


def traffic(stage: Stage, duration_s: float, seed: int) -> RequestTable:
    """The scenario's own traffic of some seconds."""
    scenario, models = stage.scenario, stage.machine.plant.fleet.models
    rng = np.random.default_rng(seed)
    return generate(scenario.workload, duration_s, rng, models, tuple(scenario.slo), scenario.folder)


def budget_kept(stage: Stage) -> Held:
    """Holds the true power of every second under control against the budget that the configuration gives.

    Where it has just changed, the higher one counts: new limits may not be in force yet.
    """
    (*_, started), decisions = stage.lines("start"), stage.lines("decision")
    at_s = started["monotonic_s"]
    budget = Source(load_config(stage.config).limits.budget_w or SourceSpec(value=stage.tdp_w), lambda: at_s)

    def budget_w(time_s: float) -> float:
        nonlocal at_s
        at_s = time_s
        return float(budget.read()[0])

    shares = []
    for second, watts in enumerate(stage.power_w()):
        start_s = stage.time_of(second)
        if start_s - SETTLES_S >= decisions[0]["monotonic_s"]:
            shares.append(watts / max(budget_w(start_s - SETTLES_S), budget_w(start_s + 1.0)))
    return Held(len(shares), sum(share > 1 + MARGIN for share in shares), max(shares, default=0.0))


def read_back(stage: Stage) -> float:
    """By how much limits on the GPUs are apart from what the log says was written last, at most, watts."""
    written: dict[str, float] = {}
    for line in stage.lines("write"):
        if "watts" in line:
            written[line["gpu"]] = line["watts"]
    set_w = stage.limits_w()
    return max((abs(set_w[int(gpu)] - watts) for gpu, watts in written.items()), default=0.0)


def _report(stage: Stage, tally: Tally, held: Held) -> dict[str, Any]:
    decisions = stage.lines("decision")
    gaps_s = [b["monotonic_s"] - a["monotonic_s"] for a, b in pairwise(decisions)]
    return {
        "requests_sent": len(tally.outcomes),
        "requests_lost": len(tally.lost),
        "faults": sorted({one.fault or "tokens are missing" for one in tally.lost})[:5],
        "output_tokens": sum(one.tokens for one in tally.outcomes),
        **{
            f"{name.removesuffix('_s')}_p{share}_s": round(tally.percentile_s(name, share), 4)
            for name in ("ttft_s", "total_s")
            for share in (50, 99)
        },
        "decisions": len(decisions),
        "longest_between_decisions_s": round(max(gaps_s, default=0.0), 3),
        "fallbacks": sum(line["by"] == "fallback" for line in decisions),
        "troubles": sorted({f"{t['kind']} {t['what']}: {t['text']}" for line in decisions for t in line["troubles"]})[
            :5
        ],
        "limits_written": len(stage.lines("write")),
        "seconds_under_control": held.seconds,
        "seconds_over_budget": held.over,
        "highest_share_of_budget": round(held.highest_share, 4),
    }
