"""The safety layer: what it changes, what it leaves alone, and what it counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster import InputError, LLMClusterEnv, load_scenario
from llmcluster.agents.base import Task, View
from llmcluster.agents.learned import network_spec, save_agent
from llmcluster.agents.limits import beside_w, known_limits, lead_until_next, uncappable, unheld_w
from llmcluster.agents.network import Actor
from llmcluster.agents.registry import candidates_of, make_agent
from llmcluster.agents.safety import BUDGET, LAST_SLOT, MASK, PLACE, REASONS, ROUTE, SHED, Safe
from llmcluster.agents.static import Constant, all_on, only
from llmcluster.envs.actions import KEEP, NOWHERE, OFF, SERVE, SLEEP, ClusterAction
from llmcluster.experiments.rollout import play
from llmcluster.experiments.tune import tuned

Tiny = Callable[..., dict[str, Any]]


def layer(env: LLMClusterEnv, action: ClusterAction | None = None) -> Safe:
    task = Task.of(env)
    return Safe(Constant(task, action or all_on(task, "least-outstanding")), task)


def view_of(env: LLMClusterEnv, budget: float | None = None) -> View:
    observation, _ = env.reset(seed=0)
    names = [f.name for f in env.observations.cluster_features]
    for lead in (0, 30, 60) if budget is not None else ():
        observation["cluster"][names.index(f"budget_in_{lead}s")] = budget
    return View(observation, env.observations)


def test_what_is_safe_is_left_as_it_is() -> None:
    env = LLMClusterEnv("default")
    safe = layer(env)
    observation, info = env.reset(seed=0)
    given, _ = safe.agent.predict(observation)
    made, _ = safe.predict(observation, action_masks=info["action_mask"])
    assert made is not given and (made == given).all()
    assert not safe.interventions


@pytest.mark.parametrize("target", [SLEEP, OFF])
def test_the_last_slot_goes_on_serving(tiny: Tiny, target: int) -> None:
    env = LLMClusterEnv(tiny(budget={"levels": [1.0]}))
    action, reasons = layer(env).project(view_of(env), ClusterAction(lifecycle=np.array([target, target])))
    assert reasons == [LAST_SLOT]
    assert sorted(action.lifecycle.tolist()) == sorted([SERVE, target])
    one = ClusterAction(lifecycle=np.array([target, KEEP]))
    assert layer(env).project(view_of(env), one) == (one, [])


def test_the_last_slot_of_each_model_goes_on_serving() -> None:
    env = LLMClusterEnv("carbon-price")
    everything = ClusterAction(lifecycle=np.full(len(env.fleet), SLEEP))
    action, _ = layer(env).project(view_of(env), everything)
    models = [slot.spec.model for slot in env.blueprint.slots]
    serving = [env.fleet.models[t - SERVE] for t in action.lifecycle if t >= SERVE]
    assert sorted(serving) == sorted(set(models))


def test_a_model_that_is_served_is_routed_to(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(budget={"levels": [1.0]}))
    nowhere = ClusterAction(route_weight=np.array([0.0, 1.0]), lifecycle=np.array([SERVE, SLEEP]))
    action, reasons = layer(env).project(view_of(env), nowhere)
    assert reasons == [ROUTE]
    assert action.route_weight.tolist() == [1.0, 1.0]


def test_nothing_is_placed_where_there_is_no_room() -> None:
    env = LLMClusterEnv("placement", encoding="box")
    observation, _ = env.reset(seed=0)
    for _ in range(env.scenario.ticks):
        if env.telemetry.pending_instances:
            break
        observation = env.step(env.codec.encode(ClusterAction()))[0]
    view = View(observation, env.observations)
    taken, free = (layer(env).project(view, ClusterAction(place=slot)) for slot in (0, 3))
    assert (taken[0].place, taken[1]) == (NOWHERE, [PLACE])
    assert (free[0].place, free[1]) == (3, [])


def test_closed_options_give_way_to_the_nearest_open_one() -> None:
    env = LLMClusterEnv("placement")
    observation, info = env.reset(seed=0)
    sizes = env.codec.layout.sizes
    wrong = env.codec.encode(all_on(Task.of(env), "least-outstanding"))
    wrong[-1] = 1  # puts an instance on the first slot, though none waits
    safe = layer(env)
    safe.agent = Repeat(wrong)
    made, _ = safe.predict(observation, action_masks=info["action_mask"])
    offset = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    assert info["action_mask"][offset + made].all() and not info["action_mask"][offset + wrong].all()
    assert (made[:-1] == wrong[:-1]).all()
    assert safe.interventions == {MASK: 1}


class Repeat:
    """An agent that knows nothing but one encoded action."""

    def __init__(self, action: np.ndarray) -> None:
        self.action = action

    def predict(self, observation: Any, state: Any = None, *_: Any) -> tuple[np.ndarray, Any]:
        batch = observation["cluster"].ndim == 2
        return (np.stack([self.action] * len(observation["cluster"])) if batch else self.action), state


@pytest.mark.parametrize("scenario", ["default", "saas-iaas", "oversubscribed-row", "power-feed-failure"])
@settings(max_examples=25)
@given(data=st.data())
def test_safe_actions_hold_every_limit_that_is_known(scenario: str, data: st.DataObject) -> None:
    """Whatever is asked for; where it cannot be held, everything but the last slots is off and caps are lowest."""
    env = ENVS.setdefault(scenario, LLMClusterEnv(scenario))
    view = view_of(env, data.draw(st.floats(0.05, 1.0), label="budget"))
    size = len(env.fleet)
    targets = data.draw(st.lists(st.sampled_from([KEEP, SLEEP, OFF, SERVE]), min_size=size, max_size=size))
    shares = np.array(data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))) / 4
    cap_w = env.fleet.cap_min_w + shares * (env.fleet.cap_max_w - env.fleet.cap_min_w)
    asked = ClusterAction(route_weight=np.ones(size), cap_w=cap_w, lifecycle=np.array(targets))
    task, safe = Task.of(env), layer(env)
    action, reasons = safe.project(view, asked)
    assert set(reasons) <= set(REASONS)
    assert safe.project(view, action)[0] is action or reasons, "what is safe stays"
    assert (action.cap_w <= cap_w + 1e-6).all()
    stays = view.slot("is_serving") + view.slot("is_loading") > 0
    on = (stays | (action.lifecycle >= SERVE)) & ~uncappable(task, view)
    draws_w = np.where(on, np.maximum(action.cap_w, unheld_w(view)), beside_w(task, view, on))
    for limit in known_limits(task, view, lead_until_next(task)):
        held = draws_w[limit.slots].sum() <= limit.watts + 0.1
        lowest = (action.cap_w[on & limit.slots] == env.fleet.cap_min_w[on & limit.slots]).all()
        assert held or lowest


ENVS: dict[str, LLMClusterEnv] = {}


def test_slots_are_shed_only_where_the_lowest_caps_are_too_much() -> None:
    env = LLMClusterEnv("default")
    asked = all_on(Task.of(env), "least-outstanding")
    mild, harsh = (layer(env).project(view_of(env, budget), asked) for budget in (0.5, 0.2))
    assert mild[1] == [BUDGET] and (mild[0].lifecycle == SERVE).all()
    assert harsh[1] == [SHED, BUDGET]
    kept = harsh[0].lifecycle == SERVE
    assert 1 <= kept.sum() < len(env.fleet)
    assert env.fleet.cap_min_w[kept].sum() <= 0.2 * env.fleet.cap_max_w.sum()


def test_a_run_in_the_layer_keeps_the_budget_and_counts_what_it_took() -> None:
    env = LLMClusterEnv("power-budget")
    task = Task.of(env)
    free = play(env, make_agent("least-outstanding", task), "free", 1)
    safe = play(env, make_agent("safe:least-outstanding", task), "safe", 1)
    assert safe.summary.over_budget_j < 0.01 * free.summary.over_budget_j
    assert not free.interventions
    assert set(safe.interventions) <= {BUDGET, SHED}
    assert 0 < safe.interventions[BUDGET] <= env.scenario.ticks
    again = play(env, make_agent("safe:uniform-cap", task), "uniform", 1)
    assert again.interventions.get(BUDGET, 0) == 0, "it was within the budget anyway"


def test_counts_begin_anew_with_each_episode() -> None:
    env = LLMClusterEnv(load_scenario("default").model_copy(update={"horizon_s": 600}))
    agent = make_agent("safe:least-outstanding", Task.of(env))
    first, second = (play(env, agent, "safe", 1).interventions for _ in range(2))
    assert first == second


def test_learned_agents_can_be_made_safe(tmp_path: Path) -> None:
    content = load_scenario("default").model_dump()
    env = LLMClusterEnv({**content, "horizon_s": 120, "budget": {"levels": [0.5]}})
    torch.manual_seed(0)
    save_agent(tmp_path / "agent", Actor(network_spec(env, 8)), {"algo": "none"})
    agent = make_agent(f"safe:{tmp_path / 'agent'}", Task.of(env))
    episode = play(env, agent, "learned", 1)
    assert episode.interventions.get(BUDGET, 0) > 0, "a fresh network leaves caps at the top"
    assert (
        episode.summary.over_budget_s
        < play(env, make_agent(str(tmp_path / "agent"), Task.of(env)), "", 1).summary.over_budget_s
    )


def test_rows_of_a_batch_are_made_safe_one_by_one() -> None:
    env = LLMClusterEnv("default")
    observation, info = env.reset(seed=0)
    low = {**observation, "cluster": observation["cluster"].copy()}
    names = [f.name for f in env.observations.cluster_features]
    low["cluster"][names.index("budget_in_0s")] = 0.5
    both = {key: np.stack([observation[key], low[key]]) for key in observation}
    masks = np.stack([info["action_mask"]] * 2)
    batched, _ = layer(env).predict(both, action_masks=masks)
    singles = [layer(env).predict(one, action_masks=info["action_mask"])[0] for one in (observation, low)]
    assert (batched == np.stack(singles)).all()
    assert (batched[0] != batched[1]).any()


def test_the_layer_is_clairvoyant_with_its_agent_and_tunes_with_it() -> None:
    task = Task.of(LLMClusterEnv("small"))
    assert make_agent("safe:clairvoyant", task).clairvoyant
    assert not make_agent("safe:follow-load", task).clairvoyant
    found = candidates_of("safe:follow-load", task)
    assert found is not None and all(isinstance(agent, Safe) for agent in found.values())
    assert candidates_of("safe:round-robin", task) is None
    two = dict(list(found.items())[:2])
    assert tuned(LLMClusterEnv("small"), two, 0)[0] in two


def test_names_in_the_layer_are_checked() -> None:
    task = Task.of(LLMClusterEnv("small"))
    with pytest.raises(InputError, match="agent 'robin'"):
        make_agent("safe:robin", task)


def test_sleeping_everything_by_only_is_made_safe(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny())
    task = Task.of(env)
    off = Constant(task, only(task, np.zeros(2, bool), 1.0, "round-robin"))
    asleep, safe = play(env, off, "off", 1), play(env, Safe(off, task), "safe", 1)
    assert safe.summary.requests_completed > asleep.summary.requests_completed
    assert {LAST_SLOT, ROUTE} <= set(safe.interventions)
