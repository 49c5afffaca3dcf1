"""Where other systems write to, in their own protocols: Prometheus remote write, OTLP metrics, InfluxDB lines.

    POST /api/v1/write     204                                   4xx: given up    429, 5xx: sent again
    POST /v1/metrics       200 with partial success
    POST /api/v2/write     204, or 400 after a partial write, as InfluxDB does it

The mapping says which stream and channel a sample is; streams are within the key's tenant. An answer comes when the
rows are on the disk. Bodies are unpacked and decoded in a thread, under the mapping's limits.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from tsgdn2.service.admission import Admitted
from tsgdn2.service.batch import Batch
from tsgdn2.service.columns import Raw
from tsgdn2.service.connectors import influx, otlp, prometheus
from tsgdn2.service.connectors.decoded import Decoded, clip
from tsgdn2.service.desk import Desk, InDesk
from tsgdn2.service.errors import BusyError, ServiceError, StoreError, UnavailableError
from tsgdn2.service.faults import faulty
from tsgdn2.service.guard import Guarded, InCaller, role
from tsgdn2.service.keys import Caller
from tsgdn2.service.receipts import Receipt
from tsgdn2.service.tenants import own, shown

router = APIRouter(route_class=Guarded, tags=["ingest"])
_BINARY: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}
_NOTHING: Final[dict[int | str, dict[str, Any]]] = {204: {"description": "On the disk."}}


def _body(*kinds: str) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": dict.fromkeys(kinds, _BINARY)}}


@router.post(
    "/api/v1/write", status_code=204, summary="Prometheus remote write 1.0", response_class=Response,
    openapi_extra=_body(otlp.PROTOBUF), responses=_NOTHING,
)  # fmt: skip
@role("write", raw=True)
async def remote_write(request: Request, desk: InDesk, caller: InCaller) -> Response:
    """Samples of series; a sample that has no place in the mapping is counted and passed over."""
    router, body = await desk.router(caller.tenant), await request.body()
    decoded = await desk.threaded(prometheus.decode, body, request.headers, router, time.time_ns())
    await _taken(desk, caller, decoded, request)
    return Response(status_code=204)


@router.post(
    "/v1/metrics", summary="OpenTelemetry metrics over HTTP", response_class=Response,
    openapi_extra=_body(otlp.PROTOBUF, otlp.JSON),
    responses={200: {
        "content": {otlp.PROTOBUF: _BINARY, otlp.JSON: {"schema": {"type": "object"}}},
        "description": "ExportMetricsServiceResponse, with partial_success where points were refused.",
    }},
)  # fmt: skip
@role("write", raw=True)
async def metrics(request: Request, desk: InDesk, caller: InCaller) -> Response:
    """Points of metrics, as protobuf or JSON."""
    router, body = await desk.router(caller.tenant), await request.body()
    decoded = await desk.threaded(otlp.decode, body, request.headers, router, time.time_ns())
    await _taken(desk, caller, decoded, request)
    content, kind = otlp.answer(decoded, request.headers)
    return Response(content, media_type=kind)


@router.post(
    "/api/v2/write", status_code=204, summary="InfluxDB line protocol", response_class=Response,
    openapi_extra=_body("text/plain"), responses=_NOTHING,
)  # fmt: skip
@role("write", raw=True)
async def lines(
    request: Request,
    desk: InDesk,
    caller: InCaller,
    precision: Annotated[str, Query(max_length=8, description="Of the times: ns, us, ms, s, m or h.")] = "ns",
) -> Response:
    """Lines; bucket and org are passed over. A line that is wrong is refused, the others are taken."""
    router, body = await desk.router(caller.tenant), await request.body()
    decoded = await desk.threaded(
        influx.decode, body, request.headers, router, time.time_ns(), precision=precision
    )  # fmt: skip
    await _taken(desk, caller, decoded, request)
    wrong = {reason: count for reason, count in decoded.rejected.counts.items() if reason != "unmapped"}
    if wrong:
        return faulty(request, 400, "partial_write", f"lines: {decoded.rejected.text()}; the others are on the disk")
    return Response(status_code=204)


async def _taken(desk: Desk, caller: Caller, decoded: Decoded, request: Request) -> None:
    """Have what was decoded kept, part by part; what is refused then is counted with the rest.

    The whole counts in the tenant's rate before its first part, so a refusal then took nothing. A queue that is full
    later is waited for, within `timeout_s`; the error says how much is on the disk by then.
    """
    rows, done = decoded.rows, 0
    request.state.rows = 0 if rows is None else len(rows)
    if rows is None:
        return
    request.state.streams = len(set(rows.streams))
    desk.rows.take(caller.tenant, len(rows))
    end = time.monotonic() + desk.settings.timeout_s
    for part in rows.parts(min(desk.settings.rows, desk.memory.limits.group_rows)):
        admitted = (await desk.threaded(_raw, part)).admitted(desk.memory.admission, caller.tenant)
        try:
            receipt = await _part(desk, caller, admitted, end if done else 0.0) if len(admitted.batch) else None
        except (BusyError, StoreError) as error:
            if not done:
                raise
            raise _broken(error, done, len(rows)) from None
        done += len(part)
        reasons = admitted.refused if receipt is None else receipt.reasons
        for row, reason in reasons.items():
            decoded.rejected.add("refused", clip(own(caller.tenant, part.streams[row])), shown(caller.tenant, reason))


async def _part(desk: Desk, caller: Caller, admitted: Admitted, end: float) -> Receipt:
    """Have one part kept; where the queue is full, again until `end`."""
    while True:
        try:
            return await desk.take(caller, admitted, soon=True, counted=False)
        except BusyError as error:
            if time.monotonic() + error.retry_after > end:
                raise
            await asyncio.sleep(error.retry_after)


def _broken(error: BusyError | StoreError, done: int, rows: int) -> ServiceError:
    """The error of a body whose first rows are on the disk."""
    said = (
        f"body: the first {done} of {rows} rows are on the disk, then: {str(error).partition(';')[0]}; send all of it "
        "again, an equal value at a time that is there already changes nothing"
    )
    if isinstance(error, BusyError):
        return BusyError(said, retry_after=error.retry_after)
    return UnavailableError(said)


def _raw(rows: Batch) -> Raw:
    return Raw(
        rows.streams, rows.times, rows.values, rows.sources, rows.sequences, np.arange(len(rows)), len(rows), {}
    )  # fmt: skip
