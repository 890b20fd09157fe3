"""Asks llmcluster's sidecar, with readings out of Prometheus. Needs nothing but Python; copy it beside what uses it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

VLLM_AND_DCGM = {
    "status": '2 * max by (slot) (up{job="vllm"})',
    "power_w": "sum by (slot) (DCGM_FI_DEV_POWER_USAGE)",
    "temperature_c": "max by (slot) (DCGM_FI_DEV_GPU_TEMP)",
    "running": "sum by (slot) (vllm:num_requests_running)",
    "waiting": "sum by (slot) (vllm:num_requests_waiting)",
    "kv_used": "max by (slot) (vllm:kv_cache_usage_perc)",
    "prompt_tokens_per_s": "sum by (slot) (rate(vllm:prompt_tokens_total[30s]))",
    "output_tokens_per_s": "sum by (slot) (rate(vllm:generation_tokens_total[30s]))",
    "arrivals_per_s": "sum(rate(vllm:request_success_total[30s]))",
    "arriving_tokens_per_s": "sum(rate(vllm:prompt_tokens_total[30s]))",
}
"""PromQL for each reading: of slots by the label `slot`, which relabelling has to set, or of all together."""


class Sidecar:
    """The sidecar.

    Args:
        url: Where it is.
        token_file: File with a token that it takes.
        timeout_s: How long to wait for an answer, seconds.
    """

    def __init__(self, url: str, token_file: str | None = None, timeout_s: float = 4.0) -> None:
        self._url, self._timeout_s = url.rstrip("/"), timeout_s
        self._headers = {"Content-Type": "application/json"}
        if token_file is not None:
            self._headers["Authorization"] = f"Bearer {Path(token_file).read_text().strip()}"

    def spaces(self) -> dict[str, Any]:
        """Names of slots and models, and what is needed."""
        return self._call("/spaces", None)

    def decide(self, telemetry: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the action."""
        action: dict[str, Any] = self._call("/decide", json.dumps({"telemetry": telemetry}).encode())["action"]
        return action

    def _call(self, path: str, body: bytes | None) -> dict[str, Any]:
        return _read(Request(self._url + path, body, self._headers), self._timeout_s)


def readings(prometheus: str, queries: Mapping[str, str], slots: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """What Prometheus tells now: a list by slot, or a number where the series bear no label `slot`.

    A slot without a series reads 0; what has no series at all is left out, and the sidecar says so if it needs it.
    """
    told: dict[str, Any] = {}
    for name, query in queries.items():
        address = f"{prometheus.rstrip('/')}/api/v1/query?{urlencode({'query': query})}"
        series = _read(Request(address), timeout_s)["data"]["result"]
        values = {one["metric"].get("slot"): float(one["value"][1]) for one in series}
        if None in values:
            told[name] = values[None]
        elif values:
            told[name] = [values.get(slot, 0.0) for slot in slots]
    return told


def _read(request: Request, timeout_s: float) -> dict[str, Any]:
    with urlopen(request, timeout=timeout_s) as response:
        content: dict[str, Any] = json.load(response)
        return content
