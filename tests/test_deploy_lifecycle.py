"""The life of one server: what is asked of it, in which order, and what its slot is meanwhile."""

import threading
import time

import pytest

from llmcluster.deploy.lifecycle import RETRY_S, Life
from llmcluster.deploy.readings import EngineReading, ReadingError
from llmcluster.simulator.kernels.state import DRAINING, EMPTY, FAILED, LOADING, SERVING, SLEEPING
from llmcluster.simulator.lifecycle import Target

MODELS = ("small", "large")
SMALL, LARGE = Target.SERVE, Target.SERVE + 1


class Box:
    """A server in memory: it is what it was told to be, at once."""

    def __init__(self, *, launches: bool = True) -> None:
        self.launches = launches
        self.model: str | None = "small"
        self.asleep, self.running = False, 0.0
        self.broken = ""
        self.waits: threading.Event | None = None

    def sleep(self) -> None:
        self.asleep = True

    def wake(self) -> None:
        if self.waits is not None:
            self.waits.wait(30.0)
        if self.broken:
            raise ReadingError(self.broken)
        self.asleep = False

    def load(self, model: str) -> None:
        self.model, self.asleep = model, False

    def stop(self) -> None:
        self.model = None

    @property
    def reading(self) -> EngineReading | None:
        return None if self.model is None else EngineReading(0.0, running=self.running, asleep=self.asleep)


class World:
    """A life with its server and a clock."""

    def __init__(self, box: Box, *, is_off: bool = False) -> None:
        self.box, self.now_s, self.verbs = box, 0.0, []
        self.life = Life(
            box,
            "small",
            MODELS,
            is_off=is_off,
            seconds=lambda model, woken: 20.0 if woken else 60.0,
            timeout_s=100.0,
            clock=lambda: self.now_s,
        )

    def pursue(self, in_flight: int = 0) -> int:
        self.life.pursue(self.box.reading, in_flight, self.verbs.append)
        return self.status

    def until(self, status: int) -> None:
        deadline = time.monotonic() + 10.0
        while self.pursue() != status:
            assert time.monotonic() < deadline, (self.status, self.life.fault)

    @property
    def status(self) -> int:
        return self.life.status(self.box.reading)


def test_it_drains_before_it_sleeps_and_wakes_when_it_is_wanted() -> None:
    world = World(Box())
    assert world.pursue() == SERVING
    world.box.running = 1.0
    world.life.command(Target.SLEEP)
    assert world.pursue() == DRAINING
    world.box.running = 0.0
    assert world.pursue(in_flight=1) == DRAINING
    assert not world.verbs
    world.until(SLEEPING)
    world.life.command(SMALL)
    world.box.waits = threading.Event()
    assert world.pursue() == LOADING
    world.now_s = 5.0
    assert world.life.ready_in_s == 15.0
    world.now_s = 50.0
    assert world.life.ready_in_s == 0.0
    world.box.waits.set()
    world.until(SERVING)
    assert world.verbs == ["sleep", "wake"]


def test_another_model_is_loaded_where_the_old_one_was() -> None:
    world = World(Box())
    world.life.command(LARGE)
    world.until(SERVING)
    assert world.verbs == ["stop", "load"]
    assert (world.box.model, world.life.model) == ("large", "large")


def test_off_and_on() -> None:
    world = World(Box())
    world.life.command(Target.OFF)
    world.until(EMPTY)
    world.life.command(SMALL)
    world.until(SERVING)
    assert world.verbs == ["stop", "load"]


def test_a_sleeper_is_stopped_for_another_model() -> None:
    world = World(Box())
    world.box.asleep = True
    world.life.command(LARGE)
    world.until(SERVING)
    assert world.verbs == ["stop", "load"]


def test_a_target_that_is_taken_back_stops_the_drain() -> None:
    world = World(Box())
    world.box.running = 3.0
    world.life.command(Target.SLEEP)
    assert world.pursue() == DRAINING
    world.life.command(SMALL)
    assert world.pursue() == SERVING
    world.life.command(Target.KEEP)
    assert world.pursue() == SERVING


def test_without_a_launcher_off_is_sleep_and_other_models_are_not_served() -> None:
    world = World(Box(launches=False))
    world.life.command(LARGE)
    assert world.pursue() == SERVING
    world.life.command(Target.OFF)
    world.until(SLEEPING)
    assert world.verbs == ["sleep"]


def test_silence_is_failure_but_not_where_nothing_runs() -> None:
    box = Box()
    box.model = None
    assert World(box).pursue() == FAILED
    assert World(box, is_off=True).pursue() == EMPTY


def test_a_command_that_fails_is_tried_again_later() -> None:
    world = World(Box())
    world.box.asleep, world.box.broken = True, "no memory"
    world.life.command(SMALL)
    deadline = time.monotonic() + 10.0
    while not world.life.fault and time.monotonic() < deadline:
        world.pursue()
    assert world.life.fault == "no memory"
    assert world.pursue() == SLEEPING
    world.box.broken = ""
    assert world.pursue() == SLEEPING
    world.now_s = RETRY_S
    world.until(SERVING)
    assert world.verbs == ["wake", "wake"]
    assert not world.life.fault


def test_a_start_that_never_ends_is_given_up() -> None:
    world = World(Box())
    world.box.asleep, world.box.waits = True, threading.Event()
    world.life.command(SMALL)
    assert world.pursue() == LOADING
    world.now_s = 101.0
    assert world.pursue() == SLEEPING
    assert "longer than 100 s" in world.life.fault
    world.box.waits.set()


@pytest.mark.parametrize(("target", "verb", "should"), [(Target.SLEEP, "sleep", "sleep"), (Target.OFF, "stop", "end")])
def test_a_server_that_takes_a_command_and_does_nothing_is_told_again(target: int, verb: str, should: str) -> None:
    box = Box()
    box.sleep = box.stop = lambda: None  # type: ignore[method-assign]
    world = World(box)
    world.life.command(target)
    deadline = time.monotonic() + 10.0
    world.pursue()
    while world.life.is_busy:
        assert time.monotonic() < deadline
    assert world.pursue() == DRAINING
    world.now_s = 101.0
    world.pursue()
    assert world.life.fault == f"it does not {should} 100 s after {verb}"
    world.life.command(SMALL)
    assert world.pursue() == SERVING
    world.life.command(target)
    world.now_s += RETRY_S
    world.pursue()
    assert world.verbs == [verb, verb]


def test_no_request_goes_to_a_server_on_its_way_to_sleep_whatever_is_wanted_by_now() -> None:
    world = World(Box())
    told = threading.Event()
    world.box.sleep = lambda: told.wait(30.0) and None  # type: ignore[method-assign, assign, func-returns-value]
    world.life.command(Target.SLEEP)
    assert world.pursue() == DRAINING
    world.life.command(SMALL)
    assert world.pursue() == DRAINING
    world.box.asleep = True
    told.set()
    world.until(SERVING)
    assert world.verbs == ["sleep", "wake"]


def test_what_cannot_be_announced_does_not_begin() -> None:
    world = World(Box())

    def refuse(verb: str) -> None:
        raise OSError("the disk is full")

    world.life.command(Target.SLEEP)

    with pytest.raises(OSError, match="full"):
        world.life.pursue(world.box.reading, 0, refuse)
    assert not world.box.asleep
    assert world.status == DRAINING
