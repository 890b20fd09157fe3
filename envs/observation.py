"""The one observation builder: telemetry in, a flat Dict of normalised Boxes out.

Every feature has a public name, unit and scale; values are readings divided by the scale, clipped to [-LIMIT, LIMIT].
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ..forecaster import QUANTILES, TARGETS
from .features import TEMPERATURE_C, Feature, Reading, Sense, Senses
from .telemetry import LEAD_TIMES_S, Fleet, Telemetry

LIMIT = 10.0
Observation = dict[str, NDArray[np.float32]]


STATUS_FEATURES = ("empty", "loading", "serving", "draining", "sleeping")
BACKLOG_SCALE = 32.0
"""Waiting requests are shown as log2(1 + n / this)."""


NOTHING_ELSE = Senses()


def _features(senses: tuple[Sense, ...]) -> Iterator[Feature]:
    return chain.from_iterable(sense.features for sense in senses)


def _values(senses: tuple[Sense, ...], now: Telemetry) -> Iterator[Reading]:
    """What the senses read, by the scale of each feature."""
    for sense in senses:
        for feature, reading in zip(sense.features, sense.read(now), strict=True):
            yield reading / feature.scale


class ObservationBuilder:
    """Builds observations for one fleet.

    Args:
        fleet: The slots.
        requests_per_s: Rate that counts as 1.
        tokens_per_s: Prompt and output token rate of one slot that counts as 1.
        senses: What the scenario has beyond the features that all have; theirs come last.
    """

    def __init__(self, fleet: Fleet, requests_per_s: float, tokens_per_s: float, senses: Senses = NOTHING_ELSE) -> None:
        self.fleet, self._senses = fleet, senses
        self._requests_per_s, self._tokens_per_s = requests_per_s, tokens_per_s
        self._tdp_w = fleet.cap_max_w
        self._total_w = float(fleet.cap_max_w.sum())
        size = len(fleet)
        models = [Feature(f"model_{name}", "") for name in fleet.models]
        self.slot_features = (
            *(Feature(f"is_{name}", "") for name in STATUS_FEATURES),
            Feature("ready_in", "s", 60.0),
            Feature("running", "requests", float(fleet.max_num_seqs)),
            Feature("waiting", f"log2(1 + requests / {BACKLOG_SCALE:.0f})"),
            Feature("kv_used", ""),
            Feature("power", "W", float("nan")),
            Feature("cap", "W", float("nan")),
            Feature("temperature", "°C - 30", TEMPERATURE_C[1]),
            Feature("clock", ""),
            Feature("prompt_tokens_per_s", "tokens/s", tokens_per_s),
            Feature("output_tokens_per_s", "tokens/s", tokens_per_s),
            Feature("route_weight", ""),
            Feature("tdp", "W", float(fleet.cap_max_w.max())),
            Feature("rank", ""),
            Feature("rank_within_gpu_type", ""),
            *models,
            *_features(senses.slots),
        )
        self.cluster_features = (
            Feature("arrivals", "requests/s", requests_per_s),
            Feature("arriving_tokens", "tokens/s", tokens_per_s * size),
            Feature("held_at_gateway", f"log2(1 + requests / {BACKLOG_SCALE:.0f})"),
            Feature("slo_attainment", ""),
            Feature("power", "W", self._total_w),
            *(Feature(f"budget_in_{lead}s", "W", self._total_w) for lead in LEAD_TIMES_S),
            Feature("waiting", f"log2(1 + requests / {BACKLOG_SCALE:.0f})"),
            Feature("running", "requests", float(fleet.max_num_seqs * size)),
            Feature("serving_slots", "", float(size)),
            Feature("pending_instances", "", float(size)),
            *(Feature(f"pending_{m.name}", "") for m in models),
            *_features(senses.cluster),
        )
        self.forecast_features = tuple(f"{target}_q{quantile:g}" for target in TARGETS for quantile in QUANTILES)
        self._static = self._static_features()

    def _static_features(self) -> NDArray[np.float64]:
        """tdp, rank, rank within the slots of the same GPU; ranks let one network tell equal slots apart."""
        size = len(self.fleet)
        gpus = np.array(self.fleet.gpus)
        rank = np.arange(size) / max(size - 1, 1)
        within = np.zeros(size)
        for gpu in set(self.fleet.gpus):
            same = np.flatnonzero(gpus == gpu)
            within[same] = np.arange(len(same)) / max(len(same) - 1, 1)
        return np.stack([self._tdp_w / self._tdp_w.max(), rank, within])

    def space(self) -> gym.spaces.Dict:
        """The Gymnasium space."""
        size = len(self.fleet)
        lengths = {
            "slots": size * len(self.slot_features),
            "cluster": len(self.cluster_features),
            "forecast": (size + 1) * len(self.forecast_features),
        }
        return gym.spaces.Dict({k: gym.spaces.Box(-LIMIT, LIMIT, (n,), np.float32) for k, n in lengths.items()})

    def build(self, now: Telemetry, forecast_w: NDArray[np.float64]) -> Observation:
        """Builds one observation.

        Args:
            now: The readings.
            forecast_w: Watts, (R + 1, targets, quantiles); the last series is the whole cluster.

        Returns:
            ``slots`` (R·F,), ``cluster`` (C,) and ``forecast`` ((R + 1)·targets·quantiles,), float32, slot by slot.
        """
        fleet, size = self.fleet, len(self.fleet)
        slots = np.empty((size, len(self.slot_features)), np.float32)
        slots[:, :5] = now.status[:, None] == np.arange(5)
        power_w = now.power_w.mean(axis=0)
        columns = (
            now.ready_in_s / 60.0,
            now.running / fleet.max_num_seqs,
            np.log2(1 + now.waiting / BACKLOG_SCALE),
            now.kv_used,
            power_w / self._tdp_w,
            now.cap_w / self._tdp_w,
            (now.temperature_c - TEMPERATURE_C[0]) / TEMPERATURE_C[1],
            now.clock_ratio,
            now.prompt_tokens_per_s / self._tokens_per_s,
            now.output_tokens_per_s / self._tokens_per_s,
            now.route_weight,
            *self._static,
        )
        for i, column in enumerate(columns, 5):
            slots[:, i] = column
        seen = 5 + len(columns)
        others = seen + len(fleet.models)
        slots[:, seen:others] = now.model[:, None] == np.arange(len(fleet.models))
        for i, reading in enumerate(_values(self._senses.slots, now), others):
            slots[:, i] = reading
        pending = [float(now.pending_model == m) for m in range(len(fleet.models))]
        cluster = np.array(
            [
                now.arrivals_per_s / self._requests_per_s,
                now.arriving_tokens_per_s / (self._tokens_per_s * size),
                np.log2(1 + now.held_at_gateway / BACKLOG_SCALE),
                now.slo_attainment,
                power_w.sum() / self._total_w,
                *(now.budget_w / self._total_w),
                np.log2(1 + now.waiting.sum() / BACKLOG_SCALE),
                now.running.sum() / (fleet.max_num_seqs * size),
                np.count_nonzero(now.status == 2) / size,
                now.pending_instances / size,
                *pending,
                *_values(self._senses.cluster, now),
            ],
            np.float32,
        )
        forecast = np.empty((size + 1, len(self.forecast_features)), np.float32)
        flat = forecast_w.reshape(size + 1, -1)
        forecast[:size] = flat[:size] / self._tdp_w[:, None]
        forecast[size] = flat[size] / self._total_w
        observation = {"slots": slots.ravel(), "cluster": cluster, "forecast": forecast.ravel()}
        for value in observation.values():
            np.clip(value, -LIMIT, LIMIT, out=value)
        return observation
