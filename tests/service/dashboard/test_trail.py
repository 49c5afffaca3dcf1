"""The last rows of a service: bounded, of one stream each, nothing of a deleted one; the newest rows of both stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.service.shelves import KINDS, MODEL, append, place, store_at

from tsgdn2.service.batch import Batch
from tsgdn2.service.receipts import Outcome
from tsgdn2.service.store import LedgerRow, Store
from tsgdn2.service.trail import Trail

NAMES = ("a", "b", "c")


def part(names: list[str], first: int) -> tuple[Batch, Outcome]:
    """Rows whose time, value and surprise tell their number."""
    numbers = np.arange(first, first + len(names))
    surprise = np.stack([numbers + 0.5, np.full(len(names), np.nan)], 1)
    return Batch.of(names, numbers, np.stack([numbers, -numbers], 1)), Outcome(["new"] * len(names), surprise)


@given(st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5), max_size=12), st.integers(1, 30), st.data())
def test_it_holds_the_last_rows_of_every_stream_as_far_as_they_fit(
    parts: list[list[str]], most: int, data: st.DataObject
) -> None:
    trail, held, count = Trail(rows=most), list[tuple[list[str], int]](), 0
    gone: dict[str, int] = {}
    for names in parts:
        trail.add(*part(names, count))
        held.append((names, count))
        while len(held) > 1 and sum(len(one) for one, _ in held) > most:
            held.pop(0)
        count += len(names)
        if data.draw(st.booleans()):
            gone[(name := data.draw(st.sampled_from(NAMES)))] = count
            trail.forget(name)
    limit = data.draw(st.integers(1, 8))
    tails = trail.view.tails(NAMES, limit)
    for name in NAMES:
        wanted = [
            first + row for names, first in held for row, one in enumerate(names)
            if one == name and first + row >= gone.get(name, 0)
        ][-limit:]  # fmt: skip
        found = trail.view.points(name, limit)
        assert ([] if found is None else found.times.tolist()) == wanted
        if found is not None:
            assert found.values[:, 1].tolist() == [-number for number in wanted]
            assert found.surprise[:, 0].tolist() == [number + 0.5 for number in wanted]
            assert tails[name] == (wanted[-1], [number + 0.5 for number in wanted])
        else:
            assert name not in tails


def test_deleted_streams_without_end_do_not_fill_it() -> None:
    trail = Trail(rows=10)
    for number in range(30_000):
        trail.add(*part([f"s{number}"], number))
        trail.forget(f"s{number}")
    assert len(trail.view.gone) <= 10_001
    assert trail.view.points("s29999", 5) is None


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = store_at(request.param, place(request.param, tmp_path))
    made.open(MODEL)
    yield made
    made.close()


def test_the_newest_rows_of_a_stream_come_in_their_order(store: Store) -> None:
    for number in range(0, 40, 2):
        append(store, ["a", "b"], [number, number + 1])
    append(store, ["a"] * 10, list(range(40, 50)))
    found = store.newest_rows("a", 13)
    assert [number for rows in found for number in rows.batch.sequences.tolist()] == [34, 36, 38, *range(40, 50)]
    assert all((np.diff(rows.seqs) > 0).all() for rows in found)
    assert {name for rows in store.newest_rows("b", 100) for name in rows.batch.streams} == {"b"}
    assert sum(len(rows.batch) for rows in store.newest_rows("b", 100)) == 20
    assert store.newest_rows("a", 0) == []
    store.forget(["a"])
    append(store, ["a"], [99])
    assert [rows.batch.sequences.tolist() for rows in store.newest_rows("a", 100)] == [[99]]


def test_the_newest_entries_of_the_ledger_come_first(store: Store) -> None:
    store.record(LedgerRow(kind="evicted", stream=f"s{number}") for number in range(7))
    first = store.newest_ledger(2**63 - 1, 3)
    assert [row.stream for row in first] == ["s6", "s5", "s4"]
    assert [row.stream for row in store.newest_ledger(first[-1].id, 100)] == ["s3", "s2", "s1", "s0"]
    assert store.newest_ledger(1) == []
