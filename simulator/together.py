"""Several clusters side by side, all in one call of the compiled engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .cluster import Cluster
from .kernels.batch import advance_all


def advance_together(clusters: Sequence[Cluster], until_ps: Sequence[int]) -> None:
    """Runs each cluster to its time, exactly as if each were advanced by itself.

    Args:
        clusters: The clusters.
        until_ps: Picoseconds, one for each.
    """
    for cluster, until in zip(clusters, until_ps, strict=True):
        if not cluster.is_compiled:
            cluster.advance(until)
    under_way = [(c, until) for c, until in zip(clusters, until_ps, strict=True) if c.now_ps < until]
    while under_way:
        stops = [cluster.next_stop(until) for cluster, until in under_way]
        moving = [(c.engine.address, stop) for (c, _), stop in zip(under_way, stops, strict=True) if stop > c.now_ps]
        if moving:
            addresses, times = np.array(moving, np.int64).T.copy()
            advance_all(addresses, times)
        for (cluster, _), stop in zip(under_way, stops, strict=True):
            cluster.take_stock(stop)
        under_way = [(cluster, until) for cluster, until in under_way if cluster.now_ps < until]
