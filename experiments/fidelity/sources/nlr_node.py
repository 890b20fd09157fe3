"""What the three NLR sources share: the node, one simulated run of it, and its power meter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....simulator.blueprint import Blueprint
from ....simulator.catalog import Catalog
from ....simulator.catalog.fits import HostFit
from ....simulator.cluster import Cluster
from ....simulator.host import host_power_w
from ....simulator.topology import ClusterSpec, EngineSpec, RackSpec, RowSpec, ServerSpec
from ....simulator.units import PS_PER_S, to_ps
from ....simulator.workload.table import RequestTable

MODEL, GPU, GPUS = "Llama-3.1-70B", "H100-80GB", 4
MAX_SEQUENCES = 1024
BLOCK_TOKENS = 16

METER_S = 1.0
"""The meters of the GPUs report the mean of so many seconds past."""

TEST_TOKENS = 80
"""Output of the request that the client sends alone before the others."""

PAUSE_S = 10.0
"""The node is idle so long before a run."""

EARLIER_S = 1200.0
"""An earlier run with the same prompts begins so long before; by then it is long over."""

ASSUMED = (
    "One server of 4 H100 SXM with tensor parallelism, bfloat16 weights, vLLM's own choices for such GPUs: at most "
    "1024 sequences and 8192 tokens in an iteration (16384 offline), prefix caching, 0.9 of the memory.",
    "The node's meter adds GPUs, CPU packages and, a second time, CPU cores: what the host draws above idle is its "
    "cores' and counts twice, what it draws at idle counts once.",
    "Greedy sampling, the default of vLLM's serving benchmark: next tokens are the likeliest, which costs less than "
    "drawing them.",
    "The meters of the GPUs report the mean of the past second.",
)


@dataclass(frozen=True)
class Work:
    """What is asked of the node in one run.

    Attributes:
        arrival_s: Times of arrival, ascending from 0.
        prompt_tokens: Prompt lengths.
        output_tokens: Output lengths.
        cached: Whether the same requests were run before, so that their prompts lie in the KV cache.
        shared_blocks: Leading KV blocks that all prompts have in common.
        test_s: So long before the others the client sends a test request; 0 for none.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    cached: bool
    shared_blocks: int = 1
    test_s: float = 0.0


@dataclass(frozen=True)
class Load:
    """Means over the window in which the power of the node was measured.

    Attributes:
        gpu_w: Power of the GPUs, watts.
        busy: Share of the time with requests running.
        running: Requests running.
    """

    gpu_w: float
    busy: float
    running: float

    def node_w(self, host: HostFit) -> float:
        """What the meter of the node shows, watts: the part of the host above idle counts twice."""
        return self.gpu_w + 2 * host_power_w(host, self.busy, self.running) - host.idle_w


@dataclass(frozen=True)
class Run:
    """What became of one run.

    Attributes:
        ttft_s: Time to first token of each request that finished.
        decode_s: Time from first to last token of each.
        steps: Tokens after the first of each.
        tokens: Prompt and output tokens of all.
        duration_s: From the first arrival to the last token; NaN if no request finished.
        load: Means over the window of the power measurement.
    """

    ttft_s: NDArray[np.float64]
    decode_s: NDArray[np.float64]
    steps: NDArray[np.int64]
    tokens: int
    duration_s: float
    load: Load


def node(catalog: Catalog, max_tokens: int = 8192) -> Blueprint:
    """The node that all was measured on, with vLLM's token budget of an iteration."""
    server = ServerSpec(gpu=GPU, gpus=GPUS, tp=GPUS, model=MODEL)
    engine = EngineSpec(max_num_seqs=MAX_SEQUENCES, max_num_batched_tokens=max_tokens, sampling="greedy")
    return Blueprint.of(ClusterSpec(rows=(RowSpec(racks=(RackSpec(servers=(server,)),)),), engine=engine), catalog)


def idle_gpus_w(blueprint: Blueprint) -> float:
    """Power of the GPUs that hold the model and have no work, watts."""
    return blueprint.deployments[int(blueprint.initial[0])].power.idle_w


def play(
    blueprint: Blueprint, work: Work, rng: np.random.Generator, window_s: tuple[float, float] | None = None
) -> Run:
    """Simulates one run.

    Args:
        blueprint: The node.
        work: What is asked of it.
        rng: Source of all randomness.
        window_s: When power is measured, counted from the first arrival; the run ends with it. By default from the
            test request to the last token.

    Returns:
        What became of it.
    """
    requests, start_s = _requests(work)
    cluster = Cluster(blueprint, requests, rng)
    if window_s is None:
        cluster.drain(24 * 3600.0)
    else:
        cluster.advance(to_ps(start_s + window_s[1]))
    rows = cluster.engine.requests[-len(work.arrival_s) :]
    done = rows[rows["finish_ps"] >= 0]
    end_s = float(done["finish_ps"].max()) / PS_PER_S if len(done) else np.nan
    first_s, last_s = window_s or (-work.test_s, end_s - start_s)
    return Run(
        ttft_s=(done["first_token_ps"] - done["arrival_ps"]) / PS_PER_S,
        decode_s=(done["finish_ps"] - done["first_token_ps"]) / PS_PER_S,
        steps=done["output"].astype(np.int64) - 1,
        tokens=int(done["prompt"].sum() + done["output"].sum()),
        duration_s=end_s - start_s,
        load=_load(cluster, start_s + first_s, start_s + last_s),
    )


def _requests(work: Work) -> tuple[RequestTable, float]:
    """The requests of a run, with those before it that fill the cache or test the server; and when it begins."""
    each = np.arange(len(work.arrival_s))
    earlier, alone = each[: len(each) * work.cached], each[: int(work.test_s > 0)]
    start_s = PAUSE_S + (EARLIER_S if work.cached else 0.0)
    number = np.concatenate([earlier, alone, each])
    prompt, output = work.prompt_tokens[number], work.output_tokens[number]
    output[len(earlier) : len(earlier) + len(alone)] = TEST_TOKENS
    arrival_s = [np.full(len(earlier), -start_s), np.full(len(alone), -work.test_s), work.arrival_s]
    blocks = prompt // BLOCK_TOKENS
    offset = np.concatenate([[0], np.cumsum(blocks)])
    place = np.arange(offset[-1]) - np.repeat(offset[:-1], blocks)
    own = (np.repeat(number, blocks) + 1 << 20) + place
    table = RequestTable.from_columns(
        np.rint((start_s + np.concatenate(arrival_s)) * PS_PER_S),
        prompt,
        output,
        source="NLR run",
        prefix_offset=offset,
        prefix_hash=np.where(place < work.shared_blocks, place, own),
        prefix_block_tokens=BLOCK_TOKENS,
    )
    return table, start_s


def _load(cluster: Cluster, first_s: float, last_s: float) -> Load:
    """Means over a window, as meters that average over the past show them."""
    energy_j = cluster.history.column("energy_j")[:, 0]
    running = cluster.history.column("running")[:, 0].astype(np.float64)
    second = np.arange(len(energy_j) + 1.0)
    total_j = np.concatenate([[0.0], np.cumsum(energy_j)])
    if last_s < second[-1]:
        # Work ends within the last second; what remains of it is idle.
        after = int(last_s) + 1
        at_end_j = total_j[after] - idle_gpus_w(cluster.blueprint) * (after - last_s)
        second, total_j = np.insert(second, after, last_s), np.insert(total_j, after, at_end_j)
    back_s = np.linspace(0, METER_S, 11)[:, None]
    spent_j = np.diff(np.interp([first_s, last_s] - back_s, second, total_j), axis=1)
    length_s = last_s - first_s
    gauge = running[int(max(first_s, 0)) : int(last_s)]
    return Load(float(spent_j.mean()) / length_s, float((gauge > 0).mean()), float(gauge.mean()))
