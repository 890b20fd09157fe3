"""Readings of GPUs through the real NVML binding, over emulated GPUs that fail in every way that is told of."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pynvml
import pytest

from llmcluster.deploy.errors import by_name
from llmcluster.deploy.nvml import errors
from llmcluster.deploy.nvml.devices import find
from llmcluster.deploy.nvml.library import STATE_VARIABLE, close_library, open_library
from llmcluster.deploy.nvml.reasons import REASONS, named
from llmcluster.deploy.nvml.session import NvmlSession
from llmcluster.deploy.readings import GpuReading, ReadingError
from llmcluster.deploy.rehearsal import stub_library
from llmcluster.deploy.rehearsal.nvml import EVERYTHING, WRITES, Call, EmulatedGpus, GpuState
from llmcluster.errors import InputError
from llmcluster.tests.emulated import A100, H100, emulated
from llmcluster.tests.keepers import eventually

BUSY = GpuState(
    power_w=612.345,
    mean_power_w=598.7,
    energy_j=123_456.789,
    temperature_c=63.0,
    clock_mhz=1755.0,
    utilisation=0.97,
    memory_used_bytes=70_000_000_000,
    throttle=("sw_power_cap", "hw_power_brake"),
)


@pytest.fixture
def session(gpus: EmulatedGpus) -> Iterator[NvmlSession]:
    opened = NvmlSession(["0", "1"], timeout_s=0.25, clock=lambda: 17.0)
    yield opened
    opened.close()


def test_all_that_a_gpu_tells_is_read(gpus: EmulatedGpus, session: NvmlSession) -> None:
    gpus.write(0, BUSY)
    gpus.set_limit(0, 650.0)
    gpus.set_ceiling(0, 640.0)
    assert session.read()["0"] == GpuReading(
        time_s=17.0,
        power_w=612.345,
        mean_power_w=598.7,
        energy_j=123_456.789,
        temperature_c=63.0,
        slowdown_c=float(round(H100.thermal.throttle_c)),
        clock_mhz=1755.0,
        max_clock_mhz=H100.clock_max_mhz,
        utilisation=0.97,
        memory_used_bytes=70_000_000_000,
        memory_bytes=H100.memory_bytes,
        throttle=frozenset({"sw_power_cap", "hw_power_brake"}),
        limit_w=650.0,
        enforced_w=640.0,
    )


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (Call.INSTANT, {"power_w"}),
        (Call.ENERGY, {"energy_j"}),
        (Call.TEMPERATURE, {"temperature_c"}),
        (Call.CLOCK, {"clock_mhz", "max_clock_mhz"}),
        (Call.UTILISATION, {"utilisation"}),
        (Call.MEMORY, {"memory_used_bytes", "memory_bytes"}),
        (Call.LIMIT, {"limit_w", "enforced_w"}),
    ],
)
@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION])
def test_what_a_gpu_does_not_tell_is_none_and_the_rest_is_there(
    gpus: EmulatedGpus, session: NvmlSession, call: Call, names: set[str], code: int
) -> None:
    gpus.write(0, BUSY)
    gpus.fail(0, code, [call])
    reading = session.read()["0"]
    assert {field.name for field in fields(reading) if getattr(reading, field.name) is None} == names


def test_averaged_power_falls_back_to_the_oldest_call(gpus: EmulatedGpus, session: NvmlSession) -> None:
    gpus.write(0, BUSY)
    assert session.read()["0"].mean_power_w == 598.7
    assert gpus.calls(0, Call.USAGE) == 0
    gpus.fail(0, pynvml.NVML_ERROR_NOT_SUPPORTED, [Call.AVERAGE])
    assert session.read()["0"].mean_power_w == 598.7
    assert gpus.calls(0, Call.USAGE) == 1
    gpus.fail(0, pynvml.NVML_ERROR_NOT_SUPPORTED, [Call.USAGE])
    assert session.read()["0"].mean_power_w is None


def test_slowdown_comes_from_the_margin_where_no_threshold_is_told(gpus: EmulatedGpus, session: NvmlSession) -> None:
    gpus.write(0, BUSY)
    gpus.fail(0, pynvml.NVML_ERROR_NOT_SUPPORTED, [Call.THRESHOLD])
    assert session.read()["0"].slowdown_c == round(H100.thermal.throttle_c)
    gpus.fail(0, pynvml.NVML_ERROR_NOT_SUPPORTED, [Call.MARGIN])
    assert session.read()["0"].slowdown_c is None


def test_reasons_have_the_bits_of_the_binding() -> None:
    bits = {v for k, v in vars(pynvml).items() if k.startswith("nvmlClocksEventReason") and isinstance(v, int)}
    assert set(REASONS.values()) == {bit for bit in bits if bit.bit_count() == 1}
    assert named(sum(REASONS.values()) | 1 << 40) == set(REASONS)


def test_gpus_are_found_by_index_uuid_and_name(gpus: EmulatedGpus, session: NvmlSession) -> None:
    devices = list(session.devices.values())
    assert [device.uuid for device in devices] == list(gpus.uuids)
    assert find(devices, "1") == find(devices, gpus.uuids[1]) == find(devices, A100.name) == devices[1]
    with pytest.raises(errors.NoSuchGpuError, match=r"^9: no such GPU; there are GPU 0 \(GPU-.*nvidia-smi -L"):
        find(devices, "9")
    with pytest.raises(errors.NoSuchGpuError, match="several GPUs have that name"):
        find([devices[0], devices[0]], H100.name)
    with pytest.raises(errors.MigError, match="MIG-1234: is an instance"):
        find(devices, "MIG-1234")


def test_without_names_all_gpus_are_read_by_uuid(gpus: EmulatedGpus) -> None:
    session = NvmlSession()
    assert tuple(session.read()) == gpus.uuids
    session.close()


def test_one_gpu_under_two_names_is_refused(gpus: EmulatedGpus) -> None:
    with pytest.raises(errors.NoSuchGpuError, match="one and the same GPU"):
        NvmlSession(["0", gpus.uuids[0]])


def test_mig_is_told(gpus: EmulatedGpus, session: NvmlSession) -> None:
    gpus.set_mig(0, True)
    assert [session.ask(name, lambda device: device.is_partitioned()) for name in ("0", "1")] == [True, False]
    gpus.fail(1, pynvml.NVML_ERROR_NOT_SUPPORTED, [Call.MIG])
    assert not session.ask("1", lambda device: device.is_partitioned())


def test_a_lost_gpu_is_dropped_for_good_with_one_line_and_the_rest_go_on(
    gpus: EmulatedGpus, session: NvmlSession, caplog: pytest.LogCaptureFixture
) -> None:
    assert set(session.read()) == {"0", "1"}
    gpus.fail(0, pynvml.NVML_ERROR_GPU_IS_LOST)
    with caplog.at_level(logging.WARNING):
        assert [set(session.read()) for _ in range(3)] == [{"1"}] * 3
    assert [record.message for record in caplog.records] == [
        f"GPU 0 ({gpus.uuids[0]}): the GPU is lost. {errors.GpuLostError.remedy}"
    ]
    gpus.fail(0, 0)
    assert set(session.read()) == {"1"}
    gpus.fail(1, pynvml.NVML_ERROR_RESET_REQUIRED)
    with pytest.raises(ReadingError, match="the GPU is lost"):
        session.read()


def test_a_gpu_that_fails_otherwise_comes_back(
    gpus: EmulatedGpus, session: NvmlSession, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        gpus.fail(0, pynvml.NVML_ERROR_UNKNOWN)
        assert [set(session.read()) for _ in range(2)] == [{"1"}] * 2
        gpus.fail(0, 0)
        assert set(session.read()) == {"0", "1"}
    assert len(caplog.records) == 2


def test_a_gpu_that_hangs_holds_up_no_other_and_comes_back(gpus: EmulatedGpus, session: NvmlSession) -> None:
    gpus.hang(0, 3600, [Call.ENERGY])
    assert [set(session.read()) for _ in range(2)] == [{"1"}] * 2
    assert gpus.calls(0, Call.ENERGY) == 1  # none is begun while one hangs
    gpus.hang(0, 0)
    eventually(lambda: set(session.read()) == {"0", "1"})


def test_when_all_hang_the_reading_fails_in_time(gpus: EmulatedGpus, session: NvmlSession) -> None:
    for gpu in (0, 1):
        gpus.hang(gpu, 3600, [Call.ENERGY])
    with pytest.raises(ReadingError, match=r"does not answer in time.*does not answer in time"):
        session.read()
    with pytest.raises(errors.SilentError, match="an earlier call has not come back"):
        session.ask("0", lambda device: device.uuid)
    for gpu in (0, 1):
        gpus.hang(gpu, 0)


def test_a_timeout_of_the_driver_is_one_of_ours(gpus: EmulatedGpus, session: NvmlSession) -> None:
    gpus.fail(0, pynvml.NVML_ERROR_TIMEOUT, [Call.MEMORY])
    gpus.fail(1, pynvml.NVML_ERROR_TIMEOUT, [Call.MEMORY])
    with pytest.raises(ReadingError, match="does not answer in time"):
        session.read()


def test_no_thread_is_left_when_a_session_is_closed(gpus: EmulatedGpus) -> None:
    before = set(threading.enumerate())
    session = NvmlSession()
    assert {thread.name for thread in set(threading.enumerate()) - before} >= {
        f"nvml GPU {index} ({uuid})" for index, uuid in enumerate(gpus.uuids)
    }
    session.close()
    eventually(lambda: set(threading.enumerate()) <= before)


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, errors.LibraryMissingError, "Install the NVIDIA driver"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, errors.DriverMissingError, "modprobe nvidia"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, errors.LibraryMismatchError, "Reboot or reload"),
        (pynvml.NVML_ERROR_NO_PERMISSION, errors.NoPermissionError, "CAP_SYS_ADMIN.*--cap-add SYS_ADMIN"),
        (pynvml.NVML_ERROR_UNKNOWN, errors.NvmlError, "nvidia-smi"),
        (pynvml.NVML_ERROR_MEMORY, errors.NvmlError, "code 20"),
    ],
)
def test_what_keeps_nvml_from_opening_is_told_with_its_remedy(
    gpus: EmulatedGpus, code: int, kind: type[errors.NvmlError], remedy: str
) -> None:
    gpus.fail_init(code)
    with pytest.raises(kind, match=rf"(?s)^NVML: .*{remedy}") as caught:
        NvmlSession()
    assert type(caught.value) is kind


def test_every_code_of_the_binding_becomes_an_error_of_ours() -> None:
    codes = [value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_")]
    assert len(codes) > 25
    for code in codes:
        with pytest.raises(errors.NvmlError) as caught, errors.mapped("GPU 3"):
            raise pynvml.NVMLError(code)
        assert str(caught.value).startswith("GPU 3: ")
        again = by_name(type(caught.value).__name__, caught.value.where, caught.value.problem)
        assert (type(again), str(again)) == (type(caught.value), str(caught.value))


def test_a_missing_library_is_told() -> None:
    if stub_library.SONAME in subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this machine has the driver")
    code = "from llmcluster.deploy.nvml.session import NvmlSession; NvmlSession()"
    done = run(code, {"LD_LIBRARY_PATH": "", STATE_VARIABLE: ""})
    assert "LibraryMissingError: NVML: libnvidia-ml.so.1 is not found. Install" in done.stderr


def test_a_rehearsal_refuses_the_drivers_library(gpus: EmulatedGpus, tmp_path: Path) -> None:
    source = tmp_path / "driver.c"
    source.write_text("int nvmlInitWithFlags(unsigned f) { return f; } int nvmlShutdown(void) { return 0; }")
    driver = tmp_path / stub_library.SONAME
    subprocess.run([stub_library.compiler(), "-shared", "-fPIC", str(source), "-o", str(driver)], check=True)
    code = "from llmcluster.deploy.nvml.library import open_library; open_library()"
    done = run(code, gpus.environment() | {"LD_LIBRARY_PATH": str(tmp_path)})
    assert "asks for emulated GPUs, but the driver's own library is loaded" in done.stderr
    assert run(code, gpus.environment()).returncode == 0


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ) | environment)


def test_another_process_sees_the_same_gpus_and_writes_to_them(gpus: EmulatedGpus) -> None:
    gpus.write(1, BUSY)
    code = (
        "import pynvml; pynvml.nvmlInit(); gpu = pynvml.nvmlDeviceGetHandleByIndex(1);"
        "pynvml.nvmlDeviceSetPowerManagementLimit(gpu, 250_000); pynvml.nvmlDeviceSetGpuLockedClocks(gpu, 210, 900);"
        "print(pynvml.nvmlDeviceGetUUID(gpu), pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu),"
        " pynvml.nvmlSystemGetDriverVersion())"
    )
    done = run(code, gpus.environment())
    assert done.stdout.split() == [gpus.uuids[1], "123456789", "0.0-emulated"], done.stderr
    assert (gpus.limit_w(1), gpus.clock_lock_mhz(1)) == (250.0, (210.0, 900.0))
    assert (gpus.limit_w(0), gpus.clock_lock_mhz(0)) == (H100.cap_max_w, None)
    assert [gpus.calls(1, call) for call in WRITES] == [1, 1]


def test_the_emulated_driver_holds_what_the_real_one_holds(gpus: EmulatedGpus) -> None:
    open_library()
    gpu = pynvml.nvmlDeviceGetHandleByUUID(gpus.uuids[0])
    for wrong_mw in (round(H100.cap_min_w * 1e3) - 1, round(H100.cap_max_w * 1e3) + 1):
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceSetPowerManagementLimit(gpu, wrong_mw)
    for low, high in ((0, 0), (900, 800), (210, round(H100.clock_max_mhz) + 1)):
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceSetGpuLockedClocks(gpu, low, high)
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-nonsense")
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetHandleByIndex(2)
    pynvml.nvmlDeviceSetGpuLockedClocks(gpu, 210, 900)
    assert pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM) == 900
    close_library()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetPowerUsage(gpu)


def test_a_file_of_another_layout_is_refused(gpus: EmulatedGpus) -> None:
    whole = gpus.path.read_bytes()
    for spoilt in (whole[:4] + b"\2" + whole[5:], b"\0" + whole[1:], whole[:-1]):
        gpus.path.write_bytes(spoilt)
        with pytest.raises(errors.LibraryMismatchError):
            open_library()
    gpus.path.unlink()
    with pytest.raises(errors.DriverMissingError):
        open_library()


def test_binding_is_undone(tmp_path: Path) -> None:
    before = pynvml.nvmlLib, os.environ.get(STATE_VARIABLE)
    with emulated(tmp_path).bound():
        assert os.environ[STATE_VARIABLE] == str(tmp_path / "nvml.state")
    assert (pynvml.nvmlLib, os.environ.get(STATE_VARIABLE)) == before


def test_faults_are_by_call(gpus: EmulatedGpus) -> None:
    gpus.fail(0, pynvml.NVML_ERROR_NO_PERMISSION, WRITES)
    open_library()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(pynvml.NVMLError_NoPermission):
        pynvml.nvmlDeviceSetPowerManagementLimit(gpu, 300_000)
    assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu) == H100.cap_max_w * 1e3
    gpus.fail(0, 0)
    pynvml.nvmlDeviceSetPowerManagementLimit(gpu, 300_000)
    assert gpus.limit_w(0) == 300.0
    assert len(EVERYTHING) == len(Call)
    close_library()


def test_the_stub_is_built_once_and_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCLUSTER_CACHE", str(tmp_path))
    built = stub_library.stub_library()
    assert built.is_relative_to(tmp_path)
    facts = built.stat()
    assert stub_library.stub_library().stat() == facts
    assert [path.name for path in built.parent.iterdir()] == [stub_library.SONAME]
    built.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(InputError, match=r"there is none\. Install one"):
        stub_library.stub_library()
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho no headers >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(InputError, match="no headers"):
        stub_library.stub_library()


def test_an_emulation_takes_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no GPU to emulate"):
        EmulatedGpus(tmp_path / "none", [])
