"""Everything the compiled engine works on: a named tuple of few arrays, most of them arrays of records.

R slots, N requests, D deployments (model on GPU at a tensor parallelism), T batched tokens, K clock steps, M running
requests per slot at most. Times are int64 picoseconds. Records rather than an array per field: what one event touches
lies together, and a call into the engine passes a dozen arrays rather than a hundred.
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

# Instance life, per slot.
EMPTY, LOADING, SERVING, DRAINING, SLEEPING, FAILED, TENANT = 0, 1, 2, 3, 4, 5, 6
STATUS_NAMES = ("empty", "loading", "serving", "draining", "sleeping", "failed", "tenant")

# Request life.
PENDING, AT_GATEWAY, WAITING, RUNNING, FINISHED, REJECTED, TIMED_OUT = 0, 1, 2, 3, 4, 5, 6
REQUEST_STATUS_NAMES = ("pending", "at_gateway", "waiting", "running", "finished", "rejected", "timed_out")

# Routers.
ROUND_ROBIN, LEAST_OUTSTANDING = 0, 1
ROUTER_NAMES = ("round-robin", "least-outstanding")

# Cursor cells.
(
    C_ARRIVAL,
    C_DONE,
    C_NOW,
    C_GATEWAY_HEAD,
    C_GATEWAY_TAIL,
    C_GATEWAY_COUNT,
    C_RELEASES,
    C_CLOSED_LOOP,
    C_ADMITTED,
    C_SENT,
    C_SENT_TOKENS,
) = range(11)
CURSORS = 11

# Planes of Engine.cost, Engine.ladder and Engine.thermal.
FIXED, COMPUTE, MEMORY = 0, 1, 2
CLOCK, SCALE = 0, 1
RESISTANCE, DECAY = 0, 1


def _record(whole: str, real: str = "") -> np.dtype[np.void]:
    return np.dtype([(name, np.int64) for name in whole.split()] + [(name, np.float64) for name in real.split()])


# Per deployment; see tables.py. `averaging`: the meter shows the mean of the bin, else the instant at its end.
DEPLOYMENT = _record(
    "kv_read_ps attention_ps gpus averaging kv_blocks max_model_len max_num_seqs max_batched_tokens block_size model",
    "off_w idle_w active_w compute_w memory_w throttle_c resume_c",
)

# Per request: a row of the request table and what becomes of it. `follower` is the session's next request, `link` the
# next one in whichever queue holds this one, `admission` the running number of its last admission, `unfit` 1 if no
# slot could ever hold it.
REQUEST = _record(
    "arrival_ps prompt output model timeout_ps think_ps follower slot status admit_ps first_token_ps finish_ps "
    "generated preemptions admission link unfit"
)

# Per slot. `flight_*`: the iteration in flight (end -1: none) and the prompt tokens it computes. `decodes`, `context`:
# decoding requests and the tokens they have cached. `partial*`: the request whose prefill spans iterations. `joiners`:
# requests whose prefill ends with the flight. `governed`: the clock `step` still holds. `bound_ps`: no request finishes
# before. `instant_w`: power of the stretch accounted last. `load_w`: what a tenant's machine draws.
SLOT = _record(
    "status deployment now_ps flight_end_ps flight_prefill iteration decodes context partial partial_done "
    "partial_target joiners free_blocks queue_head queue_tail waiting outstanding governed step bound_ps clock_limit "
    "throttled throttle_events",
    "cap_w inlet_c instant_w load_w route_weight route_credit",
)

# Per slot and second. `kv_used` is a share of the KV blocks.
BIN = _record("running waiting prompt_tokens output_tokens", "energy_j metered_w temperature_c clock_ratio kv_used")


class Engine(NamedTuple):
    """The whole state of one cluster."""

    cursor: I64  # (CURSORS,)
    router: I64  # (1,)
    deployments: Records  # (D,) DEPLOYMENT
    cost: I64  # (D, 3, T + 1): fixed, compute and memory time of an iteration over t tokens
    ladder: F64  # (D, 2, K): clock ratio and dynamic power scale
    thermal: F64  # (D, 2, 2): resistance in K/W and decay per second of each pole
    slots: Records  # (R,) SLOT
    heap_key: I64  # (R, M): finishing iteration of each decoding request
    heap_request: I64  # (R, M)
    joiner: I64  # (R, M)
    phase: I64  # (R, block size): decoding requests by fill of their last block
    pole_k: F64  # (R, 2): temperature rise over each thermal pole
    bins: Records  # (BINS, R) BIN
    requests: Records  # (N,) REQUEST
    done: I64  # (N,): requests in the order in which they left
    release_key: I64  # (N,): heap of closed-loop releases
    release_item: I64  # (N,)


def _longest(deployments: Records) -> I64:
    """Tokens of the longest request of each model that some slot could hold to its end; the last entry is for any."""
    holds = np.minimum(deployments["max_model_len"], deployments["kv_blocks"] * deployments["block_size"])
    longest = np.zeros(int(deployments["model"].max()) + 2, np.int64)
    np.maximum.at(longest, deployments["model"], holds)
    longest[-1] = holds.max()
    return longest


def allocate(
    deployments: Records,
    cost: I64,
    ladder: F64,
    thermal: F64,
    requests: Records,
    slots: int,
    engine_limits: tuple[int, int],
) -> Engine:
    """An engine at time zero with empty slots.

    Args:
        deployments: (D,) DEPLOYMENT.
        cost: (D, 3, T + 1).
        ladder: (D, 2, K).
        thermal: (D, 2, 2).
        requests: (N,) REQUEST, taken over; those that no slot could ever hold are marked here.
        slots: R.
        engine_limits: Running requests per slot at most (M), and tokens per KV block.

    Returns:
        The engine.
    """
    most, block_size = engine_limits
    requests["unfit"] = requests["prompt"] + requests["output"] > _longest(deployments)[requests["model"]]
    cursor = np.zeros(CURSORS, np.int64)
    cursor[[C_GATEWAY_HEAD, C_GATEWAY_TAIL]] = -1
    slot = np.zeros(slots, SLOT)
    for name in ("flight_end_ps", "partial", "queue_head", "queue_tail"):
        slot[name] = -1
    slot["route_weight"] = 1.0
    slot["clock_limit"] = ladder.shape[2] - 1
    return Engine(
        cursor=cursor,
        router=np.array([LEAST_OUTSTANDING]),
        deployments=deployments,
        cost=cost,
        ladder=ladder,
        thermal=thermal,
        slots=slot,
        heap_key=np.zeros((slots, most), np.int64),
        heap_request=np.zeros((slots, most), np.int64),
        joiner=np.zeros((slots, most), np.int64),
        phase=np.zeros((slots, block_size), np.int64),
        pole_k=np.zeros((slots, 2)),
        bins=np.zeros((BINS, slots), BIN),
        requests=requests,
        done=np.full(len(requests), -1, np.int64),
        release_key=np.full(len(requests), FOREVER),
        release_item=np.full(len(requests), -1, np.int64),
    )
