"""Whole random cases for the engines: clusters, workloads and what control does to them in the course of a run.

Limits are tight enough for preemption, chunking, shared and evicted prefixes, holding and time-outs to be common. Where
a case is large, numpy draws its details from a seed that hypothesis chooses: that is faster, and lists are not short.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from llmcluster.simulator.kernels.state import (
    BIN_PS,
    DECODE,
    FAIL,
    LEAST_OUTSTANDING,
    MIXED,
    POWER_OF_TWO,
    PREFILL,
    PREFIX_AFFINITY,
    RESTART,
    RETRY,
    ROUND_ROBIN,
    UNLIMITED,
    Engine,
)
from llmcluster.tests.machine import PLENTY_W, Call, Machine, Policy, build

MS = 10**9
LADDERS = ((0.25, 0.5, 0.75, 1.0), (0.3, 0.47, 0.83, 1.0))
ROUTERS = (ROUND_ROBIN, LEAST_OUTSTANDING, POWER_OF_TWO, PREFIX_AFFINITY)
KINDS = ("cap", "clock", "weight", "router", "limit", "inlet", "drain", "rest", "tenant", "load", "serve", "fail")


@dataclass(frozen=True)
class Action:
    """Something that control does at a time to a slot; what it means depends on the slot's state, see ``runs.py``."""

    time_ps: int
    kind: str
    slot: int
    share: float


@dataclass(frozen=True)
class Case:
    """A cluster, its workload and its script. ``homes``: the deployments that each slot may have, its own first."""

    machines: tuple[Machine, ...]
    homes: tuple[tuple[int, ...], ...]
    calls: tuple[Call, ...]
    policy: Policy
    unit_tokens: int
    columns: dict[str, tuple[Any, ...]]
    script: tuple[Action, ...] = ()

    def build(self) -> Engine:
        slots = [home[0] for home in self.homes]
        return build(self.machines, self.calls, self.policy, slots=slots, unit_tokens=self.unit_tokens, **self.columns)


@st.composite
def machines(draw: st.DrawFn, unit_ps: int, block_size: int, by_priority: bool, blocks: int, alike: bool) -> Machine:
    """Times on either side of the roofline, so that a batch crosses the ridge in both directions.

    Caps must cut where the steps of the ladder lie well apart: dynamic power falls faster than the clock.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    seqs = int(rng.choice([1, 2, 4, 8]))
    clock = LADDERS[draw(st.integers(0, 1))]
    exponent = rng.uniform(1.2, 3.0)
    throttle_c = draw(st.sampled_from([1000.0, 31.0, 28.0]))
    return Machine(
        link_ps=int(rng.integers(1, 3000)) * unit_ps,
        compute_ps=int(rng.integers(0, 60)) * unit_ps,
        memory_ps=int(rng.integers(0, 2000)) * unit_ps,
        memory_each_ps=int(rng.integers(0, 20)) * unit_ps,
        step_ps=draw(st.sampled_from([0, 50])) * unit_ps,
        sequence_ps=draw(st.sampled_from([0, 7])) * unit_ps,
        gap_ps=draw(st.sampled_from([0, 90])) * unit_ps,
        sample_ps=draw(st.sampled_from([0, 5])) * unit_ps,
        state_ps=draw(st.sampled_from([0, 30])) * unit_ps,
        kv_read_ps=draw(st.sampled_from([0, 3, 40])) * unit_ps,
        attention_ps=draw(st.sampled_from([0, 1, 8])) * unit_ps,
        kv_blocks=blocks if alike else int(rng.integers(blocks // 2, blocks + 1)),
        block_size=block_size,
        watermark=1 if alike else draw(st.integers(0, 2)),
        max_model_len=10_000 if alike else draw(st.sampled_from([10_000, 10_000, 60])),
        max_num_seqs=seqs,
        max_batched_tokens=seqs + int(rng.integers(0, 25)),
        by_priority=by_priority,
        transfer_ps=draw(st.sampled_from([0, 1, 20])) * unit_ps,
        transfer_latency_ps=draw(st.sampled_from([0, 1, 300])) * unit_ps,
        gpus=draw(st.integers(1, 2)),
        averaging=draw(st.booleans()),
        clock=clock,
        scale=tuple(float(f**exponent) for f in clock),
        cache_w=draw(st.sampled_from([50.0, 80.0])),
        link_w=draw(st.sampled_from([0.0, 30.0])),
        throttle_c=throttle_c,
        resume_c=throttle_c - 1.5,
    )


@st.composite
def workloads(draw: st.DrawFn, unit_ps: int, capacity: int, unit_tokens: int, levels: int, models: int) -> list[Call]:
    """Requests at a rate that keeps some slots busy; most of them fit, but not many at once."""
    most = draw(st.sampled_from([3, 12, 40])) if capacity < 200 else 4
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = int(rng.integers(most // 2, most + 1))
    spread = draw(st.sampled_from([0, 1, 10 * MS, 200 * MS]))
    gap = rng.integers(0, spread + 1, n)
    if draw(st.booleans()):
        gap = gap // unit_ps * unit_ps
    arrival = np.cumsum(gap)
    prompt = rng.integers(1, max(2, int(capacity * draw(st.sampled_from([0.05, 0.2, 0.6])))), n)
    output = rng.integers(1, max(2, int(capacity * draw(st.sampled_from([0.02, 0.4, 0.7])))), n)
    timeout = np.where(rng.random(n) < draw(st.sampled_from([0.0, 0.5])), rng.integers(0, 2 * BIN_PS, n), -1)
    closed = rng.random(n) < draw(st.sampled_from([0.0, 0.0, 0.6]))
    think = np.where(closed, rng.choice([0, 1, unit_ps, BIN_PS // 7], n), -1)
    think[0] = -1
    follower = np.append(np.where(think[1:] >= 0, np.arange(1, n), -1), -1)
    named = rng.integers(0, models, n)
    model = np.where(rng.random(n) < draw(st.sampled_from([0.0, 0.5, 1.0])), named, -1)
    level = rng.integers(0, levels, n)
    # Hashes differ by place in the prompt, as chained ones do, and their number per place is small: prefixes are
    # shared, and a later unit is at times cached without the one before it.
    variants = draw(st.integers(1, 3))
    hashes = [
        tuple(
            (place * 3 + int(v) + 1) * 0x9E3779B97F4A7C15 % 2**63
            for place, v in enumerate(rng.integers(0, variants, k))
        )
        for k in (prompt // unit_tokens if unit_tokens else np.zeros(n, int)).tolist()
    ]
    columns = (arrival, prompt, output, timeout, think, follower, model, level)
    return [Call(*values, found) for *values, found in zip(*(c.tolist() for c in columns), hashes, strict=True)]


@st.composite
def scripts(draw: st.DrawFn, unit_ps: int, slots: int) -> list[Action]:
    """What control does, mostly in the first seconds; at odd times, on boundaries and on the edges of seconds."""
    time = st.one_of(
        st.integers(0, 3 * BIN_PS),
        st.integers(0, 2000).map(lambda k: k * unit_ps * 50),
        st.integers(0, 3).map(lambda k: k * BIN_PS),
    )
    action = st.builds(Action, time, st.sampled_from(KINDS), st.integers(0, slots - 1), st.floats(0, 1))
    return sorted(draw(st.lists(action, max_size=14)), key=lambda a: a.time_ps)


@st.composite
def cases(draw: st.DrawFn, *, control: bool = True) -> Case:
    """One to four slots of one or two models, whose deployments differ; one in six with few requests that are long."""
    room_tokens = draw(st.sampled_from([40, 60, 90, 120, 120, 2000]))
    unit_ps = draw(st.sampled_from([10**7, 9_999_991, 10**8 if room_tokens < 200 else 10**7]))
    block_size = draw(st.sampled_from([1, 2, 4, 16]))
    by_priority = draw(st.booleans())
    slots = draw(st.integers(1, 4))
    models = draw(st.integers(1, min(slots, 2)))
    disaggregated = slots >= 2 * models and draw(st.booleans())
    # What a prefill slot has taken, a decode slot must be able to hold: then all caches are alike.
    fleet = [
        replace(
            draw(machines(unit_ps, block_size, by_priority, max(room_tokens // block_size, 8), disaggregated)),
            model=number % models,
        )
        for number in range(draw(st.integers(models, models + 2)))
    ]
    homes = []
    for slot in range(slots):
        of_model = [d for d, machine in enumerate(fleet) if machine.model == slot % models]
        # Whatever fits some deployment of a model must fit a slot.
        own = draw(st.sampled_from(of_model)) if slot >= models else max(of_model, key=lambda d: fleet[d].max_tokens)
        homes.append((own, *draw(st.lists(st.integers(0, len(fleet) - 1), max_size=1))))
    roles = [MIXED] * slots
    if disaggregated:
        roles = [
            (PREFILL if s < models else DECODE) if s < 2 * models else draw(st.integers(0, 2)) for s in range(slots)
        ]
    columns: dict[str, tuple[Any, ...]] = {
        "role": tuple(roles),
        "limit": tuple(draw(st.sampled_from([UNLIMITED, UNLIMITED, 1, 3])) for _ in range(slots)),
        "route_weight": tuple(draw(st.sampled_from([0.0, 0.5, 1.0, 1.0, 3.0])) for _ in range(slots)),
        "cap_w": tuple(draw(st.sampled_from([PLENTY_W, 210.0, 333.3])) for _ in range(slots)),
    }
    unit_tokens = block_size * draw(st.sampled_from([0, 1, 2, 3, 4]))
    capacity = min(machine.max_tokens for machine in fleet)
    calls = draw(workloads(unit_ps, capacity, unit_tokens, 3 if by_priority else 1, models))
    policy = Policy(
        router=draw(st.sampled_from(ROUTERS)),
        seed=draw(st.integers(-(2**62), 2**62)),
        retries=draw(st.integers(0, 2)),
        backoff_ps=draw(st.sampled_from([0, 1, BIN_PS // 3])),
        on_failure=draw(st.sampled_from([FAIL, RETRY, RESTART])),
    )
    script = tuple(draw(scripts(unit_ps, slots))) if control else ()
    return Case(tuple(fleet), tuple(homes), tuple(calls), policy, unit_tokens, columns, script)
