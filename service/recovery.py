"""From snapshots and journal back to streams: the newest good snapshot of each, and the rows behind it, in order.

`restore` does one stream: it reads its snapshot, and looks through the journal only where the stream has rows behind
it. `recover` does many: it counts their rows, takes as many streams as 262,144 rows belong to, collects these in one
pass over the journal, and goes on with the next streams. So its memory is that of the names and of one such part, and
one more pass for each part is its price. A snapshot that is not what was written is deleted, the ledger says so, and
the older one takes its place. A damaged block of the journal ends in CorruptError, as nobody knows what it held.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from tsgdn2.service.batch import Batch, Ints
from tsgdn2.service.errors import CorruptError
from tsgdn2.service.journal import Block, Columns, Numbers, columns_in, columns_of, heads_of
from tsgdn2.service.ledger import LedgerTables
from tsgdn2.service.marks import Marks
from tsgdn2.service.sql import Row
from tsgdn2.service.store import Fact, LedgerRow, Recovered, Rows, Snapshot

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tsgdn2.store")
PART_ROWS: Final = 262_144
"""Rows that are held at a time while many streams are recovered."""
SNAPSHOT: Final = (
    "SELECT blob, format, fingerprint, marks, written, sha256, imported FROM snapshots WHERE stream = ? AND seq = ?"
)
_PAGE: Final = 32
_BACK_PAGES: Final = 32
_BACK_BODIES: Final = 256
"""Blocks that `newest_rows` looks at: so many pages of heads, so many bodies."""
_NEVER: Final = np.iinfo(np.int64).max


class Entry(NamedTuple):
    """A stream in the tables: number, name, what the journal may lack, the seqs of its snapshots, newest first."""

    number: int
    name: str
    pruned: int
    seqs: tuple[int, ...]

    @property
    def floor(self) -> int:
        """The seq behind which every row may be needed, and is there."""
        return self.seqs[-1] if len(self.seqs) > 1 else self.pruned


class JournalReader(LedgerTables):
    """The part of a store that reads the journal and the snapshots."""

    part_rows: int = PART_ROWS

    @abstractmethod
    def _entries(self, streams: Sequence[str] | None) -> list[Entry]:
        """Streams that this process holds, by number; names that are not known are left out."""

    @abstractmethod
    def _tail(self, number: int) -> int | None:
        """The last seq of a stream, 0 for one without rows; None where it is not known without looking."""

    def rows_after(self, stream: str, seq: int) -> Iterator[Rows]:
        """Rows of a stream behind `seq`, in the order of the journal, block by block."""
        for entry in self._entries([stream]):
            yield from self._rows_of(entry, seq)

    def newest_rows(self, stream: str, limit: int) -> list[Rows]:
        """The last rows of a stream, oldest first, as far as they are in the last blocks; see `Store`."""
        found, at, bodies = list[Rows](), int(_NEVER), 0
        sql = f"SELECT first, last, streams FROM journal WHERE first < ? ORDER BY first DESC LIMIT {_PAGE}"
        for entry in self._entries([stream]):
            for _ in range(_BACK_PAGES):
                page = self._read(sql, (at,))
                for first, last, streams in page:
                    at = first
                    if limit <= 0 or bodies >= _BACK_BODIES:
                        return found[::-1]
                    if (heads_of(first, last, bytes(streams))[1] == entry.number).any():
                        bodies += 1
                        seqs, numbers, columns = self._block(first, last)
                        rows = np.flatnonzero(numbers == entry.number)[-limit:]
                        limit -= len(rows)
                        found.append(Rows(seqs[rows], columns.take(rows).batch((entry.name,) * len(rows))))
                if len(page) < _PAGE:
                    break
        return found[::-1]

    def restore(self, stream: str) -> Recovered | None:
        """One stream; None for one that is not known. Quick for a stream without rows behind its snapshot."""
        for entry in self._entries([stream]):
            if self._empty(entry):
                return None
            snapshot, damage = self._newest(entry)
            after = entry.pruned if snapshot is None else snapshot.seq
            return Recovered(stream, snapshot, self._rows_of(entry, after), damage)
        return None

    def recover(self, streams: Sequence[str] | None = None) -> Iterator[Recovered]:
        """Many streams in few passes over the journal, in the order in which they first came; None is all it holds."""
        entries = self._entries(streams)
        floors = floors_of(entries)
        counts = np.zeros(len(floors), np.int64)
        for _, _, seqs, numbers in self._heads(_lowest(entries)):
            counts += np.bincount(numbers[_behind(seqs, numbers, floors)], minlength=len(floors))
        part: list[Entry] = []
        held = 0
        for entry in entries:
            rows = int(counts[entry.number])
            if not rows and self._empty(entry):
                continue
            if part and held + rows > self.part_rows:
                yield from self._together(part)
                part, held = [], 0
            part.append(entry)
            held += rows
        yield from self._together(part)

    def marks(self, stream: str) -> Marks:
        """Marks of a stream as of its last row."""
        for entry in self._entries([stream]):
            marks, after = self._marks_of(entry)
            for rows in self._rows_of(entry, after):
                take_all(marks, rows.batch)
            return marks
        return Marks()

    def _empty(self, entry: Entry) -> bool:
        """Whether a stream has a name and nothing else."""
        return not entry.seqs and not entry.pruned and self._tail(entry.number) == 0

    def _marks_of(self, entry: Entry) -> tuple[Marks, int]:
        """The newest good marks of a stream's snapshots, and the seq that they are of."""
        sql = "SELECT seq, marks FROM snapshots WHERE stream = ? ORDER BY seq DESC"
        for seq, data in self._read(sql, (entry.number,)):
            try:
                return Marks.from_bytes(bytes(data)), int(seq)
            except CorruptError:
                continue  # whoever restores the stream writes it into the ledger
        return Marks(), entry.pruned

    def _newest(self, entry: Entry) -> tuple[Snapshot | None, str]:
        """The newest snapshot that is what was written, and what is lost where there is none but was one."""
        for seq in entry.seqs:
            found = self._read(SNAPSHOT, (entry.number, seq))
            if not found:  # forgotten since the entry was read
                continue
            snapshot = snapshot_of(entry.name, seq, found[0])
            if snapshot.whole:
                return snapshot, ""
            facts: dict[str, Fact] = {
                "what": "snapshot",
                "seq": seq,
                "remedy": "an older snapshot, or the journal, takes its place",
            }
            with self._transaction() as transaction:
                transaction.run("DELETE FROM snapshots WHERE stream = ? AND seq = ?", (entry.number, seq))
                self._note(transaction, [LedgerRow(kind="corrupt", stream=entry.name, facts=facts)])
            log.warning("store.snapshot_corrupt", stream=entry.name, seq=seq, remedy=facts["remedy"])
        if entry.pruned == 0:
            return None, ""
        return None, (
            f"stream: no snapshot of {entry.name!r} is what was written, and the journal begins behind row "
            f"{entry.pruned}; restore a backup, or delete the stream and begin anew"
        )

    def _rows_of(self, entry: Entry, seq: int) -> Iterator[Rows]:
        tail = self._tail(entry.number)
        if tail is not None and tail <= seq:
            return
        for first, last, seqs, numbers in self._heads(seq):
            if (numbers == entry.number)[seqs > seq].any():
                seqs, numbers, columns = self._block(first, last)
                rows = np.flatnonzero((numbers == entry.number) & (seqs > seq))
                if len(rows):
                    yield Rows(seqs[rows], columns.take(rows).batch((entry.name,) * len(rows)))

    def _together(self, entries: Sequence[Entry]) -> Iterator[Recovered]:
        """Streams whose rows fit into memory; one that is too long for it comes alone, and block by block."""
        gathered = Gathered()
        if len(entries) > 1:
            floors = floors_of(entries)
            for first, last, seqs, numbers in self._heads(_lowest(entries)):
                if _behind(seqs, numbers, floors).any():
                    seqs, numbers, columns = self._block(first, last)
                    rows = np.flatnonzero(_behind(seqs, numbers, floors))
                    gathered.add(seqs[rows], numbers[rows], columns.take(rows))
            gathered.sort()
        for entry in entries:
            snapshot, damage = self._newest(entry)
            after = entry.pruned if snapshot is None else snapshot.seq
            rows_behind = gathered.rows_of(entry, after) if len(entries) > 1 else self._rows_of(entry, after)
            yield Recovered(entry.name, snapshot, rows_behind, damage)

    def _heads(self, after: int) -> Iterator[tuple[int, int, Ints, Numbers]]:
        """first, last, seqs, numbers of each block that may hold rows behind `after`, oldest first."""
        found = self._read("SELECT MAX(first) FROM journal WHERE first <= ?", (after,))
        at = found[0][0] or 0
        while True:
            sql = f"SELECT first, last, streams FROM journal WHERE first >= ? ORDER BY first LIMIT {_PAGE}"
            page = self._read(sql, (at,))
            for first, last, streams in page:
                if last > after:
                    yield first, last, *heads_of(first, last, bytes(streams))
                at = first + 1
            if len(page) < _PAGE:
                return

    def _block(self, first: int, last: int) -> tuple[Ints, Numbers, Columns]:
        """seqs, numbers and columns of one block, read together: another process may have thinned it since."""
        for streams, body in self._read("SELECT streams, body FROM journal WHERE first = ?", (first,)):
            block = Block(first, last, bytes(streams), bytes(body))
            columns = columns_in(block)
            if len(columns.times) and columns.values.shape[1] != len(self._needs_model().channels):
                raise CorruptError(
                    f"journal: rows {first} to {last} have {columns.values.shape[1]} channels, the model has "
                    f"{len(self._needs_model().channels)}; restore a backup"
                )
            return *heads_of(first, last, block.streams), columns
        none = columns_of(Batch.of([], np.empty(0, np.int64), np.empty((0, len(self._needs_model().channels)))))
        return np.empty(0, np.int64), np.empty(0, np.int32), none


class Gathered:
    """Rows of several blocks, sorted by the number of their stream and then by seq."""

    def __init__(self) -> None:
        """No row yet."""
        self._parts: list[tuple[Ints, Numbers, Columns]] = []
        self._codes = {"": 0}
        self._seqs = np.empty(0, np.int64)
        self._numbers = np.empty(0, np.int32)
        self._columns: Columns | None = None

    def add(self, seqs: Ints, numbers: Numbers, columns: Columns) -> None:
        """Rows of one block, behind those of the blocks before it."""
        codes = np.array([self._codes.setdefault(name, len(self._codes)) for name in columns.names], np.uint32)
        self._parts.append((seqs, numbers, columns._replace(codes=codes[columns.codes], names=())))

    def sort(self) -> None:
        """Make them ready for `rows_of`."""
        if not self._parts:
            return
        seqs, numbers, columns = zip(*self._parts, strict=True)
        self._parts = []
        joined = np.concatenate(numbers)
        order = np.argsort(joined, kind="stable")
        self._seqs, self._numbers = np.concatenate(seqs)[order], joined[order]
        self._columns = Columns(
            np.concatenate([part.times for part in columns])[order],
            np.concatenate([part.values for part in columns])[order],
            np.concatenate([part.sequences for part in columns])[order],
            np.concatenate([part.codes for part in columns])[order],
            tuple(self._codes),
        )

    def rows_of(self, entry: Entry, after: int) -> Iterator[Rows]:
        """Rows of a stream behind `after`, all in one."""
        start, stop = np.searchsorted(self._numbers, [entry.number, entry.number + 1]).tolist()
        start += int(np.searchsorted(self._seqs[start:stop], after, side="right"))
        if self._columns is not None and start < stop:
            rows = self._columns.take(np.arange(start, stop))
            yield Rows(self._seqs[start:stop], rows.batch((entry.name,) * (stop - start)))


def entries_of(rows: Sequence[Row]) -> Iterator[Entry]:
    """Entries from (number, name, pruned, seq or None), ordered by number and falling seq."""
    at = 0
    while at < len(rows):
        number, name, pruned, _ = rows[at]
        stop = at
        while stop < len(rows) and rows[stop][0] == number:
            stop += 1
        yield Entry(number, name, pruned, tuple(row[3] for row in rows[at:stop] if row[3] is not None))
        at = stop


def floors_of(entries: Sequence[Entry]) -> Ints:
    """The floor of each stream by its number; of numbers that are not among the entries, one above every seq."""
    floors = np.full(max((entry.number for entry in entries), default=0) + 1, _NEVER, np.int64)
    for entry in entries:
        floors[entry.number] = entry.floor
    return floors


def take_all(marks: Marks, batch: Batch) -> None:
    """Mark every row of a batch of one stream."""
    for source, sequence in zip(batch.sources, batch.sequences.tolist(), strict=True):
        marks.take(source, sequence)


def snapshot_of(stream: str, seq: int, row: Row) -> Snapshot:
    """What the statement SNAPSHOT gave."""
    blob, schema, fingerprint, marks, written, sha256, imported = row
    return Snapshot(
        stream=stream, seq=seq, blob=bytes(blob), schema=schema, fingerprint=fingerprint, marks=bytes(marks),
        written=written, sha256=sha256, imported=bool(imported),
    )  # fmt: skip


def _lowest(entries: Sequence[Entry]) -> int:
    return min((entry.floor for entry in entries), default=int(_NEVER))


def _behind(seqs: Ints, numbers: Numbers, floors: Ints) -> NDArray[np.bool_]:
    """Which rows [N] lie behind the floor of their stream."""
    inside = numbers < len(floors)
    return np.greater(seqs, np.where(inside, floors[np.where(inside, numbers, 0)], _NEVER))
