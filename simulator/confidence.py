"""How far off the simulator is to be expected for a model on a GPU, from how it did on measured ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from .catalog import Catalog
from .files import read_toml

EXPECTED_ERRORS = Path(__file__).parent / "catalog" / "expected_errors.toml"
"""Written by ``python -m llmcluster.experiments.write_fidelity`` from the same runs as ``docs/fidelity.md``."""

Level = Literal["fitted", "shared", "carried_over", "guessed"]
LEVELS: tuple[Level, ...] = get_args(Level)

MEANING = {
    "fitted": "calibrated for this model, GPU and parallelism",
    "shared": "not calibrated for this model: the figures that other models on this GPU share",
    "carried_over": "not calibrated: the figures of another GPU, scaled by data sheet",
    "guessed": "not calibrated: the model's dimensions are guessed from its size",
}


@dataclass(frozen=True)
class Expected:
    """Median absolute relative errors on measured rows of such a kind.

    Attributes:
        itl: Of the median inter-token latency.
        power: Of the mean power of the GPUs.
        rows: Measured rows that they are the medians of.
        gpus: The GPUs of those rows, which may lack the one that is asked about.
    """

    itl: float
    power: float
    rows: int
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Confidence:
    """What backs the figures of a model on a GPU.

    Attributes:
        level: The kind of backing.
        expected: How far off they are to be expected.
        gpu: The GPU that was asked about.
    """

    level: Level
    expected: Expected
    gpu: str

    @property
    def calibrated(self) -> bool:
        """Whether this very model, GPU and parallelism were calibrated."""
        return self.level == "fitted"

    def __str__(self) -> str:
        """One line for people."""
        errors = f"expect {self.expected.itl:.0%} of ITL and {self.expected.power:.0%} of power"
        rows = f"medians over {self.expected.rows} measured rows on {' and '.join(self.expected.gpus)}"
        rows += "" if self.gpu in self.expected.gpus else f", none on {self.gpu}"
        return f"{MEANING[self.level]}; {errors} ({rows})"


def confidence(catalog: Catalog, model: str, gpu: str, tp: int = 1, pp: int = 1, ep: bool = False) -> Confidence:
    """What backs the figures of a model on a GPU.

    Args:
        catalog: GPUs and models.
        model: Name of the model.
        gpu: Name of the GPU.
        tp: GPUs that share every layer.
        pp: Pipeline stages.
        ep: Whether experts are spread whole.

    Returns:
        The kind of backing and the error that it had where it was measured. Pipelines were never measured and count as
        their stages.

    Raises:
        InputError: An unknown model or GPU.
    """
    spec, card = catalog.model(model), catalog.gpu(gpu)
    if spec.guessed:
        level: Level = "guessed"
    elif not card.calibrated:
        level = "carried_over"
    elif (spec.name, card.name, tp, 1, ep) in catalog.scales:
        level = "fitted"
    else:
        level = "shared"
    return Confidence(level, expected_errors()[level], card.name)


@cache
def expected_errors() -> MappingProxyType[Level, Expected]:
    """The errors of every level."""
    tables = read_toml(EXPECTED_ERRORS)
    return MappingProxyType(
        {level: Expected(**tables[level] | {"gpus": tuple(tables[level]["gpus"])}) for level in LEVELS}
    )
