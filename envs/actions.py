"""The typed action under every encoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

RouterName = Literal["round-robin", "least-outstanding", "power-of-two", "prefix-affinity"]
ALL_ROUTERS: tuple[RouterName, ...] = get_args(RouterName)
ROUTERS: tuple[RouterName, ...] = ALL_ROUTERS[:2]
"""Those that an action chooses among where the scenario does not list its own."""

KEEP, SLEEP, OFF, SERVE = 0, 1, 2, 3
"""Life-cycle targets of a slot; ``SERVE + m`` serves model m. A target stays until another one is given.

``KEEP`` is also the variant that leaves a slot's variant as it is.
"""

NOWHERE = -1


@dataclass(frozen=True, eq=False)
class ClusterAction:
    """What an agent decides in one tick, for R slots. ``None`` leaves things as they are.

    Attributes:
        router: How requests are shared out: ``round-robin`` (smooth, weighted), ``least-outstanding`` (per weight),
            ``power-of-two`` (the lesser of two drawn by weight) or ``prefix-affinity`` (to where the prompt's beginning
            is cached). On real hardware: the gateway's policy.
        route_weight: Weight of each slot in [0, 1], (R,). On real hardware: the gateway's weights.
        cap_w: Power limit of each slot, watts (R,), all its GPUs together. On real hardware: NVML's power limit.
        clock_ratio: Highest clock of each slot relative to the GPU's own, (R,). On real hardware: NVML's locked clocks.
        lifecycle: Target of each slot (R,): KEEP, SLEEP, OFF, or SERVE + model. On real hardware: vLLM's sleep and
            wake, and a launcher.
        concurrency: Requests that each slot has in flight at most, at least 1 (R,); there is no limit from the engine's
            ``max_num_seqs`` on. What finds no room waits at the gateway. On real hardware: the gateway's in-flight
            limit.
        variant: What each slot serves its model with (R,): KEEP, or an index into its ``Fleet.variants``. A slot that
            serves the model drains and loads anew; any other does so once it serves it again. On real hardware: a
            launcher that starts vLLM again, with another model or tensor parallelism.
        place: Slot for the first pending instance, or NOWHERE. On real hardware: the launcher's choice of GPUs.
    """

    router: str | None = None
    route_weight: NDArray[np.float64] | None = None
    cap_w: NDArray[np.float64] | None = None
    clock_ratio: NDArray[np.float64] | None = None
    lifecycle: NDArray[np.int64] | None = None
    concurrency: NDArray[np.int64] | None = None
    variant: NDArray[np.int64] | None = None
    place: int = NOWHERE
