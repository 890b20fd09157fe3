"""Rebuilds ``docs/claims.md``: what published systems claim, and what came of it here.

Run as ``python -m llmcluster.experiments.write_claims``; it plays every suite anew, and keeps each one's figures in
``runs/claims``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..simulator.files import whole
from .output import people, progress_bar
from .suites.plots import draw
from .suites.registry import SUITES
from .suites.show import run_suite, suite_json, suite_page
from .suites.suite import SuiteResult

EPISODES, SEED = 10, 1
"""Agents and suites were set up with seed 0 in view: another one draws traffic that nothing was chosen on."""
ROOT = Path(__file__).parent.parent
RUNS = Path("runs/claims")


def write_page(results: Sequence[SuiteResult], folder: Path) -> Path:
    """Writes ``claims.md``, and the pictures beside it.

    Args:
        results: The suites.
        folder: Where the page goes, and ``figures`` in it.

    Returns:
        The page.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    lines = [
        "# Claims of published systems",
        "",
        "<!-- Written by `python -m llmcluster.experiments.write_claims`; do not edit by hand. -->",
        "",
        f"Each system works here as an agent among others, and its claims are tried on the same simulator: {EPISODES} "
        "episodes or more, the same traffic for all that is compared, paired differences, bootstrap intervals of 95 %. "
        "A claim that does not hold here is said not to, and why. Settings of the agents and of the sites they run "
        f"were chosen with the traffic of seed 0 in view; what stands here was played on that of seed {SEED}.",
        "",
    ]
    verdicts = [claim.verdict for result in results for claim in result.claims]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    lines += [f"Of {len(verdicts)} claims: {counts}.", ""] if verdicts else []
    for result in results:
        pictures = {}
        for number, plot in enumerate(result.plots):
            pictures[plot.title] = Path("figures") / f"claims-{result.suite}-{number}.png"
            draw(result, plot, folder / pictures[plot.title])
        lines += suite_page(result, pictures, f" --episodes {EPISODES} --seed {SEED}")
    page = folder / "claims.md"
    with whole(page) as partial:
        partial.write_text("\n".join(lines))
    return page


def write_claims(runs: Path = RUNS, docs: Path = ROOT / "docs") -> None:
    """Runs every suite, keeps its figures, and writes the page."""
    runs.mkdir(parents=True, exist_ok=True)
    results = []
    with progress_bar() as progress:
        for name in SUITES:
            results.append(run_suite(name, EPISODES, SEED, progress))
            with whole(runs / f"{name}.json") as partial:
                partial.write_text(json.dumps(suite_json(results[-1]), indent=1))
            page = write_page(results, docs)
    people(None).print(f"page: {page}")


if __name__ == "__main__":
    write_claims()
