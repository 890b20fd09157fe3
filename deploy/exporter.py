"""Prometheus metrics of the control loop, on a port of their own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..envs.telemetry import LEAD_TIMES_S
from ..forecaster import QUANTILES, TARGETS
from ..simulator.errors import InputError
from ..simulator.kernels.state import STATUS_NAMES
from .capping import Capper
from .fallback import RESPONSES
from .loop import Progress
from .plant import RealPlant

PREFIX = "llmcluster_"
OF_SLOTS = {
    "slot_power_watts": "Power in the last second.",
    "slot_cap_watts": "Power limit in force, all GPUs together.",
    "slot_wished_cap_watts": "Power limit that the agent asked for.",
    "slot_temperature_celsius": "The hottest GPU.",
    "slot_clock_ratio": "The slowest clock relative to the highest.",
    "slot_running": "Requests in the batch.",
    "slot_waiting": "Requests in the queue.",
    "slot_kv_used_ratio": "Share of the KV cache in use.",
    "slot_prompt_tokens_per_second": "Prompt tokens computed, mean of the last tick.",
    "slot_output_tokens_per_second": "Tokens generated, mean of the last tick.",
    "slot_route_weight": "Routing weight.",
    "slot_in_flight_limit": "Requests in flight at most.",
}


class LoopCollector(Collector):
    """What the loop knows, at the time of a scrape.

    Args:
        plant: The cluster.
        capper: Writes its limits.
        progress: How the loop is doing.
        apply: Whether it is no dry run.
    """

    def __init__(self, plant: RealPlant, capper: Capper, progress: Progress, *, apply: bool) -> None:
        self._plant, self._capper, self._progress, self._apply = plant, capper, progress, apply

    def collect(self) -> Iterator[Metric]:
        """See :class:`Collector`."""
        yield _gauge("apply", "1 where limits are written, 0 in a dry run.", float(self._apply))
        yield _counter("decisions", "Decisions.", self._progress.ticks)
        yield _counter("late_decisions", "Decisions that took longer than a tick.", self._progress.late)
        yield _counter("limit_writes", "Power limits written.", self._capper.writes)
        yield _counter(
            "limit_disagreements", "Limits read back that are not what was asked for.", self._capper.disagreements
        )
        falls = CounterMetricFamily(
            f"{PREFIX}fallbacks", "Decisions without the agent, by what was wrong.", None, ["kind"]
        )
        for kind in (kind for kind, response in RESPONSES.items() if response.grave):
            falls.add_metric([kind], self._progress.fallbacks.get(kind, 0))
        yield falls
        troubles = GaugeMetricFamily(f"{PREFIX}troubles", "What is wrong now, by kind.", None, ["kind"])
        for kind in RESPONSES:
            troubles.add_metric([kind], sum(trouble.kind == kind for trouble in self._progress.troubles))
        yield troubles
        yield from self._gpus()
        yield from self._decided()

    def _gpus(self) -> Iterator[Metric]:
        """Each GPU as it was read last."""
        families = {
            "gpu_power_watts": ("Power at the instant of the last look.", "power_w"),
            "gpu_energy_joules": ("Energy since the driver was loaded.", "energy_j"),
            "gpu_temperature_celsius": ("Die temperature.", "temperature_c"),
            "gpu_clock_mhz": ("SM clock.", "clock_mhz"),
            "gpu_utilisation_ratio": ("Share of time with a kernel running.", "utilisation"),
            "gpu_limit_watts": ("Power limit asked for.", "limit_w"),
            "gpu_enforced_limit_watts": ("Power limit in force.", "enforced_w"),
        }
        for name, (text, field) in families.items():
            family = GaugeMetricFamily(PREFIX + name, text, None, ["gpu"])
            for gpu, held in self._plant.now.gpus.items():
                value = getattr(held.reading, field, None)
                if value is not None:
                    family.add_metric([gpu], value)
            yield family

    def _decided(self) -> Iterator[Metric]:
        """What was known, foreseen and decided last."""
        now, plan, decision = self._progress.telemetry, self._progress.plan, self._progress.decision
        if now is None or plan is None:
            return
        slots = self._plant.fleet.slots
        wished_w = decision.action.cap_w if decision and decision.action.cap_w is not None else plan.caps.watts
        limit = now.in_flight_limit if now.in_flight_limit is not None else np.zeros(len(slots))
        columns = (
            *(now.power_w[-1], now.cap_w, wished_w, now.temperature_c, now.clock_ratio, now.running, now.waiting),
            *(now.kv_used, now.prompt_tokens_per_s, now.output_tokens_per_s, now.route_weight, limit),
        )
        for (name, text), column in zip(OF_SLOTS.items(), columns, strict=True):
            family = GaugeMetricFamily(PREFIX + name, text, None, ["slot"])
            for slot, value in zip(slots, column.tolist(), strict=True):
                family.add_metric([slot], value)
            yield family
        states = GaugeMetricFamily(f"{PREFIX}slot_state", "1 for the state that a slot is in.", None, ["slot", "state"])
        for slot, number in zip(slots, now.status.tolist(), strict=True):
            for i, state in enumerate(STATUS_NAMES):
                states.add_metric([slot, state], float(i == number))
        yield states
        budget = GaugeMetricFamily(f"{PREFIX}budget_watts", "Power budget, now and ahead.", None, ["ahead_seconds"])
        for lead, watts in zip(LEAD_TIMES_S, now.budget_w.tolist(), strict=True):
            budget.add_metric([str(lead)], watts)
        yield budget
        yield _gauge("power_watts", "Power of all GPUs in the last second.", float(now.power_w[-1].sum()))
        yield _gauge("arrivals_per_second", "Requests that came to the gateway.", now.arrivals_per_s)
        yield _gauge("held_requests", "Requests that wait at the gateway.", now.held_at_gateway)
        yield _gauge(
            "slo_attainment_ratio", "Share of requests that met their SLO in the last tick.", now.slo_attainment
        )
        yield _gauge("decision_seconds", "How long the agent took.", decision.seconds if decision else 0.0)
        if decision is not None:
            yield _forecast(decision.forecast_w[-1])


def _forecast(watts: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Metric:
    """Forecast of the power of all GPUs, (targets, quantiles)."""
    family = GaugeMetricFamily(f"{PREFIX}forecast_watts", "Forecast power of all GPUs.", None, ["target", "quantile"])
    for target, row in zip(TARGETS, watts.tolist(), strict=True):
        for quantile, value in zip(QUANTILES, row, strict=True):
            family.add_metric([target, f"{quantile:g}"], value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value)


class Exporter:
    """Serves a collector's metrics over HTTP until closed.

    Args:
        collector: What to serve.
        host: Address to listen on.
        port: Port; 0 takes a free one.

    Attributes:
        port: The port.
        url: Where the metrics are.

    Raises:
        InputError: Something else listens there.
    """

    def __init__(self, collector: Collector, host: str, port: int) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(collector)
        try:
            self._server, self._thread = start_http_server(port, host, self.registry)
        except OSError as fault:
            remedy = "Choose another port, or 0 for a free one"
            raise InputError(f"exporter {host}:{port}", f"cannot be listened at ({fault.strerror})", remedy) from fault
        self.port = int(self._server.server_port)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
