"""What tests of the command line share: a trace, a scenario to complete or to spoil, and what a call left behind."""

from collections.abc import Callable
from pathlib import Path

Rows = list[tuple[float, int, int]]
Trace = Callable[..., Path]
ROWS: Rows = [(0.5 * i, 50 + i, 5 + i % 40) for i in range(240)]
BAD_SCENARIO = """
horizon_s = 60
[[cluster.rows]]
[[cluster.rows.racks]]
[[cluster.rows.racks.servers]]
gpu = "A100-80GB"
gpus = 4
model = "Llama-3.1-8B"
{extra}
[workload]
requests = {{ kind = "azure-2023-conv" }}
arrivals = {{ kind = "azure-2023-conv", rate_per_s = 1.0 }}
"""


def left_behind() -> list[str]:
    """Everything that a call has left in its folder."""
    return sorted(str(p) for p in Path().rglob("*"))
