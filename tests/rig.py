"""A control loop over the emulated stack in lock-step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from llmcluster.deploy.audit import Audit
from llmcluster.deploy.beats import Beats
from llmcluster.deploy.loop import ControlLoop
from llmcluster.deploy.mind import Mind
from llmcluster.deploy.rehearsal.stage import Stage
from llmcluster.envs import scenarios
from llmcluster.tests.lockstep import Lockstep, lockstep, traffic

FOUND_W = [700.0, 400.0]
BUDGET_W = 800.0
STALE_S = 3.0
TICK_S = 4


class Rig:
    """A loop over the stack in lock-step: one H100 and one A100."""

    def __init__(self, lock: Lockstep, tmp_path: Path, agent: str = "uniform-cap", apply: bool = True) -> None:
        self.lock, self.path = lock, tmp_path / "audit.jsonl"
        self.audit = Audit(self.path)
        lock.note = self.audit.write  # type: ignore[method-assign]
        self.mind = Mind(lock.config.scenario, agent, "persistence", patience_s=5.0)
        self.beats = Beats(lock.writer, 0.05, 600.0)
        self.loop = ControlLoop(
            lock.plant,
            self.mind,
            self.audit,
            self.beats,
            TICK_S,
            apply=apply,
            clock=lambda: lock.now_s,
        )
        self.mind.begin(lock.plant)

    def step(self) -> None:
        self.loop.step()

    def tick(self) -> None:
        """Time goes on by a tick, and a decision is made."""
        self.lock.pass_seconds(TICK_S)
        self.loop.step()

    def lines(self, kind: str) -> list[dict[str, Any]]:
        whole = self.path.read_text().splitlines()
        return [one for one in map(json.loads, filter(None, whole)) if one["kind"] == kind]

    @property
    def last(self) -> dict[str, Any]:
        return self.lines("decision")[-1]

    @property
    def kinds(self) -> set[str]:
        return {trouble.kind for trouble in self.loop.progress.troubles}


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Lockstep]:
    scenario = tmp_path / "quick.toml"
    text = resources.files(scenarios).joinpath("small.toml").read_text()
    scenario.write_text(text.replace("tick_s = 10", f"tick_s = {TICK_S}"))
    stage = Stage(scenario, tmp_path, ())
    telemetry = {"stale_s": STALE_S, "timeout_s": 2.0}
    made = lockstep(stage, traffic(10.0, 2.0), limits={"budget_w": BUDGET_W}, telemetry=telemetry)
    with made.running():
        yield made


@pytest.fixture
def rig(lock: Lockstep, tmp_path: Path) -> Rig:
    return Rig(lock, tmp_path)
