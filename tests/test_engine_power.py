"""Cases of one slot worked by hand, in milliseconds, for both engines: clock, power, meter and heat."""

from __future__ import annotations

import pytest

from llmcluster.tests.by_hand import END, MS, W_MS, J, call, ms
from llmcluster.tests.machine import Factory, Machine, build

# 10 + max(20 t / f, 5) ms at clock f.
CAPPED = Machine(10 * MS, 20 * MS, 5 * MS, clock=(0.25, 0.5, 1.0), scale=(0.1, 0.25, 1.0))


@pytest.mark.parametrize(
    ("cap_w", "last_ms", "last_w_ms"),
    [
        # At half the clock a token takes 10 + 40 ms, at 50 + 25 W, 50 W more for 40 ms and 50 W more for 5 ms: 6000 mJ
        # or 120 W on average. At a quarter 10 + 80 ms at 50 + 10 W, 20 W more for 80 ms and 50 W for 5 ms: 7250 mJ.
        (120.0, 50, 6000),
        (119.99, 90, 7250),
        (1.0, 90, 7250),  # where no clock keeps under the cap, the lowest one serves
    ],
)
def test_a_cap_that_changes_in_mid_decode(make: Factory, cap_w: float, last_ms: int, last_w_ms: int) -> None:
    engine = build(CAPPED, [call(0, 1, 4)])
    driver = make(engine)
    driver.advance(70 * MS)
    engine.slots["cap_w"], engine.slots["governed"] = cap_w, 0
    driver.advance(END)
    # At the full clock a token takes 30 ms: 150 W, 200 W more for 20 ms and 50 W for 5 ms: 8750 mJ. The third decode is
    # the first that begins after the change, at 90 ms: the iteration in flight is not slowed.
    assert ms(engine, 0) == (0, 30, 90 + last_ms)
    assert engine.bins["energy"][0, 0] == (3 * 8750 + last_w_ms + 50 * (1000 - 90 - last_ms)) * W_MS


def test_a_locked_clock(make: Factory) -> None:
    engine = build(CAPPED, [call(0, 1, 1)], clock_limit=1)
    make(engine).advance(END)
    assert ms(engine, 0) == (0, 50, 50)


def test_decodes_keep_their_clock_until_the_second_closes(make: Factory) -> None:
    # 100 ms and 1 ms per pair at the top: 150 W and 200 W more for the share of time that is compute. At 154 W, that
    # may be 2 % of it: 1 / 101 for the prompt, 2 / 102 for the first decode, but 3 / 103 for the next.
    machine = Machine(100 * MS, 0, 0, attention_ps=MS)
    engine = build(machine, [call(0, 1, 11)], cap_w=154.0)
    driver = make(engine)
    driver.advance(2 * END)
    # Iterations with 1 to 10 pairs end at 101, 203, … 1055. The last one, of 11 pairs, has a new clock: at 0.75 it
    # draws 100 W and less than 100 W · 15 / 115 more. It takes 100 ms and 11 times round(10⁹ / 0.75) ps.
    assert engine.requests["finish_ps"][0] == 1055 * MS + 100 * MS + 11 * 1_333_333_333
    assert engine.bins["clock_ratio"][:2, 0].tolist() == [1.0, 0.75]


def test_energy_of_an_iteration_across_the_edge_of_a_second(make: Factory) -> None:
    engine = build(Machine(800 * MS, 0, 0, averaging=False), [call(0, 1, 2)])
    make(engine).advance(2 * END)
    # 150 W to 1600 ms, then 50 W.
    assert engine.bins["energy"][:2, 0].tolist() == [150 * J, 110 * J]
    # The meter shows the instant at the end of the second.
    assert engine.bins["metered_w"][:2, 0].tolist() == [150.0, 50.0]
    assert engine.bins["output_tokens"][:2, 0].tolist() == [1, 1]
    assert engine.bins["running"][:2, 0].tolist() == [1, 0]


def test_the_end_of_a_second_comes_before_the_end_of_an_iteration(make: Factory) -> None:
    engine = build(Machine(500 * MS, 0, 0, block_size=1, kv_blocks=4), [call(0, 1, 2), call(900, 1, 1)])
    make(engine).advance(2 * END)
    # Both tokens of the first request count in the first second, yet it is still there as that ends.
    assert engine.bins["output_tokens"][:2, 0].tolist() == [2, 1]
    assert engine.bins["running"][:2, 0].tolist() == [1, 0]
    assert engine.bins["waiting"][:2, 0].tolist() == [1, 0]
    assert engine.bins["kv_used"][:2, 0].tolist() == [0.5, 0.0]
    assert engine.bins["energy"][:2, 0].tolist() == [150 * J, 100 * J]
    assert engine.bins["metered_w"][:2, 0].tolist() == [150.0, 100.0]


def test_heat_forces_the_clock_down_until_it_is_cool(make: Factory) -> None:
    # A degree per watt, at once: 150 W make 175 °C, then a quarter of the ladder, 75 W, makes 100 °C.
    machine = Machine(100 * MS, 0, 0, resistance=(1.0, 0.0), decay=(0.0, 0.0), throttle_c=175.0, resume_c=100.0)
    engine = build(machine, [call(0, 1, 30)])
    make(engine).advance(3 * END)
    assert engine.bins["temperature_c"][:3, 0].tolist() == [175.0, 100.0, 175.0]
    assert engine.bins["clock_ratio"][:3, 0].tolist() == [1.0, 0.5, 1.0]
    assert engine.bins["energy"][:3, 0].tolist() == [150 * J, 75 * J, 150 * J]
    assert (engine.slots["throttle_events"][0], engine.slots["throttled"][0]) == (2, 1)


def test_a_pole_remembers(make: Factory) -> None:
    # 50 W on 2 GPUs. The first pole forgets half a second's rise, the second keeps nine tenths: 25 · 0.04 · 0.5 K and
    # 25 · 0.02 · 0.1 K are added each second.
    machine = Machine(MS, 0, 0, gpus=2, resistance=(0.04, 0.02), decay=(0.5, 0.9))
    engine = build(machine, [])
    make(engine).advance(2 * END)
    rise = 0.5 + 0.05
    assert engine.bins["temperature_c"][:2, 0] == pytest.approx([25 + rise, 25 + rise + 0.25 + 0.045], rel=1e-14)


def test_the_throttle_acts_on_the_next_iteration_and_releases_below(make: Factory) -> None:
    """At the full clock 350 W, throttled to a quarter of the ladder 50 + 300 / 4 W; one pole of 0.1 K/W at once."""
    machine = Machine(2, 500 * MS - 1, 0, resistance=(0.1, 0.0), decay=(0.0, 0.0), throttle_c=50.0, resume_c=40.0)
    engine = build(machine, [call(0, 1, 5)])
    make(engine).advance(10 * END)
    # Two iterations of 500 ms and 1 ps heat the die to 60 °C: the second is in flight as the first second ends. The
    # third runs at half the clock and takes the next second, in which the die cools to 37.5 °C; two more heat it again.
    assert engine.requests["first_token_ps"][0] == 500 * MS + 1
    assert engine.requests["finish_ps"][0] == 3000 * MS + 4
    assert engine.bins["temperature_c"][:4, 0].tolist() == pytest.approx([60, 37.5, 60, 30], rel=1e-6)
    assert (engine.slots["throttle_events"][0], engine.slots["throttled"][0]) == (2, 0)


@pytest.mark.parametrize("stops_ms", [[], [500], [850, 1000]])
def test_a_meter_that_does_not_average_shows_the_iteration_at_the_end_of_the_second(
    make: Factory, stops_ms: list[int]
) -> None:
    """Iterations of 100 ms, 90 of them compute; the tenth, which ends with the second, reads 10 tokens in 50 ms."""
    engine = build(Machine(10 * MS, 90 * MS, 0, kv_read_ps=5 * MS, averaging=False), [call(0, 1, 15)])
    driver = make(engine)
    for stop in [*stops_ms, 3000]:
        driver.advance(stop * MS)
    assert engine.bins["metered_w"][:3, 0].tolist() == [50 + 100 + 180 + 25, 50, 50]


def test_an_averaging_meter_shows_the_mean_of_the_second(make: Factory) -> None:
    engine = build(Machine(800 * MS, 0, 0), [call(0, 1, 2)])
    make(engine).advance(2 * END)
    # 150 W to 1600 ms, then 50 W.
    assert engine.bins["metered_w"][:2, 0].tolist() == [150.0, 110.0]
