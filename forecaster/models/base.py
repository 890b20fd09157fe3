"""What every trained model is: fitted on telemetry, it forecasts a whole series, or sample by sample."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..base import QUANTILES, TARGETS, Covariates
from ..frames import CALIBRATION, FIT, UNUSED, VALIDATION, Floats, Frame, frame_of, frames_of
from ..losses import Losses, judge
from ..targets import LONGEST_S
from ..telemetry import COVARIATES, Telemetry

SUMMED = "slots"
"""Covariate that tells channels that are sums of several slots."""
COVERAGE = QUANTILES[-1] - QUANTILES[0]


class UnlikeTraining(UserWarning):
    """Telemetry is unlike what a model was fitted on: it lacks covariates, or its power is on another scale."""


@dataclass(frozen=True)
class HeldOut:
    """Series that are not fitted on.

    Attributes:
        validation: To make choices by.
        calibration: To calibrate intervals on.
    """

    validation: tuple[Telemetry, ...]
    calibration: tuple[Telemetry, ...]


class Model(ABC):
    """A forecaster that is fitted, then judged on a series or fed with samples; see :class:`Forecaster`.

    All a fitted model knows is in ``weights`` and ``covariates``. It computes in units of the channels' scale.
    Covariates that telemetry or samples lack are unknown to it: it warns, and takes their means of training instead.

    Attributes:
        weights: Fitted figures by name.
        covariates: Names of the covariates it reads; those that all training series had.
    """

    name: ClassVar[str]
    naive: ClassVar[bool] = False
    reads_covariates: ClassVar[bool] = False

    def __init__(self) -> None:
        self.weights: dict[str, Floats] = {}
        self.covariates: tuple[str, ...] = ()

    # Whole series

    def fit(self, train: Sequence[Telemetry], rng: np.random.Generator, held_out: HeldOut | None = None) -> None:
        """Learns from series, each in order of time: what to fit, what to choose by, what to calibrate on.

        Args:
            train: The series; their channels are learnt from alike.
            rng: Source of whatever is drawn.
            held_out: Series to choose by and to calibrate on, if not on the later parts of the others.

        Raises:
            InputError: The series are too short, or have too many gaps, for all three parts.
        """
        if self.reads_covariates:
            self.covariates = tuple(name for name in COVARIATES if all(name in t.covariates for t in train))
        frames = list(self._frames(train, held_out))
        if not all(any(frame.rows(part).any() for frame in frames) for part in (FIT, VALIDATION, CALIBRATION)):
            raise InputError(
                ", ".join(t.source for t in train) or "training",
                "too short, or too full of gaps, to fit, choose and calibrate on",
                "Give at least one series of six minutes or more without gaps",
            )
        self.weights = {}
        self._learn(frames, rng)
        self.weights["widen"] = np.zeros((2 if SUMMED in self.covariates else 1, len(TARGETS)))
        self.weights["widen"] = self._calibrated(frames)

    def predict(self, telemetry: Telemetry) -> Floats:
        """Forecasts of every second of a series, as it was known by then.

        Returns:
            Watts, (T, C, 4, 3); ``nan`` for channels that have had no reading so far.
        """
        self._check_fitted()
        self._tell_lacking(telemetry.covariates, telemetry.source)
        frame = frame_of(telemetry, self.covariates)
        forecast = (
            self._finished(self._predict(frame), self._kinds(frame.covariates)) * telemetry.scale_w[:, None, None]
        )
        return np.where(frame.begun[..., None, None], forecast, np.nan)

    def backtest(self, test: Telemetry, first_s: int = 0, last_s: int | None = None) -> Losses:
        """How far the forecasts of these seconds of a series are off; see :func:`judge`."""
        return judge(self.predict, test, first_s, last_s)

    # Sample by sample

    def reset(self, series: int, scale_w: Floats | None = None) -> None:
        """Forgets all samples; from now on there are ``series`` channels, of these scales (1 W by default)."""
        self._check_fitted()
        self._scale_w = np.ones(series) if scale_w is None else np.asarray(scale_w, np.float64)
        self._begun = np.zeros(series, bool)
        self._power = np.zeros(series)
        self._inputs = np.full((series, len(self.covariates)), np.nan)
        self._state = self._begin(series)

    def update(self, power_w: Floats, covariates: Covariates | None = None) -> Floats:
        """Takes the newest samples, a second apart, and forecasts after the last; what came before costs nothing.

        Args:
            power_w: Watts, (C,) or (n, C) with the oldest first; ``nan`` where there is no reading.
            covariates: The covariates of ``self.covariates``, by name, in the same shape; or (C,), as they are at
                the last sample. Of those that are not given nothing new is known. Or all of them as they are at the
                last sample, (C, K).

        Returns:
            Watts, (C, 4, 3); ``nan`` for channels that have had no reading so far.
        """
        samples = np.atleast_2d(power_w)
        given = self._given(covariates, samples.shape)
        unknown = np.full(given.shape[1:], np.nan)
        for i, sample in enumerate(samples, len(given) - len(samples)):
            self._take(sample / self._scale_w, given[i] if i >= 0 else unknown)
        forecast = self._finished(self._forecast(), self._kinds(self._inputs)) * self._scale_w[:, None, None]
        return forecast if self._begun.all() else np.where(self._begun[:, None, None], forecast, np.nan)

    def save_state(self) -> dict[str, Any]:
        """What has been learnt from samples since the reset."""
        held = {name: value.copy() for name, value in self._state.items()}
        own = {"scale_w": self._scale_w, "begun": self._begun, "power": self._power, "inputs": self._inputs}
        return {"state": held, **{name: value.copy() for name, value in own.items()}}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Takes up a state of :meth:`save_state`."""
        self._state = {name: value.copy() for name, value in state["state"].items()}
        own = (state[name].copy() for name in ("scale_w", "begun", "power", "inputs"))
        self._scale_w, self._begun, self._power, self._inputs = own

    def _frames(self, train: Sequence[Telemetry], held_out: HeldOut | None) -> Iterator[Frame]:
        if held_out is None:
            yield from (frame for telemetry in train for frame in frames_of(telemetry, self.covariates))
            return
        parts = ((FIT, train), (VALIDATION, held_out.validation), (CALIBRATION, held_out.calibration))
        for part, series in parts:
            for telemetry in series:
                own = np.full(len(telemetry), part, np.int8)
                own[: 0 if part == FIT else LONGEST_S] = UNUSED  # there, forecasts still lack their history
                yield from (replace(frame, part=own) for frame in frames_of(telemetry, self.covariates))

    # What a model adds

    @abstractmethod
    def _learn(self, frames: Sequence[Frame], rng: np.random.Generator) -> None:
        """Sets ``weights`` by the parts ``FIT`` and ``VALIDATION`` of the frames."""

    @abstractmethod
    def _predict(self, frame: Frame) -> Floats:
        """Quantiles after every second, (T, C, 4, 3)."""

    @abstractmethod
    def _begin(self, channels: int) -> dict[str, Floats]:
        """A state before the first sample: arrays by name."""

    @abstractmethod
    def _start(self, first: Any, power: Floats) -> None:
        """Sets the state of channels ``first`` (a mask) as if their first reading had always been there."""

    @abstractmethod
    def _absorb(self, power: Floats, inputs: Floats) -> None:
        """Takes a sample (C,) with covariates (C, K) into the state."""

    @abstractmethod
    def _forecast(self) -> Floats:
        """Quantiles after the last sample, (C, 4, 3)."""

    def _given(self, covariates: Covariates | None, shape: tuple[int, ...]) -> Floats:
        """The covariates that the model reads, (n, C, K), for samples of a shape; or of the last alone, (1, C, K)."""
        channels = len(self._begun)
        if shape[1] != channels:
            raise InputError("power_w", f"{shape[1]} channels where {channels} are due", "Call reset first")
        if not self.covariates:
            return np.empty((*shape, 0))
        if isinstance(covariates, np.ndarray):
            due = (channels, len(self.covariates))
            if covariates.shape != due:
                raise InputError("covariates", f"has shape {covariates.shape} where {due} is due", "Give (C, K)")
            return np.ascontiguousarray(covariates, np.float64)[None]
        given = covariates or {}
        if self._tell_lacking(given, "samples"):
            like = next((np.shape(given[name]) for name in self.covariates if name in given), shape[1:])
            given = {name: np.full(like, np.nan) for name in self.covariates} | dict(given)
        try:
            table = np.array([given[name] for name in self.covariates], np.float64)
        except ValueError:
            table = np.empty(0)
        if table.shape[1:] == shape[1:]:
            return np.ascontiguousarray(table.T)[None]
        if table.shape[1:] == shape:
            return np.ascontiguousarray(np.moveaxis(table, 0, -1))
        for name in self.covariates:
            found = np.atleast_2d(given[name]).shape
            if found not in (shape, (1, channels)):
                problem = f"has shape {found}, power {shape}"
                break
        else:
            name, problem = self.covariates[0], "is of another length than the others"
        raise InputError(f"covariates: {name}", problem, "Give all of them as power is, or all as (C,)")

    def _take(self, power: Floats, inputs: Floats) -> None:
        known = ~np.isnan(power)
        first = known & ~self._begun
        self._power = np.where(known, power, self._power)
        self._inputs = np.where(np.isnan(inputs), self._inputs, inputs)
        self._begun |= known
        if first.any():
            self._start(first, self._power)
        self._absorb(self._power, self._inputs)

    def _kinds(self, covariates: Floats) -> NDArray[np.int64]:
        """Which calibration a channel has, (...), by its covariates (..., K): 1 for sums of several slots if known."""
        if len(self.weights["widen"]) == 1:
            return np.zeros(covariates.shape[:-1], np.int64)
        return np.asarray(covariates[..., self.covariates.index(SUMMED)] > 1, np.int64)

    def _finished(self, quantiles: Floats, kinds: NDArray[np.int64]) -> Floats:
        """Calibrated quantiles that do not cross and are not negative."""
        low, middle, high = (quantiles[..., i] for i in range(len(QUANTILES)))
        widen = self.weights["widen"][kinds]
        low, high = np.minimum(low - widen, middle), np.maximum(high + widen, middle)
        return np.maximum(np.stack([low, middle, high], axis=-1), 0.0)

    def _calibrated(self, frames: Sequence[Frame]) -> Floats:
        """By how much the interval of each kind of channel and target must widen to cover what it claims, (kinds, 4).

        Conformalised quantile regression with one split (Romano, Patterson and Candès 2019). Seconds depend on one
        another, so the coverage is not guaranteed as it is for independent ones. Sums of slots have a calibration of
        their own if a covariate tells them apart: their errors are smaller shares of their scale.
        """
        scores, kinds = [], []
        for frame in frames:
            rows = frame.rows(CALIBRATION)
            if rows.any():
                which = self._kinds(frame.covariates)
                quantiles, truth = self._finished(self._predict(frame), which)[rows], frame.truth[rows]
                scores.append(np.maximum(quantiles[..., 0] - truth, truth - quantiles[..., -1]))
                kinds.append(which[rows])
        off, kind = np.concatenate(scores), np.concatenate(kinds)
        found = []
        for number in range(len(self.weights["widen"])):
            own = off[kind == number] if (kind == number).any() else off
            level = min(math.ceil((len(own) + 1) * COVERAGE) / len(own), 1.0)
            found.append(np.quantile(own, level, axis=0, method="higher"))
        return np.array(found)

    def _check_fitted(self) -> None:
        if "widen" not in self.weights:
            raise InputError(self.name, "the model is not fitted", "Call fit first")

    def _tell_lacking(self, there: Collection[str], source: str) -> bool:
        """Whether covariates are lacking, which is warned of: by default, Python shows a warning once."""
        lacking = [name for name in self.covariates if name not in there]
        if not lacking:
            return False
        names = ", ".join(lacking)
        if len(lacking) < len(self.covariates):
            text = f"has no {names}; {self.name} takes their means of training in their place"
        else:
            text = f"has no covariate that {self.name} was fitted with ({names}); it forecasts from power alone"
        warnings.warn(f"{source}: {text}", UnlikeTraining, stacklevel=3)
        return True
