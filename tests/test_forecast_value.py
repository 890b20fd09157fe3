"""What a forecast is worth: a controller that scales by power, and the verb that compares forecasters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmcluster import InputError, LLMClusterEnv
from llmcluster.agents.base import Task, View
from llmcluster.agents.proactive import FollowPower, candidates
from llmcluster.envs.actions import SLEEP
from llmcluster.experiments.evaluate import evaluate
from llmcluster.experiments.forecast_value import value
from llmcluster.experiments.output import progress_bar

Tiny = Callable[..., dict[str, Any]]


def shown(env: LLMClusterEnv, power_w: list[float], mean_30s_w: list[float]) -> View:
    """An observation of two serving slots, of this power and forecast."""
    observation, _ = env.reset(seed=0)
    names = [f.name for f in env.observations.slot_features]
    slots = observation["slots"].reshape(2, -1)
    slots[:, names.index("power")] = np.array(power_w) / env.fleet.cap_max_w
    forecast = observation["forecast"].reshape(3, -1)
    scale_w = np.append(env.fleet.cap_max_w, env.fleet.cap_max_w.sum())
    of = env.observations.forecast_features.index("mean_30s_q0.5")
    forecast[:, of] = np.append(mean_30s_w, sum(mean_30s_w)) / scale_w
    return View(observation, env.observations)


def test_it_scales_by_the_forecast_and_without_one_by_power(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(), forecaster="none")
    agent = FollowPower(Task.of(env), share=0.9)
    idle, full = agent._idle_w, agent._full_w

    def serving(power_w: Any, forecast_w: Any) -> int:
        agent.forget(0)
        lifecycle = agent.decide(shown(env, list(power_w), list(forecast_w))).lifecycle
        assert lifecycle is not None
        return int((lifecycle != SLEEP).sum())

    low, high, none = idle + 0.1 * (full - idle), full, np.zeros(2)
    assert serving(low, none) == 1 and serving(high, none) == 2
    assert serving(low, high) == 2, "the load is coming"
    assert serving(high, low) == 1, "the load is going"


def test_it_waits_before_it_lets_a_slot_sleep(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(), forecaster="none")
    agent = FollowPower(Task.of(env), share=0.9, patience=2)
    idle, full = agent._idle_w, agent._full_w
    expected = [agent.expected_requests_per_s(shown(env, list(p), [0.0, 0.0])) for p in (full, idle, idle, idle)]
    assert expected[0] == expected[1] == expected[2] > expected[3] == pytest.approx(0.0, abs=1e-3)


def test_the_value_of_a_forecast_is_paired(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny())
    names = ("none", "persistence", "oracle")
    calls: list[int] = []
    found = value(env.scenario, "follow-power", names, 2, seed=1, tick=lambda: calls.append(1))
    rows = found["results"]
    assert list(rows) == list(names) and found["reference"] == "none"
    assert [row["clairvoyant"] for row in rows.values()] == [False, False, True]
    assert rows["none"]["difference"] == [0.0, 0.0, 0.0]
    for row in rows.values():
        assert row["chosen"] in candidates(Task.of(env))
        assert row["difference"][0] == pytest.approx(row["reward"][0] - rows["none"]["reward"][0])
        assert sum(row["terms"].values()) == pytest.approx(row["reward"][0])
    assert len(calls) == 3 * (2 + 12 * 6 + 3 * 24)


def test_who_does_not_look_at_the_forecast_gains_nothing(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny())
    rows = value(env.scenario, "least-outstanding", ("none", "oracle"), 2, seed=0)["results"]
    assert rows["oracle"]["difference"] == [0.0, 0.0, 0.0] and rows["oracle"]["chosen"] == ""


def test_an_evaluation_marks_those_who_see_the_oracle(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(forecaster="oracle"))
    with progress_bar() as progress:
        found, _ = evaluate(env.scenario, ["least-outstanding"], 1, 0, progress)
    assert found.clairvoyant == {"least-outstanding"}


def test_the_verb(call: Callable[..., Any]) -> None:
    code, out, err = call(
        "forecast", "value", "--scenario", "small", "--agent", "round-robin", "--episodes", 2,
        "--forecasters", "none,oracle", "--json", "-",
    )  # fmt: skip
    assert code == 0
    result = json.loads(out)
    assert result["agent"] == "round-robin" and result["results"]["oracle"]["difference"] == [0.0, 0.0, 0.0]
    assert "oracle †" in err and "does not compete" in err


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (("--forecasters", "none"), "Name two or more"),
        (("--forecasters", "none,none"), "each once"),
        (("--forecasters", "none,tarot"), "'tarot' is unknown"),
        (("--agent", "nobody"), "agent 'nobody'"),
    ],
)
def test_bad_arguments_are_refused(call: Callable[..., Any], given: tuple[str, ...], fault: str) -> None:
    code, _, err = call("forecast", "value", "--scenario", "small", *given)
    assert code == 2 and fault in err


def test_bad_arguments_are_refused_by_the_function(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="each once"):
        value(LLMClusterEnv(tiny()).scenario, "follow-power", ("oracle",), 1, 0)
