"""The last samples of every channel, in a ring."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..frames import Floats

State = dict[str, Floats]


def begin(length: int, channels: int) -> State:
    """A ring of ``length`` samples, as two entries of a model's state."""
    return {"ring": np.zeros((length, channels)), "next": np.zeros(1)}


def start(state: State, first: Any, power: Floats) -> None:
    """Fills the rings of the channels ``first`` with their first reading."""
    state["ring"][:, first] = power[first]


def push(state: State, power: Floats) -> None:
    """Puts a sample in the place of the oldest."""
    at = int(state["next"][0])
    state["ring"][at] = power
    state["next"][0] = (at + 1) % len(state["ring"])


def past(state: State, lags: Any) -> Floats:
    """Samples of so many seconds before the last one, (n, C)."""
    ring = state["ring"]
    return np.asarray(ring[(int(state["next"][0]) - 1 - np.asarray(lags)) % len(ring)])


def padded(power: Floats, seconds: int) -> Floats:
    """A series (T, C) with its first sample repeated before it: what a ring holds early on."""
    return np.concatenate([np.repeat(power[:1], seconds, axis=0), power])
