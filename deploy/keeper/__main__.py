"""``python -m llmcluster.deploy.keeper``: the one process that needs the right to set limits, and has no other use."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from ...errors import InputError
from ..errors import DeployError
from ..nvml.session import NvmlSession
from .custody import Custody
from .server import Keeper
from .sockets import alone, check_folder, listen

logger = logging.getLogger(__name__)

LAST_TRIES = 4


def arguments() -> argparse.ArgumentParser:
    """The keeper's command line."""
    parser = argparse.ArgumentParser(prog="python -m llmcluster.deploy.keeper", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen at")
    parser.add_argument("--state", type=Path, help="file that remembers original limits; beside the socket by default")
    parser.add_argument(
        "--allow-uid", type=int, action="append", metavar="UID", help="user who may connect (several times); its own"
    )
    parser.add_argument("--lease-s", type=float, default=5.0, help="silence after which all is restored (5)")
    parser.add_argument("--floor-w", type=float, default=0.0, help="lowest limit to set on any GPU")
    parser.add_argument("--ceiling-w", type=float, default=float("inf"), help="highest limit to set on any GPU")
    parser.add_argument("--gpu", action="append", default=[], help="GPU in its care, by index or UUID (several times)")
    parser.add_argument("--restore", action="store_true", help="restore what a killed keeper left behind, and exit")
    return parser


async def keep(options: argparse.Namespace, session: NvmlSession) -> dict[str, str]:
    """Restores what an earlier keeper left, serves until a signal, restores; says what could not be, by UUID."""
    state = options.state or options.socket.with_name(options.socket.name + ".state")
    check_folder(state.parent)
    custody = Custody(session, state, options.floor_w, options.ceiling_w)
    uids = set(options.allow_uid or [os.geteuid()])
    faults = await custody.restore()
    if not options.restore:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        keeper = Keeper(custody, uids, options.lease_s)
        listener = listen(options.socket, uids)
        try:
            faults = await keeper.serve(listener, stop)
        finally:
            options.socket.unlink(missing_ok=True)
    for _ in range(LAST_TRIES if faults else 0):
        faults = faults and await custody.restore()
    return faults


def main() -> int:
    """Runs it; 0 if everything is as it was before, 1 if not, 2 if it could not start."""
    options = arguments().parse_args()
    logging.basicConfig(level=logging.INFO, format="keeper: %(levelname)s: %(message)s", stream=sys.stderr)
    try:
        with alone(options.socket):
            faults = asyncio.run(keep(options, NvmlSession(options.gpu)))
    except (InputError, DeployError) as fault:
        print(fault, file=sys.stderr)
        return 2
    for left in faults.values():
        logger.error("not restored: %s", left)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
