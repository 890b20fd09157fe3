"""What the cases worked by hand share: milliseconds, and iterations whose times are small integers of them."""

from __future__ import annotations

from dataclasses import replace

from llmcluster.simulator.kernels.state import BIN_PS, Engine
from llmcluster.tests.machine import Call, Factory, Machine, Policy, build

MS = 10**9
END = BIN_PS
J = 10**14
W_MS = J // 1000

# An iteration over t tokens that reads c cached ones takes 10 + max(2 t, 5 + c) ms.
PLAIN = Machine(10 * MS, 2 * MS, 5 * MS, kv_read_ps=MS)
# The same without reading: 10 + max(2 t, 5) ms.
FLAT = replace(PLAIN, kv_read_ps=0)


def call(arrival_ms: int, prompt: int, output: int, timeout_ms: int = -1, **more: object) -> Call:
    """A request, in milliseconds."""
    return Call(arrival_ms * MS, prompt, output, timeout_ms * MS if timeout_ms >= 0 else -1, **more)  # type: ignore[arg-type]


def ms(engine: Engine, row: int) -> tuple[float, float, float]:
    """Admission, first token and finish."""
    admit, first, finish = (int(engine.requests[row][name]) for name in ("admit_ps", "first_token_ps", "finish_ps"))
    return admit / MS, first / MS, finish / MS


def served(make: Factory, machine: Machine, *calls: Call, unit_tokens: int = 0, policy: Policy | None = None) -> Engine:
    """An engine of one slot after a second."""
    engine = build(machine, calls, policy, unit_tokens=unit_tokens)
    make(engine).advance(END)
    return engine
