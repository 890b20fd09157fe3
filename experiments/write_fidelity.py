"""Rebuilds ``docs/fidelity.md``: validates every published source, and predicts each model from the others.

Run as ``python -m llmcluster.experiments.write_fidelity [--data DIR]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import Progress

from ..simulator.catalog import Catalog
from ..simulator.files import whole
from .fidelity.calibrate import calibrated
from .fidelity.documents import DOCUMENTS, Document
from .fidelity.errors import Comparison
from .fidelity.leave_out import leave_one_model_out
from .fidelity.page import Result, page
from .fidelity.plots import plot
from .fidelity.registry import SOURCES, load
from .fidelity.source import Row, Source
from .fidelity.validate import read, validate
from .output import announce_compilation, progress_bar

DOCS = Path(__file__).parent.parent / "docs"
PAGE, MISSES, FIGURES = "fidelity.md", "fidelity-misses.md", "figures"
SEED = 0


def write_fidelity(documents: Sequence[Document], data: Path, docs: Path) -> Path:
    """Validates what is registered, and writes the page and its pictures.

    Args:
        documents: Sources with their files and targets; those without a reader are passed over.
        data: Folder of the measured data.
        docs: Folder of the page, which holds the hand-written text on misses.

    Returns:
        The page.
    """
    misses = (docs / MISSES).read_text(encoding="utf-8")
    (docs / FIGURES).mkdir(exist_ok=True)
    with progress_bar() as progress:
        results = [_result(one, data, docs, progress) for one in documents if one.source in SOURCES]
    with whole(docs / PAGE) as partial:
        partial.write_text(page(results, misses), encoding="utf-8")
    return docs / PAGE


def _result(document: Document, data: Path, docs: Path, progress: Progress) -> Result:
    source, files, catalog = load(document.source), document.paths(data), Catalog.builtin()
    rows = read(source, files)
    task = progress.add_task(document.source, total=len(rows))
    validation = validate(source, rows, catalog, SEED, lambda done: progress.update(task, completed=done))
    figure = f"{FIGURES}/fidelity-{document.source}.png"
    with whole(docs / figure) as partial:
        plot(source, validation.comparison, partial)
    return Result(document, validation, _left_out(source, rows, catalog, progress), files, figure)


def _left_out(source: Source, rows: Sequence[Row], catalog: Catalog, progress: Progress) -> Comparison | None:
    """Each model predicted from the others, where models share figures that are fitted."""
    models = {row.groups["model"] for row in rows if "model" in row.groups}
    if not hasattr(source, "fit") or len(models) < 2:
        return None
    task = progress.add_task(f"{source.name}, leaving one model out", total=len(models))
    rng = np.random.default_rng(SEED)
    left_out = leave_one_model_out(
        calibrated(source), rows, catalog, SEED, rng, lambda done: progress.update(task, completed=done)
    )
    return left_out if any(left_out.simulated) else None


def main(
    data: Annotated[
        Path, typer.Option(envvar="LLMCLUSTER_DATA", help="Folder of the measured data")
    ] = DOCS.parent.parent / "shared" / "data",
) -> None:
    """Rebuilds docs/fidelity.md from the measured data."""
    announce_compilation()
    typer.echo(f"page: {write_fidelity(DOCUMENTS, data, DOCS)}")


if __name__ == "__main__":
    typer.run(main)
