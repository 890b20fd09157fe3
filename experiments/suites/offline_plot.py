"""Picture of the front: energy against accuracy of every policy of the offline suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ...simulator.files import whole
from ..fidelity.plots import COLOURS, DPI

INCHES = (6.4, 4.2)


def plot_front(front: Sequence[Mapping[str, str | float]], path: Path) -> None:
    """Draws the rows of the suite's table of the front: policies with a knob as lines, the others as points.

    Args:
        front: Rows with ``policy``, ``energy kWh`` and ``accuracy``.
        path: A PNG file; the same rows give the same bytes.
    """
    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.subplots()
    policies = list(dict.fromkeys(str(row["policy"]) for row in front))
    for policy, colour in zip(policies, COLOURS * len(policies), strict=False):
        own = [row for row in front if row["policy"] == policy]
        points = sorted((float(row["energy kWh"]), 100 * float(row["accuracy"])) for row in own)
        style = "o-" if len(points) > 1 else "s"
        axes.plot(*zip(*points, strict=True), style, color=colour, markersize=4, linewidth=1, label=policy)
    axes.set_xscale("log")
    axes.set_xlabel("energy of all queries, kWh")
    axes.set_ylabel("mean accuracy, %")
    axes.legend(fontsize=7, frameon=False)
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})
