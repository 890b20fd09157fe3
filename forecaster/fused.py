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
        through: Inputs to heads, (F, 12).
        head_bias: (12,).
        share: Levels to medians, (4, 5).
        widen: What calibration adds on each side, by kind of channel, (kinds, 4).
        summed: Which covariate tells the kinds apart, (1,).
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
    through: Floats
    head_bias: Floats
    share: Floats
    widen: Floats
    summed: NDArray[np.int64]


class State(NamedTuple):
    """What a step goes on from.

    Attributes:
        begun: Whether a channel has had a reading, (C,).
        power: Last reading over scale, (C,).
        held: Last covariates, (C, K).
        means: Exponential means, (C, 4).
        levels: Levels of the past, (C, 5).
        seen: Newest inputs, (C, F).
        hidden: Hidden state, (C, H).
        seconds: Samples taken since the reset, (1,).
    """

    begun: NDArray[np.bool_]
    power: Floats
    held: Floats
    means: Floats
    levels: Floats
    seen: Floats
    hidden: Floats
    seconds: Floats


def compiled(function: F) -> F:
    """Compiles at the first call and keeps the machine code on disk; IEEE arithmetic, no fastmath."""
    njit: Any = numba.njit
    done: F = njit(cache=True, error_model="numpy")(function)
    return done


@compiled
def _take(
    c: int, first: int, last: int, samples: Floats, inputs: Floats, scale_w: float, state: State, packed: Packed
) -> None:
    """Takes a channel's samples from ``first`` to before ``last`` into its means, and holds what is known of it."""
    mean, deviation = packed.scaling[0], packed.scaling[1]
    power, means, gain = state.power[c], state.means[c], packed.gain
    begun = state.begun[c]
    for i in range(first, last):
        known = not math.isnan(samples[i, c])
        if known:
            power = samples[i, c] / scale_w
        standard = (power - mean) / deviation
        if known and not begun:
            begun = True
            means[:] = standard
            state.hidden[c] = 0.0
        for m in range(len(means)):
            means[m] += gain[m] * (standard - means[m])
    state.power[c], state.begun[c] = power, begun
    lag = len(samples) - len(inputs)
    for i in range(max(first - lag, 0), last - lag):
        for k in range(inputs.shape[2]):
            if not math.isnan(inputs[i, c, k]):
                state.held[c, k] = inputs[i, c, k]


@compiled
def _see(c: int, state: State, packed: Packed) -> None:
    """Writes a channel's levels, and what the network sees of it."""
    mean, deviation, most, _ = packed.scaling
    seen, past = state.seen[c], state.means.shape[1]
    standard = (state.power[c] - mean) / deviation
    state.levels[c, 0] = seen[0] = standard
    for i in range(past):
        state.levels[c, i + 1] = state.means[c, i]
        seen[1 + i] = standard - state.means[c, i]
    for k in range(state.held.shape[1]):
        held = state.held[c, k]
        seen[1 + past + k] = 0.0 if math.isnan(held) else (held - packed.usual[k]) / packed.spread[k]
    for f in range(len(seen)):
        seen[f] = min(max(seen[f], -most), most)


@compiled
def _add(x: Floats, rows: Floats, out: Floats) -> None:
    """Adds ``x @ rows``, a row at a time, which the compiler turns into vectors."""
    for i in range(len(rows)):
        for j in range(len(out)):
            out[j] += x[i] * rows[i, j]


@compiled
def _exp(x: float) -> float:
    """exp, to ten digits, of what lies within 40 of 0, without branches: of loops over it vectors are made.

    exp(x) is exp(x / 256) squared eight times, and that is its Taylor series.
    """
    r = min(max(x, -40.0), 40.0) / 256.0
    y = 1.0 + r * (
        1.0 + r / 2.0 * (1.0 + r / 3.0 * (1.0 + r / 4.0 * (1.0 + r / 5.0 * (1.0 + r / 6.0 * (1.0 + r / 7.0)))))
    )
    for _ in range(8):
        y *= y
    return y


@compiled
def _gates(hidden: Floats, new: Floats, old: Floats) -> None:
    """Moves a hidden state on, (H,)."""
    size = len(hidden)
    for i in range(size):
        reset = 1.0 / (1.0 + _exp(-new[i] - old[i]))
        update = 1.0 / (1.0 + _exp(-new[size + i] - old[size + i]))
        candidate = 1.0 - 2.0 / (1.0 + _exp(2.0 * (new[2 * size + i] + reset * old[2 * size + i])))
        hidden[i] = candidate + update * (hidden[i] - candidate)


@compiled
def _softplus(x: float) -> float:
    """log(1 + exp(x)) without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@compiled
def _say(heads: Floats, levels: Floats, scale_w: float, kind: int, packed: Packed, out: Floats) -> None:
    """Calibrated quantiles of a channel, watts, (4, 3)."""
    mean, deviation, _, lowest = packed.scaling
    for t in range(len(packed.share)):
        middle = heads[3 * t]
        for i in range(len(levels)):
            middle += packed.share[t, i] * levels[i]
        widen = packed.widen[kind, t] / deviation
        below = max(_softplus(heads[3 * t + 1]) + widen, 0.0)
        above = max(_softplus(heads[3 * t + 2]) + widen, 0.0)
        out[t, 0], out[t, 1], out[t, 2] = middle - below, middle, middle + above
    for t in range(len(packed.share)):
        for q in range(3):
            out[t, q] = max(out[t, q] * deviation + mean, lowest) * scale_w


@compiled
def steps(
    samples: Floats, inputs: Floats, scale_w: Floats, state: State, packed: Packed, stride: int, out: Floats
) -> None:
    """Takes samples into the state and writes forecasts; the same as :class:`Learned` does with numpy.

    Args:
        samples: Watts, (n, C).
        inputs: Covariates, (n, C, K), or of the last sample alone, (1, C, K).
        scale_w: (C,).
        state: Changed.
        packed: Weights.
        stride: Seconds from one step of the hidden state to the next.
        out: Quantiles, watts, after the last sample or after each, (1 or n, C, 4, 3); changed.
    """
    heads = np.empty(len(packed.head_bias))
    new, old = np.empty(len(packed.enter_bias)), np.empty(len(packed.enter_bias))
    before, count = int(state.seconds[0]), len(samples)
    for c in range(samples.shape[1]):
        first = 0
        while first < count:  # to the next step of the hidden state, or the next forecast
            last = min(first + stride - (before + first) % stride, max(count - len(out), first) + 1)
            last = min(last, count)
            _take(c, first, last, samples, inputs, scale_w[c], state, packed)
            _see(c, state, packed)
            if (before + last) % stride == 0:
                new[:], old[:] = packed.enter_bias, packed.recur_bias
                _add(state.seen[c], packed.enter, new)
                _add(state.hidden[c], packed.recur, old)
                _gates(state.hidden[c], new, old)
            said = last - 1 - count + len(out)
            if said >= 0 and state.begun[c]:
                heads[:] = packed.head_bias
                _add(state.hidden[c], packed.head, heads)
                _add(state.seen[c], packed.through, heads)
                kind = 1 if len(packed.widen) > 1 and state.held[c, packed.summed[0]] > 1 else 0
                _say(heads, state.levels[c], scale_w[c], kind, packed, out[said, c])
            elif said >= 0:
                out[said, c] = math.nan
            first = last
    state.seconds[0] += count
