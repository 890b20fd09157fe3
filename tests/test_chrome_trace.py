"""The trace for Perfetto: it is JSON of the format, and says what happened."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.chrome_trace import ChromeTrace
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S
from llmcluster.simulator.workload.table import RequestTable

SERVER = {"gpu": "A100-80GB", "gpus": 2, "model": "Llama-3.1-8B"}
SPEC = ClusterSpec.model_validate(
    {"rows": [{"racks": [{"servers": [SERVER]}]}], "engine": {"gpu_memory_utilization": 0.24, "max_num_seqs": 128}}
)
PLAN = Blueprint.of(SPEC)


def _requests(n: int = 160) -> RequestTable:
    rng = np.random.default_rng(4)
    arrival = np.sort(rng.integers(0, 3 * PS_PER_S, n))
    return RequestTable.from_columns(arrival, rng.integers(1, 900, n), rng.integers(1, 300, n))


def test_every_iteration_request_and_second_is_in_the_trace(tmp_path: Path) -> None:
    names = [slot.name for slot in PLAN.slots]
    path = tmp_path / "trace.json"
    with ChromeTrace(path, names) as trace:
        cluster = Cluster(PLAN, _requests(), np.random.default_rng(0), engine="reference", observer=trace)
        assert cluster.drain()
        assert not path.exists()
    events = json.loads(path.read_text())
    rows = cluster.engine.requests

    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == names
    iterations = [e for e in events if e["ph"] == "X"]
    prompts = sum(e["args"]["prefill_tokens"] for e in iterations)
    assert prompts >= rows["prompt"].sum() and prompts == cluster.history.column("prompt_tokens").sum()
    for slot in range(2):
        spans = [(e["ts"], e["ts"] + e["dur"]) for e in iterations if e["pid"] == slot]
        assert all(a[1] <= b[0] + 1e-3 for a, b in itertools.pairwise(spans))
    kinds = Counter((e["ph"], e["name"]) for e in events if e.get("cat") == "request")
    preempted = int(rows["preemptions"].sum())
    assert preempted > 0, "the case is tight enough"
    assert kinds["b", "queued"] == kinds["e", "queued"] == len(rows) + preempted
    assert kinds["b", "running"] == kinds["e", "running"] == len(rows) + preempted
    assert kinds["n", "first token"] == len(rows)
    assert sum(e.get("cat") == "preemption" for e in events) == preempted
    power = [e["args"]["mean"] for e in events if e["name"] == "power (W)"]
    assert sum(power) == pytest.approx(cluster.history.column("energy_j").sum(), rel=1e-12)
    first = {e["id"]: e["ts"] for e in events if e["name"] == "first token"}
    assert [round(first[i] * 1e6) for i in range(len(rows))] == pytest.approx(rows["first_token_ps"].tolist(), abs=1)


def test_only_the_reference_engine_can_be_watched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reference"):
        Cluster(PLAN, _requests(), np.random.default_rng(0), observer=ChromeTrace(tmp_path / "t.json", []))


def test_a_run_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ChromeTrace(tmp_path / "trace.json", ["a"]):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
