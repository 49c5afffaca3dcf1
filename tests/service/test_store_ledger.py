"""What goes with the journal, asked of both stores: ledger, cursors, keys, names, refusals."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.service.shelves import KINDS, MODEL, all_of, append, execute, place, reopened, rows, snapshot, store_at

from tsgdn2.errors import SchemaError, StreamError
from tsgdn2.service.batch import Batch
from tsgdn2.service.errors import StoreError
from tsgdn2.service.store import Fact, KeyRow, LedgerRow, Model, Snapshot, Store

DAY = 86_400 * 10**9


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def where(kind: str, tmp_path: Path) -> str:
    return place(kind, tmp_path)


@pytest.fixture
def store(kind: str, where: str) -> Iterator[Store]:
    store = store_at(kind, where)
    store.open(MODEL)
    yield store
    store.close()


def test_what_goes_with_an_append_is_kept_with_it_or_not_at_all(store: Store) -> None:
    store.claim(["a"])
    store.append(rows(["a"], [0]), ledger=[LedgerRow(kind="alert", stream="a")], cursors={"file:x": 1})
    with pytest.raises(StreamError):
        store.append(rows(["a"], [1]), ledger=[LedgerRow(kind="alert", stream="\x00")], cursors={"file:x": 2})
    with pytest.raises(StreamError):
        store.snapshot([snapshot("a", store.last)], ledger=[LedgerRow(kind="x", stream="\x00")], cursors={"file:x": 3})
    assert list(all_of(store)) == [("a", None, [0])]
    assert store.cursor("file:x") == 1
    assert [row.stream for row in store.read_ledger() if row.kind == "alert"] == ["a"]
    assert append(store, ["a"], [1]) == store.last


def test_a_new_stream_of_an_append_that_failed_is_not_there(store: Store) -> None:
    store.claim(["a"])
    with pytest.raises(StreamError):
        store.append(rows(["a"], [0]), ledger=[LedgerRow(kind="alert", stream="\x00")])
    append(store, ["b"], [1])
    append(store, ["a"], [2])
    reopened(store, "a", "b")
    assert sorted(all_of(store)) == [("a", None, [2]), ("b", None, [1])]


def test_what_does_not_fit_is_refused_before_anything_is_written(store: Store) -> None:
    store.claim(["a"])
    with pytest.raises(SchemaError, match="channels"):
        store.append(Batch.of(["a"], [0], [[1.0]]))
    with pytest.raises(SchemaError, match="1 to 1048576 rows"):
        store.append(rows([], []))
    with pytest.raises(StoreError, match="said to be at row"):
        store.snapshot([snapshot("a", store.last + 1)])
    with pytest.raises(StoreError, match="states do not move between models"):
        store.snapshot([Snapshot.of("a", 0, b"", schema=1, fingerprint="other")])
    assert list(all_of(store)) == []


def test_the_clock_jumping_back_changes_nothing(store: Store) -> None:
    times = [5 * DAY, 3 * DAY, -DAY]
    for at, time in enumerate(times):
        append(store, ["a"], [at])
        made = Snapshot.of("a", store.last, str(at).encode(), schema=1, fingerprint=MODEL.fingerprint, written=time)
        store.snapshot([made], ledger=[LedgerRow(kind="evicted", stream="a", time=time, facts={"at": at})])
    store.prune()
    assert list(all_of(reopened(store, "a"))) == [("a", b"2", [])]
    assert [row.facts["at"] for row in store.read_ledger() if row.kind == "evicted"] == [0, 1, 2]


def test_a_store_belongs_to_its_model(store: Store, kind: str, where: str) -> None:
    assert store.meta() == (1, MODEL)
    store.close()
    for other in (Model("0" * 64, MODEL.channels), Model(MODEL.fingerprint, ("x",))):
        with pytest.raises(StoreError, match="start the service with the model that the store was made with"):
            store.open(other)
    store.open()
    assert store.meta().model == MODEL
    with pytest.raises(StoreError, match="without a model"):
        store.append(rows(["a"], [0]))


def test_a_newer_schema_is_refused_and_left_as_it_is(store: Store, kind: str, where: str) -> None:
    store.close()
    execute(kind, where, "UPDATE meta SET value = '2' WHERE name = 'schema'")
    with pytest.raises(StoreError, match="schema 2, this version reads up to 1; update"):
        store.open(MODEL)
    execute(kind, where, "UPDATE meta SET value = '1' WHERE name = 'schema'")
    store.open(MODEL)


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="not open"):
        store.record([LedgerRow(kind="x")])
    with pytest.raises(StoreError, match="not open"):
        store.keys()
    store.open(MODEL)
    with pytest.raises(StoreError, match="open already"):
        store.open(MODEL)


def test_ledger_rows_come_back_in_order_from_where_a_reader_was(store: Store) -> None:
    facts: dict[str, Fact] = {"bytes": 12, "why": "ü\x00", "ok": True, "none": None, "x": math.nan, "y": 0.5}
    start = store.record([])
    last = store.record([LedgerRow(kind="evicted", stream="ab"[at % 2], facts=facts, time=at) for at in range(5)])
    everything = [row for row in store.read_ledger(start) if row.kind == "evicted"]
    assert [row.time for row in everything] == [0, 1, 2, 3, 4]
    assert everything[-1].id == last
    assert everything[0].facts == facts | {"x": "nan"}
    assert store.read_ledger(everything[1].id, 2) == everything[2:4]
    assert store.read_ledger(0, 10, stream="b") == everything[1::2]
    assert store.read_ledger(last) == []


def test_a_cursor_moves_with_others_and_the_ledger_is_trimmed_behind_it(store: Store) -> None:
    first = store.record([LedgerRow(kind="evicted")])
    store.record([LedgerRow(kind="evicted") for _ in range(9)])
    assert store.cursor("ledger.mlflow") == 0
    store.move({"ledger.mlflow": first + 3, "kafka:x:0": 1})
    assert (store.cursor("ledger.mlflow"), store.cursor("kafka:x:0")) == (first + 3, 1)
    assert store.trim_ledger(2) == first + 3
    assert store.read_ledger()[0].id == first + 4
    store.move({"ledger.mlflow": first + 9})
    store.trim_ledger(2)
    assert [row.id for row in store.read_ledger()] == [first + 8, first + 9]
    assert store.trim_ledger(100) == 0
    assert store.record([LedgerRow(kind="evicted")]) == first + 10


def test_keys_are_kept_replaced_and_listed(store: Store, kind: str, where: str) -> None:
    key = KeyRow(id="k1", hash=b"\x00\xff" * 16, role="reader", tenant="t", expires=5)
    store.put_key(key)
    store.put_key(KeyRow(id="k0", hash=b"h", role="admin", tenant=""))
    withdrawn = KeyRow(id="k1", hash=b"\x00\xff" * 16, role="reader", tenant="t", expires=5, withdrawn=9)
    store.put_key(withdrawn)
    found = reopened(store).keys()
    assert [key.id for key in found] == ["k0", "k1"]
    assert found[1] == withdrawn


def test_streams_are_listed_page_by_page_sorted_by_their_bytes(store: Store) -> None:
    names = ["b", "a", "Z", "ä", "a/1", "~"]
    append(store, names, list(range(6)))
    expected = sorted(names, key=str.encode)
    assert store.streams() == expected
    assert store.streams(after="a", limit=2) == expected[expected.index("a") + 1 :][:2]


def test_a_name_is_text_and_never_a_statement(store: Store) -> None:
    names = ["'; DROP TABLE journal; --", "%s ? {}", "\\", "\u202e\U0001f600"]
    append(store, names, [0, 1, 2, 3], source="?%s'")
    assert sorted(name for name, _, _ in all_of(reopened(store, *names))) == sorted(names)


def test_other_threads_read_and_write_the_ledger_while_rows_come_in(store: Store) -> None:
    store.claim(["a"])
    failures: list[BaseException] = []

    def other() -> None:
        try:
            for at in range(10):
                store.record([LedgerRow(kind="evicted", facts={"at": at})])
                store.read_ledger(0, 5)
                store.move({"ledger.x": at})
                store.keys()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=other) for _ in range(2)]
    for thread in threads:
        thread.start()
    for at in range(10):
        store.append(rows(["a"], [at]))
    for thread in threads:
        thread.join()
    assert not failures
    assert list(all_of(store)) == [("a", None, list(range(10)))]
    ids = [row.id for row in store.read_ledger() if row.kind == "evicted"]
    assert len(ids) == 20
    assert ids == sorted(ids)


def test_a_deletion_and_what_the_ledger_says_of_it_are_one(store: Store) -> None:
    append(store, ["a", "b"], [0, 1])
    with pytest.raises(StreamError):
        store.forget(["a"], ledger=[LedgerRow(kind="deleted", stream="\x00")])
    assert sorted(name for name, _, _ in all_of(store)) == ["a", "b"]
    store.forget(["a"], ledger=[LedgerRow(kind="deleted", stream="a")])
    assert [name for name, _, _ in all_of(store)] == ["b"]
    assert [row.stream for row in store.read_ledger() if row.kind == "deleted"] == ["a"]
