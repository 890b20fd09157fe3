"""The keeper over emulated GPUs: what it sets, whom it obeys, and that everything goes back whatever dies."""

import os
import socket
import stat
import threading
from concurrent.futures import Future
from pathlib import Path

import pynvml
import pytest

from llmcluster.deploy.keeper.client import KeeperClient
from llmcluster.deploy.keeper.errors import KeeperError, KeeperGoneError, LeaseError
from llmcluster.deploy.keeper.originals import Original, load
from llmcluster.deploy.nvml import errors
from llmcluster.deploy.readings import Limits
from llmcluster.deploy.rehearsal.nvml import WRITES, Call, EmulatedGpus
from llmcluster.errors import InputError
from llmcluster.tests.emulated import A100, H100
from llmcluster.tests.keepers import eventually, is_untouched, keeper_thread

root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another user")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keeper.sock"


def test_limits_are_set_read_back_and_restored(gpus: EmulatedGpus, path: Path) -> None:
    gpus.set_limit(1, 333.0)
    with keeper_thread(path), KeeperClient(path) as client:
        assert client.set_power_limit("0", 432.1) == Limits(432.1, 432.1)
        assert client.set_power_limit(gpus.uuids[1], 250.0) == Limits(250.0, 250.0)
        client.lock_clock(H100.name, 1200.0)
        client.beat()
        assert [gpus.limit_w(gpu) for gpu in (0, 1)] == [432.1, 250.0]
        assert gpus.clock_lock_mhz(0) == (H100.clock_min_mhz, 1200.0)
        status = client.status()
        assert status.holder == os.getpid()
        assert [(g.uuid, g.requested_w, g.enforced_w, g.original_w, g.clock_locked, g.fault) for g in status.gpus] == [
            (gpus.uuids[0], 432.1, 432.1, H100.cap_max_w, True, None),
            (gpus.uuids[1], 250.0, 250.0, 333.0, False, None),
        ]
        client.lock_clock("0", None)
        assert gpus.clock_lock_mhz(0) is None
        client.restore()
        assert [gpus.limit_w(gpu) for gpu in (0, 1)] == [H100.cap_max_w, 333.0]
        client.set_power_limit("0", 400.0)  # the lease is still held
    assert is_untouched(gpus) is False  # the second one had another limit, which is what it has again
    assert [gpus.limit_w(gpu) for gpu in (0, 1)] == [H100.cap_max_w, 333.0]


def test_limits_are_clamped(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_thread(path, floor_w=250.0, ceiling_w=500.0), KeeperClient(path) as client:
        asked = [("0", 1.0), ("0", 9000.0), ("1", 1.0), ("1", 9000.0)]
        given = [client.set_power_limit(gpu, watts).enforced_w for gpu, watts in asked]
        assert given == [250.0, 500.0, 250.0, A100.cap_max_w]
    with keeper_thread(path), KeeperClient(path) as client:
        assert [client.set_power_limit(gpu, watts).enforced_w for gpu, watts in asked] == [
            H100.cap_min_w,
            H100.cap_max_w,
            A100.cap_min_w,
            A100.cap_max_w,
        ]
        client.lock_clock("0", 1.0)
        assert gpus.clock_lock_mhz(0) == (H100.clock_min_mhz, H100.clock_min_mhz)


@pytest.mark.parametrize(("floor_w", "ceiling_w"), [(300.0, 200.0), (-1.0, 200.0), (float("nan"), 200.0)])
def test_bounds_that_exclude_one_another_are_refused(
    gpus: EmulatedGpus, path: Path, floor_w: float, ceiling_w: float
) -> None:
    with (
        pytest.raises(InputError, match="above the ceiling"),
        keeper_thread(path, floor_w=floor_w, ceiling_w=ceiling_w),
    ):
        raise AssertionError


def test_a_keeper_that_is_asked_for_nothing_writes_nothing(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_thread(path), KeeperClient(path) as client:
        client.restore()
        assert not path.with_suffix(".state").exists()
    assert sum(gpus.calls(gpu, call) for gpu in (0, 1) for call in WRITES) == 0


def test_the_way_back_is_on_disk_before_the_first_change_and_gone_after(gpus: EmulatedGpus, path: Path) -> None:
    state = path.with_suffix(".state")
    with keeper_thread(path), KeeperClient(path) as client:
        gpus.hang(0, 3600, [Call.SET_LIMIT])  # nothing is changed yet
        with pytest.raises(errors.SilentError):
            client.set_power_limit("0", 400.0)
        assert load(state) == {gpus.uuids[0]: Original(H100.cap_max_w)}
        assert stat.S_IMODE(state.stat().st_mode) == 0o600
        gpus.hang(0, 0)
        eventually(lambda: gpus.limit_w(0) == 400.0)
        client.lock_clock("0", 900.0)
        assert load(state) == {gpus.uuids[0]: Original(H100.cap_max_w, clock_locked=True)}
        client.restore()
        assert not state.exists()
    assert is_untouched(gpus)


def test_nothing_is_written_when_the_way_back_cannot_be(gpus: EmulatedGpus, path: Path) -> None:
    path.with_suffix(".state").with_name(path.stem + ".state.partial").mkdir()
    with keeper_thread(path), KeeperClient(path) as client:
        with pytest.raises(KeeperError, match="partial"):
            client.set_power_limit("0", 400.0)
        client.beat()
    assert gpus.calls(0, Call.SET_LIMIT) == 0


def test_a_disk_that_fails_does_not_keep_gpus_from_going_back(gpus: EmulatedGpus, path: Path) -> None:
    state = path.with_suffix(".state")
    with keeper_thread(path), KeeperClient(path) as client:
        client.set_power_limit("0", 400.0)
        client.set_power_limit("1", 200.0)
        state.with_name(state.name + ".partial").mkdir()  # from here on it cannot be written
        client.restore()
        assert is_untouched(gpus)
        with pytest.raises(KeeperError, match="partial"):
            client.set_power_limit("0", 400.0)
    assert is_untouched(gpus)


def test_no_permission_is_told_with_the_capability_and_leaves_nothing_to_restore(
    gpus: EmulatedGpus, path: Path
) -> None:
    gpus.fail(0, pynvml.NVML_ERROR_NO_PERMISSION, WRITES)
    with keeper_thread(path) as custody, KeeperClient(path) as client:
        with pytest.raises(errors.NoPermissionError, match=r"CAP_SYS_ADMIN.*--cap-add SYS_ADMIN"):
            client.set_power_limit("0", 400.0)
        with pytest.raises(errors.NoPermissionError):
            client.lock_clock("0", 900.0)
        assert not custody.is_changed
        client.restore()


def test_a_gpu_that_is_lost_or_unknown_does_not_keep_the_others(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_thread(path) as custody, KeeperClient(path) as client:
        client.set_power_limit("0", 400.0)
        client.set_power_limit("1", 200.0)
        gpus.fail(0, pynvml.NVML_ERROR_GPU_IS_LOST)
        with pytest.raises(errors.GpuLostError, match="the GPU is lost"):
            client.set_power_limit("0", 300.0)
        with pytest.raises(errors.NoSuchGpuError, match="no such GPU; there are GPU 0"):
            client.set_power_limit("7", 300.0)
        assert client.set_power_limit("1", 210.0).enforced_w == 210.0
        with pytest.raises(KeeperError, match="the GPU is lost"):
            client.restore()
        assert gpus.limit_w(1) == A100.cap_max_w
        lost, other = client.status().gpus
        assert (lost.requested_w, lost.original_w, other.original_w) == (None, H100.cap_max_w, None)
        assert "is lost" in str(lost.fault)
        client.close()
        gpus.fail(0, 0)  # it comes back, and is restored without being asked for
        eventually(lambda: not custody.is_changed)
        assert is_untouched(gpus)


def test_a_gpu_that_hangs_does_not_keep_the_others_and_is_restored_when_it_wakes(
    gpus: EmulatedGpus, path: Path
) -> None:
    with keeper_thread(path) as custody, KeeperClient(path) as client:
        for gpu, watts in (("0", 400.0), ("1", 200.0)):
            client.set_power_limit(gpu, watts)
        gpus.hang(0, 3600, WRITES)
        with pytest.raises(errors.SilentError, match="does not answer in time"):
            client.set_power_limit("0", 350.0)
        with pytest.raises(errors.SilentError, match="has not come back yet"):
            client.set_power_limit("0", 360.0)
        client.close()
        eventually(lambda: gpus.limit_w(1) == A100.cap_max_w)
        assert gpus.limit_w(0) == 400.0
        gpus.hang(0, 0)  # the write of 350 W goes through first, then the way back
        eventually(lambda: not custody.is_changed)
        assert is_untouched(gpus)


def test_a_status_does_not_keep_limits_from_being_set(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_thread(path), KeeperClient(path) as client, KeeperClient(path, control=False) as onlooker:
        gpus.hang(0, 0.05, [Call.LIMIT])
        watching = threading.Event()
        faults: list[str | None] = []

        def watch() -> None:
            while not watching.is_set():
                faults.extend(gpu.fault for gpu in onlooker.status().gpus)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            eventually(lambda: len(faults) > 0)
            for watts in (400.0, 410.0, 420.0):
                assert client.set_power_limit("0", watts).enforced_w == watts
        finally:
            watching.set()
            thread.join(20)
        assert set(faults) == {None}


def test_what_still_goes_back_is_not_changed(gpus: EmulatedGpus, path: Path) -> None:
    """What was set just as it had gone back would be forgotten, and never go back."""
    with keeper_thread(path) as custody, KeeperClient(path) as client:
        client.set_power_limit("0", 400.0)
        custody._going_back[gpus.uuids[0]] = Future()
        with pytest.raises(errors.SilentError, match="not gone back yet"):
            client.set_power_limit("0", 300.0)
        custody._going_back.clear()
    assert is_untouched(gpus)


def test_a_limit_that_cannot_be_read_back_is_restored_all_the_same(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_thread(path) as custody, KeeperClient(path) as client:
        gpus.hang(0, 0.2, [Call.SET_LIMIT])
        before = gpus.calls(0, Call.SET_LIMIT)

        def refuse() -> None:
            eventually(lambda: gpus.calls(0, Call.SET_LIMIT) > before)
            gpus.fail(0, pynvml.NVML_ERROR_OPERATING_SYSTEM, [Call.LIMIT])

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(errors.NotHeldError, match="cannot be read back"):
            client.set_power_limit("0", 400.0)
        thread.join(20)
        assert gpus.limit_w(0) == 400.0
        gpus.fail(0, 0)
        client.close()
        eventually(lambda: not custody.is_changed)
    assert is_untouched(gpus)


def test_who_takes_the_lease_finds_everything_restored(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_thread(path):
        first = KeeperClient(path)
        first.set_power_limit("0", 400.0)
        gpus.hang(0, 0.3, WRITES)
        assert first._connection is not None
        first._connection.close()  # as SIGKILL does
        eventually(lambda: gpus.calls(0, Call.SET_LIMIT) == 2)  # it is about to go back
        with KeeperClient(path):
            assert gpus.limit_w(0) == H100.cap_max_w


def test_one_process_at_a_time_holds_the_lease(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_thread(path), KeeperClient(path) as first:
        first.set_power_limit("0", 400.0)
        with pytest.raises(LeaseError, match=f"process {os.getpid()} holds the lease"):
            KeeperClient(path)
        with KeeperClient(path, control=False) as onlooker:
            assert onlooker.status().holder == os.getpid()
            for change in (onlooker.restore, onlooker.beat, lambda: onlooker.set_power_limit("0", 300.0)):
                with pytest.raises(LeaseError, match="does not hold the lease"):
                    change()
        assert gpus.limit_w(0) == 400.0  # an onlooker that leaves restores nothing
        first.close()
        with KeeperClient(path) as second:
            assert second.set_power_limit("0", 350.0).enforced_w == 350.0
            assert second.status().gpus[0].original_w == H100.cap_max_w


def test_silence_ends_the_lease_and_restores(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_thread(path, lease_s=0.3), KeeperClient(path) as client:
        client.set_power_limit("0", 400.0)
        eventually(lambda: is_untouched(gpus))
        with pytest.raises(KeeperGoneError, match="does not answer"):
            client.beat()
        client.set_power_limit("0", 400.0)  # connects anew


def test_beats_keep_the_lease_and_nonsense_does_not(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_thread(path, lease_s=1.0):
        for sign, keeps in ((b'{"id": 1, "op": "beat"}\n', True), (b"nonsense\n", False), (b"x", False)):
            with socket.socket(socket.AF_UNIX) as wire:
                wire.connect(str(path))
                wire.sendall(b'{"id": 1, "op": "take"}\n')
                wire.sendall(b'{"id": 2, "op": "set_power_limit", "gpu": "0", "watts": 400}\n')
                eventually(lambda: gpus.limit_w(0) == 400.0)
                wire.settimeout(0.05)
                closed = False
                for _ in range(40):  # two seconds
                    try:
                        wire.sendall(sign)
                        while chunk := wire.recv(65536):
                            assert b"\n" in chunk
                        closed = True
                    except TimeoutError:
                        continue
                    except OSError:
                        closed = True
                    break
                assert closed is not keeps
                assert is_untouched(gpus) is not keeps
            eventually(lambda: is_untouched(gpus))
