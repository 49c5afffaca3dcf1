"""Both stores beside a plain Python model, in any order of appends, snapshots, prunings, deletions and restarts."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.service.shelves import MODEL, place, rows, sequences_of, snapshot, store_at

from tsgdn2.service.marks import Marks

NAMES = ("a", "b", "c", "ü")


class StoreBesideModel(RuleBasedStateMachine):
    """The model: each stream's rows since it began, its two newest snapshots, and what pruning may have taken."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.store = store_at(self.kind, place(self.kind, Path(folder)))
        self.store.open(MODEL)
        self.next = 0
        self.rows: dict[str, list[tuple[int, int]]] = {}
        self.snapshots: dict[str, list[tuple[int, bytes]]] = {}
        self.pruned: dict[str, int] = {}
        self.ledger = 0

    def teardown(self) -> None:
        self.store.close()
        self.stack.close()

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=8))
    def append(self, names: list[str]) -> None:
        self.store.claim(names)
        numbers = list(range(self.next, self.next + len(names)))
        first = self.store.append(rows(names, numbers))
        assert all(first > seq for found in self.rows.values() for seq, _ in found)
        self.next += len(names)
        for at, name in enumerate(names):
            self.rows.setdefault(name, []).append((first + at, numbers[at]))

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), now=st.booleans())
    def snapshot(self, data: st.DataObject, now: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.rows)))
        seq = self.store.last if now else self.rows[name][-1][0]
        blob, marks = str([number for _, number in self.rows[name]]).encode(), Marks()
        for _, number in self.rows[name]:
            marks.take("mqtt", number)
        self.store.snapshot([snapshot(name, seq, blob, marks)])
        kept = {at: text for at, text in self.snapshots.get(name, []) if at != seq} | {seq: blob}
        self.snapshots[name] = sorted(kept.items())[-2:]

    @rule()
    def prune(self) -> None:
        self.store.prune()
        self.pruned |= {name: found[0][0] for name, found in self.snapshots.items() if len(found) == 2}

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.rows)))
        self.store.forget([name])
        for known in (self.rows, self.snapshots, self.pruned):
            known.pop(name, None)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store.open(MODEL)
        self.store.claim(sorted(self.rows))

    @rule()
    def damage_is_not_found(self) -> None:
        assert self.store.repair() == []

    @invariant()
    def what_is_recovered_is_what_was_appended(self) -> None:
        found = {}
        for recovered in self.store.recover():
            blob = recovered.snapshot and recovered.snapshot.blob
            found[recovered.stream] = (blob, sequences_of(recovered))
            assert not recovered.damage
        expected = {}
        for name, appended in self.rows.items():
            seq, blob = self.snapshots.get(name, [(0, None)])[-1]
            expected[name] = (blob, [number for at, number in appended if at > seq])
        assert found == expected

    @invariant()
    def nothing_that_may_be_needed_is_pruned(self) -> None:
        for name, appended in self.rows.items():
            held = [seq for part in self.store.rows_after(name, 0) for seq in part.seqs.tolist()]
            needed = [seq for seq, _ in appended if seq > self.pruned.get(name, 0)]
            assert held[len(held) - len(needed) :] == needed
            assert set(held) <= {seq for seq, _ in appended}

    @invariant()
    def marks_know_every_row(self) -> None:
        for name, appended in self.rows.items():
            marks = self.store.marks(name)
            assert all(marks.look("mqtt", number) != 0 for _, number in appended)
            assert marks.highest == {"mqtt": appended[-1][1]}


class SqliteBesideModel(StoreBesideModel):
    kind = "sqlite"


class PostgresBesideModel(StoreBesideModel):
    kind = "postgres"


TestSqlite = SqliteBesideModel.TestCase
TestSqlite.settings = settings(max_examples=15, stateful_step_count=18, deadline=None)
TestPostgres = PostgresBesideModel.TestCase
TestPostgres.settings = settings(max_examples=5, stateful_step_count=18, deadline=None)
