"""Encoding, decoding and masking of actions, over all groups, both encodings and fleets drawn at random."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster import InputError, LLMClusterEnv
from llmcluster.envs.actions import KEEP, NOWHERE, ROUTERS, SERVE, SLEEP, ClusterAction
from llmcluster.envs.codec import LOWEST_CLOCK, ActionCodec
from llmcluster.envs.telemetry import Fleet, Telemetry
from llmcluster.simulator.kernels.state import C_ROUTER, UNLIMITED

GROUPS = ("route", "cap", "clock", "lifecycle", "concurrency", "reconfigure", "place")
SUBSETS = [subset for size in range(1, 8) for subset in combinations(GROUPS, size)]


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    slots, models = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    fits = np.array(draw(st.lists(st.booleans(), min_size=slots * models, max_size=slots * models)))
    fits = fits.reshape(slots, models)
    fits[np.arange(slots), draw(st.integers(0, models - 1))] = True  # a slot that holds nothing is refused earlier
    low = np.array(draw(st.lists(st.floats(50, 300), min_size=slots, max_size=slots)))
    span = np.array(draw(st.lists(st.floats(10, 900), min_size=slots, max_size=slots)))
    return Fleet(
        slots=tuple(f"0/0/0/{r}" for r in range(slots)),
        gpus=("any",) * slots,
        models=tuple(f"model-{m}" for m in range(models)),
        fits=fits,
        cap_min_w=low,
        cap_max_w=low + span,
        max_num_seqs=256,
        variants=tuple(("keep", *(f"model-0 tp{v}" for v in range(draw(st.integers(1, 4))))) for _ in range(slots)),
    )


@st.composite
def codecs(draw: st.DrawFn) -> ActionCodec:
    levels, encoding = draw(st.integers(2, 8)), draw(st.sampled_from(["discrete", "box"]))
    return ActionCodec(draw(fleets()), draw(st.sampled_from(SUBSETS)), levels, encoding)


def level_valued(codec: ActionCodec, draw: st.DrawFn) -> ClusterAction:
    fleet, groups = codec.fleet, codec.groups

    def shares() -> np.ndarray:
        return np.array([draw(st.integers(0, codec.steps - 1)) for _ in fleet.slots]) / (codec.steps - 1)

    targets = [draw(st.sampled_from([0, 1, 2, *(SERVE + np.flatnonzero(fits)).tolist()])) for fits in fleet.fits]
    return ClusterAction(
        router=draw(st.sampled_from(ROUTERS)) if "route" in groups else None,
        route_weight=shares() if "route" in groups else None,
        cap_w=fleet.cap_min_w + shares() * (fleet.cap_max_w - fleet.cap_min_w) if "cap" in groups else None,
        clock_ratio=LOWEST_CLOCK + shares() * (1 - LOWEST_CLOCK) if "clock" in groups else None,
        lifecycle=np.array(targets) if "lifecycle" in groups else None,
        concurrency=np.rint(256 ** shares()).astype(int) if "concurrency" in groups else None,
        variant=np.array([draw(st.integers(0, len(own) - 1)) for own in fleet.variants])
        if "reconfigure" in groups
        else None,
        place=draw(st.integers(NOWHERE, len(fleet) - 1)) if "place" in groups else NOWHERE,
    )


def assert_equal(one: ClusterAction, other: ClusterAction) -> None:
    assert (one.router, one.place) == (other.router, other.place)
    for name in ("route_weight", "cap_w", "clock_ratio", "lifecycle", "concurrency", "variant"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None)
        if first is not None:
            np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


@given(codec=codecs(), data=st.data())
def test_level_values_survive_the_round_trip(codec: ActionCodec, data: st.DataObject) -> None:
    action = level_valued(codec, data.draw)
    encoded = codec.encode(action)
    assert codec.space().contains(encoded)
    assert_equal(codec.decode(encoded), action)
    assert (codec.encode(codec.decode(encoded)) == encoded).all()


@given(codec=codecs(), data=st.data())
def test_everything_in_the_space_decodes_to_something_valid(codec: ActionCodec, data: st.DataObject) -> None:
    heads, fleet = len(codec.layout.sizes), codec.fleet
    if codec.encoding == "discrete":
        array = np.array([data.draw(st.integers(0, int(size) - 1)) for size in codec.layout.sizes])
    else:
        array = np.array(data.draw(st.lists(st.floats(-1, 1, width=32), min_size=heads, max_size=heads)), np.float32)
    assert codec.space().contains(array)
    action = codec.decode(array)
    assert (action.route_weight is not None) == (action.router is not None) == ("route" in codec.groups)
    if action.route_weight is not None:
        assert ((action.route_weight >= 0) & (action.route_weight <= 1)).all()
        assert action.router in ROUTERS
    if "cap" in codec.groups:
        assert (action.cap_w >= fleet.cap_min_w - 1e-9).all()
        assert (action.cap_w <= fleet.cap_max_w + 1e-9).all()
    if "clock" in codec.groups:
        assert ((action.clock_ratio >= LOWEST_CLOCK) & (action.clock_ratio <= 1)).all()
    if "lifecycle" in codec.groups:
        for target, fits in zip(action.lifecycle, fleet.fits, strict=True):
            assert target in (0, 1, 2) or fits[target - SERVE]
    if "concurrency" in codec.groups:
        assert ((action.concurrency >= 1) & (action.concurrency <= fleet.max_num_seqs)).all()
    if "reconfigure" in codec.groups:
        for variant, own in zip(action.variant, fleet.variants, strict=True):
            assert 0 <= variant < len(own)
    assert NOWHERE <= action.place < len(fleet)
    assert action.place == NOWHERE or "place" in codec.groups


@given(codec=codecs())
def test_ends_of_the_space_are_ends_of_the_ranges(codec: ActionCodec) -> None:
    low, high = (0, codec.layout.sizes - 1) if codec.encoding == "discrete" else (-1.0, 1.0)
    shape = codec.layout.sizes.shape
    lowest, highest = codec.decode(np.full(shape, low)), codec.decode(np.broadcast_to(high, shape))
    if "route" in codec.groups:
        assert (lowest.route_weight == 0).all()
        assert (highest.route_weight == 1).all()
        assert (lowest.router, highest.router) == (ROUTERS[0], ROUTERS[-1])
    if "cap" in codec.groups:
        assert lowest.cap_w == pytest.approx(codec.fleet.cap_min_w)
        assert highest.cap_w == pytest.approx(codec.fleet.cap_max_w)
    if "concurrency" in codec.groups:
        assert (lowest.concurrency == 1).all() and (highest.concurrency == codec.fleet.max_num_seqs).all()
    if "place" in codec.groups:
        assert (lowest.place, highest.place) == (NOWHERE, len(codec.fleet) - 1)


@given(codec=codecs())
def test_nothing_asked_for_encodes_to_all_on(codec: ActionCodec) -> None:
    action = codec.decode(codec.encode(ClusterAction()))
    if "route" in codec.groups:
        assert (action.route_weight == 1).all()
    if "cap" in codec.groups:
        assert action.cap_w == pytest.approx(codec.fleet.cap_max_w)
    if "lifecycle" in codec.groups:
        assert (action.lifecycle == KEEP).all()
    if "concurrency" in codec.groups:
        assert (action.concurrency == codec.fleet.max_num_seqs).all()
    if "reconfigure" in codec.groups:
        assert (action.variant == KEEP).all()
    assert action.place == NOWHERE


@pytest.fixture(scope="module")
def telemetry(everything: dict[str, Any]) -> Telemetry:
    env = LLMClusterEnv(everything)
    env.reset(seed=0)
    return env.telemetry


@given(fleet=fleets(), groups=st.sampled_from(SUBSETS), levels=st.integers(2, 8), data=st.data())
def test_masks(telemetry: Telemetry, fleet: Fleet, groups: tuple[str, ...], levels: int, data: st.DataObject) -> None:
    codec = ActionCodec(fleet, groups, levels)  # type: ignore[arg-type]
    pending = data.draw(st.integers(-1, len(fleet.models) - 1))
    status = np.array([data.draw(st.integers(0, 4)) for _ in fleet.slots])
    mask = codec.masks(replace(telemetry, status=status, pending_model=pending, pending_instances=int(pending >= 0)))
    sizes = codec.layout.sizes
    assert mask.shape == (sizes.sum(),)
    assert mask.dtype == bool
    heads = np.split(mask, np.cumsum(sizes)[:-1])
    assert all(head.any() for head in heads)
    rows = iter(heads)
    for group in codec.layout.slot_groups:
        for r in range(len(fleet)):
            row = next(rows)
            expected = [True] * levels
            if group == "lifecycle":
                expected = [True] * SERVE + fleet.fits[r].tolist()
            elif group == "reconfigure":
                expected = [True] * len(fleet.variants[r])
            assert row.tolist() == expected + [False] * (len(row) - len(expected))
    if "route" in groups:
        assert next(rows).tolist() == [True, True]
    if "place" in groups:
        free = [pending >= 0 and status[r] in (0, 4) and bool(fleet.fits[r, pending]) for r in range(len(fleet))]
        assert next(rows).tolist() == [True, *free]
    assert next(rows, None) is None


def test_masks_are_fresh(telemetry: Telemetry, everything: dict[str, Any]) -> None:
    codec = LLMClusterEnv(everything).codec
    codec.masks(telemetry)[:] = False
    assert codec.masks(telemetry).any()


def test_layout_goes_group_by_group(everything: dict[str, Any]) -> None:
    codec = LLMClusterEnv(everything).codec
    assert codec.layout.slot_groups == ("route", "cap", "clock", "lifecycle")
    assert codec.layout.cluster_heads == (("router", 2), ("place", 4))
    assert codec.layout.levels == SERVE + 2  # lifecycle is the widest group
    assert codec.layout.sizes.tolist() == [5] * 12 + [2, 4]
    action = np.zeros(14, int)
    action[3:6] = 3  # caps, at the highest of four levels
    action[10] = SLEEP
    action[13] = 3
    decoded = codec.decode(action)
    assert decoded.cap_w == pytest.approx(codec.fleet.cap_max_w)
    assert decoded.route_weight.tolist() == [0, 0, 0]
    assert decoded.lifecycle.tolist() == [KEEP, SLEEP, KEEP]
    assert decoded.place == 2


def test_models_that_do_not_fit_are_never_commanded(everything: dict[str, Any]) -> None:
    codec = LLMClusterEnv(everything).codec
    large = codec.fleet.models.index("Qwen3-32B")
    assert codec.fleet.fits[:, large].tolist() == [True, False, True]
    action = np.zeros(14, int)
    action[9:12] = SERVE + large
    assert codec.decode(action).lifecycle.tolist() == [SERVE + large, KEEP, SERVE + large]


@pytest.mark.parametrize(
    ("groups", "levels", "encoding", "where"),
    [
        (("route", "warp"), 5, "discrete", "actions.groups"),
        ((), 5, "discrete", "actions.groups"),
        (("cap",), 1, "discrete", "actions.levels"),
        (("cap",), 5, "dict", "encoding"),
    ],
)
def test_bad_codecs_are_refused(
    everything: dict[str, Any], groups: tuple[str, ...], levels: int, encoding: str, where: str
) -> None:
    with pytest.raises(InputError) as caught:
        ActionCodec(LLMClusterEnv(everything).fleet, groups, levels, encoding)
    assert caught.value.where == where


@pytest.fixture
def running(tiny: Callable[..., dict[str, Any]]) -> LLMClusterEnv:
    env = LLMClusterEnv(tiny())
    env.reset(seed=0)
    return env


def test_a_router_alone_is_set(running: LLMClusterEnv) -> None:
    running.plant.apply(ClusterAction(router="round-robin", route_weight=np.array([0.25, 1.0])))
    running.plant.apply(ClusterAction(router="least-outstanding"))
    engine = running.plant.cluster.engine
    assert engine.cursor[C_ROUTER] == ROUTERS.index("least-outstanding")
    assert engine.slots["route_weight"].tolist() == [0.25, 1.0]


def test_nothing_decided_changes_nothing(running: LLMClusterEnv) -> None:
    before = running.plant.cluster.engine.slots.copy()
    running.plant.apply(ClusterAction())
    assert (running.plant.cluster.engine.slots == before).all()


def test_levels_of_concurrency_are_geometric_and_the_highest_is_no_limit(tiny: Callable[..., dict[str, Any]]) -> None:
    env = LLMClusterEnv(tiny(actions={"groups": ("concurrency",), "levels": 5}))
    env.reset(seed=0)
    assert [env.codec.decode([level, 4]).concurrency[0] for level in range(5)] == [1, 4, 16, 64, 256]
    observation, *_ = env.step([2, 4])
    assert env.plant.cluster.engine.slots["limit"].tolist() == [16, UNLIMITED]
    assert env.telemetry.in_flight_limit.tolist() == [16, 256]
    place = [f.name for f in env.observations.slot_features].index("in_flight_limit")
    assert observation["slots"].reshape(2, -1)[:, place] == pytest.approx([16 / 256, 1])


def test_actions_reach_the_cluster(everything: dict[str, Any]) -> None:
    env = LLMClusterEnv(everything)
    env.reset(seed=1)
    pending = 0
    for _ in range(12):
        mask = env.action_masks()
        action = env.codec.encode(ClusterAction(cap_w=env.fleet.cap_min_w, clock_ratio=np.full(3, LOWEST_CLOCK)))
        place = mask[-4:]
        pending += env.telemetry.pending_instances
        if place[1:].any():
            action[-1] = 1 + int(np.flatnonzero(place[1:])[0])
        waiting = env.telemetry.pending_instances
        placed = env.telemetry.status[action[-1] - 1] if action[-1] else None
        env.step(action)
        assert env.telemetry.cap_w == pytest.approx(env.fleet.cap_min_w)
        assert (env.plant.cluster.history.column("clock_ratio", 9) <= LOWEST_CLOCK + 1e-9).all()
        if placed is not None:
            assert placed in (0, 4)
            assert env.telemetry.status[action[-1] - 1] == 1
            assert env.plant.cluster.lifecycle.starts == 1
            return
        assert env.telemetry.pending_instances >= waiting
    pytest.fail(f"no instance could be placed, {pending} waited")
