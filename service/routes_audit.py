"""What the ledger and the online audit say: /v1/ledger of all of a tenant's streams, /v1/audit/{stream} of one.

A page of the ledger looks at so many rows at most, so one may be empty and have a next page: other tenants' rows lie
between. Rows of the service itself (stream "") are for those without a tenant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final

import anyio
import numpy as np
from fastapi import APIRouter, Query

from tsgdn2.online import OnlinePredictor
from tsgdn2.service.bodies import Audited, Ledger, LedgerEntry
from tsgdn2.service.desk import InDesk
from tsgdn2.service.guard import Guarded, InCaller, InRequestId, InStream, role
from tsgdn2.service.store import LedgerRow, Store
from tsgdn2.service.tenants import is_of, own, shown, whole

router = APIRouter(route_class=Guarded, tags=["audit"])
_LOOKS: Final = 10
_PAGE: Final = 1_000
_MOST_EVICTIONS: Final = 1_000
After = Annotated[int, Query(ge=0, le=2**63 - 1, description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1_000)]


@router.get("/v1/ledger", summary="What became of streams")
@role("read")
async def ledger(
    desk: InDesk, caller: InCaller, request_id: InRequestId, after: After = 0, limit: Limit = 100
) -> Ledger:
    """A page of the ledger: evicted, reloaded, expired, deleted, poisoned, recovered, .."""
    rows, more = await anyio.to_thread.run_sync(_page, desk.store, caller.tenant, after, limit)
    return Ledger(request_id=request_id, entries=ledger_entries(caller.tenant, rows), next=more)


@router.get("/v1/audit/{stream}", summary="What a stream's state keeps and has lost")
@role("read")
async def audit(
    stream: InStream, desk: InDesk, caller: InCaller, request_id: InRequestId, after: After = 0, limit: Limit = 100
) -> Audited:
    """Readings of the online audit, evictions that wait, and the stream's rows of the ledger."""
    name = whole(caller.tenant, stream)

    def reading(online: OnlinePredictor) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        if online.audit is None:
            return None, []
        slots = online.audit_slots(name)
        labels = online.channels if len(slots) == len(online.channels) else ("all",) * len(slots)
        readings = {
            label: _plain(asdict(online.audit.readings(slot))) for label, slot in zip(labels, slots, strict=True)
        }
        waiting = [
            {"channel": one.channel, **_plain(asdict(one.eviction))}
            for one in online.evictions() if one.stream == name
        ]  # fmt: skip
        return readings, waiting[:_MOST_EVICTIONS]

    readings, evictions = await desk.ask([name], reading)
    rows = await anyio.to_thread.run_sync(lambda: desk.store.read_ledger(after, limit, stream=name))
    more = rows[-1].id if len(rows) == limit else None
    return Audited(
        request_id=request_id, stream=stream, readings=readings, evictions=evictions,
        ledger=ledger_entries(caller.tenant, rows), next=more,
    )  # fmt: skip


def _page(store: Store, tenant: str, after: int, limit: int) -> tuple[list[LedgerRow], int | None]:
    """Rows of a tenant, and where to go on; None at the end of the ledger."""
    found: list[LedgerRow] = []
    for _ in range(_LOOKS):
        page = store.read_ledger(after, _PAGE)
        for row in page:
            after = row.id
            if is_of(tenant, row.stream):
                found.append(row)
                if len(found) == limit:
                    return found, after
        if len(page) < _PAGE:
            return found, None
    return found, after


def ledger_entries(tenant: str, rows: Sequence[LedgerRow]) -> list[LedgerEntry]:
    """Rows of the ledger as the tenant may see them."""
    return [
        LedgerEntry(
            id=row.id, time=row.time, kind=row.kind, stream=own(tenant, row.stream),
            facts={
                name: shown(tenant, value) if isinstance(value, str) else value for name, value in row.facts.items()
            },
        )
        for row in rows
    ]  # fmt: skip


def _plain(given: Any) -> Any:
    """The same in what JSON has: arrays as lists, numbers that are not finite as null."""
    if isinstance(given, dict):
        return {str(name): _plain(value) for name, value in given.items()}
    if isinstance(given, np.ndarray | np.generic):
        return _plain(given.tolist())
    if isinstance(given, list | tuple):
        return [_plain(value) for value in given]
    if isinstance(given, float) and not np.isfinite(given):
        return None
    return given
