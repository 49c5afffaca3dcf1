"""The application: routes, errors and opening around a memory that is not started and a store that is not open.

    app = create_app(Memory(online, store), store, read_settings(keys="off"))

It listens at once and answers 503 until the memory is ready, so that a long recovery is not taken for a dead process:
/healthz tells that it lives, /readyz that it works. There is no page of documentation that fetches scripts from
elsewhere; /openapi.json is for any tool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from tsgdn2 import __version__
from tsgdn2.errors import TsgdnError
from tsgdn2.service import (
    routes_audit,
    routes_dashboard,
    routes_events,
    routes_forecast,
    routes_ingest,
    routes_keys,
    routes_observe,
    routes_operations,
    routes_overview,
    routes_streams,
)
from tsgdn2.service.connectors.connector import Connector
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.desk import Desk
from tsgdn2.service.faults import answered
from tsgdn2.service.front import Front
from tsgdn2.service.mapping import MappingFile, read_mapping
from tsgdn2.service.memory import Memory
from tsgdn2.service.settings import Settings
from tsgdn2.service.store import Store
from tsgdn2.service.traces import Tracing

ROUTERS: Final[tuple[APIRouter, ...]] = tuple(
    module.router
    for module in (
        routes_observe, routes_forecast, routes_streams, routes_audit, routes_events, routes_ingest, routes_keys,
        routes_operations, routes_overview, routes_dashboard,
    )
)  # fmt: skip
ABOUT: Final = (
    "Live telemetry in, forecasts and audits out. Every answer that is no success has one body: error, detail, "
    "what_to_do, request_id. A path's segment that is a stream's name is percent-encoded as a whole, / as %2F."
)


def create_app(
    memory: Memory,
    store: Store,
    settings: Settings,
    *,
    connectors: Sequence[Connector] = (),
    router: Router | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application; it owns memory and store from its start to its end.

    connectors: are run beside it, with the memory as their sink. router: the one that they share; the ingest routes
    without a tenant take it, too. MappingError: the mapping file is none. `app.state.desk` says how the opening went.
    """
    mapping = MappingFile() if settings.mapping is None else read_mapping(settings.mapping)
    desk = Desk(
        memory, store, settings, connectors=connectors, router=router, mapping=mapping, tracing=tracing
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(desk.open(), name="opening")
        try:
            yield
        finally:
            await asyncio.wait((opening,))
            opening.exception()  # looked at, so that asyncio does not complain; the log has it, and `serve` raises it
            await desk.close()

    app = FastAPI(
        title="tsgdn2", version=__version__, description=ABOUT, lifespan=lifespan, openapi_url=None, docs_url=None,
        redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.state.desk = desk
    for one in ROUTERS:
        app.include_router(one)
    for kind in (TsgdnError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answered)
    app.add_middleware(
        Front, metrics=desk.metrics, tracing=desk.tracing, secure=settings.certificate is not None
    )  # fmt: skip
    describe = app.openapi

    def described() -> dict[str, Any]:
        found = describe()
        schemes = found.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["key"] = {
            "type": "http", "scheme": "bearer", "description": "An API key: tsgdn2_<id>_<secret>; also X-API-Key.",
        }  # fmt: skip
        return found

    app.openapi = described  # type: ignore[method-assign]
    return app
