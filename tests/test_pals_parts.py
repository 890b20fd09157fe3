"""Parts of PALS: tables of power and performance, the choice of configurations, and the feedback."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster import InputError, LLMClusterEnv
from llmcluster.agents.base import Task
from llmcluster.agents.pals.allocation import Ladder, Limit, allocate
from llmcluster.agents.pals.bursts import Remembered, burst, limit_s
from llmcluster.agents.pals.controller import Pals
from llmcluster.agents.pals.feedback import CORRECTION, SUSTAINED, Feedback
from llmcluster.agents.pals.profiles import Profiles
from llmcluster.agents.pals.recorded import recorded
from llmcluster.agents.pals.sweep import fewer, lengths_of, mean_tokens, sweep
from llmcluster.agents.pals.table import PowerTable, Seconds
from llmcluster.agents.static import Constant, all_on
from llmcluster.experiments.rollout import play
from llmcluster.experiments.simulate import write_tables
from llmcluster.simulator.topology import EngineSpec, ServerSpec
from llmcluster.simulator.workload.fitted import FittedLengths
from llmcluster.simulator.workload.lengths import FixedLengths
from llmcluster.tests.pals_cases import MODEL, Tiny, busy, made_table

CAPS_W, BATCHES = (200.0, 325.0, 450.0, 700.0), (4, 16, 64)


@pytest.fixture(scope="module")
def table() -> PowerTable:
    server = ServerSpec(gpu="H100-80GB", gpus=1, model=MODEL)
    return sweep(server, EngineSpec(), FittedLengths(kind="azure-2023-conv"), CAPS_W, BATCHES)


# --- tables -------------------------------------------------------------------------------------------------------


def test_a_higher_cap_never_does_less_and_never_draws_less(table: PowerTable) -> None:
    assert table.tokens_per_s.shape == (len(CAPS_W), len(BATCHES))
    for column in (table.tokens_per_s, table.power_w, table.peak_w, -table.tpot_s):
        assert (np.diff(column, axis=0) >= 0).all()
    assert (np.diff(table.tokens_per_s, axis=1) > 0).all(), "larger batches bring more"
    assert (table.peak_w >= table.power_w - 0.5).all()


def test_caps_that_bind_are_kept_and_cost_throughput(table: PowerTable) -> None:
    binding = table.power_w[1, -1]
    assert 0.9 * CAPS_W[1] < binding <= CAPS_W[1]
    assert table.power_w[-1, -1] > 1.5 * binding
    assert table.tokens_per_s[-1, -1] > 1.2 * table.tokens_per_s[1, -1]
    assert table.tokens_per_j[1, -1] > table.tokens_per_j[-1, -1], "a lower clock saves more than it slows"


def test_a_token_takes_as_long_as_the_batch_and_the_throughput_say(table: PowerTable) -> None:
    """Little's law: requests in the batch are tokens per second times the time of a token."""
    assert table.tpot_s[-1] * table.tokens_per_s[-1] == pytest.approx(BATCHES, rel=0.03)


def test_tables_of_the_same_slot_are_made_once() -> None:
    server = ServerSpec(gpu="A100-80GB", gpus=1, model=MODEL)
    lengths = FixedLengths(kind="fixed", prompt_tokens=100, output_tokens=20)
    first = sweep(server, EngineSpec(), lengths, (400.0,), (8,))
    assert sweep(server.model_copy(), EngineSpec(), lengths, (400.0,), (8,)) is first


def rows(*seconds: tuple[float, float, float, float, float]) -> Seconds:
    return Seconds(*np.array(seconds, np.float64).reshape(-1, 5).T)


def test_seconds_count_to_the_nearest_cap_and_batch() -> None:
    made = PowerTable.of_seconds(
        rows((100, 4, 4, 80, 90), (108, 5, 5, 120, 110), (190, 15, 12, 300, 180), (200, 0, 0, 0, 60)),
        np.array([100.0, 200.0]),
        np.array([4, 16]),
    )
    assert made.tokens_per_s[0] == pytest.approx([100, 100]), "a batch that was never seen does as the nearest"
    assert made.power_w.tolist() == [[100, 100], [180, 180]]
    assert made.tpot_s[0, 0] == pytest.approx(9 / 200)
    assert made.tokens_per_s[1] == pytest.approx([300, 300]), "an idle second says nothing"


def test_a_batch_between_two_that_were_seen_is_interpolated_by_its_logarithm() -> None:
    made = PowerTable.of_seconds(
        rows((100, 4, 4, 100, 90), (100, 64, 64, 300, 98)), np.array([100.0]), np.array([4, 16, 64])
    )
    assert made.tokens_per_s[0] == pytest.approx([100, 200, 300])
    finer = made.refined(np.array([50.0, 100.0]), np.array([8, 64]))
    assert finer.tokens_per_s.tolist() == [pytest.approx([150, 300])] * 2
    assert made.power_at(120.0, 16) == pytest.approx(94)
    assert made.power_at(120.0, 0.2) == made.power_at(120.0, 500) - 8 == 90


def test_a_cap_without_a_busy_second_is_told() -> None:
    with pytest.raises(InputError, match=r"no second with requests at 200 W was recorded"):
        PowerTable.of_seconds(rows((100, 4, 4, 100, 90)), np.array([100.0, 200.0]), np.array([4]))


def test_recorded_telemetry_gives_the_table_of_a_sweep(tiny: Tiny, table: PowerTable, tmp_path: Path) -> None:
    """Sixteen clients that wait for their answers, at two caps, written as `llmcluster simulate --out` does."""
    clients = {"requests": {"kind": "azure-2023-conv"}, "arrivals": {"kind": "closed-loop", "clients": 32}}
    env = LLMClusterEnv(busy(tiny, 1.0, workload=clients, horizon_s=300))
    task, paths = Task.of(env), {}
    for cap_w in (CAPS_W[1], CAPS_W[-1]):
        agent = Constant(task, replace(all_on(task, "least-outstanding"), cap_w=np.full(2, cap_w)))
        play(env, agent, "", seed=3, drain=False)
        assert env.plant is not None
        paths[cap_w] = write_tables(env.plant, tmp_path / f"{cap_w:.0f}")["seconds"]
    made = recorded(paths, np.array([16]), from_s=60)
    for mine, swept in ((made.tokens_per_s, table.tokens_per_s), (made.power_w, table.power_w)):
        assert mine[:, 0] == pytest.approx(swept[[1, -1], 1], rel=0.06)
    one = recorded(paths, np.array([16]), slots=[task.fleet.slots[1]], from_s=60)
    assert (one.tokens_per_s != made.tokens_per_s).any()
    assert one.tokens_per_s == pytest.approx(made.tokens_per_s, rel=0.06)
    agent = Pals(task, tables={int(task.blueprint.initial[0]): made})
    assert env.action_space.contains(agent.predict(env.reset(seed=0)[0])[0])
    with pytest.raises(InputError, match="no second with requests"):
        recorded(paths, np.array([16]), slots=["elsewhere"])
    with pytest.raises(InputError, match=r"cannot be read.*simulate --out"):
        recorded({400.0: tmp_path / "400" / "requests.parquet"}, np.array([16]))


def test_recorded_tables_are_held_to_what_may_be_set(tiny: Tiny, table: PowerTable) -> None:
    task = Task.of(LLMClusterEnv(busy(tiny, 20.0)))
    profiles = Profiles(task, 16, cap=False, given={0: table})
    assert profiles.table(0).power_w.tolist() == [[table.power_w[-1, 1]]]
    assert Profiles(task, None, cap=True, given={0: table}).table(0).power_w.shape == (9, 9)


def test_lengths_are_those_of_the_models_own_stream(tiny: Tiny) -> None:
    stream = {"arrivals": {"kind": "poisson", "rate_per_s": 1.0}}
    fixed = [{"kind": "fixed", "prompt_tokens": 10, "output_tokens": n} for n in (20, 30)]
    streams = [{**stream, "model": name, "requests": one} for name, one in zip((MODEL, "Qwen3-8B"), fixed, strict=True)]
    servers = [{"gpu": "H100-80GB", "gpus": 1, "model": name} for name in (MODEL, "Qwen3-8B")]
    scenario = LLMClusterEnv(tiny(servers, workload={"streams": streams})).scenario
    assert [mean_tokens(lengths_of(scenario, name)) for name in (MODEL, "Qwen3-8B")] == [(10, 20), (10, 30)]
    classes = {"strict": {"tpot_s": 0.02}, "lax": {"tpot_s": 0.3}}
    asked = [one | {"slo_class": name} for one, name in zip(streams, classes, strict=True)]
    strict = LLMClusterEnv(tiny(servers, workload={"streams": asked}, slo=classes)).scenario
    assert [limit_s(strict, name, "tpot_s") for name in (MODEL, "Qwen3-8B", "Qwen3-4B")] == [0.02, 0.3, 0.02]
    assert fewer(np.arange(100)).tolist()[:: len(fewer(np.arange(100))) - 1] == [0, 99]


@given(st.lists(st.floats(0, 100), min_size=2, max_size=50), st.sampled_from([1, 10]))
def test_peaks_are_remembered_and_fade(rates: list[float], tick_s: int) -> None:
    traffic = Remembered(tick_s, np.zeros(1), np.zeros(1))
    for rate in rates:
        before = traffic.peak
        traffic.take(np.array([rate]))
        assert 0 <= traffic.mean[0] <= traffic.peak[0] <= max(rates) * (1 + 1e-9)
        assert traffic.peak[0] >= before[0] * np.exp(-tick_s / 60) * (1 - 1e-9)
    for _ in range(600 // tick_s):
        traffic.take(np.array([5.0]))
    assert traffic.mean[0] == traffic.peak[0] == pytest.approx(5.0, rel=1e-2)


def test_bursts_are_those_of_the_arrivals_within_the_time_to_first_token(tiny: Tiny) -> None:
    def expected(arrivals: dict[str, Any], ttft_s: float = 2.0, tick_s: int = 10) -> float:
        stream = {"requests": {"kind": "azure-2023-code"}, "arrivals": arrivals}
        world = tiny(workload=stream, slo={"default": {"ttft_s": ttft_s}}, tick_s=tick_s)
        return burst(LLMClusterEnv(world).scenario, MODEL)

    code, even = ({"kind": kind, "rate_per_s": 20.0} for kind in ("azure-2023-code", "poisson"))
    # Of Poisson counts of 40 requests in 2 s, 95 % are below 51.
    assert 1.0 < expected(even, tick_s=1) < 51 / 40
    assert expected(code) > 4 > 2 > expected(even)
    assert expected(code, 0.5) > expected(code, 2.0) > expected(code, 8.0)
    assert expected(code, 10.0) == 1.0, "the mean over that time is what the controller sees"
    assert expected({"kind": "closed-loop", "clients": 8}) == 1.0


def test_a_trace_tells_nothing_of_bursts_beforehand(tiny: Tiny, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},10,10\n" for i in (0, 0, 0, 50)))
    scenario = LLMClusterEnv(tiny(workload={"file": str(trace)})).scenario
    assert burst(scenario, MODEL) == 1.0


# --- choice -------------------------------------------------------------------------------------------------------

WATTS = st.lists(st.floats(50, 700), min_size=4, max_size=4).map(sorted)
STEPS = made_table([[10, 50], [20, 90], [30, 100]], [[80, 90], [150, 160], [250, 300]])
"""Steps (watts, tokens): (80, 10), (90, 50), (160, 90), (300, 100); the third has the most tokens per joule."""


def test_a_ladder_leaves_out_what_no_mix_needs_and_what_is_too_slow() -> None:
    ladder = Ladder.of(STEPS, 1.0)
    assert ladder.power_w.tolist() == [80, 90, 160, 300]
    assert ladder.tokens_per_s.tolist() == [10, 50, 90, 100]
    assert ladder.cap_w.tolist() == [100, 100, 200, 300]
    assert ladder.batch.tolist() == [1, 2, 2, 2]
    assert ladder.best == 2
    slow = replace(STEPS, tpot_s=np.array([[0.01, 0.05], [0.01, 0.05], [0.01, 0.05]]))
    assert Ladder.of(slow, 0.02).batch.tolist() == [1, 1, 1]
    assert len(Ladder.of(slow, 0.001).batch) == 3, "where nothing is quick enough the quickest count"


@given(st.lists(st.tuples(st.floats(50, 700), st.floats(1, 5000)), min_size=1, max_size=12))
def test_no_configuration_beats_the_ladder(points: list[tuple[float, float]]) -> None:
    power, tokens = np.array(points).T
    ladder = Ladder.of(made_table([tokens.tolist()], [power.tolist()]), 1.0)
    assert ladder.tokens_per_s[-1] == tokens.max()
    assert ladder.power_w[0] == power.min()
    assert ladder.tokens_per_s[ladder.best] / ladder.power_w[ladder.best] == pytest.approx((tokens / power).max())
    assert (np.diff(ladder.power_w) > 0).all()
    within = np.interp(power, ladder.power_w, ladder.tokens_per_s)
    assert (tokens <= within * (1 + 1e-9) + 1e-6).all()


def chosen(target: float, watts: float, *, slots: int = 2, endless: bool = False, scale: float = 1.0) -> list[int]:
    ladders = [Ladder.of(STEPS, 1.0)] * slots
    limits = [Limit(np.ones(slots, bool), watts)]
    model = np.zeros(slots, np.int64)
    return allocate(ladders, model, np.array([target]), np.array([endless]), limits, scale).tolist()


def test_the_least_power_that_meets_the_target_is_chosen() -> None:
    assert chosen(0, 1000) == [0, 0]
    assert chosen(60, 1000) == [1, 0]
    assert chosen(100, 1000) == [1, 1]
    assert chosen(101, 1000) == [2, 1]
    assert chosen(1e9, 1000) == [3, 3], "out of reach: as much as there is"


@pytest.mark.parametrize("caps", [3, 7, 10, 17])
def test_straight_stretches_are_climbed_step_by_step(caps: int) -> None:
    rough = replace(made_table([[0.1], [0.7], [1.1]], [[100], [200], [300]]), cap_w=np.array([100.0, 200.0, 300.0]))
    ladder = Ladder.of(rough.refined(np.linspace(100, 300, caps), np.array([1])), 1.0)
    assert len(ladder.cap_w) == caps
    for budget_w in np.linspace(100, 300, 23):
        limits = [Limit(np.ones(1, bool), budget_w)]
        (step,) = allocate([ladder], np.zeros(1, np.int64), np.array([9.0]), np.zeros(1, bool), limits, 1.0)
        assert step == np.searchsorted(ladder.peak_w, budget_w + 1e-9) - 1


def test_where_requests_always_wait_it_is_the_most_tokens_per_joule() -> None:
    assert chosen(0, 1000, endless=True) == [2, 2]
    assert chosen(185, 1000, endless=True) == [3, 2]


def test_no_limit_is_passed() -> None:
    assert chosen(1e9, 320) == [2, 2]
    assert chosen(1e9, 319) == [2, 1]
    assert chosen(1e9, 319, scale=0.5) == [3, 3]
    assert chosen(1e9, 319, scale=1.3) == [1, 1]
    assert chosen(1e9, 10) == [0, 0], "nothing lower can be had"
    ladders = [Ladder.of(STEPS, 1.0)] * 2
    limits = [Limit(np.array([True, True]), 1000.0), Limit(np.array([False, True]), 100.0)]
    many = np.array([1e9])
    assert allocate(ladders, np.zeros(2, np.int64), many, np.zeros(1, bool), limits, 1.0).tolist() == [3, 1]


def test_each_model_gets_what_it_needs_and_idle_slots_nothing() -> None:
    ladders = [Ladder.of(STEPS, 1.0), Ladder.of(STEPS, 1.0), None]
    limits = [Limit(np.array([True, True, False]), 1000.0)]
    model, target = np.array([0, 1, 1]), np.array([95.0, 40.0])
    assert allocate(ladders, model, target, np.zeros(2, bool), limits, 1.0).tolist() == [3, 1, 0]


@given(WATTS, WATTS, st.floats(0, 500), st.floats(100, 3000))
def test_more_budget_never_gives_less_throughput_short_of_the_target(
    low: list[float], high: list[float], target: float, watts: float
) -> None:
    tokens = [[10.0, 30.0, 60.0, 100.0], [20.0, 50.0, 90.0, 140.0]]
    power = [low, [a + b for a, b in zip(low, high, strict=True)]]
    ladders = [Ladder.of(made_table(tokens, power), 1.0)]

    def reached(budget_w: float) -> float:
        limits = [Limit(np.ones(1, bool), budget_w)]
        (step,) = allocate(ladders, np.zeros(1, np.int64), np.array([target]), np.zeros(1, bool), limits, 1.0)
        assert step == 0 or ladders[0].peak_w[step] <= budget_w
        return float(ladders[0].tokens_per_s[step])

    assert reached(2 * watts) >= reached(watts)


# --- feedback -----------------------------------------------------------------------------------------------------


def test_a_lasting_lack_raises_the_target_and_plenty_lets_it_fall_again() -> None:
    feedback = Feedback(2, 1.0)
    lasts = [feedback.measure(np.array([100.0, 0.0]), np.array([80.0, 5.0])) for _ in range(20)]
    assert lasts == [False] * (SUSTAINED - 1) + [True] * (21 - SUSTAINED)
    raised = feedback.correction.copy()
    assert 1.1 < raised[0] <= 1 + CORRECTION
    assert raised[1] == 1
    for _ in range(40):
        feedback.measure(np.array([100.0, 0.0]), np.array([100.0, 0.0]))
    assert feedback.correction[0] == pytest.approx(1, abs=0.01)
    feedback.measure(np.array([100.0, 0.0]), np.array([130.0, 0.0]))
    assert feedback.correction.tolist() == [1.0, 1.0], "never below the target"


def test_small_errors_are_left_alone() -> None:
    feedback = Feedback(1, 1.0)
    assert not any(feedback.measure(np.array([100.0]), np.array([96.0])) for _ in range(10))


def test_requests_that_miss_their_slo_are_answered_with_a_reserve() -> None:
    feedback = Feedback(1, 1.0)
    feedback.attain(0.0)
    assert feedback.reserve == 1.0, "one bad second is chance"
    for _ in range(60):
        feedback.attain(0.5)
    assert feedback.reserve > 3
    highest = feedback.reserve
    for _ in range(600):
        feedback.attain(1.0)
    assert 1 < feedback.reserve < 1 + 0.3 * highest


def test_power_that_differs_from_the_tables_is_learned_within_bounds() -> None:
    feedback = Feedback(1, 1.0)
    feedback.weigh(0.0, 0.0)
    assert feedback.power_ratio == 1.0
    for _ in range(50):
        feedback.weigh(550.0, 500.0)
    assert feedback.power_ratio == pytest.approx(1.1, rel=1e-3)
    for _ in range(50):
        feedback.weigh(5.0, 500.0)
    assert feedback.power_ratio == pytest.approx(0.8, rel=1e-3)
