"""Ledger, cursors, keys and what a store says of itself: small tables that any thread may use.

A ledger row gets its id under a lock, so that ids become visible in their order and a reader that goes on behind the
last id it saw misses none. The price is that two processes never write ledger rows at the same time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from tsgdn2.service.batch import check_name
from tsgdn2.service.errors import StoreError
from tsgdn2.service.sql import Row, Sql, Transaction
from tsgdn2.service.store import Fact, KeyRow, LedgerRow, Meta, Model

MOST_READ = 10_000
"""Ledger rows of one reading."""
_TRIMMED = 5_000
"""Ledger rows that one transaction deletes."""
_COLUMNS = "SELECT id, time, kind, stream, facts FROM ledger WHERE id > ?"


class LedgerTables(Sql):
    """The part of a store that belongs to no thread."""

    def record(self, rows: Iterable[LedgerRow]) -> int:
        """Write ledger rows; gives the id of the last one, 0 for none."""
        listed = list(rows)
        if not listed:
            return 0
        with self._transaction() as transaction:
            return self._note(transaction, listed)

    def read_ledger(self, after: int = 0, limit: int = 1000, *, stream: str | None = None) -> list[LedgerRow]:
        """Ledger rows behind the id `after`, oldest first, all or those of one stream; at most 10,000 at a time."""
        most = min(max(limit, 0), MOST_READ)
        if stream is None:
            found = self._read(f"{_COLUMNS} ORDER BY id LIMIT ?", (after, most))
        else:
            found = self._read(f"{_COLUMNS} AND stream = ? ORDER BY id LIMIT ?", (after, stream, most))
        return [_ledger_row(row) for row in found]

    def newest_ledger(self, before: int, limit: int = 1000, *, stream: str | None = None) -> list[LedgerRow]:
        """Ledger rows in front of the id `before`, all or those of one stream, newest first; at most 10,000 a time."""
        most = min(max(limit, 0), MOST_READ)
        one, asked = ("", ()) if stream is None else (" AND stream = ?", (stream,))
        sql = f"SELECT id, time, kind, stream, facts FROM ledger WHERE id < ?{one} ORDER BY id DESC LIMIT ?"
        return [_ledger_row(row) for row in self._read(sql, (before, *asked, most))]

    def trim_ledger(self, keep: int) -> int:
        """Delete ledger rows but the newest `keep` and those that a cursor called ledger.* has not passed."""
        if keep < 0:
            raise StoreError(f"keep: must be at least 0 rows, got {keep}")
        # Ledger and cursors only go forward, so what was found may be deleted later, a part at a time: an append of the
        # journal waits for one part at most.
        found = self._read("SELECT id FROM ledger ORDER BY id DESC LIMIT 1 OFFSET ?", (keep,))
        if not found:
            return 0
        behind = self._read("SELECT MIN(position) FROM cursors WHERE substr(name, 1, 7) = 'ledger.'")[0][0]
        upto = found[0][0] if behind is None else min(found[0][0], behind)
        at, gone = int(self._read("SELECT MIN(id) FROM ledger")[0][0]) - 1, 0
        while at < upto:
            at = min(at + _TRIMMED, upto)
            with self._transaction() as transaction:
                gone += transaction.run("DELETE FROM ledger WHERE id <= ?", (at,))
        return gone

    def cursor(self, name: str) -> int:
        """Where a reader is; 0 before it moved."""
        found = self._read("SELECT position FROM cursors WHERE name = ?", (name,))
        return int(found[0][0]) if found else 0

    def move(self, cursors: Mapping[str, int]) -> None:
        """Put readers where they are now, all in one transaction."""
        if cursors:
            with self._transaction() as transaction:
                self._move(transaction, cursors)

    def put_key(self, key: KeyRow) -> None:
        """Keep a key, in the place of one with the same id."""
        with self._transaction() as transaction:
            transaction.run(
                "INSERT INTO keys (id, hash, role, tenant, expires, withdrawn) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET hash = excluded.hash, role = excluded.role, "
                "tenant = excluded.tenant, expires = excluded.expires, withdrawn = excluded.withdrawn",
                (key.id, key.hash, key.role, key.tenant, key.expires, key.withdrawn),
            )

    def keys(self) -> list[KeyRow]:
        """Every key, by id."""
        found = self._read("SELECT id, hash, role, tenant, expires, withdrawn FROM keys ORDER BY id")
        return [
            KeyRow(id=row[0], hash=bytes(row[1]), role=row[2], tenant=row[3], expires=row[4], withdrawn=row[5])
            for row in found
        ]

    def meta(self) -> Meta:
        """Schema and model of the store."""
        facts: dict[str, str] = dict(self._read("SELECT name, value FROM meta"))
        return Meta(int(facts["schema"]), model_of(facts.get("model")))

    def _belongs(self, transaction: Transaction, model: Model | None) -> None:
        """Make the store that of `model`, or see that it is. StoreError where it is another's."""
        if model is None:
            return
        found = transaction.rows("SELECT value FROM meta WHERE name = 'model'")
        theirs = model_of(found[0][0]) if found else None
        if theirs is None:
            text = json.dumps({"fingerprint": model.fingerprint, "channels": list(model.channels)})
            transaction.run("INSERT INTO meta (name, value) VALUES ('model', ?)", (text,))
        elif theirs != model:
            raise StoreError(
                f"model: the store holds states of the model {theirs.fingerprint[:12]} with channels "
                f"{list(theirs.channels)}, this one is {model.fingerprint[:12]} with channels {list(model.channels)}; "
                "start the service with the model that the store was made with, or give this one a new store "
                "(--store); the old one stays as it is"
            )

    def _extras(self, transaction: Transaction, ledger: Sequence[LedgerRow], cursors: Mapping[str, int] | None) -> None:
        """Ledger rows and cursors that go with something else."""
        if ledger:
            self._note(transaction, ledger)
        if cursors:
            self._move(transaction, cursors)

    def _note(self, transaction: Transaction, rows: Sequence[LedgerRow]) -> int:
        for name in {row.stream for row in rows}:
            check_name("stream", name, empty=True)
        self._hold(transaction, "ledger")
        transaction.many(
            "INSERT INTO ledger (time, kind, stream, facts) VALUES (?, ?, ?, ?)",
            [(row.time, row.kind, row.stream, json_of(row.facts)) for row in rows],
        )
        return int(transaction.rows("SELECT MAX(id) FROM ledger")[0][0])

    def _move(self, transaction: Transaction, cursors: Mapping[str, int]) -> None:
        transaction.many(
            "INSERT INTO cursors (name, position) VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET position = excluded.position",
            sorted(cursors.items()),
        )


def json_of(facts: Mapping[str, Fact]) -> str:
    """Facts as JSON that every reader takes: nan and inf are text."""
    clean = {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in facts.items()
    }
    return json.dumps(clean, allow_nan=False)


def model_of(text: str | None) -> Model | None:
    """The model that a store says it belongs to."""
    if text is None:
        return None
    facts = json.loads(text)
    return Model(facts["fingerprint"], tuple(facts["channels"]))


def _ledger_row(row: Row) -> LedgerRow:
    return LedgerRow(id=row[0], time=row[1], kind=row[2], stream=row[3], facts=json.loads(row[4]))
