"""Deployments: every model on every kind of slot that can hold it, as the engine's stacked tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .catalog import Catalog
from .errors import InputError
from .kernels.state import CLOCK, COMPUTE, DEPLOYMENT, LINK, MEMORY, UNITS_PER_W, Tables
from .kernels.tables import IterationCost, PowerCoefficients
from .performance import iteration_cost, kv_capacity_tokens
from .power import power_coefficients
from .topology import EngineSpec, Slot
from .transfers import kv_transfer_s, load_time_s, wake_time_s
from .units import PS_PER_S, to_ps

AVERAGING_FROM_S = 0.5


@dataclass(frozen=True)
class Deployment:
    """One model on one kind of slot.

    Attributes:
        model: Index of the model among those of the cluster.
        cost: Iteration cost.
        power: Power coefficients.
        kv_blocks: KV cache in blocks.
        max_model_len: Longest request, tokens.
        load_s: Time from empty to serving.
        wake_s: Time from sleeping to serving.
        kv_transfer_ps: Time that the KV cache of one token takes to another server.
        kv_transfer_latency_ps: What is added to that once for a prompt.
    """

    model: int
    cost: IterationCost
    power: PowerCoefficients
    kv_blocks: int
    max_model_len: int
    load_s: float
    wake_s: float
    kv_transfer_ps: int
    kv_transfer_latency_ps: int


def deploy(
    slots: Sequence[Slot], models: Sequence[str], engine: EngineSpec, catalog: Catalog
) -> tuple[list[Deployment], NDArray[np.int64]]:
    """Works out which model fits which slot.

    Args:
        slots: Slots of the cluster.
        models: Names of the models.
        engine: Engine limits.
        catalog: GPUs and models.

    Returns:
        The deployments, and an int64 array (slots, models) of indices into them, -1 where the model does not fit.

    Raises:
        InputError: A slot's own model does not fit it, or a slot can hold none of the models.
    """
    found: dict[tuple[str, int, int, bool, str], int] = {}
    made: list[Deployment] = []
    index = np.full((len(slots), len(models)), -1, np.int64)
    for r, slot in enumerate(slots):
        refusals: list[InputError] = []
        for m, name in enumerate(models):
            key = (slot.spec.gpu, slot.spec.tp, slot.spec.pp, slot.spec.ep, name)
            if key not in found:
                _look_up(catalog, slot, name)
                try:
                    made.append(_deployment(m, name, slot, engine, catalog))
                    found[key] = len(made) - 1
                except InputError as refusal:
                    if name == slot.spec.model:
                        problem = f"{refusal.where}: {refusal.problem}"
                        raise InputError(slot.field, problem, refusal.remedy) from refusal
                    refusals.append(refusal)
                    found[key] = -1
            index[r, m] = found[key]
        if (index[r] < 0).all():
            raise refusals[0] if refusals else InputError(slot.name, "can hold no model", "Add a smaller model")
    return made, index


def _look_up(catalog: Catalog, slot: Slot, model: str) -> None:
    """Names the field of an unknown GPU or model, which is no question of fit."""
    for field, find, name in ((f"{slot.field}.gpu", catalog.gpu, slot.spec.gpu), ("models", catalog.model, model)):
        try:
            find(name)
        except InputError as refusal:
            where = f"{slot.field}.model" if field == "models" and model == slot.spec.model else field
            raise InputError(where, refusal.problem, refusal.remedy) from refusal


def _deployment(number: int, name: str, slot: Slot, engine: EngineSpec, catalog: Catalog) -> Deployment:
    model, gpu, tp, pp = catalog.model(name), catalog.gpu(slot.spec.gpu), slot.spec.tp, slot.spec.pp
    scale = catalog.scale(model.name, gpu.name, tp, pp, slot.spec.ep)
    capacity = kv_capacity_tokens(model, gpu, tp, engine.gpu_memory_utilization, pp)
    return Deployment(
        model=number,
        cost=iteration_cost(
            model, gpu, tp, engine.max_num_batched_tokens, pp, slot.spec.ep, scale, engine.sampling == "greedy"
        ),
        power=power_coefficients(model, gpu, tp, pp, scale),
        kv_blocks=capacity // engine.block_size,
        max_model_len=min(engine.max_model_len or model.max_model_len, model.max_model_len),
        load_s=load_time_s(model, gpu, tp, pp),
        wake_s=wake_time_s(model, gpu, tp, pp, engine.sleep_level),
        kv_transfer_ps=to_ps(kv_transfer_s(model, gpu, tp, pp)),
        kv_transfer_latency_ps=to_ps(gpu.host.network_latency_s),
    )


def stack(deployments: Sequence[Deployment], engine: EngineSpec) -> Tables:
    """The deployments as the engine's arrays."""
    costs, powers = [d.cost for d in deployments], [d.power for d in deployments]
    records = np.zeros(len(deployments), DEPLOYMENT)
    for name in ("kv_blocks", "model"):
        records[name] = [getattr(d, name) for d in deployments]
    for name in ("step_ps", "sequence_ps", "gap_ps", "sample_ps", "kv_read_ps", "state_ps", "attention_ps"):
        records[name] = [getattr(c, name) for c in costs]
    for name in ("throttle_c", "resume_c", "gpus"):
        records[name] = [getattr(p, name) for p in powers]
    for name in ("off", "idle", "memory", "cache", "link"):
        records[f"{name}_cw"] = [round(getattr(p, f"{name}_w") * UNITS_PER_W) for p in powers]
    records["transfer_ps"] = [d.kv_transfer_ps for d in deployments]
    records["transfer_latency_ps"] = [d.kv_transfer_latency_ps for d in deployments]
    records["averaging"] = [p.meter_window_s >= AVERAGING_FROM_S for p in powers]
    records["watermark"] = [int(engine.watermark * d.kv_blocks) for d in deployments]
    usable = (records["kv_blocks"] - records["watermark"]) * engine.block_size
    records["max_tokens"] = np.minimum([d.max_model_len for d in deployments], usable)
    records["max_num_seqs"] = engine.max_num_seqs
    records["max_batched_tokens"] = engine.max_num_batched_tokens
    records["block_shift"] = engine.block_size.bit_length() - 1
    records["by_priority"] = engine.scheduling_policy == "priority"
    clocked_w = np.array([(p.scale * p.active_w, p.scale * p.compute_w) for p in powers])
    tables = Tables(
        deployments=records,
        cost=np.stack([(c.link_ps, c.compute_ps, c.memory_ps) for c in costs]),
        ladder=np.stack([(p.clock_ratio, p.scale) for p in powers]),
        watt=np.rint(clocked_w * UNITS_PER_W).astype(np.int64),
        thermal=np.stack([(p.thermal_r_k_per_w, np.exp(-1.0 / p.thermal_tau_s)) for p in powers]),
    )
    _check_range(tables, engine)
    return tables


def _check_range(tables: Tables, engine: EngineSpec) -> None:
    """Refuses what could exceed 64 bits: the energy of the longest iteration, at any clock."""
    for record, cost, ladder, watt in zip(tables.deployments, tables.cost, tables.ladder, tables.watt, strict=True):
        sequences = float(engine.max_num_seqs)
        pairs = float(engine.max_num_batched_tokens) * float(record["max_tokens"])
        compute_ps = (cost[COMPUTE].max() + pairs * record["attention_ps"]) / ladder[CLOCK]
        read_ps = float(record["kv_read_ps"]) * record["max_tokens"] + float(record["state_ps"])
        memory_ps = cost[MEMORY].max() + read_ps * sequences
        each_ps = float(record["sequence_ps"]) + float(record["sample_ps"])
        fixed_ps = float(record["step_ps"]) + float(record["gap_ps"]) + each_ps * sequences
        longest_ps = fixed_ps + cost[LINK].max() + np.maximum(compute_ps, memory_ps)
        steady_cw = record["idle_cw"] + max(record["memory_cw"], record["cache_cw"]) + record["link_cw"]
        energy = float((longest_ps * (watt.sum(axis=0) + steady_cw)).max())
        if energy >= 2.0**63:
            fitting = int(engine.max_num_batched_tokens * 2.0**63 / energy)
            problem = f"{engine.max_num_batched_tokens} lets an iteration take {longest_ps.max() / PS_PER_S:.0f} s"
            raise InputError("cluster.engine.max_num_batched_tokens", problem, f"Give about {fitting} at most")
