"""The report of an evaluation: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..simulator.files import whole
from .results import Evaluation
from .table import CLAIRVOYANT_NOTE, Column, Row, caption, formatted, reference_of, rows, told

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#666666")
"""Okabe and Ito's colours, which the colour-blind tell apart; symbols tell agents apart when they come round again."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
BEST = ' class="best"'
BUDGET, INK, GRID = "#222222", "#222222", "#e4e7ea"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 48rem; color: #444; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: 1rem 0; width: 100%; }
th, td { padding: .4rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid #e4e7ea; }
td { white-space: nowrap; }
th { font-weight: 600; border-bottom: 2px solid #222; }
th:first-child, td:first-child { text-align: left; }
td small { display: block; color: #767676; font-weight: normal; }
tr.best { font-weight: 600; background: #f1f7fb; }
"""


@dataclass(frozen=True)
class Look:
    """How an agent is drawn in every figure; the clairvoyant are hollow and dashed."""

    colour: str
    symbol: str
    dash: str


def write_report(evaluation: Evaluation, path: str | Path, seed: int = 0, reference: str | None = None) -> Path:
    """Writes the report; readers of ``path`` see the old file or the whole new one.

    Args:
        evaluation: The evaluation.
        path: The HTML file; its folder must exist.
        seed: Seeds the bootstrap.
        reference: Agent that rewards are compared with; the first one by default.

    Returns:
        The path.
    """
    path = Path(path)
    with whole(path) as draft:
        draft.write_text(render(evaluation, seed, reference), encoding="utf-8")
    return path


def render(evaluation: Evaluation, seed: int = 0, reference: str | None = None) -> str:
    """The report as HTML; equal input yields equal text."""
    reference = reference_of(evaluation, reference)
    table, looks = rows(evaluation, seed, reference), _looks(evaluation)
    shown = evaluation.of(reference)[0].seed
    sections = (
        (
            "Reward",
            "Bars span the 95 % interval of the mean; each small point is one episode. Further right is better.",
            _reward_figure(table, looks),
        ),
        (
            "Energy and service",
            "Better agents lie towards the top left: less energy for a token, and more requests within their SLO.",
            _trade_off_figure(table, looks),
        ),
        (
            "What rewards are made of",
            "Mean sum of each reward term over an episode: gains to the right, costs to the left of zero.",
            _terms_figure(evaluation, table),
        ),
        (
            f"One episode over time, seed {shown}",
            "Power should stay below the budget, and slots should serve before the traffic needs them. A click on a "
            "name in the legend shows or hides an agent.",
            _time_figure(evaluation, table, looks, reference),
        ),
    )
    body = "".join(
        f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{_html(figure, i)}</section>\n"
        for i, (title, text, figure) in enumerate(sections)
    )
    seeds = ", ".join(str(e.seed) for e in evaluation.of(reference))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(evaluation.scenario)}: evaluation</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{len(table)} agents on {escape(evaluation.scenario)}</h1>\n"
        f"<p>{escape(caption(evaluation, reference))} Seeds {seeds}; evaluated in {evaluation.wall_s:,.0f} s.</p>\n"
        f"{_table(table)}{body}</body>\n</html>\n"
    )


def _table(table: list[Row]) -> str:
    """Several tables, each as wide as a page."""
    text = ""
    shown = told(table)
    for columns in (shown[first : first + 7] for first in range(0, len(shown), 7)):
        head = "".join(f"<th>{escape(', '.join(filter(None, (c.title, c.unit))))}</th>" for c in columns)
        lines = "".join(_line(row, columns) for row in table)
        head = f"<thead><tr><th>agent</th>{head}</tr></thead>"
        text += f'<div class="wide"><table>{head}<tbody>\n{lines}</tbody></table></div>\n'
    note = "The best agent is highlighted; percentiles are taken within an episode."
    if any(row.clairvoyant for row in table):
        note += f" {CLAIRVOYANT_NOTE}."
    return f"{text}<p>{escape(note)}</p>\n"


def _line(row: Row, columns: Iterable[Column]) -> str:
    cells = (formatted(row.intervals[c.key], c) for c in columns)
    filled = "".join(f"<td>{mean}<small>{bounds}</small></td>" for mean, bounds in cells)
    return f"<tr{BEST if row.best else ''}><td>{escape(row.label)}</td>{filled}</tr>\n"


def _looks(evaluation: Evaluation) -> dict[str, Look]:
    looks = {}
    for i, agent in enumerate(evaluation.agents):
        known, symbol = agent in evaluation.clairvoyant, SYMBOLS[i // len(COLOURS) % len(SYMBOLS)]
        looks[agent] = Look(
            COLOURS[i % len(COLOURS)], f"{symbol}-open" if known else symbol, "dash" if known else "solid"
        )
    return looks


def _reward_figure(table: list[Row], looks: Mapping[str, Look]) -> go.Figure:
    figure = go.Figure()
    for row in table:
        look, interval, points = looks[row.agent], row.intervals["reward"], row.values["reward"]
        figure.add_scatter(
            x=points,
            y=[row.label] * len(points),
            mode="markers",
            marker={"size": 6, "color": look.colour, "opacity": 0.35},
            hovertemplate="%{x:.2f}<extra>one episode</extra>",
        )
        figure.add_scatter(
            x=[interval.mean],
            y=[row.label],
            mode="markers",
            marker={"size": 12, "color": look.colour, "symbol": look.symbol},
            error_x=_error(row, "reward", look, thickness=3),
            hovertemplate="%{x:.2f}<extra>mean</extra>",
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="reward of an episode")
    return _styled(figure, 110 + 34 * len(table), legend=False)


def _trade_off_figure(table: list[Row], looks: Mapping[str, Look]) -> go.Figure:
    figure = go.Figure()
    for row in table:
        look = looks[row.agent]
        figure.add_scatter(
            x=[row.intervals["energy_per_output_token"].mean],
            y=[row.intervals["slo_attainment"].mean],
            name=row.label,
            mode="markers",
            marker={"size": 13, "color": look.colour, "symbol": look.symbol},
            error_x=_error(row, "energy_per_output_token", look),
            error_y=_error(row, "slo_attainment", look),
            hovertemplate="%{x:.3f} J per token<br>%{y:.2f} % within SLO",
        )
    figure.update_xaxes(title="energy per output token, J")
    figure.update_yaxes(title="requests within SLO, %")
    return _styled(figure, 460)


def _terms_figure(evaluation: Evaluation, table: list[Row]) -> go.Figure:
    figure = go.Figure()
    means = [
        {
            name: float(np.mean([e.terms[name] for e in evaluation.of(row.agent)]))
            for name in evaluation.of(row.agent)[0].terms
        }
        for row in table
    ]
    labels = [row.label for row in table]
    names = [name for name in means[0] if any(of_agent[name] for of_agent in means)]
    for name, colour in zip(names, COLOURS, strict=False):
        figure.add_bar(
            x=[of_agent[name] for of_agent in means],
            y=labels,
            name=name,
            orientation="h",
            marker={"color": colour},
            hovertemplate="%{x:.2f}",
        )
    figure.add_scatter(
        x=[row.intervals["reward"].mean for row in table],
        y=labels,
        name="reward",
        mode="markers",
        marker={"symbol": "line-ns", "size": 20, "line": {"width": 3, "color": INK}},
        hovertemplate="%{x:.2f}",
    )
    figure.update_layout(barmode="relative", bargap=0.35)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="mean sum over an episode", zerolinecolor=INK)
    return _styled(figure, 150 + 34 * len(table))


def _time_figure(evaluation: Evaluation, table: list[Row], looks: Mapping[str, Look], reference: str) -> go.Figure:
    """Power, traffic and serving slots of everybody's first episode; the best agent and the reference show at first."""
    titles = ("GPU power and budget, kW", "arrivals at the gateway, requests/s", "serving slots")
    figure = make_subplots(
        rows=3, shared_xaxes=True, vertical_spacing=0.07, row_heights=[2, 1, 1], subplot_titles=titles
    )
    for row in table:
        series = evaluation.of(row.agent)[0].series
        minutes, look = series["time_s"] / 60, looks[row.agent]
        lines = (series["power_w"] / 1000, series["arrivals_per_s"], series["serving_slots"])
        for place, values in enumerate(lines, 1):
            figure.add_scatter(
                row=place,
                col=1,
                x=minutes,
                y=values,
                name=row.label,
                legendgroup=row.agent,
                showlegend=place == 1,
                visible=True if row.best or row.agent == reference else "legendonly",
                line={"color": look.colour, "dash": look.dash, "width": 1.6, "shape": "vh" if place == 3 else "linear"},
            )
    budget = evaluation.of(reference)[0].series
    figure.add_scatter(
        row=1,
        col=1,
        x=budget["time_s"] / 60,
        y=budget["budget_w"] / 1000,
        name="budget",
        line={"color": BUDGET, "width": 2, "dash": "dot"},
    )
    figure.update_xaxes(title="minutes", row=3)
    figure.update_yaxes(rangemode="tozero")
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    return _styled(figure, 720).update_layout(legend_y=1.06)


def _error(row: Row, key: str, look: Look, thickness: float = 1.5) -> dict[str, object]:
    """Error bars of an interval, as distances from its mean."""
    mean, low, high = row.intervals[key]
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - mean],
        "arrayminus": [mean - low],
        "color": look.colour,
        "thickness": thickness,
        "width": 0,
    }


def _styled(figure: go.Figure, height: int, legend: bool = True) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 10, "r": 10, "t": 40, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        showlegend=legend,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "yref": "paper"},
        hoverlabel={"namelength": -1},
    )
    figure.update_xaxes(automargin=True, gridcolor=GRID)
    figure.update_yaxes(automargin=True, gridcolor=GRID)
    return figure


def _html(figure: go.Figure, number: int) -> str:
    """The figure as a fragment; the first one brings the library along."""
    config = {"displayModeBar": False, "responsive": True}
    html: str = figure.to_html(config, full_html=False, include_plotlyjs=number == 0, div_id=f"figure-{number}")
    return html
