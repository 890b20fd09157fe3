"""The keeper as a server: who may ask, who holds the lease, and that everything is restored when the holder is gone."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ...errors import InputError
from ..errors import DeployError
from .custody import Custody
from .errors import DeniedError, KeeperError, LeaseError, MalformedError
from .protocol import LONGEST_LINE, Request, failure_line, parse, success_line
from .sockets import Peer, peer_of

logger = logging.getLogger(__name__)

MOST_PEERS = 32
MEND_S = 0.5
FAREWELL_S = 0.2


class Keeper:
    """Serves one custody to the processes of the allowed users.

    All of them may ask for the status. One at a time holds the lease, which takes limits: it must say something within
    ``lease_s`` each time, or its connection is closed; when its connection ends, however it ends, all is restored. A
    process that is killed closes its connection at once, unless a child that it forked has it too.

    Args:
        custody: The GPUs.
        uids: Users who may connect.
        lease_s: How long the holder of the lease may be silent, seconds.
        clock: Monotonic clock, seconds; the event loop's own.
    """

    def __init__(
        self, custody: Custody, uids: Collection[int], lease_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not lease_s > 0:
            raise InputError("lease_s", f"{lease_s} s is no time", "Give some seconds")
        self._custody, self._uids, self._lease_s, self._clock = custody, frozenset(uids), lease_s, clock
        self._holder: Peer | None = None
        self._peers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(self, listener: socket.socket, stop: asyncio.Event) -> dict[str, str]:
        """Serves until ``stop`` is set, then restores; says what could not be, by UUID."""
        server = await asyncio.start_unix_server(self._accept, sock=listener, limit=LONGEST_LINE)
        mending = asyncio.create_task(self._mend())
        try:
            await stop.wait()
        finally:
            server.close()
            mending.cancel()
            for writer in self._peers.values():
                writer.transport.abort()
            await asyncio.gather(*self._peers, mending, return_exceptions=True)
            faults = await self._custody.restore()
        return faults

    async def _mend(self) -> None:
        """Tries again, while nobody holds the lease, what could not be restored."""
        while True:
            if self._holder is None and self._custody.is_changed:
                await self._custody.restore()
            await asyncio.sleep(MEND_S)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._welcome(reader, writer))
        self._peers[task] = writer
        task.add_done_callback(self._peers.pop)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Looks who it is, attends to who may ask, and restores if it held the lease."""
        peer = peer_of(writer.get_extra_info("socket"))
        try:
            if peer.uid not in self._uids:
                logger.warning("process %d of user %d is refused", peer.pid, peer.uid)
                await _dismiss(reader, writer, DeniedError(f"user {peer.uid}"))
            elif len(self._peers) > MOST_PEERS:
                await _dismiss(reader, writer, KeeperError("keeper", f"it serves {MOST_PEERS} connections already"))
            else:
                await self._attend(peer, reader, writer)
        except TimeoutError:
            logger.warning("process %d has been silent for %s s", peer.pid, self._lease_s)
        except ConnectionError as fault:
            logger.info("process %d is gone (%s)", peer.pid, fault)
        finally:
            if self._holder is peer:
                logger.info("the lease of process %d ends", peer.pid)
                self._holder = None
                await self._custody.restore()
            writer.close()  # only now, so that who sees it closed knows that all is restored
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    await writer.wait_closed()
            writer.transport.abort()

    async def _attend(self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request after the other until the connection ends, or the lease does."""
        heard_s = self._clock()
        while True:
            holds = self._holder is peer
            async with asyncio.timeout(max(heard_s + self._lease_s - self._clock(), 0.0) if holds else None):
                try:
                    line = await reader.readline()
                except ValueError:  # longer than the limit: where the next line begins is unknown
                    return await _dismiss(
                        reader, writer, MalformedError("request", f"it is over {LONGEST_LINE} bytes long")
                    )
            if not line.endswith(b"\n"):
                return
            try:
                request = parse(line)
            except MalformedError as fault:
                writer.write(failure_line(None, fault))
            else:
                writer.write(await self._reply(peer, request))
                heard_s = self._clock()  # only what makes sense counts as a sign of life
            async with asyncio.timeout(self._lease_s):  # a peer that does not read is as good as gone
                await writer.drain()

    async def _reply(self, peer: Peer, request: Request) -> bytes:
        """The line that answers a request."""
        try:
            return success_line(request.id, await self._answer(peer, request))
        except DeployError as fault:
            return failure_line(request.id, fault)
        except (InputError, OSError) as fault:  # the way back could not be written down, so nothing was changed
            return failure_line(request.id, KeeperError("keeper", str(fault)))

    async def _answer(self, peer: Peer, request: Request) -> Mapping[str, Any]:
        """Does what a request asks for."""
        if request.op == "status":
            gpus = [asdict(gpu) for gpu in await self._custody.status()]
            return {"gpus": gpus, "holder": self._holder.pid if self._holder else None, "lease_s": self._lease_s}
        if request.op == "take":
            self._take(peer)
        if self._holder is not peer:
            raise LeaseError(f"process {peer.pid}")
        if request.op == "set_power_limit":
            assert request.value is not None
            return asdict(await self._custody.set_power_limit(request.gpu, request.value))
        if request.op == "lock_clock":
            await self._custody.lock_clock(request.gpu, request.value)
        if request.op == "restore":
            faults = await self._custody.restore()
            if faults:
                raise KeeperError("restore", "; ".join(faults.values()))
        return {}

    def _take(self, peer: Peer) -> None:
        if self._holder is not None and self._holder is not peer:
            raise LeaseError(f"process {peer.pid}", f"process {self._holder.pid} holds the lease")
        if self._holder is None:
            logger.info("process %d of user %d takes the lease", peer.pid, peer.uid)
        self._holder = peer


async def _dismiss(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: DeployError) -> None:
    """Says why, and reads on for a moment: what is not read would be answered by a reset, which loses the reason."""
    writer.write(failure_line(None, fault))
    writer.write_eof()
    with suppress(TimeoutError):
        async with asyncio.timeout(FAREWELL_S):
            while await reader.read(LONGEST_LINE):
                pass
