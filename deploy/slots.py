"""What the GPUs of each slot say together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .meter import GpuMeter, Seconds
from .readings import GpuReading
from .sampler import Look

F64 = NDArray[np.float64]
BRAKE = "hw_power_brake"
KEPT_S = 120


class SlotMeters:
    """Power, heat, clocks and limits of slots: sums of power and limits, the hottest GPU, the slowest clock.

    What a GPU has never said is what the data sheet suggests: its highest limit and its full clock.

    Args:
        gpus: Names of the GPUs of each slot, R of them.
        averages: Whether the power of a second is a mean, or that of an instant (R,).
        cap_max_w: Highest limit of each slot, watts (R,).
        stale_s: The last reading holds for so long.
    """

    def __init__(self, gpus: Sequence[Sequence[str]], averages: Sequence[bool], cap_max_w: F64, stale_s: float) -> None:
        self._gpus, self._cap_max_w, self._stale_s = gpus, cap_max_w, stale_s
        self._meters = {name: GpuMeter(averages=a) for own, a in zip(gpus, averages, strict=True) for name in own}
        self._watts = dict.fromkeys(self._meters, 0.0)
        self._seconds = Seconds(len(gpus), KEPT_S)

    def take(self, look: Look) -> list[F64]:
        """Takes note of a look; gives the power of each second that has passed since the last one, watts (R,)."""
        for name, held in look.gpus.items():
            if held.fault:
                # One that is lost draws nothing that anyone could know of; one that is late, what it did.
                self._watts[name] = self._watts[name] if look.time_s - held.at_s < self._stale_s else 0.0
            elif held.reading is not None:
                watts = self._meters[name].watts(held.reading)
                self._watts[name] = self._watts[name] if watts is None else watts
        of_slots_w = np.array([sum(self._watts[name] for name in own) for own in self._gpus], np.float64)
        return self._seconds.add(look.time_s, of_slots_w)

    def power_w(self, seconds: int) -> F64:
        """Power of the last seconds, (seconds, R)."""
        return self._seconds.last(seconds)

    def lost(self, look: Look) -> NDArray[np.bool_]:
        """Slots of which a GPU is lost or silent (R,)."""
        gone = {name for name, held in look.gpus.items() if held.fresh(look.time_s, self._stale_s) is None}
        return np.array([any(name in gone for name in own) for own in self._gpus])

    def _each(self, look: Look) -> list[list[GpuReading]]:
        return [[r for name in own if (r := look.gpus[name].reading) is not None] for own in self._gpus]

    def temperature_c(self, look: Look) -> F64:
        """The hottest GPU of each slot, °C (R,); 0 where none has told."""
        return np.array([max((g.temperature_c or 0.0 for g in own), default=0.0) for own in self._each(look)])

    def clock_ratio(self, look: Look) -> F64:
        """The slowest clock of each slot relative to the highest (R,)."""
        return np.array(
            [min((_ratio(g) for g in own), default=1.0) for own in self._each(look)],
        )

    def cap_w(self, look: Look) -> F64:
        """Limits in force, summed over the GPUs of each slot, watts (R,)."""
        caps_w = []
        for own, read, most_w in zip(self._gpus, self._each(look), self._cap_max_w, strict=True):
            share_w = float(most_w) / len(own)
            known = [g.enforced_w if g.enforced_w is not None else g.limit_w for g in read]
            known += [None] * (len(own) - len(read))
            caps_w.append(sum(share_w if w is None else w for w in known))
        return np.array(caps_w)

    def highest_mhz(self, look: Look, ratio: F64) -> dict[str, float | None]:
        """Bounds on the clocks of GPUs by name; none for a ratio of 1, or where the highest clock is not told."""
        bounds: dict[str, float | None] = {}
        for own, share in zip(self._gpus, ratio.tolist(), strict=True):
            for name in own:
                reading = look.gpus[name].reading
                most = reading.max_clock_mhz if reading else None
                bounds[name] = None if most is None or share >= 1 else float(round(most * share))
        return bounds

    def braked(self, look: Look) -> NDArray[np.bool_]:
        """Slots of which a GPU is under a power brake (R,)."""
        return np.array([any(BRAKE in g.throttle for g in own) for own in self._each(look)])


def _ratio(reading: GpuReading) -> float:
    if reading.clock_mhz is None or not reading.max_clock_mhz:
        return 1.0
    return reading.clock_mhz / reading.max_clock_mhz
