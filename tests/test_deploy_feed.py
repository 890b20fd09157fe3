"""The emulated stack in lock-step: what NVML and `/metrics` tell is what the simulator's own telemetry says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pynvml
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmcluster.deploy.nvml.session import NvmlSession
from llmcluster.deploy.readings import GpuReading
from llmcluster.deploy.rehearsal.feed import Feed
from llmcluster.deploy.rehearsal.live import SCENARIO, LiveMachine
from llmcluster.deploy.rehearsal.nvml import EmulatedGpus
from llmcluster.deploy.rehearsal.servers import EmulatedServers
from llmcluster.envs.scenario import load_scenario
from llmcluster.simulator.kernels.state import J_PER_UNIT
from llmcluster.simulator.lifecycle import Target
from llmcluster.tests.emulated import H100

TDP_W = H100.cap_max_w
MHZ = H100.clock_max_mhz


class Stack:
    """Machine, servers and GPUs, one read through HTTP and the other through the real binding."""

    def __init__(self, machine: LiveMachine, gpus: EmulatedGpus, session: NvmlSession) -> None:
        self.machine, self.gpus, self.session = machine, gpus, session
        self.feed = Feed(machine, gpus)

    def by_slot(self) -> list[list[GpuReading]]:
        readings = list(self.session.read().values())
        return [[readings[gpu] for gpu in own] for own in self.feed.gpus]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    gpus = EmulatedGpus(tmp_path / "nvml.state", [H100] * 8)
    with gpus.bound():
        session = NvmlSession([str(number) for number in range(8)])
        yield Stack(LiveMachine(capacity=2000), gpus, session)
        session.close()


def test_a_slot_is_dealt_evenly_to_its_gpus(stack: Stack) -> None:
    assert stack.feed.gpus == ((0, 1), (2, 3), (4, 5), (6, 7))
    stack.machine.submit(1, 4000, 200)
    stack.machine.advance_to(0.55)
    slots = stack.by_slot()
    for one, other in slots:
        assert (one.power_w, one.energy_j, one.temperature_c) == (other.power_w, other.energy_j, other.temperature_c)
    power_w = [one.power_w or 0.0 for one, _ in slots]
    assert power_w[1] > 2 * power_w[0] > 100.0 and power_w[0] == power_w[2] == power_w[3]
    assert slots[0][0].throttle == {"gpu_idle"}
    energy_j = stack.machine.counts(1).energy * J_PER_UNIT
    assert 2 * (slots[1][0].energy_j or 0.0) == pytest.approx(energy_j, abs=1e-3) and energy_j > 100


def test_nvml_tells_what_the_simulator_s_meters_do(stack: Stack) -> None:
    rng = np.random.default_rng(1)
    before_j = np.zeros(4)
    for second in range(1, 31):
        for _ in range(rng.poisson(5)):
            stack.machine.submit(int(rng.integers(3)), int(rng.integers(100, 3000)), int(rng.integers(10, 300)))
        stack.machine.advance_to(second)
        slots, truth = stack.by_slot(), stack.machine.cluster.history.records[-1]
        told = {
            "metered_w": ([sum(gpu.mean_power_w or 0.0 for gpu in own) for own in slots], 2e-3),
            "temperature_c": ([max(gpu.temperature_c or 0.0 for gpu in own) for own in slots], 0.5),
            "clock_ratio": ([min(gpu.clock_mhz or 0.0 for gpu in own) / MHZ for own in slots], 0.5 / MHZ),
        }
        for name, (values, resolution) in told.items():
            np.testing.assert_allclose(values, truth[name], atol=resolution + 1e-4, rtol=0, err_msg=name)
        energy_j = np.array([sum(gpu.energy_j or 0.0 for gpu in own) for own in slots])
        np.testing.assert_allclose(energy_j - before_j, truth["energy"] * J_PER_UNIT, atol=2.1e-3, rtol=0)
        before_j = energy_j
        cap_w = stack.machine.cluster.engine.slots["cap_w"]
        assert [sum(gpu.enforced_w or 0.0 for gpu in own) for own in slots] == cap_w.tolist()
        assert slots[3][0].utilisation == 0.0 and slots[3][0].throttle == {"gpu_idle"}
    assert slots[0][0].utilisation and slots[0][0].utilisation > 0.9
    assert slots[0][0].memory_used_bytes == round(0.9 * H100.memory_bytes)


def test_limits_that_are_set_hold_from_the_next_step_on(stack: Stack) -> None:
    machine = stack.machine
    machine.advance_to(1.0)
    handles = [stack.session.devices[str(gpu)].handle for gpu in range(8)]
    for gpu, watts in ((0, 300), (1, 340), (2, 290), (3, 290)):
        pynvml.nvmlDeviceSetPowerManagementLimit(handles[gpu], watts * 1000)
    for slot in range(2):
        for _ in range(20):
            machine.submit(slot, 1500, 400)
    machine.advance_to(2.0)
    assert machine.cluster.engine.slots["cap_w"].tolist() == [640.0, 580.0, 2 * TDP_W, 2 * TDP_W]
    machine.advance_to(10.0)
    mean_w = machine.cluster.history.column("metered_w", 5).max(axis=0)
    # The clock is chosen at the edges of seconds, and what is read of the cache grows in between.
    assert mean_w[0] <= 640.0 * 1.001 and mean_w[1] <= 580.0 * 1.001
    slots = stack.by_slot()
    assert slots[1][0].throttle == {"sw_power_cap"} and (slots[1][0].clock_mhz or MHZ) < MHZ
    stack.gpus.set_ceiling(1, 200.0)
    machine.advance_to(11.0)
    assert machine.cluster.engine.slots["cap_w"][0] == 500.0, "another limiter counts, too"


def test_a_clock_lock_holds(stack: Stack) -> None:
    machine = stack.machine
    pynvml.nvmlDeviceSetGpuLockedClocks(stack.session.devices["0"].handle, 210, 990)
    machine.submit(0, 1500, 400)
    machine.submit(1, 1500, 400)
    machine.advance_to(3.0)
    ratio = machine.cluster.history.column("clock_ratio")[-1]
    assert 0.9 * 990 / MHZ < ratio[0] <= 990 / MHZ and ratio[1] == 1.0
    pynvml.nvmlDeviceResetGpuLockedClocks(stack.session.devices["0"].handle)
    machine.advance_to(6.0)
    assert machine.cluster.history.column("clock_ratio")[-1][0] == 1.0


def test_memory_follows_the_life_of_a_slot(stack: Stack) -> None:
    def used() -> list[int | None]:
        return [own[0].memory_used_bytes for own in stack.by_slot()]

    stack.machine.command(0, Target.SLEEP)
    stack.machine.kill(1)
    stack.machine.advance_to(1.0)
    assert used() == [2_000_000_000, 0, round(0.9 * H100.memory_bytes), round(0.9 * H100.memory_bytes)]


def test_brakes_are_told(tmp_path: Path) -> None:
    content = load_scenario(SCENARIO).model_dump()
    rows = [row | {"power_limit_share": 0.3, "brake": True} for row in content["cluster"]["rows"]]
    content["cluster"]["rows"] = rows
    gpus = EmulatedGpus(tmp_path / "nvml.state", [H100] * 8)
    with gpus.bound():
        session = NvmlSession()
        stack = Stack(LiveMachine(load_scenario(content)), gpus, session)
        seen = set()
        for second in range(1, 15):
            for slot in range(4) if second == 3 else ():
                for _ in range(30):
                    stack.machine.submit(slot, 2000, 400)
            stack.machine.advance_to(second)
            braked = stack.machine.cluster.protection.is_braked(second).tolist()
            assert [("hw_power_brake" in own[0].throttle) for own in stack.by_slot()] == braked
            seen |= set(braked)
        session.close()
    assert seen == {True, False}


def test_the_stack_in_lock_step_tells_the_simulator_s_telemetry(stack: Stack) -> None:
    """Requests over HTTP, a tick at a time: what a real plant is built from equals what the simulated one says."""
    rng = np.random.default_rng(3)
    with EmulatedServers(stack.machine) as servers:
        sent: list[threading.Thread] = []
        total = np.zeros((4, 2))
        for second in range(20):
            for slot in rng.integers(4, size=rng.poisson(6)).tolist():
                url, prompt, output = list(servers.urls.values())[slot], *rng.integers(20, 900, size=2).tolist()
                arrived = servers.call(lambda: servers.machine.cluster.sent)
                sent.append(threading.Thread(target=complete, args=(url, prompt, output), daemon=True))
                sent[-1].start()
                while servers.call(lambda: servers.machine.cluster.sent) == arrived:
                    pass
            servers.advance_to(second + 1)
            if second % 10 < 9:
                continue
            truth, slots = servers.call(lambda: servers.machine.telemetry), stack.by_slot()
            pages = [page(url) for url in servers.urls.values()]
            for name, value in (
                ("num_requests_running", truth.running),
                ("num_requests_waiting", truth.waiting),
                ("kv_cache_usage_perc", truth.kv_used),
            ):
                np.testing.assert_allclose([told[name] for told in pages], value, atol=1e-6, err_msg=name)
            counted = np.array([[told["prompt_tokens_total"], told["generation_tokens_total"]] for told in pages])
            rates = np.stack([truth.prompt_tokens_per_s, truth.output_tokens_per_s], axis=1)
            np.testing.assert_allclose((counted - total) / 10, rates, rtol=1e-12)
            total = counted
            assert rates.min() > 0 and truth.running.max() > 1
            mean_w = [sum(gpu.mean_power_w or 0.0 for gpu in own) for own in slots]
            np.testing.assert_allclose(mean_w, truth.power_w[-1], atol=2e-3)
        servers.advance_to(200.0)
        for thread in sent:
            thread.join(20)
            assert not thread.is_alive()


def complete(url: str, prompt_tokens: int, output_tokens: int) -> None:
    body = {"model": "Qwen3-32B", "prompt": [7] * prompt_tokens, "max_tokens": output_tokens}
    with urlopen(Request(url + "/v1/completions", json.dumps(body).encode()), timeout=60) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == output_tokens


def page(url: str) -> dict[str, float]:
    with urlopen(url + "/metrics", timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {s.name.removeprefix("vllm:"): s.value for f in families for s in f.samples if "le" not in s.labels}
