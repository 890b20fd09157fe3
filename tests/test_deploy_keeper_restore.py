"""What the keeper puts back: when its client is gone, when it ends itself, and when it is started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pynvml
import pytest

from llmcluster.deploy.keeper.client import KeeperClient
from llmcluster.deploy.keeper.errors import KeeperGoneError
from llmcluster.deploy.keeper.originals import Original, load, save
from llmcluster.deploy.nvml import errors
from llmcluster.deploy.rehearsal.nvml import WRITES, EmulatedGpus
from llmcluster.errors import InputError
from llmcluster.tests.emulated import A100, H100
from llmcluster.tests.keepers import command, eventually, is_untouched, keeper_process, keeper_thread

RESTORED_WITHIN_S = 2.0
root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another user")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keeper.sock"


CONTROLLER = """
import sys, time
from llmcluster.deploy.keeper.client import KeeperClient
client = KeeperClient(sys.argv[1], patience_s=30)
client.set_power_limit("0", 400.0); client.set_power_limit("1", 200.0); client.lock_clock("0", 900.0)
print("set", flush=True)
time.sleep(3600)
"""


def is_restored_in_time(gpus: EmulatedGpus, path: Path, number: signal.Signals, hangs: bool) -> bool:
    """Ends a process that has set limits by a signal; whether they are back within the two seconds that are promised.

    Where the first GPU hangs, those of the second.
    """
    with subprocess.Popen([sys.executable, "-c", CONTROLLER, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "set\n"
        assert (gpus.limit_w(0), gpus.limit_w(1)) == (400.0, 200.0)
        assert gpus.clock_lock_mhz(0) is not None
        gpus.hang(0, 3600.0 if hangs else 0.0, WRITES)
        until_s = time.monotonic() + RESTORED_WITHIN_S
        holder.send_signal(number)
        while not (gpus.limit_w(1) == A100.cap_max_w and (hangs or is_untouched(gpus))):
            if time.monotonic() > until_s:
                return False
            time.sleep(0.005)
    gpus.hang(0, 0.0)
    eventually(lambda: is_untouched(gpus))
    return True


@pytest.mark.parametrize(
    ("number", "hangs"), [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGKILL, True)]
)
def test_killing_the_holder_restores_within_two_seconds_though_its_lease_is_long(
    gpus: EmulatedGpus, path: Path, number: signal.Signals, hangs: bool
) -> None:
    with keeper_process(gpus, path, "--lease-s", "3600") as keeper:
        # It takes some milliseconds; a machine that is too busy even for two seconds has three tries.
        assert any(is_restored_in_time(gpus, path, number, hangs) for _ in range(3))
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


def test_a_lost_gpu_does_not_keep_a_new_keeper_from_restoring_and_serving_the_others(
    gpus: EmulatedGpus, path: Path
) -> None:
    care = ("--gpu", "0", "--gpu", gpus.uuids[1])
    with keeper_process(gpus, path, *care) as keeper, KeeperClient(path, patience_s=30.0) as client:
        client.set_power_limit("0", 400.0)
        client.set_power_limit("1", 200.0)
        keeper.kill()
        keeper.wait(20)
    gpus.fail(0, pynvml.NVML_ERROR_UNKNOWN)  # as drivers have it where a GPU has fallen off the bus
    with keeper_process(gpus, path, *care), KeeperClient(path, patience_s=30.0) as client:
        assert gpus.limit_w(1) == A100.cap_max_w
        assert client.set_power_limit("1", 210.0).enforced_w == 210.0
        with pytest.raises(errors.NoSuchGpuError):
            client.set_power_limit("0", 300.0)
    assert [gpus.limit_w(gpu) for gpu in (0, 1)] == [400.0, A100.cap_max_w]
    gpus.fail(0, 0)
    with keeper_process(gpus, path, "--restore") as restoring:
        assert restoring.wait(30) == 0
    assert is_untouched(gpus)


def test_only_gpus_in_care_are_changed_and_others_restored(gpus: EmulatedGpus, path: Path) -> None:
    save(path.with_name(path.name + ".state"), {gpus.uuids[0]: Original(H100.cap_max_w)})
    gpus.set_limit(0, 400.0)
    with keeper_process(gpus, path, "--gpu", "1"), KeeperClient(path, patience_s=30.0) as client:
        assert is_untouched(gpus)
        assert [gpu.index for gpu in client.status().gpus] == [1]
        with pytest.raises(errors.NoSuchGpuError, match="there are GPU 1"):
            client.set_power_limit("0", 300.0)
    done = subprocess.run(
        command(path, "--gpu", "7"), env=dict(os.environ) | gpus.environment(), capture_output=True, text=True
    )
    assert (done.returncode, "\nerror: 7: no such GPU" in done.stderr) == (2, True)


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
