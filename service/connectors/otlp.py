"""OpenTelemetry metrics over HTTP (OTLP 1.x, protobuf and JSON) into rows.

    gauge                  its value
    sum, delta             the increment of the interval, as it is
    sum, cumulative        the total so far, as it stands: it grows until the process starts anew; ask the exporter for
                           delta temporality where the increments are wanted. An up-down counter is a gauge by nature
    histogram (both)       <name>.count and <name>.sum, and <name>.min, <name>.max where they are given
    summary                <name>.count and <name>.sum

A point's labels are its attributes and those of its resource; the point's win. By default the stream is the resource's
service.namespace, service.name and host.name with the point's attributes, the channel is the metric's name. A point
with the flag for no recorded value is no observation. Points are refused one by one and told as partial success.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tsgdn2.service.connectors.decoded import (
    Decoded,
    DecodeError,
    OversizeError,
    Refusal,
    Rejections,
    Rows,
    UnsupportedError,
)
from tsgdn2.service.connectors.router import Labels, Router
from tsgdn2.service.connectors.wire import header, parse, unpacked

IDENTITY: Final = ("service.namespace", "service.name", "host.name")
PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
_DEEPEST: Final = 32
_MOST_OBJECTS: Final = 50_000
_NO_VALUE: Final = 1
_KINDS: Final = ("gauge", "sum", "histogram", "exponential_histogram", "summary")
Attributes = dict[str, str]


def decode(body: bytes, headers: Mapping[str, str], router: Router, now: int) -> Decoded:
    """Rows of an ExportMetricsServiceRequest. now: this clock, ns. Errors as in prometheus.decode."""
    kind = header(headers, "content-type").partition(";")[0].strip().lower()
    if kind not in (PROTOBUF, JSON):
        raise UnsupportedError(f"Content-Type: must be {PROTOBUF} or {JSON}, got {kind[:60]!r}")
    content = unpacked(body, header(headers, "content-encoding"), router.limits.body_bytes)
    request = _from_json(content) if kind == JSON else parse(ExportMetricsServiceRequest, content)
    rows, rejected, points = Rows(len(router.channels)), Rejections(), 0
    for resource, metric in _metrics(request, router, rejected):
        given = metric.WhichOneof("data")
        if given not in _KINDS:
            rejected.add("unsupported", metric.name, "a metric without data of a known kind")
            continue
        data = getattr(metric, given).data_points
        points += len(data)
        if points > router.limits.samples:
            raise OversizeError(f"body: at most {router.limits.samples} points are taken at once; send smaller batches")
        for point in data:
            if point.flags & _NO_VALUE:
                continue
            try:
                _put(rows, rejected, router, resource, metric.name, point, now)
            except Refusal as refusal:
                router.count(rejected, refusal, metric.name)
    return Decoded(rows.batch(router.sequence("otlp")), rejected)


def answer(decoded: Decoded, headers: Mapping[str, str]) -> tuple[bytes, str]:
    """Body and content type of the answer to a request whose rows are durable, in the format of the request."""
    response = ExportMetricsServiceResponse()
    if decoded.rejected.total:
        response.partial_success.rejected_data_points = decoded.rejected.total
        response.partial_success.error_message = decoded.rejected.text()
    if header(headers, "content-type").partition(";")[0].strip().lower() == JSON:
        return json_format.MessageToJson(response, indent=None).encode(), JSON
    return response.SerializeToString(), PROTOBUF


def _from_json(content: bytes) -> Any:
    try:
        text = content.decode()
        if not text.lstrip().startswith("{"):
            raise ValueError("not an object")
        if (objects := text.count("{")) > _MOST_OBJECTS:  # each costs the reader of JSON ten microseconds
            raise OversizeError(f"body: at most {_MOST_OBJECTS} objects of JSON, got {objects}; send protobuf, or less")
        return json_format.Parse(
            text, ExportMetricsServiceRequest(), ignore_unknown_fields=True, max_recursion_depth=_DEEPEST
        )
    except OversizeError:
        raise
    # The parser lets through what it does not expect of a value of the wrong type.
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DecodeError(f"body: no ExportMetricsServiceRequest in JSON ({str(error)[:200]})") from None


def _metrics(request: Any, router: Router, rejected: Rejections) -> Iterator[tuple[Attributes, Any]]:
    """Each metric with the attributes of its resource; a resource with too many counts once for each metric."""
    for of_resource in request.resource_metrics:
        try:
            resource = _attributes(of_resource.resource.attributes, router)
        except Refusal as refusal:
            count = sum(len(scope.metrics) for scope in of_resource.scope_metrics)
            rejected.add(refusal.reason, "resource", refusal.detail, count=max(count, 1))
            continue
        for scope in of_resource.scope_metrics:
            for metric in scope.metrics:
                yield resource, metric


def _put(
    rows: Rows, rejected: Rejections, router: Router, resource: Attributes, name: str, point: Any, now: int
) -> None:
    own = _attributes(point.attributes, router)
    labels: Labels = tuple({**resource, **own}.items())
    identity: Labels = (*((key, resource[key]) for key in IDENTITY if key in resource), *own.items())
    time = router.time(point.time_unix_nano or now, now)
    for suffix, value in _values(point):
        try:
            target = router.target("otlp", name + suffix, labels, identity=identity)
            if not math.isnan(value):
                cell = router.value(value, target.scale, target.offset)
                rows.cell(rows.open(target.stream, time), target.channel, cell)
        except Refusal as refusal:
            router.count(rejected, refusal, name + suffix)


def _values(point: Any) -> Iterator[tuple[str, float]]:
    """A point's numbers, each with what its name gets behind it."""
    fields = point.DESCRIPTOR.fields_by_name
    if "as_int" in fields:
        kind = point.WhichOneof("value")
        if kind is None:
            raise Refusal("malformed", "a number point without a number")
        yield "", float(getattr(point, kind))
        return
    yield ".count", float(point.count)
    for name in ("sum", "min", "max"):
        if name in fields and (not fields[name].has_presence or point.HasField(name)):
            yield f".{name}", float(getattr(point, name))


def _attributes(given: Any, router: Router) -> Attributes:
    """Attributes that are one value each, as text; arrays and maps are left out. Refusal: too many."""
    if len(given) > router.limits.labels:
        raise Refusal("oversize", f"{len(given)} attributes; limits.labels is {router.limits.labels}")
    found = {}
    for attribute in given:
        text = _text(attribute.value)
        if text is not None:
            found[attribute.key] = text
    return found


def _text(value: AnyValue) -> str | None:
    kind = value.WhichOneof("value")
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    return str(getattr(value, kind)) if kind in ("string_value", "int_value", "double_value") else None
