"""What waits for the worker: rows in the order in which they came, bounded in rows and bytes, and readings beside them.

    take:   the readings that wait, and then  one command  or  requests from the front, up to the rows of a group
    done:   the rows of these requests have been applied, or never will be; until then they count

Whoever finds it full is told when to come again, from the rate at which rows have left it. A tenant has a share, so
that one of them can not keep the others out. Nothing waits for a group to fill up: a group is what is there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tsgdn2.service.admission import Admitted
from tsgdn2.service.errors import BusyError, ServiceError
from tsgdn2.service.limits import Limits
from tsgdn2.service.receipts import Receipt

READS: Final = 32
"""Readings between two groups; the others wait for the next one."""
_SHORTEST, _LONGEST, _FIRST = 0.05, 60.0, 1.0


@dataclass(slots=True, eq=False)
class Request:
    """Rows of one caller."""

    admitted: Admitted
    tenant: str
    future: Future[Receipt]
    streams: frozenset[str]
    size: int
    soon: bool = False
    """Whether the receipt comes when the rows are on the disk, and not when they are applied."""


@dataclass(slots=True, eq=False)
class Task:
    """Something to run on the worker with these streams hot."""

    streams: tuple[str, ...]
    run: Callable[[], Any]
    future: Future[Any]


class Work(NamedTuple):
    """What the worker does next: readings, and then a command or a group of requests."""

    readings: list[Task]
    command: Task | None
    group: list[Request]

    def __bool__(self) -> bool:
        return bool(self.readings or self.command or self.group)


class Backlog:
    """A queue with bounds, for any number of threads on one side and one worker on the other."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bell = threading.Condition()
        self._line: deque[Request | Task] = deque()
        self._readings: deque[Task] = deque()
        self._shares: dict[str, int] = {}
        self._end: BaseException | None = None
        self.rows = 0
        """Rows that wait, or are on the disk and not yet applied."""
        self.nbytes = 0
        """Their bytes."""
        self.rate = 0.0
        """Rows a second that the worker does while it has some, as of late; 0 before the first."""

    @property
    def retry_after(self) -> float:
        """Seconds in which what waits now will be done."""
        return min(max(self.rows / self.rate, _SHORTEST), _LONGEST) if self.rate else _FIRST

    @property
    def closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._end is not None

    @property
    def waiting(self) -> bool:
        """Whether anything waits."""
        return bool(self._line or self._readings)

    def request(self, request: Request) -> None:
        """Have rows wait. BusyError where they do not fit, ServiceError where they never will."""
        rows, most, share = len(request.admitted.batch), self._limits.queue_rows, self._limits.queue_rows
        if request.tenant:
            share = max(1, int(self._limits.tenant_share * most))
        if rows > share or request.size > self._limits.queue_bytes:
            raise ServiceError(
                f"batch: may have {share} rows and {self._limits.queue_bytes} bytes at most, got {rows} and "
                f"{request.size}; split it"
            )
        with self._bell:
            self._check_open()
            held = self._shares.get(request.tenant, 0)
            if held + rows > share:
                self._busy(f"tenant: its share of {share} waiting rows is full ({held} wait)")
            if self.rows + rows > most or self.nbytes + request.size > self._limits.queue_bytes:
                self._busy(f"queue: {self.rows} rows wait, the limit is {most} rows, {self._limits.queue_bytes} bytes")
            self._shares[request.tenant] = held + rows
            self.rows += rows
            self.nbytes += request.size
            self._line.append(request)
            self._bell.notify()

    def command(self, task: Task) -> None:
        """Have something wait behind the rows that wait already."""
        with self._bell:
            self._check_open()
            if len(self._line) >= self._limits.queue_rows:
                self._busy(f"queue: {len(self._line)} requests wait")
            self._line.append(task)
            self._bell.notify()

    def reading(self, task: Task) -> None:
        """Have a reading wait for the next gap between two groups."""
        with self._bell:
            self._check_open()
            if len(self._readings) >= self._limits.queue_reads:
                self._busy(f"queue: {len(self._readings)} readings wait")
            self._readings.append(task)
            self._bell.notify()

    def take(self, most_streams: int, timeout: float) -> Work:
        """What is there, or what comes within the timeout; empty when nothing did. Cancelled ones are left out."""
        with self._bell:
            if not self._line and not self._readings and self._end is None and timeout > 0:
                self._bell.wait(timeout)
            readings = [self._readings.popleft() for _ in range(min(READS, len(self._readings)))]
            command, group = self._front(most_streams)
        return Work([task for task in readings if task.future.set_running_or_notify_cancel()], command, group)

    def done(self, requests: Iterable[Request]) -> None:
        """The rows of these requests wait no more."""
        with self._bell:
            for request in requests:
                self._left(request)

    def took(self, rows: int, seconds: float) -> None:
        """The worker has done so many rows."""
        if rows and seconds > 0:
            self.rate = rows / seconds if not self.rate else 0.8 * self.rate + 0.2 * rows / seconds

    def close(self, error: BaseException) -> None:
        """Take nothing more: whoever comes gets the error. What waits is still handed out."""
        with self._bell:
            self._end = self._end or error
            self._bell.notify_all()

    def drop(self, error: BaseException) -> None:
        """Fail all that waits."""
        with self._bell:
            waiting = [*self._readings, *self._line]
            self._readings.clear()
            self._line.clear()
            self._shares.clear()
            self.rows = self.nbytes = 0
        for one in waiting:
            if one.future.set_running_or_notify_cancel():
                one.future.set_exception(error)

    def _front(self, most_streams: int) -> tuple[Task | None, list[Request]]:
        """A command, or requests of one group: at least one, and then as many as fit its rows and streams."""
        group: list[Request] = []
        streams: set[str] = set()
        rows = 0
        while self._line:
            first = self._line[0]
            if isinstance(first, Task):
                if group:
                    break
                self._line.popleft()
                if first.future.set_running_or_notify_cancel():
                    return first, []
                continue
            rows += len(first.admitted.batch)
            streams |= first.streams
            if group and (rows > self._limits.group_rows or len(streams) > most_streams):
                break
            self._line.popleft()
            if first.future.set_running_or_notify_cancel():
                group.append(first)
            else:
                self._left(first)
        return None, group

    def _left(self, request: Request) -> None:
        rows = len(request.admitted.batch)
        self.rows -= rows
        self.nbytes -= request.size
        self._shares[request.tenant] -= rows
        if not self._shares[request.tenant]:
            del self._shares[request.tenant]

    def _check_open(self) -> None:
        if self._end is not None:
            raise self._end

    def _busy(self, what: str) -> None:
        after = self.retry_after
        raise BusyError(f"{what}; nothing was taken, send it again in {after:.2g} seconds", retry_after=after)
