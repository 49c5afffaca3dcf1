"""What makes a row a duplicate: per source of a stream, the highest sequence and which of the 1,024 below it were seen.

    age = highest - sequence:  age < 0 is new, and becomes the highest
                               0 <= age < 1,024 is new once: bit `age` of the window says whether it was seen
                               age >= 1,024 is behind the window, and counts as seen

So what comes out of order is neither lost nor applied twice, as long as it is less than 1,024 behind. A source that
begins to count anew sends only what is behind: it needs a new name. A stream remembers the 256 sources that gave a new
row last; one that is forgotten may send a row for the second time, and it is taken.

Marks ride in the snapshots of their stream and are rebuilt from the journal rows behind them, so an append writes
nothing for them: a table of their own would be one update of 150 bytes for every stream and source of every append.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsgdn2.service.batch import LONGEST_NAME, UNNUMBERED, Batch
from tsgdn2.service.errors import CorruptError

WINDOW: Final = 1024
"""Sequences, counted down from the highest, that are known one by one."""
MOST_SOURCES: Final = 256
"""Sources of one stream that are remembered; the one whose last new row is oldest is forgotten first."""
NEW: Final = 0
"""A row that was not seen before, or one without a sequence."""
SEEN: Final = 1
"""A row that was seen: leave it out, and acknowledge it."""
BEHIND: Final = 2
"""A row so far behind its source's highest sequence that nobody knows; it counts as seen. Worth a report."""

_ALL = (1 << WINDOW) - 1
_HEAD = struct.Struct("<BH")
_MARK = struct.Struct("<HqB")
_VERSION = 1


class Marks:
    """The marks of one stream; small, and copied cheaply."""

    __slots__ = ("_sources",)

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._sources: dict[str, tuple[int, int]] = {}

    def look(self, source: str, sequence: int) -> int:
        """NEW, SEEN or BEHIND; nothing changes."""
        mark = self._sources.get(source)
        if mark is None or sequence == UNNUMBERED or sequence > mark[0]:
            return NEW
        age = mark[0] - sequence
        if age >= WINDOW:
            return BEHIND
        return SEEN if mark[1] >> age & 1 else NEW

    def take(self, source: str, sequence: int) -> int:
        """NEW, SEEN or BEHIND; what was new is seen from now on."""
        if sequence == UNNUMBERED:
            return NEW
        mark = self._sources.get(source)
        if mark is None:
            if len(self._sources) >= MOST_SOURCES:
                del self._sources[next(iter(self._sources))]
            self._sources[source] = sequence, 1
            return NEW
        highest, window = mark
        age = highest - sequence
        if age >= WINDOW:
            return BEHIND
        if age >= 0 and window >> age & 1:
            return SEEN
        # Out and in again at the end: the order is that of the last new row, which the journal can tell as well.
        del self._sources[source]
        if age >= 0:
            self._sources[source] = highest, window | 1 << age
        else:
            self._sources[source] = sequence, (window << -age & _ALL | 1 if -age < WINDOW else 1)
        return NEW

    def copy(self) -> Marks:
        """Marks of their own with the same content."""
        other = Marks()
        other._sources = dict(self._sources)
        return other

    @property
    def highest(self) -> dict[str, int]:
        """The highest sequence of each source, the source whose last new row is oldest first."""
        return {source: mark[0] for source, mark in self._sources.items()}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Marks):
            return NotImplemented
        return list(self._sources.items()) == list(other._sources.items())

    __hash__ = None  # type: ignore[assignment]

    def to_bytes(self) -> bytes:
        """At most 140 bytes and the name for each source; `from_bytes` is the inverse."""
        parts = [_HEAD.pack(_VERSION, len(self._sources))]
        for source, (highest, window) in self._sources.items():
            name, bits = source.encode(), window.to_bytes((window.bit_length() + 7) // 8, "little")
            parts += [_MARK.pack(len(name), highest, len(bits)), name, bits]
        body = b"".join(parts)
        return body + zlib.crc32(body).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> Marks:
        """Read what `to_bytes` wrote; b"" is no marks. CorruptError for anything else."""
        marks = cls()
        if not data:
            return marks
        try:
            body = data[:-4]
            if zlib.crc32(body) != int.from_bytes(data[-4:], "little"):
                raise ValueError("its checksum does not match")
            version, count = _HEAD.unpack_from(body)
            if version != _VERSION:
                raise ValueError(f"version {version} is not known")
            at = _HEAD.size
            for _ in range(count):
                length, highest, size = _MARK.unpack_from(body, at)
                at += _MARK.size
                name, bits = body[at : at + length], body[at + length : at + length + size]
                if length > LONGEST_NAME or len(bits) != size or highest < 0:
                    raise ValueError("a source is cut off")
                marks._sources[name.decode()] = highest, int.from_bytes(bits, "little")
                at += length + size
            if at != len(body) or len(marks._sources) != count:
                raise ValueError("its length does not fit")
        except (struct.error, ValueError) as error:
            raise CorruptError(f"marks: {len(data)} bytes are not what was written ({error})") from None
        return marks


class Sifting(NamedTuple):
    """What `sift` found: status [N] (NEW, SEEN, BEHIND), and how to take it back when the append fails."""

    status: NDArray[np.int8]
    undo: Callable[[], None]

    @property
    def fresh(self) -> NDArray[np.bool_]:
        """Which rows [N] are to be appended."""
        return np.equal(self.status, NEW)


def sift(batch: Batch, marks_of: Callable[[str], Marks]) -> Sifting:
    """Mark the rows of a batch in their order, so that a row that comes twice in it is new once.

    marks_of: the live marks of a stream; asked once for each stream. Call `undo` if the rows are not kept after all.
    """
    status = np.zeros(len(batch), np.int8)
    before: list[tuple[Marks, dict[str, tuple[int, int]]]] = []
    live: dict[str, Marks] = {}

    def undo() -> None:
        for marks, sources in before:
            marks._sources = dict(sources)

    numbered = np.flatnonzero(batch.sequences != UNNUMBERED).tolist()
    sequences = batch.sequences.tolist()
    streams, sources = batch.streams, batch.sources
    try:
        for row in numbered:
            stream = streams[row]
            marks = live.get(stream)
            if marks is None:
                marks = live[stream] = marks_of(stream)
                before.append((marks, dict(marks._sources)))
            found = marks.take(sources[row], sequences[row])
            if found:
                status[row] = found
    except BaseException:
        undo()
        raise
    return Sifting(status, undo)
