"""Engines over deployments of plain numbers: small ones for hand-worked cases, random ones for properties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmcluster.simulator import coupling
from llmcluster.simulator.kernels import cluster as kernels
from llmcluster.simulator.kernels.prefix import clear_cache
from llmcluster.simulator.kernels.state import (
    C_BACKOFF_PS,
    C_NOW,
    C_ON_FAILURE,
    C_RETRIES,
    C_ROUTER,
    C_SEED,
    DEPLOYMENT,
    LEAST_OUTSTANDING,
    MIXED,
    REQUEST,
    RETRY,
    SERVING,
    UNLIMITED,
    Engine,
    Limits,
    Tables,
    allocate,
)
from llmcluster.simulator.reference.engine import ReferenceEngine

PLENTY_W = 2_000.0


@dataclass(frozen=True)
class Machine:
    """One deployment. An iteration over t tokens of n sequences has ``compute_ps·t`` of compute, ``memory_ps +
    memory_each_ps·t + state_ps·n`` of memory, ``link_ps`` of links, ``gap_ps`` of gaps, ``sample_ps·n`` of sampling and
    ``step_ps + sequence_ps·n`` of the host.

    At the top of the ladder it draws ``idle_w`` and, while an iteration runs but for the host's part, ``active_w``
    more, ``compute_w`` more while it computes, ``memory_w`` more while it reads weights or samples, ``cache_w``
    more while it reads the cache and ``link_w`` more while links are busy; at lower steps, ``scale`` times active and
    compute power.
    """

    link_ps: int
    compute_ps: int
    memory_ps: int
    memory_each_ps: int = 0
    step_ps: int = 0
    sequence_ps: int = 0
    gap_ps: int = 0
    sample_ps: int = 0
    state_ps: int = 0
    kv_read_ps: int = 0
    attention_ps: int = 0
    model: int = 0
    kv_blocks: int = 1000
    block_size: int = 16
    watermark: int = 0
    max_model_len: int = 100_000
    max_num_seqs: int = 8
    max_batched_tokens: int = 64
    by_priority: bool = False
    transfer_ps: int = 0
    transfer_latency_ps: int = 0
    gpus: int = 1
    averaging: bool = True
    off_w: float = 10.0
    idle_w: float = 50.0
    active_w: float = 100.0
    compute_w: float = 200.0
    memory_w: float = 50.0
    cache_w: float = 50.0
    link_w: float = 0.0
    clock: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    scale: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    resistance: tuple[float, float] = (0.03, 0.02)
    decay: tuple[float, float] = (0.5, 0.9)
    throttle_c: float = 1000.0
    resume_c: float = 900.0

    @property
    def max_tokens(self) -> int:
        return min(self.max_model_len, (self.kv_blocks - self.watermark) * self.block_size)

    @property
    def full_power_w(self) -> float:
        return self.idle_w + self.active_w + self.compute_w + self.memory_w


@dataclass(frozen=True)
class Call:
    """One request."""

    arrival_ps: int
    prompt: int
    output: int
    timeout_ps: int = -1
    think_ps: int = -1
    follower: int = -1
    model: int = -1
    level: int = 0
    hashes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Policy:
    """The gateway's."""

    router: int = LEAST_OUTSTANDING
    seed: int = 0
    retries: int = 0
    backoff_ps: int = 0
    on_failure: int = RETRY


class Driver(Protocol):
    """One engine at work; what it does is in the arrays of ``engine``."""

    engine: Engine
    router: Callable[[int, list[int]], int] | None

    def advance(self, until_ps: int, control: bool = True) -> None: ...
    def evict(self, slot: int) -> None: ...
    def clear(self, slot: int) -> None: ...


Factory = Callable[[Engine], Driver]


def tables(machines: Sequence[Machine]) -> Tables:
    """The physics; ladders must be of one length."""
    records = np.zeros(len(machines), DEPLOYMENT)
    for name in DEPLOYMENT.names or ():
        if hasattr(machines[0], name):
            records[name] = [getattr(m, name) for m in machines]
    records["block_shift"] = [m.block_size.bit_length() - 1 for m in machines]
    for name in ("off", "idle", "memory", "cache", "link"):
        records[f"{name}_cw"] = [round(getattr(m, f"{name}_w") * 100) for m in machines]
    tokens = np.arange(max(m.max_batched_tokens for m in machines) + 1)
    cost = [(m.link_ps + 0 * tokens, m.compute_ps * tokens, m.memory_ps + m.memory_each_ps * tokens) for m in machines]
    scale = [np.array(m.scale) for m in machines]
    watt = [(s * m.active_w, s * m.compute_w) for m, s in zip(machines, scale, strict=True)]
    return Tables(
        deployments=records,
        cost=np.array(cost, np.int64),
        ladder=np.array([(m.clock, m.scale) for m in machines]),
        watt=np.rint(np.array(watt) * 100).astype(np.int64),
        thermal=np.array([(m.resistance, m.decay) for m in machines]),
    )


def build(
    machines: Machine | Sequence[Machine],
    calls: Sequence[Call],
    policy: Policy | None = None,
    *,
    slots: Sequence[int] = (),
    unit_tokens: int = 0,
    **columns: object,
) -> Engine:
    """An engine at time zero.

    Args:
        machines: The deployments.
        calls: The requests; those without a think time in order of arrival.
        policy: The gateway's.
        slots: Deployment of each slot; by default one slot per deployment.
        unit_tokens: Tokens under one prefix hash, 0 without prefix caching.
        **columns: Columns of the slots; by default all serve, in mixed roles, with plenty of power.
    """
    machines = [machines] if isinstance(machines, Machine) else list(machines)
    policy, homes = policy or Policy(), np.array(slots or range(len(machines)))
    limits = Limits(
        max_num_seqs=max(m.max_num_seqs for m in machines),
        block_size=machines[0].block_size,
        levels=max((c.level for c in calls), default=0) + 1,
        unit_tokens=unit_tokens,
    )
    hashes = np.array([h for c in calls for h in c.hashes] or [0], np.int64)
    engine = allocate(tables(machines), _rows(calls), hashes, len(homes), limits)
    defaults = {"status": SERVING, "cap_w": PLENTY_W, "inlet_c": 25.0, "role": MIXED, "limit": UNLIMITED}
    for name, value in {**defaults, "deployment": homes, **columns}.items():
        engine.slots[name] = value
    for cell, number in (
        (C_ROUTER, policy.router),
        (C_SEED, policy.seed),
        (C_RETRIES, policy.retries),
        (C_BACKOFF_PS, policy.backoff_ps),
        (C_ON_FAILURE, policy.on_failure),
    ):
        engine.cursor[cell] = number
    note_coupling(engine)
    return engine


def note_coupling(engine: Engine) -> None:
    """After the router or limits have changed."""
    coupling.note_coupling(engine, closed_loop=bool((engine.requests["think_ps"] >= 0).any()))


def _rows(calls: Sequence[Call]) -> np.ndarray:
    rows = np.zeros(len(calls), REQUEST)
    for name in ("slot", "admit_ps", "first_token_ps", "finish_ps", "link", "back"):
        rows[name] = -1
    for name in ("arrival_ps", "timeout_ps", "think_ps", "prompt", "output", "follower", "model", "level"):
        rows[name] = [getattr(call, name) for call in calls]
    rows["sent_ps"] = rows["arrival_ps"]
    rows["units"] = [len(call.hashes) for call in calls]
    rows["prefix"] = np.cumsum(rows["units"]) - rows["units"]
    return rows


class Compiled:
    """The compiled engine as a driver."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.router: Callable[[int, list[int]], int] | None = None
        for slot in range(len(engine.slots)):
            self.clear(slot)

    def advance(self, until_ps: int, control: bool = True) -> None:
        kernels.advance(self.engine, until_ps, control)

    def evict(self, slot: int) -> None:
        kernels.evict(self.engine, slot, int(self.engine.cursor[C_NOW]))

    def clear(self, slot: int) -> None:
        clear_cache(self.engine, slot)


ENGINES: dict[str, Factory] = {"compiled": Compiled, "reference": ReferenceEngine}
