"""What control has set, as the engine takes it over."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..kernels.state import UNITS_PER_W, Engine


@dataclass
class Control:
    """What control has set for a slot; see the columns of these names of the engine's slots."""

    status: int
    deployment: int
    role: int
    limit: int
    clock_limit: int
    cap_w: float
    load_w: float
    route_weight: float
    inlet_c: float

    @property
    def cap_cw(self) -> int:
        """The power cap in whole centiwatts."""
        return math.floor(self.cap_w * UNITS_PER_W)

    @classmethod
    def of_all(cls, engine: Engine) -> list[Control]:
        """What is set for every slot."""
        columns = (engine.slots[name].tolist() for name in cls.__dataclass_fields__)
        return [cls(*values) for values in zip(*columns, strict=True)]
