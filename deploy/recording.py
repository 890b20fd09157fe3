"""Records a deployment's GPUs and servers as its configuration names them."""

from __future__ import annotations

import threading
from pathlib import Path

from ..envs.cluster_env import LLMClusterEnv
from .deployable import checked_config
from .record import Recorded, Recorder, record
from .stack import opened_gpus, sampler_of


def record_to(
    path: Path, out: Path, period_s: float, duration_s: float | None, stop: threading.Event
) -> tuple[list[Path], int]:
    """Records until ``stop``, or for some seconds; gives the files and how many lines of power they have.

    Args:
        path: The configuration.
        out: Folder and beginning of the files' names.
        period_s: Seconds between readings.
        duration_s: Seconds; `None` for until ``stop``.
        stop: Ends it.

    Raises:
        InputError: The configuration does not hold, or a file is there already.
        ReadingError: The GPUs are not there.
    """
    config = checked_config(path)
    fleet = LLMClusterEnv(config.scenario, forecaster="none").fleet
    slots = [
        Recorded(slot.name, gpu, slot.model, slot.gpus) for slot, gpu in zip(config.slots, fleet.gpus, strict=True)
    ]
    with opened_gpus(config) as gpus, Recorder(slots, out) as recorder:
        record(sampler_of(config, gpus, None), recorder, period_s, duration_s, stop)
        return recorder.files, recorder.lines
