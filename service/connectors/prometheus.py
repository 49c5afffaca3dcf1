"""Prometheus remote write 1.0: a snappy block of protobuf with series, labels and samples, into rows.

Version 2.0 is refused with 415, upon which Prometheus goes on with 1.0 where both are configured; native histograms are
counted as unsupported, exemplars and metadata are passed over. A sample without a value (a stale marker, NaN) is no
observation. Rows have no sequence, for the protocol has none: a request sent twice is known by its equal values, or by
the mapping's `sequence_is_time`.

    204 when the rows are durable      4xx: Prometheus gives the request up      429, 5xx: it tries again

By default a stream is the whole label set and the channel is the metric's name. Counters come as they stand, growing:
a forecast wants rates, so let a recording rule make them (rate(x[1m])) and write those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from tsgdn2.service.connectors.decoded import (
    Decoded,
    OversizeError,
    Refusal,
    Rejections,
    Rows,
    UnsupportedError,
)
from tsgdn2.service.connectors.router import Labels, Router, Target
from tsgdn2.service.connectors.wire import header, message_class, parse, unpacked

WriteRequest: Final = message_class(
    "prometheus",
    {
        "Label": (("name", 1, "string"), ("value", 2, "string")),
        "Sample": (("value", 1, "double"), ("timestamp", 2, "int64")),
        "Histogram": (("timestamp", 15, "int64"),),
        "TimeSeries": (("labels", 1, "Label"), ("samples", 2, "Sample"), ("histograms", 4, "Histogram")),
        "WriteRequest": (("timeseries", 1, "TimeSeries"),),
    },
    "WriteRequest",
)


def decode(body: bytes, headers: Mapping[str, str], router: Router, now: int) -> Decoded:
    """Rows of a remote write request. now: this clock, ns.

    Raises:
        UnsupportedError: Another content type, encoding or version (415).
        OversizeError: More bytes or samples than the limits allow (413).
        DecodeError: No snappy, no protobuf, or not a series in it has a name (400).
    """
    _check_headers(headers)
    request: Any = parse(WriteRequest, unpacked(body, "snappy", router.limits.body_bytes))
    count = sum(len(series.samples) + len(series.histograms) for series in request.timeseries)
    if max(count, len(request.timeseries)) > router.limits.samples:
        raise OversizeError(
            f"body: at most {router.limits.samples} samples are taken at once, got {count} of "
            f"{len(request.timeseries)} series; lower max_samples_per_send"
        )
    rows, rejected = Rows(len(router.channels)), Rejections()
    for series in request.timeseries:
        if series.histograms:
            rejected.add("unsupported", "native histogram", "send classic ones", count=len(series.histograms))
        if not series.samples:
            continue
        try:
            name, labels = _labels(series, router)
            target = router.target("prometheus", name, labels)
        except Refusal as refusal:
            where = next((label.value for label in series.labels if label.name == "__name__"), "series")
            router.count(rejected, refusal, where, len(series.samples))
            continue
        for sample in series.samples:
            _put(rows, rejected, router, target, name, sample.value, sample.timestamp * 10**6, now)
    return Decoded(rows.batch(router.sequence("prometheus")), rejected)


def _put(
    rows: Rows, rejected: Rejections, router: Router, target: Target, name: str, value: float, time: int, now: int
) -> None:
    if math.isnan(value):
        return
    try:
        cell = router.value(value, target.scale, target.offset)
        rows.cell(rows.open(target.stream, router.time(time, now)), target.channel, cell)
    except Refusal as refusal:
        router.count(rejected, refusal, name)


def _labels(series: Any, router: Router) -> tuple[str, Labels]:
    """The metric's name and its other labels; Refusal for a series that no Prometheus would send."""
    if len(series.labels) > router.limits.labels + 1:
        raise Refusal("oversize", f"{len(series.labels)} labels; limits.labels is {router.limits.labels}")
    labels = {label.name: label.value for label in series.labels}
    name = labels.pop("__name__", "")
    if not name:
        raise Refusal("malformed", "a series without the label __name__")
    if len(labels) + 1 != len(series.labels):
        raise Refusal("malformed", "a label stands twice in one series")
    return name, tuple(labels.items())


def _check_headers(headers: Mapping[str, str]) -> None:
    kind, _, parameters = header(headers, "content-type").partition(";")
    proto = parameters.replace(" ", "").removeprefix("proto=").strip('"')
    version = header(headers, "x-prometheus-remote-write-version")
    if "v2" in proto or version.startswith("2"):
        raise UnsupportedError("remote write 2.0 is not read here; send prometheus.WriteRequest, version 0.1.0")
    if kind.strip().lower() != "application/x-protobuf" or proto not in ("", "prometheus.WriteRequest"):
        raise UnsupportedError(f"Content-Type: must be application/x-protobuf, got {kind[:60]!r}")
    encoding = header(headers, "content-encoding").lower()
    if encoding not in ("", "snappy"):
        raise UnsupportedError(f"Content-Encoding: must be snappy, got {encoding[:40]!r}")
