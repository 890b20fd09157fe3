"""The engine of a cluster at time zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .blueprint import Blueprint
from .errors import InputError
from .kernels.state import (
    C_BACKOFF_PS,
    C_ON_FAILURE,
    C_RETRIES,
    EMPTY,
    FAILURE_POLICIES,
    ROLE_NAMES,
    SERVING,
    SLEEPING,
    Engine,
    Limits,
    allocate,
)
from .rows import rows_of
from .units import to_ps
from .workload.table import RequestTable


def start(blueprint: Blueprint, requests: RequestTable, priorities: NDArray[np.int16] | None) -> Engine:
    """The engine's arrays, the KV caches of the slots not yet set up.

    Args:
        blueprint: The cluster.
        requests: The workload, or its beginning.
        priorities: All priorities that may occur, where they count.

    Returns:
        The engine.

    Raises:
        InputError: The workload names a model that the cluster does not have, or its hashes do not fit the KV blocks.
    """
    spec = blueprint.spec.engine
    prefixes = spec.enable_prefix_caching and len(requests.prefix_hash) > 0
    if prefixes and requests.prefix_block_tokens % spec.block_size:
        problem = f"{spec.block_size} does not divide the {requests.prefix_block_tokens} tokens under a prefix hash"
        raise InputError("cluster.engine.block_size", problem, "Choose one that does, or enable_prefix_caching = false")
    limits = Limits(
        max_num_seqs=spec.max_num_seqs,
        block_size=spec.block_size,
        levels=1 if priorities is None else max(len(priorities), 1),
        unit_tokens=requests.prefix_block_tokens if prefixes else 0,
    )
    rows = rows_of(requests, blueprint.models, priorities, prefixes=prefixes)
    hashes = requests.prefix_hash if prefixes else np.zeros(0, np.int64)
    engine = allocate(blueprint.tables, rows, hashes, len(blueprint.slots), limits)
    initial = {"serving": SERVING, "sleeping": SLEEPING, "empty": EMPTY}
    slots, cursor, gateway = engine.slots, engine.cursor, blueprint.spec.gateway
    slots["status"] = [initial[s.spec.initial] for s in blueprint.slots]
    slots["role"] = [ROLE_NAMES.index(s.spec.role) for s in blueprint.slots]
    slots["deployment"] = blueprint.initial
    slots["cap_w"] = blueprint.cap_max_w
    cursor[C_ON_FAILURE] = FAILURE_POLICIES.index(gateway.on_failure)
    cursor[C_RETRIES] = gateway.retries
    cursor[C_BACKOFF_PS] = to_ps(gateway.retry_backoff_s)
    return engine
