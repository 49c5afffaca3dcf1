"""What both stores promise, asked of both: SQLite, and a real PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.service.shelves import (
    KINDS,
    MODEL,
    all_of,
    append,
    execute,
    place,
    reopened,
    sequences_of,
    snapshot,
    store_at,
)

from tsgdn2.service.batch import Batch
from tsgdn2.service.errors import CorruptError
from tsgdn2.service.marks import Marks
from tsgdn2.service.store import Store

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


def test_rows_come_back_in_order_bit_by_bit_after_a_restart(store: Store) -> None:
    first = append(store, ["a", "b", "a"], [0, 1, 2])
    second = append(store, ["b", "a"], [3, 4], source="ü")
    assert second >= first + 3
    assert store.last == second + 1
    reopened(store, "a", "b")
    assert list(all_of(store)) == [("a", None, [0, 2, 4]), ("b", None, [1, 3])]
    assert [part.batch.sources for found in store.recover() for part in found.rows] == [
        ("mqtt", "mqtt", "ü"),
        ("mqtt", "ü"),
    ]
    (part,) = [part for part in store.rows_after("a", first) if part.seqs[0] < second]
    assert part.seqs.tolist() == [first + 2]
    assert [part.seqs.tolist() for part in store.rows_after("a", second)] == [[second + 1]]
    assert store.last >= second + 1


def test_rows_without_source_or_sequence_and_every_value_of_a_float_come_back(store: Store) -> None:
    values = np.array([[np.nan, -0.0], [5e-324, 1.7e308]])
    store.claim(["a"])
    store.append(Batch.of(["a", "a"], [-(2**62), 2**62], values))
    (part,) = store.rows_after("a", 0)
    assert part.batch.values.tobytes() == values.tobytes()
    assert part.batch.times.tolist() == [-(2**62), 2**62]
    assert (part.batch.sources, part.batch.sequences.tolist()) == (("", ""), [-1, -1])


def test_a_batch_longer_than_a_block_is_one_append(store: Store) -> None:
    count = 150_000
    first = append(store, ["a", "b"] * (count // 2), list(range(count)))
    assert store.last == first + count - 1
    found = {name: numbers for name, _, numbers in all_of(store)}
    assert found == {"a": list(range(0, count, 2)), "b": list(range(1, count, 2))}


def test_the_newest_snapshot_comes_with_the_rows_behind_it(store: Store) -> None:
    append(store, ["a", "b", "a"], [0, 1, 2])
    store.snapshot([snapshot("a", store.last, b"one"), snapshot("b", store.last, b"bee")])
    append(store, ["a"], [3])
    store.snapshot([snapshot("a", store.last, b"two")])
    append(store, ["b", "a"], [4, 5])
    reopened(store, "a", "b")
    assert list(all_of(store)) == [("a", b"two", [5]), ("b", b"bee", [4])]
    found = store.restore("a")
    assert found is not None
    assert found.snapshot is not None
    assert found.snapshot.whole
    assert sequences_of(found) == [5]


def test_few_streams_are_recovered_as_well_as_all(store: Store) -> None:
    append(store, ["a", "b", "c"] * 3, list(range(9)))
    assert [found.stream for found in store.recover(["c", "a", "c"])] == ["a", "c"]
    assert [sequences_of(found) for found in store.recover(["b", "c"])] == [[1, 4, 7], [2, 5, 8]]


def test_recovery_in_many_parts_is_the_same_as_in_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"s{number}" for number in range(7)]
    generator = np.random.default_rng(5)
    for start in range(0, 400, 20):
        append(store, [names[at] for at in generator.integers(0, 7, 20)], list(range(start, start + 20)))
        name = names[start % 7]
        store.claim([name])
        store.snapshot([snapshot(name, store.last, str(start).encode())])
    whole = list(all_of(store))
    assert sum(len(found[2]) for found in whole) > 40
    for part_rows in (1, 30, 100):
        monkeypatch.setattr(store, "part_rows", part_rows)
        assert list(all_of(store)) == whole


def test_a_stream_that_nobody_knows_is_none(store: Store) -> None:
    store.claim(["a"])
    assert store.restore("a") is None
    assert store.marks("a") == Marks()
    assert list(store.recover()) == []
    assert list(store.rows_after("a", 0)) == []


def test_marks_are_those_of_the_snapshot_and_of_the_rows_behind_it_even_after_pruning(store: Store) -> None:
    marks = Marks()
    for start in (0, 10, 20):
        append(store, ["a"] * 10, list(range(start, start + 10)))
        for sequence in range(start, start + 10):
            marks.take("mqtt", sequence)
        store.snapshot([snapshot("a", store.last, marks=marks)])
    assert store.prune().removed == 20
    append(store, ["a"], [99], source="nats")
    marks.take("nats", 99)
    assert reopened(store, "a").marks("a") == marks


def test_pruning_goes_back_to_the_older_snapshot_and_never_further(store: Store) -> None:
    for start in range(0, 40, 10):
        append(store, ["a"] * 9 + ["quiet"], list(range(start, start + 10)))
        store.snapshot([snapshot("a", store.last, str(start).encode())])
    assert store.prune().removed == 27
    assert store.prune().removed == 0
    reopened(store, "a", "quiet")
    assert list(all_of(store)) == [("a", b"30", []), ("quiet", None, [9, 19, 29, 39])]
    older = next(iter(store.rows_after("a", 0))).batch.sequences.tolist()
    assert older == list(range(30, 39))


def test_numbers_never_start_again_when_the_whole_journal_is_pruned(store: Store) -> None:
    for number in range(2):
        append(store, ["a"], [number])
        store.snapshot([snapshot("a", store.last)])
    last = store.last
    append(store, ["b"], [2])
    store.forget(["b"])
    store.prune()
    reopened(store, "a")
    assert append(store, ["a"], [3]) > last
    assert [found[2] for found in all_of(store)] == [[3]]


def test_a_forgotten_stream_is_gone_and_its_name_begins_anew(store: Store, kind: str, where: str) -> None:
    append(store, ["a", "b", "b"], [0, 1, 2])
    store.snapshot([snapshot("a", store.last, b"secret")])
    store.forget(["a", "a"])
    assert store.streams() == ["b"]
    assert append(store, ["a"], [7]) == store.last
    reopened(store, "a", "b")
    assert list(all_of(store)) == [("b", None, [1, 2]), ("a", None, [7])]
    assert store.prune() == (1, 3)
    assert list(all_of(store)) == [("b", None, [1, 2]), ("a", None, [7])]
    store.forget(["nobody"] if kind == "sqlite" else [])


def test_a_corrupt_snapshot_gives_way_to_the_older_one_and_the_ledger_says_so(
    store: Store, kind: str, where: str
) -> None:
    for number in range(3):
        append(store, ["a"], [number])
        store.snapshot([snapshot("a", store.last, f"state {number}".encode())])
    store.prune()
    damaged = store.last
    store.close()
    blob = "x'00'" if kind == "sqlite" else "'\\x00'"
    execute(kind, where, f"UPDATE snapshots SET blob = {blob} WHERE seq = {damaged}")
    store.open(MODEL)
    store.claim(["a"])
    assert list(all_of(store)) == [("a", b"state 1", [2])]
    (row,) = [row for row in store.read_ledger() if row.kind == "corrupt"]
    assert (row.stream, row.facts["seq"]) == ("a", damaged)
    found = store.restore("a")
    assert found is not None
    assert sequences_of(found) == [2]


@pytest.mark.parametrize("pruned", [False, True])
def test_without_any_good_snapshot_the_journal_is_enough_or_the_loss_is_said(
    store: Store, kind: str, where: str, pruned: bool
) -> None:
    for number in range(3):
        append(store, ["a"], [number])
        store.snapshot([snapshot("a", store.last)])
    if pruned:
        store.prune()
    store.close()
    execute(kind, where, "UPDATE snapshots SET sha256 = ''")
    store.open(MODEL)
    store.claim(["a"])
    (found,) = store.recover()
    assert found.snapshot is None
    assert sequences_of(found) == ([2] if pruned else [0, 1, 2])
    assert ("restore a backup" in found.damage) is pruned


def test_an_imported_state_makes_all_before_it_void(store: Store, kind: str, where: str) -> None:
    for number in range(2):
        append(store, ["a"], [number])
        store.snapshot([snapshot("a", store.last, b"old")])
    store.snapshot([snapshot("a", store.last, b"brought", imported=True)])
    append(store, ["a"], [2])
    assert list(all_of(store)) == [("a", b"brought", [2])]
    store.close()
    execute(kind, where, "UPDATE snapshots SET sha256 = ''")
    store.open(MODEL)
    store.claim(["a"])
    (found,) = store.recover()
    assert found.damage
    assert sequences_of(found) == [2]


def test_a_damaged_block_is_an_error_and_repair_gives_up_its_rows_alone(store: Store, kind: str, where: str) -> None:
    append(store, ["a"], [0])
    middle = append(store, ["a", "b"], [1, 2])
    append(store, ["b"], [3])
    store.close()
    column = "body"
    hurt = f"substr({column}, 1, 20) || x'ff' || substr({column}, 22)" if kind == "sqlite" else "set_byte(body, 20, 7)"
    execute(kind, where, f"UPDATE journal SET {column} = CAST({hurt} AS {'BLOB' if kind == 'sqlite' else 'BYTEA'}) "
            f"WHERE first = {middle}")  # fmt: skip
    store.open(MODEL)
    store.claim(["a", "b"])
    with pytest.raises(CorruptError, match=rf"rows {middle} to {middle + 1} .*repair"):
        list(all_of(store))
    (said,) = store.repair()
    assert str(middle) in said
    assert list(all_of(store)) == [("a", None, [0]), ("b", None, [3])]
    assert [row.facts["first"] for row in store.read_ledger() if row.kind == "corrupt"] == [middle]
    assert store.repair() == []
