"""The schema: exact time, honest missing values, errors that name the column and the row."""

import datetime as dt

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tsgdn2.datasets.errors import DataError, FrameError
from tsgdn2.datasets.frame import (
    CHANNEL,
    STREAM,
    TIME,
    TIME_DTYPE,
    VALUE,
    channels,
    lengthen,
    normalise,
    validate,
    widen,
)

STAMPS = st.integers(-(2**63) + 2, 2**63 - 2)
VALUES = st.none() | st.floats(allow_nan=False, allow_infinity=False)


def loose(**columns: object) -> pl.DataFrame:
    return pl.DataFrame({STREAM: ["a", "a"], TIME: [dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 2)], **columns})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), STAMPS, VALUES, VALUES),
        unique_by=lambda r: (r[0], r[1]),
        min_size=1,
        max_size=30,
    )
)
def test_nanoseconds_and_nulls_come_out_as_they_went_in(rows):
    raw = pl.DataFrame(rows, schema={STREAM: pl.String, TIME: pl.Int64, "x": pl.Float64, "y": pl.Float64}, orient="row")
    frame = validate(normalise(raw, unit="ns"))
    back = frame.with_columns(pl.col(TIME).to_physical())
    assert back.rows() == sorted(rows, key=lambda r: (r[0], r[1]))
    assert_frame_equal(normalise(frame), frame)


def test_a_naive_stamp_is_utc_and_an_aware_one_is_converted():
    naive = normalise(loose(x=[1.0, 2.0]))
    aware = normalise(loose(x=[1.0, 2.0]).with_columns(pl.col(TIME).dt.replace_time_zone("Europe/Berlin")))
    assert naive.schema[TIME] == aware.schema[TIME] == TIME_DTYPE
    assert (naive[TIME] - aware[TIME]).to_list() == [dt.timedelta(hours=1)] * 2


@pytest.mark.parametrize(
    ("stamp", "options", "nanoseconds"),
    [
        ("1970-01-01T00:00:01.000000001Z", {}, 1_000_000_001),
        ("1970-01-01 02:00:00+02:00", {}, 0),
        ("1970-01-02", {}, 86_400 * 10**9),
        ("2.1.1970 00:00:01", {"time_format": "%d.%m.%Y %H:%M:%S"}, 86_401 * 10**9),
        (dt.date(1970, 1, 2), {}, 86_400 * 10**9),
        (-1, {"unit": "ms"}, -(10**6)),
        (1_357_020_000, {"unit": "s"}, 1_357_020_000 * 10**9),
        (1_357_020_000.25, {"unit": "s"}, 1_357_020_000_250_000_000),
    ],
)
def test_every_way_to_write_an_instant_ends_in_the_same_nanoseconds(stamp, options, nanoseconds):
    frame = normalise(pl.DataFrame({"when": [stamp], "x": [1]}), time="when", name="a", **options)
    assert frame[TIME].to_physical().to_list() == [nanoseconds]


def test_rows_are_sorted_and_channels_are_floats_with_nulls():
    raw = pl.DataFrame(
        {"who": [2, 1, 1], "t": [1, 5, 3], "n": [1, -9999, 3], "b": [True, None, False], "z": [None] * 3}
    )
    frame = normalise(raw, stream="who", time="t", unit="s", missing=(-9999,))
    assert frame[STREAM].to_list() == ["1", "1", "2"]
    assert channels(frame) == ["n", "b", "z"]
    assert frame["n"].to_list() == [3.0, None, 1.0]
    assert frame["b"].to_list() == [0.0, None, 1.0]
    assert frame.schema["z"] == pl.Float64
    assert normalise(raw, stream="who", time="t", unit="s", channels=["b"]).columns == [STREAM, TIME, "b"]


def test_nan_is_missing():
    assert normalise(loose(x=[float("nan"), 1.0]))["x"].to_list() == [None, 1.0]


def test_the_same_instant_twice_is_an_error_until_a_policy_is_named():
    raw = pl.concat([loose(x=[1.0, 2.0]), loose(x=[3.0, 4.0])])
    with pytest.raises(FrameError, match=r"'a' at 2020-01-01T.*4 such rows.*duplicates='last'"):
        normalise(raw)
    assert normalise(raw, duplicates="last")["x"].to_list() == [3.0, 4.0]
    assert normalise(raw, duplicates="first")["x"].to_list() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("raw", "options", "message"),
    [
        (loose(x=[1.0, float("inf")]), {}, "channel 'x' is inf in row 1"),
        (loose(x=["1", "2"]), {}, "channel 'x' must hold numbers"),
        (loose(), {}, "no channel is left"),
        (loose(x=[1, 2]), {"time": "when"}, "no column 'when'"),
        (loose(x=[1, 2]), {"channels": ["y"]}, "no column 'y'"),
        (loose(x=[1, 2]), {"duplicates": "mean"}, "duplicates must be"),
        (loose(x=[1, 2]).with_columns(stream=pl.lit(1.5)), {}, "stream column 'stream' must be text"),
        (loose(x=[1, 2]).with_columns(stream=pl.Series(["a", None])), {}, "'stream' is empty in row 1"),
        (loose(x=[1, 2]).with_columns(time=pl.Series([dt.datetime(2020, 1, 1), None])), {}, "'time' is empty in row 1"),
        (loose(x=[1, 2]).with_columns(time=pl.Series([1.0, float("nan")])), {"unit": "s"}, "'time' is empty in row 1"),
        (loose(x=[1, 2]).with_columns(time=pl.Series([1, 2])), {}, "unit must be ns, us, ms or s, got None"),
        (loose(x=[1, 2]).with_columns(time=pl.Series([1, 2**62])), {"unit": "s"}, "row 1: 4611686018427387904"),
        (loose(x=[1, 2]).with_columns(time=pl.Series([1.0, 1e300])), {"unit": "s"}, "row 1: 1e[+]300"),
        (loose(x=[1, 2]).with_columns(time=pl.Series([1.0, float("inf")])), {"unit": "s"}, "row 1: inf"),
        (loose(x=[1, 2]).with_columns(time=pl.Series(["2020-01-01", "soon"])), {}, "row 1: 'soon' is not ISO 8601"),
        (
            loose(x=[1, 2]).with_columns(time=pl.Series(["2020-01-01", "01/02/2020"])),
            {},
            "row 1: '01/02/2020' is not ISO",
        ),
        (loose(x=[1, 2]).with_columns(time=pl.Series(["01/02/2020"] * 2)), {}, "is not ISO 8601 .*; pass time_format"),
        (loose(x=[1, 2]).with_columns(time=pl.lit(dt.datetime(2500, 1, 1))), {}, "row 0: .* 1677 to 2262"),
        (loose(x=[1, 2]).with_columns(time=pl.lit(True)), {}, "must be datetime, date, text or numbers"),
    ],
)
def test_a_bad_loose_frame_is_refused_by_name(raw, options, message):
    with pytest.raises(FrameError, match=message):
        normalise(raw, **options)


GOOD = normalise(loose(x=[1.0, None], y=[None, 2.0]))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (GOOD.drop(STREAM), "no column 'stream'"),
        (GOOD.select(STREAM, TIME), "no channel"),
        (GOOD.with_columns(pl.col(TIME).cast(pl.Datetime("us", "UTC"))), "'time' must be Datetime"),
        (GOOD.with_columns(pl.col("x").cast(pl.Float32)), "'x' must be Float64"),
        (GOOD.with_columns(x=pl.lit(float("nan"))), "'x' is NaN in row 0"),
        (GOOD.with_columns(x=pl.lit(float("-inf"))), "'x' is -inf in row 0"),
        (GOOD.with_columns(stream=pl.lit(None, dtype=pl.String)), "'stream' is empty in row 0"),
        (GOOD.reverse(), "row 1 is out of order"),
        (pl.concat([GOOD, GOOD.tail(1)]), r"stands twice \(row 2\)"),
    ],
)
def test_a_frame_that_breaks_a_rule_is_refused_by_name(frame, message):
    with pytest.raises(FrameError, match=message):
        validate(frame)


def test_an_empty_frame_of_the_schema_is_valid_and_errors_are_value_errors():
    assert validate(GOOD.clear()).height == 0
    assert issubclass(FrameError, DataError)
    assert issubclass(DataError, ValueError)


LONG = {STREAM: pl.String, TIME: pl.Int64, CHANNEL: pl.String, VALUE: pl.Float64}


def long(rows: list[tuple]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=LONG, orient="row")


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ba"), STAMPS | st.integers(0, 3), st.sampled_from(["t", "p", "\u00e9"]), VALUES)
    ),
    st.sampled_from(["first", "last"]),
)
def test_each_cell_of_a_widened_frame_is_what_its_channel_reported(rows, keep):
    cells: dict[tuple, float | None] = {}
    for stream, time, channel, value in rows if keep == "last" else reversed(rows):
        cells[stream, time, channel] = value
    wide = validate(widen(long(rows), unit="ns", channels=["t", "p", "never", "\u00e9"], duplicates=keep))
    assert wide.columns == [STREAM, TIME, "t", "p", "never", "\u00e9"]
    assert wide.with_columns(pl.col(TIME).to_physical()).rows() == [
        (*key, *(cells.get((*key, channel)) for channel in channels(wide))) for key in sorted({row[:2] for row in rows})
    ]
    again = lengthen(wide)
    assert again.height == sum(value is not None for value in cells.values())
    heard = wide.filter(pl.any_horizontal(pl.col(channels(wide)).is_not_null()))
    assert_frame_equal(widen(again, channels=channels(wide)), heard)


def test_sensors_that_report_each_at_its_own_rate_stand_side_by_side():
    raw = pl.DataFrame(
        {
            "when": ["2020-01-01 00:00:00.0000001", "2020-01-01 00:00:01", "2020-01-01 00:00:00.0000001"],
            "tag": [7, 7, 10],
            "reading": [1.0, -999.0, float("nan")],
            "note": ["x", "y", "z"],
        }
    )
    wide = widen(raw, time="when", channel="tag", value="reading", name="pump", missing=(-999,))
    assert wide.columns == [STREAM, TIME, "10", "7"]
    assert wide.select("10", "7").rows() == [(None, 1.0), (None, None)]
    assert wide[TIME].dt.nanosecond().to_list() == [100, 0]
    parts = lengthen(wide)
    assert parts.schema == {STREAM: pl.String, TIME: TIME_DTYPE, CHANNEL: pl.String, VALUE: pl.Float64}
    assert [row[2:] for row in parts.rows()] == [("7", 1.0)]
    only = widen(raw, time="when", channel="tag", value="reading", name="pump", channels=["10"])
    assert only.rows() == [("pump", wide[TIME][0], None)]


def test_the_parts_of_a_frame_follow_its_stream_its_time_and_the_order_of_its_channels():
    frame = normalise(loose(z=[1.0, None], a=[None, 2.0], m=[3.0, 4.0]))
    assert [row[2:] for row in lengthen(frame).rows()] == [("z", 1.0), ("m", 3.0), ("a", 2.0), ("m", 4.0)]
    assert lengthen(frame.clear()).height == 0
    with pytest.raises(FrameError, match="row 1 is out of order"):
        lengthen(frame.reverse())


REPORTS = long([("a", 1, "t", 1.0), ("a", 1, "t", 2.0), ("a", 1, "p", 3.0)])


@pytest.mark.parametrize(
    ("raw", "options", "message"),
    [
        (REPORTS, {}, r"channel 't' of stream 'a' at 1970-01-01T00:00:01.* more than once \(2 such rows\)"),
        (REPORTS, {"duplicates": "mean"}, "duplicates must be 'error', 'first' or 'last', got 'mean'"),
        (REPORTS.drop(VALUE), {}, "no column 'value'"),
        (REPORTS, {"channel": "tag"}, "no column 'tag'"),
        (REPORTS.with_columns(channel=pl.Series(["t", None, "p"])), {}, "'channel' is empty in row 1"),
        (REPORTS.with_columns(channel=pl.lit(0.5)), {}, "channel column 'channel' must be text or integers"),
        (REPORTS.with_columns(channel=pl.lit("time")), {}, "channels must be one or more names, each once and neither"),
        (REPORTS, {"channels": []}, r"channels must be one or more names, .* got \[\]"),
        (REPORTS, {"channels": ["t", "t"]}, "channels must be one or more names"),
        (REPORTS.clear(), {}, "channels must be one or more names"),
        (REPORTS.with_columns(value=pl.lit("1")), {}, "value 'value' must hold numbers, got String"),
        (REPORTS.with_columns(value=pl.Series([1.0, 2.0, float("inf")])), {}, "value 'value' is inf in row 2"),
        (REPORTS, {"unit": None}, "unit must be ns, us, ms or s"),
    ],
)
def test_bad_reports_are_refused_by_name(raw, options, message):
    with pytest.raises(FrameError, match=message):
        widen(raw, **{"unit": "s", **options})
