"""Stores for the tests, made and opened over and over in the same place; rows and snapshots to fill them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psycopg
from tests.service.peers import postgres

from tsgdn2.service.batch import Batch
from tsgdn2.service.marks import Marks
from tsgdn2.service.postgres_store import PostgresStore
from tsgdn2.service.sqlite_store import SqliteStore
from tsgdn2.service.store import Model, Recovered, Snapshot, Store

MODEL = Model("f" * 64, ("x", "y"))
KINDS = ("sqlite", "postgres")


def place(kind: str, folder: Path) -> str:
    """A new place for a store."""
    return str(folder / "store.db") if kind == "sqlite" else postgres().empty()


def store_at(kind: str, where: str) -> Store:
    """A store in a place; not open yet."""
    return SqliteStore(Path(where)) if kind == "sqlite" else PostgresStore(where, label="me:1", lease_s=60)


def execute(kind: str, where: str, sql: str) -> None:
    """One statement behind the back of the store, which is not open."""
    if kind == "postgres":
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(sql.encode())
        return
    other = sqlite3.connect(where)
    with other:
        other.execute(sql)
    other.close()


def rows(streams: Sequence[str], sequences: Sequence[int], source: str = "mqtt") -> Batch:
    """Rows whose times and values tell their sequence."""
    numbers = np.array(sequences, np.int64)
    values = np.stack([numbers * 0.5, np.where(numbers % 3, 1.0 / (numbers + 1), np.nan)], 1)
    return Batch.of(streams, numbers * 10**9, values, sources=[source] * len(streams), sequences=numbers)


def snapshot(stream: str, seq: int, blob: bytes = b"state", marks: Marks | None = None, **more: bool) -> Snapshot:
    """A snapshot of the model of the tests."""
    return Snapshot.of(stream, seq, blob, schema=1, fingerprint=MODEL.fingerprint, marks=marks, **more)


def sequences_of(recovered: Recovered) -> list[int]:
    """The sequences behind a snapshot, in their order; every row is seen to be what `rows` made."""
    found: list[int] = []
    seqs: list[int] = []
    for part in recovered.rows:
        numbers = part.batch.sequences.tolist()
        made = rows(part.batch.streams, numbers)
        assert set(part.batch.streams) == {recovered.stream}
        assert part.batch.values.tobytes() == made.values.tobytes()
        assert part.batch.times.tobytes() == made.times.tobytes()
        found += numbers
        seqs += part.seqs.tolist()
    assert seqs == sorted(set(seqs))
    return found


def all_of(store: Store) -> Iterator[tuple[str, bytes | None, list[int]]]:
    """Name, blob and sequences of every stream."""
    for found in store.recover():
        assert not found.damage
        yield found.stream, found.snapshot.blob if found.snapshot else None, sequences_of(found)


def reopened(store: Store, *streams: str) -> Store:
    """The store after a restart, with these streams claimed."""
    store.close()
    store.open(MODEL)
    store.claim(streams)
    return store


def append(store: Store, streams: list[str], sequences: list[int], source: str = "mqtt") -> int:
    """Claim and append; gives the first seq."""
    assert store.claim(streams) == {}
    return store.append(rows(streams, sequences, source))
