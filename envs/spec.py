"""What parts of files of settings have in common, and the SLO, which deployment states in the same words."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """A frozen part of a file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SloSpec(Spec):
    """A request meets its SLO if both hold."""

    ttft_s: float = Field(default=2.0, gt=0, description="Time to first token at most, seconds.")
    tpot_s: float = Field(
        default=0.05, gt=0, description="Mean time per output token after the first at most, seconds."
    )
