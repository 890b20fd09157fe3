"""Telemetry of GPUs from files of several layouts: power on a grid of one second, with gaps marked."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from ...errors import InputError
from ...files import readable
from . import columns, nvidia_smi
from .options import Options
from .prometheus import read_prometheus
from .series import COVARIATES, GROUPS, Telemetry
from .simulated import read_simulated

__all__ = ["COVARIATES", "GROUPS", "LAYOUTS", "Options", "Telemetry", "detect", "read_telemetry"]

Reader = Callable[[Path, Options], Telemetry]

LAYOUTS: dict[str, tuple[Reader, str]] = {
    "nvidia-smi": (nvidia_smi.read_nvidia_smi, "nvidia-smi --query-gpu=timestamp,index,power.draw --format=csv"),
    "columns": (columns.read_columns, "CSV with a header and watts in power_w, or in gpu0_w, gpu1_w and so on"),
    "prometheus": (read_prometheus, "JSON that /api/v1/query_range answers"),
    "simulated": (read_simulated, "seconds.parquet of llmcluster simulate --out"),
}
"""Reader and description by name."""


def read_telemetry(path: Path, layout: str | None = None, options: Options | None = None) -> Telemetry:
    """Reads a file of telemetry.

    Args:
        path: The file.
        layout: A key of :data:`LAYOUTS`; by default told from the file.
        options: What the file does not say.

    Returns:
        Its power and covariates, with what was left out in ``warnings``.

    Raises:
        InputError: The file is absent, of no known layout, or does not hold.
    """
    readable(path)
    name = detect(path) if layout is None else layout
    if name not in LAYOUTS:
        raise InputError("layout", f"no reader for {name!r}", f"Give one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name][0](path, options or Options())


def detect(path: Path) -> str:
    """Tells the layout from how the file begins."""
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(b"PAR1"):
        return "simulated"
    text = start.decode("utf-8", "replace").lstrip("\ufeff")
    if text.lstrip()[:1] in ("{", "["):
        return "prometheus"
    lines = text.splitlines()
    first = [cell.strip() for cell in next(csv.reader(lines[:1], skipinitialspace=True), [])]
    for name, module in (("nvidia-smi", nvidia_smi), ("columns", columns)):
        if module.looks_like(first):
            return name
    known = "; ".join(f"{name}: {what}" for name, (_, what) in LAYOUTS.items())
    raise InputError(str(path), f"it begins with {text[:40]!r}, which is no layout of telemetry", f"Known are: {known}")
