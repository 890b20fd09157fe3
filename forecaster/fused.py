"""A step of the GRU from sample to calibrated quantiles, compiled: the calls to numpy would cost more than the sums.

Kept on its own so that numba is loaded only by those who feed a GRU with samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from .frames import Floats

F = TypeVar("F", bound=Callable[..., Any])


class Packed(NamedTuple):
    """Weights as the step reads them: rows of what is multiplied by one input lie together.

    Attributes:
        scaling: Mean and deviation of power, the bound of inputs, and the lowest forecast over scale, (4,).
        usual: Mean of each covariate, (K,).
        spread: Deviation of each covariate, (K,).
        gain: How much of the newest sample goes into each exponential mean, (4,).
        enter: Inputs to gates, (F, 3 H).
        enter_bias: (3 H,).
        recur: Hidden state to gates, (H, 3 H).
        recur_bias: (3 H,).
        head: Hidden state to heads, (H, 12).
        head_bias: (12,).
        share: Levels to medians, (4, 5).
        widen: What calibration adds on each side, (4,).
    """

    scaling: Floats
    usual: Floats
    spread: Floats
    gain: Floats
    enter: Floats
    enter_bias: Floats
    recur: Floats
    recur_bias: Floats
    head: Floats
    head_bias: Floats
    share: Floats
    widen: Floats


class State(NamedTuple):
    """What a step goes on from.

    Attributes:
        begun: Whether a channel has had a reading, (C,).
        power: Last reading over scale, (C,).
        held: Last covariates, (C, K).
        means: Exponential means, (C, 4).
        levels: Levels of the past, (C, 5).
        hidden: Hidden state, (C, H).
    """

    begun: NDArray[np.bool_]
    power: Floats
    held: Floats
    means: Floats
    levels: Floats
    hidden: Floats


def compiled(function: F) -> F:
    """Compiles at the first call and keeps the machine code on disk; IEEE arithmetic, no fastmath."""
    njit: Any = numba.njit
    done: F = njit(cache=True, error_model="numpy")(function)
    return done


@compiled
def _see(c: int, sample: Floats, inputs: Floats, scale_w: Floats, state: State, packed: Packed, seen: Floats) -> None:
    """Takes a channel's sample into its means and levels, and writes what the network sees of it, (F,)."""
    mean, deviation, most, _ = packed.scaling
    known = not math.isnan(sample[c])
    if known:
        state.power[c] = sample[c] / scale_w[c]
    standard = (state.power[c] - mean) / deviation
    if known and not state.begun[c]:
        state.begun[c] = True
        state.means[c] = standard
        state.hidden[c] = 0.0
    state.levels[c, 0] = seen[0] = standard
    past = state.means.shape[1]
    for i in range(past):
        state.means[c, i] += packed.gain[i] * (standard - state.means[c, i])
        state.levels[c, i + 1] = state.means[c, i]
        seen[1 + i] = standard - state.means[c, i]
    for k in range(inputs.shape[1]):
        if not math.isnan(inputs[c, k]):
            state.held[c, k] = inputs[c, k]
        held = state.held[c, k]
        seen[1 + past + k] = 0.0 if math.isnan(held) else (held - packed.usual[k]) / packed.spread[k]
    for f in range(len(seen)):
        seen[f] = min(max(seen[f], -most), most)


@compiled
def _multiply(x: Floats, rows: Floats, bias: Floats, out: Floats) -> None:
    """``x @ rows + bias``, a row at a time, which the compiler turns into vectors."""
    out[:] = bias
    for i in range(len(rows)):
        for j in range(len(out)):
            out[j] += x[i] * rows[i, j]


@compiled
def _gates(hidden: Floats, new: Floats, old: Floats) -> None:
    """Moves a hidden state on, (H,)."""
    size = len(hidden)
    for i in range(size):
        reset = 1.0 / (1.0 + math.exp(-new[i] - old[i]))
        update = 1.0 / (1.0 + math.exp(-new[size + i] - old[size + i]))
        candidate = 1.0 - 2.0 / (1.0 + math.exp(2.0 * (new[2 * size + i] + reset * old[2 * size + i])))
        hidden[i] = candidate + update * (hidden[i] - candidate)


@compiled
def _softplus(x: float) -> float:
    """log(1 + exp(x)) without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@compiled
def _say(heads: Floats, levels: Floats, scale_w: float, packed: Packed, out: Floats) -> None:
    """Calibrated quantiles of a channel, watts, (4, 3)."""
    mean, deviation, _, lowest = packed.scaling
    for t in range(len(packed.widen)):
        middle = heads[3 * t]
        for i in range(len(levels)):
            middle += packed.share[t, i] * levels[i]
        widen = packed.widen[t] / deviation
        below = max(_softplus(heads[3 * t + 1]) + widen, 0.0)
        above = max(_softplus(heads[3 * t + 2]) + widen, 0.0)
        out[t, 0], out[t, 1], out[t, 2] = middle - below, middle, middle + above
    for t in range(len(packed.widen)):
        for q in range(3):
            out[t, q] = max(out[t, q] * deviation + mean, lowest) * scale_w


@compiled
def steps(samples: Floats, inputs: Floats, scale_w: Floats, state: State, packed: Packed, out: Floats) -> None:
    """Takes samples into the state and writes forecasts; the same as :class:`Learned` does with numpy.

    Args:
        samples: Watts, (n, C).
        inputs: Covariates, (n, C, K).
        scale_w: (C,).
        state: Changed.
        packed: Weights.
        out: Quantiles, watts, after the last sample or after each, (1 or n, C, 4, 3); changed.
    """
    seen, heads = np.empty(len(packed.enter)), np.empty(len(packed.head_bias))
    new, old = np.empty(len(packed.enter_bias)), np.empty(len(packed.enter_bias))
    for c in range(samples.shape[1]):
        for i in range(len(samples)):
            _see(c, samples[i], inputs[i], scale_w, state, packed, seen)
            _multiply(seen, packed.enter, packed.enter_bias, new)
            _multiply(state.hidden[c], packed.recur, packed.recur_bias, old)
            _gates(state.hidden[c], new, old)
            said = i - len(samples) + len(out)
            if said < 0:
                continue
            if state.begun[c]:
                _multiply(state.hidden[c], packed.head, packed.head_bias, heads)
                _say(heads, state.levels[c], scale_w[c], packed, out[said, c])
            else:
                out[said, c] = math.nan
