"""Forecasts: GET and POST /v1/streams/{stream}/forecast for one stream, POST /v1/forecast for many.

A forecast is a read and leaves nothing behind. Streams of which there is none are told one by one; the others have
theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request

from tsgdn2.errors import SchemaError, StreamError, TsgdnError, UnknownStreamError
from tsgdn2.forecast import Forecast
from tsgdn2.online import OnlinePredictor
from tsgdn2.service.bodies import ForecastAnswer, Forecasted, ForecastOf, ForecastOfMany, ForecastsAnswer, Refused
from tsgdn2.service.columns import moment_of
from tsgdn2.service.desk import Desk, InDesk
from tsgdn2.service.faults import TooLargeError
from tsgdn2.service.guard import Guarded, InCaller, InRequestId, InStream, role
from tsgdn2.service.keys import Caller
from tsgdn2.service.tenants import shown, whole

router = APIRouter(route_class=Guarded, tags=["forecast"])
_HORIZON = Query(ge=1, le=1_000_000, description="Steps; by default as many as the model was trained for.")
_AT = Query(max_length=64, description="Nanoseconds since 1970 or ISO 8601; the stream's clock or later.")


@router.get("/v1/streams/{stream}/forecast", summary="Forecast one stream")
@role("read")
async def forecast(
    stream: InStream,
    desk: InDesk,
    caller: InCaller,
    request_id: InRequestId,
    horizon: Annotated[int | None, _HORIZON] = None,
    at: Annotated[str | None, _AT] = None,
) -> ForecastAnswer:
    """Quantiles of a stream's next steps."""
    return await _one(desk, caller, stream, ForecastOf.model_construct(horizon=horizon, at=at), request_id)


@router.post("/v1/streams/{stream}/forecast", summary="Forecast one stream, with covariates")
@role("read")
async def forecast_with(
    stream: InStream, body: ForecastOf, desk: InDesk, caller: InCaller, request_id: InRequestId
) -> ForecastAnswer:
    """Quantiles of a stream's next steps, with what is known of them."""
    return await _one(desk, caller, stream, body, request_id)


@router.post("/v1/forecast", summary="Forecast many streams")
@role("read")
async def forecast_many(
    body: ForecastOfMany, desk: InDesk, caller: InCaller, request_id: InRequestId, request: Request
) -> ForecastsAnswer:
    """Quantiles of the next steps of many streams."""
    if len(body.streams) > desk.settings.streams:
        raise TooLargeError(
            f"streams: at most {desk.settings.streams} are forecast at once, got {len(body.streams)}; ask in parts"
        )
    if body.future is not None and len(body.future) != len(body.streams):
        raise SchemaError(
            f"future: must be one for each of {len(body.streams)} streams, got {len(body.future)}; mend it"
        )
    request.state.streams = len(body.streams)
    at = None if body.at is None else moment_of(body.at, "at")
    forecasts, refused, aside = list[Forecasted](), list[Refused](), desk.memory.aside
    for start in range(0, len(body.streams), _TOGETHER):
        part = body.streams[start : start + _TOGETHER]
        future = None if body.future is None else body.future[start : start + _TOGETHER]
        for stream, found in zip(part, await _some(desk, caller, part, body, at, future, aside), strict=True):
            if isinstance(found, Forecast):
                forecasts.append(Forecasted(stream=stream, **_facts(found)))
            else:
                kind = "unknown_stream" if isinstance(found, UnknownStreamError) else "stream"
                refused.append(Refused(stream=stream, error=kind, detail=shown(caller.tenant, str(found))))
    return ForecastsAnswer(request_id=request_id, forecasts=forecasts, refused=refused)


_TOGETHER = 32
"""Streams of one reading: between two of them rows are taken."""


async def _one(desk: Desk, caller: Caller, stream: str, body: ForecastOf, request_id: str) -> ForecastAnswer:
    at = None if body.at is None else moment_of(body.at, "at")

    def reading(online: OnlinePredictor) -> Forecast:
        return online.forecast(name, body.horizon, at=at, future=body.future)

    name = whole(caller.tenant, stream)
    found = await desk.ask([name], reading)
    return ForecastAnswer(request_id=request_id, stream=stream, **_facts(found))


async def _some(
    desk: Desk, caller: Caller, streams: Sequence[str], body: ForecastOfMany, at: int | None,
    future: Sequence[Any] | None, aside: dict[str, str],
) -> list[Forecast | TsgdnError]:  # fmt: skip
    """A forecast of each stream, or why there is none. Raises what is wrong with the request itself."""
    wanted: list[str | TsgdnError] = []
    for stream in streams:
        try:
            name = whole(caller.tenant, stream)
            wanted.append(StreamError(aside[name]) if name in aside else name)
        except StreamError as error:
            wanted.append(error)

    def reading(online: OnlinePredictor) -> list[Forecast | TsgdnError]:
        found: list[Forecast | TsgdnError] = []
        for row, name in enumerate(wanted):
            if isinstance(name, TsgdnError):
                found.append(name)
                continue
            try:
                known = None if future is None else future[row]
                found.append(online.forecast(name, body.horizon, at=at, future=known))
            except StreamError as error:
                found.append(error)
        return found

    while True:
        asked = [name for name in wanted if isinstance(name, str)]
        try:
            return await desk.ask(asked, reading)
        except StreamError:
            # The memory names the first one that it has not: find out which they are, one by one.
            for row, one in enumerate(wanted):
                if isinstance(one, str):
                    try:
                        await desk.ask([one], lambda _: None)
                    except StreamError as error:
                        wanted[row] = error
            if asked == [name for name in wanted if isinstance(name, str)]:
                raise


def _facts(found: Forecast) -> dict[str, Any]:
    quantiles = np.where(np.isfinite(found.quantiles), found.quantiles, np.nan)
    return {
        "levels": list(found.levels), "channels": list(found.channels), "freq": found.freq,
        "times": found.times.astype(np.int64).tolist(),
        "quantiles": [
            [[None if level != level else level for level in channel] for channel in step]
            for step in quantiles.tolist()
        ],
    }  # fmt: skip
