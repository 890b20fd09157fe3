"""TAPAS (Stojkovic et al., ASPLOS 2025) against placement and routing that know nothing of heat and power."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.progress import Progress

from ...agents.base import Agent, Task
from ...agents.static import LeastOutstanding
from ...agents.tapas.controller import ForecastTapas, Tapas
from ...agents.tapas.history import History, profiled
from ...envs.cluster_env import LLMClusterEnv
from ..rollout import play
from ..seeds import held_out_seeds
from ..statistics import Interval, mean_interval, paired_interval
from .suite import Claim, Plot, SuiteResult, Verdict

WARMUP_S = 120
OVERSUBSCRIBED = 1.4
"""40 % more servers than power and air were built for: the paper's largest case."""
CUT, SLOWER = 90.0, 5.0
"""Per cent by which throttling must fall, and by which latency may grow, for a claim to count as reproduced."""

MODEL = "Llama-3.1-8B"
ROW_GPUS, GPU_AIR_M3_PER_S = 8, 0.049
"""An H100 at its TDP of 700 W that warms its air by 12 K moves so much: 700 W / (12 K · 1191 J/(m³·K))."""
COOL_C, WARM_C = 18.0, 28.0
"""Inlets in the middle and at the end of a row, assumed; the paper finds rows and racks to differ by some 10 °C."""


def _row(*places_c: float) -> dict[str, Any]:
    servers = []
    for inlet_c in places_c:
        server = {"gpu": "H100-80GB", "gpus": 2, "inlet_c": inlet_c, "inlet_k_per_kw": 2.0}
        servers += [{**server, "model": MODEL}, {**server, "initial": "empty"}]
    return {
        "racks": [{"servers": servers}],
        "power_limit_share": 1 / OVERSUBSCRIBED,
        "breaker": {"rating_share": 1 / OVERSUBSCRIBED},
        "airflow_m3_per_s": ROW_GPUS * GPU_AIR_M3_PER_S / OVERSUBSCRIBED,
    }


def _stream(lengths: str, rate_per_s: float) -> dict[str, Any]:
    return {
        "requests": {"kind": lengths},
        "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
        "modulation": {"kind": "diurnal", "period_s": 900.0, "low": 0.6, "high": 1.4, "phase": "random"},
        "timeout_s": 30.0,
    }


def site(outside_c: float, *events: Mapping[str, Any]) -> dict[str, Any]:
    """Three rows of eight GPUs, half of them let to tenants, with power and air for 1/1.4 of that.

    Args:
        outside_c: Mean outside temperature of the day, which half an hour stands for; it swings by 8 K.
        events: What befalls the site.

    Returns:
        The scenario.
    """
    return {
        "name": "oversubscribed-cloud",
        "tick_s": 5,
        "horizon_s": 1800,
        "outside_c": {"level": outside_c, "swing": 8.0, "period_s": 1800.0, "noise": 0.3, "noise_s": 200.0},
        "cluster": {
            "rows": [_row(WARM_C, COOL_C), _row(COOL_C, WARM_C), _row(WARM_C, COOL_C)],
            "air": {"outside_rise_k": [[18, 0], [48, 30]]},
        },
        "tenants": {"initial": 5, "mean_interval_s": 110.0, "life_median_s": 480.0, "mean_hold_s": 90.0},
        "instances": [{"model": MODEL, "mean_interval_s": 900.0}],
        "workload": {"streams": [_stream("azure-2023-conv", 18.0), _stream("azure-2023-code", 28.0)]},
        "events": list(events),
        "actions": {"groups": ["route", "cap", "lifecycle", "place"], "levels": 21},
    }


FEED = {
    "kind": "power-feed-failure",
    "row": "random",
    "at_s": [400, 1200],
    "duration_s": [180, 420],
    "severity": 0.25,  # one of four feeds of which three suffice, as in the scenario power-feed-failure
}
COOLING = {
    "kind": "cooling-failure",
    "row": "random",
    "at_s": [400, 1200],
    "duration_s": [360, 540],
    "severity": 0.8,
    "ramp_s": 20,
}
MILD, HOT, FEED_FAILS, COOLING_FAILS = "Mild day", "Hot day", "Power feed fails", "Cooling fails"
BOTH_FAIL = "Both fail at one row of 14B models"
DAYS: Mapping[str, dict[str, Any] | str] = {
    MILD: site(30.0),
    HOT: site(41.0),
    FEED_FAILS: site(30.0, FEED),
    COOLING_FAILS: site(30.0, COOLING),
    BOTH_FAIL: "emergency",
}

OBLIVIOUS, TAPAS, FORECAST = "least-outstanding", "tapas", "tapas-forecast"


Make = Callable[[Task, History], Agent]
AGENTS: Mapping[str, Make] = {
    OBLIVIOUS: lambda task, _: LeastOutstanding(task),
    TAPAS: Tapas,
    FORECAST: ForecastTapas,
}
PARTS: Mapping[str, Make] = {
    "only placement": partial(Tapas, parts=("place",)),
    "only routing": partial(Tapas, parts=("route",)),
    "only reconfiguration": partial(Tapas, parts=("reconfigure",)),
}
FORECASTER = "gru"
"""What the forecast-aware version reads; the others read none of it."""


@dataclass(frozen=True)
class Run:
    """Figures of one episode.

    Attributes:
        thermal: Thermal throttle events.
        own_thermal: Those on slots that the provider's own instances hold at the start.
        power_s: Seconds in which a row was above its power limit.
        trips: Breakers that opened.
        ttft_s: p99 of the time to first token.
        tpot_s: p99 of the time per output token.
        quality: Mean score of the models that answered.
    """

    thermal: float
    own_thermal: float
    power_s: float
    trips: float
    ttft_s: float
    tpot_s: float
    quality: float


def run(episodes: int, seed: int, progress: Progress) -> SuiteResult:
    """Plays every day with every agent on the same seeds.

    Args:
        episodes: Episodes of each.
        seed: Seed of the episodes and of the intervals.
        progress: Shows how far it is.

    Returns:
        The paper's claims beside what was measured.
    """
    seeds = held_out_seeds(seed, episodes)
    bar = progress.add_task("tapas", total=episodes * (len(DAYS) * len(AGENTS) + len(PARTS)))
    runs: dict[tuple[str, str], list[Run]] = {}
    for day, scenario in DAYS.items():
        history = profiled(Task.of(LLMClusterEnv(scenario)))
        for name, make in {**AGENTS, **(PARTS if day == MILD else {})}.items():
            env = LLMClusterEnv(scenario, forecaster=FORECASTER if name == FORECAST else None)
            agent = make(Task.of(env), history)
            runs[day, name] = []
            for episode_seed in seeds:
                runs[day, name].append(_played(env, agent, name, episode_seed))
                progress.advance(bar)
    return _judged(runs, np.random.default_rng(seed))


def _played(env: LLMClusterEnv, agent: Agent, name: str, seed: int) -> Run:
    summary = play(env, agent, name, seed, WARMUP_S).summary
    assert env.plant is not None
    own = np.array([slot.spec.model is not None for slot in env.blueprint.slots])
    events = env.plant.cluster.engine.slots["throttle_events"]
    return Run(
        thermal=float(events.sum()),
        own_thermal=float(events[own].sum()),
        power_s=summary.over_rows_s,
        trips=float(summary.trips),
        ttft_s=summary.ttft_s.p99,
        tpot_s=summary.tpot_s.p99,
        quality=summary.quality,
    )


def cut_interval(less: np.ndarray, more: np.ndarray, rng: np.random.Generator, resamples: int = 10_000) -> Interval:
    """By how much the sum of ``less`` is below that of ``more``, per cent, with a bootstrap over the pairs.

    Of sums, for an episode in which nothing happened has no ratio; ``nan`` where nothing happened at all.
    """
    if len(more) < 2 or not more.sum():
        return Interval(100 * (1 - less.sum() / more.sum()) if more.sum() else float("nan"), float("nan"), float("nan"))
    drawn = rng.integers(len(more), size=(resamples, len(more)))
    sums = more[drawn].sum(axis=1)
    cuts = 100 * (1 - less[drawn].sum(axis=1)[sums > 0] / sums[sums > 0])
    low, high = np.quantile(cuts, (0.025, 0.975))
    return Interval(float(100 * (1 - less.sum() / more.sum())), float(low), float(high))


def slower_interval(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> Interval:
    """By how much ``a`` is above ``b`` on the same seeds, per cent of each."""
    return mean_interval(100 * (a / b - 1), rng)


def is_cut(cut: Interval) -> Verdict:
    """Whether throttling fell as it must: by the whole interval, by half or by the mean alone, or not."""
    if not cut.mean >= CUT / 2:
        return "not reproduced"
    return "reproduced" if cut.low >= CUT else "partly"


def is_as_fast(slower: Interval) -> Verdict:
    """Whether latency stayed where it must: by the whole interval, by the mean alone, or not."""
    if not slower.mean <= SLOWER:
        return "not reproduced"
    return "reproduced" if slower.high <= SLOWER else "partly"


def _judged(runs: Mapping[tuple[str, str], list[Run]], rng: np.random.Generator) -> SuiteResult:
    def of(day: str, name: str, figure: str) -> np.ndarray:
        return np.array([getattr(one, figure) for one in runs[day, name]])

    def cut(day: str, figure: str, name: str = TAPAS) -> Interval:
        return cut_interval(of(day, name, figure), of(day, OBLIVIOUS, figure), rng)

    def slower(day: str, figure: str, name: str = TAPAS) -> Interval:
        return slower_interval(of(day, name, figure), of(day, OBLIVIOUS, figure), rng)

    def left(day: str) -> str:
        thermal, own = of(day, TAPAS, "thermal").sum(), of(day, TAPAS, "own_thermal").sum()
        return f"{own:.0f} of the {thermal:.0f} events that are left are of the provider's own slots"

    def trips(day: str) -> Claim:
        tripped, others = mean_interval(of(day, TAPAS, "trips"), rng), of(day, OBLIVIOUS, "trips").mean()
        rode_through: Verdict = "reproduced" if others else "partly"
        return Claim(
            f"{day}: breakers that trip, an episode",
            "none: it rides through failures",
            tripped,
            "breakers",
            rode_through if tripped.mean == 0 else "partly" if tripped.mean < others else "not reproduced",
            f"Without control {others:.1f}." if others else "Nothing trips without control either: it shows little.",
        )

    heat, power = cut(HOT, "thermal"), cut(MILD, "power_s")
    ttft, tpot = slower(MILD, "ttft_s"), slower(MILD, "tpot_s")
    feed, cooling = cut(FEED_FAILS, "power_s"), cut(COOLING_FAILS, "thermal")
    claims = (
        Claim(
            "Thermal throttling events avoided at 40 % oversubscription (evaluation), on a hot day",
            "up to 97 %",
            heat,
            "%",
            is_cut(heat),
            f"{left(HOT)}; tenants cannot be capped, only be placed, and where the cool places are taken a busy one "
            "throttles.",
        ),
        Claim(
            "Power throttling avoided at 40 % oversubscription (evaluation): seconds with a row above its limit",
            "up to 99 % of the events",
            power,
            "%",
            is_cut(power),
            "Seconds above the limit, for nothing throttles there. What is left are steps of tenants within a tick of "
            "5 s, of which the paper's profiles of weeks would know more.",
        ),
        Claim(
            "p99 time to first token outside emergencies, against no control",
            "unchanged",
            ttft,
            "%",
            is_as_fast(ttft),
            f"On a hot day it is {slower(HOT, 'ttft_s').mean:+.1f} %: own instances in warm places give up clock for "
            "hours of heat, which is then no emergency any more.",
        ),
        Claim(
            "p99 time per output token outside emergencies, against no control",
            "unchanged",
            tpot,
            "%",
            is_as_fast(tpot),
            f"On a hot day it is {slower(HOT, 'tpot_s').mean:+.1f} %.",
        ),
        Claim(
            "A power feed fails: seconds with a row above what is left of its limit, avoided",
            "no failure of service",
            feed,
            "%",
            is_cut(feed),
            "It is seen at the next tick, and caps hold a moment later: up to 5 s each time are lost before, and where "
            "tenants alone draw more than is left nothing helps.",
        ),
        Claim(
            "Cooling fails: thermal throttling events avoided",
            "no failure of service",
            cooling,
            "%",
            is_cut(cooling),
            f"{left(COOLING_FAILS)}. Inlets are the first sign that air is missing.",
        ),
        trips(FEED_FAILS),
        trips(COOLING_FAILS),
        trips(BOTH_FAIL),
    )
    tables = {
        f"{day}: p99 latencies, and mean events and seconds an episode": tuple(
            _line(name, runs[day, name], runs[day, OBLIVIOUS], rng) for key, name in runs if key == day
        )
        for day in DAYS
    }
    return SuiteResult(
        "tapas",
        "TAPAS: thermal- and power-aware scheduling at 40 % oversubscription",
        claims,
        tables,
        assumed=(
            "Three rows of eight H100 in place of a datacenter of A100, half an hour in place of a week, tenants that "
            "stay for minutes: the paper's traces are not public.",
            "Outside air is not chilled, and places in a row differ by 10 K: H100 as they are fitted here throttle "
            "from inlets of about 52 °C on, later than the paper's servers.",
            f"The forecast-aware version reads `{FORECASTER}`, which was trained on other clusters, without tenants; "
            "where its upper quantile is high, so is the reserve.",
            "Regressions are learnt from three episodes of a profiling controller on seeds of its own, without events.",
        ),
        plots=tuple(
            Plot(f"{title}: mean an episode", title, "agent", ("thermal events", "s above a row's limit"), kind="bars")
            for title in tables
        ),
    )


def _line(name: str, own: list[Run], others: list[Run], rng: np.random.Generator) -> dict[str, str | float]:
    def column(runs: list[Run], figure: str) -> np.ndarray:
        return np.array([getattr(one, figure) for one in runs])

    line: dict[str, str | float] = {"agent": name}
    for figure, title in (
        ("thermal", "thermal events"),
        ("own_thermal", "of own slots"),
        ("power_s", "s above a row's limit"),
        ("trips", "breakers tripped"),
        ("ttft_s", "TTFT p99, s"),
        ("tpot_s", "TPOT p99, s"),
        ("quality", "quality"),
    ):
        line[title] = float(column(own, figure).mean())
    for figure, title in (("ttft_s", "Δ TTFT, s"), ("tpot_s", "Δ TPOT, s")):
        gap = paired_interval(column(own, figure), column(others, figure), rng)
        line[title] = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
    return line
