"""Energy and runtime of a query as published for energy-optimal serving: linear in tokens in, tokens out, and products.

These figures are no part of the simulator's physics. They are the form that offline energy-optimal serving plans with,
on its own measurements: no KV cache, one query at a time, models split by layer over A100-40GB.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from ..errors import InputError
from ..files import read_toml
from .fits import Spec

BUILTIN = Path(__file__).with_name("energy_inference.toml")


class Regression(Spec):
    """One fitted form: what a query takes, by the tokens that go in and come out.

    Attributes:
        input: Per input token.
        output: Per output token.
        product: Per input token and output token.
        output_squared: Per square of the output tokens; 0 in the paper's form.
        r2_uncentred: Share of the sum of squares that it explains, as the paper counts it.
        r2_centred: Share of the variance that it explains.
    """

    input: float
    output: float
    product: float
    output_squared: float = 0.0
    r2_uncentred: float
    r2_centred: float

    def __call__(self, input_tokens: float, output_tokens: float) -> float:
        """The figure for one query."""
        slope = self.output + self.product * input_tokens + self.output_squared * output_tokens
        return self.input * input_tokens + slope * output_tokens


class Deployment(Spec):
    """A model on its GPUs, each form for energy (joules) and runtime (seconds).

    Attributes:
        energy: Energy, with the square of the output tokens.
        runtime: Runtime, with the square of the output tokens.
        energy_paper: Energy in the paper's form.
        runtime_paper: Runtime in the paper's form.
    """

    energy: Regression
    runtime: Regression
    energy_paper: Regression
    runtime_paper: Regression


def load(path: Path = BUILTIN) -> Mapping[str, Deployment]:
    """The fitted forms of a file, by model and number of GPUs, such as ``falcon-40b on 3``.

    Raises:
        InputError: The file cannot be read, or an entry does not hold.
    """
    tables = read_toml(path)
    try:
        return {name: Deployment.model_validate(entry) for name, entry in tables["deployments"].items()}
    except (KeyError, AttributeError) as fault:
        remedy = "Give one that `llmcluster calibrate energy-inference` wrote"
        raise InputError(str(path), "has no table [deployments]", remedy) from fault
    except ValidationError as fault:
        first = fault.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {field}", first["msg"], "Fit it again with `llmcluster calibrate`") from fault
