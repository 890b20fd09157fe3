"""Example files: they parse, and name nothing that does not exist."""

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest

import llmcluster
from llmcluster.deploy.exporter import OF_SLOTS, PREFIX
from llmcluster.deploy.keeper.__main__ import arguments
from llmcluster.experiments.cli import _add_groups, app
from llmcluster.tests.rig import Rig, lock, rig

__all__ = ["lock", "rig"]
EXAMPLES = Path(llmcluster.__file__).parent / "deploy" / "examples"
NAME = re.compile(r"llmcluster_[a-z0-9_]+")
SUFFIXES = ("_bucket", "_sum", "_count", "_total")


def test_the_dashboard_asks_for_metrics_that_there_are(rig: Rig) -> None:
    from urllib.request import urlopen

    from llmcluster.deploy.exporter import Exporter, LoopCollector

    rig.step()
    collector = LoopCollector(rig.lock.plant, rig.lock.capper, rig.loop.progress, apply=True)
    exporter = Exporter(collector, "127.0.0.1", 0)
    told = ""
    for url in (f"http://127.0.0.1:{exporter.port}/metrics", f"{rig.lock.stage.gateway_url}/metrics"):
        with urlopen(url, timeout=5) as answer:
            told += answer.read().decode()
    exporter.close()
    there = set(re.findall(r"^# TYPE (\S+)", told, re.MULTILINE))
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
    asked = {name for panel in dashboard["panels"] for t in panel["targets"] for name in NAME.findall(t["expr"])}
    assert len(asked) > 15
    for name in asked:
        bare = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
        assert {name, bare} & there, name
    assert {PREFIX + name for name in OF_SLOTS} <= there
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.parametrize("unit", sorted(path.name for path in EXAMPLES.glob("*.service")))
def test_units_parse_and_call_what_there_is(unit: str) -> None:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((EXAMPLES / unit).read_text())
    assert parser["Install"]["WantedBy"] == "multi-user.target"
    words = shlex.split(parser["Service"]["ExecStart"])
    if "llmcluster.deploy.keeper" in words:
        for line in (words, shlex.split(parser["Service"]["ExecStopPost"])):
            arguments().parse_args(line[3:])
        return
    _add_groups()
    group = next(group for group in app.registered_groups if group.name == "deploy")
    assert group.typer_instance is not None
    verbs = {command.name for command in group.typer_instance.registered_commands}
    assert words[1] == "deploy"
    assert words[2] in verbs


def test_the_container_starts_the_verbs() -> None:
    lines = (EXAMPLES / "Containerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM ")]
    (entry,) = (line for line in lines if line.startswith("ENTRYPOINT"))
    assert json.loads(entry.removeprefix("ENTRYPOINT ")) == ["llmcluster", "deploy"]
    assert "USER llmcluster" in lines
