"""Pages of metrics in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from ..readings import ReadingError

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Value:
    """One value of a page.

    Attributes:
        name: Metric.
        labels: Its labels, sorted by name.
        value: The value.
    """

    name: str
    labels: Labels
    value: float

    def label(self, *names: str) -> str:
        """The first of some labels that it has; empty without."""
        own = dict(self.labels)
        return next((own[name] for name in names if name in own), "")


def values(page: bytes, prefix: str, source: str) -> list[Value]:
    """Values of all metrics whose names begin with ``prefix``, buckets of histograms left out.

    Raises:
        ReadingError: The page is in another format.
    """
    try:
        return list(_values(page.decode("utf-8"), prefix))
    except ValueError as fault:  # of the parser, or of the decoding
        raise ReadingError(f"{source} is no page of metrics ({fault}); look what is there") from fault


def _values(text: str, prefix: str) -> Iterator[Value]:
    # What nobody asks for is most of a page, and the parser is slow.
    wanted = "".join(line + "\n" for line in text.splitlines() if line.startswith(prefix) and "_bucket{" not in line)
    for family in text_string_to_metric_families(wanted):
        for sample in family.samples:
            yield Value(sample.name, tuple(sorted(sample.labels.items())), float(sample.value))
