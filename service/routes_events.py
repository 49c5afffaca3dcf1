"""GET /v1/events: server-sent events of alerts, forecasts and rows, for as long as the client listens.

event: alert      data: {"stream", "time", "channel", "surprise"}
event: forecast   data: {"stream", "levels", "channels", "times", "quantiles"}     only of streams that are named
event: rows       data: {"stream", "times", "values", "surprise"}                  likewise, and only where asked for
event: dropped    data: {"count"}     the client was too slow        event: ended    data: {"reason"}
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from tsgdn2.errors import SchemaError
from tsgdn2.service.desk import InDesk
from tsgdn2.service.events import MOST_WATCHED
from tsgdn2.service.guard import Guarded, InCaller, role
from tsgdn2.service.tenants import whole

router = APIRouter(route_class=Guarded, tags=["events"])
TYPE: Final = "text/event-stream"


@router.get(
    "/v1/events", summary="Alerts and forecasts as they come", response_class=StreamingResponse,
    responses={200: {
        "content": {TYPE: {"schema": {"type": "string"}, "example": 'event: alert\ndata: {"stream": "boiler/1"}\n\n'}},
        "description": "Events, each an event: line and a data: line of JSON.",
    }},
)  # fmt: skip
@role("read")
async def events(
    desk: InDesk,
    caller: InCaller,
    kind: Annotated[
        list[Literal["alert", "forecast", "rows"]] | None, Query(description="By default alert and forecast.")
    ] = None,
    stream: Annotated[
        list[str] | None,
        Query(description=f"Only of these, {MOST_WATCHED} at most; forecasts and rows need them named."),
    ] = None,
) -> StreamingResponse:
    """Listen. A client that is too slow loses the oldest events and is told how many."""
    if len(stream or ()) > MOST_WATCHED:
        raise SchemaError(f"stream: at most {MOST_WATCHED} can be named, got {len(stream or ())}; open a second client")
    names = {whole(caller.tenant, name) for name in stream or ()}
    client = desk.hub.join(caller.tenant, kind or ("alert", "forecast"), names)

    def still() -> bool:
        return not caller.key or desk.keys.is_valid(caller.key)

    return StreamingResponse(
        desk.hub.listen(client, still), media_type=TYPE, headers={"X-Accel-Buffering": "no"}
    )  # fmt: skip
