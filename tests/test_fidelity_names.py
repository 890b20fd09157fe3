"""What measured files call GPUs."""

from pathlib import Path

import pytest

from llmcluster.experiments.fidelity.names import PRODUCTS, USUAL, gpu_called
from llmcluster.experiments.fidelity.sources.caps_files import read_caps
from llmcluster.simulator.catalog import Catalog

CATALOG = Catalog.builtin()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("H100-SXM5-80GB", "H100-80GB"),
        ("H100 SXM", "H100-80GB"),
        ("h100", "H100-80GB"),
        ("nvidia h100 80 GB", "H100-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("A100", "A100-80GB"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA A40", "A40"),
        ("Tesla V100-PCIE-32GB", "V100-32GB"),
        ("V100", "V100-32GB"),
    ],
)
def test_a_gpu_is_known_by_the_names_it_has(text: str, name: str) -> None:
    assert gpu_called(CATALOG, text) == name


@pytest.mark.parametrize(
    "text",
    [
        "NVIDIA H100 PCIe",
        "H100 NVL",
        "GB200",
        "A100-PCIE-40GB",
        "Tesla V100-SXM2-32GB",
        "V100-SXM2",
        "V100-16GB",
        "L40S",
    ],
)
def test_another_board_or_memory_is_another_gpu(text: str) -> None:
    assert gpu_called(CATALOG, text) == text


def test_products_and_families_are_in_the_catalogue() -> None:
    assert {*PRODUCTS.values(), *USUAL.values()} <= set(CATALOG.gpus)


def test_entries_of_a_catalogue_file_come_first(tmp_path: Path) -> None:
    more = tmp_path / "more.toml"
    more.write_text('[gpus.H100]\nlike = "H200"\n\n[gpus.H100-NVL]\nlike = "H100-80GB"\n')
    catalog = CATALOG.with_file(more)
    assert gpu_called(catalog, "h100") == "H100" and gpu_called(catalog, "NVIDIA H100 NVL") == "H100-NVL"


@pytest.mark.parametrize(("cell", "name"), [("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("a100", "A100-80GB-PCIe")])
def test_a_file_of_caps_tells_boards_apart(tmp_path: Path, cell: str, name: str) -> None:
    """The published file says a100 of a PCIe board; a full name says which board it was."""
    path = tmp_path / "caps.csv"
    header = "bench,gpu,variant,mem_clock_mhz,max_clock_mhz,power_cap_w,time_s,energy_wh,bandwidth_gbs,avg_power_w"
    path.write_text(f"{header}\npi-solver,{cell},fp64,,1005,300,20,1,,66\n")
    (row,) = read_caps(path, CATALOG)
    assert row.groups["gpu"] == name
