"""What a page shows at a glance: /v1/overview, its streams, a stream's last rows, the newest entries of the ledger.

Made for a dashboard that asks every few seconds beside a service that is busy: every answer looks at so much and no
more. The journal and the ledger are read beside the worker; what is asked of the worker takes it well under a
millisecond. Many streams are counted at most every 15 seconds, and up to 10,000 of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

import anyio
import numpy as np
from fastapi import APIRouter, Query

from tsgdn2 import __version__
from tsgdn2.online import OnlinePredictor
from tsgdn2.service.batch import Floats
from tsgdn2.service.desk import Desk, InDesk
from tsgdn2.service.guard import Guarded, InCaller, InRequestId, InStream, role
from tsgdn2.service.routes_audit import ledger_entries
from tsgdn2.service.store import LedgerRow, Rows, Store
from tsgdn2.service.tenants import is_of, shown, whole
from tsgdn2.service.trail import Points
from tsgdn2.service.views import (
    ConnectorFacts,
    Glance,
    Glances,
    ModelFacts,
    Newest,
    Overview,
    Recent,
    ServiceFacts,
)

router = APIRouter(route_class=Guarded, tags=["overview"])
_COUNTED: Final = 10_000
_COUNT_S: Final = 15.0
_TAIL: Final = 32
"""Rows whose surprise a glance has."""
_LOOKS: Final = 10
_PAGE: Final = 1_000
_END: Final = 2**63 - 1
Kinds = Annotated[
    list[Annotated[str, Query(max_length=40)]] | None, Query(max_length=20, description="Only these; by default all.")
]


@router.get("/v1/overview", summary="The service at a glance")
@role("read")
async def overview(desk: InDesk, caller: InCaller, request_id: InRequestId) -> Overview:
    """Counts, queue, connectors and what the model reads."""
    count, more = await _counted(desk, caller.tenant)
    online = desk.memory.online
    config = online.config
    return Overview(
        request_id=request_id, version=__version__, now=time.time_ns(), tenant=caller.tenant, role=caller.role,
        alert_bits=desk.settings.alert_bits, streams=count, streams_more=more,
        aside=sum(is_of(caller.tenant, name) for name in desk.memory.aside),
        model=ModelFacts(
            channels=list(online.channels), freq=online.freq, period=config.period_ns,
            horizon=config.prediction_length, levels=list(config.quantiles), key_dim=config.key_dim,
        ),
        service=None if caller.tenant else _service(desk),
    )  # fmt: skip


@router.get("/v1/overview/streams", summary="Streams at a glance")
@role("read")
async def glances(
    desk: InDesk,
    caller: InCaller,
    request_id: InRequestId,
    after: Annotated[str, Query(max_length=512, description="`next` of the page before.")] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    contains: Annotated[str, Query(max_length=200, description="Only names with this in them, in any case.")] = "",
) -> Glances:
    """A page of streams with their last surprise; a search looks at 10,000 names, so a page may be empty."""
    if after:
        whole(caller.tenant, after)
    names, following = await _search(desk, caller.tenant, after, limit, contains)
    stored = [whole(caller.tenant, name) for name in names]

    def reading(online: OnlinePredictor) -> dict[str, int]:
        here = set(online.streams)
        return {name: online.counters(name)["observations"] for name in stored if name in here}

    seen, view, aside = await desk.ask([], reading), desk.trail.view, desk.memory.aside
    tails = await desk.threaded(view.tails, stored, _TAIL)
    found = []
    for name, one in zip(stored, names, strict=True):
        tail, why = tails.get(name), aside.get(name)
        found.append(Glance(
            stream=one, aside=None if why is None else shown(caller.tenant, why), hot=name in seen,
            observations=seen.get(name), time=None if tail is None else tail.time,
            surprise=[] if tail is None else [None if bits != bits else bits for bits in tail.bits],
        ))  # fmt: skip
    return Glances(request_id=request_id, streams=found, next=following)


@router.get("/v1/streams/{stream}/recent", summary="The last rows of a stream")
@role("read")
async def recent(
    stream: InStream,
    desk: InDesk,
    caller: InCaller,
    request_id: InRequestId,
    limit: Annotated[int, Query(ge=1, le=1_000, description="Rows; those of one moment become one.")] = 500,
) -> Recent:
    """The last rows at hand, with their surprise as far as this process saw them come; there may be none."""
    name = whole(caller.tenant, stream)
    await desk.ask([name], lambda _: None)
    found = await desk.threaded(desk.trail.view.points, name, limit)
    if found is None or len(found.times) < limit:
        older = await anyio.to_thread.run_sync(desk.store.newest_rows, name, limit)
        found = _joined(older, found, len(desk.memory.channels))
    kept = _moments(found, limit)
    return Recent(
        request_id=request_id, stream=stream, channels=list(desk.memory.channels), times=kept.times.tolist(),
        values=_cells(kept.values), surprise=_cells(kept.surprise),
    )  # fmt: skip


@router.get("/v1/ledger/newest", summary="The newest of what became of streams")
@role("read")
async def newest(
    desk: InDesk,
    caller: InCaller,
    request_id: InRequestId,
    before: Annotated[int, Query(ge=1, le=_END, description="`next` of the page before.")] = _END,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    stream: Annotated[str | None, Query(max_length=512)] = None,
    kind: Kinds = None,
) -> Newest:
    """Entries of the ledger, newest first; a page looks at 10,000 of them, so it may be empty and have a next one."""
    name = None if stream is None else whole(caller.tenant, stream)
    kinds = None if kind is None else frozenset(kind)
    rows, more = await anyio.to_thread.run_sync(_back, desk.store, caller.tenant, before, limit, name, kinds)
    return Newest(request_id=request_id, entries=ledger_entries(caller.tenant, rows), next=more)


async def _counted(desk: Desk, tenant: str) -> tuple[int, bool]:
    """How many streams a tenant has, as far as they are counted, and whether there are more."""
    known, now = desk.counted.get(tenant), time.monotonic()
    if known is None or now - known[2] > (_COUNT_S if known[0] >= _PAGE else 1.0):
        names, after = await desk.names(tenant, "", _COUNTED)
        if len(desk.counted) >= _PAGE:
            desk.counted.clear()
        known = desk.counted[tenant] = (len(names), after is not None, now)
    return known[:2]


async def _search(desk: Desk, tenant: str, after: str, limit: int, contains: str) -> tuple[list[str], str | None]:
    """Names behind `after` that hold a text, and where to go on."""
    if not contains:
        return await desk.names(tenant, after, limit)
    found: list[str] = []
    wanted, at = contains.casefold(), after
    for _ in range(_LOOKS):
        page, following = await desk.names(tenant, at, _PAGE)
        for name in page:
            if wanted in name.casefold():
                found.append(name)
                if len(found) == limit:
                    return found, name
        if following is None:
            return found, None
        at = following
    return found, at


def _service(desk: Desk) -> ServiceFacts:
    status, limits = desk.memory.status(), desk.memory.limits
    return ServiceFacts(
        hot=status.hot, hot_limit=status.most, dirty=status.dirty, queue_rows=status.queued_rows,
        queue_limit=limits.queue_rows, rows=dict(desk.memory.spent.statuses), reason=status.reason,
        connectors=[
            ConnectorFacts(
                name=one.name, connected=one.counts.connected, rows=one.counts.rows, waiting=one.counts.waiting,
                rejected=sum(one.counts.rejected.counts.values()), last_error=one.counts.last_error,
            )
            for one in desk.connectors
        ],
    )  # fmt: skip


def _joined(older: Sequence[Rows], newer: Points | None, channels: int) -> Points:
    """Rows of the journal, whose surprise nobody knows any more, and behind them those of the trail."""
    empty = np.empty((0, channels))
    parts = [Points(np.empty(0, np.int64), empty, empty)]
    parts += [Points(one.batch.times, one.batch.values, np.full(one.batch.values.shape, np.nan)) for one in older]
    if newer is not None:
        parts.append(newer)
    return Points(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _moments(rows: Points, most: int) -> Points:
    """One row for each moment: of each cell the last value that there was, and the first surprise at it."""
    times, place = np.unique(rows.times, return_inverse=True)
    values = np.full((len(times), rows.values.shape[1]), np.nan)
    surprise = values.copy()
    for row, at in enumerate(place.reshape(-1).tolist()):
        np.copyto(values[at], rows.values[row], where=~np.isnan(rows.values[row]))
        np.copyto(surprise[at], rows.surprise[row], where=np.isnan(surprise[at]))
    return Points(times[-most:], values[-most:], surprise[-most:])


def _cells(given: Floats) -> list[list[float | None]]:
    """The same, with null for what is not there."""
    return [[value if np.isfinite(value) else None for value in row] for row in given.tolist()]


def _back(
    store: Store, tenant: str, before: int, limit: int, stream: str | None, kinds: frozenset[str] | None
) -> tuple[list[LedgerRow], int | None]:
    """Entries of a tenant from `before` backwards, and where to go on; None at the beginning of the ledger."""
    found: list[LedgerRow] = []
    for row in _entries_before(store, before):
        before = row.id
        if is_of(tenant, row.stream) and stream in (None, row.stream) and (kinds is None or row.kind in kinds):
            found.append(row)
            if len(found) == limit:
                return found, before
    return found, before if len(store.newest_ledger(before, 1)) else None


def _entries_before(store: Store, before: int) -> Iterator[LedgerRow]:
    for _ in range(_LOOKS):
        page = store.newest_ledger(before, _PAGE)
        yield from page
        if len(page) < _PAGE:
            return
        before = page[-1].id
