"""Known limits, caps dealt out under them, and the agents that share a budget; the routers that an action may name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster import InputError, LLMClusterEnv, load_scenario
from llmcluster.agents.base import Task, View
from llmcluster.agents.learned import network_spec
from llmcluster.agents.limits import Limit, beside_w, deal, known_limits, lead_until_next, uncappable, unheld_w
from llmcluster.agents.network import Actor
from llmcluster.agents.registry import make_agent, scenario_for
from llmcluster.agents.static import Constant, only
from llmcluster.envs.actions import ALL_ROUTERS, ROUTERS, ClusterAction
from llmcluster.envs.codec import ActionCodec
from llmcluster.experiments.rollout import play
from llmcluster.simulator.kernels.state import C_ROUTER, EXTERNAL, ROUTER_NAMES

Tiny = Callable[..., dict[str, Any]]
DEFAULT = LLMClusterEnv("default")
SIZE = len(DEFAULT.fleet)
WATTS = st.lists(st.floats(0, 800), min_size=SIZE, max_size=SIZE)
FLAGS = st.lists(st.booleans(), min_size=SIZE, max_size=SIZE)


def seen(env: LLMClusterEnv, ticks: int = 3, seed: int = 0, action: ClusterAction | None = None) -> View:
    """What is observed after some ticks."""
    observation, _ = env.reset(seed=seed)
    for _ in range(ticks):
        keep = env.codec.encode(action or ClusterAction())
        observation = env.step(keep)[0]
    return View(observation, env.observations)


def share_of(env: LLMClusterEnv, name: str, **features: float) -> ClusterAction:
    """What an agent does when some features of the cluster read like this."""
    observation, _ = env.reset(seed=0)
    names = [f.name for f in env.observations.cluster_features]
    for feature, value in features.items():
        observation["cluster"][names.index(feature)] = value
    return env.codec.decode(make_agent(name, Task.of(env)).predict(observation)[0])


def test_every_router_of_the_simulator_can_be_listed() -> None:
    assert ROUTER_NAMES[:EXTERNAL] == ALL_ROUTERS
    assert LLMClusterEnv("default").codec.routers == ROUTERS == ALL_ROUTERS[:2], "trained agents rely on these"


@pytest.mark.parametrize("encoding", ["discrete", "box"])
def test_listed_routers_reach_the_engine(tiny: Tiny, encoding: str) -> None:
    env = LLMClusterEnv(tiny(actions={"routers": list(ALL_ROUTERS)}), encoding=encoding)
    env.reset(seed=0)
    for number, router in enumerate(ALL_ROUTERS):
        env.step(env.codec.encode(ClusterAction(router=router, route_weight=np.ones(2))))
        assert env.plant is not None
        assert env.plant.cluster.engine.cursor[C_ROUTER] == number


@pytest.mark.parametrize(
    ("routers", "stand_in"),
    [(["round-robin", "least-outstanding"], "least-outstanding"), (["round-robin"], "round-robin")],
)
def test_routers_that_are_not_listed_have_a_stand_in(routers: list[str], stand_in: str) -> None:
    codec = ActionCodec(DEFAULT.fleet, ("route",), routers=tuple(routers))
    assert codec.decode(codec.encode(ClusterAction(router="power-of-two"))).router == stand_in


@pytest.mark.parametrize("routers", [[], ["round-robin", "round-robin"], ["dice"]])
def test_lists_of_routers_that_do_not_hold_are_refused(tiny: Tiny, routers: list[str]) -> None:
    with pytest.raises(InputError, match=r"actions\.routers|routers"):
        load_scenario(tiny(actions={"routers": routers}))


def test_an_agent_named_after_a_router_gets_it() -> None:
    scenario = scenario_for("safe:power-of-two", load_scenario("small"))
    assert scenario.actions.routers == (*ROUTERS, "power-of-two")
    assert scenario_for("follow-load", load_scenario("small")) == load_scenario("small")
    assert share_of(LLMClusterEnv(scenario), "power-of-two").router == "power-of-two"
    assert share_of(LLMClusterEnv("small"), "power-of-two").router == "least-outstanding"


def test_power_of_two_routes_otherwise_than_least_outstanding() -> None:
    env = LLMClusterEnv(scenario_for("power-of-two", load_scenario("default")).model_copy(update={"horizon_s": 300}))
    two, least, turns = (
        play(env, make_agent(name, Task.of(env)), name, 1).summary
        for name in ("power-of-two", "least-outstanding", "round-robin")
    )
    assert two.ttft_s != least.ttft_s
    assert two.ttft_s != turns.ttft_s


def test_networks_have_an_option_for_every_router(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(actions={"routers": list(ALL_ROUTERS)}))
    spec = network_spec(env, 8)
    head = Actor(spec).cluster_heads["router"]
    assert head.bias.argmax() == ALL_ROUTERS.index("least-outstanding")
    assert len(head.bias) == 4


@given(FLAGS, WATTS, WATTS, st.floats(0, 4000), st.floats(0, 1500), st.booleans())
def test_dealt_caps_keep_every_limit(
    on: list[bool], want: list[float], least: list[float], site_w: float, row_w: float, beyond: bool
) -> None:
    """Unless the lowest caps exceed it already; and no cap could be raised, where wishes are open."""
    task, fleet = Task.of(DEFAULT), DEFAULT.fleet
    chosen, want_w, least_w = np.array(on), np.array(want), np.array(least)
    row = np.arange(SIZE) < 2
    limits = [Limit(np.ones(SIZE, bool), site_w), Limit(row, row_w)]
    beside = np.where(chosen, 0.0, 7.0)
    caps_w = deal(task, chosen, want_w, least_w, beside, limits, beyond=beyond)
    steps = (caps_w - fleet.cap_min_w) / (fleet.cap_max_w - fleet.cap_min_w) * (task.codec.steps - 1)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert (caps_w[~chosen] == fleet.cap_min_w[~chosen]).all()

    def draws(caps: np.ndarray) -> np.ndarray:
        return np.where(chosen, np.maximum(caps, least_w), beside)

    lowest = draws(fleet.cap_min_w)
    for limit in limits:
        assert draws(caps_w)[limit.slots].sum() <= max(limit.watts, lowest[limit.slots].sum()) + 0.05
    one_more = caps_w + (fleet.cap_max_w - fleet.cap_min_w) / (task.codec.steps - 1)
    for slot in np.flatnonzero(chosen & (one_more <= fleet.cap_max_w + 1e-6)):
        raised = np.where(np.arange(SIZE) == slot, one_more, caps_w)
        fits = all(draws(raised)[o.slots].sum() <= o.watts - 0.05 for o in limits if o.slots[slot])
        assert not fits or (not beyond and want_w[slot] <= caps_w[slot] + 0.05)


def test_caps_go_where_they_are_wanted() -> None:
    task, fleet = Task.of(DEFAULT), DEFAULT.fleet
    want_w = np.array([700.0, 200, 100, 100, 100, 100])
    budget_w = float(fleet.cap_min_w.sum()) + 400
    zeros = np.zeros(SIZE)
    caps_w = deal(task, np.ones(SIZE, bool), want_w, zeros, zeros, [Limit(np.ones(SIZE, bool), budget_w)])
    assert caps_w[0] - fleet.cap_min_w[0] >= 350 > caps_w[1] - fleet.cap_min_w[1]


def test_limits_are_those_of_the_site_and_of_its_rows() -> None:
    env = LLMClusterEnv("oversubscribed-row")
    site, *rows = known_limits(Task.of(env), seen(env), 60)
    tdp_w = env.fleet.cap_max_w
    assert site.watts == pytest.approx(tdp_w.sum(), rel=1e-5)
    assert [limit.watts for limit in rows] == pytest.approx([0.6 * tdp_w[:6].sum(), tdp_w[6:].sum()])
    assert [np.count_nonzero(limit.slots) for limit in rows] == [6, 4]


def test_a_cut_of_a_row_is_seen() -> None:
    content = load_scenario("oversubscribed-row").model_dump()
    cut = {"kind": "power-feed-failure", "row": 0, "at_s": 60.0, "duration_s": 900.0, "severity": 0.5}
    env = LLMClusterEnv({**content, "events": [cut], "horizon_s": 600})
    before, after = (known_limits(Task.of(env), seen(env, ticks), 0)[1].watts for ticks in (4, 20))
    own_w = 0.6 * float(env.fleet.cap_max_w[:6].sum())
    assert before == pytest.approx(own_w)
    assert after == pytest.approx(own_w / 2, rel=0.15)


def test_announced_limits_count_only_as_far_as_one_looks() -> None:
    env = LLMClusterEnv("default")
    observation, _ = env.reset(seed=0)
    names = [f.name for f in env.observations.cluster_features]
    for lead, share in ((0, 1.0), (30, 0.8), (60, 0.5)):
        observation["cluster"][names.index(f"budget_in_{lead}s")] = share
    view, tdp_w = View(observation, env.observations), float(env.fleet.cap_max_w.sum())
    found = [known_limits(Task.of(env), view, ahead)[0].watts / tdp_w for ahead in (0, 30, 60)]
    assert found == pytest.approx([1.0, 0.8, 0.5], rel=1e-5)
    assert lead_until_next(Task.of(env)) == 30


def test_tenants_cannot_be_capped_and_draw_what_is_metered() -> None:
    env = LLMClusterEnv("saas-iaas")
    agent = make_agent("least-outstanding", Task.of(env))
    observation, _ = env.reset(seed=0)
    for _ in range(12):
        observation = env.step(agent.predict(observation)[0])[0]
    view = View(observation, env.observations)
    foreign = uncappable(Task.of(env), view)
    assert (foreign == (env.telemetry.status == 6)).all() and foreign.any()
    draws_w = beside_w(Task.of(env), view, ~foreign)
    assert draws_w[foreign] == pytest.approx(view.slot("power")[foreign])
    assert not draws_w[~foreign].any()


def test_a_cap_that_does_not_hold_is_seen() -> None:
    env = LLMClusterEnv("default")
    low, high = (only(Task.of(env), np.ones(SIZE, bool), share, "round-robin") for share in (0.0, 1.0))
    unheld = unheld_w(seen(env, 20, seed=1, action=low))
    assert (unheld[2:] > env.fleet.cap_min_w[2:]).any(), "an A100 at its lowest clock draws more than its lowest cap"
    assert not unheld_w(seen(env, 20, seed=1, action=high)).any()


@pytest.mark.parametrize("name", ["proportional-cap", "forecast-cap"])
def test_caps_follow_the_budget(name: str) -> None:
    tdp_w = float(DEFAULT.fleet.cap_max_w.sum())
    for share in (0.5, 0.75, 1.0):
        ahead = {f"budget_in_{lead}s": share for lead in (0, 30, 60)}
        caps_w = share_of(LLMClusterEnv("default"), name, **ahead).cap_w
        assert caps_w is not None
        assert share * tdp_w - 125 <= caps_w.sum() <= share * tdp_w + 0.05


def test_only_the_forecast_cap_lowers_caps_before_the_budget_falls() -> None:
    ahead = {"budget_in_0s": 1.0, "budget_in_30s": 0.8, "budget_in_60s": 0.5}
    now, later = (share_of(DEFAULT, name, **ahead).cap_w.sum() for name in ("proportional-cap", "forecast-cap"))
    tdp_w = float(DEFAULT.fleet.cap_max_w.sum())
    assert now == pytest.approx(tdp_w)
    assert later <= 0.5 * tdp_w + 0.05


def test_the_busy_slot_gets_the_higher_cap() -> None:
    env = LLMClusterEnv("default")
    observation, _ = env.reset(seed=0)
    names = [f.name for f in env.observations.cluster_features]
    observation["cluster"][names.index("budget_in_0s")] = 0.5
    slots = observation["slots"].reshape(SIZE, -1)
    features = [f.name for f in env.observations.slot_features]
    slots[4, features.index("running")] = 0.5
    slots[5, features.index("waiting")] = 3.0
    action = env.codec.decode(make_agent("proportional-cap", Task.of(env)).predict(observation)[0])
    assert action.cap_w is not None
    assert min(action.cap_w[4:]) > max(action.cap_w[2:4])


def test_the_forecast_decides_which_slot_the_forecast_cap_favours() -> None:
    env = LLMClusterEnv("default")
    observation, _ = env.reset(seed=0)
    names = [f.name for f in env.observations.cluster_features]
    for lead in (0, 30, 60):
        observation["cluster"][names.index(f"budget_in_{lead}s")] = 0.5
    forecast = observation["forecast"].reshape(SIZE + 1, -1)
    forecast[:, :] = 0.3
    forecast[3, env.observations.forecast_features.index("point_60s_q0.9")] = 0.95
    caps_w = env.codec.decode(make_agent("forecast-cap", Task.of(env)).predict(observation)[0]).cap_w
    assert caps_w is not None
    assert caps_w[3] > max(caps_w[[2, 4, 5]])


def test_sharing_the_budget_beats_the_caps_that_are_always_safe() -> None:
    """Where the budget moves: as safe to some seconds, and far more is served."""
    env = LLMClusterEnv("power-budget")
    task = Task.of(env)
    shared, uniform, free = (
        play(env, make_agent(name, task), name, 1) for name in ("forecast-cap", "uniform-cap", "least-outstanding")
    )
    assert shared.reward > max(uniform.reward, free.reward) + 50
    assert shared.summary.over_budget_j < 0.02 * free.summary.over_budget_j


def test_forecast_load_wakes_slots_ahead_and_never_fewer() -> None:
    env = LLMClusterEnv("default")
    all_on = Constant(Task.of(env), only(Task.of(env), np.ones(SIZE, bool), 1.0, "least-outstanding"))
    observation, _ = env.reset(seed=3)
    for _ in range(30):
        observation = env.step(all_on.predict(observation)[0])[0]

    def serving(name: str, factor: float) -> int:
        grown = {**observation, "forecast": observation["forecast"] * np.float32(factor)}
        action = env.codec.decode(make_agent(name, Task.of(env)).predict(grown)[0])
        assert action.lifecycle is not None
        return int((action.lifecycle >= 3).sum())

    def expected(factor: float) -> float:
        grown = {**observation, "forecast": observation["forecast"] * np.float32(factor)}
        agent: Any = make_agent("forecast-load", Task.of(env))
        return float(agent.expected_requests_per_s(View(grown, env.observations)))

    arrivals = View(observation, env.observations).cluster("arrivals")
    assert expected(0.5) == expected(0.0) == arrivals
    assert arrivals < expected(1.3) <= 2 * arrivals
    assert serving("forecast-load", 2.0) > serving("forecast-load", 0.5)
