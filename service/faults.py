"""What a caller hears when something went wrong: one body for all of it, and never anything of the inside.

    {"error": "unknown_stream", "detail": "..", "what_to_do": "..", "request_id": "..", "retry_after": null}

The status is the error's own; what is no error of ours is 500, and only the log has its trace.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from tsgdn2.errors import TsgdnError, UnknownStreamError
from tsgdn2.service.connectors.decoded import clip
from tsgdn2.service.errors import BusyError, ServiceError, UnavailableError
from tsgdn2.service.tenants import shown

_LONGEST: Final = 2_000
_REMEDIES: Final = {
    400: "mend the request; /openapi.json describes it",
    401: "send Authorization: Bearer tsgdn2_..",
    403: "use a key of a role that may do this",
    404: "see /openapi.json for what there is",
    405: "use one of the methods of the header Allow",
    408: "send it faster, or in smaller parts",
    409: "delete the stream, or import a sound state",
    413: "send less at once",
    415: "send one of the types of /openapi.json",
    421: "send it to the process that is named",
    422: "mend the fields that are named; /openapi.json describes them",
    429: "send it again after the seconds of Retry-After",
    500: "tell whoever runs the service the request_id",
    503: "send it again in a few seconds; rows with source and sequence are never taken twice",
}


class TooLargeError(ServiceError):
    """A body, or its number of rows or streams, is beyond the limit; nothing of it was taken."""

    status: ClassVar[int] = 413


class TooSlowError(ServiceError):
    """The body did not arrive in time."""

    status = 408


class AsideError(ServiceError):
    """The stream is set aside: its state is not sound."""

    status = 409


class Fault(BaseModel):
    """The body of every answer that is not a success."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "error": "unknown_stream", "detail": "stream: 'boiler-7' has not been observed",
                "what_to_do": "observe it first", "request_id": "4f1c0a9be2d84c1b", "retry_after": None,
            }
        }
    )  # fmt: skip

    error: str = Field(description="Kind of the error, in small letters; it does not change with the wording.")
    detail: str = Field(description="What was wrong, what is allowed, what came.")
    what_to_do: str = Field(description="What mends it.")
    request_id: str = Field(description="The id of the request, as in the header X-Request-ID and in the logs.")
    retry_after: float | None = Field(default=None, description="Seconds after which it is worth trying again.")


MEANINGS: Final = {
    400: "The request can not be read, or does not fit the model or the stream.",
    401: "No key, or one that is unknown, expired or withdrawn.",
    403: "The role of the key does not allow it, or the request comes from a foreign page.",
    404: "There is no such stream, key or path.",
    405: "The path has other methods.",
    408: "The body did not arrive in time.",
    409: "The stream is set aside.",
    413: "The body, packed or unpacked, or its number of rows is too large.",
    415: "The content type or encoding is not read here.",
    421: "Another process of the same store holds the stream; detail has its label.",
    422: "A field is missing or has the wrong type.",
    429: "A queue or a tenant's share is full; nothing was taken unless detail says so. See Retry-After.",
    500: "A fault of the service; its log knows the request_id.",
    503: "The store or the memory does not answer now, or did not in time.",
}


def documented(statuses: Sequence[int]) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these statuses."""
    return {status: {"model": Fault, "description": MEANINGS[status]} for status in statuses}


def status_of(error: TsgdnError) -> int:
    """The HTTP status of an error of ours."""
    if isinstance(error, ServiceError):
        return error.status
    return 404 if isinstance(error, UnknownStreamError) else 400


def answered(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in this error, for FastAPI's handlers."""
    headers: dict[str, str] = {}
    if isinstance(error, TsgdnError):
        status, kind, detail = status_of(error), _kind(error), str(error)
    elif isinstance(error, RequestValidationError):
        status, kind, detail = 422, "invalid", explained(error.errors())
    elif isinstance(error, HTTPException):
        status, kind, detail = error.status_code, _slug(error.status_code), str(error.detail)
        headers |= dict(error.headers or {})
    else:
        status, kind, detail = 500, "fault", "the service made a mistake"
    after = error.retry_after if isinstance(error, BusyError | UnavailableError) else None
    return faulty(request, status, kind, detail, retry_after=after, headers=headers)


def faulty(
    request: Request,
    status: int,
    kind: str,
    detail: str,
    *,
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer with the one body; the tenant sees no name of another one in it."""
    caller = getattr(request.state, "caller", None)
    said = shown(caller.tenant if caller is not None else "", detail)
    detail, _, remedy = said.rpartition("; ")
    if not detail:
        detail, remedy = remedy, _REMEDIES.get(status, _REMEDIES[400 if status < 500 else 500])
    body = Fault(
        error=kind, detail=_printable(detail), what_to_do=_printable(remedy), retry_after=retry_after,
        request_id=getattr(request.state, "request_id", ""),
    )  # fmt: skip
    more = dict(headers or {})
    if retry_after is not None:
        more["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if status == 401:
        more["WWW-Authenticate"] = 'Bearer realm="tsgdn2"'
    request.state.error = kind
    return Response(to_json(body), status, more, media_type="application/json")


def explained(problems: Sequence[Any]) -> str:
    """The first few problems of a validation, without what came: it may be a secret, or large, or no text."""
    found = []
    for problem in problems[:5]:
        place = ".".join(clip(str(part)) for part in problem["loc"])
        found.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}")
    return ", ".join(found)


def _kind(error: TsgdnError) -> str:
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _slug(status: int) -> str:
    try:
        return HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")
    except ValueError:
        return "refused"


def _printable(text: str) -> str:
    text = text.encode(errors="replace").decode()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
