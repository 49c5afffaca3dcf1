"""What the routes share: who may come in, the memory with a limit on waiting, one router a tenant, and the opening.

    opening -> memory.start in a thread -> keys -> connectors        until then every route but health answers 503
    closing -> clients of events -> connectors -> memory.stop        what waits is finished and snapshotted

A wait that is given up takes its rows out of the queue where they have not begun; otherwise they are kept, and only the
answer is late. Rows with source and sequence can be sent again in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Annotated, Final, ParamSpec, TypeVar
from urllib.parse import urlsplit

import anyio
import numpy as np
import structlog
from fastapi import Depends, Request

from tsgdn2.errors import TsgdnError
from tsgdn2.forecast import Forecast
from tsgdn2.online import OnlinePredictor
from tsgdn2.service.admission import Admitted
from tsgdn2.service.batch import Batch
from tsgdn2.service.connectors.connector import Connector
from tsgdn2.service.connectors.delivery import Delivery
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.errors import BusyError, ForbiddenError, ServiceError, StoreError, UnavailableError
from tsgdn2.service.events import Hub
from tsgdn2.service.faults import AsideError
from tsgdn2.service.keys import Caller, Issued, KeyRing, Needed
from tsgdn2.service.mapping import MappingFile
from tsgdn2.service.memory import Memory
from tsgdn2.service.metrics import Metrics
from tsgdn2.service.quotas import Rates, Room
from tsgdn2.service.receipts import ELSEWHERE, Outcome, Receipt
from tsgdn2.service.settings import Settings, is_loopback
from tsgdn2.service.stock import stock
from tsgdn2.service.store import Store
from tsgdn2.service.tenants import US, before, is_of, own, passed, whole
from tsgdn2.service.traces import Tracing
from tsgdn2.service.trail import Trail

P = ParamSpec("P")
T = TypeVar("T")
log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tsgdn2.http")
_DECODERS: Final = 2
"""Bodies that are decoded at a time."""
_ROUTERS: Final = 1_000
_PAGE: Final = 1_000
ELSEWHERE_S: Final = 1.0
"""Seconds after which a connector's rows of a stream that another process holds are tried again."""


class Desk:
    """One for an application."""

    def __init__(
        self,
        memory: Memory,
        store: Store,
        settings: Settings,
        *,
        connectors: Sequence[Connector] = (),
        router: Router | None = None,
        mapping: MappingFile | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.memory, self.store, self.settings = memory, store, settings
        self.connectors, self.mapping = tuple(connectors), mapping or MappingFile()
        self.metrics, self.tracing = Metrics(), tracing or Tracing(settings.traces)
        self.keys = KeyRing(store)
        self.requests = Rates("requests", settings.tenant_requests_per_s)
        self.rows = Rates("rows", settings.tenant_rows_per_s)
        self.room = Room(settings.waiting_bytes)
        self.hub = Hub(clients=settings.event_clients, queue=settings.event_queue, alert_bits=settings.alert_bits)
        self.trail = Trail()
        self.counted: dict[str, tuple[int, bool, float]] = {}
        """How many streams each tenant had, whether there were more, and when that was."""
        self.failure: BaseException | None = None
        """What ended the opening."""
        self.first_key: Issued | None = None
        """The administrator's key of a store that had none; to be shown once."""
        self.opened = asyncio.Event()
        """Set when the opening is over, well or not."""
        self._routers = {} if router is None else {"": router}
        self._tasks: list[asyncio.Task[None]] = []
        self._decoders = anyio.CapacityLimiter(_DECODERS)
        self._refreshing = asyncio.Lock()
        self.metrics.watch(memory, self.connectors, lambda: {
            "event_clients": self.hub.clients, "events_dropped": self.hub.dropped, "body_bytes": self.room.held,
            **stock(store, settings.store),
        })  # fmt: skip

    @property
    def ready(self) -> bool:
        """Whether rows are taken."""
        return self.opened.is_set() and self.failure is None and self.memory.status().ready

    async def open(self) -> None:
        """Start the memory and what feeds it; what goes wrong is in `failure`."""
        loop = asyncio.get_running_loop()
        self.memory.listen(partial(self._heard, loop), partial(self._gone, loop))
        try:
            await anyio.to_thread.run_sync(self.memory.start)
            await anyio.to_thread.run_sync(self._open_keys)
        except BaseException as error:
            self.failure = error
            log.error("service.not_opened", error=str(error))
            raise
        finally:
            self.opened.set()
        log.info("service.opened", connectors=[connector.name for connector in self.connectors])
        self._tasks = [asyncio.create_task(one.run(self.deliver), name=one.name) for one in self.connectors]
        self._tasks.append(asyncio.create_task(self._forecasts(), name="forecasts"))

    async def close(self) -> None:
        """End everything in order."""
        self.hub.close()
        await asyncio.gather(*(connector.stop() for connector in self.connectors), return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await anyio.to_thread.run_sync(self.memory.stop)
        await anyio.to_thread.run_sync(self.tracing.close)

    async def admit(self, request: Request, needed: Needed) -> Caller:
        """Who asks. KeyRefusedError, ForbiddenError, UnavailableError before the service is ready."""
        if needed == "open":
            return Caller("", "read", "")
        if self.settings.keys == "off":
            self._check_local(request)
        if not self.ready:
            raise UnavailableError("service: it is starting, stopping or has failed; send it again in 2 seconds")
        if self.settings.keys == "off":
            return Caller("", "admin", "")
        if self.keys.stale:
            async with self._refreshing:
                if self.keys.stale:
                    await anyio.to_thread.run_sync(self.keys.refresh)
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        given = text.strip() if kind.lower() in ("bearer", "token") else request.headers.get("x-api-key", "")
        return self.keys.check(given, needed)

    async def take(
        self, caller: Caller, rows: Batch | Admitted, *, soon: bool = False, counted: bool = True
    ) -> Receipt:
        """Have rows of whole names kept and applied, or kept at least; the receipt says what became of each.

        counted: they count in the tenant's rate; False where they have been counted already.
        """
        batch = rows if isinstance(rows, Batch) else rows.batch
        if counted:
            self.rows.take(caller.tenant, len(batch))
        return await self.waited(lambda: self.memory.observe(rows, tenant=caller.tenant, soon=soon))

    async def deliver(self, delivery: Delivery) -> object:
        """The sink of connectors: waits as long as it takes, in parts that fit a group.

        Rows of a stream that another process holds wait until it lets go. StoreError also where the memory is away or
        fails: a connector would give up what any other error speaks of, and no row is to blame for that.
        """
        rows = delivery.rows
        if any(US in stream for stream in set(rows.streams)):
            raise ForbiddenError("stream: a name may not hold the control character U+001F; map it to another name")
        if not self.ready:
            raise UnavailableError("service: it is starting or stopping; it comes again")
        for part in rows.parts(min(self.memory.limits.group_rows, self.memory.limits.queue_rows)):
            left = part
            while len(left):
                receipt = await self._kept(left)
                left = left.take(np.array([status == ELSEWHERE for status in receipt.status]))
                if len(left):
                    reason = next(receipt.reasons[row] for row, one in enumerate(receipt.status) if one == ELSEWHERE)
                    log.warning("service.held_elsewhere", rows=len(left), reason=reason, connector=delivery.connector)
                    await asyncio.sleep(ELSEWHERE_S)
        return None

    async def _kept(self, rows: Batch) -> Receipt:
        """Have rows of a connector kept. Whatever goes wrong but the form of the rows is told as StoreError."""
        try:
            future = self.memory.observe(rows, soon=True)
        except ServiceError as error:
            raise self._away(error) from None
        try:
            return await asyncio.wrap_future(future)
        except (BusyError, StoreError):
            raise
        except Exception as error:
            log.exception("service.not_kept", rows=len(rows))
            raise UnavailableError(f"service: the rows could not be kept now ({error}); they come again") from error

    async def waited(self, begin: Callable[[], Future[T]]) -> T:
        """What is begun, within `timeout_s`. UnavailableError when it took longer, or the memory has ended."""
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                return await asyncio.wrap_future(begin())
        except TimeoutError:
            raise UnavailableError(
                f"service: no answer within {self.settings.timeout_s:g} seconds, what was sent may be kept or not; "
                "send it again, rows with source and sequence are never taken twice", retry_after=5.0,
            ) from None  # fmt: skip
        except ServiceError as error:
            raise self._away(error) from None

    async def ask(self, streams: Iterable[str], reading: Callable[[OnlinePredictor], T]) -> T:
        """A reading with these streams (whole names) hot. AsideError for one that is set aside."""
        chosen, aside = list(streams), self.memory.aside
        for stream in chosen:
            if stream in aside:
                raise AsideError(aside[stream])
        return await self.waited(lambda: self.memory.ask(chosen, reading))

    async def names(self, tenant: str, after: str, limit: int) -> tuple[list[str], str | None]:
        """A page of a tenant's streams by their own names, and where the next one begins, None behind the last."""
        found: list[str] = []
        at: str | None = before(tenant, after)
        while at is not None:
            page = await self.waited(partial(self.memory.names, at, min(_PAGE, limit + 1)))
            found += [own(tenant, name) for name in page if is_of(tenant, name)]
            if len(found) > limit:
                return found[:limit], found[limit - 1]
            at = passed(tenant, page) if page else None
        return found, None

    async def router(self, tenant: str) -> Router:
        """The router of a tenant, which knows the streams that are there already."""
        router = self._routers.get(tenant)
        if router is None:
            if len(self._routers) >= _ROUTERS:
                self._routers.pop(next(reversed(self._routers)))
            router = Router(self.mapping, self.memory.channels)
            after: str | None = ""
            while after is not None:
                names, after = await self.names(tenant, after, _PAGE)
                router.known(names)
            router = self._routers.setdefault(tenant, router)
        return router

    def forgotten(self, tenant: str, stream: str) -> None:
        """A stream, by its own name, is no more."""
        if tenant in self._routers:
            self._routers[tenant].forget(stream)
        self.trail.forget(whole(tenant, stream))

    async def threaded(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what costs time, such as decoding, beside the event loop; few at a time."""
        return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._decoders)

    def _away(self, error: ServiceError) -> ServiceError:
        """The error, or what says that one comes again, where the memory has ended."""
        ended = type(error) is ServiceError and not self.memory.status().ready
        return UnavailableError(str(error), retry_after=5.0) if ended else error

    def _heard(self, loop: asyncio.AbstractEventLoop, batch: Batch, outcome: Outcome) -> None:
        """Rows were applied; told by the worker's thread."""
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._told, batch, outcome)

    def _gone(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        """A stream was deleted or has expired; told by the worker's thread with its whole name."""
        tenant, border, stream = name.partition(US)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self.forgotten, *((tenant, stream) if border else ("", name)))

    def _told(self, batch: Batch, outcome: Outcome) -> None:
        self.trail.add(batch, outcome)
        if self.hub.clients:
            self.hub.observed(batch.streams, batch.times, outcome.surprise, self.memory.channels)
            self.hub.arrived(batch, outcome.surprise)

    def _open_keys(self) -> None:
        self.keys.refresh()
        if self.settings.keys == "required" and not self.keys.listed():
            self.first_key = self.keys.issue("admin")

    def _check_local(self, request: Request) -> None:
        """Without keys a page from elsewhere could make a browser of this machine send something: it may not."""
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        if not is_loopback(host):
            raise ForbiddenError(f"host: without keys only localhost is served, Host is {host[:80]!r}; use localhost")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise ForbiddenError(f"origin: pages of {origin[:80]!r} may not ask this service; ask it directly")

    async def _forecasts(self) -> None:
        """Publish forecasts of watched streams as they get rows."""
        while True:
            await asyncio.sleep(self.settings.forecast_every_s)
            for stream in self.hub.due():
                try:
                    found = await self.ask([stream], partial(_forecast, stream))
                except TsgdnError:
                    continue  # deleted, set aside or too busy: the next row makes it due again
                except Exception:
                    log.exception("service.no_forecast")
                    continue
                self.hub.publish("forecast", stream, {
                    "levels": list(found.levels), "channels": list(found.channels),
                    "times": found.times.astype(np.int64).tolist(), "quantiles": found.quantiles.tolist(),
                })  # fmt: skip


def _forecast(stream: str, online: OnlinePredictor) -> Forecast:
    return online.forecast(stream)


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


InDesk = Annotated[Desk, Depends(_desk)]
