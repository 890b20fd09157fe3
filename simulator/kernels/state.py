"""Everything the compiled engine works on: a named tuple of few arrays, most of them arrays of records.

R slots, N requests, D deployments (model on GPU at a tensor parallelism), T batched tokens, K clock steps, M running
requests per slot at most, L priority levels, P prefix hashes of all requests, U cells of the prefix cache per slot.
Times are int64 picoseconds, energies int64 units of 1e-14 J (a centiwatt for a picosecond). Records rather than an
array per field: what one event touches lies together, and a call passes two dozen arrays rather than a hundred.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Records = Any  # arrays of records, whose fields mypy does not know

BIN_PS = 1_000_000_000_000
BINS = 256
FOREVER = np.int64(2**62)
UNLIMITED = 2**30
UNITS_PER_W = 100
J_PER_UNIT = 1e-14

# Instance life, per slot.
EMPTY, LOADING, SERVING, DRAINING, SLEEPING, FAILED, TENANT = 0, 1, 2, 3, 4, 5, 6
STATUS_NAMES = ("empty", "loading", "serving", "draining", "sleeping", "failed", "tenant")

# Part that a slot takes in disaggregated serving.
MIXED, PREFILL, DECODE = 0, 1, 2
ROLE_NAMES = ("mixed", "prefill", "decode")

# Request life.
PENDING, AT_GATEWAY, WAITING, RUNNING, FINISHED, REJECTED, TIMED_OUT, LOST, IN_TRANSFER = 0, 1, 2, 3, 4, 5, 6, 7, 8
REQUEST_STATUS_NAMES = (
    "pending",
    "at_gateway",
    "waiting",
    "running",
    "finished",
    "rejected",
    "timed_out",
    "failed",
    "in_transfer",
)

# Routers.
ROUND_ROBIN, LEAST_OUTSTANDING, POWER_OF_TWO, PREFIX_AFFINITY, EXTERNAL = 0, 1, 2, 3, 4
ROUTER_NAMES = ("round-robin", "least-outstanding", "power-of-two", "prefix-affinity", "external")

# What becomes of the requests of a slot that fails.
FAIL, RETRY, RESTART = 0, 1, 2
FAILURE_POLICIES = ("fail", "retry", "restart")

# Cursor cells. GATEWAY_DUE: when room at the gateway's slots may have come. ALARMS: size of their heap. COUPLED: a
# finish on one slot can cause something on another, so slots are advanced in step. LIMITED: some slot has a limit of
# requests in flight. BOUNDED: `bound_ps` of the slots is kept up. TICKET: routing decisions. RETRIES to ON_FAILURE:
# policy. EVENTS: leaps and landings. UNIT_TOKENS: tokens under one prefix hash, 0 without prefix caching.
(
    C_ARRIVAL,
    C_DONE,
    C_NOW,
    C_GATEWAY_HEAD,
    C_GATEWAY_TAIL,
    C_GATEWAY_COUNT,
    C_GATEWAY_DUE,
    C_ALARMS,
    C_TIMERS,
    C_COUPLED,
    C_LIMITED,
    C_BOUNDED,
    C_SENT,
    C_SENT_TOKENS,
    C_TICKET,
    C_SEED,
    C_ROUTER,
    C_RETRIES,
    C_BACKOFF_PS,
    C_ON_FAILURE,
    C_EVENTS,
    C_UNIT_TOKENS,
) = range(22)
CURSORS = 22

# Planes of Engine.cost, Engine.ladder, Engine.watt and Engine.thermal.
LINK, COMPUTE, MEMORY = 0, 1, 2
ACTIVE, COMPUTING = 0, 1
CLOCK, SCALE = 0, 1
RESISTANCE, DECAY = 0, 1


def _record(whole: str, real: str = "", short: str = "") -> np.dtype[np.void]:
    fields = [(name, np.int64) for name in whole.split()] + [(name, np.float64) for name in real.split()]
    return np.dtype([*fields, *((name, np.int32) for name in short.split())], align=True)


# Per deployment; see tables.py. `averaging`: the meter shows the mean of the bin, else the instant at its end.
# `*_cw`: centiwatts. `block_shift`: binary logarithm of the tokens per KV block. `max_tokens`: of a request, prompt
# and output. `watermark`: blocks that admission leaves free. `by_priority`: the scheduling policy.
DEPLOYMENT = _record(
    "step_ps sequence_ps gap_ps sample_ps kv_read_ps state_ps attention_ps gpus averaging kv_blocks watermark "
    "max_tokens max_num_seqs max_batched_tokens block_shift model by_priority idle_cw off_cw memory_cw cache_cw "
    "link_cw transfer_ps transfer_latency_ps",
    "throttle_c resume_c",
)

# Per request: a row of the request table and what becomes of it. `follower` is the session's next request, `link` and
# `back` the next one and, at the gateway, the one before in whichever queue holds this one, `admission` the running
# number of its last admission, `unfit` 1 if no slot could ever hold it, `level` its rank by priority, `remote` 1 once
# its prompt is cached elsewhere and sent on, `alarmed` 1 while an alarm waits for it. Its hashes are `units` from
# `prefix` on, of which the first `covered` are scheduled.
REQUEST = _record(
    "arrival_ps sent_ps timeout_ps think_ps admit_ps first_token_ps finish_ps admission prefix",
    "",
    "prompt output generated status link back slot follower model level attempts remote preemptions unfit units "
    "covered alarmed",
)

# Per slot. `flight_*`: the iteration in flight (end -1: none), the prompt tokens it computes, its energy and how much
# of it is in bins already. `edge_ps`: end of the open bin. `decodes`, `context`: decoding requests and the tokens
# they have cached. `partial*`: the request whose prefill spans iterations. `admitted`: requests so far. `joiners`:
# requests whose prefill ends with the flight. `governed`: the clock `step` still holds. `bound_ps`: no request leaves
# before. `instant_w`: power of the stretch accounted last. `load_w`: what a tenant's machine draws. `limit`: requests
# in flight at most. `free_head`, `free_tail`, `spare`: cells of the prefix cache in the queue of free blocks, and
# unused ones.
SLOT = _record(
    "status deployment role now_ps edge_ps flight_start_ps flight_end_ps flight_prefill flight_energy flight_spent "
    "iteration decodes context partial partial_done partial_target joiners admitted free_blocks queue_head "
    "waiting outstanding limit governed step bound_ps clock_limit throttled throttle_events link_free_ps "
    "free_head free_tail spare",
    "cap_w inlet_c instant_w load_w route_weight route_credit",
)

# Per slot and second, kept small since days of them are kept. `kv_used` is a share of the KV blocks.
BIN = np.dtype(
    [("energy", np.int64)]
    + [(name, np.int32) for name in ("running", "waiting", "prompt_tokens", "output_tokens")]
    + [(name, np.float32) for name in ("metered_w", "temperature_c", "clock_ratio", "kv_used")]
)

# Per slot: cells of the prefix cache, see prefix.py.
CELL = _record("hash", "", "blocks holders before after")


class Engine(NamedTuple):
    """The whole state of one cluster."""

    cursor: I64  # (CURSORS,)
    deployments: Records  # (D,) DEPLOYMENT
    cost: I64  # (D, 3, T + 1): link, compute and memory time of an iteration over t tokens
    ladder: F64  # (D, 2, K): clock ratio and dynamic power scale
    watt: I64  # (D, 2, K): centiwatts while GPUs work, and more at full compute utilisation
    thermal: F64  # (D, 2, 2): resistance in K/W and decay per second of each pole
    slots: Records  # (R,) SLOT
    heap_key: I64  # (R, M): finishing iteration of each decoding request
    heap_request: I64  # (R, M)
    joiner: I64  # (R, M)
    phase: I64  # (R, block size): decoding requests by fill of their last block
    level_tail: I64  # (R, L): last waiting request of each priority level
    crowd: I64  # (2 * models + 2,): held prompts, and transferred ones, of any and of each model
    blocked: I64  # (2 * models + 2,): no room for prompts, and for transferred ones, of any and of each model
    pole_k: F64  # (R, 2): temperature rise over each thermal pole
    bins: Records  # (BINS, R) BIN
    requests: Records  # (N,) REQUEST
    done: I64  # (N,): requests in the order in which they left
    timer_ps: I64  # (N,): heap of releases, retries and arriving transfers
    timer_item: I64  # (N,)
    alarm_ps: I64  # (N,): heap of times at which held clients give up
    alarm_item: I64  # (N,)
    hashes: I64  # (P,): prefix hashes of all requests
    held: I64  # (P,): cell of each covered hash, -1 if the request holds a copy of its own
    cells: Records  # (R, U) CELL
    table: I64  # (R, 4U or 1): open-addressed hash table over the cells, -1 where free
    words: I64  # addresses and shapes of all these, for compiled code; see handle.py
    address: int  # of `words`

    @classmethod
    def of(cls, arrays: dict[str, Any]) -> Engine:
        """An engine of these arrays, which must stay where they are as long as it lives."""
        numbers: list[int] = []
        for name, (dtype, dimensions) in ARRAYS.items():
            array = arrays[name]
            if array.dtype != dtype or array.ndim != dimensions or not array.flags.c_contiguous:
                raise TypeError(f"{name}: {array.dtype} of shape {array.shape}, not {dtype} of {dimensions} dimensions")
            numbers += [array.ctypes.data, *array.shape]
        words = np.array(numbers, np.int64)
        return cls(**arrays, words=words, address=words.ctypes.data)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: the arrays alone, since the addresses would be those of this process."""
        return Engine.of, ({name: getattr(self, name) for name in ARRAYS},)

    def having(self, **arrays: Any) -> Engine:
        """The engine with some arrays in place of its own; the others are shared."""
        return Engine.of({name: getattr(self, name) for name in ARRAYS} | arrays)


_INT, _REAL = np.dtype(np.int64), np.dtype(np.float64)
ARRAYS = {
    "cursor": (_INT, 1),
    "deployments": (DEPLOYMENT, 1),
    "cost": (_INT, 3),
    "ladder": (_REAL, 3),
    "watt": (_INT, 3),
    "thermal": (_REAL, 3),
    "slots": (SLOT, 1),
    "heap_key": (_INT, 2),
    "heap_request": (_INT, 2),
    "joiner": (_INT, 2),
    "phase": (_INT, 2),
    "level_tail": (_INT, 2),
    "crowd": (_INT, 1),
    "blocked": (_INT, 1),
    "pole_k": (_REAL, 2),
    "bins": (BIN, 2),
    "requests": (REQUEST, 1),
    "done": (_INT, 1),
    "timer_ps": (_INT, 1),
    "timer_item": (_INT, 1),
    "alarm_ps": (_INT, 1),
    "alarm_item": (_INT, 1),
    "hashes": (_INT, 1),
    "held": (_INT, 1),
    "cells": (CELL, 2),
    "table": (_INT, 2),
}
"""Type and dimensions of the arrays of an engine."""


class Tables(NamedTuple):
    """What never changes: the physics of the deployments."""

    deployments: Records
    cost: I64
    ladder: F64
    watt: I64
    thermal: F64


class Limits(NamedTuple):
    """Sizes of the engine's arrays.

    Attributes:
        max_num_seqs: Running requests per slot at most.
        block_size: Tokens per KV block.
        levels: Priority levels.
        unit_tokens: Tokens under one prefix hash, 0 without prefix caching.
    """

    max_num_seqs: int
    block_size: int
    levels: int = 1
    unit_tokens: int = 0


def _longest(deployments: Records) -> I64:
    """Tokens of the longest request of each model that some slot could hold to its end; the last entry is for any."""
    longest = np.zeros(int(deployments["model"].max()) + 2, np.int64)
    np.maximum.at(longest, deployments["model"], deployments["max_tokens"])
    longest[-1] = deployments["max_tokens"].max()
    return longest


def mark_unfit(deployments: Records, requests: Records) -> None:
    """Marks the requests that no slot could ever hold."""
    tokens = requests["prompt"].astype(np.int64) + requests["output"]
    requests["unfit"] = tokens > _longest(deployments)[requests["model"]]


def cache_sizes(deployments: Records, limits: Limits) -> tuple[int, int]:
    """Cells of a slot's prefix cache, and size of the hash table over them, a power of two; 1 without caching."""
    if not limits.unit_tokens:
        return 1, 1
    units = int(deployments["kv_blocks"].max()) // (limits.unit_tokens // limits.block_size)
    # Between any two units in the queue of free blocks there is at most one cell of blocks without a hash.
    return 2 * units + 2, 1 << (2 * units + 1).bit_length()


def allocate(tables: Tables, requests: Records, hashes: I64, slots: int, limits: Limits) -> Engine:
    """An engine at time zero with empty slots.

    Args:
        tables: The deployments.
        requests: (N,) REQUEST, taken over; those that no slot could ever hold are marked here.
        hashes: (P,) prefix hashes of all requests.
        slots: R.
        limits: Sizes.

    Returns:
        The engine; its KV caches are empty of room until `cluster.clear_cache` has been called for each slot.
    """
    mark_unfit(tables.deployments, requests)
    cursor = np.zeros(CURSORS, np.int64)
    cursor[[C_GATEWAY_HEAD, C_GATEWAY_TAIL]] = -1
    cursor[C_GATEWAY_DUE] = FOREVER
    cursor[C_ROUTER] = LEAST_OUTSTANDING
    cursor[C_ON_FAILURE] = RETRY
    cursor[C_BOUNDED] = 1
    cursor[C_UNIT_TOKENS] = limits.unit_tokens
    slot = np.zeros(slots, SLOT)
    for name in ("flight_end_ps", "partial", "queue_head", "free_head", "free_tail", "spare"):
        slot[name] = -1
    slot["route_weight"] = 1.0
    slot["clock_limit"] = tables.ladder.shape[2] - 1
    slot["limit"] = UNLIMITED
    slot["edge_ps"] = BIN_PS
    cells, table = cache_sizes(tables.deployments, limits)
    most = limits.max_num_seqs
    arrays = {
        "cursor": cursor,
        **tables._asdict(),
        "slots": slot,
        "heap_key": np.zeros((slots, most), np.int64),
        "heap_request": np.zeros((slots, most), np.int64),
        "joiner": np.zeros((slots, most), np.int64),
        "phase": np.zeros((slots, limits.block_size), np.int64),
        "level_tail": np.full((slots, limits.levels), -1),
        "crowd": np.zeros(2 * int(tables.deployments["model"].max()) + 4, np.int64),
        "blocked": np.zeros(2 * int(tables.deployments["model"].max()) + 4, np.int64),
        "pole_k": np.zeros((slots, 2)),
        "bins": np.zeros((BINS, slots), BIN),
        "requests": requests,
        "done": np.full(len(requests), -1, np.int64),
        "timer_ps": np.full(len(requests), FOREVER),
        "timer_item": np.full(len(requests), -1, np.int64),
        "alarm_ps": np.full(len(requests), FOREVER),
        "alarm_item": np.full(len(requests), -1, np.int64),
        "hashes": hashes,
        "held": np.full(len(hashes), -1, np.int64),
        "cells": np.zeros((slots, cells), CELL),
        "table": np.full((slots, table), -1, np.int64),
    }
    return Engine.of({name: np.ascontiguousarray(array) for name, array in arrays.items()})
