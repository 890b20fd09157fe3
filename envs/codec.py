"""Encodings of the action: MultiDiscrete with masks, and Box; both decode to a ``ClusterAction``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..simulator.errors import InputError
from .actions import KEEP, NOWHERE, ROUTERS, SERVE, ClusterAction, RouterName
from .telemetry import NOBODY_ASKS, TENANT_ASKS, Fleet, Telemetry

Group = Literal["route", "cap", "clock", "lifecycle", "concurrency", "reconfigure", "place"]
Encoding = Literal["discrete", "box"]
SLOT_GROUPS: tuple[Group, ...] = ("route", "cap", "clock", "lifecycle", "concurrency", "reconfigure")
LOWEST_CLOCK = 0.4
STAND_IN: RouterName = "least-outstanding"


@dataclass(frozen=True)
class Layout:
    """Where things are in an encoded action: first the per-slot heads, group by group, then the cluster's own.

    Attributes:
        slots: Number of slots R.
        levels: Levels of every per-slot head.
        slot_groups: Groups with one head per slot, in order.
        cluster_heads: Names and sizes of the remaining heads.
        routers: The options of the head ``router``.
    """

    slots: int
    levels: int
    slot_groups: tuple[Group, ...]
    cluster_heads: tuple[tuple[str, int], ...]
    routers: tuple[str, ...] = ROUTERS

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Options of each head."""
        heads = [self.levels] * (self.slots * len(self.slot_groups)) + [size for _, size in self.cluster_heads]
        return np.array(heads, np.int64)


class ActionCodec:
    """Translates between encoded actions and :class:`ClusterAction`.

    Args:
        fleet: The slots.
        groups: Groups that are switched on.
        levels: Levels of route, cap, clock and concurrency; the per-slot heads have more if models or variants need
            them.
        encoding: ``discrete`` (MultiDiscrete) or ``box`` (every head in [-1, 1]).
        routers: Routers to choose from.

    Raises:
        InputError: A group is unknown, none is on, or there are fewer than two levels.
    """

    def __init__(
        self,
        fleet: Fleet,
        groups: tuple[str, ...],
        levels: int = 5,
        encoding: str = "discrete",
        routers: tuple[RouterName, ...] = ROUTERS,
    ) -> None:
        known = (*SLOT_GROUPS, "place")
        unknown = [g for g in groups if g not in known]
        if unknown or not groups:
            raise InputError("actions.groups", f"{unknown or 'nothing'} given", f"Choose from {', '.join(known)}")
        if levels < 2:
            raise InputError("actions.levels", f"{levels} level leaves no choice", "Give at least 2")
        if encoding not in ("discrete", "box"):
            raise InputError("encoding", f"'{encoding}' is unknown", "Use 'discrete' or 'box'")
        self.fleet, self.encoding, self.steps = fleet, encoding, levels
        self.groups, self.routers = groups, routers
        slot_groups = tuple(g for g in SLOT_GROUPS if g in groups)
        cluster = [("router", len(routers))] if "route" in groups else []
        cluster += [("place", len(fleet) + 1)] if "place" in groups else []
        self._targets, self._variants = SERVE + len(fleet.models), max(map(len, fleet.variants), default=1)
        widths = {"lifecycle": self._targets, "reconfigure": self._variants}
        width = max(levels, *(widths.get(group, 0) for group in groups))
        self.layout = Layout(len(fleet), width, slot_groups, tuple(cluster), routers)
        self._sizes = self.layout.sizes
        self._offsets = np.concatenate([[0], np.cumsum(self._sizes)])
        self.fixed_mask = self._build_fixed_mask()

    def space(self) -> gym.spaces.MultiDiscrete | gym.spaces.Box:
        """The Gymnasium space."""
        if self.encoding == "discrete":
            return gym.spaces.MultiDiscrete(self._sizes)
        return gym.spaces.Box(-1.0, 1.0, (len(self._sizes),), np.float32)

    def decode(self, action: ArrayLike) -> ClusterAction:
        """Decodes an action of the space.

        Args:
            action: (heads,), integers or, for a Box, numbers; values beyond the ends are clipped.

        Returns:
            The typed action.

        Raises:
            ValueError: The shape is wrong, or a value is no number.
        """
        array = np.asarray(action)
        if array.shape != self._sizes.shape:
            raise ValueError(f"an action has shape {self._sizes.shape}, not {array.shape}; see env.action_space")
        if not np.isfinite(array).all():
            raise ValueError(f"an action of numbers only is needed, not {array.tolist()}")
        size = len(self.fleet)
        split = size * len(self.layout.slot_groups)
        per_slot = array[:split].reshape(-1, size)
        fields: dict[str, object] = {}
        for group, values in zip(self.layout.slot_groups, per_slot, strict=True):
            if group == "lifecycle":
                chosen = self._option(values, self._targets)
                serve = np.clip(chosen - SERVE, 0, None)
                fits = self.fleet.fits[np.arange(size), serve] | (chosen < SERVE)
                fields["lifecycle"] = np.where(fits, chosen, KEEP)
                continue
            if group == "reconfigure":
                chosen = self._option(values, self._variants)
                fields["variant"] = np.where(chosen < [len(own) for own in self.fleet.variants], chosen, KEEP)
                continue
            share = self._share(values)
            if group == "route":
                fields["route_weight"] = share
            elif group == "cap":
                fields["cap_w"] = self.fleet.cap_min_w + share * (self.fleet.cap_max_w - self.fleet.cap_min_w)
            elif group == "clock":
                fields["clock_ratio"] = LOWEST_CLOCK + share * (1.0 - LOWEST_CLOCK)
            else:
                fields["concurrency"] = np.rint(self.fleet.max_num_seqs**share).astype(np.int64)
        for (name, options), value in zip(self.layout.cluster_heads, array[split:], strict=True):
            option = int(self._option(value, options))
            if name == "router":
                fields["router"] = self.routers[option]
            else:
                fields["place"] = option - 1 if option else NOWHERE
        return ClusterAction(**fields)  # type: ignore[arg-type]

    def _share(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.encoding == "box":
            return np.clip((values.astype(np.float64) + 1) / 2, 0.0, 1.0)
        return np.clip(values, 0, self.steps - 1) / (self.steps - 1)

    def _option(self, values: NDArray[np.float64], options: int) -> NDArray[np.int64]:
        if self.encoding == "box":
            values = np.floor((np.asarray(values, np.float64) + 1) / 2 * options)
        return np.clip(values, 0, options - 1).astype(np.int64)

    def encode(self, action: ClusterAction) -> NDArray[np.int64] | NDArray[np.float32]:
        """The action of the space that is nearest to ``action``; fields of groups that are off are left out."""
        heads: list[NDArray[np.float64]] = []
        size = len(self.fleet)
        nothing = np.zeros(size)
        for group in self.layout.slot_groups:
            if group == "lifecycle":
                chosen = nothing if action.lifecycle is None else action.lifecycle.astype(np.float64)
                heads.append(self._from_option(chosen, self._targets))
            elif group == "reconfigure":
                chosen = nothing if action.variant is None else action.variant.astype(np.float64)
                heads.append(self._from_option(chosen, self._variants))
            elif group == "route":
                heads.append(self._from_share(np.ones(size) if action.route_weight is None else action.route_weight))
            elif group == "cap":
                span = self.fleet.cap_max_w - self.fleet.cap_min_w
                given = self.fleet.cap_max_w if action.cap_w is None else action.cap_w
                heads.append(self._from_share((given - self.fleet.cap_min_w) / span))
            elif group == "clock":
                ratio = np.ones(size) if action.clock_ratio is None else action.clock_ratio
                heads.append(self._from_share((ratio - LOWEST_CLOCK) / (1 - LOWEST_CLOCK)))
            else:
                heads.append(self._from_share(self._concurrency_share(action.concurrency)))
        for name, options in self.layout.cluster_heads:
            option = self._router(action.router) if name == "router" else action.place + 1
            heads.append(self._from_option(np.array([option], np.float64), options))
        flat = np.concatenate(heads)
        return flat.astype(np.float32) if self.encoding == "box" else flat.astype(np.int64)

    def _router(self, name: str | None) -> int:
        """Option of a router; all but round-robin are kinds of least-outstanding, which stands in where they are not.

        Where it is not either, and where none is asked for, it is the first.
        """
        for known in (name, STAND_IN) if name is not None else ():
            if known in self.routers:
                return self.routers.index(known)
        return 0

    def _concurrency_share(self, in_flight: NDArray[np.int64] | None) -> NDArray[np.float64]:
        """Levels of concurrency are geometric, from one request to as many as the engine runs: none has no limit."""
        most = self.fleet.max_num_seqs
        if in_flight is None or most == 1:
            return np.ones(len(self.fleet))
        share: NDArray[np.float64] = np.log(np.clip(in_flight, 1, most)) / np.log(most)
        return share

    def _from_share(self, share: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.encoding == "box":
            return np.clip(share, 0, 1) * 2 - 1
        return np.rint(np.clip(share, 0, 1) * (self.steps - 1))

    def _from_option(self, option: NDArray[np.float64], options: int) -> NDArray[np.float64]:
        return (option + 0.5) / options * 2 - 1 if self.encoding == "box" else option

    def masks(self, telemetry: Telemetry) -> NDArray[np.bool_]:
        """Which options of which head are open, flat over the heads, as sb3-contrib wants it; a fresh array."""
        mask = self.fixed_mask.copy()
        for h, (name, _) in enumerate(self.layout.cluster_heads, len(self._sizes) - len(self.layout.cluster_heads)):
            if name == "place":
                mask[self._offsets[h] + 1 : self._offsets[h + 1]] = self._places(telemetry)
        return mask

    def _places(self, telemetry: Telemetry) -> NDArray[np.bool_]:
        if telemetry.pending_model == NOBODY_ASKS:
            return np.zeros(len(self.fleet), bool)
        free = (telemetry.status == 0) | (telemetry.status == 4)
        if telemetry.pending_model == TENANT_ASKS:
            return np.asarray(free)
        places: NDArray[np.bool_] = free & self.fleet.fits[:, telemetry.pending_model]
        return places

    def _build_fixed_mask(self) -> NDArray[np.bool_]:
        """Everything that does not change: padding of the shorter heads, models and variants that do not fit."""
        open_levels: dict[str, Callable[[int], NDArray[np.bool_]]] = {
            "lifecycle": lambda r: np.concatenate([np.ones(SERVE, bool), self.fleet.fits[r]]),
            "reconfigure": lambda r: np.ones(len(self.fleet.variants[r]), bool),
        }
        rows = []
        for group in self.layout.slot_groups:
            for r in range(len(self.fleet)):
                row = np.zeros(self.layout.levels, bool)
                levels = open_levels[group](r) if group in open_levels else np.ones(self.steps, bool)
                row[: len(levels)] = levels
                rows.append(row)
        rows += [np.ones(size, bool) for _, size in self.layout.cluster_heads]
        return np.concatenate(rows)
