"""What a tick looked like: a text table, or a picture whose axes stay put so that frames make a film."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..simulator.kernels.state import STATUS_NAMES
from ..simulator.units import PS_PER_S
from .plant import SimulatedPlant
from .telemetry import LEAD_TIMES_S, Fleet, Telemetry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EMPTY, LOADING = 0, 1
BAR_CELLS = 12

SIZE_IN, DPI = (9.6, 5.4), 100
WINDOW_S = 600
TILES_PER_COLUMN, LABELLED_TILES = 8, 16
INK, FAINT, PAPER = "#222222", "#767676", "#e9ecef"
BLUE, ORANGE, RED = "#0072b2", "#e69f00", "#d55e00"
STATUS_COLOURS = ("#c4c8cc", "#f0e442", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#6c5b4c")
"""Okabe and Ito's colours, which the colour-blind tell apart."""


def draw_ansi(fleet: Fleet, telemetry: Telemetry, plant: SimulatedPlant) -> str:
    """A text table, one line per slot. In the bars ``█`` is power, ``░`` what the cap leaves, blank up to the TDP.

    Args:
        fleet: The slots.
        telemetry: Readings of the tick that has just ended.
        plant: The cluster, for its clock.

    Returns:
        Lines of equal columns, with a line feed at the end.
    """
    power_w, tdp_w = telemetry.power_w.mean(axis=0), fleet.cap_max_w
    budget = "  ".join(
        f"{watts:.0f} W in {lead} s" for lead, watts in zip(LEAD_TIMES_S, telemetry.budget_w, strict=True)
    )
    head = (
        f"{_headline(telemetry, plant)}\nbudget: {budget.replace(' in 0 s', ' now')}   "
        f"at the gateway: {telemetry.held_at_gateway}   instances waiting: {telemetry.pending_instances}\n"
    )
    table = [("slot", "GPU", "state", "model", "power /  cap W", "", "°C", "run", "wait", "KV")]
    for r, name in enumerate(fleet.slots):
        cap_w = telemetry.cap_w[r]
        filled, capped = (round(BAR_CELLS * min(w / tdp_w[r], 1.0)) for w in (power_w[r], cap_w))
        table.append(
            (
                name,
                fleet.gpus[r],
                _state(telemetry, r),
                fleet.models[telemetry.model[r]] if telemetry.status[r] != EMPTY else "-",
                f"{power_w[r]:5.0f} / {cap_w:4.0f}  ",
                f"{'█' * filled + '░' * (capped - filled):{BAR_CELLS}}",
                f"{telemetry.temperature_c[r]:3.0f}",
                f"{telemetry.running[r]:.0f}",
                f"{telemetry.waiting[r]:.0f}",
                f"{telemetry.kv_used[r]:4.0%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    align = "<<<<<<>>>>"
    return head + "".join(
        "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(line, align, widths, strict=True)).rstrip() + "\n"
        for line in table
    )


def draw_rgb(fleet: Fleet, telemetry: Telemetry, plant: SimulatedPlant) -> NDArray[np.uint8]:
    """A picture: tiles for the slots on the left, the last ten minutes of power and load on the right.

    Args:
        fleet: The slots.
        telemetry: Readings of the tick that has just ended.
        plant: The cluster, for its clock, its record and the budget.

    Returns:
        uint8 (540, 960, 3).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_IN, dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(0.02, 0.945, _headline(telemetry, plant), fontsize=10.5, color=INK, weight="bold")
    _draw_tiles(figure.add_axes((0.02, 0.09, 0.50, 0.82)), fleet, telemetry)
    _draw_legend(figure)
    _draw_power(figure.add_axes((0.60, 0.45, 0.38, 0.42)), fleet, plant)
    _draw_load(figure.add_axes((0.60, 0.12, 0.38, 0.22)), fleet, plant)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3].copy()  # type: ignore[no-untyped-call]


def _headline(telemetry: Telemetry, plant: SimulatedPlant) -> str:
    minutes, seconds = divmod(plant.cluster.now_ps // PS_PER_S, 60)
    return (
        f"{minutes:02d}:{seconds:02d}   {telemetry.arrivals_per_s:5.1f} requests/s   "
        f"{telemetry.power_w.sum(axis=1).mean() / 1000:.2f} of {telemetry.budget_w[0] / 1000:.2f} kW   "
        f"{telemetry.slo_attainment:4.0%} within SLO"
    )


def _state(telemetry: Telemetry, slot: int) -> str:
    status = telemetry.status[slot]
    remaining = f" {max(telemetry.ready_in_s[slot], 0.0):.0f} s" if status == LOADING else ""
    return STATUS_NAMES[status] + remaining


def _draw_tiles(axes: Axes, fleet: Fleet, telemetry: Telemetry) -> None:
    """One tile per slot, column by column; with many slots the words make room for the bars."""
    size = len(fleet)
    columns = 1 if size == 1 else max(2, math.ceil(size / TILES_PER_COLUMN))
    lines = max(4, math.ceil(size / columns))
    axes.set(xlim=(0, columns), ylim=(lines, 0))
    axes.axis("off")
    column, line = np.divmod(np.arange(size), math.ceil(size / columns))
    colours = [STATUS_COLOURS[s] for s in telemetry.status]
    labelled = size <= LABELLED_TILES
    left, width = (column + 0.24, 0.44) if labelled else (column + 0.12, 0.82)
    tops = (0.43, 0.62, 0.81) if labelled else (0.30, 0.55, 0.80)

    def boxes(x: ArrayLike, y: ArrayLike, w: ArrayLike, h: float, colour: str | list[str]) -> None:
        axes.barh(y, w, h, left=x, align="edge", color=colour)

    boxes(column + 0.02, line + 0.04, 0.96, 0.92, "#f6f7f8")
    boxes(column + 0.02, line + 0.04, 0.03 if labelled else 0.07, 0.92, colours)
    power_w = telemetry.power_w.mean(axis=0)
    requests = (telemetry.running + telemetry.waiting) / fleet.max_num_seqs
    shares = (power_w / fleet.cap_max_w, requests, telemetry.kv_used)
    for top, share, colour in zip(tops, shares, (BLUE, ORANGE, FAINT), strict=True):
        boxes(left, line + top, width, 0.11, PAPER)
        boxes(left, line + top, width * np.clip(share, 0, 1), 0.11, colour)
    boxes(left + width * telemetry.cap_w / fleet.cap_max_w - 0.005, line + tops[0] - 0.04, 0.01, 0.19, INK)
    for r in range(size):
        x, y, name = column[r], line[r], "/".join(fleet.slots[r].split("/")[-2:])
        if not labelled:
            axes.text(x + 0.12, y + 0.22, f"{r}", fontsize=6.5, color=INK)
            continue
        axes.text(x + 0.08, y + 0.23, name, fontsize=8, color=INK, weight="bold", va="center")
        state = f"{fleet.gpus[r].split('-')[0]} · {_state(telemetry, r)}"
        axes.text(x + 0.95, y + 0.23, state, fontsize=7.5, color=INK, va="center", ha="right")
        values = (
            f"{power_w[r]:.0f} / {telemetry.cap_w[r]:.0f} W",
            f"{telemetry.running[r]:.0f} + {telemetry.waiting[r]:.0f}",
            f"{telemetry.kv_used[r]:.0%} · {telemetry.temperature_c[r]:.0f} °C",
        )
        for top, label, value in zip(tops, ("power", "queue", "KV"), values, strict=True):
            axes.text(x + 0.08, y + top + 0.06, label, fontsize=6.5, color=FAINT, va="center")
            axes.text(x + 0.95, y + top + 0.06, value, fontsize=6.5, color=INK, va="center", ha="right")


def _draw_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    names = (*STATUS_NAMES, "power (| cap)", "running + waiting", "KV cache")
    patches = [Patch(color=c, label=n) for c, n in zip((*STATUS_COLOURS, BLUE, ORANGE, FAINT), names, strict=True)]
    figure.legend(
        handles=patches, loc="lower left", bbox_to_anchor=(0.015, 0.005), ncols=8, fontsize=7, frameon=False,
        handlelength=1, columnspacing=1.2, handletextpad=0.5, labelcolor=INK,
    )  # fmt: skip


def _draw_power(axes: Axes, fleet: Fleet, plant: SimulatedPlant) -> None:
    """Total power, and the budget from the start of the window to the furthest announcement."""
    now_s = plant.cluster.now_ps // PS_PER_S
    power_kw = plant.cluster.history.column("energy_j", WINDOW_S).sum(axis=1) / 1000
    axes.fill_between(np.arange(-len(power_kw), 0), power_kw, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(np.arange(-len(power_kw), 0), power_kw, color=BLUE, linewidth=1.2, label="power")
    past, ahead = np.arange(-min(now_s, WINDOW_S), 1), np.arange(LEAD_TIMES_S[-1] + 1)
    axes.plot(past, plant.budget.at(now_s + past) / 1000, color=RED, linewidth=1.6, label="budget")
    announced_kw = plant.budget.foreseen(now_s, ahead) / 1000
    axes.plot(ahead, announced_kw, color=RED, linewidth=1.6, linestyle=":", label="announced")
    axes.set_ylim(0, 1.08 * fleet.cap_max_w.sum() / 1000)
    _style(axes, "GPU power, kW")


def _draw_load(axes: Axes, fleet: Fleet, plant: SimulatedPlant) -> None:
    """Requests in the batches and in the queues of all slots; the scale is linear up to 10, then logarithmic."""
    for name, colour in (("running", BLUE), ("waiting", ORANGE)):
        requests = plant.cluster.history.column(name, WINDOW_S).sum(axis=1)
        axes.plot(np.arange(-len(requests), 0), requests, color=colour, linewidth=1.2, label=name)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(0, 4 * fleet.max_num_seqs * len(fleet))
    axes.set_xlabel("minutes from now", fontsize=8, color=INK, labelpad=2)
    _style(axes, "requests")


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left", pad=6)
    axes.set_xlim(-WINDOW_S, LEAD_TIMES_S[-1])
    axes.set_xticks(np.arange(-WINDOW_S, 1, 120), [f"{m}" for m in range(-WINDOW_S // 60, 1, 2)])
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.grid(axis="y", color=PAPER)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=INK, length=0)
    axes.minorticks_off()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=3, fontsize=8, frameon=False, labelcolor=INK,
        borderpad=0, handlelength=1.4, columnspacing=1.0,
    )  # fmt: skip
