"""What the gateway counts, for Prometheus and for the control loop."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .dispatch import Dispatcher
from .journey import Journey
from .prompts import TokenRatio

PREFIX = "llmcluster_gateway_"
FINE_S = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0)
COARSE_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counts requests.

    Args:
        dispatcher: What is under way, and where.

    Attributes:
        arrivals: Requests that have come in.
        arriving_tokens: Their prompt tokens.
        left: Requests that have ended.
        met_slo: Those of them that met their SLO.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.arrivals, self.arriving_tokens, self.left, self.met_slo = 0, 0.0, 0, 0
        self._registry = CollectorRegistry()
        self._registry.register(_State(dispatcher))
        self._ratios = {model: TokenRatio() for model in dispatcher.models}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=self._registry)

        def seconds(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(PREFIX + name + "_seconds", text, ["model"], buckets=buckets, registry=self._registry)

        self._requests = counter(
            "requests", "Requests that have ended, by status; 499: the client left", "model", "status"
        )
        self._slo = counter("slo", "Requests that have ended, by whether they met their SLO", "slo_class", "met")
        self._retries = counter("retries", "Attempts after the first", "model")
        self._broken = counter("broken", "Answers that broke off after they had begun", "model")
        self._prompt = counter("prompt_tokens", "Prompt tokens that came in, estimated for text", "model")
        self._output = counter("output_tokens", "Tokens of answers, as far as they are known", "model")
        self._duration = seconds("duration", "From arrival to end", COARSE_S)
        self._ttft = seconds("ttft", "From arrival to first content of streams", COARSE_S)
        self._tpot = seconds("tpot", "Mean time per output token after the first, of streams", FINE_S)
        self._itl = seconds("itl", "Mean time between events with content, of streams", FINE_S)

    def came(self, journey: Journey) -> None:
        """A request has come in."""
        model, prompt = journey.asked.model, journey.asked.prompt
        tokens = self._ratios[model].tokens(prompt)
        self.arrivals += 1
        self.arriving_tokens += tokens
        self._prompt.labels(model).inc(tokens)

    def went(self, journey: Journey, now_s: float) -> None:
        """A request has ended."""
        model, usage, met = journey.asked.model, journey.usage, journey.met_slo(now_s)
        self.left += 1
        self.met_slo += met
        self._requests.labels(model, str(journey.status)).inc()
        self._slo.labels(journey.slo_class, str(met).lower()).inc()
        self._duration.labels(model).observe(now_s - journey.began_s)
        self._retries.labels(model).inc(journey.retries)
        self._broken.labels(model).inc(journey.broken)
        self._output.labels(model).inc(journey.tokens or 0)
        for histogram, value in (
            (self._ttft, journey.ttft_s),
            (self._tpot, journey.tpot_s),
            (self._itl, journey.itl_s),
        ):
            if value is not None:
                histogram.labels(model).observe(value)
        if usage.prompt_tokens is not None:
            self._ratios[model].learn(journey.asked.prompt, usage.prompt_tokens)

    def page(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self._registry)


class _State(Collector):
    """What is now, looked up when it is asked for."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def collect(self) -> Iterator[Metric]:
        held = GaugeMetricFamily(PREFIX + "held", "Requests that wait for a backend", labels=["model"])
        for model, waiting in self._dispatcher.waiting().items():
            held.add_metric([model], waiting)
        yield held
        for name, text in (
            ("in_flight", "Requests under way"),
            ("weight", "Routing weight in force"),
            ("limit", "Limit on requests in flight; 0 for none"),
            ("healthy", "Whether the backend answers"),
            ("closed", "Whether it is closed to new requests"),
        ):
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=["backend"])
            for backend in self._dispatcher.backends.values():
                value = backend.outstanding if name == "in_flight" else getattr(backend, name)
                gauge.add_metric([backend.spec.name], float(value))
            yield gauge
