"""Power of a server's host: CPUs feed the GPUs, and each running request costs them some more."""

from __future__ import annotations

import numpy as np

from .catalog import Catalog
from .catalog.fits import HostFit
from .cluster import Cluster


def host_power_w(host: HostFit, busy: float, running: float) -> float:
    """Mean power of the CPU packages of one server; memory, fans and network come on top.

    Args:
        host: The server around the GPUs.
        busy: Instances of the server that have work, in the mean: each keeps cores of its own spinning.
        running: Running requests of all its instances, in the mean.

    Returns:
        Watts.
    """
    return host.idle_w + host.active_w * busy + host.request_w * running


def host_energy_j(cluster: Cluster, catalog: Catalog) -> float:
    """Energy of the CPU packages of all servers over the seconds in the history, by what ran at the end of each.

    Args:
        cluster: The cluster at the end of its run.
        catalog: Where the hosts of its GPUs are described.

    Returns:
        Joules.
    """
    running = cluster.history.column("running")
    seconds = len(running)
    if not seconds:
        return 0.0
    of_slot = np.array([slot.server for slot in cluster.blueprint.slots])
    gpus = {slot.server: slot.spec.gpu for slot in cluster.blueprint.slots}
    energy_j = 0.0
    for server, gpu in gpus.items():
        ran = running[:, of_slot == server]
        busy, requests = np.count_nonzero(ran) / seconds, float(ran.sum()) / seconds
        energy_j += seconds * host_power_w(catalog.gpu(gpu).host, busy, requests)
    return energy_j
