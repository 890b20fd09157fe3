"""PALS: the controller in a run, and the suite that measures it."""

from dataclasses import replace

import numpy as np
import pytest
from rich.progress import Progress

from llmcluster import InputError, LLMClusterEnv, load_scenario
from llmcluster.agents.base import Task, View
from llmcluster.agents.pals.controller import HEADROOM, NOT_SERVING, Pals
from llmcluster.agents.pals.forecast import MOST, PalsForecast
from llmcluster.agents.pals.sweep import lengths_of, mean_tokens
from llmcluster.agents.static import Constant, all_on
from llmcluster.experiments.rollout import play
from llmcluster.experiments.suites.pals import run
from llmcluster.experiments.suites.pals_rivals import BATCHES as CONSTANT_BATCHES
from llmcluster.experiments.suites.pals_rivals import CAPS, constants, default, uniform
from llmcluster.experiments.suites.pals_runs import WARM_UP_S, WINDOW_S, played
from llmcluster.experiments.suites.pals_worlds import SINGLE, STATIC_BATCH, crowded, following, serving, unconstrained
from llmcluster.tests.pals_cases import BOTH, MODEL, Tiny, busy, made_table

A_WHILE = 200
"""Ticks after which nothing is left of the full readiness at the start."""


# --- the controller -----------------------------------------------------------------------------------------------


def test_it_serves_the_same_with_fewer_joules(tiny: Tiny) -> None:
    env = LLMClusterEnv(busy(tiny, 20.0, horizon_s=400))
    task = Task.of(env)
    free = play(env, Constant(task, all_on(task, "least-outstanding")), "", seed=1, warmup_s=200).summary
    mine = play(env, Pals(task), "", seed=1, warmup_s=200).summary
    assert mine.output_tokens == free.output_tokens
    assert mine.slo_attainment > 0.98
    assert mine.energy_j < 0.8 * free.energy_j


def test_it_holds_a_budget_that_moves(tiny: Tiny) -> None:
    budget = {"schedule": [[0, 0.8], [40, 0.8], [60, 0.45], [80, 0.45], [80, 0.6]]}
    env = LLMClusterEnv(busy(tiny, 60.0, budget=budget, tick_s=5))
    task = Task.of(env)
    free = play(env, Constant(task, all_on(task, "least-outstanding")), "", seed=1).summary
    mine = play(env, Pals(task), "", seed=1).summary
    ahead = play(env, PalsForecast(task), "", seed=1).summary
    assert free.over_budget_s > 60
    assert mine.over_budget_j < 0.1 * free.over_budget_j
    assert ahead.over_budget_s < mine.over_budget_s < 20, "ramps that are announced need not be passed"


def test_a_throughput_target_is_met_and_no_more_power_spent_than_for_all_there_is(tiny: Tiny) -> None:
    env = LLMClusterEnv(busy(tiny, 120.0, slo={"default": {"ttft_s": 1000.0, "tpot_s": 10.0}}))
    task = Task.of(env)

    def reached(target: float) -> tuple[float, float]:
        play(env, Pals(task, {MODEL: target}), "", seed=2, drain=False)
        assert env.plant is not None
        history = env.plant.cluster.history
        return tuple(float(history.column(name, 80).sum() / 80) for name in ("output_tokens", "energy_j"))  # type: ignore[return-value]

    tokens, watts = reached(5000.0)
    most_tokens, most_w = reached(1e9)
    assert 5000 < tokens < most_tokens
    assert watts < 0.9 * most_w


def test_a_short_budget_takes_the_headroom_of_all_before_it_takes_the_target_of_one(tiny: Tiny) -> None:
    names, cap_w = (MODEL, "Qwen3-8B"), [200.0, 450.0, 700.0]
    servers = [{"gpu": "H100-80GB", "gpus": 1, "model": name} for name in names]
    env = LLMClusterEnv(tiny(servers, actions=BOTH, slo={"default": {"ttft_s": 1000.0, "tpot_s": 10.0}}))
    task = Task.of(env)
    able = [[10.0, 100.0, 150.0], [10.0, 50.0, 51.0]]
    tables = {
        int(d): replace(made_table([[t] for t in tokens], [[w] for w in cap_w]), cap_w=np.array(cap_w))
        for d, tokens in zip(task.blueprint.initial, able, strict=True)
    }
    agent = Pals(task, {names[0]: 100.0, names[1]: 50.0}, tables=tables)
    observation, _ = env.reset(seed=0)
    column = [f.name for f in env.observations.cluster_features].index("budget_in_0s")

    def caps_w(budget_w: float, row: int) -> list[float]:
        observation["cluster"][column] = budget_w / task.fleet.cap_max_w.sum()
        return list(agent.decide(View(observation, env.observations, row)).cap_w)

    assert caps_w(1300.0, 0) == [575.0, 700.0], "125 and 51 tokens: a headroom that is out of reach is no other's loss"
    assert caps_w(920.0, 1) == [450.0, 450.0], "100 and 50, just so"
    assert caps_w(880.0, 2) == [575.0, 262.5], "not both: then one with its headroom"


def test_what_is_fixed_stays_fixed(tiny: Tiny) -> None:
    env = LLMClusterEnv(busy(tiny, 20.0))
    task = Task.of(env)
    observation, _ = env.reset(seed=0)
    names = [f.name for f in env.observations.cluster_features]
    observation["cluster"][names.index("arrivals")] = 1.0
    still = View(observation, env.observations)
    low = [[agent.decide(still) for _ in range(A_WHILE)][-1] for agent in (Pals(task, batch=16), Pals(task))]
    assert low[0].concurrency.tolist() == [16, 16]
    assert all((action.cap_w < task.fleet.cap_max_w).all() for action in low)
    only_batches = Pals(task, cap=False)
    few = [only_batches.decide(still) for _ in range(A_WHILE)]
    assert all(action.cap_w.tolist() == task.fleet.cap_max_w.tolist() for action in few)
    assert few[-1].concurrency.sum() < few[0].concurrency.sum(), "it begins ready for anything"
    with pytest.raises(InputError, match=r"batch.*300 is out of range.*1 to 256"):
        Pals(task, batch=300)


@pytest.mark.parametrize("kind", [Pals, PalsForecast])
def test_rows_of_a_batch_keep_their_own_memory(tiny: Tiny, kind: type[Pals]) -> None:
    env = LLMClusterEnv(busy(tiny, 20.0))
    task = Task.of(env)
    observation, _ = env.reset(seed=0)
    column = [f.name for f in env.observations.cluster_features].index("arrivals")
    quiet, loud = ({**observation, "cluster": observation["cluster"].copy()} for _ in range(2))
    quiet["cluster"][column], loud["cluster"][column] = 0.05, 8.0
    batch = {key: np.stack([loud[key], quiet[key]]) for key in observation}
    agent = kind(task)
    for _ in range(A_WHILE):
        batched, _ = agent.predict(batch)
    for row, one in enumerate((loud, quiet)):
        alone = kind(task)
        for _ in range(A_WHILE):
            single, _ = alone.predict(one)
        assert (batched[row] == single).all()
    assert (batched[0] != batched[1]).any()
    both_quiet = {key: np.stack([quiet[key]] * 2) for key in observation}
    again, _ = agent.predict(both_quiet, episode_start=np.array([True, False]))
    assert (again[0] == kind(task).predict(quiet)[0]).all(), "an episode that starts knows nothing"
    kept, _ = agent.predict(
        {key: np.stack([loud[key]] * 2) for key in observation}, episode_start=np.array([False, True])
    )
    assert (kept[1] == kind(task).predict(loud)[0]).all()


def test_foresight_takes_the_announced_budget_and_the_rise_of_power(tiny: Tiny) -> None:
    env = LLMClusterEnv(busy(tiny, 20.0, tick_s=10))
    task = Task.of(env)
    agent = PalsForecast(task)
    observation, _ = env.reset(seed=0)
    tdp_w = float(task.fleet.cap_max_w.sum())
    for lead, share in ((0, 0.9), (30, 0.6), (60, 0.2)):
        names = [f.name for f in env.observations.cluster_features]
        observation["cluster"][names.index(f"budget_in_{lead}s")] = share
    assert agent.site_budget_w(View(observation, env.observations)) == pytest.approx(0.8 * tdp_w, rel=1e-5)
    assert Pals(task).site_budget_w(View(observation, env.observations)) == pytest.approx(0.9 * tdp_w, rel=1e-5)
    slots, forecast = observation["slots"].reshape(2, -1), observation["forecast"].reshape(3, -1)
    slots[:, [f.name for f in env.observations.slot_features].index("power")] = 300 / 700
    column = env.observations.forecast_features.index("mean_30s_q0.5")
    idle_w = task.blueprint.deployments[0].power.idle_w
    for watts, times in ((0.0, 1.0), (300.0, 1.0), (idle_w + 1.2 * (300 - idle_w), 1.2), (700.0, MOST)):
        forecast[:2, column] = watts / 700
        assert agent.growth(View(observation, env.observations)) == pytest.approx(times, rel=1e-4)


def test_slots_are_ready_for_bursts_of_prompts() -> None:
    """The code trace is silent for half a minute and then brings a hundred prompts at once, to be answered in 2 s."""
    env = LLMClusterEnv(load_scenario("azure-code").model_copy(update={"horizon_s": 1200}))
    agent, seeds = Pals(Task.of(env)), range(2)
    assert agent._headroom > 4 * HEADROOM
    ready = np.array([play(env, agent, "pals", seed).summary.slo_attainment for seed in seeds])
    agent._headroom[:] = HEADROOM
    bare = np.array([play(env, agent, "pals", seed).summary.slo_attainment for seed in seeds])
    assert (1 - ready < (1 - bare) / 2).all(), "half of the misses at most"


def test_slots_that_do_not_serve_get_the_lowest_cap_and_their_draw_is_set_aside(tiny: Tiny) -> None:
    servers = [{"gpu": "H100-80GB", "gpus": 1, "model": MODEL}, {"gpu": "H100-80GB", "gpus": 1, "initial": "empty"}]
    env = LLMClusterEnv(tiny(servers, actions=BOTH, tick_s=1))
    task = Task.of(env)
    observation, _ = env.reset(seed=0)
    action = Pals(task).decide(View(observation, env.observations))
    assert action.cap_w is not None
    assert action.cap_w[1] == task.fleet.cap_min_w[1]
    assert NOT_SERVING == -1
    assert HEADROOM > 1


# --- the suite ----------------------------------------------------------------------------------------------------


def test_what_the_suite_measures(tiny: Tiny) -> None:
    env = LLMClusterEnv(busy(tiny, 20.0, budget={"schedule": [[0, 0.8], [90, 0.8], [90, 0.4]]}))
    seen = played(env, default(Task.of(env)), 1, drain=False)
    assert env.plant is not None
    seconds = slice(WARM_UP_S, 120)
    assert seen.power_w == pytest.approx(env.plant.cluster.history.column("energy_j")[seconds].sum(axis=1))
    assert seen.tokens_per_j == pytest.approx(1 / seen.summary.energy_per_output_token_j)
    assert seen.budget_w[[0, 29, 30, -1]] == pytest.approx(np.array([0.8, 0.8, 0.4, 0.4]) * 1400)
    made = replace(
        seen,
        tokens_per_s=np.repeat([[10.0, 5.0], [20.0, 5.0], [30.0, 5.0]], WINDOW_S, axis=0),
        power_w=np.repeat([400.0, 500.0, 600.0], WINDOW_S),
        budget_w=np.repeat([500.0, 500.0, 500.0], WINDOW_S),
    )
    assert made.violations(np.array([20.0, 5.1])).tolist() == pytest.approx([1 / 3, 1])
    assert made.tracking_error == pytest.approx(np.sqrt(2 / 3) * 0.2)
    assert made.tokens_at(0.4) == 25
    assert made.tokens_per_j == pytest.approx(75 / 1500)


def test_rivals_are_what_they_are_called(tiny: Tiny) -> None:
    task = Task.of(LLMClusterEnv(busy(tiny, 20.0, budget={"levels": [1.0, 0.5]})))
    view = View(LLMClusterEnv(task.scenario).reset(seed=0)[0], task.observations)
    free, held = default(task).decide(view), uniform(task).decide(view)
    assert free.cap_w.tolist() == [700, 700]
    assert held.cap_w.sum() <= 700
    assert free.concurrency.tolist() == held.concurrency.tolist() == [STATIC_BATCH] * 2
    assert len(constants(task)) == len(CAPS) * len(CONSTANT_BATCHES)


def test_worlds_ask_for_what_they_say() -> None:
    node = SINGLE["dense"]
    able = unconstrained((node,))[node]
    scenario = serving(node, 0.5)
    output = mean_tokens(lengths_of(scenario, node.model))[1]
    assert scenario.workload.streams[0].arrivals.rate_per_s * output == pytest.approx(0.5 * able)
    assert scenario.slo["default"].tpot_s < 1 < following(node).slo["default"].tpot_s
    assert crowded((node,), 0.5).lowest_limit() == 0.5


@pytest.mark.slow
def test_the_suite_tries_every_claim() -> None:
    with Progress(disable=True) as progress:
        result = run(2, 0, progress)
    assert [claim.unit for claim in result.claims] == ["% more"] * 2 + ["points fewer"] * 2 + [
        "% RMS error",
        "% more",
    ] * 2
    assert all(claim.measured.low <= claim.measured.mean <= claim.measured.high for claim in result.claims)
    assert all(claim.measured.low > 0 for claim in result.claims[:2]), "fewer joules a token"
    for title, table in result.tables.items():
        assert len({tuple(row) for row in table}) == 1, title
        by_name = {str(row["agent"]): row for row in table}
        if "s over budget" in table[0]:
            assert by_name["default cap, static batch"]["s over budget"] > 100 > by_name["PALS"]["s over budget"]
        if "RMS error %" in table[0]:
            assert by_name["PALS"]["RMS error %"] < by_name["uniform cap, static batch"]["RMS error %"]
