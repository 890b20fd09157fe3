"""Looking at many sources: those that hang, fail or lie hold up nobody."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmcluster.deploy.config import example, load_config
from llmcluster.deploy.polling import Poll
from llmcluster.deploy.readings import EngineReading, GpuReading, ReadingError
from llmcluster.deploy.rehearsal.nvml import EmulatedGpus
from llmcluster.deploy.sampler import Sampler, impossible
from llmcluster.deploy.stack import opened_gpus, sampler_of

TIMEOUT_S = 0.2


class Called:
    """A source that does what it is told."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.read = call


def failing() -> EngineReading:
    raise ReadingError("the port is closed")


def test_one_that_hangs_costs_its_own_reading_alone() -> None:
    hangs = threading.Event()

    def hang() -> EngineReading:
        hangs.wait(30.0)
        return EngineReading(1.0, running=9.0)

    engines = {"slow": Called(hang), "dead": Called(failing), "good": Called(lambda: EngineReading(1.0, running=2.0))}
    sampler = Sampler(Called(lambda: {"0": GpuReading(1.0, power_w=100.0)}), ("0",), engines, None, TIMEOUT_S)  # type: ignore[arg-type]
    look = sampler.look()
    assert look.gpus["0"].reading == GpuReading(1.0, power_w=100.0)
    assert look.engines["good"].reading == EngineReading(1.0, running=2.0)
    assert look.engines["slow"].fault == "the server of slow does not answer in time"
    assert look.engines["dead"].fault == "the port is closed"
    hangs.set()
    deadline = time.monotonic() + 10.0
    while (late := sampler.look().engines["slow"]).reading is None and time.monotonic() < deadline:
        pass
    assert late.reading == EngineReading(1.0, running=9.0)


def test_what_was_said_last_holds_for_a_while() -> None:
    now = [0.0]
    answers = [EngineReading(0.0, running=1.0)]

    def read() -> EngineReading:
        return answers.pop() if answers else failing()

    sampler = Sampler(Called(lambda: {}), ("0",), {"a": Called(read)}, None, TIMEOUT_S, lambda: now[0])  # type: ignore[arg-type]
    sampler.look()
    now[0] = 3.0
    held = sampler.look().engines["a"]
    assert held.fault
    assert held.fresh(3.0, 5.0) == EngineReading(0.0, running=1.0)
    assert held.fresh(6.0, 5.0) is None


def test_a_gpu_that_is_no_longer_among_the_readings_is_lost() -> None:
    seen = [{"0": GpuReading(0.0), "1": GpuReading(0.0)}, {"1": GpuReading(1.0)}]
    sampler = Sampler(Called(lambda: seen.pop(0)), ("0", "1"), {}, None, TIMEOUT_S)  # type: ignore[arg-type]
    assert not sampler.look().gpus["0"].fault
    look = sampler.look()
    assert look.gpus["0"].fault == "is lost"
    assert not look.gpus["1"].fault


@pytest.mark.parametrize(
    ("lie", "says"),
    [({"running": -1.0}, "running"), ({"waiting": float("nan")}, "waiting"), ({"kv_used": 1.5}, "more than all")],
)
def test_a_lie_is_no_reading(lie: dict[str, float], says: str) -> None:
    honest = EngineReading(0.0)
    assert not impossible(honest)
    sampler = Sampler(
        Called(lambda: {"0": GpuReading(0.0, temperature_c=-3.0)}),  # type: ignore[arg-type]
        ("0",),
        {"a": Called(lambda: replace(honest, **lie))},  # type: ignore[dict-item,arg-type]
        None,
        TIMEOUT_S,
    )
    look = sampler.look()
    assert look.engines["a"].reading is None
    assert says in look.engines["a"].fault
    assert look.gpus["0"].reading is not None


def test_a_poll_is_not_asked_twice_at_once() -> None:
    going, calls = threading.Event(), []

    def call() -> int:
        calls.append(1)
        going.wait(30.0)
        return len(calls)

    poll = Poll("it", call)
    assert poll.ask()
    assert not poll.ask()
    with pytest.raises(ReadingError, match="in time"):
        poll.take(time.monotonic())
    going.set()
    assert poll.take(time.monotonic() + 10.0) == 1


def test_what_a_call_raises_comes_with_its_name() -> None:
    poll = Poll("the agent", lambda: 1 // 0)
    poll.ask()
    with pytest.raises(ReadingError, match="the agent failed: ZeroDivisionError"):
        poll.take(time.monotonic() + 10.0)


def test_a_gpu_that_hangs_does_not_silence_the_others(gpus: EmulatedGpus, tmp_path: Path) -> None:
    file = tmp_path / "deploy.toml"
    file.write_text(example())
    config = load_config(file)
    with opened_gpus(config) as source:
        sampler = sampler_of(config, source, None)
        assert not any(held.fault for held in sampler.look().gpus.values())
        gpus.hang(1, 60.0)
        for _ in range(2):
            look = sampler.look()
            assert not look.gpus["0"].fault
            assert look.gpus["1"].fault
        gpus.hang(1, 0.0)
