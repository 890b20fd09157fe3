"""What several test modules share: tiny scenarios, traces to write, the published data."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from llmcluster.deploy.rehearsal.nvml import EmulatedGpus
from llmcluster.experiments import cli
from llmcluster.tests.emulated import emulated
from llmcluster.tests.machine import ENGINES, Factory

settings.register_profile("no-clock", deadline=None)  # how fast a shared machine is tells nothing
settings.load_profile("no-clock")

MODEL = "Llama-3.1-8B"
Tiny = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Makes dicts of scenarios with one H100 and one A100, a minute long; keyword arguments replace whole sections."""

    def make(servers: list[dict[str, Any]] | None = None, rate_per_s: float = 3.0, **sections: Any) -> dict[str, Any]:
        servers = servers or [{"gpu": gpu, "gpus": 1, "model": MODEL} for gpu in ("H100-80GB", "A100-80GB")]
        return {
            "name": "tiny",
            "horizon_s": 60,
            "cluster": {"rows": [{"racks": [{"servers": servers}]}]},
            "workload": {
                "requests": {"kind": "azure-2023-conv"},
                "arrivals": {"kind": "azure-2023-conv", "rate_per_s": rate_per_s},
            },
            "budget": {"levels": [1.0, 0.6], "mean_hold_s": 20.0, "ramp_s": 5.0},
            "reward": {"requests_per_s": 6.0},
        } | sections

    return make


@pytest.fixture(scope="session")
def everything(tiny: Tiny) -> dict[str, Any]:
    """All action groups, two models of which one does not fit everywhere, an empty slot, and instances that ask."""
    servers = [
        {"gpu": "H100-80GB", "gpus": 2, "tp": 2, "model": "Qwen3-32B"},
        {"gpu": "A100-40GB", "gpus": 1, "model": MODEL},
        {"gpu": "A100-80GB", "gpus": 1, "initial": "empty"},
    ]
    return tiny(
        servers,
        actions={"groups": ["route", "cap", "clock", "lifecycle", "place"], "levels": 4},
        instances=[{"model": name, "mean_interval_s": 15.0} for name in (MODEL, "Qwen3-32B")],
        budget={"levels": [0.6, 0.2], "mean_hold_s": 20.0, "ramp_s": 5.0},
        horizon_s=120,
    )


@pytest.fixture(params=list(ENGINES))
def make(request: pytest.FixtureRequest) -> Factory:
    """Each of the engines in turn."""
    return ENGINES[request.param]


@pytest.fixture
def gpus(tmp_path: Path) -> Iterator[EmulatedGpus]:
    """An emulated H100 and an emulated A100, which this process's NVML sees."""
    made = emulated(tmp_path)
    with made.bound():
        yield made


@pytest.fixture
def trace(tmp_path: Path) -> Callable[..., Path]:
    """Writes an Azure trace: one line of (arrival in seconds below a day, prompt, output) per request."""

    def write(rows: list[tuple[float, int, int]], name: str = "trace.csv") -> Path:
        lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
        for arrival_s, prompt, output in rows:
            minutes, seconds = divmod(arrival_s, 60)
            hours, minutes = divmod(int(minutes), 60)
            lines.append(f"2023-11-16 {hours:02d}:{minutes:02d}:{seconds:010.7f},{prompt},{output}")
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def azure_conv() -> Path:
    """The Azure 2023 conversation trace; tests that ask for it bear the mark ``data``."""
    root = Path(os.environ.get("LLMCLUSTER_DATA", Path(__file__).parents[1] / "../shared/data"))
    path = root / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv"
    if not path.is_file():
        pytest.skip("the Azure 2023 traces are not under LLMCLUSTER_DATA")
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Runs the command line in an empty folder; gives exit code, standard output and standard error."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "500")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llmcluster", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return run
