"""What TAPAS reads of an observation, in natural units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...envs.features import TEMPERATURE_C
from ...envs.telemetry import LEAD_TIMES_S
from ..base import Task, View

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Reading:
    """One tick of telemetry of R slots.

    Attributes:
        power_w: Mean of the tick, watts (R,).
        cap_w: Power limit in force, watts (R,).
        temperature_c: Die temperature, °C (R,).
        inlet_c: Inlet temperature, °C (R,); ``nan`` where it is not metered.
        outside_c: Outside temperature now and as far ahead as it is forecast, °C; empty where it is not metered.
        serving: Slots that take requests (R,).
        tenant: Slots that foreign machines hold (R,).
        free: Slots that are empty or asleep (R,).
        moving: Slots that load or drain (R,).
        running: Requests in the batch (R,).
        variant: What each slot holds, an index into ``Fleet.variants`` (R,); 0 where it is not told.
        budget_w: Lowest budget of the site within the announcement, watts.
        row_room_w: What the slot's row may draw more, the lowest within the announcement, watts (R,); endless where no
            row has a limit.
    """

    power_w: F64
    cap_w: F64
    temperature_c: F64
    inlet_c: F64
    outside_c: F64
    serving: Mask
    tenant: Mask
    free: Mask
    moving: Mask
    running: F64
    variant: NDArray[np.int64]
    budget_w: float
    row_room_w: F64

    @classmethod
    def of(cls, task: Task, view: View) -> Reading:
        """Reads an observation; what the scenario does not meter is ``nan`` or empty."""
        slots = {f.name for f in task.observations.slot_features}
        cluster = {f.name for f in task.observations.cluster_features}
        size, shown_from_c = len(task.fleet), TEMPERATURE_C[0]

        def slot(name: str, missing: float) -> F64:
            return view.slot(name) if name in slots else np.full(size, missing)

        variant = np.zeros(size, np.int64)
        for r, names in enumerate(task.fleet.variants):
            for number, name in enumerate(names):
                if f"variant_{name}" in slots and view.slot(f"variant_{name}")[r] > 0:
                    variant[r] = number
        rooms = [slot(f"row_headroom_in_{lead}s", np.inf) for lead in LEAD_TIMES_S]
        outside = [view.cluster(n) for lead in LEAD_TIMES_S if (n := f"outside_in_{lead}s") in cluster]
        return cls(
            power_w=view.slot("power"),
            cap_w=view.slot("cap"),
            temperature_c=view.slot("temperature") + shown_from_c,
            inlet_c=slot("inlet", np.nan) + shown_from_c,
            outside_c=np.array(outside) + shown_from_c,
            serving=view.slot("is_serving") > 0,
            tenant=slot("is_tenant", 0.0) > 0,
            free=view.slot("is_empty") + view.slot("is_sleeping") > 0,
            moving=view.slot("is_loading") + view.slot("is_draining") > 0,
            running=view.slot("running"),
            variant=variant,
            budget_w=min(view.cluster(f"budget_in_{lead}s") for lead in LEAD_TIMES_S),
            row_room_w=np.min(rooms, axis=0),
        )
