"""The store for several processes: one PostgreSQL database, each stream held by one process at a time.

    owners     one row for each opening of a store; its id is the fencing number, and it expires unless it is renewed
    claim      owners whose time is up are declared dead (for good); their streams, and free ones, become ours
    append     locks our own row of owners against that declaration until the commit, or fails because we are dead

So a process that was frozen for longer than its lease can write nothing more, whatever it believes; it must open the
store again, claim and recover. Leases are measured by the server's clock alone. What became of a connection that broke
while it committed is looked up (postgres_link.py); where that can not be done, the store must be opened again as well.

The numbers of rows grow, with gaps. The price of a server: an append is five round trips, and waits for its disk.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from tsgdn2.errors import ConfigError
from tsgdn2.service.errors import StoreError
from tsgdn2.service.journal import Numbers
from tsgdn2.service.postgres_link import PostgresLink
from tsgdn2.service.recovery import Entry, entries_of
from tsgdn2.service.schema import POSTGRES, bring_up
from tsgdn2.service.sql import Row, Transaction
from tsgdn2.service.sql_store import MOST_APPENDED, SqlStore
from tsgdn2.service.store import Model

_LOCKS: Final = {"open": 0x747367_00, "ledger": 0x747367_01, "prune": 0x747367_02}
_FREE: Final = "(mine.owner IS NULL OR mine.owner NOT IN (SELECT id FROM owners WHERE NOT dead))"


class PostgresStore(SqlStore):
    """A store in a database that other processes use, too.

    Args:
        conninfo: What libpq understands: "postgresql://user@host/base" or "host=.. dbname=..".
        label: What other processes say of this one when it holds a stream, such as the address of its HTTP part.
        lease_s: Seconds that this process may be silent before its streams are given to others, 1 to 3,600.
    """

    def __init__(self, conninfo: str, *, label: str, lease_s: float = 30.0) -> None:
        """Touch nothing yet. ConfigError for a lease out of its bounds."""
        if not 1 <= lease_s <= 3600:
            raise ConfigError(f"lease_s: must be from 1 to 3600 seconds, got {lease_s}")
        self.label, self.lease_s = label, lease_s
        self._conninfo = conninfo
        self._writer: PostgresLink | None = None
        self._reader: PostgresLink | None = None
        self._owner = 0
        self._renewed = 0.0
        self._last = 0
        self._held: dict[str, int] = {}
        self._tails: dict[int, int] = {}

    def open(self, model: Model | None = None) -> None:
        """Open, making what is not there; see `Store`."""
        if self._writer is not None:
            raise StoreError("store: it is open already")
        self._writer = PostgresLink(self._conninfo, idle_s=self.lease_s)
        self._reader = PostgresLink(self._conninfo, idle_s=self.lease_s)
        try:
            with self._writer.transaction() as transaction:
                self._hold(transaction, "open")
                bring_up(transaction, POSTGRES, place="the database")
                self._belongs(transaction, model)
                # Whatever this process held before is over, and any transaction of then has ended here.
                transaction.run("UPDATE owners SET dead = TRUE WHERE id = ?", (self._owner,))
                self._owner = transaction.rows(
                    "INSERT INTO owners (label, expires) VALUES (?, clock_timestamp() + ? * INTERVAL '1 second') "
                    "RETURNING id",
                    (self.label, self.lease_s),
                )[0][0]
                transaction.run(
                    "DELETE FROM owners WHERE dead AND id NOT IN (SELECT owner FROM streams WHERE owner IS NOT NULL)"
                )
            self._writer.owner = self._owner
            self._last, self._renewed = 0, time.monotonic()
        except BaseException:
            self._end()
            raise
        self._model = model

    def close(self) -> None:
        """Give every stream back; harmless when it is not open."""
        if self._writer is None:
            return
        try:
            self.release(list(self._held))
            with self._writer.transaction() as transaction:
                transaction.run("UPDATE owners SET dead = TRUE WHERE id = ?", (self._owner,))
        finally:
            self._end()

    def _end(self) -> None:
        for link in (self._writer, self._reader):
            if link is not None:
                link.close()
        self._writer = self._reader = self._model = None
        self._held, self._tails = {}, {}

    @property
    def last(self) -> int:
        """The highest `seq` that this process gave out or found; 0 before the first."""
        return self._last

    def claim(self, streams: Sequence[str]) -> dict[str, str]:
        """Become the one process that appends to these streams; gives those that another one holds, and its label."""
        wanted = [name for name in dict.fromkeys(streams) if name not in self._held]
        if not wanted:
            return {}
        with self._transaction() as transaction:
            # Whoever commits at this moment holds its own row, and is not dead.
            transaction.run(
                "UPDATE owners SET dead = TRUE WHERE id IN (SELECT id FROM owners WHERE NOT dead AND id <> ? AND "
                "expires < clock_timestamp() ORDER BY id FOR UPDATE SKIP LOCKED)",
                (self._owner,),
            )
        with self._transaction() as transaction:
            wanted.sort()  # always in the same order, so that two processes never wait for each other
            known = {row[0] for row in transaction.rows("SELECT name FROM streams WHERE name = ANY(?)", (wanted,))}
            fresh = [(name,) for name in wanted if name not in known]
            transaction.many("INSERT INTO streams (name, tail) VALUES (?, 0) ON CONFLICT DO NOTHING", fresh)
            transaction.rows("SELECT id FROM streams WHERE name = ANY(?) ORDER BY name FOR UPDATE", (wanted,))
            taken = transaction.rows(
                "UPDATE streams AS mine SET owner = ?, tail = NULL FROM streams AS old "
                f"WHERE old.id = mine.id AND mine.name = ANY(?) AND {_FREE} "
                "RETURNING mine.name, mine.id, old.tail",
                (self._owner, wanted),
            )
            others = transaction.rows(
                "SELECT name, label FROM streams JOIN owners ON owners.id = owner WHERE name = ANY(?) AND owner <> ?",
                (wanted, self._owner),
            )
            newest = transaction.rows("SELECT last FROM journal ORDER BY first DESC LIMIT 1")
            covered = transaction.rows("SELECT MAX(seq) FROM snapshots")[0][0]
        self._last = max(self._last, newest[0][0] if newest else 0, covered or 0)
        for name, number, tail in taken:
            self._held[name] = number
            if tail is not None:
                self._tails[number] = tail
        return dict(others)

    def release(self, streams: Sequence[str]) -> None:
        """Let other processes have these streams; snapshot them first, or the next one must replay."""
        gone = {name: self._held[name] for name in dict.fromkeys(streams) if name in self._held}
        if not gone:
            return
        with self._transaction() as transaction:
            transaction.many(
                "UPDATE streams SET owner = NULL, tail = ? WHERE id = ? AND owner = ?",
                [(self._tails.get(number), number, self._owner) for number in gone.values()],
            )
        self._forgotten(gone)

    def renew(self) -> None:
        """Say that this process lives; call it at least three times in a lease, idle or not. StoreError: too late."""
        self._renewed = float("-inf")
        with self._transaction():
            pass

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        """A transaction in which this process is known to hold what it holds, until the commit."""
        if self._writer is None:
            raise StoreError("store: it is not open; call `open` first")
        now = time.monotonic()
        renewing = now - self._renewed > self.lease_s / 3
        with self._writer.transaction() as transaction:
            if renewing:
                alive = transaction.rows(
                    "UPDATE owners SET expires = clock_timestamp() + ? * INTERVAL '1 second' "
                    "WHERE id = ? AND NOT dead RETURNING pg_current_xact_id()::text",
                    (self.lease_s, self._owner),
                )
            else:
                alive = transaction.rows(
                    "SELECT pg_current_xact_id()::text FROM owners WHERE id = ? AND NOT dead FOR SHARE", (self._owner,)
                )
            if not alive:
                raise StoreError(
                    f"lease: this process was silent for more than {self.lease_s:g} seconds and its streams may be "
                    "with another one; close and open the store, claim the streams and recover them"
                )
            transaction.name = alive[0][0]
            yield transaction
        if renewing:
            self._renewed = now

    def _read(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        if self._reader is None:
            raise StoreError("store: it is not open; call `open` first")
        return self._reader.rows(sql, values)

    def _hold(self, transaction: Transaction, what: str) -> None:
        transaction.rows("SELECT pg_advisory_xact_lock(?)", (_LOCKS[what],))

    def _entries(self, streams: Sequence[str] | None) -> list[Entry]:
        names = list(self._held) if streams is None else list(dict.fromkeys(streams))
        numbers = [self._number(name) for name in names]
        sql = "SELECT id, name, pruned, seq FROM streams LEFT JOIN snapshots ON stream = id WHERE id = ANY(?)"
        return list(entries_of(self._read(f"{sql} ORDER BY id, seq DESC", (numbers,))))

    def _number(self, name: str) -> int:
        number = self._held.get(name)
        if number is None:
            raise StoreError(f"stream: {name!r} is not held by this process; `claim` it first")
        return number

    def _tail(self, number: int) -> int | None:
        return self._tails.get(number)

    def _numbers(self, transaction: Transaction, names: Sequence[str]) -> dict[str, int]:  # noqa: ARG002
        return {name: self._number(name) for name in dict.fromkeys(names)}

    def _first(self, transaction: Transaction, rows: int) -> int:  # noqa: ARG002
        return int(transaction.rows("SELECT nextval('journal_numbers')")[0][0]) * MOST_APPENDED + 1

    def _kept(self, numbers: Mapping[str, int], written: Numbers, first: int) -> None:  # noqa: ARG002
        if len(written):
            self._tails.update(zip(written.tolist(), range(first, first + len(written)), strict=True))
            self._last = first + len(written) - 1

    def _forgotten(self, numbers: Mapping[str, int]) -> None:
        for name, number in numbers.items():
            self._held.pop(name, None)
            self._tails.pop(number, None)
