"""The table of an evaluation: every figure as a mean over episodes with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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

CLAIRVOYANT_NOTE = "† knows the traffic to come, so it does not compete"
DIFFERENCE = "reward_difference"
AGENT_WIDTH, FIGURE_WIDTH = 24, 19


@dataclass(frozen=True)
class Column:
    """How a figure is shown.

    Attributes:
        key: Name in JSON.
        title: Heading.
        unit: Unit, empty if it has none.
        digits: Decimals shown.
    """

    key: str
    title: str
    unit: str
    digits: int


COLUMNS = (
    Column("reward", "reward", "", 1),
    Column(DIFFERENCE, "Δ reward", "", 1),
    Column("goodput", "goodput", "tokens/s", 0),
    Column("energy_per_output_token", "energy/token", "J", 3),
    Column("slo_attainment", "within SLO", "%", 2),
    Column("over_budget", "over budget", "s", 1),
    Column("ttft_p50", "TTFT p50", "s", 3),
    Column("ttft_p99", "TTFT p99", "s", 3),
    Column("tpot_p50", "TPOT p50", "ms", 1),
    Column("tpot_p99", "TPOT p99", "ms", 1),
    Column("mean_power", "mean power", "W", 0),
    Column("peak_power", "peak power", "W", 0),
    Column("energy_cost", "cost", "", 3),
    Column("carbon", "CO₂", "g", 0),
    Column("quality", "quality", "%", 1),
    Column("over_rows", "rows over", "s", 1),
    Column("throttled", "throttled", "slot·s", 0),
    Column("braked", "braked", "slot·s", 0),
    Column("trips", "trips", "", 2),
    Column("sheds", "shed", "servers", 2),
)
LAST_OF_ALL = next(column for column in COLUMNS if column.key == "carbon")
"""The last column that is shown in any case."""
FIGURES: Mapping[str, Callable[[Episode], float]] = {
    "reward": lambda e: e.reward,
    "goodput": lambda e: e.summary.goodput_tokens_per_s,
    "energy_per_output_token": lambda e: e.summary.energy_per_output_token_j,
    "slo_attainment": lambda e: 100 * e.summary.slo_attainment,
    "over_budget": lambda e: e.summary.over_budget_s,
    "ttft_p50": lambda e: e.summary.ttft_s.p50,
    "ttft_p99": lambda e: e.summary.ttft_s.p99,
    "tpot_p50": lambda e: 1000 * e.summary.tpot_s.p50,
    "tpot_p99": lambda e: 1000 * e.summary.tpot_s.p99,
    "mean_power": lambda e: e.summary.mean_power_w,
    "peak_power": lambda e: e.summary.peak_power_w,
    "energy_cost": lambda e: e.summary.energy_cost,
    "carbon": lambda e: e.summary.carbon_g,
    "quality": lambda e: 100 * e.summary.quality,
    "over_rows": lambda e: e.summary.over_rows_s,
    "throttled": lambda e: e.summary.throttled_s,
    "braked": lambda e: e.summary.braked_s,
    "trips": lambda e: e.summary.trips,
    "sheds": lambda e: e.summary.sheds,
}
"""A figure of one episode, in its column's unit. Latency percentiles are the episode's own; tables show their mean."""


@dataclass(frozen=True, eq=False)
class Row:
    """One agent's figures.

    Attributes:
        agent: Its name.
        clairvoyant: Whether it knows the future.
        best: Whether its mean reward is the highest of those that do not.
        values: Value per episode, by the keys of :data:`COLUMNS`, in the order of the seeds (n,).
        intervals: Mean and 95 % interval, by the same keys.
    """

    agent: str
    clairvoyant: bool
    best: bool
    values: Mapping[str, NDArray[np.float64]]
    intervals: Mapping[str, Interval]

    @property
    def label(self) -> str:
        """The name, marked if it is clairvoyant."""
        return f"{self.agent} †" if self.clairvoyant else self.agent


def rows(evaluation: Evaluation, seed: int = 0, reference: str | None = None) -> list[Row]:
    """The table, one row per agent in the evaluation's order.

    Args:
        evaluation: The evaluation.
        seed: Seeds every interval's bootstrap anew, so that none depends on what else the table holds.
        reference: Agent that rewards are compared with on common seeds; the first one by default.

    Returns:
        The rows.

    Raises:
        InputError: There is no agent, no such reference, or the agents did not play the same seeds.
    """
    reference = reference_of(evaluation, reference)
    seeds = [e.seed for e in evaluation.of(reference)]
    values: dict[str, dict[str, NDArray[np.float64]]] = {}
    for agent in evaluation.agents:
        episodes = evaluation.of(agent)
        if not seeds or [e.seed for e in episodes] != seeds:
            raise InputError(
                f"agent '{agent}'", f"it did not play the seeds of '{reference}'", "Evaluate both on the same"
            )
        values[agent] = {key: np.array([figure(e) for e in episodes]) for key, figure in FIGURES.items()}
    fair = [agent for agent in evaluation.agents if agent not in evaluation.clairvoyant]
    best = max(fair, key=lambda agent: float(values[agent]["reward"].mean()), default=None)
    base = values[reference]["reward"]
    table = []
    for agent, sample in values.items():
        intervals = {key: mean_interval(of_key, np.random.default_rng(seed)) for key, of_key in sample.items()}
        intervals[DIFFERENCE] = paired_interval(sample["reward"], base, np.random.default_rng(seed))
        sample[DIFFERENCE] = sample["reward"] - base
        table.append(Row(agent, agent in evaluation.clairvoyant, agent == best, sample, intervals))
    return table


def told(table: Sequence[Row]) -> tuple[Column, ...]:
    """The columns that tell something: where nothing ever tripped, say, nobody needs a column of zeros."""
    first = COLUMNS.index(LAST_OF_ALL) + 1
    others = (c for c in COLUMNS[first:] if any(np.nan_to_num(row.values[c.key]).any() for row in table))
    return (*COLUMNS[:first], *others)


def reference_of(evaluation: Evaluation, reference: str | None) -> str:
    """The agent that others are compared with: the one named, or the first."""
    if not evaluation.agents:
        raise InputError("evaluation", "it holds no agent", "Evaluate at least one")
    if reference is None:
        return evaluation.agents[0]
    if reference not in evaluation.agents:
        names = ", ".join(evaluation.agents)
        raise InputError(f"reference '{reference}'", "it was not evaluated", f"Use one of {names}")
    return reference


def formatted(interval: Interval, column: Column) -> tuple[str, str]:
    """An interval as text: the mean (a dash if there is none) and the bounds (empty if there are none)."""
    sign = "+" if column.key == DIFFERENCE else "-"
    mean, low, high = (f"{x:{sign},.{column.digits}f}" for x in interval)
    return "–" if math.isnan(interval.mean) else mean, "" if math.isnan(interval.low) else f"{low} … {high}"


def caption(evaluation: Evaluation, reference: str) -> str:
    """What the figures are."""
    return (
        f"Scenario {evaluation.scenario}, workload {evaluation.workload}: means of {len(evaluation.of(reference))} "
        f"episodes with 95 % intervals; Δ reward is against {reference} on the same seeds. Rewards count from the "
        "start; other figures leave out the warm-up, and what comes after the horizon only settles the queue."
    )


def print_table(evaluation: Evaluation, console: Console, seed: int = 0, reference: str | None = None) -> None:
    """Prints as many tables as the width needs, bounds under the means; the best agent is bold, the clairvoyant marked.

    Args:
        evaluation: The evaluation.
        console: Where to.
        seed: Seeds the bootstrap.
        reference: Agent that rewards are compared with; the first one by default.
    """
    reference = reference_of(evaluation, reference)
    lines = rows(evaluation, seed, reference)
    console.print(Text(caption(evaluation, reference)))
    fitting = max(1, (console.width - AGENT_WIDTH) // FIGURE_WIDTH)
    shown = told(lines)
    each = math.ceil(len(shown) / math.ceil(len(shown) / fitting))
    for first in range(0, len(shown), each):
        columns = shown[first : first + each]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("agent", min_width=AGENT_WIDTH - 2)
        for column in columns:
            table.add_column(Text(f"{column.title}\n{column.unit}"), justify="right", no_wrap=True)
        for row in lines:
            cells = []
            for column in columns:
                mean, bounds = formatted(row.intervals[column.key], column)
                cells.append(Text(mean).append(f"\n{bounds}", style="dim not bold"))
            table.add_row(Text(row.label), *cells, style="bold" if row.best else "")
        console.print(table)
    for agent, reasons in interventions(evaluation).items():
        changed = ", ".join(f"{reason} {np.mean(counts):.1f}" for reason, counts in reasons.items())
        console.print(Text(f"{agent}: decisions an episode that the safety layer changed: {changed}", style="dim"))
    if any(row.clairvoyant for row in lines):
        console.print(Text(CLAIRVOYANT_NOTE, style="dim"))


def as_json(evaluation: Evaluation, seed: int = 0, reference: str | None = None) -> dict[str, Any]:
    """The table as plain JSON values; ``None`` where a number is not finite.

    Args:
        evaluation: The evaluation.
        seed: Seeds the bootstrap.
        reference: Agent that rewards are compared with; the first one by default.

    Returns:
        ``scenario``, ``workload``, ``seeds``, ``reference``, ``clairvoyant`` (names), ``wall_s``, ``units`` by metric,
        ``agents``: name → metric → ``mean``, ``low``, ``high``, ``per_episode`` (in the order of the seeds), and
        ``interventions`` of the safety layer: name → reason → decisions in each episode.
    """
    reference = reference_of(evaluation, reference)
    return {
        "scenario": evaluation.scenario,
        "workload": evaluation.workload,
        "seeds": [e.seed for e in evaluation.of(reference)],
        "reference": reference,
        "clairvoyant": sorted(evaluation.clairvoyant),
        "wall_s": evaluation.wall_s,
        "units": {column.key: column.unit for column in COLUMNS},
        "agents": {
            row.agent: {c.key: _plain(row.intervals[c.key], row.values[c.key]) for c in COLUMNS}
            for row in rows(evaluation, seed, reference)
        },
        "interventions": interventions(evaluation),
    }


def interventions(evaluation: Evaluation) -> dict[str, dict[str, list[int]]]:
    """Decisions that the safety layer changed: agent → reason → in each episode; of agents where there were any."""
    found = {}
    for agent in evaluation.agents:
        episodes = evaluation.of(agent)
        reasons = dict.fromkeys(reason for episode in episodes for reason in episode.interventions)
        if reasons:
            found[agent] = {reason: [e.interventions.get(reason, 0) for e in episodes] for reason in reasons}
    return found


def _plain(interval: Interval, per_episode: NDArray[np.float64]) -> dict[str, Any]:
    return {
        **{name: _finite(value) for name, value in interval._asdict().items()},
        "per_episode": [_finite(value) for value in per_episode.tolist()],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
