"""Remote write, OTLP, line protocol and text pages: what they mean, and that no body does more than be refused."""

import gzip
import json
import struct
import zlib

import cramjam
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from tsgdn2.service.connectors import influx, otlp, prometheus, scrape
from tsgdn2.service.connectors.decoded import DecodeError, OversizeError, Refusal, UnmappedError, UnsupportedError
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.mapping import parse_mapping

NOW = 1_700_000_000 * 10**9
WRITE = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy",
         "X-Prometheus-Remote-Write-Version": "0.1.0"}  # fmt: skip
CHANNELS = ("temp", "load")


def router_of(text=""):
    return Router(parse_mapping(text), CHANNELS)


def write_request(*series):
    request = prometheus.WriteRequest()
    for labels, samples in series:
        one = request.timeseries.add()
        for name, value in labels.items():
            one.labels.add(name=name, value=value)
        for value, ms in samples:
            one.samples.add(value=value, timestamp=ms)
    return bytes(cramjam.snappy.compress_raw(request.SerializeToString()))


def test_series_of_one_label_set_and_moment_become_one_row_of_the_default_mapping():
    body = write_request(
        ({"__name__": "temp", "job": "j", "instance": "i"}, [(1.5, NOW // 10**6), (2.5, NOW // 10**6 + 1)]),
        ({"__name__": "load", "job": "j", "instance": "i"}, [(7, NOW // 10**6)]),
        ({"__name__": "other", "job": "j"}, [(7, 1), (8, 2)]),
    )
    decoded = prometheus.decode(body, WRITE, router_of(), NOW)
    assert decoded.rows.streams == ("instance=i,job=j",) * 2
    assert decoded.rows.times.tolist() == [NOW, NOW + 10**6]
    assert decoded.rows.values[0].tolist() == [1.5, 7.0]
    assert decoded.rows.sequences.tolist() == [-1, -1]
    assert dict(decoded.rejected.counts) == {"unmapped": 2}


def test_a_mapping_picks_series_by_name_and_labels_and_scales_them():
    router = router_of("""
prometheus: [{metric: "node_*_celsius", labels: {chip: "core*"}, stream: "{instance}-{1}", channel: temp, scale: 0.5}]
""")
    body = write_request(
        ({"__name__": "node_cpu_celsius", "instance": "i", "chip": "core0"}, [(40, NOW // 10**6)]),
        ({"__name__": "node_cpu_celsius", "chip": "core0"}, [(1, NOW // 10**6)]),
        ({"__name__": "node_cpu_celsius", "instance": "i", "chip": "x"}, [(1, NOW // 10**6)]),
    )
    decoded = prometheus.decode(body, WRITE, router, NOW)
    assert decoded.rows.streams == ("i-cpu",)
    assert decoded.rows.values[0, 0] == 20
    assert decoded.rejected.total == 2


def test_stale_markers_infinities_and_wrong_times_are_no_rows():
    stale = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]
    ms = NOW // 10**6
    samples = [(stale, ms), (float("inf"), ms), (1, 5), (1, ms + 10**9), (1, 2**62), (1, -(2**62))]
    decoded = prometheus.decode(write_request(({"__name__": "temp"}, samples)), WRITE, router_of(), NOW)
    assert decoded.rows is None
    assert dict(decoded.rejected.counts) == {"value": 1, "time": 4}


def test_the_time_can_be_the_sequence_for_each_set_of_channels():
    router = router_of("sequence_is_time: [prometheus]")
    ms = NOW // 10**6
    body = write_request(({"__name__": "temp"}, [(1, ms), (2, ms + 1)]), ({"__name__": "load"}, [(1, ms)]))
    rows = prometheus.decode(body, WRITE, router, NOW).rows
    assert rows.sources == ("prometheus:3", "prometheus:1")
    assert rows.sequences.tolist() == [NOW, NOW + 10**6]


def test_other_versions_types_and_encodings_of_remote_write_are_refused_with_415():
    for changed in (
        {"Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request"},
        {"X-Prometheus-Remote-Write-Version": "2.0.0"}, {"Content-Type": "text/plain"}, {"Content-Encoding": "zstd"},
    ):  # fmt: skip
        with pytest.raises(UnsupportedError) as refused:
            prometheus.decode(write_request(), {**WRITE, **changed}, router_of(), NOW)
        assert refused.value.status == 415
    accepted = {**WRITE, "content-type": "application/x-protobuf;proto=prometheus.WriteRequest"}
    assert prometheus.decode(write_request(), accepted, router_of(), NOW).rows is None


def test_bombs_are_refused_before_they_unpack():
    claimed = b"\xff\xff\xff\xff\x0f" + b"\x00" * 20
    zeros = bytes(cramjam.snappy.compress_raw(b"\x00" * (64 << 20)))
    for body in (claimed, zeros):
        with pytest.raises(OversizeError) as refused:
            prometheus.decode(body, WRITE, router_of(), NOW)
        assert refused.value.status == 413
    for encoding, body in (("gzip", gzip.compress(b"\n" * (64 << 20))), ("deflate", zlib.compress(b" " * (64 << 20)))):
        with pytest.raises(OversizeError):
            influx.decode(body, {"content-encoding": encoding}, router_of(), NOW)
    many = write_request(*[({}, [])] * 2_000)
    with pytest.raises(OversizeError, match="at most 1000 samples"):
        prometheus.decode(many, WRITE, router_of("limits: {samples: 1000}"), NOW)


def test_hostile_labels_cost_their_series_only():
    ms = NOW // 10**6
    body = write_request(
        ({"__name__": "temp", **{f"l{n}": "x" for n in range(100)}}, [(1, ms)]),
        ({"__name__": "temp", "long": "x" * 10_000}, [(1, ms)]),
        ({"job": "nameless"}, [(1, ms)]),
        ({"__name__": "temp", "nul": "\x00"}, [(1, ms)]),
        ({"__name__": "temp", "job": "good"}, [(1, ms)]),
    )
    decoded = prometheus.decode(body, WRITE, router_of(), NOW)
    assert decoded.rows.streams == ("job=good",)
    assert dict(decoded.rejected.counts) == {"oversize": 2, "malformed": 1, "streams": 1}


def test_new_label_sets_without_end_open_no_more_streams_than_the_limit():
    router = router_of("limits: {streams: 10}")
    series = [({"__name__": "temp", "id": str(n)}, [(1, NOW // 10**6)]) for n in range(50)]
    decoded = prometheus.decode(write_request(*series), WRITE, router, NOW)
    assert len(decoded.rows) == 10
    assert decoded.rejected.counts["streams"] == 40
    assert len(decoded.rejected.samples) == 16


def test_a_stream_that_was_forgotten_has_to_be_admitted_again():
    router = router_of("limits: {streams: 1}")
    one, two = (write_request(({"__name__": "temp", "id": i}, [(1, NOW // 10**6)])) for i in "ab")
    assert prometheus.decode(one, WRITE, router, NOW).rows is not None
    router.forget("id=a")
    assert prometheus.decode(two, WRITE, router, NOW).rows is not None
    assert dict(prometheus.decode(one, WRITE, router, NOW).rejected.counts) == {"streams": 1}


def test_an_error_for_what_is_unmapped_takes_nothing_of_the_request():
    body = write_request(({"__name__": "temp"}, [(1, NOW // 10**6)]), ({"__name__": "x"}, [(1, NOW // 10**6)]))
    with pytest.raises(UnmappedError, match="x: "):
        prometheus.decode(body, WRITE, router_of("unmapped: error"), NOW)


def otlp_request():
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    for key, value in (("service.name", "shop"), ("host.name", "h"), ("process.pid", "1")):
        resource.resource.attributes.add(key=key).value.string_value = value
    return request, resource.scope_metrics.add()


OTLP_MAPPING = """
otlp:
  - {metric: "temp", stream: "{service.name}/{room}", channel: temp}
  - {metric: "lat.*", stream: "{service.name}-{1}", channel: load}
"""


def test_otlp_gauges_sums_and_histograms_become_rows():
    request, scope = otlp_request()
    gauge = scope.metrics.add(name="temp").gauge.data_points.add(time_unix_nano=NOW, as_double=21.5)
    gauge.attributes.add(key="room").value.int_value = 4
    scope.metrics.add(name="temp").gauge.data_points.add(time_unix_nano=NOW, as_double=1, flags=1)
    total = scope.metrics.add(name="lat.total").sum
    total.data_points.add(time_unix_nano=NOW, as_int=12)
    scope.metrics.add(name="lat").histogram.data_points.add(time_unix_nano=NOW, count=3, sum=6, max=4)
    scope.metrics.add(name="lat.e").exponential_histogram.data_points.add(time_unix_nano=NOW, count=2)
    scope.metrics.add(name="lat.q").summary.data_points.add(time_unix_nano=NOW, count=5, sum=1)
    scope.metrics.add(name="lat.none")
    for headers, body in (
        ({"content-type": "application/x-protobuf"}, request.SerializeToString()),
        (
            {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"},
            gzip.compress(request.SerializeToString()),
        ),
        ({"content-type": "application/json"}, otlp.json_format.MessageToJson(request).encode()),
    ):
        decoded = otlp.decode(body, headers, router_of(OTLP_MAPPING), NOW)
        cells = dict(zip(decoded.rows.streams, decoded.rows.values.tolist(), strict=True))
        assert cells["shop/4"][0] == 21.5
        found = {name.removeprefix("shop-"): row[1] for name, row in cells.items() if name != "shop/4"}
        assert found == {"total": 12, "count": 3, "sum": 6, "max": 4, "e.count": 2, "q.count": 5, "q.sum": 1}
        assert dict(decoded.rejected.counts) == {"unsupported": 1}
        answer, kind = otlp.answer(decoded, headers)
        assert kind == headers.get("content-type", headers.get("Content-Type"))
        if kind == otlp.JSON:
            assert json.loads(answer)["partialSuccess"]["rejectedDataPoints"] == "1"
        else:
            assert ExportMetricsServiceResponse.FromString(answer).partial_success.rejected_data_points == 1


def test_the_default_stream_of_otlp_is_the_service_the_host_and_the_points_attributes():
    request, scope = otlp_request()
    point = scope.metrics.add(name="temp").gauge.data_points.add(as_int=1)
    point.attributes.add(key="room").value.bool_value = True
    decoded = otlp.decode(request.SerializeToString(), {"content-type": otlp.PROTOBUF}, router_of(), NOW)
    assert decoded.rows.streams == ("host.name=h,room=true,service.name=shop",)
    assert decoded.rows.times.tolist() == [NOW]


@pytest.mark.parametrize(
    "body",
    [b"[]", b"1", b'"x"', b'{"resourceMetrics": 1}', b'{"resourceMetrics": [1]}', 
     b'{"a": ' + b"[" * 50_000, b'{"resourceMetrics": {"a": 1}}', b"\xff"],
)  # fmt: skip
def test_json_of_another_shape_is_refused(body):
    with pytest.raises(DecodeError):
        otlp.decode(body, {"content-type": otlp.JSON}, router_of(), NOW)


def test_line_protocol_is_read_by_its_public_format():
    parse = influx.parse_line
    assert parse("m f=1") == ("m", (), (("f", "1"),), None)
    assert parse("m,b=2,a=1 f=1i,g=t 17") == ("m", (("a", "1"), ("b", "2")), (("f", "1i"), ("g", "t")), 17)
    assert parse(r"my\ m\,x,t\=k=v\ w f\ 1=1 -5") == ("my m,x", (("t=k", "v w"),), (("f 1", "1"),), -5)
    line = parse(r'm f="a b, c=\" \\",g=2 3')
    assert line.fields == (("f", r'"a b, c=\" \\"'), ("g", "2"))
    assert line.time == 3
    assert parse(r"m,t=a\b f=1").tags == (("t", r"a\b"),)
    values = {
        "1": 1,
        "-1.5e3": -1500,
        "3i": 3,
        "18446744073709551615u": 2.0**64,
        "t": 1,
        "FALSE": 0,
        '"x"': None,
        ".5": 0.5,
    }
    assert {text: influx.field_value(text) for text in values} == values


@pytest.mark.parametrize(
    "line",
    ["m", "m ", " f=1", "m,a f=1", "m,a= f=1", "m,a=1,a=2 f=1", "m f", "m f=", "m f=1 x", "m f=1 1.5", "m f=1 2 3",
     ",a=1 f=1", "m f=1,", "m =1"],
)  # fmt: skip
def test_what_is_no_line_is_refused(line):
    with pytest.raises(Refusal):
        influx.parse_line(line.strip())


@pytest.mark.parametrize(
    "text", ["1_0", "nan", "inf", "0x1", "1i2", "9223372036854775808i", "-1u", '"x', "tr", "", "1e", "--1"]
)
def test_what_is_no_value_is_refused(text):
    with pytest.raises(Refusal):
        influx.field_value(text)


def test_good_lines_are_taken_and_bad_ones_told_by_their_number():
    body = b"""# comment

cpu,host=a temp=1,load=2i,note="x
y" 1700000000
cpu,host=a temp=oops 1700000000
cpu temp=1 5
cpu note="only text" 1700000000
cpu other=1 1700000000\r
cpu,host=b temp=3
"""
    decoded = influx.decode(body, {}, router_of(), NOW, precision="s")
    assert decoded.rows.streams == ("cpu,host=a", "cpu,host=b")
    assert decoded.rows.values[0].tolist() == [1, 2]
    assert decoded.rows.times.tolist() == [NOW, NOW]
    assert dict(decoded.rejected.counts) == {"value": 2, "time": 1, "unmapped": 1}
    assert [s.where.split(",")[0] for s in decoded.rejected.samples] == [f"line {n}" for n in (5, 6, 7, 8)]
    with pytest.raises(DecodeError, match="precision"):
        influx.decode(b"", {}, router_of(), NOW, precision="weeks")


def test_a_page_of_metrics_gets_the_labels_of_its_target():
    page = '# TYPE temp gauge\ntemp{room="a"} 3.5\ntemp{room="b"} NaN\nload 2 1699999999500\n'
    decoded = scrape.decode(page, router_of(), NOW, {"instance": "i:1", "job": "j"})
    assert decoded.rows.streams == ("instance=i:1,job=j,room=a", "instance=i:1,job=j")
    assert decoded.rows.times.tolist() == [NOW, NOW - 500_000_000]
    with pytest.raises(DecodeError):
        scrape.decode("temp{ 1", router_of(), NOW, {})
