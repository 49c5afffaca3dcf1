"""What a store has ever appended, and what an uninterrupted run of it would be.

The store prunes its journal, so a trigger of the database itself copies every block, in the transaction that appends
it: what is in the copy was committed, and nothing else is. The twin is a predictor that is given the rows in the order
of the flow, without their repeats, and knows of no store, broker, connector or restart.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from tests.service.endtoend.flow import Sent, batch_of, name_of, source_of
from tests.service.endtoend.lives import until
from tests.service.predictors import blobs, limits, memory, predictor

from tsgdn2.online import OnlinePredictor
from tsgdn2.service.journal import Block, columns_in, heads_of
from tsgdn2.service.receipts import applied

COPY: Final = (
    "CREATE TABLE IF NOT EXISTS appended (first INTEGER PRIMARY KEY, last, streams, body)",
    "CREATE TABLE IF NOT EXISTS named (id INTEGER PRIMARY KEY, name)",
    "CREATE TRIGGER IF NOT EXISTS appends AFTER INSERT ON journal BEGIN "
    "INSERT INTO appended VALUES (NEW.first, NEW.last, NEW.streams, NEW.body); END",
    "CREATE TRIGGER IF NOT EXISTS names AFTER INSERT ON streams BEGIN INSERT INTO named VALUES (NEW.id, NEW.name); END",
)
_MANY: Final = 8_192


class Row(NamedTuple):
    """A row that was appended: by name, as the journal has it."""

    stream: str
    source: str
    sequence: int


def keep_a_copy(store: Path, kind: str) -> None:
    """Have a store that nobody has open remember all that is appended; it is made where it is not there."""
    memory(store.parent, limits(kind=kind), kind=kind).stop()
    connection = sqlite3.connect(store)
    with connection:
        for statement in COPY:
            connection.execute(statement)
    connection.close()


def count_of(store: Path) -> int:
    """Rows appended so far, with the service running or not."""
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=30)
    try:
        found = connection.execute("SELECT COALESCE(SUM(last - first + 1), 0) FROM appended").fetchone()
    finally:
        connection.close()
    return int(found[0])


def wait_for(store: Path, rows: int) -> None:
    """Wait until so many rows have been appended; AssertionError when no more come."""
    while (found := count_of(store)) < rows:
        until(partial(beyond, count_of, store, found), f"more than {found} of {rows} rows in the journal", look=0.05)


def beyond(read: Callable[[Path], int], store: Path, number: int) -> bool:
    """Whether what is read of a store is more than a number."""
    return read(store) > number


def appended(store: Path) -> list[Row]:
    """Every row that was ever appended, in order; AssertionError where their numbers have gaps."""
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        names = dict(connection.execute("SELECT id, name FROM named"))
        blocks = connection.execute("SELECT first, last, streams, body FROM appended ORDER BY first").fetchall()
    finally:
        connection.close()
    rows, after = list[Row](), 0
    for first, last, streams, body in blocks:
        assert first == after + 1, f"rows {after + 1} to {first - 1} were never appended"
        after = last
        _, numbers = heads_of(first, last, streams)
        columns = columns_in(Block(first, last, streams, body))
        for number, code, sequence in zip(numbers, columns.codes, columns.sequences, strict=True):
            rows.append(Row(names[int(number)], columns.names[int(code)], int(sequence)))
    return rows


def without_repeats(rows: Sequence[Sent]) -> list[Sent]:
    """Rows in the order in which each came first."""
    return list(dict.fromkeys(rows))


def compare_journal(store: Path, sent: Sequence[Sent]) -> int:
    """AssertionError unless the journal has had each row once, and those of a stream in their order; gives how many."""
    found, expected = appended(store), without_repeats(sent)
    assert len(set(found)) == len(found), "a row was appended twice"
    wanted = [Row(name_of(row.stream), source_of(row), row.number) for row in expected]
    lost, strange = set(wanted) - set(found), set(found) - set(wanted)
    assert not lost, f"{len(lost)} rows were lost: {sorted(lost)[:5]}"
    assert not strange, f"{len(strange)} rows came from nowhere: {sorted(strange)[:5]}"
    for stream in {row.stream for row in wanted}:
        assert [row for row in found if row.stream == stream] == [row for row in wanted if row.stream == stream]
    return len(found)


def twin_of(sent: Sequence[Sent], kind: str = "tag") -> OnlinePredictor:
    """A predictor that was given these rows, and never interrupted."""
    rows, twin = without_repeats(sent), predictor(kind)
    for start in range(0, len(rows), _MANY):
        applied(twin, batch_of(rows[start : start + _MANY]))
    return twin


def compare_states(found: Mapping[str, bytes], twin: OnlinePredictor, kind: str = "tag") -> None:
    """AssertionError unless these states are all the twin has, bit for bit.

    A blob also holds what waits to be read of the list of late values. That list is one of all streams, and the oldest
    entries go; so it is emptied on both sides. How many values came late is in the counters, and compared.
    """
    assert sorted(found) == sorted(twin.streams)
    scratch = predictor(kind)
    for stream, blob in found.items():
        scratch.put_in(stream, blob)
    for online in (scratch, twin):
        online.late_arrivals(drain=True)
    other = [stream for stream in found if scratch.take_out(stream) != twin.take_out(stream)]
    assert not other, f"{len(other)} of {len(found)} states are not those of an uninterrupted run: {other[:5]}"


def kept(folder: Path, kind: str = "tag") -> dict[str, bytes]:
    """The states that a store has, whose service has ended."""
    made = memory(folder, limits(kind=kind), kind=kind)
    try:
        return blobs(made, made.names().result())
    finally:
        made.stop()
