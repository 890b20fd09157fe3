"""The table of an evaluation: every figure as a mean over episodes with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..simulator.errors import InputError
from .results import Episode, Evaluation
from .statistics import Interval, mean_interval, paired_interval

CLAIRVOYANT_MARK = "†"
CLAIRVOYANT_NOTE = f"{CLAIRVOYANT_MARK} knows the future: a bound, not a competitor"
DIFFERENCE = "reward_difference"


@dataclass(frozen=True)
class Metric:
    """One figure of an episode.

    Attributes:
        key: Name in JSON.
        title: Heading.
        unit: Unit, empty if it has none.
        digits: Decimals shown.
        of: Takes it from an episode, in that unit.
    """

    key: str
    title: str
    unit: str
    digits: int
    of: Callable[[Episode], float]

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


METRICS = (
    Metric("reward", "reward", "", 2, lambda e: e.reward),
    Metric("goodput", "goodput", "tokens/s", 0, lambda e: e.summary.goodput_tokens_per_s),
    Metric("energy_per_output_token", "energy per output token", "J", 3, lambda e: e.summary.energy_per_output_token_j),
    Metric("slo_attainment", "SLO attainment", "%", 2, lambda e: 100 * e.summary.slo_attainment),
    Metric("over_budget", "over budget", "s", 1, lambda e: e.summary.over_budget_s),
    Metric("ttft_p50", "TTFT p50", "s", 3, lambda e: e.summary.ttft_s.p50),
    Metric("ttft_p99", "TTFT p99", "s", 3, lambda e: e.summary.ttft_s.p99),
    Metric("tpot_p50", "TPOT p50", "s", 4, lambda e: e.summary.tpot_s.p50),
    Metric("tpot_p99", "TPOT p99", "s", 4, lambda e: e.summary.tpot_s.p99),
    Metric("mean_power", "mean power", "W", 0, lambda e: e.summary.mean_power_w),
    Metric("peak_power", "peak power", "W", 0, lambda e: e.summary.peak_power_w),
)
"""Percentiles are each episode's own; their mean is shown."""


@dataclass(frozen=True, eq=False)
class Row:
    """One agent's figures.

    Attributes:
        agent: Its name.
        clairvoyant: Whether it knows the future.
        best: Whether its mean reward is the highest of those that do not.
        values: Each metric's value per episode, by seed (n,).
        intervals: Each metric's mean and 95 % interval.
        difference: Reward minus the reference's on the same seeds, per episode (n,).
        against: Mean and 95 % interval of that difference.
    """

    agent: str
    clairvoyant: bool
    best: bool
    values: Mapping[str, NDArray[np.float64]]
    intervals: Mapping[str, Interval]
    difference: NDArray[np.float64]
    against: Interval

    @property
    def label(self) -> str:
        """The name, marked if it is clairvoyant."""
        return f"{self.agent} {CLAIRVOYANT_MARK}" if self.clairvoyant else self.agent


def rows(evaluation: Evaluation, seed: int = 0, reference: str | None = None) -> list[Row]:
    """The table, one row per agent in the evaluation's order.

    Args:
        evaluation: The evaluation.
        seed: Seeds the bootstrap; every interval draws from its own start, so rows do not depend on one another.
        reference: Agent that rewards are compared with; the first one by default.

    Returns:
        The rows.

    Raises:
        InputError: There is no agent, no such reference, or the agents did not play the same seeds.
    """
    reference = reference_of(evaluation, reference)
    episodes = {agent: evaluation.of(agent) for agent in evaluation.agents}
    seeds = [e.seed for e in episodes[reference]]
    for agent, played in episodes.items():
        if not played or [e.seed for e in played] != seeds:
            raise InputError(
                f"agent '{agent}'", f"did not play the seeds of '{reference}'", "Evaluate both on the same"
            )
    values = {
        agent: {m.key: np.array([m.of(e) for e in played]) for m in METRICS} for agent, played in episodes.items()
    }
    fair = [agent for agent in evaluation.agents if agent not in evaluation.clairvoyant]
    best = max(fair, key=lambda agent: float(values[agent]["reward"].mean()), default=None)
    base = values[reference]["reward"]
    return [
        Row(
            agent=agent,
            clairvoyant=agent in evaluation.clairvoyant,
            best=agent == best,
            values=of_agent,
            intervals={key: mean_interval(sample, np.random.default_rng(seed)) for key, sample in of_agent.items()},
            difference=of_agent["reward"] - base,
            against=paired_interval(of_agent["reward"], base, np.random.default_rng(seed)),
        )
        for agent, of_agent in values.items()
    ]


def reference_of(evaluation: Evaluation, reference: str | None) -> str:
    """The agent that others are compared with: the one named, or the first."""
    if not evaluation.agents:
        raise InputError("evaluation", "it holds no agent", "Name at least one agent")
    if reference is None:
        return evaluation.agents[0]
    if reference not in evaluation.agents:
        names = ", ".join(evaluation.agents)
        raise InputError(f"reference '{reference}'", "it was not evaluated", f"Use one of {names}")
    return reference


def print_table(evaluation: Evaluation, console: Console, seed: int = 0, reference: str | None = None) -> None:
    """Prints the figures as two tables, bounds under the means; the best agent is bold, clairvoyant ones are marked.

    Args:
        evaluation: The evaluation.
        console: Where to; 120 columns hold it.
        seed: Seeds the bootstrap.
        reference: Agent that rewards are compared with; the first one by default.
    """
    reference = reference_of(evaluation, reference)
    lines = rows(evaluation, seed, reference)
    console.print(
        Text(
            f"{evaluation.scenario}, {evaluation.workload}: means of {len(lines[0].difference)} episodes, 95 % intervals"
        )
    )
    for metrics in (METRICS[:5], METRICS[5:]):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("agent", no_wrap=True)
        headings = [f"{m.title}\n{m.unit}" for m in metrics]
        if metrics[0].key == "reward":
            headings.insert(1, f"reward minus\n{reference}")
        for heading in headings:
            table.add_column(Text(heading), justify="right")
        for row in lines:
            cells = [_cell(row.intervals[m.key], m.digits) for m in metrics]
            if metrics[0].key == "reward":
                cells.insert(1, _cell(row.against, metrics[0].digits, "+"))
            table.add_row(Text(row.label), *cells, style="bold" if row.best else "")
        console.print(table)
    if evaluation.clairvoyant:
        console.print(Text(CLAIRVOYANT_NOTE), style="dim")


def _cell(interval: Interval, digits: int, sign: str = "-") -> Text:
    mean, bounds = formatted(interval, digits, sign)
    return Text(mean).append(f"\n{bounds}" if bounds else "", style="not bold dim")


def formatted(interval: Interval, digits: int, sign: str = "-") -> tuple[str, str]:
    """An interval as text.

    Args:
        interval: The interval.
        digits: Decimals.
        sign: ``+`` to show the sign of positive numbers too.

    Returns:
        The mean (a dash if there is none) and the bounds (empty if there are none).
    """
    mean, low, high = (f"{x:{sign},.{digits}f}" for x in interval)
    return "–" if math.isnan(interval.mean) else mean, "" if math.isnan(interval.low) else f"{low} … {high}"


def as_json(evaluation: Evaluation, seed: int = 0, reference: str | None = None) -> dict[str, Any]:
    """The table as plain JSON values; ``None`` where a number is not finite.

    Args:
        evaluation: The evaluation.
        seed: Seeds the bootstrap.
        reference: Agent that rewards are compared with; the first one by default.

    Returns:
        ``scenario``, ``workload``, ``seeds``, ``reference``, ``clairvoyant`` (names), ``wall_s``, ``units`` (by metric)
        and ``agents``: name → metric → ``mean``, ``low``, ``high``, ``per_episode`` (in the order of the seeds).
    """
    reference = reference_of(evaluation, reference)
    agents = {}
    for row in rows(evaluation, seed, reference):
        metrics = {key: _plain(row.intervals[key], sample) for key, sample in row.values.items()}
        agents[row.agent] = {**metrics, DIFFERENCE: _plain(row.against, row.difference)}
    return {
        "scenario": evaluation.scenario,
        "workload": evaluation.workload,
        "seeds": [e.seed for e in evaluation.of(reference)],
        "reference": reference,
        "clairvoyant": sorted(evaluation.clairvoyant),
        "wall_s": evaluation.wall_s,
        "units": {**{m.key: m.unit for m in METRICS}, DIFFERENCE: ""},
        "agents": agents,
    }


def _plain(interval: Interval, per_episode: NDArray[np.float64]) -> dict[str, Any]:
    return {
        **{key: _finite(value) for key, value in interval._asdict().items()},
        "per_episode": [_finite(value) for value in per_episode.tolist()],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
