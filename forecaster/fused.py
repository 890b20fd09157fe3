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
        head: Hidden state to heads, and to the layer before them, (H, 12 + H).
        through: Inputs to the same, (F, 12 + H).
        head_bias: (12 + H,).
        bend: That layer to heads, (H, 12).
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
    bend: Floats
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
    """Adds ``x @ rows`` of all channels, so that the rows stay at hand; four at a time, so that the sums do, too."""
    fours = len(rows) // 4 * 4
    for c in range(len(x)):
        for i in range(0, fours, 4):
            a, b, u, v = x[c, i], x[c, i + 1], x[c, i + 2], x[c, i + 3]
            for j in range(out.shape[1]):
                out[c, j] += (a * rows[i, j] + b * rows[i + 1, j]) + (u * rows[i + 2, j] + v * rows[i + 3, j])
        for i in range(fours, len(rows)):
            for j in range(out.shape[1]):
                out[c, j] += x[c, i] * rows[i, j]


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
def _move(state: State, packed: Packed) -> None:
    """Moves the hidden states on."""
    size = state.hidden.shape[1]
    new, old = np.empty((len(state.hidden), 3 * size)), np.empty((len(state.hidden), 3 * size))
    new[:], old[:] = packed.enter_bias, packed.recur_bias
    _add(state.seen, packed.enter, new)
    _add(state.hidden, packed.recur, old)
    for c in range(len(state.hidden)):
        for i in range(size):
            reset = 1.0 / (1.0 + _exp(-new[c, i] - old[c, i]))
            update = 1.0 / (1.0 + _exp(-new[c, size + i] - old[c, size + i]))
            candidate = 1.0 - 2.0 / (1.0 + _exp(2.0 * (new[c, 2 * size + i] + reset * old[c, 2 * size + i])))
            state.hidden[c, i] = candidate + update * (state.hidden[c, i] - candidate)


@compiled
def _softplus(x: float) -> float:
    """log(1 + exp(x)), to ten digits, without branches as :func:`_exp`.

    log(1 + y) is 2 artanh(y / (2 + y)), and that is its Taylor series: y is at most 1.
    """
    y = _exp(-abs(x))
    z = y / (2.0 + y)
    s = z * z
    series = 1 / 13 + s * (1 / 15 + s * (1 / 17 + s * (1 / 19 + s / 21)))
    series = 1.0 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * (1 / 9 + s * (1 / 11 + s * series)))))
    return max(x, 0.0) + 2.0 * z * series


@compiled
def _heads(state: State, packed: Packed) -> Floats:
    """Heads of all channels, (C, 12), by way of the layer before them."""
    channels, size = len(state.hidden), packed.bend.shape[1]
    both = np.empty((channels, len(packed.head_bias)))
    both[:] = packed.head_bias
    _add(state.hidden, packed.head, both)
    _add(state.seen, packed.through, both)
    heads, bent = both[:, :size].copy(), both[:, size:].copy()
    _add(np.maximum(bent, 0.0), packed.bend, heads)
    return heads


@compiled
def _say(heads: Floats, state: State, scale_w: Floats, packed: Packed, out: Floats) -> None:
    """Calibrated quantiles of all channels, watts, (C, 4, 3), from their heads, (C, 12)."""
    mean, deviation, _, lowest = packed.scaling
    widths = heads.copy()
    flat = widths.reshape(-1)
    for i in range(len(flat)):  # of all channels at once: of short loops no vectors are made
        flat[i] = _softplus(flat[i])
    for c in range(len(heads)):
        kind = 1 if len(packed.widen) > 1 and state.held[c, packed.summed[0]] > 1 else 0
        for t in range(len(packed.share)):
            middle = heads[c, 3 * t]
            for i in range(packed.share.shape[1]):
                middle += packed.share[t, i] * state.levels[c, i]
            widen = packed.widen[kind, t] / deviation
            below, above = max(widths[c, 3 * t + 1] + widen, 0.0), max(widths[c, 3 * t + 2] + widen, 0.0)
            out[c, t, 0], out[c, t, 1], out[c, t, 2] = middle - below, middle, middle + above
            for q in range(3):
                watts = max(out[c, t, q] * deviation + mean, lowest) * scale_w[c]
                out[c, t, q] = watts if state.begun[c] else math.nan


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
    before, count, first = int(state.seconds[0]), len(samples), 0
    while first < count:  # to the next step of the hidden state, or the next forecast
        last = min(first + stride - (before + first) % stride, max(count - len(out), first) + 1)
        last = min(last, count)
        for c in range(samples.shape[1]):
            _take(c, first, last, samples, inputs, scale_w[c], state, packed)
            _see(c, state, packed)
        if (before + last) % stride == 0:
            _move(state, packed)
        said = last - 1 - count + len(out)
        if said >= 0:
            _say(_heads(state, packed), state, scale_w, packed, out[said])
        first = last
    state.seconds[0] += count
