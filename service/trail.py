"""The last rows that came in, of all streams together, with their surprise: what a page draws before anything is live.

    add        one batch, by reference: nothing of it is looked at or copied, so that the hot path pays nothing
    points     the last rows of one stream           tails     the surprise of the last rows of some streams

It is bounded by rows and bytes, not by streams: with few streams it reaches far back, with ten thousand some rows each.
The journal knows more rows and no surprise; both end with the snapshots and the process. For the event loop's thread,
but a `view` may be read in any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

import numpy as np

from tsgdn2.service.batch import Batch, Floats, Ints
from tsgdn2.service.receipts import Outcome

_MOST_GONE: Final = 10_000
_EACH: Final = 64
"""Bytes of a row beside its values: time, sequence, names, status."""


class Part(NamedTuple):
    """Rows [N] that were applied together, and what became of them."""

    batch: Batch
    outcome: Outcome


class Points(NamedTuple):
    """Rows of one stream in their order: times int64 ns [N], values [N, C], surprise in bits [N, C]."""

    times: Ints
    values: Floats
    surprise: Floats


class Tail(NamedTuple):
    """The last rows of a stream in short: when the newest one was, and the largest surprise of each, oldest first."""

    time: int
    bits: list[float]


class View(NamedTuple):
    """What is held at one moment, oldest first; `first` is the number of the first part."""

    parts: tuple[Part, ...]
    first: int
    gone: Mapping[str, int]

    def points(self, stream: str, most: int) -> Points | None:
        """The last rows of a stream, at most so many; None where there is none."""
        found: list[Points] = []
        for part in reversed(self.parts[self._begin(stream) + 1 :]):
            batch = part.batch
            if stream in batch.streams:
                rows = np.array([row for row, name in enumerate(batch.streams) if name == stream][-most:], np.int64)
                found.append(Points(batch.times[rows], batch.values[rows], part.outcome.surprise[rows]))
                most -= len(rows)
            if most <= 0:
                break
        if not found:
            return None
        found.reverse()
        return Points(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def tails(self, streams: Collection[str], most: int) -> dict[str, Tail]:
        """The tails of these streams, of at most so many rows each; those of which nothing is held are left out."""
        newest: dict[str, int] = {}
        bits: dict[str, list[float]] = {stream: [] for stream in streams}
        begin = {stream: self._begin(stream) for stream in streams}
        for number in range(len(self.parts) - 1, -1, -1):
            part = self.parts[number]
            names, largest = part.batch.streams, np.fmax.reduce(part.outcome.surprise, 1, initial=np.nan)
            for row in range(len(names) - 1, -1, -1):
                mine = bits.get(names[row])
                if mine is not None and len(mine) < most and number > begin[names[row]]:
                    newest.setdefault(names[row], int(part.batch.times[row]))
                    mine.append(float(largest[row]))
        return {stream: Tail(newest[stream], bits[stream][::-1]) for stream in newest}

    def _begin(self, stream: str) -> int:
        """The last part that counts no more, because the stream was deleted behind it."""
        return max(self.gone.get(stream, 0) - self.first, 0) - 1


class Trail:
    """The last rows of a service."""

    def __init__(self, *, rows: int = 65_536, nbytes: int = 32 << 20) -> None:
        """rows, nbytes: how much is held at most; a single larger part is held all the same."""
        self._most_rows, self._most_bytes = rows, nbytes
        self._parts: deque[Part] = deque()
        self._gone: dict[str, int] = {}
        self._added = self._rows = self._bytes = 0

    @property
    def view(self) -> View:
        """What is held now."""
        return View(tuple(self._parts), self._added - len(self._parts), self._gone)

    def add(self, batch: Batch, outcome: Outcome) -> None:
        """Hold rows; the oldest go where there is no room."""
        if not len(batch):
            return
        self._parts.append(Part(batch, outcome))
        self._added += 1
        self._rows += len(batch)
        self._bytes += _size(batch)
        while len(self._parts) > 1 and (self._rows > self._most_rows or self._bytes > self._most_bytes):
            gone = self._parts.popleft().batch
            self._rows -= len(gone)
            self._bytes -= _size(gone)

    def forget(self, stream: str) -> None:
        """Show nothing any more of a stream that was deleted."""
        if len(self._gone) >= _MOST_GONE:
            first = self._added - len(self._parts)
            self._gone = {name: number for name, number in self._gone.items() if number > first}
        self._gone[stream] = self._added


def _size(batch: Batch) -> int:
    """About the bytes of a batch and of its surprise; names are not looked at, most are those of other batches."""
    return 2 * batch.values.nbytes + _EACH * len(batch)
