"""Workload models of slots from sweeps of the simulator, where nobody has measured the model on the system."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...simulator.topology import EngineSpec, ServerSpec
from ..sweep import steady_state
from .models import Fitted, WorkloadModel, regressors

IN_FLIGHT = 32
"""Requests in a well-filled batch: a query costs what it adds to one, not what it takes alone."""
PROMPTS, OUTPUTS = (128, 1024, 3072), (16, 128, 512)


@lru_cache(maxsize=1024)
def simulated_model(
    slot: ServerSpec, engine: EngineSpec, cap_share: float = 1.0, in_flight: int = IN_FLIGHT
) -> WorkloadModel:
    """Fits the second form to a grid of lengths on one slot.

    Energies are those above a slot at rest. Runtime is the time of the slot that a query takes, the others of its batch
    having theirs: what is served in a second adds up to one second.

    Args:
        slot: The slot, see :func:`~llmcluster.agents.sweep.alone`.
        engine: Limits of its engine.
        cap_share: Power limit as a share of its range.
        in_flight: Requests in flight; 1 for queries one by one, as the paper measured them.

    Returns:
        The model.
    """
    in_flight = min(in_flight, engine.max_num_seqs)
    lengths = [(prompt, output) for prompt in PROMPTS for output in OUTPUTS]
    swept = [steady_state(slot, engine, *pair, in_flight, cap_share) for pair in lengths]
    served = np.array([steady.requests_per_s for steady in swept])
    kept = served > 0  # a context that is too long for the model is served nowhere
    terms = regressors(*np.array(lengths)[kept].T)
    steady = [one for one, keep in zip(swept, kept, strict=True) if keep]
    each_s = 1 / served[kept]
    gpu_j, cpu_j = (
        np.array(watts) * each_s for watts in zip(*((s.gpu_w - s.idle_w, s.cpu_w) for s in steady), strict=True)
    )
    name = f"{slot.model} on {slot.gpu}" + (f" tp {slot.tp}" if slot.tp > 1 else "")
    return WorkloadModel(name, Fitted.to(terms, gpu_j), Fitted.to(terms, cpu_j), Fitted.to(terms, each_s))
