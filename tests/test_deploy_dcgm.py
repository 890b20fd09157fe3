"""GPUs by what DCGM-exporter tells of them, under old names and new ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmcluster.deploy.engines.dcgm import DcgmSource
from llmcluster.deploy.readings import GpuReading, ReadingError
from llmcluster.errors import InputError
from llmcluster.tests.test_deploy_engines import Pages
from llmcluster.tests.test_deploy_engines import pages as pages

A, B = "GPU-aaaa", "GPU-bbbb"
GIB = 2**30
OLD = {
    "POWER_USAGE": 310.5,
    "POWER_USAGE_INSTANT": 322.25,
    "TOTAL_ENERGY_CONSUMPTION": 164901081136,
    "GPU_TEMP": 61,
    "SLOWDOWN_TEMP": 87,
    "SM_CLOCK": 1755,
    "MAX_SM_CLOCK": 1980,
    "GPU_UTIL": 98,
    "FB_USED": 70 * 1024,
    "FB_FREE": 9 * 1024,
    "FB_RESERVED": 1024,
    "POWER_MGMT_LIMIT": 500,
    "ENFORCED_POWER_LIMIT": 450,
    "CLOCK_THROTTLE_REASONS": 0x4 + 0x40,
}
NEW = {
    "BOARD_POWER_WATTS": 310.5,
    "BOARD_POWER_RAW_WATTS": 322.25,
    "GPU_ENERGY_JOULES_TOTAL": 164901081.136,
    "GPU_TEMP_CELSIUS": 61,
    "GPU_TEMP_SLOWDOWN_CELSIUS": 87,
    "SM_CLOCK_HERTZ": 1.755e9,
    "SM_MAX_CLOCK_HERTZ": 1.98e9,
    "GPU_UTIL_RATIO": 0.98,
    "FB_USED_BYTES": 70 * GIB,
    "FB_CAPACITY_BYTES": 80 * GIB,
    "BOARD_POWER_LIMIT_REQUESTED_WATTS": 500,
    "BOARD_POWER_LIMIT_ENFORCED_WATTS": 450,
    "CLOCKS_EVENT_REASONS": 0x4 + 0x40,
}
ALL = GpuReading(
    time_s=3.0,
    power_w=322.25,
    mean_power_w=310.5,
    energy_j=pytest.approx(164901081.136),
    temperature_c=61.0,
    slowdown_c=87.0,
    clock_mhz=pytest.approx(1755.0),
    max_clock_mhz=pytest.approx(1980.0),
    utilisation=0.98,
    memory_used_bytes=70 * GIB,
    memory_bytes=80 * GIB,
    throttle=frozenset({"sw_power_cap", "hw_thermal_slowdown"}),
    limit_w=500.0,
    enforced_w=450.0,
)


def page(fields: dict[str, float], uuid: str = A, gpu: int = 0, more: str = "", label: str = "UUID") -> str:
    lines = [f"# HELP DCGM_FI_DEV_{name} help\n# TYPE DCGM_FI_DEV_{name} gauge" for name in fields]
    labels = f'gpu="{gpu}",{label}="{uuid}",pci_bus_id="00000000:1B:00.0",device="nvidia{gpu}",Hostname="h"{more}'
    return "\n".join([*lines, *(f"DCGM_FI_DEV_{name}{{{labels}}} {value}" for name, value in fields.items())]) + "\n"


@pytest.fixture
def exporter(pages: Pages) -> Iterator[Pages]:
    yield pages


def source(exporter: Pages, *names: str) -> DcgmSource:
    return DcgmSource(exporter.url + "/metrics", names, 1.0, clock=lambda: 3.0)


@pytest.mark.parametrize("fields", [OLD, NEW], ids=["before 4.6", "since 4.6"])
def test_all_that_it_tells_is_read(exporter: Pages, fields: dict[str, float]) -> None:
    exporter.say(page(fields))
    assert source(exporter, A).read() == {A: ALL}


def test_of_two_names_the_older_counts_and_of_none_nothing(exporter: Pages) -> None:
    exporter.say(page(OLD | NEW | {"BOARD_POWER_WATTS": 1.0}))
    assert source(exporter, A).read() == {A: ALL}
    exporter.say(page({"POWER_USAGE": 100.0, "FB_USED": 10.0}))
    bare = GpuReading(3.0, mean_power_w=100.0, memory_used_bytes=10 * 2**20)
    assert source(exporter, A).read() == {A: bare}


def test_gpus_are_found_by_uuid_and_by_index(exporter: Pages) -> None:
    exporter.say(page({"POWER_USAGE": 100.0}) + page({"POWER_USAGE": 200.0}, B, 1, label="uuid"))
    watts = {name: reading.mean_power_w for name, reading in source(exporter, "1", A).read().items()}
    assert watts == {"1": 200.0, A: 100.0}
    assert set(source(exporter).read()) == {A, B}
    assert set(source(exporter, A, "7").read()) == {A}, "what is lost is left out"
    with pytest.raises(ReadingError, match="no GPU that was asked for, but of GPU-aaaa, GPU-bbbb"):
        source(exporter, "7").read()
    with pytest.raises(InputError, match="has one twice"):
        source(exporter, A, A)


def test_mig_instances_and_blank_values_are_left_out(exporter: Pages) -> None:
    blank = {"POWER_USAGE_INSTANT": 9223372036854775794, "ENFORCED_POWER_LIMIT": 140737488355328.0}
    instance = page({"GPU_TEMP": 99}, more=',GPU_I_PROFILE="1g.10gb",GPU_I_ID="7"')
    exporter.say(page(OLD | blank) + instance)
    reading = source(exporter, A).read()[A]
    assert reading.power_w is None and reading.enforced_w is None
    assert reading.temperature_c == 61.0 and reading.limit_w == 500.0


def test_an_exporter_that_is_away_or_empty_is_no_reading(exporter: Pages) -> None:
    with pytest.raises(ReadingError, match="answers 404"):
        source(exporter, A).read()
    exporter.say("")
    with pytest.raises(ReadingError, match="but of none"):
        source(exporter).read()
    exporter.say("DCGM_FI_DEV_GPU_TEMP{ 3\n")
    with pytest.raises(ReadingError, match="no page of metrics"):
        source(exporter).read()
