"""What the iterations of many runs ask of a GPU, apart from everything that is fitted: times at the data sheet's peaks.

The roofline of ``simulator.performance`` is linear in these, so that figures can be fitted without its tables. A test
holds both equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ...simulator.catalog import GpuSpec, ModelSpec
from ...simulator.communication import ACTIVATION_BYTES
from ...simulator.experts import busiest_pairs, normal_maximum
from ...simulator.performance import FLOP_PER_PARAMETER, crowds, fp8_share, kv_bytes_per_gpu
from .compositions import STEADY, Compositions

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ALIKE = 0.06
"""Iterations are taken together whose tokens, requests, pairs and reads differ by less, in logarithms."""


@dataclass(frozen=True)
class Served:
    """A run on a GPU.

    Attributes:
        work: Its iterations.
        model: The model.
        gpu: The GPU.
        tp: GPUs that share every layer.
        ep: Whether experts are spread whole.
    """

    work: Compositions
    model: ModelSpec
    gpu: GpuSpec
    tp: int
    ep: bool


@dataclass(frozen=True)
class Demand:
    """Entries of all runs, run after run; seconds at the data sheet's peak, arrays of equal length.

    Attributes:
        run: The run that an entry belongs to.
        gaps: Times between two tokens of a request that it stands for.
        steady: Iterations of the steady part that it stands for.
        given: Tokens that these give to requests.
        sequences: Requests of one of its iterations.
        weights: Reading all weights but those of routed experts.
        an_expert: Reading one routed expert in all layers.
        tokens: Batched tokens.
        missed: Share of the experts that a token leaves out.
        held: Experts of a layer that are counted: all, or those on one of the GPUs where they are spread whole.
        spread: GPUs that they are spread over; 1 where they are not.
        crowded: Whether there are more tokens than experts on a GPU, see ``TimingFit.expert_crowding``.
        uneven: Standard deviations by which the GPU with most of them exceeds the mean.
        cached: Reading keys and values.
        states: Reading and writing states of constant size.
        dense_bf16: Matrix work of all but routed experts in bfloat16.
        dense_fp8: In FP8.
        expert_bf16: That of routed experts in bfloat16.
        expert_fp8: In FP8.
        attention: Attention.
        scanned: Tokens times Mamba layers, over the GPUs.
        layers: Layers.
        moe_layers: Those with experts.
        shared_layers: Those of them with shared experts.
        fp8_layers: Layers with weights in FP8.
        messages: All-reduces.
        moved: Time on the links.
    """

    run: I64
    gaps: F64
    steady: F64
    given: F64
    sequences: F64
    weights: F64
    an_expert: F64
    tokens: F64
    missed: F64
    held: F64
    spread: F64
    crowded: F64
    uneven: F64
    cached: F64
    states: F64
    dense_bf16: F64
    dense_fp8: F64
    expert_bf16: F64
    expert_fp8: F64
    attention: F64
    scanned: F64
    layers: F64
    moe_layers: F64
    shared_layers: F64
    fp8_layers: F64
    messages: F64
    moved: F64

    @classmethod
    def of(cls, runs: Sequence[Served]) -> Demand:
        """What runs ask of their GPUs."""
        parts = [_demand(number, run) for number, run in enumerate(runs)]
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([part[name] for part in parts]) for name in names})

    @property
    def starts(self) -> I64:
        """First entry of each run."""
        return np.searchsorted(self.run, np.arange(int(self.run[-1]) + 1))

    def experts(self, spread: float, crowding: float) -> F64:
        """Time to read the experts that are touched.

        Args:
            spread: Share of the tokens that choose on their own.
            crowding: How much longer it takes where tokens crowd, less one.
        """
        mean = self.held * (1 - self.missed ** (1 + spread * (self.tokens - 1)))
        greatest = mean + self.uneven * np.sqrt(mean * (1 - mean / self.held))
        touched = np.clip(greatest, np.minimum(self.spread * mean, 1), self.held)
        return self.an_expert * (1 + crowding * self.crowded) * self.spread * touched


def _demand(number: int, run: Served) -> dict[str, NDArray[np.float64] | I64]:
    work, model, gpu, tp = run.work, run.model, run.gpu, run.tp
    tokens, sequences = work.tokens.astype(np.float64), work.sequences.astype(np.float64)
    steady = np.where(work.phase == STEADY, work.count, 0).astype(np.float64)
    routed = model.experts > 1
    whole = routed and run.ep
    pairs = tokens * model.experts_per_token
    busiest = tp * busiest_pairs(model, tp, tokens) if whole else pairs
    per_pair = FLOP_PER_PARAMETER * model.expert_parameters / tp if routed else 0.0
    dense = FLOP_PER_PARAMETER * (model.active_parameters - model.lookup_parameters) * tokens / tp - per_pair * pairs
    share = fp8_share(model, gpu) if gpu.fp8_flop_per_s else 0.0
    in_fp8, in_bf16 = share / (gpu.fp8_flop_per_s or 1.0), (1 - share) / gpu.bf16_flop_per_s
    reduces = model.all_reduces if tp > 1 else 0
    expert_bytes = model.expert_bytes if routed else 0.0
    fixed_bytes = model.block_bytes + model.head_bytes - expert_bytes * model.experts
    one = {
        "run": number,
        "weights": fixed_bytes / tp / gpu.memory_bytes_per_s,
        "an_expert": expert_bytes / tp / gpu.memory_bytes_per_s,
        "missed": 1 - model.experts_per_token / model.experts,
        "held": model.experts // tp if whole else model.experts,
        "spread": tp if whole else 1,
        "uneven": normal_maximum(tp) if whole and tp > 1 else 0.0,
        "layers": model.layers,
        "moe_layers": model.moe_layers,
        "shared_layers": model.shared_layers,
        "fp8_layers": model.fp8_layers,
        "messages": reduces,
    }
    each = {
        "gaps": (work.count * work.decodes).astype(np.float64),
        "steady": steady,
        "given": steady * (work.decodes + work.started),
        "sequences": sequences,
        "tokens": tokens,
        "cached": work.read * kv_bytes_per_gpu(model, tp) / gpu.memory_bytes_per_s,
        "states": sequences * model.moved_state_bytes_per_sequence / tp / gpu.memory_bytes_per_s,
        "crowded": (crowds(model, tp, tokens, run.ep) if routed else np.zeros(len(tokens))).astype(np.float64),
        "dense_bf16": dense * in_bf16,
        "dense_fp8": dense * in_fp8,
        "expert_bf16": per_pair * busiest * in_bf16,
        "expert_fp8": per_pair * busiest * in_fp8,
        "attention": work.pairs
        * (model.attention_flop_per_pair / tp / gpu.bf16_flop_per_s / gpu.timing.attention_efficiency),
        "scanned": tokens * (model.mamba.layers if model.mamba else 0) / tp,
        "moved": reduces * 2 * (tp - 1) / tp * tokens * model.hidden * ACTIVATION_BYTES / gpu.link_bytes_per_s,
    }
    return each | {name: np.full(len(tokens), value) for name, value in one.items()}


def squeezed(work: Compositions) -> Compositions:
    """The same run with iterations that hardly differ taken together, for a fit that runs it many times."""
    alike = (work.tokens, work.sequences, work.decodes, work.started, work.read, work.pairs)
    keys = np.stack([work.phase, *(np.floor(np.log1p(values) / ALIKE).astype(np.int64) for values in alike)])
    _, place = np.unique(keys, axis=1, return_inverse=True)
    count = np.bincount(place, work.count)

    def mean(values: NDArray[np.int64] | F64) -> F64:
        return np.asarray(np.bincount(place, work.count * values) / count)

    def whole(values: I64) -> I64:
        return np.rint(mean(values)).astype(np.int64)

    return Compositions(
        count=np.rint(count).astype(np.int64),
        tokens=whole(work.tokens),
        sequences=whole(work.sequences),
        decodes=whole(work.decodes),
        started=whole(work.started),
        pairs=mean(work.pairs),
        read=mean(work.read),
        phase=whole(work.phase),
        preemptions=work.preemptions,
    )
