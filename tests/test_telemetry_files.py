"""Telemetry from files: layouts, clocks, pages of queries, and files that do not hold."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcluster.forecaster.telemetry import LAYOUTS, Options, detect, read_telemetry
from llmcluster.forecaster.telemetry.clock import epoch_s
from llmcluster.simulator.errors import InputError

DATA = Path(os.environ.get("LLMCLUSTER_DATA", Path(__file__).parents[1] / "../shared/data"))
measured = pytest.mark.skipif(
    not (DATA / "vllm_serving").is_dir(), reason="the published telemetry is not under LLMCLUSTER_DATA"
)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes lines into a file, each with its line break."""

    def to(*lines: str, name: str = "file.csv", end: str = "\n") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(lines) + end, encoding="utf-8")
        return path

    return to


def stamp(second: float) -> str:
    minutes, rest = divmod(second, 60)
    return f"2026/03/02 10:{int(minutes):02d}:{rest:06.3f}"


def answer(*series: tuple[dict[str, str], list[list[Any]]]) -> str:
    result = [{"metric": metric, "values": values} for metric, values in series]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})


def dcgm(gpu: int, values: list[float], name: str = "DCGM_FI_DEV_POWER_USAGE", **more: str) -> Any:
    pairs = [[1_700_000_000 + i, str(value)] for i, value in enumerate(values)]
    return ({"__name__": name, "gpu": str(gpu), "Hostname": "a", **more}, pairs)


# nvidia-smi


def test_nvidia_smi_with_header_units_and_index(write: Write) -> None:
    rows = [
        f"{stamp(30 + i)}, {gpu}, {100 * gpu + i}.50 W, {300 + gpu}.00 W, {40 + i}, 1410 MHz"
        for i in range(4)
        for gpu in (0, 1)
    ]
    header = "timestamp, index, power.draw [W], power.limit [W], temperature.gpu, clocks.current.sm [MHz]"
    telemetry = read_telemetry(write(header, *rows))
    assert telemetry.channels == ("gpu0", "gpu1")
    assert telemetry.power_w.tolist() == [[0.5, 100.5], [1.5, 101.5], [2.5, 102.5]]
    assert telemetry.start_s == 1_772_445_630  # 2026-03-02 10:00:30 UTC
    assert telemetry.covariates["cap_w"][0].tolist() == [300, 301]
    assert telemetry.covariates["temperature_c"][:, 0].tolist() == [40, 41, 42]
    assert telemetry.covariates["sm_clock_mhz"][0, 0] == 1410


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        ("{t}, 82.87 W", Options()),
        ("{t}, 82.87", Options()),
        ("0, {t}, 82.87 W, 35 %", Options()),
        ("{t}, 0, 82.87", Options(columns=("timestamp", "index", "power.draw"))),
        ("{t}, 0, 82.87, 300", Options(columns=("timestamp", "index", "power.draw", "power.limit"))),
    ],
)
def test_nvidia_smi_without_header(write: Write, cells: str, options: Options) -> None:
    path = write(*(cells.format(t=stamp(i)) for i in range(5)))
    assert detect(path) == "nvidia-smi"
    telemetry = read_telemetry(path, options=options)
    assert telemetry.channels == ("gpu0",)
    assert telemetry.power_w[:, 0].tolist() == [82.87] * 4
    assert telemetry.warnings == ()


def test_nvidia_smi_readings_that_are_not_available_are_gaps(write: Write) -> None:
    watts = ["80 W", "[N/A]", "82 W", "83 W", "84 W"]
    path = write("timestamp, power.draw [W]", *(f"{stamp(i)}, {watt}" for i, watt in enumerate(watts)))
    telemetry = read_telemetry(path)
    assert telemetry.known[:, 0].tolist() == [True, False, True, True]
    assert telemetry.warnings == (f"{path}: 1 lines without a reading of power, counted as gaps",)


def test_a_pause_of_the_recorder_is_a_gap_of_its_gpu_alone(write: Write) -> None:
    rows = [f"{stamp(i)}, {gpu}, {100 * gpu + i} W" for i in range(20) for gpu in (0, 1) if gpu or not 5 < i < 12]
    telemetry = read_telemetry(write("timestamp, index, power.draw [W]", *rows))
    assert np.flatnonzero(~telemetry.known[:, 0]).tolist() == [5, 6, 7, 8, 9, 10, 11]  # 5 would have to hold for 7 s
    assert telemetry.known[:, 1].all()
    assert len(telemetry) == 19  # the grid goes on through the gap
    everything = read_telemetry(write("timestamp, index, power.draw [W]", *rows), options=Options(max_gap_s=8.0))
    assert everything.known.all()  # only who allows it has a reading held for so long
    assert everything.power_w[5:12, 0].tolist() == [5] * 7


def test_several_gpus_without_an_index_are_told(write: Write) -> None:
    rows = [f"{stamp(i + gpu * 0.004)}, {100 + gpu} W" for i in range(10) for gpu in (0, 1)]
    assert "query index" in read_telemetry(write("timestamp, power.draw [W]", *rows)).warnings[0]


def test_a_cut_last_line_is_left_out(write: Write) -> None:
    rows = [f"{stamp(i)}, 0, {200 + i}.00 W" for i in range(5)]
    path = write("timestamp, index, power.draw [W]", *rows, f"{stamp(5)}, 0, 2", end="")
    telemetry = read_telemetry(path)
    assert telemetry.power_w[:, 0].tolist() == [200, 201, 202, 203]
    assert telemetry.warnings == (f"{path}: the last line was cut and is left out",)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["timestamp, index, utilization.gpu [%]", f"{stamp(0)}, 0, 5 %"], Options(), "no layout of telemetry"),
        ([f"{stamp(0)}, 1, 35, 82.87"], Options(), "--columns timestamp,index,power.draw"),
        ([f"{stamp(0)}, 0, 82.87"], Options(columns=("timestamp",)), "names 1 columns, the file has 3"),
        ([f"{stamp(0)}, 82.87"], Options(columns=("index", "power.draw")), "names no timestamp"),
        ([f"{stamp(0)}, 82.87"], Options(columns=("timestamp", "index")), "no power among"),
        (["timestamp, power.draw [W]"], Options(), "a header and no readings"),
        (["timestamp, power.draw [W]", f"{stamp(0)}, 1 W", "yesterday, 2 W"], Options(), r":3: the time stamp is"),
        (["timestamp, power.draw [W]", f"{stamp(0)}, 1 W", "2026/13/01 10:00:00, 2 W"], Options(), r":3: there is no"),
        (["timestamp, power.draw [W]", f"{stamp(0)}, many W"], Options(), r":2: power.draw is 'many W', not a number"),
        (["timestamp, power.draw", f"{stamp(0)}, 0.2 kW"], Options(), r":2: power.draw is '0.2 kW'. Give it in W"),
        (["timestamp, power.draw [W]", f"{stamp(0)}, 1 W", f"{stamp(1)}, -1 W"], Options(), "power is -1 W, line 3"),
        (["timestamp, power.draw [W]", f"{stamp(0)}"], Options(), r":2: 1 cells where 2 are due"),
        (["timestamp, power.draw [W]", f"{stamp(0)}, 1 W"], Options(zone="Mars/Olympus"), "zone 'Mars/Olympus'"),
    ],
)
def test_nvidia_smi_that_does_not_hold(write: Write, lines: list[str], options: Options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_telemetry(write(*lines), options=options)


def test_clocks_put_back_are_followed_in_their_zone(write: Write) -> None:
    # In Berlin 02:59:59 on 2026-10-25 is followed by 02:00:00.
    clock = [f"2026/10/25 {hour}" for hour in ("02:59:57", "02:59:58", "02:59:59", "02:00:00", "02:00:01", "02:00:02")]
    path = write("timestamp, power.draw [W]", *(f"{at}.000, {i} W" for i, at in enumerate(clock)))
    telemetry = read_telemetry(path, options=Options(zone="Europe/Berlin"))
    assert telemetry.power_w[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert telemetry.start_s == 1_792_889_997  # 2026-10-25 00:59:57 UTC
    with pytest.raises(InputError, match=r"time goes back by 3,599\.0 s, line 5"):
        read_telemetry(path)


def test_clocks_put_forward_leave_no_gap_in_their_zone(write: Write) -> None:
    # In Berlin 01:59:59 on 2026-03-29 is followed by 03:00:00.
    clock = [f"2026/03/29 {hour}" for hour in ("01:59:57", "01:59:58", "01:59:59", "03:00:00", "03:00:01", "03:00:02")]
    path = write("timestamp, power.draw [W]", *(f"{at}.000, {i} W" for i, at in enumerate(clock)))
    telemetry = read_telemetry(path, options=Options(zone="Europe/Berlin"))
    assert telemetry.power_w[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert telemetry.start_s == 1_774_745_997  # 2026-03-29 00:59:57 UTC
    elsewhere = read_telemetry(path)
    assert len(elsewhere) == 3605 and elsewhere.known.sum() == 4


def test_local_times() -> None:
    stamps = np.array(["2026-07-01T12:00:00.5", "2026-12-01T12:00:00"], "datetime64[us]")
    utc = epoch_s(stamps, "UTC", "")
    assert (utc - epoch_s(stamps, "Europe/Berlin", "")).tolist() == [7200, 3600]
    assert (utc - epoch_s(stamps, "Asia/Kathmandu", "")).tolist() == [20_700, 20_700]
    with pytest.raises(InputError, match="there is no 2026-03-29 02:30 in Europe/Berlin"):
        epoch_s(np.array(["2026-03-29T02:30:01"], "datetime64[us]"), "Europe/Berlin", "f")
    assert len(epoch_s(stamps[:0], "UTC", "")) == 0


# Prometheus


def test_range_queries_of_dcgm_and_vllm(write: Write) -> None:
    running = ({"__name__": "vllm:num_requests_running", "instance": "a:8000"}, dcgm(0, [3, 4, 5, 6])[1])
    tokens = ({"__name__": "vllm:generation_tokens_total"}, dcgm(0, [10, 25, 45, 45])[1])
    series = [
        dcgm(1, [200, 210, 220, 230]),
        dcgm(0, [100, 110, 120, 130]),
        dcgm(0, [40, 41, 42, 43], "DCGM_FI_DEV_GPU_TEMP"),
        running,
        tokens,
    ]
    path = write(answer(*series), name="export.json")
    telemetry = read_telemetry(path)
    assert telemetry.channels == ("gpu0", "gpu1")
    assert telemetry.power_w.tolist() == [[100, 200], [110, 210], [120, 220]]
    assert telemetry.start_s == 1_700_000_000
    assert telemetry.covariates["temperature_c"][:, 0].tolist() == [40, 41, 42]
    assert np.isnan(telemetry.covariates["temperature_c"][:, 1]).all()
    assert telemetry.covariates["running"].tolist() == [[3, 3], [4, 4], [5, 5]]
    assert telemetry.covariates["output_tokens"].tolist() == [[15, 15], [20, 20], [0, 0]]


def test_pages_of_one_query_are_joined_and_nan_is_a_gap(write: Write) -> None:
    name, pairs = dcgm(0, [1, 2, float("nan"), 4, 5, 6])
    path = write(answer((name, pairs[:4])), answer((name, pairs[3:])), name="pages.json")
    telemetry = read_telemetry(path)
    assert telemetry.known[:, 0].tolist() == [True, True, False, True, True]
    assert telemetry.power_w[3:, 0].tolist() == [4, 5]


def test_missing_points_of_a_range_query_are_gaps(write: Write) -> None:
    name, pairs = dcgm(0, [float(i) for i in range(12)])
    telemetry = read_telemetry(write(answer((name, pairs[:4] + pairs[8:])), name="holes.json"))
    assert np.flatnonzero(~telemetry.known[:, 0]).tolist() == [3, 4, 5, 6, 7]


def test_a_cut_last_page_is_left_out(write: Write) -> None:
    name, pairs = dcgm(0, [1, 2, 3, 4, 5, 6])
    pages = [answer((name, pairs[:4])), answer((name, pairs[3:]))]
    path = write(pages[0], pages[1][:-20], name="pages.json", end="")
    telemetry = read_telemetry(path)
    assert telemetry.power_w[:, 0].tolist() == [1, 2, 3]
    assert telemetry.warnings == (f"{path}: the last line was cut and is left out",)
    assert len(read_telemetry(write(*pages, name="whole.json", end=""))) == 5  # no line break, yet whole
    with pytest.raises(InputError, match="is no JSON"):
        read_telemetry(write(pages[1][:-20], pages[0], name="torn.json", end=""))  # cut, but not at the end


def test_hosts_and_engines_are_told_apart(write: Write) -> None:
    engines = [({"__name__": "vllm:num_requests_running", "instance": i}, dcgm(0, [1, 2, 3])[1]) for i in "xy"]
    path = write(answer(dcgm(0, [1, 2, 3]), dcgm(0, [4, 5, 6], Hostname="b"), *engines), name="x.json")
    telemetry = read_telemetry(path)
    assert telemetry.channels == ("a/gpu0", "b/gpu0")
    assert not telemetry.covariates
    assert "vllm:num_requests_running of 2 engines left out" in telemetry.warnings[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"status":"success","data":{"resultType":"vector","result":[]}}', "a vector, not a matrix"),
        ('{"status":"error","error":"bad_data: parse error"}', "bad_data: parse error"),
        ('{"status":"succ', "is no JSON"),
        ('{"rows": 1}', "is no answer of Prometheus"),
        (answer(({"gpu": "0"}, [[1, "1"]])), r"no metric of power among \(no name\)"),
        (answer(dcgm(0, [1, 2]), dcgm(0, [1, 2], job="other")), "several series of gpu0"),
        (answer(({"__name__": "DCGM_FI_DEV_POWER_USAGE"}, [[1, "x"]])), "no pairs of time and number"),
    ],
)
def test_range_queries_that_do_not_hold(write: Write, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_telemetry(write(text, name="export.json"))


# Parquet and columns


def test_the_simulators_seconds(tmp_path: Path) -> None:
    columns = {
        "second": np.repeat(np.arange(3), 2),
        "slot": ["s0", "s1"] * 3,
        "energy_j": np.zeros(6),
        "metered_w": np.arange(6.0),
        "running": np.arange(6, dtype=np.int32) * 10,
        "kv_used": np.arange(6) / 8,
        "clock_ratio": np.ones(6),
    }
    pq.write_table(pa.table(columns), tmp_path / "seconds.parquet")
    telemetry = read_telemetry(tmp_path / "seconds.parquet")
    assert telemetry.channels == ("s0", "s1")
    assert telemetry.power_w.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert telemetry.covariates["running"].tolist() == [[0, 10], [20, 30], [40, 50]]
    assert telemetry.covariates["kv_used"].tolist() == [[0, 0.125], [0.25, 0.375], [0.5, 0.625]]
    assert set(telemetry.covariates) == {"running", "kv_used"}
    pq.write_table(pa.table({"second": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no column slot"):
        read_telemetry(tmp_path / "other.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_telemetry(tmp_path / "cut.parquet")


def test_watts_by_column(write: Write) -> None:
    rows = [f"{i * 0.5:.3f},{100 + i},{200 + i},7" for i in range(9)]
    telemetry = read_telemetry(write("t_s,gpu0_w,gpu1_w,gpu0_util", *rows))
    assert telemetry.channels == ("gpu0", "gpu1")
    assert telemetry.power_w[:2].tolist() == [[100.5, 200.5], [102.5, 202.5]]
    assert not telemetry.warnings


def test_watts_that_were_not_read_are_gaps_and_told(write: Write) -> None:
    path = write("t_s,gpu0_w,gpu1_w", "0,1,5", "1,n/a,6", "2,3,7", "3,3,8")
    telemetry = read_telemetry(path)
    assert telemetry.known.T.tolist() == [[True, False, True], [True, True, True]]
    assert telemetry.warnings == (f"{path}: 1 lines without a reading of gpu0_w, counted as gaps",)


def test_watts_without_time(write: Write) -> None:
    path = write("power_w,sm_clock_mhz,temp_c", *(f"{100 + i},1410,{30 + i}" for i in range(13)))
    telemetry = read_telemetry(path)
    assert telemetry.power_w[:, 0].tolist() == [101.5, 105.5, 109.5]
    assert telemetry.covariates["temperature_c"][:, 0].tolist() == [31.5, 35.5, 39.5]
    assert telemetry.warnings == (f"{path}: no time stamps; readings are taken to be 0.25 s apart",)
    assert len(read_telemetry(path, options=Options(period_s=0.5))) == 6
    with pytest.raises(InputError, match="--period"):
        read_telemetry(path, options=Options(period_s=0.0))


def test_a_cut_last_line_of_columns_and_counters_is_left_out(write: Write) -> None:
    rows = [f"{1_700_000_000 + i},{100 + i}" for i in range(8)]
    power = write("epoch_s,power_w", *rows, "1700000008,1", end="")
    counters = write("epoch_s,num_requests_running", *rows, "1700000008,1", name="engine.csv", end="")
    telemetry = read_telemetry(power, options=Options(engine=counters))
    assert telemetry.power_w[:, 0].tolist() == telemetry.covariates["running"][:, 0].tolist() == [*range(100, 107)]
    assert telemetry.warnings == tuple(f"{path}: the last line was cut and is left out" for path in (power, counters))
    # A whole line whose last reading is empty is a gap, not an error.
    assert read_telemetry(write("t_s,power_w", "0,1", "1,2", "2,", "3,4", "4,5")).known[:, 0].tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_the_engine_is_joined_by_the_calendar(write: Write, tmp_path: Path) -> None:
    power = write("t_s,epoch_s,power_w", *(f"{i},{1_700_000_000.5 + i},{i}" for i in range(6)))
    header = "epoch_s,num_requests_running,prompt_tokens_total"
    engine = write(header, *(f"{1_700_000_000 + i},{i},{i * i}" for i in range(5)), name="engine.csv")
    telemetry = read_telemetry(power, options=Options(engine=engine))
    assert telemetry.start_s == 1_700_000_000
    assert telemetry.covariates["running"][:4, 0].tolist() == [0, 1, 2, 3]
    assert telemetry.covariates["prompt_tokens"][:4, 0].tolist() == [1, 3, 5, 7]
    assert np.isnan(telemetry.covariates["running"][4:]).all()
    other = write(header, "5,1,1", "6,1,1", name="other.csv")
    with pytest.raises(InputError, match="no second in common"):
        read_telemetry(power, options=Options(engine=other))
    with pytest.raises(InputError, match="no column epoch_s"):
        read_telemetry(power, options=Options(engine=write("t_s,x", "1,2", name="wrong.csv")))
    without = write("t_s,power_w", "0,1", "1,2", "2,3", name="without.csv")
    with pytest.raises(InputError, match="no epoch_s to join"):
        read_telemetry(without, options=Options(engine=engine))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["t_s,power_w"], "a header and no readings"),
        (["t_s,power_w", "0,1", ",2"], ":3: no t_s"),
        (["t_s,power_w", "0,1", "1,x"], ":3: power_w is 'x', not a number"),
        (["t_s,power_w", "0,1", "1,-200", "2,3"], "gpu0: power is -200 W, line 3. Mend or remove the line"),
        (["t_s,gpu0_w,gpu1_w", "0,1,1", "1,1,inf"], "gpu1: power is inf W, line 3"),
        (["a,b", "1,2"], "no layout of telemetry"),
    ],
)
def test_columns_that_do_not_hold(write: Write, lines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_telemetry(write(*lines))


def test_unknown_layouts_and_files_are_told(write: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError) as fault:
        read_telemetry(write("once upon a time"))
    assert all(name in str(fault.value) for name in LAYOUTS)
    with pytest.raises(InputError, match="no reader for 'xml'"):
        read_telemetry(write("t_s,power_w", "0,1"), "xml")
    with pytest.raises(InputError, match="no column of watts"):
        read_telemetry(write("t_s,volts", "0,1"), "columns")
    with pytest.raises(InputError, match="no such file"):
        read_telemetry(tmp_path / "nothing.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(InputError, match="the file is empty"):
        read_telemetry(tmp_path / "empty.csv")
    (tmp_path / "latin.csv").write_bytes(b"t_s,power_w\n0,\xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_telemetry(tmp_path / "latin.csv")
    with pytest.raises(InputError, match="holds no whole line"):
        read_telemetry(write("t_s,power_w", end=""))


@measured
@pytest.mark.data
def test_published_telemetry() -> None:
    serving = DATA / "vllm_serving"
    mixtral = read_telemetry(DATA / "telemetry" / "mixtral-8x7b_3xA100_input-sweep.csv")
    assert mixtral.power_w.shape == (714, 3)
    busy, idle = (read_telemetry(serving / f"burstgpt_a100_qwen3-8b_w{i}_power.csv") for i in (1, 2))
    assert np.nanmedian(busy.power_w) == pytest.approx(290, abs=15)
    assert np.nanmedian(idle.power_w) == pytest.approx(86, abs=3)
    smooth = [serving / f"a100_qwen3-8b_r2p5_smooth_{name}.csv" for name in ("power", "engine")]
    joined = read_telemetry(smooth[0], options=Options(engine=smooth[1]))
    # All but the tokens of the first reading and of what the seconds at the ends cut off.
    assert np.nansum(joined.covariates["prompt_tokens"]) == pytest.approx(66_356, rel=0.03)
    assert np.nansum(joined.covariates["output_tokens"]) == pytest.approx(42_672, rel=0.03)
