"""OpenTelemetry traces of requests, sent by a thread of their own; nothing at all unless an endpoint is set.

A span says route, status, how many rows of how many streams, and where it belongs (traceparent); never a name or a
value. An endpoint that does not answer costs spans, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span


class Traced:
    """A span that is open, or none."""

    def __init__(self, span: Span | None = None) -> None:
        self._span = span

    def ended(self, name: str, status: int, *, rows: int | None = None, streams: int | None = None) -> None:
        """Say what it was: rows and streams are numbers of them."""
        if self._span is None:
            return
        self._span.update_name(name)
        self._span.set_attribute("http.response.status_code", status)
        for key, value in (("tsgdn2.rows", rows), ("tsgdn2.streams", streams)):
            if value is not None:
                self._span.set_attribute(key, value)


class Tracing:
    """Where spans go; `Tracing("")` has none."""

    def __init__(self, endpoint: str, *, exporter: SpanExporter | None = None) -> None:
        """endpoint: of OTLP/HTTP, http://host:4318/v1/traces; exporter: another one in its place."""
        self._provider = None
        if not endpoint and exporter is None:
            return
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter(endpoint=endpoint, timeout=5)
        self._provider = TracerProvider(resource=Resource.create({"service.name": "tsgdn2"}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tsgdn2.service")

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[Traced]:
        """A span around one request."""
        if self._provider is None:
            yield Traced()
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract({name: headers[name] for name in headers})
        with self._tracer.start_as_current_span(
            method, context=parent, kind=SpanKind.SERVER, attributes={"http.request.method": method},
            record_exception=False,
        ) as span:  # fmt: skip
            yield Traced(span)

    def close(self) -> None:
        """Send what waits, within some seconds; it blocks."""
        if self._provider is not None:
            self._provider.force_flush(5_000)
            self._provider.shutdown()
            self._provider = None
