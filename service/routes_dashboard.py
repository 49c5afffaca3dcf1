"""The dashboard: its page at /, its modules and style, and BokehJS out of the installed package. It holds no data.

    /                   open, as are the files: what they show is asked of /v1 with the key that the reader gives
    /dashboard/{name}   ours: asked again each time, answered with 304 where nothing has changed
                        bokeh-<version>.min.js: another name with another version, so it is kept for a year

Nothing comes from elsewhere and no script stands in the page. BokehJS makes <style> elements as it draws; they carry
the nonce of their page (style.js), so that even style can not be slipped in. It has `new Function` for callbacks that
are sent as text; there are none here, and the policy forbids it. Files are read and packed once a process.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import secrets
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any, Final, NamedTuple

import anyio
from fastapi import APIRouter, Header, Response
from starlette.exceptions import HTTPException

from tsgdn2.service.guard import Guarded, role

router = APIRouter(route_class=Guarded, tags=["dashboard"])
BOKEH: Final = {f"{part}-{version('bokeh')}.min.js": f"{part}.min.js" for part in ("bokeh", "bokeh-api")}
"""Files of the page, and what they are called in the package."""
_TYPES: Final = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "html": "text/html"}
_FOREVER: Final = "public, max-age=31536000, immutable"
_ASK: Final = "no-cache"
_NONCE: Final = "%NONCE%"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-%NONCE%'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_TEXT: Final = {"schema": {"type": "string"}}
_FILES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": dict.fromkeys(("text/javascript", "text/css", "image/svg+xml"), _TEXT), "description": "The file.",
    },
    304: {"description": "The file has not changed."},
}  # fmt: skip
IfNoneMatch = Annotated[str, Header(max_length=200, include_in_schema=False)]
AcceptEncoding = Annotated[str, Header(max_length=1_000, include_in_schema=False)]


class Asset(NamedTuple):
    """A file as it is sent."""

    content: bytes
    packed: bytes
    kind: str
    tag: str
    caching: str


@router.get(
    "/", summary="The dashboard", response_class=Response,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "The page."}},
)  # fmt: skip
@role("open")
async def page() -> Response:
    """The page of the dashboard."""
    nonce = secrets.token_urlsafe(16)
    content = (await anyio.to_thread.run_sync(asset, "index.html")).content.replace(_NONCE.encode(), nonce.encode())
    headers = {"Content-Security-Policy": POLICY.replace(_NONCE, nonce)}
    return Response(content, media_type=_TYPES["html"], headers=headers)


@router.get("/dashboard/{name}", summary="A file of the dashboard", response_class=Response, responses=_FILES)
@role("open")
async def file(name: str, if_none_match: IfNoneMatch = "", accept_encoding: AcceptEncoding = "") -> Response:
    """A module, the style, the icon, or BokehJS."""
    if name not in names() or name == "index.html":
        raise HTTPException(404, f"file: there is no {name[:80]!r}; reload the page")
    found = await anyio.to_thread.run_sync(asset, name)
    headers = {"ETag": found.tag, "Cache-Control": found.caching, "Vary": "Accept-Encoding"}
    if found.tag in if_none_match:
        return Response(status_code=304, headers=headers)
    if "gzip" in accept_encoding.lower():
        return Response(found.packed, media_type=found.kind, headers=headers | {"Content-Encoding": "gzip"})
    return Response(found.content, media_type=found.kind, headers=headers)


@cache
def names() -> frozenset[str]:
    """Names of the files that there are."""
    folder = importlib.resources.files("tsgdn2.service") / "dashboard"
    return frozenset(one.name for one in folder.iterdir() if one.name.rpartition(".")[2] in _TYPES) | BOKEH.keys()


@cache
def asset(name: str) -> Asset:
    """One of these files."""
    if name in BOKEH:
        place = importlib.resources.files("bokeh") / "server" / "static" / "js" / BOKEH[name]
    else:
        place = importlib.resources.files("tsgdn2.service") / "dashboard" / name
    content = place.read_bytes()
    if name == "index.html":
        content = content.replace(b"%BOKEH%", version("bokeh").encode())
    kind, tag = _TYPES[name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return Asset(content, gzip.compress(content, 6, mtime=0), kind, f"W/{tag}", _FOREVER if name in BOKEH else _ASK)
