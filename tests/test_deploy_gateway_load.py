"""The gateway under load, as the bench measures it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcluster.deploy.gateway.load import Load, measure


def check(result: dict[str, Any]) -> None:
    assert result["completed"] == result["load"]["streams"]
    assert result["gateway_cpu"] > 0
    assert result["gateway_us_per_token"] > 0
    for figures in ("direct_ms", "gateway_ms", "token_delay_ms"):
        assert 0 < result[figures]["p50"] <= result[figures]["p90"] <= result[figures]["p99"]
    assert result["gateway_ms"]["p50"] > result["direct_ms"]["p50"]


def test_the_bench_counts_every_stream(call: Callable[..., tuple[int, str, str]]) -> None:
    size = ("--requests", 20, "--streams", 5, "--tokens-per-s", 50, "--length-s", 0.4)
    code, shown, _ = call("bench", "gateway", *size, "--json", "bench.json")
    assert code == 0
    assert "5 of 5 streams" in shown
    check(json.loads(Path("bench.json").read_text()))


@pytest.mark.slow
def test_a_thousand_streams_come_to_their_end() -> None:
    check(measure(Load(requests=500, streams=1000, tokens_per_s=10.0, length_s=10.0)))
