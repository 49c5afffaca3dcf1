"""The absolute grid: floor, last value wins, collisions counted, gaps left alone unless asked."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tsgdn2.datasets.errors import FrameError
from tsgdn2.datasets.frame import STREAM, TIME, normalise, validate
from tsgdn2.datasets.grid import pandas_freq, period_ns, regular

HOUR = 3600 * 10**9


def framed(rows: list[tuple]) -> pl.DataFrame:
    schema = {STREAM: pl.String, TIME: pl.Int64, "x": pl.Float64, "y": pl.Float64}
    return normalise(pl.DataFrame(rows, schema=schema, orient="row"), unit="ns")


ROWS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.integers(-200, 200),
        st.none() | st.integers(0, 3).map(float),
        st.none() | st.integers(0, 3).map(float),
    ),
    unique_by=lambda r: (r[0], r[1]),
    min_size=1,
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(1, 50))
def test_the_last_value_of_a_cell_wins_and_what_it_replaced_is_counted(rows, period):
    cells: dict[tuple, list] = {}
    lost = {row[0]: 0 for row in rows}
    for stream, time, *values in sorted(rows, key=lambda r: (r[0], r[1])):
        cell = cells.setdefault((stream, time // period * period), [None, None])
        for channel, value in enumerate(values):
            if value is not None:
                lost[stream] += cell[channel] is not None and cell[channel] != value
                cell[channel] = value
    made = regular(framed(rows), period)
    out = validate(made.frame).with_columns(pl.col(TIME).to_physical())
    assert out.rows() == [(*key, *values) for key, values in cells.items()]
    assert made.collisions == lost
    assert_frame_equal(regular(made.frame, period).frame, made.frame)


@settings(max_examples=50, deadline=None)
@given(ROWS, st.integers(1, 50))
def test_filled_gaps_are_null_rows_and_nothing_else_changes(rows, period):
    plain, filled = regular(framed(rows), period), regular(framed(rows), period, fill_gaps=True)
    validate(filled.frame)
    for _, part in filled.frame.group_by(STREAM):
        assert set(np.diff(part[TIME].to_physical().to_numpy())) <= {period}
    assert_frame_equal(filled.frame.join(plain.frame.select(STREAM, TIME), on=[STREAM, TIME]), plain.frame)
    added = filled.frame.join(plain.frame, on=[STREAM, TIME], how="anti")
    assert added.select("x", "y").null_count().row(0) == (added.height, added.height)


def test_an_empty_frame_stays_empty():
    empty = framed([("a", 0, 1.0, 1.0)]).clear()
    for fill_gaps in (False, True):
        made = regular(empty, "1h", fill_gaps=fill_gaps)
        assert made.frame.height == 0
        assert made.collisions == {}


@pytest.mark.parametrize(
    ("period", "length", "freq"),
    [
        ("1h", HOUR, "h"),
        ("H", HOUR, "h"),
        ("15min", HOUR // 4, "15min"),
        ("15T", HOUR // 4, "15min"),
        ("60min", HOUR, "h"),
        ("D", 24 * HOUR, "D"),
        ("1w", 168 * HOUR, "7D"),
        ("250ms", 25 * 10**7, "250ms"),
        (10**9, 10**9, "s"),
        (7, 7, "7ns"),
    ],
)
def test_periods_are_read_and_named_for_pandas(period, length, freq):
    assert (period_ns(period), pandas_freq(period)) == (length, freq)
    assert period_ns(freq) == length


@pytest.mark.parametrize("period", [0, -1, 2**63, True, "M", "1mo", "", "h1", "0h", "1 h 2", 1.5, None])
def test_a_period_without_a_fixed_length_is_refused(period):
    with pytest.raises(FrameError, match="period must be"):
        period_ns(period)


def test_a_period_that_would_fill_memory_is_refused():
    with pytest.raises(FrameError, match="choose a longer period"):
        regular(framed([("a", 0, 1.0, 1.0), ("a", HOUR, 1.0, 1.0)]), 1, fill_gaps=True)
