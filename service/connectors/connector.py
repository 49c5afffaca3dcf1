"""What every connector has in common: at least once, in order, and never the end of the process.

    receive a group -> decode -> sink (durable) -> acknowledge        the groups of one connector strictly in this order

While some are being made durable, others are received and decoded, up to the messages of `in_flight` full groups; then
the peer has to wait.
Order is kept because a store knows a repeated row by its number: were a later number durable first, a broker's second
delivery of the earlier one would pass for a repeat. The price is one delivery at a time in the store, so all groups
that have come meanwhile go there together: deliveries grow with the load.

A connection that breaks is made again after an exponential wait, for ever. What is not acknowledged by then comes
again from the peer. A poisoned message is acknowledged, counted and reported, or it would come back for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Generic, Self, TypeVar

from tsgdn2.errors import ConfigError, TsgdnError
from tsgdn2.service.batch import Batch
from tsgdn2.service.connectors.decoded import Decoded
from tsgdn2.service.connectors.delivery import Backoff, Counts, Delivery, Sink
from tsgdn2.service.errors import BusyError, StoreError

M = TypeVar("M")
T = TypeVar("T")
log = logging.getLogger(__name__)


class LostError(Exception):
    """The connection ended; it is made anew."""


class Held(asyncio.Queue[tuple[Sequence[M], Decoded]]):
    """Groups that wait, bounded by their messages: what trickles in comes in many small ones."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most, self._messages = most, 0

    def full(self) -> bool:
        """Whether the next one has to wait."""
        return self._messages >= self._most

    def _put(self, item: tuple[Sequence[M], Decoded]) -> None:
        super()._put(item)
        self._messages += len(item[0])

    def _get(self) -> tuple[Sequence[M], Decoded]:
        found = super()._get()
        self._messages -= len(found[0])
        return found


class Lane(Generic[M]):
    """The way of groups of messages of one connection to the sink and back to the acknowledgement, in order."""

    def __init__(
        self,
        connector: Connector,
        sink: Sink,
        decode: Callable[[Sequence[M]], Decoded],
        acknowledge: Callable[[Sequence[M]], Awaitable[None]],
    ) -> None:
        self._connector, self._sink = connector, sink
        self._decode, self._acknowledge = decode, acknowledge
        self._groups = Held[M](connector.in_flight * connector.group)
        self._worker: asyncio.Task[None]
        self._settled = asyncio.Lock()
        self.lost = False

    async def receive(self, waiting: Coroutine[object, object, T]) -> T | None:
        """What is waited for, or None when `stop` comes first. What ended the worker is raised, and ends the wait."""
        found = await self._connector.unless_stopped(waiting, self._worker)
        await self.check()
        return found

    async def check(self) -> None:
        """Raise what ended the worker, if anything did."""
        if self._worker.done():
            await self._worker

    async def put(self, messages: Sequence[M]) -> None:
        """Take one group; waits while `in_flight` full ones are ahead. LostError when acknowledging has failed."""
        counts = self._connector.counts
        counts.received += len(messages)
        decoded = self._decode(messages)
        self._connector.reject(decoded)
        counts.waiting += 1
        await self._race(self._groups.put((messages, decoded)))
        if self.lost:
            raise LostError("the acknowledgement of a delivery did not get through")

    async def __aenter__(self) -> Self:
        """Begin; the connection stands."""
        self._worker = asyncio.create_task(self._work(), name=f"{self._connector.name} lane")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End. Cancelled: at once. The connection broke: the group in the sink is seen through. Else: all are."""
        try:
            if kind is None:
                await self._race(self._groups.join())
            elif not issubclass(kind, asyncio.CancelledError):
                self.lost = True
                async with self._settled:
                    pass
        finally:
            self._worker.cancel()
            await asyncio.wait((self._worker,))
            self._connector.counts.waiting = 0

    async def _race(self, waiting: Coroutine[object, object, None]) -> None:
        """Wait for something that the worker has to bring about; what ended the worker is raised."""
        task = asyncio.create_task(waiting)
        try:
            await asyncio.wait((task, self._worker), return_when=asyncio.FIRST_COMPLETED)
            await self.check()
        finally:
            task.cancel()

    async def _work(self) -> None:
        counts = self._connector.counts
        while True:
            groups = [await self._groups.get()]
            while not self._groups.empty():
                groups.append(self._groups.get_nowait())
            messages = [message for group, _ in groups for message in group]
            rows = [decoded.rows for _, decoded in groups if decoded.rows is not None]
            async with self._settled:
                if rows and not self.lost:
                    await self._settle(messages, Batch.concat(rows))
                if not self.lost:
                    await self._acknowledged(messages)
            counts.waiting -= len(groups)
            for _ in groups:
                self._groups.task_done()

    async def _acknowledged(self, messages: Sequence[M]) -> None:
        try:
            await self._acknowledge(messages)
            self._connector.counts.acknowledged += len(messages)
        except self._connector.away as error:
            self._connector.note(error)
            self.lost = True

    async def _settle(self, messages: Sequence[M], rows: Batch) -> None:
        """Make rows durable, in time, or find the messages that never can be."""
        connector = self._connector
        try:
            await self._deliver(rows)
        except TsgdnError as error:
            if len(messages) == 1:
                log.warning("%s: a message was refused and is given up: %s", connector.name, error)
                connector.counts.rejected.add("refused", connector.name, str(error), count=len(rows))
                return
            for message in messages:
                alone = self._decode([message]).rows
                if alone is not None:
                    await self._settle([message], alone)

    async def _deliver(self, rows: Batch) -> None:
        connector, waits = self._connector, self._connector.backoff.waits()
        while True:
            try:
                await self._sink(Delivery(rows, connector.name))
            except (BusyError, StoreError) as error:
                connector.counts.retries += 1
                connector.note(error)
                wait = max(next(waits), error.retry_after if isinstance(error, BusyError) else 0.0)
                log.warning("%s: the service can not take %d rows, again in %.1f s: %s", connector.name, len(rows),
                            wait, error)  # fmt: skip
                await asyncio.sleep(wait)
            else:
                connector.counts.rows += len(rows)
                return


class Connector(ABC):
    """One source of telemetry. `run` it once; `stop` ends it, cancelling its task kills it without loss."""

    away: tuple[type[Exception], ...] = (OSError, LostError, asyncio.TimeoutError)
    """What means that the peer is away, and not that something is wrong here."""

    def __init__(
        self,
        name: str,
        *,
        in_flight: int = 2,
        group: int = 256,
        backoff: Backoff | None = None,
        patience: float = 30.0,
    ) -> None:
        """Name it for logs and metrics.

        in_flight: groups received while another is made durable; group: messages of one at most; patience: seconds
        that `stop` gives to what is in flight.
        """
        if in_flight < 1 or group < 1:
            raise ConfigError(f"in_flight, group: must be at least 1, got {in_flight} and {group}")
        self.name, self.in_flight, self.group, self.patience = name, in_flight, group, patience
        self.backoff = backoff or Backoff()
        self.counts = Counts()
        self._stopping = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    @abstractmethod
    async def session(self, sink: Sink) -> None:
        """One connection: it breaks (an exception), or `stop` was called or the source is at its end (returns)."""

    async def run(self, sink: Sink) -> None:
        """Deliver until `stop` is called, or the source has an end and has come to it."""
        waits = self.backoff.waits()
        while not self.stopping:
            before = self.counts.connects
            self._running = asyncio.create_task(self.session(sink), name=self.name)
            try:
                await asyncio.wait((self._running,))
            finally:
                await self._end()
                self.counts.connected = False
            error = None if self._running.cancelled() else self._running.exception()
            if error is None:
                return
            self.note(error)
            self.counts.failures += 1
            if isinstance(error, (*self.away, TsgdnError)):
                log.warning("%s: not connected: %s", self.name, self.counts.last_error)
            else:  # whatever a library or a peer does, a source ends neither the process nor itself for ever
                log.error("%s: unexpected end of a connection", self.name, exc_info=error)
            if self.counts.connects > before:
                waits = self.backoff.waits()
            await self.pause(next(waits))

    async def stop(self) -> None:
        """Take nothing more, wait for what is in flight, acknowledge it, disconnect; after `patience`, give it up."""
        self._stopping.set()
        if self._running is not None and not self._running.done():
            await asyncio.wait((self._running,), timeout=self.patience)
            await self._end()

    async def pause(self, seconds: float) -> bool:
        """Wait, at most until `stop` is called; whether it was."""
        if seconds > 0 and not self.stopping:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)
        return self.stopping

    async def unless_stopped(self, waiting: Coroutine[object, object, T], *others: asyncio.Task[None]) -> T | None:
        """What is waited for, or None when `stop` or the end of one of the others comes first; it is cancelled then."""
        task, stop = asyncio.create_task(waiting), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((task, stop, *others), return_when=asyncio.FIRST_COMPLETED)
        finally:
            first = task.done()
            task.cancel()
            stop.cancel()
            # Not awaited one by one with CancelledError suppressed: that would suppress our own.
            await asyncio.wait((task, stop))
        if task.cancelled() or (not first and task.exception() is not None):
            return None
        return task.result()

    def connected(self) -> None:
        """Count a connection that stands."""
        self.counts.connects += 1
        self.counts.connected = True
        log.info("%s: connected", self.name)

    def note(self, error: BaseException) -> None:
        """Remember what went wrong last."""
        self.counts.last_error = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

    def reject(self, decoded: Decoded) -> None:
        """Count and report what could not be taken, one line for a group."""
        if decoded.rejected.total:
            self.counts.rejected.absorb(decoded.rejected)
            log.warning("%s: not taken: %s", self.name, decoded.rejected.text()[:2_000])

    @staticmethod
    def now() -> int:
        """This machine's clock, ns since 1970."""
        return time.time_ns()

    async def _end(self) -> None:
        if self._running is not None and not self._running.done():
            self._running.cancel()
            await asyncio.wait((self._running,))
