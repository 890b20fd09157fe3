"""What tests of emulated GPUs share."""

from pathlib import Path

from llmcluster.deploy.rehearsal.nvml import EmulatedGpus
from llmcluster.simulator.catalog.catalog import Catalog

H100 = Catalog.builtin().gpu("H100-80GB")
A100 = Catalog.builtin().gpu("A100-80GB")


def emulated(folder: Path, gpus: int = 2) -> EmulatedGpus:
    """So many GPUs, the first an H100, the others A100."""
    return EmulatedGpus(folder / "nvml.state", [H100] + [A100] * (gpus - 1))
