"""When rows are sent, and how long each took: at full speed, or at a fixed rate whatever the other side does.

    full speed   the next request as soon as there is room; its time begins when it is sent
    a rate       request j is due at begin + j batch / rate; its time begins then, even when it could only be sent later

So a stall of the other side falls on all requests that were due in it (no coordinated omission). Times are of the
monotonic clock, which is one for all processes of a machine. Figures are per row: a request counts as often as it has
rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition
from typing import Any, Final

import numpy as np

Figures = dict[str, Any]
_NAP: Final = 0.0005


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What one measurement sends."""

    first: int
    """Number of its first row."""
    seconds: float
    """At least so long."""
    batch: int
    """Rows of one request."""
    whole: int = 1
    """The number of rows is a multiple of this."""
    rate: float = 0.0
    """Rows a second; 0 is full speed."""
    abreast: int = 1
    """Requests under way at a time."""


class Schedule:
    """Hands out requests (first row, rows, moment from which its time counts), until it is over.

    At full speed the end is found when the time is over; then the rows are filled up to whole ones.
    """

    def __init__(self, pace: Pace) -> None:
        """The clock runs from now on."""
        self.pace, self.sent = pace, 0
        self.begin = time.monotonic()
        self._end: int | None = None
        if pace.rate:
            self._end = self._filled(max(1, round(pace.rate * pace.seconds)))

    def due(self) -> float:
        """The moment of the next request; now, at full speed."""
        return self.begin + self.sent / self.pace.rate if self.pace.rate else time.monotonic()

    def take(self, most: int | None = None) -> tuple[int, int, float] | None:
        """The next request, which may have `most` rows; None when there is none any more."""
        begins = self.due()
        if self._end is None and time.monotonic() - self.begin >= self.pace.seconds:
            self._end = self._filled(self.sent)
        rows = most or self.pace.batch
        if self._end is not None:
            rows = min(rows, self._end - self.sent)
        if rows <= 0:
            return None
        at, self.sent = self.pace.first + self.sent, self.sent + rows
        return at, rows, begins

    def _filled(self, rows: int) -> int:
        return -(-rows // self.pace.whole) * self.pace.whole


class Taken:
    """How long rows took."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._rows: list[int] = []
        self.end = 0.0
        """When the last one was done."""

    def add(self, begins: float, ended: float, rows: int = 1) -> None:
        """Rows of one request."""
        self._seconds.append(ended - begins)
        self._rows.append(rows)
        self.end = max(self.end, ended)

    def figures(self, begin: float) -> Figures:
        """rows, seconds, rows_per_s; p50_ms, p99_ms, max_ms of a row."""
        taken = np.repeat(self._seconds, self._rows) * 1e3
        rows, seconds = len(taken), self.end - begin
        p50, p99, most = np.quantile(taken, (0.5, 0.99, 1.0)).tolist()
        rate = rows / seconds
        return {"rows": rows, "seconds": seconds, "rows_per_s": rate, "p50_ms": p50, "p99_ms": p99, "max_ms": most}


def pause(until: float) -> None:
    """Sleep until a moment, at least for a moment."""
    time.sleep(max(until - time.monotonic(), _NAP))


def loop(work: Callable[[int, int], object], pace: Pace, group: int) -> Figures:
    """Have `work` (first row, rows) done in groups of at most so many rows: at full speed of as many, at a rate of
    what is due. Rows keep the moments at which their requests were due."""
    schedule, taken, groups = Schedule(pace), Taken(), 0
    while True:
        requests, rows = [], 0
        if pace.rate:
            while (now := time.monotonic()) < schedule.due():
                pause(schedule.due())
            while rows + pace.batch <= group and schedule.due() <= now and (one := schedule.take()) is not None:
                requests.append(one)
                rows += one[1]
        elif (one := schedule.take(group)) is not None:
            requests, rows = [one], one[1]
        if not requests:
            break
        work(requests[0][0], rows)
        ended = time.monotonic()
        groups += 1
        for _, count, begins in requests:
            taken.add(begins, ended, count)
    return {**taken.figures(schedule.begin), "groups": groups}


def submit(begin: Callable[[int, int], Future[Any]], pace: Pace) -> Figures:
    """Begin requests (first row, rows), at most `pace.abreast` at a time at full speed, and wait for the last one."""
    schedule, taken, changed = Schedule(pace), Taken(), Condition()
    under_way: set[Future[Any]] = set()
    failed: list[BaseException] = []
    while True:
        if pace.rate:
            while time.monotonic() < schedule.due():
                pause(schedule.due())
        with changed:
            changed.wait_for(lambda: bool(pace.rate) or len(under_way) < pace.abreast)
        if failed or (one := schedule.take()) is None:
            break
        first, rows, begins = one

        def done(future: Future[Any], begins: float = begins, rows: int = rows) -> None:
            ended = time.monotonic()
            with changed:
                taken.add(begins, ended, rows)
                under_way.discard(future)
                failed.extend(filter(None, [future.exception()]))
                changed.notify()

        future = begin(first, rows)
        with changed:
            under_way.add(future)
        future.add_done_callback(done)
    with changed:
        changed.wait_for(lambda: not under_way)
    if failed:
        raise failed[0]
    return taken.figures(schedule.begin)
