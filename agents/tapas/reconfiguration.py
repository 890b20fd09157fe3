"""Reconfiguration: what slots are set to where routing alone does not keep the limits, least harmful first.

First the clock, by the power cap: requests take a little longer. Then, where the lowest cap is too high, the number of
requests in flight: others wait. Then, where that has lasted, the variant: answers get worse. The paper's configurator
orders its knobs so too, by what they take from latency, throughput and quality.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...envs.actions import KEEP
from ..base import Task
from ..scaling import PROMPT_TOKENS, deployment_requests_per_s
from .allowance import Domain, within
from .outlook import Outlook
from .reading import F64, Mask

LASTS_S = 30
"""How long a slot must have lacked power before its variant changes: to load another takes as long."""
CALM_S = 120
"""How long there must have been room for the best variant before a slot returns to it."""
LACKS = 0.9
"""A slot lacks power where it is granted less than this share of what it asks for; no other variant is tried that would
use more than this share of what is granted."""


def caps(task: Task, need_w: F64, thermal_w: F64, limits: Sequence[Domain], steered: Mask) -> F64:
    """Power caps, watts (R,), on the levels of the action.

    A slot is capped where its die would pass its limit, or where a row or the site would: then the caps themselves hold
    the limit. Else it is left alone, for a cap that never binds is no use, and one that does takes the clock away.

    Args:
        task: What may be known beforehand.
        need_w: Power that each slot asks for, watts (R,).
        thermal_w: Power at which its die stays below its limit, watts (R,).
        limits: Limits of rows and site.
        steered: Slots that can be capped (R,).
    """
    low_w, high_w = task.fleet.cap_min_w, task.fleet.cap_max_w
    ceiling_w = np.where(need_w > thermal_w, np.clip(thermal_w, low_w, high_w), high_w)
    wanted_w = within(need_w, low_w, ceiling_w, limits)
    return np.where(steered, floored(task, wanted_w, need_w, ceiling_w, limits), high_w)


def floored(task: Task, wanted_w: F64, need_w: F64, ceiling_w: F64, limits: Sequence[Domain]) -> F64:
    """The levels below, and then one more for those who need it most, as far as the limits allow."""
    low_w, step_w = task.fleet.cap_min_w, (task.fleet.cap_max_w - task.fleet.cap_min_w) / (task.codec.steps - 1)
    caps_w = low_w + np.floor((wanted_w - low_w) / step_w + 1e-6) * step_w
    for slot in np.argsort(caps_w - need_w, kind="stable"):
        raised_w = caps_w.copy()
        raised_w[slot] += step_w[slot]
        fits = all(np.minimum(raised_w, need_w)[d.members].sum() <= d.allowance_w for d in limits if d.members[slot])
        if raised_w[slot] <= ceiling_w[slot] + 1e-6 and fits:
            caps_w = raised_w
    return caps_w


def in_flight(task: Task, outlook: Outlook, room_w: F64, idle_w: F64) -> np.ndarray:
    """Requests in flight at most, int64 (R,): no limit but where the lowest cap still draws more than there is room.

    Args:
        task: What may be known beforehand.
        outlook: What lies ahead.
        room_w: Power that each slot may draw, watts (R,).
        idle_w: What it draws without work, watts (R,).
    """
    now, most = outlook.reading, task.fleet.max_num_seqs
    share = (room_w - idle_w).clip(min=0) / np.maximum(now.power_w - idle_w, 1.0)
    fewer = np.floor(now.running * share).clip(1, most)
    return np.where(now.serving & (room_w < task.fleet.cap_min_w), fewer, most).astype(np.int64)


class Variants:
    """Chooses variants: the best answers that the power for them allows.

    A variant that serves more requests a second at full power needs a smaller share of it for the same load. One slot
    changes at a time, so that the others carry on while it loads.

    Args:
        task: What may be known beforehand.
        idle_w: What slots draw without work, watts (R,).
    """

    def __init__(self, task: Task, idle_w: F64) -> None:
        self._task, self._idle_w = task, idle_w
        tokens = task.scenario.reward.tokens_per_request
        self._capacity = [
            np.array([np.nan, *(deployment_requests_per_s(task, v.deployment, PROMPT_TOKENS, tokens) for v in own)])
            for own in task.blueprint.variants
        ]
        self._lacked_s, self._calm_s = np.zeros(len(idle_w)), np.zeros(len(idle_w))

    def choose(self, outlook: Outlook, granted_w: F64) -> np.ndarray:
        """Variants to change to, int64 (R,), KEEP but for one slot at most.

        Args:
            outlook: What lies ahead.
            granted_w: Power that each slot may draw, watts (R,).
        """
        now, tick_s, fleet = outlook.reading, self._task.scenario.tick_s, self._task.fleet
        chosen = np.full(len(fleet), KEEP, np.int64)
        lacks = now.serving & (granted_w < LACKS * outlook.need_w)
        self._lacked_s = np.where(lacks, self._lacked_s + tick_s, 0.0)
        best = [self._fitting(r, int(now.variant[r]), outlook.need_w[r], granted_w[r]) for r in range(len(fleet))]
        better = now.serving & (np.array(best) != now.variant) & ~lacks
        self._calm_s = np.where(better, self._calm_s + tick_s, 0.0)
        ready = ((self._lacked_s >= LASTS_S) | (self._calm_s >= CALM_S)) & (np.array(best) != now.variant)
        if ready.any() and not now.moving.any() and (now.variant > 0).all():
            slot = int(np.argmax(np.where(ready, self._lacked_s + self._calm_s, -1.0)))
            chosen[slot] = best[slot]
            self._lacked_s[slot] = self._calm_s[slot] = 0.0
        return chosen

    def _fitting(self, slot: int, held: int, need_w: float, granted_w: float) -> int:
        """The best variant that does the work of the held one in the granted power, else the thriftiest."""
        if held == 0:
            return held
        model = self._task.blueprint.variants[slot][held - 1].model
        work_w = (need_w - self._idle_w[slot]) * self._capacity[slot][held]
        needs_w = self._idle_w[slot] + work_w / self._capacity[slot]
        same = [n for n, v in enumerate(self._task.blueprint.variants[slot], 1) if v.model == model]
        fits = [n for n in same if needs_w[n] <= granted_w * (1.0 if n == held else LACKS)]
        score = self._task.fleet.quality[slot]
        return max(fits, key=lambda n: (score[n], -needs_w[n])) if fits else min(same, key=lambda n: needs_w[n])
