"""Length models: how many tokens a request brings and asks for."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, SerializeAsAny

from .kinds import Kinds, Part

Tokens = NDArray[np.int32]


class Lengths(Part):
    """Joint distribution of prompt and output length."""

    kind: str

    @abstractmethod
    def sample(self, n: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Draws ``n`` pairs: prompt tokens and output tokens, int32, at least 1."""


LENGTHS: Kinds[Lengths] = Kinds("requests")
AnyLengths = Annotated[SerializeAsAny[Lengths], BeforeValidator(LENGTHS.parse)]


@LENGTHS.register("fixed")
class FixedLengths(Lengths):
    """Every request alike."""

    kind: Literal["fixed"] = "fixed"
    prompt_tokens: int = Field(ge=1, lt=2**31)
    output_tokens: int = Field(ge=1, lt=2**31)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Draws nothing: the pairs are constant."""
        return np.full(n, self.prompt_tokens, np.int32), np.full(n, self.output_tokens, np.int32)


@LENGTHS.register("lognormal")
class LognormalLengths(Lengths):
    """Log-normal prompt and output lengths, rounded and clipped, with correlated logarithms.

    Attributes:
        prompt_median: Median prompt length, tokens.
        prompt_sigma: Standard deviation of its natural logarithm.
        output_median: Median output length, tokens.
        output_sigma: Standard deviation of its natural logarithm.
        correlation: Correlation of the two logarithms.
        max_tokens: Longest prompt and longest output, tokens.
    """

    kind: Literal["lognormal"] = "lognormal"
    prompt_median: float = Field(ge=1)
    prompt_sigma: float = Field(ge=0)
    output_median: float = Field(ge=1)
    output_sigma: float = Field(ge=0)
    correlation: float = Field(0.0, ge=-1, le=1)
    max_tokens: int = Field(32_768, ge=1, lt=2**31)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Draws ``n`` pairs."""
        x, y = rng.standard_normal((2, n))
        y = self.correlation * x + np.sqrt(1 - self.correlation**2) * y
        prompt = self.prompt_median * np.exp(self.prompt_sigma * x)
        output = self.output_median * np.exp(self.output_sigma * y)
        return self._tokens(prompt), self._tokens(output)

    def _tokens(self, length: NDArray[np.float64]) -> Tokens:
        return np.clip(np.rint(length), 1, self.max_tokens).astype(np.int32)
