"""What a query takes, by its tokens: e(in, out) and r(in, out) of a model on a system, fitted by least squares.

Wilkins et al. fit e = a·in + b·out + c·in·out, and r alike, to queries of a grid of lengths. Without a KV cache, as in
their measurements, every output token computes the whole sequence again, which takes out² too: the second form has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...simulator.catalog.energy_inference import Regression
from ...simulator.errors import InputError

F64 = NDArray[np.float64]

TERMS = 4


def regressors(input_tokens: ArrayLike, output_tokens: ArrayLike) -> F64:
    """The terms in, out, in·out and out² of each query (n, 4); the paper's form has the first three."""
    tokens_in, tokens_out = np.asarray(input_tokens, np.float64), np.asarray(output_tokens, np.float64)
    return np.stack([tokens_in, tokens_out, tokens_in * tokens_out, tokens_out**2], axis=-1)


def determined(terms: F64) -> bool:
    """Whether queries differ enough in both lengths for as many coefficients as there are terms."""
    return len(terms) > 0 and int(np.linalg.matrix_rank(terms / terms.max(axis=0))) == terms.shape[1]


def regress(terms: F64, measured: F64) -> Regression:
    """Fits by least squares in the unit of ``measured``, as published: long queries weigh most.

    Args:
        terms: What :func:`regressors` gives (n, 4), or its first three columns for the paper's form.
        measured: What each query took (n,).

    Returns:
        The coefficients and both R²: the paper's code counts it without centring, which flatters.

    Raises:
        InputError: The queries do not determine the coefficients, or all took the same.
    """
    if not determined(terms):
        problem = f"{len(terms)} of them do not determine {terms.shape[1]} coefficients"
        raise InputError("queries", problem, "Give queries of several input and output lengths")
    if np.ptp(measured) == 0:
        raise InputError("queries", f"all of them took {measured[0]:g}", "Check the measurements")
    coefficients = np.linalg.lstsq(terms, measured, rcond=None)[0]
    left = float(np.sum((measured - terms @ coefficients) ** 2))
    named = dict(zip(("input", "output", "product", "output_squared"), coefficients.tolist(), strict=False))
    return Regression(
        **named,
        r2_uncentred=1 - left / float(np.sum(measured**2)),
        r2_centred=1 - left / float(np.sum((measured - measured.mean()) ** 2)),
    )


def coefficients(regression: Regression) -> F64:
    """Those of :func:`regressors`, in its order (4,)."""
    return np.array([regression.input, regression.output, regression.product, regression.output_squared])


@dataclass(frozen=True)
class Fitted:
    """One regression and the least that was measured, below which it is not believed.

    Attributes:
        form: The fitted form.
        least: The smallest measured value, in its unit.
    """

    form: Regression
    least: float

    @classmethod
    def to(cls, terms: F64, measured: F64) -> Fitted:
        """Fits what queries took; see :func:`regress`."""
        return cls(regress(terms, measured), float(measured.min()))

    def __call__(self, input_tokens: ArrayLike, output_tokens: ArrayLike) -> F64:
        """What queries take (n,)."""
        predicted = regressors(input_tokens, output_tokens) @ coefficients(self.form)
        return np.asarray(np.maximum(predicted, self.least))


@dataclass(frozen=True)
class WorkloadModel:
    """A model on a system: what a query takes there.

    Attributes:
        name: Model and system.
        gpu_energy_j: Energy of the GPUs, joules.
        cpu_energy_j: Energy of the CPUs, joules; ``None`` where nobody measured it.
        runtime_s: Time for which it holds the system, seconds.
    """

    name: str
    gpu_energy_j: Fitted
    cpu_energy_j: Fitted | None
    runtime_s: Fitted

    def energy_j(self, input_tokens: ArrayLike, output_tokens: ArrayLike) -> F64:
        """Energy of queries on GPUs and, where it is known, CPUs, joules (n,)."""
        gpu = self.gpu_energy_j(input_tokens, output_tokens)
        return gpu if self.cpu_energy_j is None else gpu + self.cpu_energy_j(input_tokens, output_tokens)
