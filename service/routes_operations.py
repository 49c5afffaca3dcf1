"""For those who run it: /healthz, /readyz, /metrics, /openapi.json.

Health says alive or ready and no more, for it needs no key. /metrics counts all tenants together, so it is for keys
without a tenant.
"""

from __future__ import annotations

import anyio
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from tsgdn2.service.bodies import Health
from tsgdn2.service.desk import InDesk
from tsgdn2.service.errors import ForbiddenError
from tsgdn2.service.guard import Guarded, InCaller, role

router = APIRouter(route_class=Guarded, tags=["operations"])


@router.get("/healthz", summary="Whether it lives")
@role("open")
async def healthz() -> Health:
    """It answers, so it lives, whatever the memory does."""
    return Health(status="alive")


@router.get("/readyz", summary="Whether it works", responses={503: {"model": Health, "description": "Not now."}})
@role("open")
async def readyz(desk: InDesk, response: Response) -> Health:
    """Whether rows are taken now; the log says why not."""
    if desk.ready:
        return Health(status="ready")
    response.status_code = 503
    return Health(status="not ready")


@router.get(
    "/metrics", summary="Prometheus metrics", response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text."}},
)  # fmt: skip
@role("read")
async def metrics(desk: InDesk, caller: InCaller) -> Response:
    """Requests, rows, queue, memory and connectors."""
    if caller.tenant:
        raise ForbiddenError("key: /metrics is of all tenants together; use a key without a tenant")
    page = await anyio.to_thread.run_sync(desk.metrics.text)
    return Response(page, media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("/openapi.json", summary="This description", response_class=JSONResponse)
@role("open")
async def openapi(request: Request) -> JSONResponse:
    """OpenAPI of the service."""
    return JSONResponse(request.app.openapi())
