"""Power of a server's host: its CPUs feed the GPUs, and each running request costs them some more."""

from __future__ import annotations

from .catalog.fits import HostFit


def host_power_w(host: HostFit, busy: float, running: float) -> float:
    """Mean power of the CPU packages of one server; memory, fans and network come on top.

    Args:
        host: The server around the GPUs.
        busy: Share of the time in which the engine has work, summed over the instances of the server: each keeps
            cores of its own spinning.
        running: Mean number of running requests, over all instances of the server.

    Returns:
        Watts.
    """
    return host.idle_w + host.active_w * busy + host.request_w * running
