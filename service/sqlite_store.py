"""The default store: one SQLite file, one process, nothing to set up.

An append costs one write and one fsync of the log, whatever the number of rows, and a small write without one to the
tail: so a log that something cut off is not taken for one that never was longer. The numbers of rows follow one another
without a gap. For several processes there is the PostgreSQL store; what both do is in sql_store.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import structlog

from tsgdn2.service.errors import StoreError
from tsgdn2.service.journal import Numbers
from tsgdn2.service.recovery import Entry, entries_of
from tsgdn2.service.schema import SQLITE, bring_up
from tsgdn2.service.sql import Row, Transaction, lists
from tsgdn2.service.sql_store import SqlStore
from tsgdn2.service.sqlite_file import SqliteFile
from tsgdn2.service.sqlite_tail import Tail
from tsgdn2.service.store import Fact, LedgerRow, Model

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tsgdn2.store")
_MOST_NAMES = 1_000_000


class SqliteStore(SqlStore):
    """A store in one file.

    Args:
        path: The file; it, its log, its lock and its tail (path-wal, path-shm, path.lock, path.tail) belong to the
            store.
        most_log: Bytes that the log may have before a writer waits for it to be moved into the file.
    """

    def __init__(self, path: Path, *, most_log: int = 64 << 20) -> None:
        """Touch nothing yet."""
        self.path, self._most_log = path, most_log
        self._file: SqliteFile | None = None
        self._tail_file = Tail(path)
        self._last = 0
        self._names: dict[str, int] = {}
        self._tails = np.zeros(0, np.int64)

    def open(self, model: Model | None = None) -> None:
        """Open, making what is not there; see `Store`."""
        if self._file is not None:
            raise StoreError(f"store: {self.path} is open already")

        def prepare(transaction: Transaction) -> None:
            bring_up(transaction, SQLITE, place=str(self.path))
            self._belongs(transaction, model)

        made = not self.path.exists()
        self._file = SqliteFile(self.path, prepare, most_log=self._most_log)
        self._model = model
        try:
            self._find_ends()
            if model is not None:
                self._compare_tail(0 if made else self._tail_file.read())
            elif made:
                self._tail_file.put(0)  # there may be one of a file that was moved away
        except BaseException:
            self.close()
            raise
        if self._file.unclean:
            self.record([LedgerRow(kind="reopened", facts={"what": "the last end was unclean", "last": self._last})])

    def close(self) -> None:
        """Leave it in order; harmless when it is not open."""
        file, self._file, self._model = self._file, None, None
        if file is not None:
            self._names, self._tails = {}, np.zeros(0, np.int64)
            self._tail_file.close()
            file.close()

    @property
    def last(self) -> int:
        """The highest `seq` given out; 0 before the first."""
        return self._last

    def claim(self, streams: Sequence[str]) -> dict[str, str]:  # noqa: ARG002
        """Every stream of the file is this process's own."""
        return {}

    def release(self, streams: Sequence[str]) -> None:
        """Nobody else could take them."""

    def renew(self) -> None:
        """The lock of the file needs no renewal."""

    def _find_ends(self) -> None:
        """Where the journal ends, and where each stream does: one pass over the numbers of its rows."""
        top = self._read("SELECT MAX(id) FROM streams")[0][0] or 0
        self._tails = np.zeros(top + 1, np.int64)
        last = self._read("SELECT MAX(last) FROM journal")[0][0] or 0
        covered = self._read("SELECT MAX(seq) FROM snapshots")[0][0] or 0
        self._last = max(last, covered)
        if self._model is None:
            return  # ledger and keys alone: a damaged block is no reason not to see them
        for _, _, seqs, numbers in self._heads(0):
            inside = numbers <= top
            self._tails[numbers[inside]] = seqs[inside]  # of rows of one stream the last one stays

    def _compare_tail(self, told: int) -> None:
        """Say so where rows are gone that were there: a log that was cut off or deleted, an older copy of the file."""
        if missing := max(told - self._last, 0):
            facts: dict[str, Fact] = {"what": "log", "last": self._last, "missing": missing}
            facts["remedy"] = "the last rows are lost: bring file and log back, or have the sources send them again"
            self.record([LedgerRow(kind="corrupt", facts=facts)])
            log.error("store.rows_missing", path=str(self.path), **facts)
        self._tail_file.put(self._last)

    def _transaction(self) -> AbstractContextManager[Transaction]:
        return self._opened().transaction()

    def _read(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        return self._opened().rows(sql, values)

    def _opened(self) -> SqliteFile:
        if self._file is None:
            raise StoreError(f"store: {self.path} is not open; call `open` first")
        return self._file

    def _entries(self, streams: Sequence[str] | None) -> list[Entry]:
        sql = "SELECT id, name, pruned, seq FROM streams LEFT JOIN snapshots ON stream = id"
        if streams is None:
            found = self._read(f"{sql} ORDER BY id, seq DESC")
        else:
            names = lists(list(dict.fromkeys(streams)))
            found = [row for marks, part in names for row in self._read(f"{sql} WHERE name IN {marks}", part)]
            found.sort(key=lambda row: (row[0], -(row[3] or 0)))
        return list(entries_of(found))

    def _tail(self, number: int) -> int | None:
        return int(self._tails[number]) if number < len(self._tails) else 0

    def _numbers(self, transaction: Transaction, names: Sequence[str]) -> dict[str, int]:
        wanted = dict.fromkeys(names)
        numbers = {name: number for name in wanted if (number := self._names.get(name)) is not None}
        for marks, part in lists([name for name in wanted if name not in numbers]):
            numbers |= dict(transaction.rows(f"SELECT name, id FROM streams WHERE name IN {marks}", part))
        fresh = [name for name in wanted if name not in numbers]
        transaction.many("INSERT INTO streams (name) VALUES (?)", [(name,) for name in fresh])
        for marks, part in lists(fresh):
            numbers |= dict(transaction.rows(f"SELECT name, id FROM streams WHERE name IN {marks}", part))
        return numbers

    def _first(self, transaction: Transaction, rows: int) -> int:  # noqa: ARG002
        return self._last + 1

    def _kept(self, numbers: Mapping[str, int], written: Numbers, first: int) -> None:
        if len(self._names) > _MOST_NAMES:
            self._names = {}
        self._names.update(numbers)
        top = max(numbers.values(), default=0)
        if top >= len(self._tails):
            self._tails = np.concatenate([self._tails, np.zeros(top + 1, np.int64)])
        if len(written):
            self._tails[written] = np.arange(first, first + len(written))
            self._last = first + len(written) - 1
            self._tail_file.put(self._last)

    def _forgotten(self, numbers: Mapping[str, int]) -> None:
        for name in numbers:
            self._names.pop(name, None)
