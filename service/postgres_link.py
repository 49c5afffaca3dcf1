"""One connection to PostgreSQL that comes back by itself, and knows what became of what it committed.

broken before COMMIT   nothing was kept: StoreError, and the next call connects anew
broken within COMMIT   the new connection waits for the old one's transaction, then asks the server for its outcome
no new connection      the outcome is not known: every further call is refused until the store is opened again
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg import errors

from tsgdn2.service.errors import CorruptError, StoreError
from tsgdn2.service.sql import Row

_CONNECT_S: Final = 5


class PostgresTransaction:
    """Statements on one connection."""

    def __init__(self, connection: psycopg.Connection[Row]) -> None:
        """The connection is inside a transaction."""
        self._connection = connection
        self.name = ""
        """What the server calls the transaction, where its outcome may be asked for."""

    def run(self, sql: str, values: Sequence[object] = ()) -> int:
        """Run one statement; gives how many rows it changed."""
        return self._connection.execute(_statement(sql), tuple(values) or None).rowcount

    def many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement with each of these values."""
        with self._connection.cursor() as cursor:
            cursor.executemany(_statement(sql), rows)

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """What a statement gives."""
        return self._connection.execute(_statement(sql), tuple(values) or None, binary=True).fetchall()


class PostgresLink:
    """A connection for one thread at a time; others wait.

    Args:
        conninfo: What libpq understands.
        idle_s: Seconds after which the server ends a transaction that says nothing, and a wait for a lock.
    """

    def __init__(self, conninfo: str, *, idle_s: float) -> None:
        """Connect at the first use."""
        self._conninfo, self._idle_ms = conninfo, int(1000 * idle_s)
        self._threads = threading.RLock()
        self._connection: psycopg.Connection[Row] | None = None
        self._unknown = False
        self.owner = 0
        """Row of owners that every transaction locks."""

    @contextmanager
    def transaction(self) -> Iterator[PostgresTransaction]:
        """One transaction, durable at its end."""
        with self._threads, _explained():
            connection = self._connected()
            connection.execute("BEGIN")
            transaction = PostgresTransaction(connection)
            try:
                yield transaction
            except BaseException:
                if not connection.closed:
                    connection.execute("ROLLBACK")
                raise
            try:
                done = connection.execute("COMMIT").statusmessage
            except psycopg.OperationalError:
                if not connection.closed or not transaction.name or not self._came_through(transaction.name):
                    raise
                return
            if done != "COMMIT":
                raise StoreError("store: the server took the transaction back; nothing of this call was kept")

    def _came_through(self, name: str) -> bool:
        """Whether the transaction of a lost connection was committed."""
        self._unknown = True
        connection = self._connected(settle=True)
        connection.execute("BEGIN")
        connection.execute("SELECT id FROM owners WHERE id = %s FOR UPDATE", (self.owner,))  # the old one has ended
        found = connection.execute("SELECT pg_xact_status(%s::xid8)", (name,)).fetchone()
        connection.execute("COMMIT")
        self._unknown = False
        return found is not None and found[0] == "committed"

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """What a statement outside a transaction gives; asked again on a new connection where the old one is gone."""
        with self._threads, _explained():
            try:
                return PostgresTransaction(self._connected()).rows(sql, values)
            except psycopg.OperationalError:
                if self._connection is None or not self._connection.closed:
                    raise
                return PostgresTransaction(self._connected()).rows(sql, values)

    def close(self) -> None:
        """Let go of the connection."""
        with self._threads:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _connected(self, *, settle: bool = False) -> psycopg.Connection[Row]:
        if self._unknown and not settle:
            raise StoreError(
                "store: the server went away within a commit, and whether it was kept is not known; close and open "
                "the store, claim the streams and recover them"
            )
        if self._connection is None or self._connection.closed:
            connection: psycopg.Connection[Row] = psycopg.connect(
                self._conninfo, autocommit=True, connect_timeout=_CONNECT_S, application_name="tsgdn2",
                keepalives_idle=max(1, self._idle_ms // 3000), tcp_user_timeout=self._idle_ms,
            )  # fmt: skip
            for setting in ("idle_in_transaction_session_timeout", "lock_timeout"):
                connection.execute("SELECT set_config(%s, %s, FALSE)", (setting, str(self._idle_ms)))
            connection.execute(
                "SELECT set_config('synchronous_commit', 'on', FALSE) "
                "WHERE current_setting('synchronous_commit') IN ('off', 'local')"
            )
            self._connection = connection
        return self._connection


def _statement(sql: str) -> bytes:
    return sql.replace("?", "%s").encode()


@contextmanager
def _explained() -> Iterator[None]:
    """StoreError or CorruptError in the place of psycopg's own errors; what it says of the server has no password."""
    try:
        yield
    except (errors.DataCorrupted, errors.IndexCorrupted) as error:
        raise CorruptError(f"store: the server found damage ({_said(error)}); restore a backup of it") from error
    except errors.DiskFull as error:
        raise StoreError(
            "store: the server's disk is full; nothing of this call was kept, make room and send it again"
        ) from error
    except psycopg.OperationalError as error:
        raise StoreError(
            f"store: no answer from the server ({_said(error)}); nothing of this call was kept, see that it runs and "
            "can be reached, and send it again"
        ) from error
    except psycopg.Error as error:
        raise StoreError(f"store: the server refused ({_said(error)}); nothing of this call was kept") from error


def _said(error: psycopg.Error) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
