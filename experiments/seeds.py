"""Seeds of training, validation and held-out traffic: three streams that never meet."""

from __future__ import annotations

import numpy as np

TRAINING, VALIDATION, HELD_OUT = 0, 1, 2


def _draw(seed: int, purpose: int, count: int, *more: int) -> list[int]:
    # 31 bits, with the purpose in the highest two: streams cannot share a seed.
    low = np.random.SeedSequence([seed, purpose, *more]).generate_state(count) & 0x1FFFFFFF
    return [(purpose << 29) + int(x) for x in low]


def training_seed(seed: int, steps_done: int = 0) -> int:
    """Seed of the first training environment; the others count on from it. A run that goes on gets another one."""
    return _draw(seed, TRAINING, 1, *([steps_done] if steps_done else []))[0] & 0x1FFF0000


def validation_seeds(seed: int, count: int) -> list[int]:
    """Seeds of the episodes on which anything is tuned."""
    return _draw(seed, VALIDATION, count)


def held_out_seeds(seed: int, count: int) -> list[int]:
    """Seeds of the episodes on which results are reported."""
    return _draw(seed, HELD_OUT, count)
