"""One run of one agent, with everything written down."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import Progress

from ..agents.base import Task, Watcher
from ..agents.registry import make_agent, scenario_for
from ..envs.cluster_env import LLMClusterEnv
from ..envs.plant import SimulatedPlant
from ..envs.scenario import Scenario
from ..envs.traces import scaled_to
from ..simulator.catalog import Catalog
from ..simulator.chrome_trace import ChromeTrace
from ..simulator.cluster import EngineName
from ..simulator.confidence import Confidence
from ..simulator.errors import InputError
from ..simulator.files import whole
from ..simulator.host import host_energy_j
from ..simulator.kernels.state import FINISHED
from ..simulator.metrics import within
from ..simulator.playback import DRAIN_S
from ..simulator.results import Names, request_columns, slot_columns
from ..simulator.units import PS_PER_S
from ..simulator.workload.table import ANY_MODEL, RequestTable


def simulate(
    scenario: Scenario,
    agent: str,
    seed: int,
    progress: Progress,
    requests: RequestTable | None = None,
    engine: EngineName = "compiled",
    trace: Path | None = None,
) -> tuple[SimulatedPlant, dict[str, Any]]:
    """Runs an agent through a workload to the last token.

    Args:
        scenario: The scenario.
        agent: Name of the agent, or a folder that training wrote.
        seed: Seed of all that is drawn.
        progress: Shows how far it is.
        requests: Plays these requests, all of them; the scenario's own workload and horizon by default.
        engine: ``compiled`` or ``reference``.
        trace: Writes a trace for Perfetto here; needs the reference engine.

    Returns:
        The plant at the end, and the result as plain values.

    Raises:
        InputError: The workload is empty, or the agent does not exist.
    """
    if requests is not None:
        if not len(requests):
            raise InputError("workload", "holds no requests", "Give a trace with at least one")
        ticks = int(requests.arrival_ps[-1] // (scenario.tick_s * PS_PER_S)) + 1
        scenario = scaled_to(scenario, requests).model_copy(update={"horizon_s": ticks * scenario.tick_s})
    began = time.perf_counter()
    env = LLMClusterEnv(scenario_for(agent, scenario), engine=engine)
    if requests is not None:
        requests = for_scenario(requests, env.blueprint.models, tuple(scenario.slo))
    player = make_agent(agent, Task.of(env))
    slots = [slot.name for slot in env.blueprint.slots]
    with nullcontext() if trace is None else ChromeTrace(trace, slots) as observer:
        observation, info = env.reset(seed=seed, options={"requests": requests, "observer": observer})
        if isinstance(player, Watcher):
            player.watch(env)
        reward, state, truncated = 0.0, None, False
        bar = progress.add_task("simulating", total=scenario.ticks)
        while not truncated:
            masks = info["action_mask"]
            action, state = player.predict(observation, state, None, deterministic=True, action_masks=masks)
            observation, gained, _, truncated, info = env.step(action)
            reward += gained
            progress.advance(bar)
        plant = env.plant
        assert plant is not None
        plant.cluster.drain(DRAIN_S)
    result = {
        "scenario": scenario.name,
        "agent": agent,
        "seed": seed,
        "reward": reward,
        **asdict(plant.summary()),
        "host_energy_j": host_energy_j(plant.cluster, Catalog.builtin()),
        "confidence": {name: _plain(one) for name, one in env.blueprint.confidence().items()},
        "wall_s": time.perf_counter() - began,
    }
    return plant, _without_nan(result)


def _plain(backing: Confidence) -> dict[str, Any]:
    return {"level": backing.level, "text": str(backing), **asdict(backing.expected)}


def for_scenario(requests: RequestTable, models: tuple[str, ...], slo_classes: tuple[str, ...]) -> RequestTable:
    """Names of the trace count where the scenario has them; else any model will do, and the first SLO class holds."""
    model = [models.index(name) if name in models else ANY_MODEL for name in requests.models]
    slo = [slo_classes.index(name) if name in slo_classes else 0 for name in requests.slo_classes]
    return replace(
        requests,
        model=np.array([*model, ANY_MODEL], np.int16)[requests.model],  # -1 picks the last
        slo_class=np.array([*slo, 0], np.int16)[requests.slo_class],
        models=models,
        slo_classes=slo_classes,
    )


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """``None`` in place of what is not a number, which JSON lacks."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return _without_nan(value)
        return None if isinstance(value, float) and math.isnan(value) else value

    return {key: plain(value) for key, value in values.items()}


def write_tables(plant: SimulatedPlant, folder: Path) -> dict[str, Path]:
    """Writes ``requests.parquet`` (a row per request) and ``seconds.parquet`` (a row per second and slot).

    Args:
        plant: A plant at the end of its run.
        folder: Where to; made if missing.

    Returns:
        Paths by table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, table in (("requests", request_table(plant)), ("seconds", second_table(plant))):
        paths[name] = folder / f"{name}.parquet"
        with whole(paths[name]) as partial:
            pq.write_table(table, partial)
    return paths


def request_table(plant: SimulatedPlant) -> pa.Table:
    """What became of every request; times in picoseconds since the start, -1 for what did not happen."""
    cluster = plant.cluster
    rows, source = cluster.engine.requests, cluster.requests
    first, last, output = rows["first_token_ps"], rows["finish_ps"], rows["output"]
    done = rows["status"] == FINISHED
    ttft_s = np.where(first >= 0, (first - rows["arrival_ps"]) / PS_PER_S, np.nan)
    tpot_s = np.where(done & (output > 1), (last - first) / PS_PER_S / np.maximum(output - 1, 1), np.nan)
    e2e_s = np.where(done, (last - rows["arrival_ps"]) / PS_PER_S, np.nan)
    return pa.table(
        {
            **request_columns(rows, source.slo_class, _names(plant)),
            "ttft_s": pa.array(ttft_s, from_pandas=True),
            "tpot_s": pa.array(tpot_s, from_pandas=True),
            "e2e_s": pa.array(e2e_s, from_pandas=True),
            "met_slo": within(rows, source.slo_class, plant.limits),
        }
    )


def second_table(plant: SimulatedPlant) -> pa.Table:
    """Every second of every slot; ``energy_j`` of a second is its mean power in watts."""
    history = plant.cluster.history
    columns = slot_columns(0, history.records, history.column("status"), _names(plant))
    budget_w = plant.budget.at(columns["second"])
    return pa.table(columns).add_column(3, "budget_w", pa.array(budget_w))


def _names(plant: SimulatedPlant) -> Names:
    blueprint = plant.cluster.blueprint
    return Names([s.name for s in blueprint.slots], blueprint.models, plant.cluster.requests.slo_classes)
