"""Rebuilds ``docs/fidelity.md``: validates every published source, and predicts each model from the others.

The errors to expect of what was never measured, which the simulator tells its users, come from the same runs.

Run as ``python -m llmcluster.experiments.write_fidelity [--data DIR]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import Progress

from ..simulator.catalog import Catalog
from ..simulator.confidence import EXPECTED_ERRORS, Level
from ..simulator.files import whole
from .fidelity.calibrate import calibrated
from .fidelity.documents import DOCUMENTS, Document
from .fidelity.errors import Comparison
from .fidelity.expected import expected_errors, write_expected_errors
from .fidelity.leave_out import leave_one_model_out
from .fidelity.page import Result, page
from .fidelity.plots import plot
from .fidelity.registry import SOURCES, load
from .fidelity.source import Row, Source
from .fidelity.sources.mlenergy_sensitivity import ONCE, VARIANTS, sensitivity, sent_once
from .fidelity.validate import read, validate
from .output import announce_compilation, progress_bar

DOCS = Path(__file__).parent.parent / "docs"
PAGE, MISSES, PRIORS, FIGURES = "fidelity.md", "fidelity-misses.md", "fidelity-priors.md", "figures"
SEED = 0
SERVING = "mlenergy"
"""The source with many models on more than one GPU."""


def write_fidelity(documents: Sequence[Document], data: Path, docs: Path) -> Path:
    """Validates what is registered, and writes the page and its pictures.

    Args:
        documents: Sources with their files and targets; those without a reader are passed over.
        data: Folder of the measured data.
        docs: Folder of the page, which holds the hand-written text on misses, and what ``write_priors`` wrote.

    Returns:
        The page.
    """
    misses, priors = ((docs / name).read_text(encoding="utf-8") for name in (MISSES, PRIORS))
    (docs / FIGURES).mkdir(exist_ok=True)
    with progress_bar() as progress:
        results = [_result(one, data, docs, progress) for one in documents if one.source in SOURCES]
        expected = _expected(results, progress)
        sensitive = _sensitive(results, progress)
    with whole(docs / PAGE) as partial:
        partial.write_text(page(results, misses, priors, expected, sensitive), encoding="utf-8")
    return docs / PAGE


def _expected(results: Sequence[Result], progress: Progress) -> Mapping[Level, Mapping[str, float]]:
    """Errors by what backs the figures; also written where the simulator looks for them."""
    serving = next((one for one in results if one.document.source == SERVING), None)
    if serving is None or serving.left_out is None:
        return {}
    source, compared = serving.validation.source, serving.validation.comparison
    task = progress.add_task("what to expect elsewhere", total=2)
    errors = expected_errors(
        source, compared.rows, compared, serving.left_out, SEED, lambda done: progress.update(task, completed=done)
    )
    write_expected_errors(errors, EXPECTED_ERRORS)
    return errors


def _sensitive(results: Sequence[Result], progress: Progress) -> Mapping[str, Mapping[str, tuple[float, float]]]:
    """What hangs on what is assumed of the serving runs: lengths for models where nothing else is in doubt, repeats."""
    serving = next((one for one in results if one.document.source == SERVING), None)
    if serving is None:
        return {}
    rows = [row for row in serving.validation.comparison.rows if _is_plain(row)]
    task = progress.add_task("with other requests", total=len(VARIANTS) + 1)
    table = sensitivity(rows, Catalog.builtin(), SEED, lambda done: progress.update(task, completed=done))
    table[ONCE] = sent_once(serving.validation.comparison.rows, Catalog.builtin(), SEED)
    progress.update(task, completed=len(VARIANTS) + 1)
    return table


def _is_plain(row: Row) -> bool:
    return row.groups["gpu"] == "H100-80GB" and row.groups["model"] in ("Qwen3-8B", "Qwen3-32B")


def _result(document: Document, data: Path, docs: Path, progress: Progress) -> Result:
    source, files, catalog = load(document.source), document.paths(data), Catalog.builtin()
    rows = read(source, files, catalog)
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
