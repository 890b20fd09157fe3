"""An engine without CUDA graphs, as vLLM was in 2023: figures that its measurements need beside the catalogue's.

Such an engine launches every kernel from Python. While the GPUs have more to do than the host takes to launch it, the
launches hide behind them; else the GPUs wait, and an iteration takes the time of its launches whatever the batch is.
The figures are shared by all models on the servers of one GPU (their processors launch at different speeds).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tomllib import TOMLDecodeError, loads
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from ...simulator.catalog import Scale
from ...simulator.catalog.fits import Spec
from ...simulator.errors import InputError
from .scalars import RESAMPLES

Seconds = Annotated[float, Field(ge=0, le=10)]
Floats = NDArray[np.float64]

LARGE_TOKENS = 2048
"""Iterations over more tokens are slower by the token, on both GPUs and for both models."""
FIGURES = ("launch_s", "first_s", "sequence_s", "slow_link")
TRIED = (np.arange(61) * 1e-3, np.arange(16) * 2e-3, np.arange(8) * 1e-4, np.arange(11) * 1.0)
"""What the fit may give each of them."""
CHUNK = 1024


class Eager(Spec):
    """Figures of an engine without CUDA graphs on the servers of one GPU.

    Attributes:
        launch_s: Time that the host takes to launch the kernels of an iteration, while which the GPUs may work.
        first_s: What a prompt takes besides, before its iteration.
        sequence_s: What every sequence of an iteration takes besides.
        slow_link: How many times more slowly than the others the tokens beyond ``LARGE_TOKENS`` of an iteration are
            all-reduced, less one.
        source: The measurements.
    """

    launch_s: Seconds = 0.0
    first_s: Seconds = 0.0
    sequence_s: Seconds = 0.0
    slow_link: Annotated[float, Field(ge=0, le=100)] = 0.0
    source: str

    @property
    def figures(self) -> Floats:
        """The figures in the order of ``FIGURES``."""
        return np.array([getattr(self, name) for name in FIGURES])


class Figures(Spec):
    """What is fitted to measurements of such an engine, as a TOML file.

    Attributes:
        engines: By name of the GPU.
        scales: What is left of each model, GPU and parallelism.
    """

    engines: dict[str, Eager] = Field(default_factory=dict)
    scales: tuple[Scale, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Figures:
        """Reads a file.

        Raises:
            InputError: It cannot be read, or a figure does not hold.
        """
        try:
            return cls.model_validate(loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, TOMLDecodeError) as error:
            raise InputError(str(path), f"cannot be read as TOML ({error})", "Give what calibrate wrote") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in (path, *first["loc"]))
            raise InputError(where, first["msg"], "Correct it, or calibrate anew") from error

    def engine(self, gpu: str) -> Eager:
        """That of a GPU; one that launches at once where none was fitted."""
        return self.engines.get(gpu) or Eager(source="none: as with CUDA graphs")

    def scale(self, model: str, gpu: str, tp: int) -> Scale:
        """The factors of a model on a GPU; all 1 where none were fitted."""
        own = Scale(model=model, gpu=gpu, tp=tp, source="none: the figures of the GPU as they are")
        return next((scale for scale in self.scales if scale.cut == own.cut), own)


class Waits(NamedTuple):
    """Iterations as such an engine is told of them (N,): what the host and the GPUs do in turn.

    Attributes:
        host_s: The GPUs wait for the host whatever they have to do.
        gpu_s: They work.
        large_s: Part of that in which tokens beyond ``LARGE_TOKENS`` are all-reduced.
        sequences: Requests of the batch.
        prompt: Whether it is the iteration of a prompt.
    """

    host_s: Floats
    gpu_s: Floats
    large_s: Floats
    sequences: NDArray[np.int64]
    prompt: NDArray[np.bool_]

    def length_s(self, figures: Floats) -> Floats:
        """Length of the iterations; ``FIGURES`` of shape (4, K, 1) give (K, N)."""
        launch_s, first_s, sequence_s, slow_link = figures
        busy_s = np.maximum(launch_s, self.gpu_s + slow_link * self.large_s)
        return np.asarray(self.host_s + first_s * self.prompt + sequence_s * self.sequences + busy_s)


def fit(
    waits: Waits, measured_s: Floats, weights: Floats, configurations: Sequence[str], rng: np.random.Generator
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Figures with the least weighted sum of absolute logarithms of measured over simulated length.

    Every combination of a grid is tried, so that the minimum needs no starting point.

    Args:
        waits: The iterations (N,).
        measured_s: Their measured lengths.
        weights: How much each counts.
        configurations: That of each.
        rng: Draws the resamples.

    Returns:
        The figures, and their 95 % bootstrap intervals over configurations, by name.
    """
    tried = np.array(np.meshgrid(*TRIED, indexing="ij")).reshape(len(TRIED), -1)
    names, index = np.unique(np.asarray(configurations), return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    counted = (np.concatenate([np.ones((1, len(names)), np.int64), drawn])[:, index] * weights).T
    least, best = np.full(counted.shape[1], np.inf), np.zeros((len(TRIED), counted.shape[1]))
    for start in range(0, tried.shape[1], CHUNK):
        some = tried[:, start : start + CHUNK]
        loss = np.abs(np.log(measured_s / waits.length_s(some[:, :, None]))) @ counted
        first = np.argmin(loss, axis=0)
        found = np.take_along_axis(loss, first[None], axis=0)[0]
        better = found < least
        least[better], best[:, better] = found[better], some[:, first[better]]
    low, high = np.quantile(best[:, 1:], (0.025, 0.975), axis=1)
    return (
        {name: round(float(value), 4) for name, value in zip(FIGURES, best[:, 0], strict=True)},
        {name: (float(low[i]), float(high[i])) for i, name in enumerate(FIGURES)},
    )
