"""The tables of both stores, and how those of an older version become those of this one.

UPGRADES[n] leads from schema n to n + 1; all that are missing are done in one transaction, so an upgrade that fails
leaves the store as it was. A store with a newer schema is refused. Words in braces differ between the databases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tsgdn2.service.errors import StoreError
from tsgdn2.service.sql import Transaction

UPGRADES: Final[tuple[tuple[str, ...], ...]] = (
    (
        # pruned: rows of the stream up to this seq may be gone. tail: its last seq, as of its release; NULL is unknown.
        "CREATE TABLE streams (id {number}, name {text} NOT NULL UNIQUE, pruned BIGINT NOT NULL DEFAULT 0, "
        "owner BIGINT, tail BIGINT)",
        "CREATE TABLE journal (first {key}, last BIGINT NOT NULL, streams {bytes} NOT NULL, body {bytes} NOT NULL)",
        # blob stands last, so that a reader of the marks does not walk over it.
        "CREATE TABLE snapshots (stream BIGINT NOT NULL, seq BIGINT NOT NULL, format BIGINT NOT NULL, "
        "fingerprint TEXT NOT NULL, written BIGINT NOT NULL, sha256 TEXT NOT NULL, imported BIGINT NOT NULL, "
        "marks {bytes} NOT NULL, blob {bytes} NOT NULL, PRIMARY KEY (stream, seq))",
        "CREATE TABLE ledger (id {number}, time BIGINT NOT NULL, kind TEXT NOT NULL, stream TEXT NOT NULL, "
        "facts TEXT NOT NULL)",
        "CREATE INDEX ledger_of ON ledger (stream, id)",
        "CREATE TABLE cursors (name TEXT PRIMARY KEY, position BIGINT NOT NULL)",
        "CREATE TABLE keys (id TEXT PRIMARY KEY, hash {bytes} NOT NULL, role TEXT NOT NULL, tenant TEXT NOT NULL, "
        "expires BIGINT, withdrawn BIGINT)",
        "CREATE TABLE gone (id BIGINT PRIMARY KEY)",  # deleted streams whose rows are still in the journal
        "{own}",
    ),
)
SQLITE: Final = {
    "number": "INTEGER PRIMARY KEY AUTOINCREMENT",  # a number is never given twice, so old rows never find a new owner
    "key": "INTEGER PRIMARY KEY",
    "text": "TEXT",
    "bytes": "BLOB",
    "own": "",
}
POSTGRES: Final = {
    "number": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "key": "BIGINT PRIMARY KEY",
    "text": 'TEXT COLLATE "C"',
    "bytes": "BYTEA",
    # Blobs are stored as they are: to compress noise on the hot path buys nothing. An append takes one number of the
    # sequence, and with it as many numbers of rows as a batch may have.
    "own": "ALTER TABLE journal ALTER streams SET STORAGE EXTERNAL, ALTER body SET STORAGE EXTERNAL; "
    "ALTER TABLE snapshots ALTER blob SET STORAGE EXTERNAL; "
    "CREATE TABLE owners (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, label TEXT NOT NULL, "
    "expires TIMESTAMPTZ NOT NULL, dead BOOLEAN NOT NULL DEFAULT FALSE); "
    "CREATE SEQUENCE journal_numbers MINVALUE 0 START 0",
}


def bring_up(
    transaction: Transaction,
    words: Mapping[str, str],
    *,
    place: str,
    upgrades: Sequence[Sequence[str]] = UPGRADES,
) -> tuple[int, int]:
    """Bring a store to the schema of this version; gives the schemas before (0 is an empty database) and after.

    place: what the store is called in an error. StoreError: its schema is newer than this version knows.
    """
    transaction.run("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
    found = transaction.rows("SELECT value FROM meta WHERE name = 'schema'")
    schema, newest = int(found[0][0]) if found else 0, len(upgrades)
    if schema > newest:
        raise StoreError(
            f"store: {place} has schema {schema}, this version reads up to {newest}; update tsgdn2, or restore the "
            "backup that was made before the newer version opened it"
        )
    for statements in upgrades[schema:]:
        for statement in statements:
            for part in statement.format(**words).split(";"):
                if part.strip():
                    transaction.run(part)
    if schema < newest:
        transaction.run(
            "INSERT INTO meta (name, value) VALUES ('schema', ?) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (str(newest),),
        )
    return schema, newest
