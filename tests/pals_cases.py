"""What tests of PALS share: a busy scenario with both knobs, and tables made by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np

from llmcluster.agents.pals.table import PowerTable

Tiny = Callable[..., dict[str, Any]]
MODEL = "Llama-3.1-8B"
BOTH = {"groups": ["route", "cap", "concurrency"], "levels": 9}


def busy(tiny: Tiny, rate_per_s: float, **sections: Any) -> dict[str, Any]:
    """Two H100, ticks of a second, two minutes, both knobs."""
    servers = [{"gpu": "H100-80GB", "gpus": 2, "model": MODEL}]
    given = {"tick_s": 1, "horizon_s": 120, "actions": BOTH, "budget": {"levels": [1.0]}}
    return tiny(servers, rate_per_s, **(given | sections))


def made_table(tokens: list[list[float]], watts: list[list[float]], tpot_s: float = 0.01) -> PowerTable:
    t, p = np.array(tokens, np.float64), np.array(watts, np.float64)
    caps, batches = t.shape
    return PowerTable(100.0 * np.arange(1, caps + 1), 2 ** np.arange(batches), t, p, p, np.full(t.shape, tpot_s))
