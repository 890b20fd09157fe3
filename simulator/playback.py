"""A workload without end through a cluster, chunk by chunk, with the results written as they come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .blueprint import Blueprint
from .cluster import Cluster
from .results import ResultsWriter
from .units import PS_PER_S
from .window import remaining
from .workload.stream import RequestStream

DRAIN_S = 24 * 3600.0
"""A run waits so long for the last tokens."""


def play(
    blueprint: Blueprint,
    stream: RequestStream,
    rng: np.random.Generator,
    writer: ResultsWriter,
    prepare: Callable[[Cluster], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Cluster:
    """Plays a stream to the last token; only a few chunks, and what is still in flight, are in memory at a time.

    Args:
        blueprint: The cluster.
        stream: The requests.
        rng: Source of all randomness of the run.
        writer: Takes requests as they leave, and the seconds of all slots.
        prepare: Sets weights, caps and the like at the start.
        progress: Told how many more requests have been played after each chunk.

    Returns:
        The cluster at the end, with the requests of the last chunks.
    """
    chunks = iter(stream)
    chunk = next(chunks)
    cluster = Cluster(blueprint, chunk, rng)
    prepare(cluster)
    ids, following = np.arange(len(chunk)), len(chunk)

    def write() -> None:
        done = np.sort(cluster.done)
        writer.requests(ids[done], cluster.engine.requests[done], cluster.requests.slo_class[done])
        writer.seconds(*cluster.history.release())

    for upcoming in chunks:
        if not len(upcoming):
            continue
        progress(len(chunk))
        cluster.advance(int(upcoming.arrival_ps[0]))
        write()
        stay = cluster.follow_with(upcoming)
        ids = np.concatenate([ids[stay], np.arange(following, following + len(upcoming))])
        following, chunk = following + len(upcoming), upcoming
    cluster.drain(DRAIN_S + chunk.duration_s - cluster.now_ps / PS_PER_S)
    write()
    left = remaining(cluster.engine)
    writer.requests(ids[left], cluster.engine.requests[left], cluster.requests.slo_class[left])
    progress(len(chunk))
    return cluster
