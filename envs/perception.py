"""Power forecasts in the loop: what the meters have said goes in, the observation's quantiles come out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from ..forecaster import FORECASTERS, QUANTILES, TARGETS, WEIGHTS, Forecaster, make_forecaster
from ..forecaster.targets import HORIZONS_S, LONGEST_S
from ..simulator.errors import InputError
from ..simulator.kernels.state import SERVING, SLEEPING
from .plant import SimulatedPlant
from .telemetry import F64, Fleet, Plant, Telemetry

ORACLE = "oracle"
READ = (
    *("running", "waiting", "prompt_tokens", "output_tokens", "cap_w", "temperature_c", "kv_used", "serving", "asleep"),
    *("ready_in_s", "route_weight", "arrivals", "arriving_tokens", "budget_w", "budget_in_60s_w", "slots"),
)
"""Covariates that are metered in the loop."""


class Perception(Protocol):
    """Where the forecasts of one environment come from; of all slots and, last, of the whole."""

    @property
    def clairvoyant(self) -> bool:
        """Whether it knows what nobody can know."""

    @property
    def identity(self) -> str:
        """Tells apart what forecasts differently, for saved states."""

    def reset(self, plant: SimulatedPlant) -> F64:
        """Forgets the last episode; gives the forecast before the first second, watts (R + 1, 4, 3)."""

    def forecast(self, plant: SimulatedPlant, now: Telemetry) -> F64:
        """Takes the readings of a tick and forecasts, watts (R + 1, 4, 3)."""

    def save_state(self) -> dict[str, Any]:
        """What has been learnt since the reset: plain values and arrays that do not change any more."""

    def restore_state(self, state: dict[str, Any]) -> None:
        """Takes up a state of :meth:`save_state`."""


class Metered:
    """A forecaster fed with every second that the meters gave, be they real or simulated; it never sees the truth.

    Args:
        forecaster: The forecaster.
        identity: See :class:`Perception`.
        fleet: The slots.

    Raises:
        InputError: The forecaster reads what is not metered here.
    """

    clairvoyant: ClassVar[bool] = False

    def __init__(self, forecaster: Forecaster, identity: str, fleet: Fleet) -> None:
        if missing := [name for name in forecaster.covariates if name not in READ]:
            known = ", ".join(READ)
            raise InputError(identity, f"reads {missing[0]}, which is not metered here", f"Train it on some of {known}")
        self.forecaster, self.identity = forecaster, identity
        columns = [READ.index(name) for name in forecaster.covariates]
        self._columns = slice(None) if forecaster.covariates == READ else columns
        self._scale_w = scales_w(fleet)

    def reset(self, plant: Plant) -> F64:
        """Zeros: there is no reading to forecast from; see :class:`Perception`."""
        self.forecaster.reset(len(self._scale_w), self._scale_w)
        return np.zeros((len(self._scale_w), len(TARGETS), len(QUANTILES)))

    def forecast(self, plant: Plant, now: Telemetry) -> F64:
        """See :class:`Perception`; a slot that has never been read is forecast to draw nothing."""
        beside = readings(now)[:, self._columns] if self.forecaster.covariates else None
        watts = self.forecaster.update(power_w(now), beside)
        return np.where(np.isnan(watts), 0.0, watts)

    def save_state(self) -> dict[str, Any]:
        """See :class:`Perception`."""
        return self.forecaster.save_state()

    def restore_state(self, state: dict[str, Any]) -> None:
        """See :class:`Perception`."""
        self.forecaster.reset(len(self._scale_w), self._scale_w)
        self.forecaster.restore_state(state)


class Oracle:
    """What the meters of this very run would say if the agent left everything as it is.

    It rolls the run forward by a minute, with the arrivals, failures and limits that will really come, under the caps,
    weights and life-cycle targets in force, and takes it back. What the agent will do in that minute nobody knows, so
    where it acts the forecast misses; all quantiles are the same. After the horizon nothing arrives, and it knows that.
    """

    clairvoyant: ClassVar[bool] = True
    identity = ORACLE

    def reset(self, plant: SimulatedPlant) -> F64:
        """The first minute; see :class:`Perception`."""
        return self._ahead(plant)

    def forecast(self, plant: SimulatedPlant, now: Telemetry) -> F64:
        """The next minute; see :class:`Perception`."""
        return self._ahead(plant)

    def save_state(self) -> dict[str, Any]:
        """Nothing; see :class:`Perception`."""
        return {}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Takes up nothing; see :class:`Perception`."""

    @staticmethod
    def _ahead(plant: SimulatedPlant) -> F64:
        slots_w = plant.foresee(LONGEST_S)
        watts = np.column_stack([slots_w, slots_w.sum(axis=1)])
        points = [watts[h - 1] for h in HORIZONS_S]
        means = [watts[:h].mean(axis=0) for h in HORIZONS_S]
        return np.repeat(np.stack([*points, *means], axis=-1)[..., None], len(QUANTILES), axis=-1)


def make_perception(name: str, fleet: Fleet, folder: Path = Path()) -> Perception:
    """The perception of an environment.

    Args:
        name: ``oracle``, a name of :func:`make_forecaster`, or a file of weights.
        fleet: The slots.
        folder: Where a relative path starts.

    Raises:
        InputError: The name is unknown, or the file does not hold.
    """
    return Oracle() if name == ORACLE else metered(name, fleet, folder)


def metered(name: str, fleet: Fleet, folder: Path = Path()) -> Metered:
    """The perception that needs nothing but meters, as a real cluster has them.

    Args:
        name: A name of :func:`make_forecaster`, or a file of weights.
        fleet: The slots.
        folder: Where a relative path starts.

    Raises:
        InputError: The name is unknown or clairvoyant, or the file does not hold.
    """
    if name not in FORECASTERS and not name.endswith(WEIGHTS):
        known = ", ".join((*FORECASTERS, ORACLE))
        raise InputError("forecaster", f"'{name}' is unknown", f"Use one of {known}, or a {WEIGHTS} file")
    forecaster = make_forecaster(name, folder)
    return Metered(forecaster, f"{type(forecaster).__name__} {_digest(forecaster)}", fleet)


def scales_w(fleet: Fleet) -> F64:
    """Watts by which models divide: the TDP of each slot, and of all, (R + 1,)."""
    return np.append(fleet.cap_max_w, fleet.cap_max_w.sum())


def power_w(now: Telemetry) -> F64:
    """Metered power of the slots and of all together, (n, R + 1)."""
    watts = np.empty((len(now.power_w), now.power_w.shape[1] + 1))
    watts[:, :-1] = now.power_w
    now.power_w.sum(axis=1, out=watts[:, -1])
    return watts


def readings(now: Telemetry) -> F64:
    """What else is known at the end of a tick, (R + 1, K), a column for each of :data:`READ`.

    The whole is told as its average slot, so that its figures are alike in clusters of any size.
    """
    slots = len(now.cap_w)
    own = (
        *(now.running, now.waiting, now.prompt_tokens_per_s, now.output_tokens_per_s, now.cap_w, now.temperature_c),
        *(now.kv_used, now.status == SERVING, now.status == SLEEPING, now.ready_in_s, now.route_weight),
    )
    shared = (now.arrivals_per_s, now.arriving_tokens_per_s, now.budget_w[0], now.budget_w[-1])
    told = np.ones((slots + 1, len(READ)))
    for column, values in enumerate(own):
        told[:-1, column] = values
    told[-1, : len(own)] = told[:-1, : len(own)].sum(axis=0) / slots
    for column, value in enumerate(shared, len(own)):
        told[:, column] = value / slots
    told[-1, -1] = slots
    return told


def covariates(now: Telemetry) -> dict[str, F64]:
    """The same as rows of the seconds of a tick, (n, R + 1): :func:`readings` belong to its last second."""
    found = {}
    for name, values in zip(READ, readings(now).T, strict=True):
        found[name] = np.full((len(now.power_w), len(values)), np.nan)
        found[name][-1] = values
    return found


def _digest(forecaster: Forecaster) -> str:
    """Of a trained model's weights; empty where there are none."""
    weights = getattr(forecaster, "weights", {})
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].tobytes())
    return digest.hexdigest()[:16] if weights else ""
