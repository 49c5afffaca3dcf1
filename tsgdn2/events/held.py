"""Events as rows of integers whose order is the canonical one: what is held back, and the identities applied of late.

    row = (time, type, marks [M], columns of covariates [F], identity [2])        compared from left to right
    float -> integer: bits, those below the sign flipped where it is set; NaN is the smallest

A row is the whole event, so equal rows are interchangeable, and sorted rows are the same in whatever order they came.
Never more rows than their owner allows; the arrays grow by doubling, to twice that at most.

R rows, K = 4 + M + F columns.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from tsgdn2.events.schema import EventArrays, Ints
from tsgdn2.scale import Floats

Key = tuple[int, ...]
NOTHING: Key = ()
"""Before every row."""
_BELOW_SIGN = np.int64(2**63 - 1)
_NAN = np.iinfo(np.int64).min


def identities(ids: Sequence[str | int | None]) -> Ints:
    """Identities [R, 2] of checked event ids: 128 bits of a hash, zeros for None."""
    found = [bytes(16) if one is None else blake2b(repr(one).encode(), digest_size=16).digest() for one in ids]
    return np.frombuffer(b"".join(found), "<i8").reshape(-1, 2).astype(np.int64)


def to_rows(events: EventArrays, known: Floats, identity: Ints) -> Ints:
    """Rows [R, K] of events with their columns of covariates known [R, F]."""
    numbers = np.concatenate([events.marks, known], 1)
    bits = numbers.view(np.int64)
    bits = np.where(np.isnan(numbers), _NAN, bits ^ ((bits >> 63) & _BELOW_SIGN))
    return np.concatenate([events.time[:, None], events.type[:, None], bits, identity], 1)


def from_rows(rows: Ints, marks: int) -> tuple[EventArrays, Floats]:
    """Undo `to_rows`, but for the identities."""
    bits = np.ascontiguousarray(rows[:, 2:-2])
    numbers = np.where(bits == _NAN, np.nan, (bits ^ ((bits >> 63) & _BELOW_SIGN)).view(np.float64))
    return EventArrays(rows[:, 0].copy(), rows[:, 1].copy(), numbers[:, :marks].copy()), numbers[:, marks:].copy()


class Held:
    """A sorted list of rows [R, K]; appending and taking from the front are O(1) on average."""

    def __init__(self, columns: int, most: int) -> None:
        self.most = most
        self._rows = np.zeros((0, columns), np.int64)
        self._begin = self._end = 0

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def oldest(self) -> int:
        """The first moment; there must be one."""
        return int(self._rows[self._begin, 0])

    @property
    def newest(self) -> int:
        """The last moment; there must be one."""
        return int(self._rows[self._end - 1, 0])

    @property
    def last(self) -> Key:
        """The last row, NOTHING without one."""
        return tuple(self._rows[self._end - 1].tolist()) if len(self) else NOTHING

    @property
    def most_nbytes(self) -> int:
        """Bytes that the array never exceeds."""
        return 2 * (self.most + 1) * self._rows.shape[1] * self._rows.itemsize

    def all(self) -> Ints:
        """Every row, as a view that the next `put` may change."""
        return self._rows[self._begin : self._end]

    def moment(self, place: int) -> int:
        """The moment of the row in this place, the oldest is in 0."""
        return int(self._rows[self._begin + place, 0])

    def put(self, row: Key) -> None:
        """Take one row."""
        self._reserve()
        at = self._begin + self._place(row)
        if at < self._end:
            self._rows[at + 1 : self._end + 1] = self._rows[at : self._end].copy()
        self._rows[at] = row
        self._end += 1

    def take(self, through: int) -> Ints:
        """Remove and return the rows of all moments up to `through`."""
        if not len(self) or self.oldest > through:
            return self._rows[:0]
        stop = self._begin + bisect_right(self.all()[:, 0], through)
        taken = self._rows[self._begin : stop].copy()
        self._begin = stop
        return taken

    def after(self, row: Key) -> Ints:
        """The rows behind this one."""
        return self.all()[self._place(row) if row else 0 :]

    def has(self, identity: Ints) -> bool:
        """Whether a row has this identity [2]."""
        return _among(self.all()[:, -2:], identity)

    def copy(self) -> Held:
        """The same rows, on their own."""
        twin = Held(self._rows.shape[1], self.most)
        twin._rows, twin._end = self.all().copy(), len(self)
        return twin

    def _place(self, row: Key) -> int:
        """How many rows stand before this one or are equal to it."""
        moments = self.all()[:, 0]
        if not len(moments) or row[0] > moments[-1]:
            return len(moments)
        low, high = bisect_left(moments, row[0]), bisect_right(moments, row[0])
        rows = self.all()
        return bisect_right(range(high), row, low, high, key=lambda i: tuple(rows[i].tolist()))

    def _reserve(self) -> None:
        """Room for one row at the end: the rows move to the front when half of the array is free, else it grows."""
        room, count = len(self._rows), len(self)
        if self._end < room:
            return
        if 2 * count >= room:
            room = min(max(8, 2 * room), max(2 * (self.most + 1), count + 1))
        fresh = np.zeros((room, self._rows.shape[1]), np.int64)
        fresh[:count] = self.all()
        self._rows, self._begin, self._end = fresh, 0, count


class Recent:
    """The identities of the last `most` events that were applied with one; zeros are none."""

    def __init__(self, most: int) -> None:
        self.ring, self.count = np.zeros((most, 2), np.int64), 0
        """The n-th identity is in place n mod most; how many there ever were."""

    def push(self, identity: Ints) -> None:
        """Remember identities [R, 2], in this order."""
        given = identity[identity.any(1)]
        most = len(self.ring)
        at = (self.count + np.arange(len(given))) % most
        self.ring[at[-most:]] = given[-most:]
        self.count += len(given)

    def has(self, identity: Ints) -> bool:
        """Whether this one [2] is among them."""
        return _among(self.ring[: self.count], identity)

    def copy(self) -> Recent:
        """The same, on its own."""
        twin = Recent(0)
        twin.ring, twin.count = self.ring.copy(), self.count
        return twin


def _among(many: Ints, one: Ints) -> bool:
    return bool((many[many[:, 0] == one[0], 1] == one[1]).any())
