"""Batches: what they refuse, and that taking apart and putting together changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgdn2.errors import SchemaError, StreamError
from tsgdn2.service.batch import LONGEST_NAME, Batch, check_name


def numbered(rows: int, channels: int = 2) -> Batch:
    values = np.arange(rows * channels, dtype=float).reshape(rows, channels)
    names = [f"s{row % 3}" for row in range(rows)]
    return Batch.of(names, np.arange(rows), values, sources=["m"] * rows, sequences=np.arange(rows))


def same(left: Batch, right: Batch) -> bool:
    return (
        left.streams == right.streams
        and left.sources == right.sources
        and left.times.tobytes() == right.times.tobytes()
        and left.sequences.tobytes() == right.sequences.tobytes()
        and left.values.tobytes() == right.values.tobytes()
    )


@given(rows=st.integers(0, 40), most=st.integers(1, 50))
def test_parts_put_together_are_the_batch(rows: int, most: int) -> None:
    batch = numbered(rows)
    parts = list(batch.parts(most))
    assert [len(part) for part in parts] == [min(most, rows - at) for at in range(0, rows, most)]
    if parts:
        assert same(Batch.concat(parts), batch)


def test_rows_are_taken_by_number_or_by_mask_in_the_order_given() -> None:
    batch = numbered(5)
    assert batch.take([4, 0]).times.tolist() == [4, 0]
    assert same(batch.take(np.array([True, False, False, False, True])), batch.take([0, 4]))
    assert batch.take(range(5)) is batch
    assert len(batch.take([])) == 0


def test_a_row_has_neither_source_nor_sequence_unless_given() -> None:
    batch = Batch.of(["a", "b"], [1, 2], [1.0, np.nan])
    assert (batch.sources, batch.sequences.tolist(), batch.channels) == (("", ""), [-1, -1], 1)


def test_times_may_be_numpy_moments() -> None:
    assert Batch.of(["a"], np.array(["1970-01-01T00:00:01"], "datetime64[s]"), [1.0]).times.tolist() == [10**9]


def test_a_batch_can_not_be_changed_and_keeps_no_hold_of_what_it_was_made_of() -> None:
    values = np.ones((1, 2))
    batch = Batch.of(["a"], [0], values)
    values[0, 0] = 5.0
    assert batch.values[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        batch.values[0, 0] = 2.0


def test_memory_is_counted() -> None:
    assert numbered(100).nbytes >= 100 * (8 + 16 + 8)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"times": [1, 2]}, SchemaError, "times: must be one integer for each of 1 rows"),
        ({"times": [1.5]}, SchemaError, "times: must be one integer"),
        ({"times": np.array(["NaT"], "datetime64[ns]")}, SchemaError, "no time"),
        ({"values": [["x"]]}, SchemaError, "values: must be numbers"),
        ({"values": [[]]}, SchemaError, "values"),
        ({"values": [[[1.0]]]}, SchemaError, "values"),
        ({"values": [[1.0, np.inf]]}, SchemaError, "row 0, channel 1 is infinite"),
        ({"values": [[-np.inf]]}, SchemaError, "infinite"),
        ({"sources": ["a", "b"]}, SchemaError, "sources: must be one for each"),
        ({"sequences": [-2]}, StreamError, "sequences: must be at least 0"),
        ({"sequences": np.array([2**63], np.uint64)}, SchemaError, "63 bits"),
        ({"streams": [""]}, StreamError, "stream: must be a string that is not empty"),
        ({"streams": ["a\x00"]}, StreamError, "NUL"),
        ({"streams": ["\ud800"]}, StreamError, "half of a character"),
        ({"streams": ["ä" * LONGEST_NAME]}, StreamError, "512 bytes"),
        ({"sources": ["a\x00"]}, StreamError, "source: .* NUL"),
    ],
)
def test_what_can_not_be_kept_is_refused_by_name(
    change: dict[str, object], kind: type[Exception], message: str
) -> None:
    good: dict[str, object] = {"streams": ["a"], "times": [1], "values": [[1.0]], "sources": ["m"], "sequences": [0]}
    given_ = good | change
    with pytest.raises(kind, match=message):
        Batch.of(given_.pop("streams"), given_.pop("times"), given_.pop("values"), **given_)  # type: ignore[arg-type]


def test_batches_of_different_channels_are_not_put_together() -> None:
    for batches in ([], [numbered(1, 1), numbered(1, 2)]):
        with pytest.raises(SchemaError, match="all of the same channels"):
            Batch.concat(batches)


def test_a_part_has_at_least_one_row() -> None:
    with pytest.raises(SchemaError, match="most"):
        list(numbered(2).parts(0))


@given(st.text(min_size=1, max_size=100))
def test_a_name_that_passes_is_text_that_a_database_keeps(name: str) -> None:
    try:
        check_name("stream", name)
    except StreamError:
        assert "\x00" in name or not name.isprintable() or any("\ud800" <= c <= "\udfff" for c in name)
    else:
        assert name.encode().decode() == name
        assert "\x00" not in name
