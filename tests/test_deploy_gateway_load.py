"""The gateway under load, as the bench measures it."""

import pytest

from llmcluster.deploy.gateway.load import Load, measure


def check(load: Load) -> None:
    result = measure(load)
    assert result["completed"] == load.streams
    assert result["gateway_cpu"] > 0
    for figures in ("direct_ms", "gateway_ms", "token_delay_ms"):
        assert 0 < result[figures]["p50"] <= result[figures]["p90"] <= result[figures]["p99"]
    assert result["gateway_ms"]["p50"] > result["direct_ms"]["p50"]


def test_the_load_test_counts_every_stream() -> None:
    check(Load(requests=20, streams=5, tokens_per_s=50.0, length_s=0.4))


@pytest.mark.slow
def test_a_thousand_streams_come_to_their_end() -> None:
    check(Load(requests=500, streams=1000, tokens_per_s=10.0, length_s=10.0))
