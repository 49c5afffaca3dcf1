"""Marks: nothing lost, nothing twice, whatever the order in which rows come, and the same after a restart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tsgdn2.service.batch import UNNUMBERED, Batch
from tsgdn2.service.errors import CorruptError
from tsgdn2.service.marks import BEHIND, MOST_SOURCES, NEW, SEEN, WINDOW, Marks, sift

SOURCES = ("", "mqtt", "ü")


class MarksAgainstSets(RuleBasedStateMachine):
    """Marks beside the set of every sequence that was ever seen."""

    def __init__(self) -> None:
        super().__init__()
        self.marks = Marks()
        self.seen: dict[str, set[int]] = {source: set() for source in SOURCES}

    def expected(self, source: str, sequence: int) -> int:
        seen = self.seen[source]
        if seen and max(seen) - sequence >= WINDOW:
            return BEHIND
        return SEEN if sequence in seen else NEW

    def check(self, source: str, sequence: int) -> None:
        expected = self.expected(source, sequence)
        assert self.marks.look(source, sequence) == expected
        assert self.marks.take(source, sequence) == expected
        if expected == NEW:
            self.seen[source].add(sequence)

    @rule(source=st.sampled_from(SOURCES), sequence=st.integers(0, 40))
    def a_small_sequence(self, source: str, sequence: int) -> None:
        self.check(source, sequence)

    @rule(source=st.sampled_from(SOURCES), back=st.integers(-2 * WINDOW, WINDOW + 5))
    def one_near_the_highest(self, source: str, back: int) -> None:
        self.check(source, max(0, max(self.seen[source], default=0) - back))

    @rule(source=st.sampled_from(SOURCES), sequence=st.integers(0, 2**63 - 1))
    def any_sequence(self, source: str, sequence: int) -> None:
        self.check(source, sequence)

    @rule(source=st.sampled_from(SOURCES))
    def a_row_without_a_number(self, source: str) -> None:
        assert self.marks.take(source, UNNUMBERED) == self.marks.look(source, UNNUMBERED) == NEW

    @rule()
    def a_restart(self) -> None:
        again = Marks.from_bytes(self.marks.to_bytes())
        assert again == self.marks
        self.marks = again

    @invariant()
    def the_highest_is_known(self) -> None:
        assert self.marks.highest == {source: max(seen) for source, seen in self.seen.items() if seen}


TestMarksAgainstSets = MarksAgainstSets.TestCase
TestMarksAgainstSets.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@given(st.permutations(range(60)), st.lists(st.integers(0, 59), max_size=60))
def test_every_row_is_taken_once_whatever_the_order(order: list[int], again: list[int]) -> None:
    marks = Marks()
    assert [marks.take("s", sequence) for sequence in order] == [NEW] * 60
    assert {marks.take("s", sequence) for sequence in again} <= {SEEN}


def test_what_falls_out_of_the_window_counts_as_seen() -> None:
    marks = Marks()
    assert marks.take("s", WINDOW) == NEW
    assert marks.take("s", 1) == NEW
    assert marks.take("s", 0) == BEHIND
    assert marks.take("s", 10 * WINDOW) == NEW
    assert marks.take("s", WINDOW) == BEHIND


def test_the_source_whose_last_new_row_is_oldest_is_forgotten_first() -> None:
    marks = Marks()
    for number in range(MOST_SOURCES):
        marks.take(f"s{number}", 7)
    marks.take("s0", 8)
    marks.take("s1", 7)
    marks.take("one too many", 0)
    assert marks.look("s0", 8) == SEEN
    assert marks.look("s1", 7) == NEW
    assert len(marks.highest) == MOST_SOURCES


def batch(rows: list[tuple[str, str, int]]) -> Batch:
    streams, sources, sequences = zip(*rows, strict=True)
    return Batch.of(streams, np.zeros(len(rows), np.int64), np.zeros(len(rows)), sources=sources, sequences=sequences)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "m"]), st.integers(-1, 9)), min_size=1, max_size=40)
)
def test_sifting_is_taking_row_by_row_and_undo_is_as_if_it_had_not_been(rows: list[tuple[str, str, int]]) -> None:
    live = {"a": Marks(), "b": Marks()}
    live["a"].take("m", 3)
    before = {name: marks.copy() for name, marks in live.items()}
    alone = {name: marks.copy() for name, marks in live.items()}
    sifting = sift(batch(rows), live.__getitem__)
    assert sifting.status.tolist() == [alone[stream].take(source, number) for stream, source, number in rows]
    assert live == alone
    assert sifting.fresh.tolist() == [status == NEW for status in sifting.status.tolist()]
    sifting.undo()
    assert live == before


def test_a_stream_whose_marks_can_not_be_had_leaves_the_others_as_they_were() -> None:
    live = {"a": Marks()}
    with pytest.raises(KeyError):
        sift(batch([("a", "m", 1), ("gone", "m", 1)]), live.__getitem__)
    assert live["a"] == Marks()


def test_marks_of_one_source_are_small() -> None:
    marks = Marks()
    for sequence in range(5 * WINDOW):
        marks.take("sensor", sequence)
    assert len(marks.to_bytes()) < 170


def test_no_bytes_are_no_marks() -> None:
    assert Marks.from_bytes(b"") == Marks()


@given(st.data())
def test_marks_that_were_altered_are_refused(data: st.DataObject) -> None:
    marks = Marks()
    for source, sequence in itertools.product(("a", "bc"), (3, 1, 900)):
        marks.take(source, sequence)
    whole = marks.to_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    for other in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :]):
        if other:
            with pytest.raises(CorruptError, match="marks"):
                Marks.from_bytes(other)


@given(st.binary(max_size=300))
def test_noise_is_no_marks(noise: bytes) -> None:
    if noise:
        with pytest.raises(CorruptError):
            Marks.from_bytes(noise)
