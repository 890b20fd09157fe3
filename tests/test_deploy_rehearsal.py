"""The whole stack, as processes, under the openai client: nothing lost, budget kept, limits restored."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from llmcluster.deploy.rehearsal.live import SCENARIO
from llmcluster.deploy.rehearsal.rehearse import budget_kept, read_back, traffic
from llmcluster.deploy.rehearsal.stage import Stage
from llmcluster.envs.scenario import load_scenario
from llmcluster.simulator.units import PS_PER_S
from llmcluster.simulator.workload.table import RequestTable

CLI = (sys.executable, "-W", "error", "-m", "llmcluster.experiments.cli")
TDP_W = 8 * 700.0
MODEL = "Qwen3-32B"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Eight emulated H100 in four slots, decided on every two seconds."""
    scenario = tmp_path / "quick.toml"
    scenario.write_text(SCENARIO.read_text().replace("tick_s = 10", "tick_s = 2"))
    assert load_scenario(scenario).tick_s == 2
    return Stage(scenario, tmp_path, CLI)


def client(stage: Stage) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{stage.gateway_url}/v1", api_key="none", max_retries=0, timeout=120.0)


async def ask(api: openai.AsyncOpenAI, prompt: int, output: int, begins: Callable[[], object] = lambda: None) -> int:
    """Streams one answer; gives its tokens."""
    stream = await api.completions.create(
        model=MODEL,
        prompt=[1] * prompt,
        max_tokens=output,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    tokens = 0
    async for piece in stream:
        begins()
        if piece.usage is not None:
            tokens = piece.usage.completion_tokens
    return tokens


async def play(stage: Stage, requests: RequestTable) -> list[int | BaseException]:
    began_s = time.monotonic()

    async def one(api: openai.AsyncOpenAI, i: int) -> int:
        await asyncio.sleep(max(began_s + int(requests.arrival_ps[i]) / PS_PER_S - time.monotonic(), 0.0))
        return await ask(api, int(requests.prompt_tokens[i]), int(requests.output_tokens[i]))

    async with client(stage) as api:
        return await asyncio.gather(*(one(api, i) for i in range(len(requests))), return_exceptions=True)


@pytest.mark.parametrize(
    ("seconds", "longest"), [(5.0, 120), pytest.param(60.0, 100_000, marks=pytest.mark.slow)], ids=["quick", "long"]
)
def test_no_request_is_lost_the_budget_is_kept_and_kill_9_restores_limits(
    stage: Stage, seconds: float, longest: int
) -> None:
    falls_s = max(0.75 * seconds, 32.0)  # seen 30 s ahead, and so under traffic
    schedule = [[0.0, 0.8 * TDP_W], [falls_s, 0.8 * TDP_W], [falls_s, 0.5 * TDP_W]]
    stage.configure(limits={"budget_w": {"schedule": schedule}})
    requests = traffic(stage, seconds, seed=3)
    np.minimum(requests.output_tokens, longest, out=requests.output_tokens)
    with stage:
        found_w = stage.limits_w()
        stage.start_loop("uniform-cap", "--apply")
        answers = asyncio.run(play(stage, requests))
        assert answers == requests.output_tokens.tolist()
        stage.until(lambda: stage.lines("decision")[-1]["budget_w"] == 0.5 * TDP_W, "the lower budget")
        decisions = len(stage.lines("decision"))
        stage.until(lambda: len(stage.lines("decision")) > decisions, "one more decision")
        assert stage.lines("decision")[0]["budget_w"] == 0.8 * TDP_W

        held = budget_kept(stage)
        assert held.seconds >= seconds - 2
        assert held.over == 0
        assert held.highest_share > 0.3
        assert {line["by"] for line in stage.lines("decision")} == {"agent"}
        assert all(abs(line["requested_w"] - line["watts"]) < 1e-3 for line in stage.lines("write"))
        assert read_back(stage) < 1e-3
        assert sum(stage.limits_w()) <= 0.5 * TDP_W + 0.01
        metrics = stage.metrics()
        assert "llmcluster_apply 1.0" in metrics
        assert 'llmcluster_slot_cap_watts{slot="row0/rack0/server0/slot0"}' in metrics

        stage.kill("loop")
        assert stage.until(lambda: stage.limits_w() == found_w, "limits to be restored") < 2.0
        assert asyncio.run(one_more(stage)) == 7


async def one_more(stage: Stage) -> int:
    async with client(stage) as api:
        return await ask(api, 30, 7)


@pytest.mark.slow
def test_a_loop_that_ends_restores_and_a_dry_run_changes_nothing(stage: Stage) -> None:
    stage.configure(limits={"budget_w": 0.5 * TDP_W})
    with stage:
        found_w = stage.limits_w()
        stage.start_loop("uniform-cap")
        assert stage.lines("decision")[-1]["written"] == [0, 1, 2, 3]
        assert stage.limits_w() == found_w
        assert not stage.lines("write")
        assert stage.stop("loop") == 0
        stage.start_loop("uniform-cap", "--apply")
        stage.until(lambda: sum(stage.limits_w()) <= 0.5 * TDP_W, "caps")
        stage.processes["loop"].send_signal(signal.SIGINT)
        assert stage.stop("loop") == 0
        assert stage.limits_w() == found_w
        assert stage.lines("end")


@pytest.mark.slow
def test_a_disk_that_fills_up_restores_and_the_loop_lives_on(stage: Stage) -> None:
    stage.configure(limits={"budget_w": 0.5 * TDP_W})
    with stage:
        found_w = stage.limits_w()
        stage.start_loop("uniform-cap", "--apply")
        stage.until(lambda: sum(stage.limits_w()) <= 0.5 * TDP_W + 0.01, "caps")
        loop = stage.processes["loop"]
        _, hard = resource.prlimit(loop.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(loop.pid, resource.RLIMIT_FSIZE, (0, hard))
        stage.until(lambda: stage.limits_w() == found_w, "limits to be restored")
        none = 'llmcluster_fallbacks_total{kind="audit"} 0.0'
        stage.until(lambda: none not in stage.metrics(), "the fallback to be counted")
        resource.prlimit(loop.pid, resource.RLIMIT_FSIZE, (hard, hard))
        stage.until(lambda: sum(stage.limits_w()) <= 0.5 * TDP_W + 0.01, "caps again")
        assert loop.poll() is None
        assert stage.stop("loop") == 0


def test_when_a_backend_dies_only_what_has_begun_there_fails(stage: Stage) -> None:
    with stage:
        began, whole = asyncio.run(through_a_death(stage))
    cut = [answer for answer in (*began, *whole) if isinstance(answer, BaseException)]
    assert 1 <= len(cut) <= 3, "requests of the server that died"
    assert all(isinstance(fault, openai.APIError) for fault in cut), cut
    assert len(whole) == 12
    assert not [answer for answer in whole if isinstance(answer, BaseException)], "unstarted ones go elsewhere"
    assert set(whole) == {40}


async def through_a_death(stage: Stage) -> tuple[list[Any], list[Any]]:
    """Eight long answers under way, then a server dies, and at once twelve more are asked for."""
    async with client(stage) as api:
        pieces: Counter[int] = Counter()
        begun = [asyncio.create_task(ask(api, 50, 400, partial(pieces.update, [i]))) for i in range(8)]
        while len(pieces) < 8:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(stage.servers.kill, stage.machine.slots[1])
        whole = await asyncio.gather(*(ask(api, 50, 40) for _ in range(12)), return_exceptions=True)
        return list(await asyncio.gather(*begun, return_exceptions=True)), whole


@pytest.mark.slow
def test_the_verb_rehearses_and_reports(call: Callable[..., Any]) -> None:
    code, out, err = call("deploy", "rehearse", "--duration", "15", "--json", "-")
    assert code == 0, err
    report = json.loads(out)
    assert report["passed"]
    assert report["requests_sent"] > 20
    assert report["requests_lost"] == report["seconds_over_budget"] == 0
    assert report["limits_written"] > 0
