"""The keeper's socket: where it may lie, who may open it, and who is at the other end."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError

UCRED = struct.Struct("3i")  # struct ucred of Linux: pid, uid, gid


@dataclass(frozen=True)
class Peer:
    """The process at the other end, as the kernel vouches for it.

    Attributes:
        pid: Its process id when it connected.
        uid: Its user id then.
    """

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end of a connection."""
    pid, uid, _ = UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    return Peer(pid, uid)


def check_folder(folder: Path) -> None:
    """Raises `InputError` unless nobody but root and this user can put another file in the place of one in ``folder``.

    Folders above it may be open to all if they are sticky, as ``/tmp`` is.
    """
    remedy = "Make one of its own: `install -d -m 0755 -o root /run/llmcluster`"
    if not folder.is_dir():
        raise InputError(str(folder), "this folder does not exist", remedy)
    for place in (folder.resolve(), *folder.resolve().parents):
        facts = place.stat()
        if facts.st_uid not in (0, os.geteuid()):
            raise InputError(str(place), f"this folder belongs to user {facts.st_uid}", remedy)
        shared = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if shared and (place == folder.resolve() or not facts.st_mode & stat.S_ISVTX):
            raise InputError(str(place), "others may write to this folder", remedy)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within, this is the one keeper at ``path``, by a lock beside it that the kernel takes back from who dies.

    Raises:
        InputError: There is another one, or the folder is open to others.
    """
    check_folder(path.parent)
    lock = path.with_name(path.name + ".lock")
    try:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as fault:
        raise InputError(str(lock), f"cannot be opened ({fault.strerror})", "Run the keeper as root") from fault
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            raise InputError(str(path), "a keeper is here already", "Stop it; it restores as it ends") from fault
        yield
    finally:
        os.close(file)


def listen(path: Path, uids: Collection[int]) -> socket.socket:
    """A socket that listens at ``path``; one that a dead keeper left there is replaced.

    With one allowed user the socket is that user's alone. With several, all may connect, and the kernel's word on who
    they are decides, as it does anyway.

    Raises:
        InputError: It cannot be made or given to that user, or something else lies there.
    """
    if path.exists() and not path.is_socket():
        raise InputError(str(path), "is there and is no socket", "Give another path, or remove it")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # the socket is nobody else's from the start
    try:
        listener.bind(str(path))
        if len(uids) > 1:
            path.chmod(0o666)
        else:
            os.chown(path, next(iter(uids)), -1)
    except OSError as fault:
        listener.close()
        path.unlink(missing_ok=True)
        raise InputError(str(path), f"cannot listen there ({fault})", "Run it as root, with a short path") from fault
    finally:
        os.umask(before)
    listener.listen()
    return listener
