"""Rebuilds the section of ``docs/fidelity.md`` on how far what a model has of its own is trusted; takes minutes.

Run as ``python -m llmcluster.experiments.write_priors [--data DIR]``, and ``write_fidelity`` after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from ..simulator.catalog import Catalog
from ..simulator.files import whole
from .fidelity.calibrate import fit_rows
from .fidelity.documents import DOCUMENTS
from .fidelity.governed_fit import Priors
from .fidelity.sources.mlenergy import MlEnergy
from .fidelity.sources.mlenergy_priors import WIDTHS, left_out_errors
from .fidelity.validate import read
from .output import announce_compilation, progress_bar
from .write_fidelity import DOCS, PRIORS

COLUMNS = {
    "itl": "ITL",
    "throughput": "throughput",
    "power": "power",
    "itl_offset": "ITL with offsets",
    "throughput_offset": "throughput with offsets",
}
TEXT = """\
<!-- Written by `python -m llmcluster.experiments.write_priors`; do not edit by hand. -->

A fit gives each way of serving (a model on a GPU at one parallelism) an offset of its iterations and a factor of its
power, both held to those of the GPU by a prior of some width. Here each configuration of the **fit part** of which the
model has several on the GPU is predicted from all other configurations of the fit part ({rows} rows); held-out rows are
not looked at. Medians of the absolute error, and in brackets means, at several widths:"""
RESULT = """\
In bold what the catalogue is fitted with; the known misses say why. Offsets do not help beyond doubt, so that the
catalogue has none: in the fit they keep the shared figures from bending to a model."""


def section(errors: Mapping[Priors, Mapping[str, NDArray[np.float64]]]) -> str:
    """The section, from errors by widths and quantity."""
    rows = len(next(iter(errors.values()))["itl"])
    lines = [
        f"| offset, ms | factor | {' | '.join(COLUMNS.values())} |",
        "|---:|---:|" + "---:|" * len(COLUMNS),
    ]
    for priors, found in errors.items():
        widths = (f"{1e3 * priors.step_s:.2g}", f"{100 * priors.factor:.2g} %")
        cells = [*(f"**{width}**" if priors == Priors() else width for width in widths), *_cells(found)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n\n".join([TEXT.format(rows=rows), "\n".join(lines), RESULT]) + "\n"


def _cells(found: Mapping[str, NDArray[np.float64]]) -> Sequence[str]:
    sizes = (np.abs(found[quantity]) for quantity in COLUMNS)
    return [f"{100 * np.median(size):.1f} ({100 * size.mean():.1f}) %" for size in sizes]


def main(
    data: Annotated[
        Path, typer.Option(envvar="LLMCLUSTER_DATA", help="Folder of the measured data")
    ] = DOCS.parent.parent / "shared" / "data",
) -> None:
    """Leaves out configurations at several widths, and writes docs/fidelity-priors.md."""
    announce_compilation()
    source, catalog = MlEnergy(), Catalog.builtin()
    document = next(one for one in DOCUMENTS if one.source == source.name)
    rows = fit_rows(source, read(source, document.paths(data), catalog))
    served = source.served(rows, catalog)
    errors = {}
    with progress_bar() as progress:
        for priors in WIDTHS:
            task = progress.add_task(f"offset {priors.step_s:g} s, factor {priors.factor:g}", total=None)
            errors[priors] = left_out_errors(
                rows,
                served,
                priors,
                lambda done, task=task: progress.update(task, completed=done),  # type: ignore[misc]
            )
    with whole(DOCS / PRIORS) as partial:
        partial.write_text(section(errors), encoding="utf-8")
    typer.echo(f"section: {DOCS / PRIORS}")


if __name__ == "__main__":
    typer.run(main)
