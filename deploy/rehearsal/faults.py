"""What an emulated server can be made to do wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Faults:
    """What a server does wrong.

    Attributes:
        delay_s: Every answer begins so much later.
        token_delay_s: Every token of a stream comes so much later.
        metrics_down: `/metrics` answers 500.
        silent: It takes requests of any kind and never answers.
        lies: Values of metrics that are told in place of the true ones, by name without ``vllm:`` and ``_total``.
    """

    delay_s: float = 0.0
    token_delay_s: float = 0.0
    metrics_down: bool = False
    silent: bool = False
    lies: Mapping[str, float] = field(default_factory=dict)
