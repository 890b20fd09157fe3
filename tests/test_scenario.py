"""Scenarios: those that ship hold, and what does not hold is said with place and remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcluster import InputError, LLMClusterEnv, Scenario, load_scenario, scenario_names
from llmcluster.agents.registry import make_agent

Tiny = Callable[..., dict[str, Any]]
TOML = """
name = "written"
horizon_s = 60
[[cluster.rows]]
[[cluster.rows.racks]]
[[cluster.rows.racks.servers]]
gpu = "A100-80GB"
gpus = 4
tp = {tp}
model = "Llama-3.1-8B"
[workload]
file = "{file}"
"""


def server(**fields: Any) -> dict[str, Any]:
    return {"rows": [{"racks": [{"servers": [{"gpu": "A100-80GB", "gpus": 4, "model": "Llama-3.1-8B", **fields}]}]}]}


@pytest.mark.parametrize("name", scenario_names())
def test_shipped_scenarios_hold(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert len(scenario.description.split()) > 10
    env = LLMClusterEnv(name)
    env.reset(seed=0)
    assert env.fleet.fits.any(axis=1).all()
    assert len(env.plant.cluster.requests) > 100
    _, _, _, _, info = env.step(env.action_space.sample())
    assert info["energy_j"] > 0


def test_names_are_those_of_the_files() -> None:
    assert set(scenario_names()) >= {"default", "placement", "small"}
    assert "__init__" not in scenario_names()


def test_scenarios_survive_the_round_trip(tmp_path: Path) -> None:
    for name in scenario_names():
        scenario = load_scenario(name)
        assert load_scenario(scenario) is scenario
        assert load_scenario(scenario.model_dump(mode="json")).model_dump() == scenario.model_dump()


def test_scenarios_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_scenario("small").tick_s = 5


def test_files_are_relative_to_the_scenario(tmp_path: Path, trace: Callable[..., Path]) -> None:
    trace([(float(s), 10, 5) for s in range(30)], "near.csv")
    path = tmp_path / "mine.toml"
    path.write_text(TOML.format(tp=2, file="near.csv"))
    for source in (path, str(path)):
        env = LLMClusterEnv(source)
        env.reset(seed=0)
        assert len(env.plant.cluster.requests) == 30
        assert len(env.fleet) == 2


def test_a_file_is_named_with_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TOML.format(tp=8, file="near.csv"))
    with pytest.raises(InputError) as caught:
        load_scenario(path)
    assert caught.value.where == str(path)
    for part in ("cluster.rows[0].racks[0].servers[0]", "tp 8", "4 GPUs", "use a tp of 1, 2, 4"):
        assert part in caught.value.problem
    path.write_text(TOML.format(tp=2, file="near.csv").replace("horizon_s", "horizon"))
    with pytest.raises(InputError, match=r"mine\.toml: horizon: is not a known key\. Remove it or check its spelling"):
        load_scenario(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"name = 'a'\nhorizon_s == 5", r"is not TOML: .*line 2"),
        (b"name = '\xff'", "is not TOML"),
        (b"", "cluster: Field required"),
    ],
)
def test_files_that_are_no_scenario(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=match) as caught:
        load_scenario(path)
    assert caught.value.where == str(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.toml: cannot be read \(No such file or directory\)\. Check the path"):
        load_scenario(tmp_path / "gone.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        load_scenario(tmp_path / "folder.toml")
    with pytest.raises(InputError, match=f"Use one of {', '.join(scenario_names())}, or the path"):
        load_scenario("defualt")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"cluster": server(tp=8)}, ("cluster.rows[0].racks[0].servers[0]", "tp 8", "use a tp of 1, 2, 4")),
        ({"cluster": server(gpuz=1)}, ("cluster.rows[0].racks[0].servers[0].gpuz", "not a known key", "spelling")),
        ({"cluster": server(model=None)}, ("needs a model", "empty")),
        ({"cluster": server(initial="asleep")}, ("servers[0].initial", "'sleeping'")),
        ({"cluster": server(gpu="A100")}, ("servers[0].gpu", "'A100'", "Did you mean A100-")),
        ({"cluster": server(model="Llama-3.1-9B")}, ("model", "'Llama-3.1-9B'", "Llama-3.1-8B")),
        ({"cluster": server(model="Llama-3.1-70B")}, ("Llama-3.1-70B on A100-80GB", "needs 144.4 GB", "Use tp=2")),
        ({"cluster": server(gpus=3, tp=3)}, ("32 heads", "3 GPUs", "Use one of 1, 2, 4, 8")),
        ({"cluster": {**server(), "engine": {"max_num_seqs": 4096}}}, ("max_num_batched_tokens", "raise the one")),
        ({"cluster": {"rows": []}}, ("cluster.rows", "at least 1")),
        ({"cluster": {**server(model=None, initial="empty")}}, ("no model is named", "Name one")),
        ({"tick_s": 7}, ("horizon_s 60", "multiple of tick_s 7")),
        ({"tick_s": 0}, ("tick_s", "greater than or equal to 1")),
        ({"horizon_s": "long"}, ("horizon_s", "integer")),
        ({"budget": {"levels": []}}, ("budget.levels", "at least 1")),
        ({"budget": {"levels": [0.8, 0.8]}}, ("levels [0.8, 0.8]", "differ")),
        ({"budget": {"levels": [1.0, 0.0]}}, ("levels [1.0, 0.0]", "positive")),
        ({"slo": {}}, ("slo", "at least 1")),
        ({"slo": {"fast": {"ttft_s": 0}}}, ("slo.fast.ttft_s", "greater than 0")),
        ({"actions": {"groups": ["warp"]}}, ("actions.groups[0]", "'route'")),
        ({"actions": {"groups": []}}, ("actions.groups", "Choose from route")),
        ({"actions": {"levels": 1}}, ("actions.levels", "greater than or equal to 2")),
        ({"forecaster": "tarot"}, ("forecaster", "'tarot'", "none, persistence, gru, oracle")),
        ({"instances": [{"model": "GPT-4", "mean_interval_s": 9}]}, ("instances[0].model", "'GPT-4'", "Llama-3.1-8B")),
        ({"workload": {}}, ("workload", "give either file")),
        ({"workload": {"file": "gone.csv"}}, ("gone.csv", "no such file", "Check the path")),
        ({"nonsense": 1}, ("nonsense", "not a known key", "Remove it")),
    ],
    ids=str,
)
def test_bad_input_names_the_field_and_the_remedy(tiny: Tiny, change: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        LLMClusterEnv({**tiny(), **change}).reset(seed=0)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.remedy


def test_unknown_agents_are_named() -> None:
    from llmcluster.agents.base import Task

    with pytest.raises(InputError, match=r"agent 'robin': there is none of that name\. Use random, round-robin"):
        make_agent("robin", Task.of(LLMClusterEnv("small")))


def test_streams_name_models_and_classes_of_the_scenario(tiny: Tiny) -> None:
    for field, name in (("model", "GPT-4"), ("slo_class", "gold")):
        workload = {**tiny()["workload"], field: name}
        with pytest.raises(InputError, match=rf"workload\.{field}: .*'{name}'.*Give one of"):
            LLMClusterEnv(tiny(workload=workload)).reset(seed=0)


def test_a_scenario_object_is_as_good_as_a_dict(tiny: Tiny) -> None:
    scenario = Scenario.model_validate(tiny())
    one, other = LLMClusterEnv(scenario).reset(seed=1)[0], LLMClusterEnv(tiny()).reset(seed=1)[0]
    assert all((one[key] == other[key]).all() for key in one)
    assert scenario.ticks == 6
