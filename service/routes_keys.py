"""API keys over HTTP: listed, issued, rotated, withdrawn, by an administrator for its own tenant.

An administrator without a tenant runs the service: for all tenants. A key's text is in the answer that made it, and
nowhere else, ever.
"""

from __future__ import annotations

import anyio
from fastapi import APIRouter

from tsgdn2.errors import ConfigError
from tsgdn2.service.bodies import Key, Keys, KeyShown, NewKey, Rotation
from tsgdn2.service.desk import InDesk
from tsgdn2.service.errors import ForbiddenError
from tsgdn2.service.guard import Guarded, InCaller, InRequestId, role
from tsgdn2.service.keys import Caller
from tsgdn2.service.store import KeyRow

router = APIRouter(route_class=Guarded, tags=["keys"])


@router.get("/v1/keys", summary="List keys")
@role("admin")
async def keys(desk: InDesk, caller: InCaller, request_id: InRequestId) -> Keys:
    """Keys of the tenant, without their secrets."""
    rows = await anyio.to_thread.run_sync(desk.keys.listed, _scope(caller))
    return Keys(request_id=request_id, keys=[_key(row) for row in rows])


@router.post("/v1/keys", summary="Issue a key", status_code=201)
@role("admin")
async def issue(body: NewKey, desk: InDesk, caller: InCaller, request_id: InRequestId) -> KeyShown:
    """Make a key; its text is shown this once."""
    tenant = caller.tenant if body.tenant is None else body.tenant
    if caller.tenant and tenant != caller.tenant:
        raise ForbiddenError("tenant: must be your own; leave it out")
    made = await anyio.to_thread.run_sync(lambda: desk.keys.issue(body.role, tenant, days=body.days))
    return KeyShown(request_id=request_id, key=_key(made.row), text=made.text)


@router.post("/v1/keys/{id}/rotate", summary="Rotate a key", status_code=201)
@role("admin")
async def rotate(id: str, body: Rotation, desk: InDesk, caller: InCaller, request_id: InRequestId) -> KeyShown:
    """A new key like an old one, which stays good for `overlap_s` seconds."""
    made = await anyio.to_thread.run_sync(
        lambda: desk.keys.rotate(id, _scope(caller), overlap_s=body.overlap_s)
    )  # fmt: skip
    return KeyShown(request_id=request_id, key=_key(made.row), text=made.text)


@router.delete("/v1/keys/{id}", summary="Withdraw a key")
@role("admin")
async def withdraw(id: str, desk: InDesk, caller: InCaller) -> Key:
    """End a key now and for ever; not the one that asks, or nobody could undo it."""
    if id == caller.key:
        raise ConfigError("id: this is the key that you use; withdraw it with another one")
    return _key(await anyio.to_thread.run_sync(desk.keys.withdraw, id, _scope(caller)))


def _scope(caller: Caller) -> str | None:
    return caller.tenant or None


def _key(row: KeyRow) -> Key:
    return Key(id=row.id, role=row.role, tenant=row.tenant, expires=row.expires, withdrawn=row.withdrawn)
