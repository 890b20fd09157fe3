"""Recording, and reading it back with those who read telemetry: forecasts, and the fit of power."""

from __future__ import annotations

import csv
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llmcluster.deploy.record import Recorded, Recorder, record
from llmcluster.deploy.stack import opened_gpus, sampler_of
from llmcluster.experiments.fidelity.sources.power_trace_files import read_traces
from llmcluster.forecaster.telemetry import Options, read_telemetry
from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import J_PER_UNIT
from llmcluster.tests.lockstep import Lockstep
from llmcluster.tests.rig import lock

__all__ = ["lock"]
SECONDS = 12
EPOCH_S = 1.7e9


def recorded(lock: Lockstep, folder: Path) -> list[Path]:
    slots = [
        Recorded(slot.name, gpu, slot.model, slot.gpus)
        for slot, gpu in zip(lock.config.slots, lock.env.fleet.gpus, strict=True)
    ]
    with Recorder(slots, folder / "run.csv", wall=lambda: EPOCH_S) as recorder:
        recorder.take(lock.plant.now)
        for _ in range(SECONDS):
            lock.pass_seconds(1)
            recorder.take(lock.plant.now)
        assert recorder.lines == SECONDS * len(slots) + len(slots)
        return recorder.files


def test_a_recording_is_what_forecasts_and_fits_read(lock: Lockstep, tmp_path: Path) -> None:
    files = recorded(lock, tmp_path)
    true_w = lock.machine.cluster.history.column("energy_j") / 1.0
    counts = [lock.of_machine(lambda slot=slot: lock.machine.counts(slot)) for slot in range(len(lock.machine.slots))]
    catalog = Catalog.builtin()
    for slot, (power, engine) in enumerate(zip(files[::2], files[1::2], strict=True)):
        telemetry = read_telemetry(power, options=Options(engine=engine))
        assert telemetry.start_s == EPOCH_S
        assert len(telemetry) == SECONDS
        # A line holds until the next: that of second k tells of the second before it.
        np.testing.assert_allclose(telemetry.power_w[1:, 0], true_w[: SECONDS - 1, slot], atol=0.01)
        assert {"running", "waiting", "prompt_tokens", "output_tokens", "cap_w", "temperature_c"} <= set(
            telemetry.covariates
        )
        (trace,) = read_traces([power, engine], catalog)
        assert trace.gpu == lock.env.fleet.gpus[slot]
        assert trace.model == lock.config.slots[slot].model
        assert trace.tp == len(lock.config.slots[slot].gpus)
        assert trace.engine[-1, 3] == counts[slot].output_tokens
        assert trace.engine[-1, 4] == lock.machine.tally.iterations[slot] > 0
        np.testing.assert_allclose(np.sum(trace.power[1:, 1]), counts[slot].energy * J_PER_UNIT, rtol=1e-4)


def test_a_recording_does_not_write_over_another(lock: Lockstep, tmp_path: Path) -> None:
    slots = [Recorded(name, "A100-80GB", "Llama-3.1-8B", ("0",)) for name in ("a", "b")]
    with Recorder(slots[1:], tmp_path / "run.csv") as first:
        there = sorted(first.files)
    with pytest.raises(InputError, match="exists"):
        Recorder(slots, tmp_path / "run.csv")
    assert sorted(tmp_path.glob("run*.csv")) == there, "nothing is left of the second"


def test_looks_come_at_their_pace_and_files_are_readable_meanwhile(lock: Lockstep, tmp_path: Path) -> None:
    stop = threading.Event()
    slot = lock.config.slots[0]
    recorder = Recorder([Recorded(slot.name, "H100-80GB", slot.model, slot.gpus)], tmp_path / "run.csv")
    with opened_gpus(lock.config) as gpus, recorder:
        record(sampler_of(lock.config, gpus, None), recorder, 0.1, 0.65, stop)
        rows = list(csv.DictReader(recorder.files[0].read_text().splitlines()))
    stamps = [float(row["epoch_s"]) for row in rows]
    assert 4 <= len(rows) <= 7
    assert all(b - a > 0.02 for a, b in pairwise(stamps))
    assert {float(row["cap_w"]) for row in rows} == {700.0 * len(slot.gpus)}
