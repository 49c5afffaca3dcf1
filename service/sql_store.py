"""What both stores do alike: append, snapshot, forget, prune, repair; SQLite and PostgreSQL add how they are opened.

    append     names of new streams -> one block for each 65,536 rows -> ledger rows and cursors -> commit
    prune      floor of a stream = the older of its two snapshots; rows up to it go, and rows of forgotten streams;
               a block goes whole, or is written anew where at most half of it is left

A stream is a small number in the journal; its number is never given to another one, so what is left of a deleted
stream can not come back under its name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tsgdn2.errors import SchemaError
from tsgdn2.service.batch import Batch, Ints
from tsgdn2.service.errors import CorruptError, StoreError
from tsgdn2.service.journal import MOST_ROWS, Block, Numbers, block_of, columns_in, columns_of, heads_of, thinned
from tsgdn2.service.ledger import json_of
from tsgdn2.service.recovery import SNAPSHOT, JournalReader, snapshot_of
from tsgdn2.service.sql import Transaction
from tsgdn2.service.store import Fact, LedgerRow, Pruned, Snapshot

Mask: TypeAlias = NDArray[np.bool_]

MOST_APPENDED: Final = 1 << 20
"""Rows of one append."""
MOST_REWRITTEN: Final = 64
"""Blocks that one pruning writes anew; the next one goes on."""


class SqlStore(JournalReader):
    """Journal and snapshots over a database."""

    @abstractmethod
    def _numbers(self, transaction: Transaction, names: Sequence[str]) -> dict[str, int]:
        """Numbers of streams that this process may write, made where they are new. StoreError for another's."""

    @abstractmethod
    def _first(self, transaction: Transaction, rows: int) -> int:
        """The first of `rows` seqs that nobody else has, above every one that a stream held here ever got."""

    @abstractmethod
    def _kept(self, numbers: Mapping[str, int], written: Numbers, first: int) -> None:
        """Rows first, first + 1, .. of these streams are committed."""

    @abstractmethod
    def _forgotten(self, numbers: Mapping[str, int]) -> None:
        """These streams are gone."""

    @property
    @abstractmethod
    def last(self) -> int:
        """The highest `seq` that this process gave out or found; 0 before the first."""

    def append(
        self, batch: Batch, *, ledger: Sequence[LedgerRow] = (), cursors: Mapping[str, int] | None = None
    ) -> int:
        """Keep a batch, and ledger rows and cursors with it; row i gets the number returned + i.

        One transaction and one wait for the disk, whatever the number of rows; at most 1,048,576 of them.
        """
        channels, rows = self._needs_model().channels, len(batch)
        if not 0 < rows <= MOST_APPENDED:
            raise SchemaError(f"batch: must hold 1 to {MOST_APPENDED} rows, got {rows}; split it with `parts`")
        if batch.channels != len(channels):
            raise SchemaError(f"batch: must have the model's channels {list(channels)}, got {batch.channels} columns")
        with self._transaction() as transaction:
            numbers = self._numbers(transaction, batch.streams)
            written = np.array([numbers[name] for name in batch.streams], np.int32)
            first = self._first(transaction, rows)
            columns = columns_of(batch)
            for start in range(0, rows, MOST_ROWS):
                at = np.arange(start, min(start + MOST_ROWS, rows))
                part = columns if rows <= MOST_ROWS else columns.take(at)
                span = first + start, first + int(at[-1])
                block = block_of(first + at, written[at], part, span)
                transaction.run("INSERT INTO journal (first, last, streams, body) VALUES (?, ?, ?, ?)", block)
            self._extras(transaction, ledger, cursors)
        self._kept(numbers, written, first)
        return first

    def snapshot(
        self,
        snapshots: Sequence[Snapshot],
        *,
        ledger: Sequence[LedgerRow] = (),
        cursors: Mapping[str, int] | None = None,
    ) -> None:
        """Keep snapshots; of each stream the two of the highest `seq` stay."""
        model = self._needs_model()
        for snapshot in snapshots:
            if not 0 <= snapshot.seq <= self.last:
                raise StoreError(
                    f"snapshot: {snapshot.stream!r} is said to be at row {snapshot.seq}, the journal is at {self.last}"
                )
            if snapshot.fingerprint != model.fingerprint:
                raise StoreError(
                    f"snapshot: {snapshot.stream!r} is of the model {snapshot.fingerprint[:12]}, "
                    f"the store of {model.fingerprint[:12]}; states do not move between models"
                )
        with self._transaction() as transaction:
            numbers = self._numbers(transaction, [snapshot.stream for snapshot in snapshots])
            for snapshot in snapshots:
                number = numbers[snapshot.stream]
                if snapshot.imported:
                    transaction.run("DELETE FROM snapshots WHERE stream = ?", (number,))
                    transaction.run("UPDATE streams SET pruned = ? WHERE id = ?", (snapshot.seq, number))
                transaction.run("DELETE FROM snapshots WHERE stream = ? AND seq = ?", (number, snapshot.seq))
                transaction.run(
                    "INSERT INTO snapshots (stream, seq, format, fingerprint, written, sha256, imported, marks, blob) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (number, snapshot.seq, snapshot.schema, snapshot.fingerprint, snapshot.written, snapshot.sha256,
                     int(snapshot.imported), snapshot.marks, snapshot.blob),
                )  # fmt: skip
                transaction.run(
                    "DELETE FROM snapshots WHERE stream = ? AND seq < (SELECT MIN(seq) FROM (SELECT seq FROM snapshots "
                    "WHERE stream = ? ORDER BY seq DESC LIMIT 2) AS newest)",
                    (number, number),
                )
            self._extras(transaction, ledger, cursors)
        self._kept(numbers, np.empty(0, np.int32), 0)

    def streams(self, after: str = "", limit: int = 1000) -> list[str]:
        """Names of the streams kept, sorted by their bytes, from behind `after` on."""
        found = self._read("SELECT name FROM streams WHERE name > ? ORDER BY name LIMIT ?", (after, max(limit, 0)))
        return [row[0] for row in found]

    def forget(self, streams: Sequence[str], *, ledger: Sequence[LedgerRow] = ()) -> None:
        """Delete streams with their snapshots, and keep ledger rows with that, in one transaction.

        Their rows are never read again, and leave with the next `prune`.
        """
        gone = {entry.name: entry.number for entry in self._entries(streams)}
        if not gone and not ledger:
            return
        with self._transaction() as transaction:
            for number in gone.values():
                transaction.run("DELETE FROM snapshots WHERE stream = ?", (number,))
                transaction.run("DELETE FROM streams WHERE id = ?", (number,))
                transaction.run("INSERT INTO gone (id) VALUES (?)", (number,))
            self._extras(transaction, ledger, None)
        self._forgotten(gone)

    def prune(self) -> Pruned:
        """Take out the rows that the older of their stream's two snapshots holds, and those of forgotten streams.

        Also writes the blocks anew that are mostly empty, 64 at a time; what is left then is for the next call.
        """
        tally = np.zeros(3, np.int64)  # removed, held, written anew
        with self._transaction() as transaction:
            self._hold(transaction, "prune")
            transaction.run(
                "UPDATE streams SET pruned = (SELECT MIN(seq) FROM snapshots WHERE stream = streams.id) WHERE id IN "
                "(SELECT stream FROM snapshots GROUP BY stream HAVING COUNT(*) > 1) AND pruned < "
                "(SELECT MIN(seq) FROM snapshots WHERE stream = streams.id)"
            )
            gone = [row[0] for row in transaction.rows("SELECT id FROM gone")]
            found = transaction.rows("SELECT id, pruned FROM streams")
            # A number that is not known here is that of a stream that another process has just made: all of it stays.
            floors = np.full(max([*gone, *(row[0] for row in found)], default=0) + 2, -1, np.int64)
            floors[gone] = np.iinfo(np.int64).max
            floors[[row[0] for row in found]] = [row[1] for row in found]
            newest = transaction.rows("SELECT MAX(first) FROM journal")[0][0]
            for first, last, data in self._pages(transaction):
                seqs, numbers = heads_of(first, last, data)
                floor = floors[np.minimum(numbers, len(floors) - 1)]
                live = seqs > floor
                deleted = bool((floor == np.iinfo(np.int64).max).any())
                tally += self._thin(transaction, Block(first, last, data, b""), live, deleted, first == newest, tally)
            if tally[2] < MOST_REWRITTEN:
                transaction.many("DELETE FROM gone WHERE id = ?", [(number,) for number in gone])
        return Pruned(int(tally[0]), int(tally[1]))

    def _thin(
        self, transaction: Transaction, block: Block, live: Mask, deleted: bool, newest: bool, tally: Ints
    ) -> tuple[int, int, int]:
        """Delete a block, write it anew or leave it; gives rows removed, rows held, blocks written."""
        rows, count = len(live), int(live.sum())
        if not count and not newest:
            transaction.run("DELETE FROM journal WHERE first = ?", (block.first,))
            return rows, 0, 0
        # The newest block stays, if only empty, so that no seq is ever given twice.
        worth = count < rows and (deleted or 2 * count <= rows)
        if not worth or tally[2] >= MOST_REWRITTEN:
            return 0, rows, 0
        body = transaction.rows("SELECT body FROM journal WHERE first = ?", (block.first,))[0][0]
        self._rewrite(transaction, thinned(block._replace(body=bytes(body)), live))
        return rows - count, count, 1

    def repair(self) -> list[str]:
        """Take out what is damaged, after a CorruptError and a copy of the store; says what was lost.

        Reads everything, and tells the ledger. Rows are lost with their block: a source that sends them again is heard.
        """
        lost: list[LedgerRow] = []
        with self._transaction() as transaction:
            self._hold(transaction, "prune")
            for first, last, data in self._pages(transaction):
                body = bytes(transaction.rows("SELECT body FROM journal WHERE first = ?", (first,))[0][0])
                try:
                    heads_of(first, last, data)
                    columns_in(Block(first, last, data, body))
                except CorruptError:
                    empty = np.empty(0, np.int64)
                    none = columns_of(Batch.of([], empty, np.empty((0, 1))))
                    self._rewrite(transaction, block_of(empty, empty.astype(np.int32), none, (first, last)))
                    facts: dict[str, Fact] = {"what": "journal", "first": first, "last": last}
                    facts["remedy"] = "its rows are lost; have the sources send them again"
                    lost.append(LedgerRow(kind="corrupt", facts=facts))
            for name, number, seq in transaction.rows(
                "SELECT name, id, seq FROM snapshots JOIN streams ON streams.id = snapshots.stream ORDER BY id, seq"
            ):
                snapshot = snapshot_of(name, seq, transaction.rows(SNAPSHOT, (number, seq))[0])
                if not snapshot.whole:
                    transaction.run("DELETE FROM snapshots WHERE stream = ? AND seq = ?", (number, seq))
                    lost.append(LedgerRow(kind="corrupt", stream=name, facts={"what": "snapshot", "seq": seq}))
            self._extras(transaction, lost, None)
        return [f"{row.stream or 'all streams'}: {json_of(row.facts)}" for row in lost]

    def _rewrite(self, transaction: Transaction, block: Block) -> None:
        sql = "UPDATE journal SET streams = ?, body = ? WHERE first = ?"
        transaction.run(sql, (block.streams, block.body, block.first))

    def _pages(self, transaction: Transaction) -> Iterator[tuple[int, int, bytes]]:
        """first, last and stream numbers of every block, oldest first."""
        at = -1
        while page := transaction.rows(
            "SELECT first, last, streams FROM journal WHERE first > ? ORDER BY first LIMIT 32", (at,)
        ):
            for first, last, data in page:
                at = first
                yield first, last, bytes(data)
