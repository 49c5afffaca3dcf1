"""What stands before every route: its role is asked before a byte of its body is read, and the body has its bounds.

    @router.post("/v1/observe")
    @role("write")                     a route without a role can not be made
    async def observe(..)

    ready? -> key -> role -> the tenant's rate -> room for the body -> body, within time and size -> unpacked -> route

FastAPI reads a body before it looks at dependencies, so none of this can be one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

import structlog
from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message

from tsgdn2.errors import ConfigError, StreamError
from tsgdn2.service.connectors.wire import unpacked
from tsgdn2.service.faults import TooLargeError, TooSlowError, documented
from tsgdn2.service.keys import Caller, Needed

if TYPE_CHECKING:
    from tsgdn2.service.desk import Desk

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
BODIES: Final = frozenset({"POST", "PUT", "PATCH"})
_ROLE: Final = "__role__"
_RAW: Final = "__raw__"
_DENSEST: Final = 1_100
"""Bytes that one byte can unpack to: 1,032 with deflate, some 21 with snappy."""


def role(needed: Needed, *, raw: bool = False) -> Callable[[Endpoint], Endpoint]:
    """Declare who may call an endpoint; raw: it unpacks its body itself."""

    def declared(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ROLE, needed)
        setattr(endpoint, _RAW, raw)
        return endpoint

    return declared


def role_of(endpoint: Callable[..., Any]) -> Needed:
    """The role of an endpoint. ConfigError for one that declares none."""
    needed: Needed | None = getattr(endpoint, _ROLE, None)
    if needed is None:
        raise ConfigError(f"route: {endpoint.__name__} declares no role; put @role(..) under its path")
    return needed


class Guarded(APIRoute):
    """A route behind its role and its limits."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Document the errors and the key as well."""
        needed = role_of(endpoint)
        statuses = [400, 422, 500, 503]
        if needed != "open":
            statuses += [401, 403, 429]
            extra = options.get("openapi_extra") or {}
            options["openapi_extra"] = {"security": [{"key": []}], "x-role": needed, **extra}
        if BODIES & set(options.get("methods") or ()):
            statuses += [408, 413, 415]
        if "{" in path:
            statuses += [404, 409, 421]
        options["responses"] = documented(sorted(statuses)) | (options.get("responses") or {})
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, with everything before it that stands in the module's docstring."""
        inner = super().get_route_handler()
        needed, raw = role_of(self.endpoint), bool(getattr(self.endpoint, _RAW, False))

        async def guarded(request: Request) -> Response:
            desk: Desk = request.app.state.desk
            caller = await desk.admit(request, needed)
            request.state.caller = caller
            structlog.contextvars.bind_contextvars(tenant=caller.tenant, key=caller.key)
            if needed != "open":
                desk.requests.take(caller.tenant)
            if request.method not in BODIES:
                return await inner(request)
            packed = request.headers.get("content-encoding", "").strip().lower() not in ("", "identity")
            with desk.room.hold(_claimed(request, desk, packed=packed, raw=raw)):
                content = await _body(request, desk)
                if packed and not raw:
                    encoding, most = request.headers["content-encoding"].strip(), desk.settings.unpacked_bytes
                    content = await desk.threaded(unpacked, content, encoding, most)
                return await inner(Request(request.scope, _Replay(content, request)))

        return guarded


class _Replay:
    """A body that is read already, and then whatever else the client says."""

    def __init__(self, content: bytes, request: Request) -> None:
        self._content: bytes | None = content
        self._request = request

    async def __call__(self) -> Message:
        if self._content is None:
            return await self._request.receive()
        content, self._content = self._content, None
        return {"type": "http.request", "body": content, "more_body": False}


def _claimed(request: Request, desk: Desk, *, packed: bool, raw: bool) -> int:
    """Bytes that the body may come to. TooLargeError where it says itself that it is too large."""
    most, given = desk.settings.body_bytes, request.headers.get("content-length")
    size = (
        most if given is None else int(given) if given.isascii() and given.isdigit() and len(given) < 19 else most + 1
    )
    if size > most:
        raise TooLargeError(f"body: may have {most} bytes, Content-Length says {given!s:.40}; send less at once")
    if not packed:
        return size
    unpacked_most = desk.mapping.limits.body_bytes if raw else desk.settings.unpacked_bytes
    return max(size, min(unpacked_most, _DENSEST * size))


async def _body(request: Request, desk: Desk) -> bytes:
    most, found = desk.settings.body_bytes, bytearray()
    try:
        async with asyncio.timeout(desk.settings.body_timeout_s):
            async for part in request.stream():
                found += part
                if len(found) > most:
                    raise TooLargeError(f"body: may have {most} bytes, more came; send less at once")
    except TimeoutError:
        raise TooSlowError(
            f"body: must arrive within {desk.settings.body_timeout_s:g} seconds, {len(found)} bytes came; send it "
            "faster, or in smaller parts"
        ) from None
    return bytes(found)


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def _request_id(request: Request) -> str:
    given: str = request.state.request_id
    return given


def _stream(stream: str) -> str:
    """A stream's name from the path, in which %2F is part of a name and no border."""
    try:
        return unquote_to_bytes(stream).decode()
    except UnicodeDecodeError:
        raise StreamError("stream: the path is not UTF-8 behind its percent signs; encode the name so") from None


InCaller = Annotated[Caller, Depends(_caller)]
InRequestId = Annotated[str, Depends(_request_id)]
InStream = Annotated[str, Depends(_stream)]
