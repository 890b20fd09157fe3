"""Result files: row for row what the engine's records say, whatever parts they come in, whole or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from llmcluster.agents.registry import scenario_for
from llmcluster.envs.plant import SimulatedPlant
from llmcluster.envs.scenario import load_scenario
from llmcluster.experiments.evaluate import evaluate
from llmcluster.experiments.forecast_simulated import record
from llmcluster.experiments.forecast_value import value
from llmcluster.experiments.simulate import request_table, second_table, simulate
from llmcluster.simulator import results
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import BIN, FINISHED, REQUEST, REQUEST_STATUS_NAMES, STATUS_NAMES
from llmcluster.simulator.metrics import SloLimits
from llmcluster.simulator.results import Names, ResultsWriter

SLOTS, MODELS, CLASSES = ("s0", "s1", "s2"), ("m0", "m1"), ("fast", "slow")
NAMES = Names(SLOTS, MODELS, CLASSES)
LIMITS = SloLimits(np.array([10, 1000]), np.array([5, 50]))
SUMMED = {"prompt_tokens", "output_tokens"}


def records(n: int, rng: np.random.Generator) -> Any:
    rows = np.zeros(n, REQUEST)
    for name in ("arrival_ps", "admit_ps", "first_token_ps", "finish_ps"):
        rows[name] = rng.integers(-1, 2**62, n)
    rows["prompt"], rows["output"] = rng.integers(1, 2**31, (2, n))
    rows["preemptions"] = rng.integers(0, 2**31, n)
    rows["model"], rows["slot"] = rng.integers(-1, 2, n), rng.integers(-1, 3, n)
    rows["status"] = rng.integers(0, len(REQUEST_STATUS_NAMES), n)
    return rows


def bins(seconds: int, rng: np.random.Generator) -> Any:
    cells = np.zeros((seconds, 3), BIN)
    for name in BIN.names or ():
        cells[name] = rng.integers(0, 100, cells.shape)
    cells["energy"] = rng.integers(0, 700 * 10**14, cells.shape)
    cells["prompt_tokens"] = rng.integers(0, 2**31, cells.shape)
    return cells


def cuts(n: int, draw: st.DrawFn) -> list[slice]:
    inner = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    return [slice(a, b) for a, b in zip([0, *inner], [*inner, n], strict=True)]


@given(st.data(), st.integers(0, 60))
def test_requests_read_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, n: int) -> None:
    rng = np.random.default_rng(n)
    rows, ids, slo_class = records(n, rng), rng.permutation(n) * 7, rng.integers(0, 2, n)
    folder = tmp_path_factory.mktemp("results") / "deep" / "er"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "BLOCK", 4)
        patch.setattr(results, "ROW_GROUP", 10)
        with ResultsWriter(folder, NAMES) as writer:
            for part in cuts(n, data.draw):
                writer.requests(ids[part], rows[part], slo_class[part])
    table = pq.read_table(folder / "requests.parquet").to_pydict()
    assert table["id"] == ids.tolist()
    same = {"prompt_tokens": "prompt", "output_tokens": "output"}
    for name in ("arrival_ps", "admit_ps", "first_token_ps", "finish_ps", "preemptions", *same):
        assert table[name] == rows[same.get(name, name)].tolist(), name
    assert table["model"] == [(*MODELS, "any")[i] for i in rows["model"]]
    assert table["slot"] == [(*SLOTS, "")[i] for i in rows["slot"]]
    assert table["status"] == [REQUEST_STATUS_NAMES[i] for i in rows["status"]]
    assert table["slo_class"] == [CLASSES[i] for i in slo_class]
    assert pq.read_metadata(folder / "requests.parquet").num_row_groups <= n // 10 + 1


@given(st.data(), st.integers(0, 40), st.integers(1, 12))
def test_seconds_add_up_or_are_means(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, seconds: int, every_s: int
) -> None:
    rng = np.random.default_rng(seconds)
    cells, status = bins(seconds, rng), rng.integers(0, len(STATUS_NAMES), (seconds, 3))
    folder = tmp_path_factory.mktemp("results")
    with ResultsWriter(folder, NAMES, every_s=every_s) as writer:
        for part in cuts(seconds, data.draw):
            writer.seconds(cells[part], status[part])
    rows = pq.read_table(folder / "seconds.parquet").to_pylist()
    assert len(rows) == 3 * -(-seconds // every_s)
    for number, row in enumerate(rows):
        interval, slot = number // 3 * every_s, number % 3
        covered = cells[interval : interval + every_s, slot]
        assert (row["second"], row["slot"]) == (interval, SLOTS[slot])
        assert row["status"] == STATUS_NAMES[status[interval : interval + every_s, slot][-1]]
        assert row["energy_j"] == pytest.approx(covered["energy"].sum() * 1e-14, rel=1e-12)
        for name in set(BIN.names or ()) - {"energy"}:
            column = covered[name].astype(float)
            assert row[name] == pytest.approx(column.sum() if name in SUMMED else column.mean(), rel=1e-12), name


def test_met_slo_takes_both_limits_of_the_class(tmp_path: Path) -> None:
    rows = np.zeros(6, REQUEST)
    rows["status"], rows["output"] = FINISHED, 3
    rows["first_token_ps"] = [10, 11, 11, 10, 10, 10]
    rows["finish_ps"] = rows["first_token_ps"] + [10, 10, 100, 11, 10, 101]
    rows["status"][4] = 6
    with ResultsWriter(tmp_path, NAMES, limits=LIMITS) as writer:
        writer.requests(np.arange(6), rows, np.array([0, 0, 1, 0, 0, 1]))
    table = pq.read_table(tmp_path / "requests.parquet")
    assert table["met_slo"].to_pylist() == [True, False, True, False, False, False]


def test_a_run_without_rows_gives_empty_files(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path, NAMES, limits=LIMITS, every_s=60):
        pass
    assert [pq.read_table(tmp_path / f"{name}.parquet").num_rows for name in ("requests", "seconds")] == [0, 0]


@pytest.mark.parametrize("rows", [0, 5])
def test_a_run_that_fails_leaves_nothing(tmp_path: Path, rows: int) -> None:
    with pytest.raises(KeyboardInterrupt), ResultsWriter(tmp_path / "out", NAMES) as writer:
        writer.requests(np.arange(rows), records(rows, np.random.default_rng(0)))
        assert [p.name for p in (tmp_path / "out").iterdir() if p.name == "requests.parquet"] == []
        raise KeyboardInterrupt
    assert list((tmp_path / "out").iterdir()) == []


def test_files_that_cannot_be_opened_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "seconds").write_text("in the way")
    with pytest.raises(FileExistsError), ResultsWriter(tmp_path, NAMES, part="a"):
        pass
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / "seconds"]
    with pytest.raises(InputError, match="0 is not positive"):
        ResultsWriter(tmp_path, NAMES, every_s=0)


def test_parts_are_one_data_set(tmp_path: Path) -> None:
    for part, slots in (("a", ("s0", "s1")), ("b", ("s2", "s3"))):
        with ResultsWriter(tmp_path, Names(slots, MODELS), part=part) as writer:
            writer.requests([4, 5], records(2, np.random.default_rng(1))[[0, 0]])
            writer.seconds(np.zeros((2, 2), BIN), np.zeros((2, 2), int))
    assert pq.read_table(tmp_path / "requests")["id"].to_pylist() == [4, 5, 4, 5]
    assert pq.read_table(tmp_path / "seconds")["slot"].to_pylist() == ["s0", "s1"] * 2 + ["s2", "s3"] * 2


@pytest.fixture(scope="module")
def plant() -> SimulatedPlant:
    return simulate(load_scenario("small"), "least-outstanding", 0, Progress(disable=True))[0]


def test_results_as_they_finish_are_the_results_at_the_end(tmp_path: Path, plant: SimulatedPlant) -> None:
    cluster, history = plant.cluster, plant.cluster.history
    names = Names([s.name for s in cluster.blueprint.slots], cluster.blueprint.models)
    with ResultsWriter(tmp_path, names, limits=plant.limits) as writer:
        for part in np.array_split(cluster.done, 7):
            writer.requests(part, cluster.engine.requests[part], cluster.requests.slo_class[part])
        for seconds in np.array_split(np.arange(len(history)), 7):
            writer.seconds(history.records[seconds], history.column("status")[seconds])
    whole = request_table(plant).drop_columns(["ttft_s", "tpot_s", "e2e_s"])
    grown = pq.read_table(tmp_path / "requests.parquet").sort_by("id")
    assert grown.num_rows > 100
    assert grown["id"].to_pylist() == list(range(whole.num_rows))
    assert grown.drop_columns("id").to_pydict() == whole.to_pydict()
    seconds = second_table(plant)
    assert pq.read_table(tmp_path / "seconds.parquet").to_pydict() == seconds.drop_columns("budget_w").to_pydict()
    assert seconds.column_names[:4] == ["second", "slot", "status", "budget_w"]


def test_an_agent_named_after_a_router_gets_it_wherever_it_plays() -> None:
    """The scenario lists other routers: the agent brings its own, or would be least-outstanding under another name."""
    scenario, names = load_scenario("small"), ("least-outstanding", "power-of-two")
    assert scenario_for(names[1], scenario).actions.routers == (*scenario.actions.routers, names[1])
    with Progress(disable=True) as progress:
        simulated = [simulate(scenario, name, 3, progress)[1]["reward"] for name in names]
        judged = [evaluate(scenario, [name], 1, 3, progress)[0].episodes[0].reward for name in names]
    worth = [value(scenario, name, ("none", "persistence"), 1, 3)["results"]["none"]["reward"][0] for name in names]
    recorded = [record(scenario, name, 3).power_w.sum() for name in names]
    assert worth == judged
    assert all(len(set(found)) == len(names) for found in (simulated, judged, recorded))
