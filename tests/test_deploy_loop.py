"""The control loop over the emulated stack, and what it does when something fails."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pynvml
import pytest

from llmcluster.deploy.beats import Beats
from llmcluster.deploy.exporter import Exporter, LoopCollector
from llmcluster.deploy.fallback import RESPONSES, ROUTER
from llmcluster.deploy.mind import Mind
from llmcluster.deploy.rehearsal.live import SCENARIO
from llmcluster.deploy.rehearsal.nvml import WRITES
from llmcluster.deploy.rehearsal.stage import Stage
from llmcluster.envs.actions import ClusterAction
from llmcluster.envs.observation import Observation
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import FAILED, SERVING
from llmcluster.tests.lockstep import Lockstep, lockstep, traffic
from llmcluster.tests.rig import BUDGET_W, FOUND_W, STALE_S, Rig, lock, rig

__all__ = ["lock", "rig"]


def gpu_limits(rig: Rig) -> list[float]:
    return rig.lock.stage.limits_w()


def test_it_decides_holds_the_budget_and_restores(rig: Rig) -> None:
    rig.step()
    rig.tick()
    assert [line["by"] for line in rig.lines("decision")] == ["agent", "agent"]
    assert sum(gpu_limits(rig)) <= BUDGET_W + 1e-3
    assert len(rig.lines("write")) == 2
    for line in rig.lines("write"):
        assert line["requested_w"] == pytest.approx(line["watts"], abs=1e-3)
        assert line["enforced_w"] == pytest.approx(line["watts"], abs=1e-3)
    assert not rig.loop.progress.troubles
    rig.lock.plant.restore()
    assert gpu_limits(rig) == FOUND_W


def test_a_learned_agent_runs_it_as_it_runs_the_simulator(lock: Lockstep, tmp_path: Path) -> None:
    import torch

    from llmcluster.agents.learned import network_spec, save_agent
    from llmcluster.agents.network import Actor

    torch.manual_seed(0)
    save_agent(tmp_path / "agent", Actor(network_spec(lock.env)), {})
    rig = Rig(lock, tmp_path, agent=str(tmp_path / "agent"))
    rig.step()
    rig.tick()
    assert [line["by"] for line in rig.lines("decision")] == ["agent", "agent"]
    assert rig.last["wish_w"] is not None
    assert sum(gpu_limits(rig)) <= BUDGET_W + 1e-3


def test_a_dry_run_writes_nothing(lock: Lockstep, tmp_path: Path) -> None:
    rig = Rig(lock, tmp_path, apply=False)
    rig.step()
    rig.tick()
    assert rig.last["written"]
    assert gpu_limits(rig) == FOUND_W
    assert not rig.lines("write")


def test_no_permission_leaves_limits_and_the_agent_goes_on(rig: Rig) -> None:
    for gpu in range(2):
        rig.lock.stage.gpus.fail(gpu, pynvml.NVML_ERROR_NO_PERMISSION, WRITES)
    rig.step()
    rig.tick()
    assert gpu_limits(rig) == FOUND_W
    assert rig.kinds == {"limits"}
    assert "CAP_SYS_ADMIN" in rig.last["troubles"][0]["text"]
    assert rig.last["by"] == "agent"
    for gpu in range(2):
        rig.lock.stage.gpus.fail(gpu, 0, WRITES)
    rig.tick()
    assert sum(gpu_limits(rig)) <= BUDGET_W + 1e-3


def test_clocks_are_locked_once_and_set_free(rig: Rig) -> None:
    plant, gpus = rig.lock.plant, rig.lock.stage.gpus
    action = ClusterAction(clock_ratio=np.array([0.5, 1.0]))
    for _ in range(2):
        now = plant.read()
        plant.carry_out(action, plant.plan(action, now), now)
    highest = rig.lock.stage.feed.kinds[0].clock_max_mhz
    lock = gpus.clock_lock_mhz(0)
    assert lock is not None and lock[1] == pytest.approx(highest / 2, abs=15)
    assert gpus.clock_lock_mhz(1) is None
    assert len([line for line in rig.lines("write") if "highest_mhz" in line]) == 1
    plant.restore()
    assert gpus.clock_lock_mhz(0) is None


def test_a_keeper_that_goes_and_comes_again(rig: Rig) -> None:
    with rig.beats:
        rig.step()
        rig.lock.stage.kill("keeper")
        rig.lock.until(lambda: bool(rig.beats.fault), "a beat fails")
        rig.tick()
        assert rig.kinds == {"limits"}
        assert rig.last["by"] == "agent"
        rig.lock.stage.start_keeper()
        assert gpu_limits(rig) == FOUND_W
        rig.tick()
        rig.tick()
        assert sum(gpu_limits(rig)) <= BUDGET_W + 1e-3
        assert not rig.loop.progress.troubles


def test_a_gpu_that_is_lost_takes_its_slot_out_and_the_rest_goes_on(rig: Rig) -> None:
    rig.step()
    writes = len(rig.lines("write"))
    rig.lock.stage.gpus.fail(1, pynvml.NVML_ERROR_GPU_IS_LOST)
    rig.tick()
    assert rig.kinds == {"gpu"}
    assert rig.last["status"] == [SERVING, FAILED]
    assert rig.last["by"] == "agent"
    assert rig.last["power_w"][1] == 0.0
    # What it draws nobody knows: its limit is kept for it.
    assert rig.last["cap_w"][0] + rig.last["cap_in_force_w"][1] <= BUDGET_W + 1e-3
    assert all(line["gpu"] == "0" for line in rig.lines("write")[writes:])
    assert not [line for line in rig.lines("write-failed")]
    before = rig.lock.gateway.read().in_flight
    for _ in range(6):
        rig.lock.ask(50, 50)
    after = rig.lock.gateway.read().in_flight
    assert [after[slot] - before[slot] for slot in rig.lock.env.fleet.slots] == [6, 0]


def test_a_driver_that_hangs_is_held_for_a_while_and_then_falls_back(rig: Rig) -> None:
    rig.step()
    for gpu in range(2):
        rig.lock.stage.gpus.hang(gpu, 60.0)
    rig.lock.pass_seconds(2)
    assert rig.lock.plant.status().tolist() == [SERVING, SERVING]
    rig.lock.pass_seconds(2)
    rig.step()
    assert rig.last["by"] == "fallback"
    assert "telemetry" in rig.kinds
    assert rig.last["router"] == ROUTER
    assert rig.last["weights"] == [1.0, 1.0]
    for gpu in range(2):
        rig.lock.stage.gpus.hang(gpu, 0.0)


def test_metrics_that_are_down_fail_the_slot_once_they_are_stale(rig: Rig) -> None:
    rig.step()
    faults = rig.lock.stage.servers.apps[0].faults
    faults.metrics_down = True
    rig.lock.pass_seconds(2)
    assert rig.lock.plant.status().tolist() == [SERVING, SERVING]
    rig.tick()
    assert rig.kinds == {"engine"}
    assert rig.last["status"] == [FAILED, SERVING]
    assert rig.last["by"] == "agent"
    faults.metrics_down = False
    rig.tick()
    assert rig.last["status"] == [SERVING, SERVING]


def test_all_servers_silent_is_a_fallback(rig: Rig) -> None:
    rig.step()
    for app in rig.lock.stage.servers.apps:
        app.faults.metrics_down = True
    rig.tick()
    assert rig.last["by"] == "fallback"
    assert {"telemetry", "engine"} <= rig.kinds


@pytest.mark.parametrize("lie", [{"num_requests_running": -4.0}, {"kv_cache_usage_perc": 7.0}])
def test_a_server_that_lies_is_not_believed(rig: Rig, lie: dict[str, float]) -> None:
    rig.step()
    rig.lock.stage.servers.apps[1].faults.lies = lie
    rig.tick()
    assert rig.last["status"] == [SERVING, FAILED]
    assert rig.last["by"] == "agent"
    assert "which" in next(t["text"] for t in rig.last["troubles"] if t["kind"] == "engine")


def test_a_slow_server_does_not_hold_up_the_loop(rig: Rig) -> None:
    rig.lock.hush()
    rig.step()
    rig.lock.stage.servers.apps[1].faults.silent = True
    began_s = time.monotonic()
    rig.lock.pass_seconds(1)
    assert time.monotonic() - began_s < 30.0
    rig.lock.pass_seconds(4)
    rig.step()
    assert rig.last["status"] == [SERVING, FAILED]
    assert "in time" in str(rig.last["troubles"]) or "within" in str(rig.last["troubles"])


def test_a_gateway_that_is_gone_is_a_fallback(rig: Rig) -> None:
    rig.step()
    rig.lock.cut_gateway()
    rig.lock.now_s += STALE_S + 1
    rig.lock.plant.look()
    rig.step()
    assert rig.last["by"] == "fallback"
    assert {"gateway", "steer"} <= rig.kinds
    assert sum(gpu_limits(rig)) <= BUDGET_W + 1e-3


def test_an_agent_that_fails_or_dawdles_is_replaced_for_that_decision(rig: Rig) -> None:
    class Bad:
        def __init__(self) -> None:
            self.calls = 0

        def predict(self, observation: Observation, *rest: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("no idea")
            if self.calls == 2:
                return np.array([1, 2]), None
            time.sleep(0.5)
            return good.predict(observation, *rest, **options)

    good = rig.mind._agent
    rig.mind._agent, rig.mind._patience_s = Bad(), 0.1
    for says in ("no idea", "shape", "in time"):
        rig.step()
        assert rig.last["by"] == "fallback"
        assert says in rig.last["troubles"][0]["text"]
        assert sum(rig.last["cap_w"]) <= BUDGET_W + 1e-3
    assert rig.loop.progress.fallbacks == {"agent": 3}
    rig.mind._agent, rig.mind._patience_s = good, 5.0
    while not rig.mind._late.is_over:  # type: ignore[union-attr]
        time.sleep(0.01)
    rig.step()
    assert rig.last["by"] == "agent"


def test_what_is_slow_at_first_use_is_used_before_the_first_decision(lock: Lockstep, tmp_path: Path) -> None:
    class Slow:
        def __init__(self) -> None:
            self.starts: list[bool] = []

        def predict(self, observation: Observation, state: Any, start: Any, **options: Any) -> Any:
            if not self.starts:
                time.sleep(0.5)
            self.starts.append(bool(start[0]))
            return usual.predict(observation, state, start, **options)

    rig = Rig(lock, tmp_path)
    usual, slow = rig.mind._agent, Slow()
    rig.mind._agent, rig.mind._patience_s = slow, 0.2
    rig.mind.warm_up(lock.plant, lock.plant.read())
    rig.mind.begin(lock.plant)
    rig.step()
    assert rig.last["by"] == "agent"
    assert slow.starts == [True, True], "what it decided for nothing is forgotten"


def test_a_forecast_that_is_no_number_is_not_used(rig: Rig) -> None:
    rig.step()
    forecaster = rig.mind._perception.forecaster
    usual = forecaster.update
    forecaster.update = lambda *told: usual(*told) * np.inf  # type: ignore[method-assign]
    rig.tick()
    assert rig.last["by"] == "fallback"
    assert rig.kinds == {"forecast"}


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Within, no file of this process grows beyond what the log has, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_all_writes_until_there_is_room(rig: Rig) -> None:
    rig.step()
    assert sum(gpu_limits(rig)) <= BUDGET_W + 1e-3
    with full_disk(rig.path):
        rig.step()
        assert gpu_limits(rig) == FOUND_W
        assert rig.kinds == {"audit"}
        assert rig.loop.progress.fallbacks == {"audit": 1}
    rig.step()
    assert sum(gpu_limits(rig)) <= BUDGET_W + 1e-3
    assert rig.last["by"] == "agent"


def test_clocks_that_jump_do_not_matter(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.step()
    usual = time.time
    monkeypatch.setattr(time, "time", lambda: usual() - 86_400.0)
    rig.tick()
    assert rig.last["by"] == "agent"
    # A machine that was suspended: its monotonic clock may go on by hours at once.
    rig.lock.now_s += 7200.0
    rig.lock.plant.look()
    rig.step()
    assert rig.last["by"] == "agent"
    assert np.isfinite(rig.last["power_w"]).all()


def test_a_budget_file_that_vanishes_leaves_the_lowest_there_was(lock: Lockstep, tmp_path: Path) -> None:
    from llmcluster.deploy.config import LimitsConfig
    from llmcluster.deploy.site import SourceSpec
    from llmcluster.deploy.surroundings import Surroundings

    file = tmp_path / "budget_w"
    file.write_text("900 700 800")
    limits = LimitsConfig(budget_w=SourceSpec(file=file))
    env, now = lock.env, [0.0]
    around = Surroundings(env.scenario, env.blueprint, limits, lock.config.site, STALE_S, lambda: now[0])
    assert around.budget_w().tolist() == [900, 700, 800]
    file.unlink()
    now[0] = 2.0
    assert around.budget_w().tolist() == [900, 700, 800]
    assert not around.troubles
    now[0] = 4.0
    assert around.budget_w().tolist() == [700, 700, 700]
    assert [trouble.kind for trouble in around.troubles] == ["budget"]
    assert RESPONSES["budget"].grave
    file.write_text("850")
    assert around.budget_w().tolist() == [850, 850, 850]
    assert not around.troubles


@pytest.fixture
def dipping(tmp_path: Path) -> Iterator[Lockstep]:
    """A budget that is lower for four seconds, between the times at which telemetry tells it."""
    stage = Stage(SCENARIO, tmp_path, ())
    schedule = [[0, 4000], [12, 4000], [12, 2500], [16, 2500], [16, 4000]]
    made = lockstep(stage, traffic(10.0, 1.0), limits={"budget_w": {"schedule": schedule}})
    with made.running():
        yield made


def test_a_short_dip_of_the_budget_is_kept_too(dipping: Lockstep) -> None:
    plant = dipping.plant
    for _ in range(2):
        now = dipping.pass_tick()
        assert now.budget_w.tolist() == [4000.0] * 3
        plan = plant.plan(ClusterAction(cap_w=np.full(4, 1400.0)), now)
        assert plan.caps.watts.sum() <= (2500.0 if dipping.now_s < 16 else 4000.0) + 1e-3
    assert plan.budget_w == 4000.0


def test_metrics_name_every_gpu_slot_and_trouble(rig: Rig) -> None:
    from urllib.request import urlopen

    rig.step()
    collector = LoopCollector(rig.lock.plant, rig.lock.capper, rig.loop.progress, apply=True)
    exporter = Exporter(collector, "127.0.0.1", 0)
    with urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    with pytest.raises(InputError, match=r"exporter 127.0.0.1:\d+: cannot be listened at"):
        Exporter(
            LoopCollector(rig.lock.plant, rig.lock.capper, rig.loop.progress, apply=True), "127.0.0.1", exporter.port
        )
    exporter.close()
    assert 'llmcluster_gpu_enforced_limit_watts{gpu="1"}' in text
    assert 'llmcluster_slot_state{slot="row0/rack0/server0/slot0",state="serving"} 1.0' in text
    assert all(f'llmcluster_troubles{{kind="{kind}"}} 0.0' in text for kind in RESPONSES)
    assert f'llmcluster_budget_watts{{ahead_seconds="30"}} {BUDGET_W}' in text
    assert "llmcluster_decisions_total 1.0" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("small", "clairvoyant", "none"), "knows the future"),
        (("small", "uniform-cap", "oracle"), "knows the future"),
        (("small", "nobody", "none"), "none of that name"),
    ],
)
def test_who_knows_the_future_cannot_be_deployed(arguments: tuple[str, str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Mind(*arguments)


def test_beats_end_with_the_loop_and_when_it_hangs() -> None:
    beats: list[float] = []
    now = [0.0]

    class Keeper:
        def beat(self) -> None:
            beats.append(now[0])

    def wait(is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10.0
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    with Beats(Keeper(), 0.005, 1.0, lambda: now[0]) as alive:  # type: ignore[arg-type]
        wait(lambda: len(beats) > 2)
        now[0] = 5.0
        time.sleep(0.05)
        count = len(beats)
        time.sleep(0.05)
        assert len(beats) == count
        alive.alive()
        wait(lambda: len(beats) > count)
    count = len(beats)
    time.sleep(0.03)
    assert len(beats) == count
