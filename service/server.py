"""`serve`: settings and a model in, a running service until it is told to stop. All that is not a route is joined here.

SIGTERM or SIGINT: clients of events are told, requests have `grace_s` seconds, what waits is finished and snapshotted.
A second one ends it at once; what was acknowledged is in the journal then. A memory that fails ends the process.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

import structlog
import uvicorn
from fastapi import FastAPI

from tsgdn2.errors import ConfigError
from tsgdn2.online import OnlinePredictor
from tsgdn2.service.app import create_app
from tsgdn2.service.connectors.connector import Connector
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.desk import Desk
from tsgdn2.service.errors import ServiceError
from tsgdn2.service.heads import prompt
from tsgdn2.service.logs import set_up_logs
from tsgdn2.service.mapping import MappingFile, read_mapping
from tsgdn2.service.memory import Memory
from tsgdn2.service.settings import Settings
from tsgdn2.service.store import Store

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tsgdn2.service")
_LOOK_S = 0.25
_SWITCH_S = 0.0005
"""Seconds after which a thread of Python lets another one have its turn."""


class Server(uvicorn.Server):
    """uvicorn's, which ends streams of events before it waits for requests, and itself with the memory."""

    def __init__(
        self, app: FastAPI, settings: Settings, beside: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        """beside: is entered once the memory has opened, and left before it closes."""
        super().__init__(configured(app, settings))
        self.desk: Desk = app.state.desk
        self._beside, self._entered = beside, ExitStack()
        self.failed: str | None = None
        """Why it ends by itself: the memory has, or what runs beside it could not begin."""

    async def main_loop(self) -> None:
        """Until a signal, or until the memory has failed."""
        watching = asyncio.create_task(self._watch(), name="watching")
        try:
            await super().main_loop()
        finally:
            watching.cancel()
            await asyncio.wait((watching,))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and let what runs come to its end."""
        self.desk.hub.close()
        await asyncio.to_thread(self._entered.close)
        await super().shutdown(sockets)

    async def _watch(self) -> None:
        await self.desk.opened.wait()
        if self.desk.failure is None:
            if (key := self.desk.first_key) is not None:
                show_key(key.text)
            try:
                self._entered.enter_context(self._beside())
            except Exception as error:
                log.exception("service.ends", reason=str(error))
                self.failed, self.should_exit = str(error), True
                return
        while self.desk.ready:
            await asyncio.sleep(_LOOK_S)
        self.failed = self.desk.memory.status().reason
        log.error("service.ends", reason=self.failed)
        self.should_exit = True


def serve(
    settings: Settings,
    open_model: Callable[[], OnlinePredictor],
    *,
    connectors: Callable[[Router], Sequence[Connector]] = lambda _: (),
    beside: Callable[[Store], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Serve until a signal comes. open_model: a predictor without streams; connectors: made with the shared router.

    beside: what runs beside it, with the store (ledger, cursors) while that is open.

    Raises ConfigError, MappingError; StoreError: no store, or another model's; ServiceError: the memory failed.
    """
    set_up_logs(settings.log_format, settings.log_level)
    online, store = open_model(), store_of(settings.store)
    mapping = MappingFile() if settings.mapping is None else read_mapping(settings.mapping)
    router = Router(mapping, online.channels)
    memory = Memory(online, store, settings.limits, alert_bits=settings.alert_bits)
    app = create_app(memory, store, settings, connectors=connectors(router), router=router)

    @contextmanager
    def opened() -> Iterator[None]:
        # What is there now stays: to look through it again and again stops every thread for some tenths of a second.
        gc.collect()
        gc.freeze()
        # The worker takes the lock for each of its many operations; behind a busy event loop each would wait 5 ms.
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        try:
            with beside(store):
                yield
        finally:
            sys.setswitchinterval(before)

    server = Server(app, settings, opened)
    try:
        server.run()
    except SystemExit as error:
        where = f"{settings.host}:{settings.port}"
        raise ConfigError(f"host, port: can not listen at {where}; see the log, or give another port") from error
    desk: Desk = app.state.desk
    if desk.failure is not None:
        raise desk.failure
    if server.failed is not None:
        raise ServiceError(f"service: it has failed ({server.failed}); start it again")


def store_of(place: str) -> Store:
    """The store of a path or of a postgresql:// address; not open yet."""
    if place.startswith(("postgresql://", "postgres://")):
        from tsgdn2.service.postgres_store import PostgresStore

        return PostgresStore(place, label=f"{socket.gethostname()}:{os.getpid()}")
    from tsgdn2.service.sqlite_store import SqliteStore

    return SqliteStore(Path(place))


def configured(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """uvicorn's configuration. ConfigError: a certificate or key that can not be read."""
    config = uvicorn.Config(
        app, http=prompt(settings.head_timeout_s), host=settings.host, port=settings.port, log_config=None,
        access_log=False, server_header=False,
        date_header=True, proxy_headers=False, limit_concurrency=settings.connections, lifespan="on",
        timeout_graceful_shutdown=int(max(1, settings.grace_s)), timeout_keep_alive=30,
        ssl_certfile=settings.certificate, ssl_keyfile=settings.private_key,
        ssl_ca_certs=None if settings.client_authority is None else str(settings.client_authority),
        ssl_cert_reqs=ssl.CERT_NONE if settings.client_authority is None else ssl.CERT_REQUIRED,
    )  # fmt: skip
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"certificate: can not be used ({error}); give PEM files that belong together") from None
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config


def show_key(text: str, where: TextIO | None = None) -> None:
    """Show the administrator's first key once; it is in no log and can not be had again."""
    print(
        f"The store had no API key. This one is an administrator's; it is shown once:\n\n    {text}\n",
        file=where or sys.stderr, flush=True,
    )  # fmt: skip
