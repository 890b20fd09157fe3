"""Writing power limits and clock locks through the real binding over emulated GPUs."""

from collections.abc import Iterator

import pynvml
import pytest

from llmcluster.deploy.nvml import errors
from llmcluster.deploy.nvml.devices import Device
from llmcluster.deploy.nvml.limits import (
    Bounds,
    free_clock,
    lock_clock,
    put_back_power_limit,
    read_bounds,
    read_limits,
    set_power_limit,
)
from llmcluster.deploy.nvml.session import NvmlSession
from llmcluster.deploy.readings import Limits
from llmcluster.deploy.rehearsal.nvml import WRITES, Call, EmulatedGpus
from llmcluster.tests.emulated import H100


@pytest.fixture
def device(gpus: EmulatedGpus) -> Iterator[Device]:
    session = NvmlSession(["0"])
    yield session.devices["0"]
    session.close()


def test_a_limit_is_written_and_read_back(gpus: EmulatedGpus, device: Device) -> None:
    assert read_bounds(device) == Bounds(H100.cap_min_w, H100.cap_max_w)
    assert set_power_limit(device, 431.25) == Limits(431.25, 431.25) == read_limits(device)
    assert gpus.limit_w(0) == 431.25
    assert gpus.calls(0, Call.SET_LIMIT) == 1


@pytest.mark.parametrize("off_w", [1.5, 100.0])
def test_a_limit_that_does_not_hold_is_told(gpus: EmulatedGpus, device: Device, off_w: float) -> None:
    gpus.set_ceiling(0, 500.0 - off_w)
    with pytest.raises(
        errors.NotHeldError, match=r"500 W were written, but 500 W read back as asked for and 4"
    ) as caught:
        set_power_limit(device, 500.0)
    assert "another tool, a board controller" in str(caught.value)
    put_back_power_limit(device, 600.0)  # as it was before: somebody else's limiter may be in force
    assert gpus.limit_w(0) == 600.0


def test_a_limit_within_a_watt_holds(gpus: EmulatedGpus, device: Device) -> None:
    gpus.set_ceiling(0, 499.5)
    assert set_power_limit(device, 500.0) == Limits(500.0, 499.5)


def test_putting_back_what_is_there_writes_nothing(gpus: EmulatedGpus, device: Device) -> None:
    put_back_power_limit(device, H100.cap_max_w)
    assert gpus.calls(0, Call.SET_LIMIT) == 0


def test_a_clock_is_locked_within_what_the_gpu_can_and_freed(gpus: EmulatedGpus, device: Device) -> None:
    lowest, highest = H100.clock_min_mhz, H100.clock_max_mhz
    for asked, locked in ((1200.4, 1200.0), (1.0, lowest), (9999.0, highest)):
        lock_clock(device, asked)
        assert gpus.clock_lock_mhz(0) == (lowest, locked)
    free_clock(device)
    assert gpus.clock_lock_mhz(0) is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (pynvml.NVML_ERROR_NO_PERMISSION, errors.NoPermissionError),
        (pynvml.NVML_ERROR_NOT_SUPPORTED, errors.NotSupportedError),
        (pynvml.NVML_ERROR_GPU_IS_LOST, errors.GpuLostError),
    ],
)
def test_what_the_driver_refuses_is_told(
    gpus: EmulatedGpus, device: Device, code: int, kind: type[errors.NvmlError]
) -> None:
    gpus.fail(0, code, WRITES)
    for write in (set_power_limit, lock_clock, put_back_power_limit):
        with pytest.raises(kind, match=rf"^GPU 0 \({gpus.uuids[0]}\): "):
            write(device, 400.0)
    with pytest.raises(kind):
        free_clock(device)
    assert (gpus.limit_w(0), gpus.clock_lock_mhz(0)) == (H100.cap_max_w, None)


def test_a_value_out_of_bounds_is_refused_by_the_driver(device: Device) -> None:
    with pytest.raises(errors.RefusedError, match="nvidia-smi -q -d POWER"):
        set_power_limit(device, H100.cap_max_w + 1)


def test_a_partitioned_gpu_keeps_its_limits_but_gets_back_what_it_had(gpus: EmulatedGpus, device: Device) -> None:
    gpus.set_mig(0, True)
    for write in (set_power_limit, lock_clock):
        with pytest.raises(errors.MigError, match="MIG"):
            write(device, 400.0)
    assert [gpus.calls(0, call) for call in WRITES] == [0, 0]
    put_back_power_limit(device, 400.0)
    assert gpus.limit_w(0) == 400.0
