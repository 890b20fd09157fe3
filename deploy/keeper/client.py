"""The keeper, as the control loop sees it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..nvml import errors as nvml_errors  # noqa: F401 - replies name them
from ..readings import Limits
from .errors import KeeperError, KeeperGoneError
from .protocol import LONGEST_REPLY, GpuStatus, request_line, values_of


@dataclass(frozen=True)
class KeeperStatus:
    """What a keeper says of itself.

    Attributes:
        gpus: The GPUs in its care.
        holder: Process id of who holds the lease; `None` for nobody.
        lease_s: How long the holder may be silent, seconds.
    """

    gpus: tuple[GpuStatus, ...]
    holder: int | None
    lease_s: float


class KeeperClient:
    """The `LimitWriter` over the keeper's socket. Several threads may use it.

    When the connection breaks, or the keeper closes it because nobody beat in time, the next call raises
    `KeeperGoneError`: everything that was set is restored by then. The call after that connects anew.

    Args:
        path: The keeper's socket.
        control: Take the lease, without which there is only the status.
        timeout_s: How long an answer may take, seconds; a longer silence ends the connection.
        patience_s: How long to wait for a keeper that is not there yet, seconds.

    Raises:
        KeeperGoneError: There is none.
        LeaseError: Another process holds the lease.
        DeniedError: The keeper does not serve this user.
    """

    def __init__(self, path: str | Path, control: bool = True, timeout_s: float = 5.0, patience_s: float = 0.0) -> None:
        self._path, self._control, self._timeout_s = str(path), control, timeout_s
        self._turn = threading.Lock()
        self._number = 0
        self._connection: socket.socket | None = None
        self._rest = b""
        until_s = time.monotonic() + patience_s
        while True:
            try:
                with self._turn:
                    return self._connect()
            except KeeperGoneError:
                if time.monotonic() >= until_s:
                    raise
                time.sleep(0.02)

    def set_power_limit(self, gpu: str, watts: float) -> Limits:
        """Sets a GPU's power limit, within the keeper's bounds and the GPU's, and reads it back.

        Raises:
            NvmlError: The driver refuses, the GPU is gone or silent, or the limit does not hold.
            KeeperError: The keeper refuses or is gone.
        """
        said = self._ask("set_power_limit", gpu=gpu, watts=watts)
        return Limits(float(said["requested_w"]), float(said["enforced_w"]))

    def lock_clock(self, gpu: str, highest_mhz: float | None) -> None:
        """Bounds the SM clock of a GPU; `None` sets it free."""
        self._ask("lock_clock", gpu=gpu, highest_mhz=highest_mhz)

    def beat(self) -> None:
        """Says that this side lives."""
        self._ask("beat")

    def restore(self) -> None:
        """Sets every GPU back to what it was; raises `KeeperError` if one cannot be. The lease is kept."""
        self._ask("restore")

    def status(self) -> KeeperStatus:
        """All GPUs as the keeper sees them."""
        said = self._ask("status")
        return KeeperStatus(tuple(GpuStatus(**gpu) for gpu in said["gpus"]), said["holder"], float(said["lease_s"]))

    def close(self) -> None:
        """Ends the connection, and waits until the keeper has ended it too: what was set is restored then."""
        with self._turn, suppress(OSError):
            if self._connection is not None:
                self._connection.settimeout(self._timeout_s)
                self._connection.shutdown(socket.SHUT_WR)
                while self._connection.recv(65536):
                    pass
        self._hang_up()

    def __enter__(self) -> KeeperClient:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the connection."""
        self.close()

    def _ask(self, op: str, **fields: Any) -> Mapping[str, Any]:
        with self._turn:
            if self._connection is None:
                self._connect()
            return self._exchange(op, fields)

    def _connect(self) -> None:
        self._rest = b""
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(self._timeout_s)
        try:
            self._connection.connect(self._path)
        except OSError as fault:
            self._hang_up()
            raise KeeperGoneError(self._path, f"cannot connect ({fault.strerror or fault})") from fault
        if self._control:
            try:
                self._exchange("take", {})
            except KeeperError:
                self._hang_up()
                raise

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _exchange(self, op: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """One request and its reply; after a silence the connection is of no more use, for its reply may still come."""
        self._number += 1
        try:
            reply = json.loads(self._reply(request_line(self._number, op, fields)))
        except (OSError, ValueError) as fault:
            self._hang_up()
            raise KeeperGoneError(self._path, f"it does not answer ({fault})") from fault
        values = values_of(reply)
        if values.get("id") != self._number:
            self._hang_up()
            raise KeeperGoneError(self._path, "it answers something else than was asked")
        return values

    def _reply(self, request: bytes) -> bytes:
        assert self._connection is not None
        with suppress(BrokenPipeError):  # why it hung up may still be there to read
            self._connection.sendall(request)
        until_s = time.monotonic() + self._timeout_s
        while b"\n" not in self._rest:
            self._connection.settimeout(max(until_s - time.monotonic(), 1e-3))
            chunk = self._connection.recv(65536)
            if not chunk or len(self._rest) > LONGEST_REPLY:
                raise ConnectionError("the connection was closed")
            self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        return line
