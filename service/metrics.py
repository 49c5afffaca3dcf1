"""Prometheus metrics of the process, in a registry of its own: requests, rows, queue, memory, connectors, events.

Counts of the inside are read when somebody asks, so that no row costs anything for them. Labels are routes, methods,
statuses and names of connectors, never streams or tenants: their number is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tsgdn2 import __version__
from tsgdn2.service.connectors.connector import Connector
from tsgdn2.service.memory import Memory
from tsgdn2.service.receipts import STATUS

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
_PARTS: Final = ("hot", "sift", "append", "apply", "check", "answer")


class Metrics:
    """What is measured."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ["route", "method", "status"]
        self._requests = Counter(
            "tsgdn2_http_requests", "Requests that were answered; 499: the client left.", labels, registry=self.registry
        )
        self._seconds = Histogram(
            "tsgdn2_http_request_seconds", "Time from a request's head to the end of its answer.", ["route"],
            buckets=BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._running = Gauge("tsgdn2_http_requests_running", "Requests in work.", registry=self.registry)
        build = Gauge("tsgdn2_build_info", "Always 1.", ["version"], registry=self.registry)
        build.labels(__version__).set(1)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request is over."""
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    @contextmanager
    def running(self) -> Iterator[None]:
        """A request is in work while the block runs."""
        self._running.inc()
        try:
            yield
        finally:
            self._running.dec()

    def watch(self, memory: Memory, connectors: Sequence[Connector], more: Callable[[], dict[str, float]]) -> None:
        """Tell of these as well; `more` gives gauges by name."""
        self.registry.register(_Inside(memory, connectors, more))

    def text(self) -> bytes:
        """The page in Prometheus' text format."""
        return generate_latest(self.registry)


class _Inside(Collector):
    """Reads the counts of memory and connectors when it is asked."""

    def __init__(self, memory: Memory, connectors: Sequence[Connector], more: Callable[[], dict[str, float]]) -> None:
        self._memory, self._connectors, self._more = memory, connectors, more

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        status, spent = self._memory.status(), self._memory.spent
        gauges = {
            "ready": (float(status.ready), "1 where rows are taken."),
            "streams_hot": (status.hot, "Streams in memory."),
            "streams_hot_limit": (status.most, "Streams that may be in memory."),
            "streams_dirty": (status.dirty, "Streams with rows behind their snapshot."),
            "streams_aside": (status.aside, "Streams that are set aside, their state not being sound."),
            "queue_rows": (status.queued_rows, "Rows that wait."),
            "queue_rows_limit": (self._memory.limits.queue_rows, "Rows that may wait."),
            "queue_bytes": (status.queued_bytes, "Bytes of rows that wait."),
            "queue_bytes_limit": (self._memory.limits.queue_bytes, "Bytes of rows that may wait."),
            "rows_per_second": (status.rate, "Rows a second that the worker does while it has some."),
            "journal_last": (status.last, "Number of the last row of the journal."),
            "store_failing": (float(status.ready and bool(status.reason)), "1 where the store's last use failed."),
        } | {name: (value, "") for name, value in self._more().items()}
        for name, (value, text) in gauges.items():
            yield GaugeMetricFamily(f"tsgdn2_{name}", text or name.replace("_", " "), value=float(value))
        yield CounterMetricFamily("tsgdn2_groups", "Group commits.", value=spent.groups)
        rows = CounterMetricFamily("tsgdn2_rows", "Rows by what became of them.", labels=["status"])
        for name, count in (dict.fromkeys(STATUS, 0) | dict(spent.statuses)).items():
            rows.add_metric([name], count)
        yield rows
        facts = asdict(spent)
        seconds = CounterMetricFamily("tsgdn2_group_seconds", "Seconds of the worker by part.", labels=["part"])
        for part in _PARTS:
            seconds.add_metric([part], facts.get(part, 0.0))
        yield seconds
        if self._connectors:
            counts = GaugeMetricFamily("tsgdn2_connector", "Counts of a connector.", labels=["connector", "count"])
            for connector in self._connectors:
                for name, value in {**connector.counts.facts(), "rejected": connector.counts.rejected.total}.items():
                    counts.add_metric([connector.name, name], value)
            yield counts
