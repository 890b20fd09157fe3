"""How far what a model has of its own is trusted, chosen by leaving out configurations of the split's fit part.

A model's own figures are worth having if they help with its runs that they were not fitted to. So each configuration of
a model that has several on a GPU is predicted from all others, at priors of several widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..demand import Served
from ..governed_fit import Priors, fit_governed, seen_with_offsets
from ..roofline_fit import START
from ..source import Advance, Row
from .mlenergy_fit import Part, parts

WIDTHS = (
    Priors(step_s=1e-6),
    Priors(step_s=1e-3),
    Priors(),
    Priors(factor=1e-3),
)
"""Those that fit as good as no offset, or no factor, among them."""

F64 = NDArray[np.float64]


def left_out_errors(
    rows: Sequence[Row], served: Sequence[Served | None], priors: Priors, advance: Advance
) -> dict[str, F64]:
    """Relative errors of runs whose configuration was left out of the fit.

    Args:
        rows: The fit part.
        served: The run of each row; none where it cannot be simulated.
        priors: How far a way of serving may be from the others.
        advance: Is told how many configurations are done.

    Returns:
        By quantity; ``itl_offset`` and ``throughput_offset`` as if the offset were kept.
    """
    errors: dict[str, list[F64]] = {}
    centre, done = START, 0
    for _, part in parts(rows, served):
        names = np.array([row.configuration for row in part.rows])
        for name in several(part):
            out = names == name
            found = fit_governed(part.runs, centre, np.where(out, 0.0, part.counts), priors=priors)
            told = part.residuals(found)
            offset, measured = seen_with_offsets(part.runs, found), part.runs.seen
            told["itl_offset"] = offset.itl_s / measured.itl_s - 1
            told["throughput_offset"] = offset.throughput / measured.throughput - 1
            for quantity, values in told.items():
                errors.setdefault(quantity, []).append(values[out & (part.counts > 0)])
            advance(done := done + 1)
        centre = dict(fit_governed(part.runs, centre, part.counts, priors=priors).timing.figures)
    return {quantity: np.concatenate(values) for quantity, values in errors.items()}


def several(part: Part) -> list[str]:
    """Configurations of models that have several of them among the rows of a GPU."""
    by_model: dict[str, set[str]] = {}
    for row in part.rows:
        by_model.setdefault(row.groups["model"], set()).add(row.configuration)
    return sorted(name for names in by_model.values() if len(names) > 1 for name in names)
