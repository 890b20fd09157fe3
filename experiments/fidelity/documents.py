"""What the published page is made of: which files belong to which source, and how far off it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...simulator.errors import InputError


@dataclass(frozen=True)
class Target:
    """How far a quantity may be off.

    Attributes:
        quantity: A quantity of the source, or one of its scores.
        bound: The median absolute relative error, or the score, at most.
        where: Groups that choose the rows; all of them by default.
        left_out: Each model is predicted from figures fitted to the others.
        at_least: The bound is a lower one.
    """

    quantity: str
    bound: float
    where: Mapping[str, str] = field(default_factory=dict)
    left_out: bool = False
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether a figure keeps the bound."""
        return value >= self.bound if self.at_least else abs(value) <= self.bound


@dataclass(frozen=True)
class Document:
    """A source of the page.

    Attributes:
        source: Its name.
        files: Its files within the folder of the data; ``*`` stands for anything.
        targets: What is asked of it.
    """

    source: str
    files: tuple[str, ...]
    targets: tuple[Target, ...] = ()

    def paths(self, data: Path) -> list[Path]:
        """The files, in order of name; raises ``InputError`` where one is missing."""
        found = []
        for pattern in self.files:
            matches = sorted(data.glob(pattern))
            if not matches:
                remedy = "Give the folder of the measured data with --data or LLMCLUSTER_DATA"
                raise InputError(str(data / pattern), "no such file", remedy)
            found += matches
        return found


def _targets(where: Mapping[str, str], *, left_out: bool = False, **bounds: float) -> tuple[Target, ...]:
    return tuple(Target(quantity, bound, where, left_out) for quantity, bound in bounds.items())


TRACE = "vllm_serving/a100_qwen3-8b_r2p5_smooth"
DOCUMENTS = (
    Document(
        "mlenergy",
        ("mlenergy/vllm_steady_state.csv",),
        (
            *_targets({"part": "held_out", "calibrated": "yes"}, itl=0.05, power=0.05, energy_per_token=0.06),
            *_targets({"part": "held_out"}, itl=0.05, power=0.05, energy_per_token=0.06),
            *_targets({"part": "held_out", "gpu": "H100-80GB"}, itl=0.05, power=0.05, energy_per_token=0.06),
            *_targets({"part": "held_out", "server": "without stalls"}, itl=0.05, power=0.05, energy_per_token=0.06),
            *_targets({}, left_out=True, itl=0.10, power=0.10),
            *_targets({"server": "without stalls"}, left_out=True, itl=0.10, power=0.10),
        ),
    ),
    Document("nlr-online", ("nlr_h100/online_finite.csv",), _targets({}, power=0.05, tpot=0.10, throughput=0.10)),
    Document("nlr-rate", ("nlr_h100/online_rate.csv",), _targets({}, power=0.05)),
    Document("nlr-offline", ("nlr_h100/offline.csv",), _targets({}, elapsed=0.10, power=0.05)),
    Document(
        "caps",
        ("power_caps/*.csv",),
        tuple(
            target
            for gpu, work in (("A100-80GB-PCIe", "compute-bound"), ("A100-80GB-PCIe", "memory-bound"), ("B300", "gemm"))
            for target in _targets({"gpu": gpu, "work": work}, speed=0.03, power=0.03)
        ),
    ),
    Document("splitwise", ("splitwise/perf_model.csv",), _targets({}, prompt_time=0.10, token_time=0.10)),
    Document(
        "power-trace",
        (f"{TRACE}_power.csv", f"{TRACE}_engine.csv"),
        (Target("energy_error", 0.03), Target("nrmse", 0.10), Target("acf_r2", 0.95, at_least=True)),
    ),
    Document("energy-inference", ("energy_inference/grid.csv",)),
)
"""In the order of the page."""
