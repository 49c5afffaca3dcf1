"""Bodies that are garbage, cut off or flipped: each decoder takes them or refuses them, and does nothing else."""

import gzip

import cramjam
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tsgdn2.service.connectors import influx, otlp, prometheus, scrape
from tsgdn2.service.connectors.decoded import DecodeError
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.mapping import parse_mapping

NOW = 1_700_000_000 * 10**9
WRITE = {"content-type": "application/x-protobuf", "content-encoding": "snappy"}


def router_of():
    return Router(parse_mapping(""), ("temp", "load"))


def decoders():
    prom, json_type, proto = dict(WRITE), {"content-type": otlp.JSON}, {"content-type": otlp.PROTOBUF}
    return [
        lambda body: prometheus.decode(body, prom, router_of(), NOW),
        lambda body: prometheus.decode(bytes(cramjam.snappy.compress_raw(body)), prom, router_of(), NOW),
        lambda body: otlp.decode(body, proto, router_of(), NOW),
        lambda body: otlp.decode(body, json_type, router_of(), NOW),
        lambda body: influx.decode(body, {}, router_of(), NOW),
        lambda body: influx.decode(body, {"content-encoding": "gzip"}, router_of(), NOW),
        lambda body: scrape.decode(body.decode(errors="replace"), router_of(), NOW, {"job": "j"}),
    ]


def harmless(body):
    """Every decoder takes it or refuses it, and says nothing else."""
    said = []
    for decoder in decoders():
        try:
            decoder(body)
        except DecodeError as error:
            said.append(str(error))
    assert all(len(text) < 1_000 for text in said)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_taken(body):
    harmless(body)


@given(st.text(alphabet='ab,= \\"\n#{}1.eEtiu+-\x00é', max_size=80))
def test_garbage_of_the_right_letters_is_refused_or_taken(text):
    harmless(text.encode())


def good_bodies():
    write, request = prometheus.WriteRequest(), ExportMetricsServiceRequest()
    for name in ("temp", "load"):
        series = write.timeseries.add()
        series.labels.add(name="__name__", value=name)
        series.labels.add(name="job", value="j")
        series.samples.add(value=1, timestamp=NOW // 10**6)
    resource = request.resource_metrics.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "shop"
    scope = resource.scope_metrics.add()
    scope.metrics.add(name="temp").gauge.data_points.add(time_unix_nano=NOW, as_double=1)
    scope.metrics.add(name="load").histogram.data_points.add(time_unix_nano=NOW, count=1, sum=2)
    return [
        write.SerializeToString(),
        bytes(cramjam.snappy.compress_raw(write.SerializeToString())),
        request.SerializeToString(),
        otlp.json_format.MessageToJson(request).encode(),
        b'cpu,a=b temp=1,load="x \\" y" 1700000000000000000\nm f=1i\n',
        gzip.compress(b"cpu temp=1"),
        b'# HELP temp x\n# TYPE temp gauge\ntemp{a="b\\""} 1 17\nload 3\n',
    ]


@settings(max_examples=150)
@given(st.data())
def test_truncated_and_flipped_bodies_are_refused_or_taken(data):
    body = bytearray(data.draw(st.sampled_from(good_bodies())))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] ^= 1 << data.draw(st.integers(0, 7))
    harmless(bytes(body[: data.draw(st.integers(0, len(body)))]))
