"""Streams: listed, read, deleted, taken out as one blob and put in again. Every name is within the caller's tenant.

A blob is what `OnlinePredictor.take_out` gives: safetensors with checksum and schema, of one model. Whoever may import
one can make a stream say what he likes, so that is the administrator's.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from tsgdn2.online import OnlinePredictor
from tsgdn2.service.bodies import Done, Listed, Streams, StreamState
from tsgdn2.service.connectors.decoded import UnsupportedError
from tsgdn2.service.desk import Desk, InDesk
from tsgdn2.service.faults import AsideError
from tsgdn2.service.guard import Guarded, InCaller, InRequestId, InStream, role
from tsgdn2.service.keys import Caller
from tsgdn2.service.tenants import shown, whole

router = APIRouter(route_class=Guarded, tags=["streams"])
BLOB: Final = "application/octet-stream"
_BINARY: Final[dict[str, Any]] = {BLOB: {"schema": {"type": "string", "format": "binary"}}}


@router.get("/v1/streams", summary="List streams")
@role("read")
async def streams(
    desk: InDesk,
    caller: InCaller,
    request_id: InRequestId,
    after: Annotated[str, Query(max_length=512, description="`next` of the page before.")] = "",
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> Streams:
    """A page of the streams that are kept, hot or cold."""
    if after:
        whole(caller.tenant, after)  # the same check as of any name
    names, more = await desk.names(caller.tenant, after, limit)
    aside = desk.memory.aside
    listed = [Listed(stream=name, aside=_aside(caller, aside.get(whole(caller.tenant, name)))) for name in names]
    return Streams(request_id=request_id, streams=listed, next=more)


@router.get("/v1/streams/{stream}", summary="Whether a stream is there")
@role("read")
async def stream(stream: InStream, desk: InDesk, caller: InCaller) -> Listed:
    """A stream, with the reason if it is set aside; 404 where there is none."""
    name = whole(caller.tenant, stream)
    try:
        await desk.ask([name], lambda _: None)
    except AsideError as error:
        return Listed(stream=stream, aside=_aside(caller, str(error)))
    return Listed(stream=stream)


@router.get("/v1/streams/{stream}/state", summary="Readings of a stream's state")
@role("read")
async def state(stream: InStream, desk: InDesk, caller: InCaller, request_id: InRequestId) -> StreamState:
    """Counters, clock and size of a stream's state."""
    name = whole(caller.tenant, stream)

    def reading(online: OnlinePredictor) -> StreamState:
        # A forecast's first step is the one behind the clock.
        first = int(online.forecast(name, 1).times.astype(np.int64)[0])
        return StreamState(
            request_id=request_id, stream=stream, channels=list(online.channels),
            clock=first - online.config.period_ns, counters=online.counters(name), state_bytes=online.state_nbytes,
            audit_bytes=online.audit_nbytes,
        )  # fmt: skip

    return await desk.ask([name], reading)


@router.get(
    "/v1/streams/{stream}/export", summary="Take a stream's state out", response_class=Response,
    responses={200: {"content": _BINARY, "description": "All of the stream as one blob (safetensors)."}},
)  # fmt: skip
@role("admin")
async def export(stream: InStream, desk: InDesk, caller: InCaller) -> Response:
    """All of one stream as one blob; it stays here as well."""
    name = whole(caller.tenant, stream)
    blob = await desk.ask([name], lambda online: online.take_out(name))
    return Response(blob, media_type=BLOB, headers={"Content-Disposition": 'attachment; filename="stream.safetensors"'})


@router.put(
    "/v1/streams/{stream}/import", summary="Put a stream's state in",
    openapi_extra={"requestBody": {"required": True, "content": _BINARY}},
)  # fmt: skip
@role("admin")
async def put(stream: InStream, request: Request, desk: InDesk, caller: InCaller, request_id: InRequestId) -> Done:
    """Go on with a state that was taken out, in the place of all that is of this stream; durable when answered."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != BLOB:
        raise UnsupportedError(f"Content-Type: must be {BLOB}, got {kind[:60]!r}")
    name = whole(caller.tenant, stream)
    blob = await request.body()
    await desk.waited(lambda: desk.memory.put(name, blob))
    (await desk.router(caller.tenant)).known([stream])
    return Done(request_id=request_id, stream=stream, done="imported")


@router.delete("/v1/streams/{stream}", summary="Delete a stream")
@role("admin")
async def delete(stream: InStream, desk: InDesk, caller: InCaller, request_id: InRequestId) -> Done:
    """Delete a stream and all that is kept of it, behind the rows that wait already."""
    await _removed(desk, caller, stream)
    return Done(request_id=request_id, stream=stream, done="deleted")


async def _removed(desk: Desk, caller: Caller, stream: str) -> None:
    name = whole(caller.tenant, stream)
    await desk.waited(lambda: desk.memory.remove(name))
    desk.forgotten(caller.tenant, stream)


def _aside(caller: Caller, reason: str | None) -> str | None:
    return None if reason is None else shown(caller.tenant, reason)
