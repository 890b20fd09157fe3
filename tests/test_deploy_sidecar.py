"""An agent asked over HTTP decides as it does in the environment."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from starlette.types import ASGIApp

from llmcluster.agents.base import Task
from llmcluster.agents.registry import make_agent
from llmcluster.deploy.gateway.config import LimitSpec, TimeoutSpec
from llmcluster.deploy.gateway.server import serve_app
from llmcluster.deploy.policy import FIELDS, Policy
from llmcluster.deploy.sidecar import SidecarConfig, make_sidecar
from llmcluster.envs.cluster_env import LLMClusterEnv
from llmcluster.envs.scenario import load_scenario
from llmcluster.envs.telemetry import Telemetry
from llmcluster.errors import InputError
from llmcluster.tests.backends import CLIENT, bearer, call, until
from llmcluster.tests.conftest import Tiny

OBSERVED = {
    "power_w": [[300.0, 200.0], [310.0, 190.0]],
    "temperature_c": [50.0, 45.0],
    "status": [2, 2],
    "model": [0, 0],
    "running": [3, 0],
    "waiting": [0, 0],
    "kv_used": [0.1, 0.0],
    "prompt_tokens_per_s": [1000.0, 0.0],
    "output_tokens_per_s": [100.0, 0.0],
    "arrivals_per_s": 2.0,
    "arriving_tokens_per_s": 900.0,
}


def plain(telemetry: Telemetry) -> dict[str, Any]:
    """Telemetry as JSON has it; what is not read is left out."""
    values = {field.name: getattr(telemetry, field.name) for field in fields(telemetry)}
    given = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
    given["braked"] = None if given["braked"] is None else [int(braked) for braked in given["braked"]]
    return {name: value for name, value in given.items() if value is not None}


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> str:
    path = tmp_path_factory.mktemp("scenarios") / "tiny.toml"
    path.write_text(tomli_w.dumps(tiny()))
    return str(path)


def serve_sidecar(app: ASGIApp) -> Any:
    return serve_app(app, "127.0.0.1", 0, LimitSpec(), TimeoutSpec(drain_s=0.5))


@pytest.fixture(scope="module")
def url(tiny_file: str) -> Iterator[str]:
    with serve_sidecar(make_sidecar(SidecarConfig(agent="follow-load", scenario=tiny_file))) as serving:
        yield serving.url


@pytest.mark.parametrize("agent", ["follow-load", "safe:proportional-cap"])
@pytest.mark.parametrize("scenario", ["default", "heat-wave", "oversubscribed-row", "tiny", "everything"])
def test_it_decides_as_in_the_environment(scenario: str, agent: str, tiny: Tiny, everything: dict[str, Any]) -> None:
    loaded = load_scenario({"tiny": tiny(), "everything": everything}.get(scenario, scenario))
    env = LLMClusterEnv(loaded, forecaster="persistence")
    seen, told = Policy(agent, loaded), Policy(agent, loaded)
    inside = make_agent(agent, Task.of(env))
    observation, _ = env.reset(seed=3)
    for tick in range(6):
        start = np.array([tick == 0])
        mask = env.action_masks()
        action, _ = inside.predict(observation, None, start, True, mask)
        forecast = env.perception.forecast(env.plant, env.telemetry) if tick else np.zeros((len(env.fleet) + 1, 4, 3))  # type: ignore[arg-type]
        by_telemetry = told.decide({"telemetry": plain(env.telemetry), "forecast_w": forecast.tolist()})
        raw = {name: values.tolist() for name, values in observation.items()}
        by_observation = seen.decide({"observation": raw, "action_mask": mask.tolist()})
        assert by_telemetry["encoded"] == by_observation["encoded"] == action.tolist()
        decoded = env.codec.decode(action)
        assert by_telemetry["action"]["router"] == decoded.router
        assert by_telemetry["action"]["cap_w"] == (None if decoded.cap_w is None else decoded.cap_w.tolist())
        observation, *_ = env.step(action)


def test_every_reading_of_the_telemetry_can_be_given() -> None:
    assert list(FIELDS) == [field.name for field in fields(Telemetry)]


def test_it_answers_over_http(url: str) -> None:
    status, _, spaces = call(url, "/spaces")
    assert (status, spaces["agent"], len(spaces["slots"])) == (200, "follow-load", 2)
    assert spaces["telemetry"]["power_w"] == {"unit": "W, each second of the tick", "shape": ["n", 2], "needed": True}
    assert {name for name, about in spaces["telemetry"].items() if about["needed"]} == OBSERVED.keys()
    status, _, answer = call(url, "/decide", {"telemetry": OBSERVED})
    assert status == 200
    assert len(answer["encoded"]) == len(spaces["action"]["heads"])
    assert answer["action"]["router"] in spaces["action"]["routers"]
    assert all(
        low <= cap <= high
        for low, cap, high in zip(spaces["cap_min_w"], answer["action"]["cap_w"], spaces["cap_max_w"], strict=True)
    )
    assert call(url, "/health")[0] == 200


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"power_w": [1.0]}, "power_w: has shape [1, 1]"),
        ({"power_w": []}, "power_w"),
        ({"power_w": [[1.0, 2.0], [3.0]]}, "no array of numbers"),
        ({"power_w": [["a", "b"]]}, "finite numbers"),
        ({"power_w": [[1e999, 1.0]]}, "finite numbers"),
        ({"power_w": [[-1.0, 1.0]]}, "cannot be"),
        ({"status": [2.5, 2]}, "integers from 0 to 6"),
        ({"status": [7, 2]}, "integers from 0 to 6"),
        ({"status": [True, True]}, "finite numbers"),
        ({"model": [1, 0]}, "from 0 to 0"),
        ({"pending_model": -3}, "from -2 to 0"),
        ({"kv_used": [10**400, 0]}, "finite numbers"),
        ({"temperature_c": None}, "lacks temperature_c"),
        ({"what": 1}, "has no 'what'"),
    ],
)
def test_telemetry_that_cannot_be_is_refused(url: str, change: dict[str, Any], problem: str) -> None:
    status, _, body = call(url, "/decide", {"telemetry": {**OBSERVED, **change}})
    assert (status, body["error"]["code"]) == (400, "invalid_observation")
    assert problem in body["error"]["message"]


def test_what_else_does_not_hold_is_refused(url: str) -> None:
    lengths = call(url, "/spaces")[2]["observation"]["length"]
    heads = call(url, "/spaces")[2]["action"]["heads"]
    zeros = {name: [0.0] * length for name, length in lengths.items()}
    assert call(url, "/decide", {"observation": zeros})[0] == 200
    assert call(url, "/decide", {"observation": zeros, "action_mask": [True] * sum(heads), "start": True})[0] == 200
    for content, problem in (
        ({}, "both or neither"),
        ({"telemetry": OBSERVED, "observation": zeros}, "both or neither"),
        ({"observation": zeros, "more": 1}, "['more']"),
        ({"observation": {"slots": []}}, "other parts"),
        ({"observation": {**zeros, "cluster": [0.0]}}, "has 1 values"),
        ({"observation": {**zeros, "cluster": [11.0] * lengths["cluster"]}}, "beyond 10"),
        ({"observation": zeros, "action_mask": [1] * sum(heads)}, "no such list"),
        ({"observation": zeros, "action_mask": [False] * sum(heads)}, "without an open option"),
        ({"observation": zeros, "start": 1}, "neither true nor false"),
        ({"telemetry": OBSERVED, "forecast_w": [1.0]}, "has shape [1]"),
        ({"telemetry": {"power_w": [1.0, 2.0]}}, "lacks arrivals_per_s"),
        ({"telemetry": 3}, "is no object"),
    ):
        status, _, body = call(url, "/decide", content)
        assert (status, body["error"]["code"]) == (400, "invalid_observation")
        assert problem in body["error"]["message"]
    for raw, status in ((b"{", 400), (b"[]", 400), (b"x" * (4 * 2**20 + 1), 413)):
        assert call(url, "/decide", raw)[0] == status
    assert call(url, "/decide")[0] == 405
    assert call(url, "/other")[0] == 404


def test_it_asks_for_a_token(tiny_file: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(CLIENT)
    app = make_sidecar(SidecarConfig(agent="uniform-cap", scenario=tiny_file, tokens=tokens))
    with serve_sidecar(app) as serving:
        for path, content in (("/decide", {"telemetry": OBSERVED}), ("/spaces", None)):
            assert call(serving.url, path, content)[0] == 401
            assert call(serving.url, path, content, bearer("wrong"))[0] == 401
            assert call(serving.url, path, content, bearer(CLIENT))[0] == 200
    with pytest.raises(ValueError, match="open to others"):
        SidecarConfig(agent="uniform-cap", host="0.0.0.0")


def test_agents_that_know_the_future_are_refused() -> None:
    with pytest.raises(InputError, match="future"):
        Policy("clairvoyant", load_scenario("small"))


class Broken:
    """An agent that fails."""

    def predict(self, *_: Any) -> Any:
        raise ZeroDivisionError


def test_an_agent_that_fails_is_told_as_such(
    tiny_file: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llmcluster.deploy.policy.make_agent", lambda *_: Broken())
    with serve_sidecar(make_sidecar(SidecarConfig(agent="uniform-cap", scenario=tiny_file))) as serving:
        status, _, body = call(serving.url, "/decide", {"telemetry": OBSERVED})
    assert (status, body["error"]["code"]) == (503, "agent_failed")
    assert "ZeroDivisionError" in caplog.text


def test_a_decision_that_takes_too_long_is_not_waited_for(tiny_file: str) -> None:
    app = make_sidecar(SidecarConfig(agent="mpc", scenario=tiny_file, decide_s=0.001))
    with serve_sidecar(app) as serving:
        status, _, body = call(serving.url, "/decide", {"telemetry": OBSERVED})
        assert (status, body["error"]["code"]) == (504, "decision_timeout")


class Slow:
    """An agent that waits to be told."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def predict(self, *_: Any) -> Any:
        self.go.wait(10)
        raise RuntimeError


def test_decisions_do_not_pile_up(tiny_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr("llmcluster.deploy.policy.make_agent", lambda *_: slow)
    config = SidecarConfig(agent="uniform-cap", scenario=tiny_file, waiting=2, decide_s=20.0)
    answers: list[int] = []
    with serve_sidecar(make_sidecar(config)) as serving:

        def ask() -> None:
            answers.append(call(serving.url, "/decide", {"telemetry": OBSERVED})[0])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: answers == [429])
        slow.go.set()
        for thread in threads:
            thread.join(10)
    assert answers == [429, 503, 503]


def test_it_runs_as_a_process_of_its_own(tiny_file: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llmcluster.deploy.sidecar", "--agent", "uniform-cap", "--scenario", tiny_file]
    process = subprocess.Popen([*command, "--port", str(port)])

    def answers() -> bool:
        try:
            return call(f"http://127.0.0.1:{port}", "/health")[0] == 200
        except OSError:
            return False

    try:
        until(answers, 60)
        assert call(f"http://127.0.0.1:{port}", "/decide", {"telemetry": OBSERVED})[0] == 200
    finally:
        process.terminate()
        process.wait(30)
