"""The process that remembers: one worker thread owns the predictor and the store's journal; any thread may ask it.

    observe -> rows checked -> backlog -> a group of what is there -> one append -> slices -> predictor -> receipts
    ask     -> a reading between two slices, with its streams hot and all of their rows applied
    put, remove -> behind the rows that wait already

Nothing is acknowledged before its append, and a group never waits to fill up: while one is written and applied, the
next one gathers. Rows are applied in slices between the appends (arrears.py), so whoever waits for the disk alone never
waits for the model. The price of one thread is that a long reading holds everything; the gain is that nothing else is
ever in the way. Rows of one caller are taken in the order in which they came.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, TypeVar

import numpy as np

from tsgdn2.errors import StreamError, TsgdnError, UnknownStreamError
from tsgdn2.online import OnlinePredictor
from tsgdn2.service.admission import Admission, Admitted
from tsgdn2.service.arrears import Arrears, Group
from tsgdn2.service.backlog import Backlog, Request, Task
from tsgdn2.service.batch import Batch, check_name
from tsgdn2.service.errors import BusyError, ElsewhereError, ServiceError, StoreError, UnavailableError
from tsgdn2.service.groups import Groups, receipts_of, spread
from tsgdn2.service.limits import Limits
from tsgdn2.service.pool import Clock, log
from tsgdn2.service.receipts import Receipt
from tsgdn2.service.sessions import Sessions
from tsgdn2.service.spent import Spent
from tsgdn2.service.status import Status
from tsgdn2.service.store import Store
from tsgdn2.service.tidings import Listener, Tidings
from tsgdn2.service.upkeep import Upkeep

Answer = TypeVar("Answer")
_TICK: Final = 0.25
"""Seconds that an idle worker sleeps."""
_WORTH: Final = 3.0
"""Rows are applied for at least so many times as long as the commit before took: a group commit has its price."""


class Memory:
    """One predictor and one store behind one worker thread.

    Args:
        online: A predictor without streams, with late="drop", "tag" or "replay"; it belongs to the memory from now on.
        store: A store that is not open; the worker opens and closes it.
        limits: Bounds of queue, memory and journal.
        alert_bits: A surprise of so many bits is an alert of the ledger.
        clock: Seconds that never go back, for TTL and upkeep.

    Raises:
        ConfigError: The predictor can not be served, or the limits do not fit it.
    """

    def __init__(
        self,
        online: OnlinePredictor,
        store: Store,
        limits: Limits | None = None,
        *,
        alert_bits: float = 10.0,
        clock: Clock = time.monotonic,
    ) -> None:
        """Touch nothing yet."""
        self.limits = limits or Limits()
        self.admission = Admission(online, most_ahead_s=self.limits.most_ahead_s)
        self._sessions = Sessions(online, store, self.limits, clock)
        self._online, self._store = online, store
        self._spent = Spent()
        self._tidings = Tidings(self._sessions, alert_bits)
        self._arrears = Arrears(self._sessions, self._spent, self._tidings.heard)
        self._groups = Groups(self._sessions, self._arrears, self._spent)
        self._upkeep = Upkeep(self._sessions)
        self._backlog = Backlog(self.limits)
        self._thread = threading.Thread(target=self._work, name="memory", daemon=True)
        self._opened = threading.Event()
        self._ready = False
        self._failure: BaseException | None = None

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in the order of a batch's columns."""
        return self._online.channels

    @property
    def online(self) -> OnlinePredictor:
        """The predictor: its model and channels may be read; its streams belong to the worker."""
        return self._online

    @property
    def aside(self) -> dict[str, str]:
        """Streams that are set aside, and why."""
        return dict(self._sessions.aside)

    @property
    def spent(self) -> Spent:
        """Seconds and rows of the groups so far."""
        return self._spent

    def listen(self, listener: Listener | None, gone: Callable[[str], None] = lambda _: None) -> None:
        """Have rows told of once they are applied, and streams that are gone; None ends it. By the worker: be quick."""
        self._tidings.listener, self._sessions.on_gone = listener, gone

    def start(self) -> None:
        """Open the store, bring back what it holds, as far as there is room, and begin. The store's errors."""
        if self._thread.ident is not None:
            raise ServiceError("memory: it was started before; make a new one for a store that was closed")
        self._thread.start()
        self._opened.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        """Finish what waits, snapshot what has changed, close the store; harmless a second time."""
        self._backlog.close(BusyError("service: it is stopping; send it again in 5 seconds", retry_after=5.0))
        if self._thread.ident is not None:
            self._thread.join()

    def observe(self, rows: Batch | Admitted, *, tenant: str = "", soon: bool = False) -> Future[Receipt]:
        """Keep and apply rows; the receipt comes when they are on the disk and applied.

        Args:
            rows: A batch [N] of the model's channels, or what `admission.columns` made of raw columns.
            tenant: Whose share of the queue they count in; "" is nobody's.
            soon: Have it as soon as they are on the disk, with the status "kept" for what is then to be applied.

        Raises:
            SchemaError: Other channels than the model's.
            BusyError: No room; nothing was taken. The future: StoreError, and then nothing was kept of them.
        """
        admitted = self.admission.admit(rows) if isinstance(rows, Batch) else rows
        batch = admitted.batch
        request = Request(admitted, tenant, Future(), frozenset(batch.streams), batch.nbytes, soon)
        if len(batch):
            self._backlog.request(request)
        else:
            request.future.set_result(spread(request, (), np.empty((0, len(self.channels))), {}))
        return request.future

    def ask(self, streams: Iterable[str], reading: Callable[[OnlinePredictor], Answer]) -> Future[Answer]:
        """Run a reading on the worker with these streams hot; it must not change them, nor take long.

        The future: UnknownStreamError for a stream that there is none of, StreamError for one that is set aside, and
        whatever the reading raises. What it drains (evictions, late arrivals) may be told again after a restart.
        """
        future: Future[Answer] = Future()
        self._backlog.reading(Task(tuple(dict.fromkeys(streams)), lambda: reading(self._online), future))
        return future

    def names(self, after: str = "", limit: int = 1000) -> Future[list[str]]:
        """Names of the streams kept, hot or cold, sorted by their bytes, from behind `after` on."""
        future: Future[list[str]] = Future()
        self._backlog.reading(Task((), lambda: self._store.streams(after, limit), future))
        return future

    def remove(self, stream: str) -> Future[None]:
        """Delete a stream, behind the rows that wait already. The future: UnknownStreamError, StoreError."""
        future: Future[None] = Future()
        self._backlog.command(Task((), lambda: self._sessions.remove(stream), future))
        return future

    def put(self, stream: str, blob: bytes) -> Future[None]:
        """Import what `OnlinePredictor.take_out` gave, in the place of all that is of this stream.

        The future: CheckpointError, ConfigError, StreamError where it does not fit; nothing has changed then.
        """
        check_name("stream", stream)
        future: Future[None] = Future()
        self._backlog.command(Task((), lambda: self._sessions.put(stream, blob), future))
        return future

    def status(self) -> Status:
        """How it stands, for readiness and metrics."""
        sessions, backlog = self._sessions, self._backlog
        reason = "" if self._ready else "starting or stopped"
        if self._failure is not None:
            reason = str(self._failure)
        return Status(
            ready=self._ready, reason=reason or self._upkeep.failed, hot=len(sessions.hot), most=sessions.most,
            dirty=len(sessions.dirty), aside=len(sessions.aside), queued_rows=backlog.rows,
            queued_bytes=backlog.nbytes, rate=backlog.rate, last=self._store.last,
        )  # fmt: skip

    def _work(self) -> None:
        """The worker, from the opening of the store to its end."""
        try:
            self._begin()
            self._ready = True
            self._opened.set()
            self._serve()
            self._tidings.tell(now=True)
            self._upkeep.finish()
        except BaseException as error:
            if self._ready and self._backlog.closed and isinstance(error, StoreError):
                log.error("memory.not_snapshotted", error=str(error))  # the journal has it all
            else:
                log.exception("memory.failed", error=str(error))
                self._failure = error
        finally:
            self._ready = False
            end = UnavailableError(f"service: it has ended ({self._failure or 'stopped'}); start it again")
            self._backlog.close(end)
            with suppress(Exception):  # the store has to be closed, whatever broke
                for group in self._arrears.unpaid():
                    self._answer(group)  # it is on the disk, and "kept" says so
            self._backlog.drop(end)
            try:
                self._store.close()
            except TsgdnError as error:
                log.error("memory.not_closed", error=str(error))
            self._opened.set()

    def _begin(self) -> None:
        """Open the store, and bring back as many streams as there is room for; the others come when they are asked."""
        began, sessions = time.monotonic(), self._sessions
        self._store.open(sessions.model)
        names, count, after = list[str](), 0, ""
        while page := self._store.streams(after):
            names += page[: sessions.most - len(names)]
            sessions.known(page)
            count, after = count + len(page), page[-1]
            if self.limits.ttl_s is None and len(names) == sessions.most:
                break
        sessions.make_room(len(names), ())
        found = sessions.bring(names, told=False)
        seconds = round(time.monotonic() - began, 3)
        if count:
            sessions.note("recovered", "", streams=len(sessions.hot), rows=found.rows, aside=len(sessions.aside))
        log.info(
            "memory.recovered", streams=len(sessions.hot), rows=found.rows, aside=len(sessions.aside),
            elsewhere=len(found.elsewhere), last=self._store.last, seconds=seconds,
        )  # fmt: skip

    def _serve(self) -> None:
        more, backlog, arrears = False, self._backlog, self._arrears
        while True:
            work = backlog.take(self._sessions.most, 0.0 if more else min(arrears.wait, _TICK))
            began, rows = time.perf_counter(), 0
            if not work and backlog.closed and not backlog.waiting and not arrears:
                return
            for task in work.readings:
                self._run(task)
            if work.command is not None:
                self._run(work.command)
            if work.group:
                self._commit(work.group)
            if backlog.closed or not arrears.wait:
                arrears.pay(max(self.limits.slice_s, _WORTH * (time.perf_counter() - began)))
            for group in arrears.finished():
                rows += len(group.batch)
                self._answer(group)
            backlog.took(rows, time.perf_counter() - began)
            self._tidings.tell()
            more = self._upkeep.tend(rows, idle=not work and not arrears)

    def _run(self, task: Task) -> None:
        try:
            self._heat(task.streams)
            answer = task.run()
        except BaseException as error:
            task.future.set_exception(error)
        else:
            task.future.set_result(answer)

    def _heat(self, streams: Sequence[str]) -> None:
        """Have these streams hot and their rows applied, or the error that says why one of them can not be."""
        sessions = self._sessions
        if len(streams) > sessions.most:
            raise ServiceError(f"streams: at most {sessions.most} at a time fit into memory, got {len(streams)}")
        sessions.settle(streams)
        elsewhere = sessions.fetch(streams).elsewhere
        for stream in streams:
            if stream in sessions.aside:
                raise StreamError(sessions.aside[stream])
            if stream in elsewhere:
                raise ElsewhereError(f"stream: {stream!r} is held by {elsewhere[stream]}; ask there")
            if stream not in sessions.hot:
                raise UnknownStreamError(f"stream: {stream!r} has not been observed; observe it first")
        sessions.touch(streams)

    def _commit(self, requests: list[Request]) -> None:
        """Commit a group, and answer those of its requests that wait for that alone."""
        began = time.perf_counter()
        try:
            group = self._groups.commit(requests)
        except Exception as error:
            if isinstance(error, StoreError):
                self._upkeep.fail(error)
            else:
                log.exception("memory.group_failed", error=str(error))
            self._backlog.done(requests)
            for request in requests:
                request.future.set_exception(error)
            return
        self._upkeep.failed = ""
        if any(request.soon for request in requests):
            for request, receipt in zip(requests, receipts_of(group), strict=True):
                if request.soon:
                    request.future.set_result(receipt)
        self._spent.answer += time.perf_counter() - began

    def _answer(self, group: Group) -> None:
        """Answer the requests of a group that is applied."""
        self._backlog.done(group.requests)
        for request, receipt in zip(group.requests, receipts_of(group), strict=True):
            for status, count in receipt.counts.items():
                self._spent.statuses[status] = self._spent.statuses.get(status, 0) + count
            if not request.future.done():
                request.future.set_result(receipt)
