"""Saved states: back and forth through bytes, the same future from any point, and what is refused."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.faults import ScheduledFault
from llmcluster.simulator.kernels.state import BIN, FINISHED, REQUEST
from llmcluster.simulator.snapshot import Snapshot, copied, fingerprint, generator_from, generator_state, overwrite
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import to_ps
from llmcluster.simulator.workload.table import RequestTable
from llmcluster.tests.lives import FAULTS, LIVES, PLAN, SPEC, cluster, play, requests

# -------------------------------------------------------------------------------------------------------- the container

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
arrays = st.builds(
    lambda shape, dtype: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.sampled_from(["i8", "f4", "?", "i2"]),
) | st.tuples(st.integers(0, 3), st.sampled_from([BIN, REQUEST])).map(lambda drawn: np.zeros((drawn[0], 2), drawn[1]))
states = st.dictionaries(
    st.text("abc", max_size=3),
    st.recursive(plain | arrays, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("k"), inner)),
    max_size=4,
)


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Snapshot):
        return isinstance(two, Snapshot) and one.of == two.of and same(one.state, two.state)
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


@given(states, states)
def test_a_snapshot_survives_bytes(outer: dict[str, Any], inner: dict[str, Any]) -> None:
    one = Snapshot("x", {"inner": Snapshot("y", inner), **outer})
    content = one.to_bytes()
    two = Snapshot.from_bytes(content)
    assert same(one, two) and two.to_bytes() == content


@pytest.mark.parametrize("damage", ["cut", "other", "empty", "format", "array", "object"])
def test_what_is_no_snapshot_is_refused(damage: str) -> None:
    content = Snapshot("x", {"a": np.arange(100)}).to_bytes()
    damaged = {
        "cut": content[:-10],
        "other": b"PK\x03\x04 something else",
        "empty": b"",
        "format": content.replace(b"snapshot 1", b"snapshot 9"),
        "array": content.replace(b'"$array": 0', b'"$array": 7'),
        "object": content.replace(b"<i8", b"|O8"),
    }[damage]
    assert damaged != content
    with pytest.raises(InputError, match=r"snapshot: .*\. Give what Snapshot\.to_bytes returned"):
        Snapshot.from_bytes(damaged)


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.SFC64])
def test_a_generator_goes_on_as_it_would_have(bits: Any) -> None:
    rng = np.random.Generator(bits(5))
    rng.spawn(3)
    rng.integers(10, size=3, dtype=np.int32)  # leaves half a word in PCG64
    content = Snapshot("", generator_state(rng)).to_bytes()
    other = generator_from(Snapshot.from_bytes(content).state)
    assert (
        rng.integers(2**31, size=5, dtype=np.int32).tolist() == other.integers(2**31, size=5, dtype=np.int32).tolist()
    )
    assert rng.spawn(1)[0].random() == other.spawn(1)[0].random()


def test_records_are_copied_whole_and_apart() -> None:
    first = np.zeros((3, 2), BIN)
    first["metered_w"] = np.arange(6).reshape(3, 2)
    second = copied(first)
    first["metered_w"] = 7
    assert second["metered_w"].tolist() == [[0, 1], [2, 3], [4, 5]] and second.dtype == first.dtype
    overwrite(first, second)
    assert first.tobytes() == second.tobytes()


def test_what_lies_between_the_fields_of_a_record_does_not_matter() -> None:
    clean, dirty = np.zeros(5, REQUEST), np.zeros(5, REQUEST)
    dirty.view(np.uint8)[...] = 255
    for name in REQUEST.names:
        dirty[name] = 0
    assert clean.tobytes() != dirty.tobytes() or REQUEST.itemsize == sum(
        REQUEST[name].itemsize for name in REQUEST.names
    )
    assert Snapshot("", {"a": clean}).to_bytes() == Snapshot("", {"a": dirty}).to_bytes()


def test_fingerprints_tell_content_type_and_shape_apart() -> None:
    six = np.arange(6)
    different = [(six,), (six.reshape(2, 3),), (six.astype("i4"),), (six + 1,), (six, six), ("a",), (b"a",), ()]
    assert len({fingerprint(*parts) for parts in different}) == len(different)
    assert fingerprint(six, "a") == fingerprint(np.arange(12)[:6], "a")


# ---------------------------------------------------------------------------------------------------------- the cluster


def run_on(world: Cluster, life: list[Any]) -> bytes:
    play(world, life)
    world.advance(world.now_ps + to_ps(7.5))
    return world.save_state().to_bytes()


@settings(max_examples=30)
@given(LIVES, LIVES, LIVES, st.integers(0, 9))
def test_from_any_point_the_future_is_the_same(before: Any, after: Any, aside: Any, seed: int) -> None:
    """In the same cluster after going another way, and, by bytes, in a fresh one."""
    world = cluster(seed)
    play(world, before)
    snapshot = world.save_state()
    content = snapshot.to_bytes()
    expected = run_on(world, after)

    world.restore_state(snapshot)
    assert world.save_state().to_bytes() == content
    run_on(world, aside)
    world.restore_state(snapshot)
    assert run_on(world, after) == expected
    assert snapshot.to_bytes() == content, "running on does not touch a snapshot"

    other = Cluster(PLAN, requests(seed), np.random.default_rng(99), 1, FAULTS)
    run_on(other, aside)
    other.restore_state(Snapshot.from_bytes(content))
    assert run_on(other, after) == expected


@settings(max_examples=10)
@given(LIVES, LIVES, st.integers(0, 9))
def test_saving_changes_nothing(first: Any, second: Any, seed: int) -> None:
    plainly, watched = cluster(seed), cluster(seed)
    play(plainly, first)
    play(watched, first)
    watched.save_state()
    assert run_on(plainly, second) == run_on(watched, second)


def test_branches_of_branches_do_not_disturb_one_another() -> None:
    world = cluster(3)
    world.advance(to_ps(10))
    early = world.save_state()
    world.advance(to_ps(30))
    late = world.save_state()
    expected = late.to_bytes()
    world.restore_state(early)
    world.fail(0, 1, repair_s=10)
    world.advance(to_ps(40))
    world.restore_state(late)
    assert world.save_state().to_bytes() == expected


@settings(max_examples=10)
@given(LIVES, LIVES, st.integers(0, 9))
def test_copies_and_pickles_of_a_cluster_run_on_alike_and_apart(before: Any, after: Any, seed: int) -> None:
    world = cluster(seed)
    play(world, before)
    others = [copy.deepcopy(world), pickle.loads(pickle.dumps(world))]
    expected = run_on(world, after)
    assert [run_on(other, after) for other in others] == [expected] * 2


def test_a_chunk_of_an_endless_workload_goes_on_after_a_failure_and_a_restore() -> None:
    """What acts on the engine later acts on the one that has taken its place."""
    first, second = (RequestTable.from_columns([to_ps(t)] * 40, [500] * 40, [1500] * 40) for t in (0, 6))
    world = Cluster(PLAN, first, np.random.default_rng(0), 8, FAULTS)
    world.advance(to_ps(5))
    before = world.save_state()
    world.history.release()
    world.follow_with(second)
    with pytest.raises(InputError, match="taken of something else"):
        world.restore_state(before)
    world.advance(to_ps(7))
    world.fail(0, 1, repair_s=3)
    assert world.held_at_gateway == len(world.requests) - len(world.done) > 40
    snapshot = world.save_state()
    assert world.drain()
    assert (world.engine.requests["status"] == FINISHED).all()
    expected = world.save_state().to_bytes()
    other = Cluster(PLAN, world.requests, np.random.default_rng(5), 8, FAULTS)
    for again in (world, other):
        again.restore_state(snapshot)
        assert again.drain() and again.save_state().to_bytes() == expected


def first_of_them(_: Cluster, request: int, candidates: list[int]) -> int:
    return candidates[request % len(candidates)]


def test_a_router_object_is_not_saved_but_asked_for() -> None:
    world, other = cluster(1), cluster(1)
    plain = world.save_state()
    world.route(1.0, first_of_them)
    world.advance(to_ps(20))
    snapshot = world.save_state()
    expected = run_on(world, [])
    with pytest.raises(InputError, match=r"under a router object\. Hand it to cluster\.route"):
        other.restore_state(snapshot)
    other.route(1.0, first_of_them)
    other.restore_state(snapshot)
    assert run_on(other, []) == expected
    other.restore_state(plain)
    assert other.is_compiled and run_on(other, []) == run_on(cluster(1), [])


def in_another_process(source: str, target: str) -> None:
    world = cluster(5)
    world.restore_state(Snapshot.from_bytes(Path(source).read_bytes()))
    world.advance(to_ps(90))
    Path(target).write_bytes(world.save_state().to_bytes())


def test_a_run_goes_on_in_another_process(tmp_path: Path) -> None:
    world = cluster(5)
    world.advance(to_ps(20.123))
    source, target = tmp_path / "saved", tmp_path / "later"
    source.write_bytes(world.save_state().to_bytes())
    code = f"from llmcluster.tests.test_snapshot import in_another_process as go; go({str(source)!r}, {str(target)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    world.advance(to_ps(90))
    assert target.read_bytes() == world.save_state().to_bytes()


def _other_plan() -> Blueprint:
    spec = copy.deepcopy(SPEC)
    spec["rows"][0]["racks"][0]["servers"][0]["inlet_c"] = 25.0
    return Blueprint.of(ClusterSpec.model_validate(spec))


@pytest.mark.parametrize(
    "other",
    [
        lambda: Cluster(_other_plan(), requests(0), np.random.default_rng(0), 8, FAULTS),
        lambda: Cluster(PLAN, requests(1), np.random.default_rng(0), 8, FAULTS),
        lambda: Cluster(PLAN, requests(0, 59), np.random.default_rng(0), 8, FAULTS),
        lambda: Cluster(PLAN, requests(0), np.random.default_rng(0), 8, FAULTS[:2]),
        lambda: Cluster(PLAN, requests(0), np.random.default_rng(0), 8, (ScheduledFault(at_s=1, slot=0, repair_s=1),)),
    ],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(other: Any) -> None:
    snapshot = cluster(0).save_state()
    stranger = other()
    stranger.advance(to_ps(5))
    before = stranger.save_state().to_bytes()
    with pytest.raises(InputError, match="same cluster, workload, faults and version"):
        stranger.restore_state(snapshot)
    assert stranger.save_state().to_bytes() == before


def test_processes_of_users_are_refused_with_a_remedy() -> None:
    world = cluster(0)
    before = world.save_state()

    def process(env: simpy.Environment) -> simpy.events.ProcessGenerator:
        yield env.timeout(to_ps(10))

    world.world.process(process(world.world))
    world.advance(to_ps(5))
    for attempt in (world.save_state, lambda: world.restore_state(before)):
        with pytest.raises(InputError, match=r"cannot be saved.*agenda\.on"):
            attempt()
    world.advance(to_ps(11))
    world.restore_state(world.save_state())
