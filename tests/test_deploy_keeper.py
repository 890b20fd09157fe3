"""The keeper over emulated GPUs: what it sets, whom it obeys, and that everything goes back whatever dies."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from llmcluster.deploy.keeper.client import KeeperClient
from llmcluster.deploy.keeper.errors import DeniedError, KeeperError, KeeperGoneError, LeaseError
from llmcluster.deploy.keeper.originals import Original, load, save
from llmcluster.deploy.keeper.server import MOST_PEERS
from llmcluster.deploy.keeper.sockets import alone, check_folder, listen
from llmcluster.deploy.nvml import errors
from llmcluster.deploy.readings import Limits
from llmcluster.deploy.rehearsal.nvml import WRITES, Call, EmulatedGpus
from llmcluster.errors import InputError
from llmcluster.tests.emulated import A100, H100
from llmcluster.tests.keepers import command, eventually, keeper_process, keeper_thread

NOBODY = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another user")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keeper.sock"


def is_untouched(gpus: EmulatedGpus) -> bool:
    limits = [gpus.limit_w(gpu) for gpu in (0, 1)]
    return limits == [H100.cap_max_w, A100.cap_max_w] and gpus.clock_lock_mhz(0) is None


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


CONTROLLER = """
import sys, time
from llmcluster.deploy.keeper.client import KeeperClient
client = KeeperClient(sys.argv[1], patience_s=30)
client.set_power_limit("0", 400.0); client.set_power_limit("1", 200.0); client.lock_clock("0", 900.0)
print("set", flush=True)
time.sleep(3600)
"""


def test_killing_the_holder_restores_though_its_lease_is_long(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_process(gpus, path, "--lease-s", "3600") as keeper:
        for number in (signal.SIGKILL, signal.SIGTERM):
            with subprocess.Popen(
                [sys.executable, "-c", CONTROLLER, path], stdout=subprocess.PIPE, text=True
            ) as holder:
                assert holder.stdout and holder.stdout.readline() == "set\n"
                assert (gpus.limit_w(0), gpus.limit_w(1)) == (400.0, 200.0)
                assert gpus.clock_lock_mhz(0) is not None
                holder.send_signal(number)
            eventually(lambda: is_untouched(gpus))
        assert keeper.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_keeper_that_ends_restores_and_leaves_nothing_behind(
    gpus: EmulatedGpus, path: Path, number: signal.Signals
) -> None:
    with keeper_process(gpus, path) as keeper:
        client = KeeperClient(path, patience_s=30.0)
        client.set_power_limit("0", 400.0)
        keeper.send_signal(number)
        assert keeper.wait(20) == 0
        assert is_untouched(gpus)
        assert {file.name for file in path.parent.iterdir()} == {"nvml.state", "keeper.sock.lock"}
        with pytest.raises(KeeperGoneError):
            client.beat()
        with pytest.raises(KeeperGoneError, match=r"cannot connect .*python -m llmcluster\.deploy\.keeper"):
            client.beat()


def test_a_keeper_that_is_killed_and_started_again_restores(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_process(gpus, path) as keeper, KeeperClient(path, patience_s=30.0) as client:
        client.set_power_limit("0", 400.0)
        client.lock_clock("0", 900.0)
        client.set_power_limit("1", 200.0)
        keeper.kill()
        keeper.wait(20)
    assert (gpus.limit_w(0), gpus.limit_w(1)) == (400.0, 200.0)
    with keeper_process(gpus, path), KeeperClient(path, patience_s=30.0) as again:  # over the dead one's socket
        assert is_untouched(gpus)
        assert again.set_power_limit("0", 500.0).enforced_w == 500.0
    assert is_untouched(gpus)


def test_restoring_alone_is_a_command(gpus: EmulatedGpus, path: Path) -> None:
    state = path.with_name(path.name + ".state")
    gpus.set_limit(1, 200.0)
    save(state, {gpus.uuids[1]: Original(A100.cap_max_w)})
    run = {"env": dict(os.environ) | gpus.environment(), "capture_output": True, "text": True, "check": False}
    done = subprocess.run(command(path, "--restore"), **run)
    assert (done.returncode, is_untouched(gpus), state.exists()) == (0, True, False)
    save(state, {"GPU-gone": Original(300.0)})
    done = subprocess.run(command(path, "--restore"), **run)
    assert done.returncode == 1
    assert "not restored: GPU-gone: this GPU is not here" in done.stderr
    assert load(state) == {"GPU-gone": Original(300.0)}
    state.write_text("{}")
    done = subprocess.run(command(path, "--restore"), **run)
    assert done.returncode == 2
    assert "is not what a keeper leaves behind" in done.stderr
    state.unlink()
    gpus.fail_init(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    done = subprocess.run(command(path), **run)
    assert (done.returncode, "modprobe nvidia" in done.stderr) == (2, True)
    gpus.fail_init(0)
    with keeper_thread(path):
        done = subprocess.run(command(path, "--restore"), **run)
    assert (done.returncode, "a keeper is here already" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nonsense",
        '{"version": 2, "gpus": {}}',
        '{"version": 1}',
        '{"version": 1, "gpus": {"a": {}}}',
        '{"version": 1, "gpus": {"a": {"limit_w": -1, "clock_locked": false}}}',
        '{"version": 1, "gpus": {"a": {"limit_w": NaN, "clock_locked": false}}}',
        '{"version": 1, "gpus": {"a": {"limit_w": "9", "clock_locked": false}}}',
    ],
)
def test_a_state_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state").write_text(text)
    with pytest.raises(InputError, match="is not what a keeper leaves behind"):
        load(tmp_path / "state")


def test_the_socket_is_its_owners_alone(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_thread(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(InputError, match="a keeper is here already"), alone(path):
            raise AssertionError
    path.unlink()
    path.write_text("a file")
    with pytest.raises(InputError, match="is no socket"):
        listen(path, [0])
    with pytest.raises(InputError, match=r"cannot listen there .*short path"):
        listen(path.with_name("k" * 108), [0])


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    check_folder(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        check_folder(tmp_path / "none")
    below = tmp_path / "open" / "own"
    below.mkdir(parents=True)
    for mode in (0o777, 0o775, 0o1777):
        below.chmod(mode)
        with pytest.raises(InputError, match=r"own: others may write to this folder\. Make one of its own"):
            check_folder(below)
    below.chmod(0o755)
    below.parent.chmod(0o777)
    with pytest.raises(InputError, match="open: others may write"):
        check_folder(below)
    below.parent.chmod(0o1777)
    check_folder(below)


@root
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, -1)
    with pytest.raises(InputError, match=f"belongs to user {NOBODY}"):
        check_folder(tmp_path)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody(path: Path, line: str) -> str:
    """What a keeper says to another user, or why that one cannot even connect."""
    code = (
        "import os, socket, sys\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "wire = socket.socket(socket.AF_UNIX)\n"
        "try:\n"
        "    wire.connect(sys.argv[1]); wire.sendall(sys.argv[2].encode() + b'\\n'); print(wire.recv(65536).decode())\n"
        "except OSError as fault:\n"
        "    print(type(fault).__name__)\n"
    )
    command = [sys.executable, "-I", "-c", code, str(path), line]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


@root
def test_a_peer_of_another_user_is_refused(gpus: EmulatedGpus, public: Path) -> None:
    path = public / "keeper.sock"
    take = '{"id": 1, "op": "take"}'
    with keeper_thread(path):
        assert as_nobody(path, take).strip() == "PermissionError"
    with keeper_thread(path, uids=[0, 12345]), KeeperClient(path, control=False) as own:  # all may connect
        said = json.loads(as_nobody(path, take))
        assert said == {
            "id": None,
            "ok": False,
            "error": "DeniedError",
            "where": f"user {NOBODY}",
            "problem": DeniedError.problem,
        }
        assert own.status().holder is None
    with keeper_thread(path, uids=[NOBODY]):
        assert json.loads(as_nobody(path, take)) == {"id": 1, "ok": True}
        with pytest.raises(DeniedError, match=r"user 0: .*--allow-uid"):  # root may open any socket
            KeeperClient(path)


def test_connections_are_limited(gpus: EmulatedGpus, path: Path) -> None:
    with keeper_thread(path):
        many = [KeeperClient(path, control=False) for _ in range(MOST_PEERS)]
        assert [client.status().holder for client in many] == [None] * MOST_PEERS
        with pytest.raises(KeeperError, match="serves 32 connections already"):
            KeeperClient(path)
        many.pop().close()
        with KeeperClient(path, patience_s=10.0):
            pass
        for client in many:
            client.close()


def test_a_keeper_that_does_not_answer_is_given_up(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(KeeperGoneError, match="does not answer"):
            KeeperClient(path, timeout_s=0.1)
