"""Workload models of slots from sweeps of the simulator, where nobody has measured the model on the system."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...simulator.topology import EngineSpec, ServerSpec
from ..sweep import steady_state
from .models import Fitted, WorkloadModel, regressors

F64 = NDArray[np.float64]

IN_FLIGHT = 32
"""Requests in a well-filled batch: a query costs what it adds to one, not what it takes alone."""
PROMPTS, OUTPUTS = (128, 1024, 3072), (16, 128, 512)


@dataclass(frozen=True)
class Sweep:
    """What queries of a grid of lengths take on a slot; see :func:`sweep`.

    Attributes:
        terms: Their regressors (n, 4).
        gpu_energy_j: Energy of the GPUs above rest (n,).
        cpu_energy_j: Energy that they add to the CPUs of the host (n,).
        runtime_s: Time of the slot (n,).
    """

    terms: F64
    gpu_energy_j: F64
    cpu_energy_j: F64
    runtime_s: F64


@lru_cache(maxsize=1024)
def sweep(slot: ServerSpec, engine: EngineSpec, cap_share: float = 1.0, in_flight: int = IN_FLIGHT) -> Sweep:
    """Measures a grid of lengths on one slot.

    Energies are those above a slot at rest. Runtime is the time of the slot that a query takes, the others of its batch
    having theirs: what is served in a second adds up to one second.

    Args:
        slot: The slot, see :func:`~llmcluster.agents.sweep.alone`.
        engine: Limits of its engine.
        cap_share: Power limit as a share of its range.
        in_flight: Requests in flight; 1 for queries one by one, as the paper measured them.

    Returns:
        The measurements; a context that is too long for the model has none.
    """
    in_flight = min(in_flight, engine.max_num_seqs)
    lengths = [(prompt, output) for prompt in PROMPTS for output in OUTPUTS]
    swept = [(pair, steady_state(slot, engine, *pair, in_flight, cap_share)) for pair in lengths]
    kept = [(pair, steady) for pair, steady in swept if steady.requests_per_s > 0]
    each_s = np.array([1 / steady.requests_per_s for _, steady in kept])
    gpu_w = np.array([steady.gpu_w - steady.idle_w for _, steady in kept])
    cpu_w = np.array([steady.cpu_w for _, steady in kept])
    terms = regressors([pair[0] for pair, _ in kept], [pair[1] for pair, _ in kept])
    return Sweep(terms, gpu_w * each_s, cpu_w * each_s, each_s)


@lru_cache(maxsize=1024)
def simulated_model(
    slot: ServerSpec, engine: EngineSpec, cap_share: float = 1.0, in_flight: int = IN_FLIGHT
) -> WorkloadModel:
    """Fits the second form to a :func:`sweep`, which has the same arguments."""
    taken = sweep(slot, engine, cap_share, in_flight)
    name = f"{slot.model} on {slot.gpu}" + (f" tp {slot.tp}" if slot.tp > 1 else "")
    return WorkloadModel(
        name,
        Fitted.to(taken.terms, taken.gpu_energy_j),
        Fitted.to(taken.terms, taken.cpu_energy_j),
        Fitted.to(taken.terms, taken.runtime_s),
    )
