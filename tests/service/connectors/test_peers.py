"""A real Prometheus that writes and is scraped, and the OpenTelemetry SDK's exporter: what they send is understood."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import Compression, OTLPMetricExporter
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from tsgdn2.errors import ConfigError
from tsgdn2.service.connectors import otlp, prometheus
from tsgdn2.service.connectors.decoded import DecodeError
from tsgdn2.service.connectors.scrape import ScrapeConnector, Target
from tsgdn2.service.errors import BusyError

PROMETHEUS = """
unmapped: count
prometheus:
  - {metric: go_goroutines, labels: {job: itself}, stream: "{instance}", channel: temp}
  - {metric: prometheus_tsdb_head_series, stream: "{instance}", channel: load}
"""


class Receiver:
    """A small HTTP server with one route; `decode` gives the rows, `refuse` the next answers."""

    def __init__(self, decode, answer):
        self.decoded, self.errors, self.refuse, self.headers = [], [], [], []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.headers.append(dict(self.headers))
                status, content, kind = receiver.refuse.pop(0) if receiver.refuse else 200, b"", "text/plain"
                if status == 200:
                    try:
                        decoded = decode(body, dict(self.headers))
                        receiver.decoded.append(decoded)
                        content, kind = answer(decoded, dict(self.headers))
                    except DecodeError as error:
                        receiver.errors.append(error)
                        status = error.status
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_a_real_prometheus_writes_and_is_scraped(tools, brokers):
    router = tools.router(PROMETHEUS)
    now = ScrapeConnector.now

    async def scraped(server):
        options = {"interval": 0.1, "backoff": tools.fast}
        away = Target(url=f"http://127.0.0.1:{brokers.free_port()}/metrics")
        itself = Target(url=server.url, job="itself")
        connector, sink = ScrapeConnector([away, itself], tools.router(PROMETHEUS), **options), tools.sink()
        sink.fail = [BusyError("full", retry_after=0.01)]
        running = asyncio.create_task(connector.run(sink))
        await tools.until(lambda: len(sink.rows) >= 3)
        await connector.stop()
        await running
        assert {row[0] for row in sink.rows} == {f"127.0.0.1:{server.port}"}
        assert all(row[2][0] > 1 for row in sink.rows)
        assert [row[1] for row in sink.rows] == sorted(row[1] for row in sink.rows)
        assert connector.counts.failures >= 1
        assert connector.counts.retries == 1

    def decode(body, headers):
        return prometheus.decode(body, headers, router, now())

    with Receiver(decode, lambda *_: (b"", "text/plain")) as receiver:
        receiver.refuse = [503, 429]
        with brokers.PrometheusServer(f"{receiver.url}/api/v1/write") as server:
            tools.run(tools.until(lambda: sum(len(d.rows) for d in receiver.decoded if d.rows is not None) >= 5))
            tools.run(scraped(server))
        rows = [d.rows for d in receiver.decoded if d.rows is not None]
        assert receiver.errors == []
        assert {name for batch in rows for name in batch.streams} == {f"127.0.0.1:{server.port}"}
        assert receiver.headers[0]["X-Prometheus-Remote-Write-Version"] == "0.1.0"
        both = [batch.values[n] for batch in rows for n in range(len(batch))]
        assert any((values == values).all() for values in both)


OTLP = """
otlp:
  - {metric: "requests", stream: "{service.name}/{route}", channel: load}
  - {metric: "latency.sum", stream: "{service.name}/{route}", channel: temp}
  - {metric: "latency.*", stream: "{service.name}/{1}", channel: load}
"""


@pytest.mark.parametrize("compression", [Compression.Gzip, Compression.Deflate, Compression.NoCompression])
def test_the_sdks_exporter_is_understood_and_believes_the_answer(tools, compression):
    router = tools.router(OTLP)

    def decode(body, headers):
        return otlp.decode(body, headers, router, ScrapeConnector.now())

    delta = dict.fromkeys((Counter, Histogram), AggregationTemporality.DELTA)
    with Receiver(decode, otlp.answer) as receiver:
        exporter = OTLPMetricExporter(
            f"{receiver.url}/v1/metrics", compression=compression, preferred_temporality=delta
        )
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
        provider = MeterProvider([reader], resource=Resource({"service.name": "shop"}))
        try:
            meter = provider.get_meter("tests")
            meter.create_counter("requests").add(3, {"route": "/"})
            meter.create_histogram("latency").record(0.25, {"route": "/"})
            assert provider.force_flush()
            meter.create_counter("requests").add(4, {"route": "/"})
            assert provider.force_flush()
        finally:
            provider.shutdown()
        first, second = receiver.decoded[0].rows, receiver.decoded[1].rows
        cells = dict(zip(first.streams, first.values.tolist(), strict=True))
        # A row for each moment: the SDK stamps both instruments with the moment of one collection.
        assert cells["shop//"] == [0.25, 3]
        assert cells["shop/count"][1] == 1
        assert second.values[0, 1] == 4


def test_a_target_is_an_address():
    with pytest.raises(ConfigError, match="url"):
        Target(url="file:///etc/passwd")
    assert Target(url="http://user:secret@host:9/metrics").labels == {"instance": "host:9", "job": "tsgdn2"}
