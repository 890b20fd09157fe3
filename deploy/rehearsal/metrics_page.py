"""The page `/metrics` of an emulated server, in the names and types of vLLM's V1 engine."""

from __future__ import annotations

from collections import Counter as Tallies
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ...simulator.kernels.state import SLEEPING
from ...simulator.units import PS_PER_S
from .live import LiveMachine
from .requests import LiveRequest

TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
LATENCY_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
ITERATIONS = "iterations"
LABELS = ("model_name", "engine")
SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")


class MetricsPage(Collector):
    """Metrics of one server; counters begin at 0 when it starts.

    Prompt tokens are counted as they are computed, iteration by iteration, as the simulator's telemetry has them; vLLM
    counts a prompt as a whole with its first token.

    Args:
        machine: The machine.
        slot: The slot that the server runs on.
    """

    def __init__(self, machine: LiveMachine, slot: int) -> None:
        self._machine, self._slot = machine, slot
        self._lies: Mapping[str, float] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._ended: Tallies[str] = Tallies()
        self._base = self._counters()
        self._times = {
            name: Histogram(f"vllm:{name}", told, LABELS, registry=self._registry, buckets=buckets)
            for name, told, buckets in (
                ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", TTFT_S),
                ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", LATENCY_S),
            )
        }

    def text(self, lies: Mapping[str, float]) -> bytes:
        """The page, with ``lies`` in the place of some values; see :class:`Faults`."""
        self._lies = lies
        return generate_latest(self._registry)

    def note_first(self, request: LiveRequest) -> None:
        """A request has its first token."""
        self._note("time_to_first_token_seconds", request, "first_token_ps")

    def note_end(self, request: LiveRequest, reason: str) -> None:
        """A request has ended."""
        self._ended[reason] += 1
        if request.is_over:
            self._note("e2e_request_latency_seconds", request, "finish_ps")

    def _note(self, name: str, request: LiveRequest, until: str) -> None:
        record = request.request.record
        passed_s = (int(record[until]) - int(record["arrival_ps"])) / PS_PER_S
        self._times[name].labels(*self._labels).observe(passed_s)

    @property
    def _labels(self) -> list[str]:
        return [self._machine.model(self._slot), "0"]

    def _counters(self) -> dict[str, float]:
        counts = self._machine.counts(self._slot)
        return {
            "num_preemptions": self._machine.tally.preemptions[self._slot],
            "prompt_tokens": counts.prompt_tokens,
            "generation_tokens": counts.output_tokens,
            ITERATIONS: self._machine.tally.iterations[self._slot],
        }

    def _iteration_tokens(self, gained: dict[str, float]) -> Metric:
        """VLLM's histogram of tokens by iteration, of which only number and sum are told apart here."""
        histogram = HistogramMetricFamily(
            "vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", labels=LABELS
        )
        tokens = gained["prompt_tokens"] + gained["generation_tokens"]
        histogram.add_metric(self._labels, [("+Inf", gained[ITERATIONS])], tokens)
        return histogram

    def collect(self) -> Iterator[Metric]:
        """What is so now, for the registry."""
        running, waiting, used = self._machine.queues(self._slot)
        for name, told, value in (
            ("num_requests_running", "Number of requests in model execution batches.", float(running)),
            ("num_requests_waiting", "Number of requests waiting to be processed.", float(waiting)),
            ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", used),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", told, labels=LABELS)
            gauge.add_metric(self._labels, self._lies.get(name, value))
            yield gauge
        asleep = self._machine.status(self._slot) == SLEEPING
        state = SLEEP_STATES[self._machine.scenario.cluster.engine.sleep_level if asleep else 0]
        sleep = GaugeMetricFamily("vllm:engine_sleep_state", "Engine sleep state.", labels=[*LABELS, "sleep_state"])
        for each in SLEEP_STATES:
            sleep.add_metric([*self._labels, each], float(each == state))
        yield sleep
        counts = self._counters()
        yield self._iteration_tokens({name: value - self._base[name] for name, value in counts.items()})
        for name, value in counts.items():
            if name == ITERATIONS:
                continue
            counter = CounterMetricFamily(f"vllm:{name}", f"Cumulative {name.replace('_', ' ')}.", labels=LABELS)
            counter.add_metric(self._labels, self._lies.get(name, value - self._base[name]))
            yield counter
        ended = CounterMetricFamily(
            "vllm:request_success", "Count of successfully processed requests.", labels=[*LABELS, "finished_reason"]
        )
        for reason in ("stop", "length", "abort"):
            ended.add_metric([*self._labels, reason], self._ended[reason])
        yield ended
