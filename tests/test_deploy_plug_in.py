"""The examples for other control planes, against the real sidecar."""

import asyncio
import enum
import importlib
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import llmcluster
from llmcluster.deploy.gateway.config import LimitSpec, TimeoutSpec
from llmcluster.deploy.gateway.server import serve_app
from llmcluster.deploy.sidecar import SidecarConfig, make_sidecar
from llmcluster.tests.backends import CLIENT, until
from llmcluster.tests.conftest import Tiny

EXAMPLES = Path(llmcluster.__file__).parent / "docs" / "examples"
READ = {
    "DCGM_FI_DEV_POWER_USAGE": 300.0,
    "DCGM_FI_DEV_GPU_TEMP": 50.0,
    "num_requests_running": 4.0,
    "num_requests_waiting": 0.0,
    "kv_cache_usage": 0.2,
    "prompt_tokens_total": 900.0,
    "generation_tokens_total": 100.0,
    "request_success_total": 0.5,
    "up{": 2.0,
}


class Prometheus:
    """Prometheus' query API, over HTTP, with fixed readings."""

    def __init__(self) -> None:
        self.slots: list[str] = []

    async def query(self, request: Request) -> Response:
        query = request.query_params["query"]
        value = next(value for name, value in READ.items() if name in query)
        metrics = [{"slot": slot} for slot in self.slots] if "by (slot)" in query else [{}]
        result = [{"metric": metric, "value": [0, str(value)]} for metric in metrics]
        return JSONResponse({"status": "success", "data": {"resultType": "vector", "result": result}})


@pytest.fixture
def urls(tmp_path: Path, tiny: Tiny) -> Iterator[tuple[str, str, str]]:
    """Addresses of a sidecar, whose agent remembers nothing yet, and of Prometheus; the file with the token."""
    folder = tmp_path
    (folder / "tiny.toml").write_text(tomli_w.dumps(tiny()))
    (folder / "token").write_text(CLIENT + "\n")
    config = SidecarConfig(agent="follow-load", scenario=str(folder / "tiny.toml"), tokens=folder / "token")
    prometheus, timeouts = Prometheus(), TimeoutSpec(drain_s=0.5)
    app = Starlette(routes=[Route("/api/v1/query", prometheus.query)])
    with (
        serve_app(make_sidecar(config), "127.0.0.1", 0, LimitSpec(), timeouts) as sidecar,
        serve_app(app, "127.0.0.1", 0, LimitSpec(), timeouts) as metrics,
    ):
        client = importlib.import_module("llmcluster_client")
        prometheus.slots = client.Sidecar(sidecar.url, str(folder / "token")).spaces()["slots"]
        yield sidecar.url, metrics.url, str(folder / "token")


@pytest.fixture(scope="module", autouse=True)
def on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


class OverrideType(enum.IntEnum):
    SET = 0


class ComponentTarget(BaseModel, extra="forbid"):
    sub_component_type: str
    replicas: int | None = None
    type: OverrideType = OverrideType.SET


class OverrideResult(BaseModel, extra="forbid"):
    targets: list[ComponentTarget] = []
    reason: str = ""


class AcceptResult(BaseModel, extra="forbid"):
    pass


class ProposeStageResponse(BaseModel, extra="forbid"):
    accept: AcceptResult | None = None
    override: OverrideResult | None = None


@pytest.fixture
def dynamo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages of Dynamo's planner that the plugin uses, as its `plugins/types.py` has them."""
    for name in ("dynamo", "dynamo.planner", "dynamo.planner.plugins", "dynamo.planner.plugins.types"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for message in (OverrideType, ComponentTarget, OverrideResult, AcceptResult, ProposeStageResponse):
        setattr(sys.modules["dynamo.planner.plugins.types"], message.__name__, message)


def proposed(plugin: Any, num_req: float) -> Any:
    traffic = types.SimpleNamespace(duration_s=10.0, num_req=num_req, isl=1000.0)
    context = types.SimpleNamespace(observations=types.SimpleNamespace(traffic=traffic))
    return asyncio.run(plugin.Propose(types.SimpleNamespace(context=context)))


def test_the_plugin_for_dynamo_proposes_what_the_agent_lets_serve(urls: tuple[str, str, str], dynamo: None) -> None:
    example = importlib.import_module("dynamo_planner")
    sidecar, prometheus, token = urls
    replicas = []
    for num_req in (1.0, 10_000.0):
        answer = proposed(example.LlmclusterPropose(sidecar, prometheus, token), num_req)
        (target,) = answer.override.targets
        assert (target.sub_component_type, target.type) == ("decode", 0)
        replicas.append(target.replicas)
    assert replicas == [1, 2]


def test_the_plugin_for_dynamo_has_no_opinion_without_the_sidecar(urls: tuple[str, str, str], dynamo: None) -> None:
    example = importlib.import_module("dynamo_planner")
    _, prometheus, token = urls
    for sidecar, prometheus_url in (("http://127.0.0.1:9", prometheus), (urls[0], "http://127.0.0.1:9")):
        answer = proposed(example.LlmclusterPropose(sidecar, prometheus_url, token), 1.0)
        assert answer.override is None
        assert answer.accept is not None


def test_labels_say_the_weights_and_leave_no_cluster_without() -> None:
    example = importlib.import_module("llm_d_labels")
    assert example.labels(["a", "b"], [0.3, 0.9]) == {"a": "0.25", "b": "1"}
    assert example.labels(["a", "b"], [0.0, 0.1]) == {"a": "1", "b": "1"}
    assert example.labels(["a", "b"], [0.0, 0.5]) == {"a": "0", "b": "0.5"}
    assert example.labels(["a"], None) == {"a": "1"}


def test_the_picker_knows_every_label_that_is_written() -> None:
    example = importlib.import_module("llm_d_labels")
    text = (EXAMPLES / "llm-d-epp.yaml").read_text()
    assert text.count(f"label: {example.LABEL}\n") == text.count(f"key: {example.LABEL}\n") == 1
    weights = dict(re.findall(r'^ +"([\d.]+)": (\d+)$', text, re.MULTILINE))
    assert [level for level in example.LEVELS if level not in weights] == ["0"]
    shares = [float(level) / int(weight) for level, weight in weights.items()]
    assert shares == [shares[0]] * len(shares)
    names = re.findall(r"^ +name: (\S+)$|^  - type: (weighted-random-picker)$", text, re.MULTILINE)
    used = re.findall(r"pluginRef: (\S+)", text)
    assert set(used) <= {name or kind for name, kind in names}


def test_labels_are_written_and_taken_back(urls: tuple[str, str, str], tmp_path: Path) -> None:
    sidecar, prometheus, token = urls
    log = tmp_path / "log"
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    kubectl.chmod(0o755)
    command = [sys.executable, str(EXAMPLES / "llm_d_labels.py"), "--sidecar", sidecar, "--prometheus", prometheus]
    process = subprocess.Popen(
        [*command, "--token-file", token, "--namespace", "llm", "--apply"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}
    )
    try:
        until(lambda: log.exists() and len(log.read_text().splitlines()) >= 2, 30)
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    lines = log.read_text().splitlines()
    assert all(re.fullmatch(r"--namespace llm label pod \S+ --overwrite llmcluster-weight=[\d.]+", x) for x in lines)
    last = {line.split()[4]: line.rpartition("=")[2] for line in lines}
    assert set(last.values()) == {"1"}
    assert any(line.endswith("=0") for line in lines)  # follow-load needs one slot for so little traffic
