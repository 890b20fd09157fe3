"""The verbs `llmcluster deploy …`: help, bad input, and what they do over emulated GPUs."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import llmcluster
from llmcluster.deploy.fallback import table
from llmcluster.deploy.mind import Mind
from llmcluster.deploy.rehearsal.live import SCENARIO
from llmcluster.deploy.rehearsal.stage import Stage
from llmcluster.deploy.stack import opened_stack

Call = Callable[..., tuple[int, str, str]]
CLI = (sys.executable, "-m", "llmcluster.experiments.cli")
VERBS = ("init", "run", "status", "restore", "record", "gateway", "keeper", "sidecar", "rehearse")
DOCS = Path(llmcluster.__file__).parent / "docs"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / "stage").mkdir()
    made = Stage(SCENARIO, tmp_path / "stage", ())
    with made, made.gpus.bound():
        yield made


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example(call: Call, verb: str) -> None:
    code, out, _ = call("deploy", verb, "--help")
    assert code == 0
    assert f"llmcluster deploy {verb}" in out.partition("Example:")[2]


def test_the_page_has_the_table_of_failures_and_every_verb() -> None:
    page = (DOCS / "deploy.md").read_text()
    assert table() in page
    for verb in VERBS:
        assert f"`{verb}`" in (DOCS / "reference.md").read_text()


def test_init_writes_an_example_and_never_over_a_file(call: Call) -> None:
    code, out, _ = call("deploy", "init", "mine.toml")
    assert code == 0 and "mine.toml" in out
    code, out, _ = call("deploy", "init", "other.toml", "--json", "-")
    assert (code, json.loads(out)) == (0, {"file": "other.toml"})
    code, _, err = call("deploy", "init", "mine.toml")
    assert (code, err) == (2, "error: mine.toml: is there already. Name another file\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "--config", "absent.toml", "--agent", "pals"), "absent.toml: cannot be read"),
        (("status", "--config", "absent.toml"), "absent.toml: cannot be read"),
        (("record", "--config", "absent.toml", "--out", "x.csv"), "absent.toml: cannot be read"),
        (("gateway", "--config", "absent.toml"), "absent.toml: cannot be read"),
        (("keeper", "--config", "absent.toml"), "absent.toml: cannot be read"),
        (("run", "--agent", "pals"), "--config"),
        (("sidecar", "--agent", "pals", "--host", "0.0.0.0"), "--tokens"),
        (("rehearse", "--scenario", "placement"), "'place' cannot be deployed"),
        (("rehearse", "--scenario", "nothing"), "there is none of that name"),
    ],
)
def test_bad_input_ends_with_two_and_a_remedy(call: Call, arguments: tuple[str, ...], says: str) -> None:
    code, _, err = call("deploy", *arguments)
    assert code == 2
    assert says in err


def test_without_its_extra_a_verb_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from llmcluster.experiments.cli import main\n"
        "sys.argv = ['llmcluster', 'deploy', 'run', '--config', 'x', '--agent', 'pals']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'llmcluster[deploy]'" in done.stderr


def test_status_restore_and_record_over_emulated_gpus(call: Call, stage: Stage, tmp_path: Path) -> None:
    config = stage.config
    code, out, err = call("deploy", "status", "--config", config, "--json", "-")
    assert code == 0, err
    found = json.loads(out)
    assert found["sound"]
    assert found["gpus"]["0"]["enforced_w"] == 700.0
    assert found["keeper"]["holder"] is None
    assert found["gateway"]["router"] == "least-outstanding"

    stage.gpus.set_limit(0, 650.0)
    code, out, err = call("deploy", "restore", "--config", config)
    assert (code, out) == (0, "everything is as it was\n"), err

    code, out, err = call("deploy", "restore", "--config", config, "--json", "-")
    assert code == 0, err
    assert [gpu["enforced_w"] for gpu in json.loads(out)["gpus"]] == [650.0] + [700.0] * 7

    code, out, err = call("deploy", "record", "--config", config, "--out", tmp_path / "run.csv", "--duration", "1")
    assert code == 0, err
    files = out.split()
    assert len(files) == 8
    assert all(len(Path(file).read_text().splitlines()) > 2 for file in files)

    stage.kill("keeper")
    keeper = [*CLI, "deploy", "keeper", "--config", str(config), "--restore"]
    assert subprocess.run(keeper, check=False, env={**os.environ, **stage.gpus.environment()}).returncode == 0
    code, _, err = call("deploy", "restore", "--config", config)
    assert code == 1
    assert "keeper" in err
    code, out, _ = call("deploy", "status", "--config", config)
    assert code == 1
    assert "Start it" in out


def test_a_log_that_cannot_be_written_is_a_message(call: Call, stage: Stage) -> None:
    stage.configure(audit={"path": "/dev/full"})
    code, _, err = call("deploy", "run", "--config", stage.config, "--agent", "uniform-cap", "--apply")
    assert code == 1
    assert err.startswith("error: /dev/full cannot be written")


def test_without_the_file_of_its_budget_no_loop_begins(call: Call, stage: Stage) -> None:
    stage.configure(limits={"budget_w": {"file": "budget_w"}})
    arguments = ("deploy", "run", "--config", stage.config, "--agent", "uniform-cap", "--apply", "--duration", "1")
    code, _, err = call(*arguments)
    assert code == 1
    assert err.startswith("error: [limits] budget: ") and "none is known" in err
    assert not stage.lines("decision")
    (stage.folder / "budget_w").write_text("2800")
    code, _, err = call(*arguments)
    assert code == 0, err
    assert stage.lines("decision")[-1]["budget_w"] == 2800.0


def test_without_a_file_of_the_site_no_loop_begins(call: Call, stage: Stage) -> None:
    stage.configure(site={"outside_c": {"file": "outside_c"}})
    code, _, err = call("deploy", "run", "--config", stage.config, "--agent", "uniform-cap", "--duration", "1")
    assert code == 1
    assert err.startswith("error: [site] outside_c: ")


def test_the_log_says_how_a_loop_ended_if_there_is_room(stage: Stage) -> None:
    with pytest.raises(RuntimeError), opened_stack(stage.config, "uniform-cap", apply=False):
        raise RuntimeError("the driver is gone")
    assert stage.lines("end")[-1]["fault"] == "RuntimeError: the driver is gone"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with opened_stack(stage.config, "uniform-cap", apply=False) as stack:
            stack.loop.step()
            resource.setrlimit(resource.RLIMIT_FSIZE, (stage.audit.stat().st_size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(stage.lines("start")) == 2
    assert len(stage.lines("end")) == 1


def test_a_rehearsal_that_is_ended_leaves_nothing_behind() -> None:
    command = [*CLI, "deploy", "rehearse", "--duration", "60", "--agent", "uniform-cap"]
    with tempfile.TemporaryDirectory() as name:  # pytest's own are too long for the path of a socket
        folder, environment = Path(name), {**os.environ, "TMPDIR": name}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 60.0
            while not list(folder.glob("*/keeper.sock")):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.terminate()
            _, err = process.communicate(timeout=60)
        assert process.returncode in (1, 130), err
        assert not list(folder.iterdir())
        assert not [line for line in _commands() if name in line]


def _commands() -> list[str]:
    """Command lines of all processes."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(file.read_text())
    return found


def test_a_dry_run_of_some_seconds_reports(call: Call, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[Mind] = []
    usual = Mind.warm_up
    monkeypatch.setattr(Mind, "warm_up", lambda mind, *told: (warmed.append(mind), usual(mind, *told)))
    code, out, err = call(
        "deploy", "run", "--config", stage.config, "--agent", "uniform-cap", "--duration", "1", "--json", "-"
    )
    assert code == 0, err
    # It ends after a second, and not after the ten of a tick.
    assert json.loads(out) == {"applied": False, "decisions": 1, "fallbacks": {}, "late": 0}
    assert [line["by"] for line in stage.lines("decision")] == ["agent"]
    assert len(warmed) == 1
    assert stage.limits_w() == [700.0] * 8


def test_gateway_and_sidecar_run_until_they_are_told_to_end(stage: Stage) -> None:
    stage.configure(gateway={"port": 0})
    for words in (("gateway", "--config", str(stage.config)), ("sidecar", "--agent", "uniform-cap", "--port", "0")):
        process = subprocess.Popen([*CLI, "deploy", *words], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert any("startup complete" in line for line in process.stderr)
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM)
        process.stderr.close()
