"""One SQLite file that one process may write: made whole, checked when it is opened, its log moved in by a thread.

    made      beside its place, and renamed: so an empty or half-written file is never one of ours
    checked   a lock, the first bytes, the application's number, `quick_check` where it is cheap or the end was unclean
    log       WAL, synchronous=FULL: a commit is one write and one fsync; a thread of its own moves the log into the
              file (PASSIVE, which no writer waits for), and only beyond `most_log` bytes the writer does the rest

The thread's price is a second reader of the disk while rows come in; the writer's share of the work is what came in
since the thread's last pass.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from tsgdn2.service.errors import CorruptError, StoreError
from tsgdn2.service.sql import Row, Transaction

APPLICATION: Final = 0x74736764
"""SQLite's application_id of our files: "tsgd"."""
CHEAP: Final = 256 << 20
"""Bytes of a file up to which it is checked at every opening."""
BEARABLE: Final = 4 << 30
"""Bytes up to which it is checked after an unclean end; blocks and snapshots have checksums of their own."""
_PAGE: Final = 8192
_PASS: Final = 4 << 20
_WAIT_MS: Final = 10_000
_MAGIC: Final = b"SQLite format 3\x00"


class SqliteTransaction:
    """Statements on one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """The connection is inside a transaction."""
        self._connection = connection
        self.size = 0
        """Bytes of the blobs that went in."""

    def run(self, sql: str, values: Sequence[object] = ()) -> int:
        """Run one statement; gives how many rows it changed."""
        self.size += sum(len(value) for value in values if isinstance(value, bytes))
        return self._connection.execute(sql, tuple(values)).rowcount

    def many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement with each of these values."""
        self._connection.executemany(sql, (tuple(row) for row in rows))

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """What a statement gives."""
        return self._connection.execute(sql, tuple(values)).fetchall()


class SqliteFile:
    """The file, its lock, a connection that writes, one that reads, and the thread of its log."""

    def __init__(self, path: Path, prepare: Callable[[Transaction], None], *, most_log: int) -> None:
        """Open it, or make it; `prepare` brings its tables up, in one transaction.

        Raises:
            StoreError: Another process has it, it is not ours, or the place can not be written.
            CorruptError: It is not what was written.
        """
        self.path, self.most_log = path, most_log
        self._log_path = f"{path}-wal"
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), thread_local=False)
        self._writing, self._reading, self._moving = threading.RLock(), threading.RLock(), threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        self._stop, self._due, self._owed = False, threading.Event(), 0
        self._mover = threading.Thread(target=self._move, name="log", daemon=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"path: {path} is in use by another process; stop that one, or give this one a file of its own "
                "(several processes share a PostgreSQL store)"
            ) from None
        except OSError as error:
            raise StoreError(f"path: {path} can not be made or written ({error}); choose another folder") from None
        try:
            self._open(prepare)
        except BaseException:
            self._drop()
            raise

    def _open(self, prepare: Callable[[Transaction], None]) -> None:
        with self._explained():
            if not self.path.exists():
                self._make(prepare)
            self._inspect()
            self._write, self._read, self._log = (self._connect(self.path) for _ in range(3))
            if self._write.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
                raise StoreError(
                    f"path: {self.path} is a database of another program; give the service a file of its own"
                )
            found = self._write.execute("SELECT value FROM meta WHERE name = 'clean'").fetchall()
            self.unclean = found != [("1",)]
            if self.path.stat().st_size <= (BEARABLE if self.unclean else CHEAP):
                self.check()
            self._read.execute("PRAGMA query_only=ON")
        with self.transaction() as transaction:
            prepare(transaction)
            self._mark(transaction, clean=False)
        self._mover.start()

    def _make(self, prepare: Callable[[Transaction], None]) -> None:
        """A file with tables and nothing in them, whole before it has its name."""
        if os.path.exists(self._log_path) and os.path.getsize(self._log_path):
            raise CorruptError(
                f"path: {self.path} is gone but its log {self._log_path} is there; bring the file back, or move "
                "the log away to begin anew"
            )
        draft = self.path.with_name(f"{self.path.name}.new")
        for left in (draft, draft.with_name(f"{draft.name}-wal"), draft.with_name(f"{draft.name}-shm")):
            left.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_CREAT | os.O_WRONLY, 0o600))  # it holds hashes of keys
        connection = self._connect(draft)
        connection.execute(f"PRAGMA application_id={APPLICATION}")
        connection.execute("BEGIN IMMEDIATE")
        transaction = SqliteTransaction(connection)
        prepare(transaction)
        self._mark(transaction, clean=True)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connections.remove(connection)
        connection.close()
        draft.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _inspect(self) -> None:
        """What can be said of the file before SQLite has seen it."""
        with self.path.open("rb") as file:
            head = file.read(len(_MAGIC))
        if head != _MAGIC:
            found = "empty" if not head else "no database"
            raise CorruptError(
                f"path: {self.path} is {found}: it was cut off, overwritten, or never a store; restore a backup, or "
                "move it away to begin anew"
            )

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_WAIT_MS / 1000)
        self._connections.append(connection)
        for setting in (
            f"page_size={_PAGE}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "wal_autocheckpoint=0",
            f"journal_size_limit={self.most_log}",
            "trusted_schema=OFF",
        ):
            connection.execute(f"PRAGMA {setting}").fetchall()
        return connection

    def check(self) -> None:
        """CorruptError unless the pages of the file fit together."""
        with self._explained():
            found = self._write.execute("PRAGMA quick_check(3)").fetchall()
        if found != [("ok",)]:
            raise CorruptError(f"path: {self._damaged('; '.join(str(row[0]) for row in found))}")

    @contextmanager
    def transaction(self) -> Iterator[SqliteTransaction]:
        """One transaction of the writer, durable at its end."""
        with self._writing, self._explained():
            connection = self._open_one(self._write)
            connection.execute("BEGIN IMMEDIATE")
            transaction = SqliteTransaction(connection)
            try:
                yield transaction
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self._owed += transaction.size + _PAGE
            if self._owed >= min(_PASS, self.most_log):
                self._owed = 0
                self._due.set()
            self._bound()

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """What a statement outside a transaction gives."""
        with self._reading, self._explained():
            return self._open_one(self._read).execute(sql, tuple(values)).fetchall()

    def _open_one(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        if not self._connections:
            raise StoreError(f"store: {self.path} is closed; open it first")
        return connection

    def _bound(self) -> None:
        """Begin the log anew where it has grown too long. What was committed stays so, whatever becomes of this."""
        with suppress(sqlite3.Error, OSError):  # a full disk is told to whoever writes next
            if os.stat(self._log_path).st_size <= self.most_log:
                return
            with self._moving:
                self._write.execute("PRAGMA busy_timeout=0")  # a reader that stays, a backup say, holds nothing up
                try:
                    self._write.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                finally:
                    self._write.execute(f"PRAGMA busy_timeout={_WAIT_MS}")

    def _move(self) -> None:
        """The thread: move the log into the file whenever enough of it is there."""
        while self._due.wait() and not self._stop:
            self._due.clear()
            with self._moving, suppress(sqlite3.Error):  # the rows are safe in the log; the next pass tries again
                self._log.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        """Say that the end is a clean one, move the log in, free the lock; harmless a second time.

        On a full disk the log stays as it is, with every row in it, and the next opening finds the end an unclean one.
        """
        if not self._connections:
            return
        try:
            with suppress(StoreError), self.transaction() as transaction:
                self._mark(transaction, clean=True)
            with self._moving, suppress(sqlite3.Error):
                self._write.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            self._drop()

    def _drop(self) -> None:
        self._stop = True
        self._due.set()
        if self._mover.is_alive():
            self._mover.join()
        with self._writing, self._reading:
            for connection in self._connections:
                connection.close()
            self._connections = []
        self._lock.release()

    def _mark(self, transaction: Transaction, *, clean: bool) -> None:
        transaction.run(
            "INSERT INTO meta (name, value) VALUES ('clean', ?) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (str(int(clean)),),
        )

    def _damaged(self, what: str) -> str:
        return (
            f"{self.path} is damaged ({what}); restore a backup, or save what can be read with "
            f"`sqlite3 {self.path.name} .recover | sqlite3 new.db` and look at it with `repair`"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """StoreError or CorruptError in the place of SQLite's own errors."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            # A changed number of the file's format is an error of no code of its own.
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "unsupported file format" in str(error):
                raise CorruptError(f"path: {self._damaged(str(error))}") from error
            reason = REASONS.get(code, "nothing of this call was kept; try again, and look at the disk if it persists")
            raise StoreError(f"store: {self.path} refused ({error}): {reason}") from error
        except OSError as error:
            raise StoreError(
                f"store: {self.path} can not be used ({error}); look at the disk and its rights"
            ) from error


REASONS: Final = {
    sqlite3.SQLITE_FULL: "the disk is full; nothing of this call was kept, make room and send it again",
    sqlite3.SQLITE_IOERR: "the disk failed or is full; nothing of this call was kept, make room and send it again",
    sqlite3.SQLITE_BUSY: "another program holds it; close that one, nothing of this call was kept",
    sqlite3.SQLITE_READONLY: "it may only be read; give this process the right to write the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "it can not be opened; look at the rights of the file and its folder",
}
"""What to do, by SQLite's code."""
