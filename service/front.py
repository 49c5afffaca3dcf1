"""The outermost layer of HTTP: a request id, one line of log, one span and one measure for each request; safe headers.

Written for ASGI itself, so that a stream of events passes through it piece by piece. What nobody caught ends here, in
an answer of 500 without a word of the inside; the log has the trace. Paths of streams are left as they were sent, so
that %2F is part of a stream's name and / is a border.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Final
from urllib.parse import quote

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tsgdn2.service.connectors.decoded import clip
from tsgdn2.service.faults import faulty
from tsgdn2.service.metrics import Metrics
from tsgdn2.service.traces import Tracing

ENCODED: Final = ("/v1/streams/", "/v1/audit/")
"""Paths behind which a segment is a stream's name."""
SAFE: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""On every answer that does not say otherwise itself."""
GONE: Final = 499
"""The status in log and metrics of a request whose client left."""
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tsgdn2.http")


class Front:
    """The layer, around an application."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, tracing: Tracing, secure: bool) -> None:
        """secure: the service speaks TLS, and says that it always will."""
        self._app, self._metrics, self._tracing = app, metrics, tracing
        self._safe = SAFE | ({"Strict-Transport-Security": "max-age=31536000"} if secure else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; anything else is passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        if scope["path"].startswith(ENCODED):
            raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
            scope["path"] = raw.decode("latin-1")
        passage = _Passage(scope, receive, send, self._safe, request_id)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        began = time.perf_counter()
        with self._tracing.request(scope["method"], headers) as span, self._metrics.running():
            try:
                await self._app(scope, passage.receive, passage.send)
            except ClientDisconnect:
                passage.status = GONE
            except Exception:
                log.exception("http.fault", path=clip(scope["path"]))
                await passage.give_up()
            seconds = time.perf_counter() - began
            route, state = getattr(scope.get("route"), "path", "-"), scope["state"]
            span.ended(
                f"{scope['method']} {route}", passage.status, rows=state.get("rows"), streams=state.get("streams")
            )
        self._metrics.request(route, scope["method"], passage.status, seconds)
        told = log.debug if route in ("/healthz", "/readyz", "/metrics") and passage.status < 400 else log.info
        told(
            "http.request", method=scope["method"], route=route, status=passage.status,
            ms=round(1e3 * seconds, 3), received=passage.received, sent=passage.sent,
            **{name: state[name] for name in ("rows", "error") if state.get(name) is not None},
        )  # fmt: skip
        structlog.contextvars.clear_contextvars()


class _Passage:
    """One request's messages on their way through."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, safe: dict[str, str], request_id: str) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._safe, self._request_id = safe, request_id
        self.status, self.received, self.sent = 0, 0, 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self._safe.items():
                headers.setdefault(name, value)
            headers["X-Request-ID"] = self._request_id
        else:
            self.sent += len(message.get("body", b""))
        await self._send(message)

    async def give_up(self) -> None:
        """Answer with 500, if nothing has been answered yet; else the server cuts the connection."""
        if self.status:
            raise ConnectionError("the answer broke off; see the log line before")
        request = Request(self._scope)
        await faulty(request, 500, "fault", "the service made a mistake")(self._scope, self.receive, self.send)
