"""The configuration: what it may say, what it refuses and how, and where values of the site come from."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from llmcluster.deploy.config import example, load_config
from llmcluster.deploy.deployable import checked_config
from llmcluster.deploy.readings import ReadingError
from llmcluster.deploy.site import Source, SourceSpec
from llmcluster.simulator.errors import InputError

Change = Callable[[dict[str, Any]], object]


def written(folder: Path, *changes: Change) -> Path:
    """The example with some changes, as a file."""
    content = tomllib.loads(example())
    for change in changes:
        change(content)
    path = folder / "deploy.toml"
    path.write_text(tomli_w.dumps(content))
    return path


def test_the_example_holds_and_is_rooted_at_its_folder(tmp_path: Path) -> None:
    config = checked_config(written(tmp_path))
    assert [slot.name for slot in config.slots] == ["row0/rack0/server0/slot0", "row0/rack0/server1/slot0"]
    assert config.gateway.admin_tokens == tmp_path / "admin.token"
    assert config.audit.path == tmp_path / "audit.jsonl"
    assert config.keeper.socket == Path("/run/llmcluster/keeper.sock")
    assert [(b.name, b.url, b.model) for b in config.gateway.backends] == [
        (slot.name, slot.url, slot.model) for slot in config.slots
    ]
    assert config.gateway.slo["default"].ttft_s == 2.0
    assert config.gateway_url == "http://127.0.0.1:8080"
    assert "--gpu=0" in config.keeper_arguments() and "--ceiling-w=700" in config.keeper_arguments()


def test_slots_come_in_the_order_of_the_scenario(tmp_path: Path) -> None:
    config = checked_config(written(tmp_path, lambda c: c["slots"].reverse()))
    assert [slot.gpus for slot in config.slots] == [("0",), ("1",)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(budget=1), "budget: is not a known key. Remove it or check its spelling"),
        (lambda c: c["slots"].pop(), "'row0/rack0/server1/slot0' of the scenario is missing. Add"),
        (lambda c: c["slots"][0].update(name="slot9"), "missing"),
        (lambda c: c["slots"].append({**c["slots"][0], "name": "x", "gpus": ["7"], "url": "http://h:1"}), "has no 'x'"),
        (lambda c: c["slots"][1].update(gpus=["0"]), r"slots\[\]\.gpus: '0' is given twice"),
        (lambda c: c["slots"][1].update(url=c["slots"][0]["url"] + "/"), r"slots\[\]\.url"),
        (lambda c: c["slots"][0].update(gpus=["0", "2"]), "2 GPUs are given, and the slot has 1"),
        (lambda c: c["slots"][0].update(model="Qwen3-32B"), r"slots\[0\]\.model: the scenario has no 'Qwen3-32B'"),
        (lambda c: c["slots"][0].update(url="127.0.0.1:8001"), r"slots\[0\]\.url"),
        (lambda c: c["limits"].update(budget_w=-5), "budget_w"),
        (lambda c: c["limits"].update(budget_w={"value": 1, "file": "x"}), "give a number"),
        (lambda c: c["limits"].update(budget_w={"schedule": [[5, 1], [0, 1]]}), "ascend"),
        (lambda c: c.update(scenario="placement"), "'place' cannot be deployed"),
        (lambda c: c.update(scenario="saas-iaas"), "cannot be deployed|foreign machines"),
        (lambda c: c.update(scenario="absent"), "there is none of that name"),
        (lambda c: c["gateway"].update(host="0.0.0.0"), "client_tokens"),
        (lambda c: c["telemetry"].update(source="ipmi"), "telemetry.source"),
    ],
)
def test_what_does_not_hold_is_refused_with_place_and_remedy(tmp_path: Path, change: Change, says: str) -> None:
    with pytest.raises(InputError, match=says):
        checked_config(written(tmp_path, change))


def test_a_scenario_that_observes_the_weather_needs_it(tmp_path: Path, tiny: Callable[..., dict[str, Any]]) -> None:
    scenario = {**tiny(), "outside_c": {"level": 30.0}, "grid": {"price_per_kwh": {"level": 0.1}}}
    (tmp_path / "hot.toml").write_text(tomli_w.dumps(scenario))

    def weather(content: dict[str, Any]) -> None:
        content["scenario"] = "hot.toml"
        content["site"] = {"outside_c": 31.0, "inlet_c": {"file": "inlet"}}

    with pytest.raises(InputError, match=r"site\.price_per_kwh: the scenario observes it"):
        checked_config(written(tmp_path, weather))
    config = checked_config(written(tmp_path, weather, lambda c: c["site"].update(price_per_kwh=0.2)))
    assert config.site.inlet_c is not None
    assert config.site.inlet_c.file == tmp_path / "inlet"


def test_a_file_that_is_not_there_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("[")
    with pytest.raises(InputError, match="is not TOML"):
        load_config(tmp_path / "bad.toml")


def test_a_schedule_is_known_ahead() -> None:
    now = [100.0]
    source = Source(SourceSpec(schedule=((0, 900), (40, 900), (40, 500))), lambda: now[0])
    np.testing.assert_array_equal(source.read(), [900, 900, 500])
    now[0] = 141.0
    np.testing.assert_array_equal(source.read(), [500, 500, 500])


def test_a_file_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "budget_w"
    source = Source(SourceSpec(file=path, scale=1000.0))
    with pytest.raises(ReadingError, match="cannot be read"):
        source.read()
    path.write_text("0.9")
    np.testing.assert_array_equal(source.read(), [900, 900, 900])
    path.write_text("0.9 0.8 0.7\n")
    np.testing.assert_allclose(source.read(), [900, 800, 700])
    for bad in ("", "1 2", "nan", "much"):
        path.write_text(bad)
        with pytest.raises(ReadingError):
            source.read()
