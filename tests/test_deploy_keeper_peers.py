"""Whom the keeper listens to: sockets, folders, users and how many of them."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmcluster.deploy.keeper.client import KeeperClient
from llmcluster.deploy.keeper.errors import DeniedError, KeeperError, KeeperGoneError
from llmcluster.deploy.keeper.server import MOST_PEERS
from llmcluster.deploy.keeper.sockets import alone, check_folder, listen
from llmcluster.deploy.rehearsal.nvml import EmulatedGpus
from llmcluster.errors import InputError
from llmcluster.tests.keepers import is_untouched, keeper_thread

NOBODY = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another user")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keeper.sock"


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


CROWD = f"""
import os, socket, sys
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
while True:
    crowd = []
    for _ in range({2 * MOST_PEERS}):
        crowd.append(socket.socket(socket.AF_UNIX))
        crowd[-1].connect(sys.argv[1])
    print("here", flush=True)
    for wire in crowd:
        wire.recv(65536)
"""


@root
def test_a_crowd_of_another_user_keeps_nobody_out(gpus: EmulatedGpus, public: Path) -> None:
    path = public / "keeper.sock"
    with (
        keeper_thread(path, uids=[0, 12345]),
        subprocess.Popen([sys.executable, "-I", "-c", CROWD, path], stdout=subprocess.PIPE, text=True) as crowd,
    ):
        try:
            for _ in range(3):
                assert crowd.stdout and crowd.stdout.readline() == "here\n"
                with KeeperClient(path) as client:
                    client.set_power_limit("0", 400.0)
        finally:
            crowd.kill()
    assert is_untouched(gpus)


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
