"""Events come in exactly and in their order; windows of them are what a loop over the events finds."""

import datetime as dt
import math
import statistics

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tsgdn2.datasets.errors import FrameError
from tsgdn2.datasets.events import (
    TYPE,
    Aggregate,
    marks,
    normalise_events,
    parse_aggregate,
    validate_events,
    windows,
)
from tsgdn2.datasets.frame import STREAM, TIME, TIME_DTYPE, validate

HOUR = 3600 * 10**9
RAW = {STREAM: pl.String, TIME: pl.Int64, TYPE: pl.String, "x": pl.Float64, "y": pl.Float64}
TYPES = st.none() | st.sampled_from(["u", "a](b"])
NUMBERS = st.none() | st.integers(-8, 8).map(float)


def framed(rows: list[tuple]) -> pl.DataFrame:
    return normalise_events(pl.DataFrame(rows, schema=RAW, orient="row"), unit="ns")


def stream_rows(times: st.SearchStrategy[int], least: int = 0) -> st.SearchStrategy[list[tuple]]:
    return st.lists(st.tuples(st.sampled_from("ab"), times, TYPES, NUMBERS, NUMBERS), min_size=least, max_size=30)


def physical(frame: pl.DataFrame) -> list[tuple]:
    return frame.with_columns(pl.col(TIME).to_physical()).rows()


@settings(max_examples=60, deadline=None)
@given(stream_rows(st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(0, 3)))
def test_events_come_out_to_the_nanosecond_and_equal_stamps_keep_their_order(rows):
    events = validate_events(framed(rows))
    assert physical(events) == sorted(rows, key=lambda r: r[:2])
    assert events.schema == {STREAM: pl.String, TIME: TIME_DTYPE, TYPE: pl.String, "x": pl.Float64, "y": pl.Float64}
    assert_frame_equal(normalise_events(events), events)


def test_a_loose_frame_of_other_names_and_dtypes_comes_in():
    raw = pl.DataFrame(
        {
            "who": [2, 1, 1],
            "when": ["2023-11-16 18:17:03.9799601", "2262-04-11 23:47:16.8547758", "1969-12-31 23:59:59.9999999"],
            "what": pl.Series(["b", None, "a"], dtype=pl.Categorical),
            "n": [1, -9999, 3],
            "z": [float("nan"), 0.5, None],
            "note": ["x", "y", "z"],
        }
    )
    events = normalise_events(raw, stream="who", time="when", type="what", marks=("n", "z"), missing=(-9999,))
    assert physical(events) == [
        ("1", -100, "a", 3.0, None),
        ("1", 9_223_372_036_854_775_800, None, None, 0.5),
        ("2", 1_700_158_623_979_960_100, "b", 1.0, None),
    ]
    bare = normalise_events(raw, time="when", name="one", type=None, marks=())
    assert bare.columns == [STREAM, TIME, TYPE]
    assert bare[TYPE].null_count() == 3
    assert marks(bare) == []
    assert validate_events(bare.clear()).height == 0
    codes = normalise_events(pl.DataFrame({"time": [1], "type": [7], "b": [True]}), name="s", unit="s")
    assert codes.rows() == [("s", codes[TIME][0], "7", 1.0)]


LOOSE = pl.DataFrame({STREAM: ["a", "a"], TIME: [1, 2], TYPE: ["u", None], "x": [1.0, None]})


@pytest.mark.parametrize(
    ("raw", "options", "message"),
    [
        (LOOSE.drop(TYPE), {}, "no column 'type' of types, .*pass type=None"),
        (LOOSE.drop(STREAM), {}, "no column 'stream'"),
        (LOOSE, {"marks": ("z",)}, "no column 'z'"),
        (LOOSE, {"type": None}, "a mark can not be called 'type'"),
        (LOOSE, {"name": "s"}, "a mark can not be called 'stream'"),
        (LOOSE.with_columns(type=pl.lit(0.5)), {}, "type column 'type' must be text or integers, got Float64"),
        (LOOSE.with_columns(x=pl.Series([1.0, -math.inf])), {}, "mark 'x' is -inf in row 1"),
        (LOOSE.with_columns(x=pl.lit("1")), {}, "mark 'x' must hold numbers, got String; cast it, or keep other marks"),
        (LOOSE.with_columns(time=pl.Series([1, None])), {}, "'time' is empty in row 1"),
        (LOOSE.with_columns(stream=pl.Series([None, "a"])), {}, "'stream' is empty in row 0"),
        (LOOSE.with_columns(time=pl.Series([1, 2**62])), {}, "time column 'time', row 1: 4611686018427387904 is no"),
        (LOOSE, {"unit": None}, "unit must be ns, us, ms or s, got None"),
    ],
)
def test_a_bad_loose_frame_of_events_is_refused_by_name(raw, options, message):
    with pytest.raises(FrameError, match=message):
        normalise_events(raw, **{"unit": "s", **options})


GOOD = framed([("a", 5, "u", 1.0, None), ("a", 5, "u", 1.0, None), ("b", 4, None, None, 2.0)])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (GOOD.drop(TYPE), r"no column 'type', .*normalise_events\(frame\)"),
        (GOOD.with_columns(type=pl.lit(1)), "'type' must be String, got Int32"),
        (GOOD.with_columns(pl.col(TIME).cast(pl.Datetime("us", "UTC"))), "'time' must be Datetime"),
        (GOOD.with_columns(x=pl.lit(1)), r"mark 'x' must be Float64, got Int32; use normalise_events\(frame\)"),
        (GOOD.with_columns(x=pl.lit(math.nan)), "mark 'x' is NaN in row 0"),
        (GOOD.with_columns(y=pl.lit(math.inf)), "mark 'y' is inf in row 0"),
        (GOOD.with_columns(stream=pl.lit(None, dtype=pl.String)), "'stream' is empty in row 0"),
        (GOOD.reverse(), "row 1 is out of order"),
    ],
)
def test_a_frame_that_breaks_a_rule_of_events_is_refused_by_name(frame, message):
    assert validate_events(GOOD) is GOOD
    with pytest.raises(FrameError, match=message):
        validate_events(frame)
    with pytest.raises(FrameError, match=message):
        windows(frame, 5, targets={"n": "count"})


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["count", "mean", "sum", "min", "max"]),
    st.text(st.characters(exclude_characters="()[]\n"), min_size=1, max_size=5),
    st.none() | st.text(st.characters(exclude_characters="\n"), min_size=1, max_size=5),
)
def test_a_target_is_read_as_it_is_written(kind, mark, kind_of_event):
    wanted = Aggregate(kind, None if kind == "count" else mark, kind_of_event)
    assert parse_aggregate(str(wanted)) == wanted


BAD_TARGETS = ["", "Count", "count()", "count(x)", "mean", "mean()", "mean(x", "mean(x)[]", "count[]", "count[u",
               " count", "median(x)", "mean(x)[u]!", "mean((x))", None, 3]  # fmt: skip


@pytest.mark.parametrize("text", BAD_TARGETS)
def test_a_target_outside_the_grammar_is_refused(text):
    with pytest.raises(FrameError, match=r"a target must be count, count\[type\], or mean, sum, min or max"):
        parse_aggregate(text)
    with pytest.raises(FrameError, match="a target must be count"):
        windows(GOOD, 5, targets={"n": text})


NAMED = ["count", "count[u]", "count[a](b]", "count[never]", *(f"{k}({m}){t}" for k, m, t in [
    ("mean", "x", ""), ("sum", "x", ""), ("min", "y", ""), ("max", "y", ""), ("mean", "y", "[u]"),
    ("sum", "x", "[a](b]"), ("min", "x", "[u]"), ("max", "x", "[never]")])]  # fmt: skip


def naive(rows: list[tuple], every: int, start: int | None, stop: int | None, named: list[str]) -> list[tuple]:
    """Every window of every stream, one event at a time."""
    first = None if start is None else start // every
    last = None if stop is None else math.ceil(stop / every) - 1
    out = []
    for stream in sorted({row[0] for row in rows} | set(named)):
        its = sorted((row for row in rows if row[0] == stream), key=lambda row: row[1])
        at = [row[1] // every for row in its if (first is None or row[1] // every >= first)]
        at = [n for n in at if last is None or n <= last]
        if not at and (first is None or last is None):
            continue
        for n in range(at[0] if first is None else first, (at[-1] if last is None else last) + 1):
            held = [row for row in its if row[1] // every == n]
            out.append((stream, n * every, *(taken(held, parse_aggregate(text)) for text in NAMED)))
    return out


def taken(held: list[tuple], target: Aggregate) -> float | None:
    held = [row for row in held if target.type is None or row[2] == target.type]
    if target.kind == "count":
        return float(len(held))
    values = [row["xy".index(target.mark) + 3] for row in held]
    values = [value for value in values if value is not None]
    if target.kind == "sum":
        return sum(values, 0.0)
    return {"mean": statistics.fmean, "min": min, "max": max}[target.kind](values) if values else None


@settings(max_examples=150, deadline=None)
@given(
    stream_rows(st.integers(-60, 60)),
    st.integers(1, 25),
    st.none() | st.integers(-70, 0),
    st.none() | st.integers(1, 70),
    st.booleans(),
)
def test_windows_are_those_of_a_loop_over_the_events(rows, every, start, stop, silent):
    named = ["c", "a"] if silent and start is not None and stop is not None else []
    made = validate(windows(
        framed(rows), every, targets=dict(zip(NAMED, NAMED, strict=True)), start=start, stop=stop,
        streams=named or None,
    ))  # fmt: skip
    wanted = pl.DataFrame(naive(rows, every, start, stop, named), schema=made.schema, orient="row")
    assert_frame_equal(made, wanted, check_exact=False, rel_tol=1e-13, abs_tol=1e-13)


def test_any_expression_may_be_a_target_and_a_silent_window_has_its_value_of_no_events():
    rows = [("a", 0, "u", 1.0, 1.0), ("a", 1, "v", 3.0, None), ("a", 3, "u", None, 2.0), ("a", 25, None, 8.0, None)]
    targets = {
        "kinds": pl.col(TYPE).n_unique(),
        "half": pl.col("x").quantile(0.5, "linear"),
        "gap": pl.col(TIME).diff().max().dt.total_nanoseconds(),
        "any": pl.col("y").is_null().any(),
        "n": "count",
    }
    made = validate(windows(framed(rows), 10, targets=targets))
    assert made["kinds"].to_list() == [2.0, 0.0, 1.0]
    assert made["half"].to_list() == [2.0, None, 8.0]
    assert made["gap"].to_list() == [2.0, None, None]
    assert made["any"].to_list() == [1.0, 0.0, 1.0]
    assert made["n"].to_list() == [3.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": {}}, "targets must name at least one"),
        ({"targets": {TIME: "count"}}, "a target can not be called 'time'"),
        ({"targets": {"m": "mean(z)"}}, r"target 'mean\(z\)' needs a mark 'z', there is only \['x', 'y'\]"),
        ({"targets": {"m": "sum(type)"}}, "needs a mark 'type'"),
        ({"targets": {"m": pl.col("z").mean()}}, "target 'm' can not be taken of the columns .*'x', 'y'"),
        ({"targets": {"m": pl.col("x")}}, "target 'm' must be one number per window, .* Float64 in 0 rows"),
        ({"targets": {"m": pl.col(TYPE).first()}}, "target 'm' must be one number per window, .* String in 1 rows"),
        ({"targets": {"m": pl.col(TIME).max()}}, "must be one number per window"),
        ({"targets": {"m": pl.col("x").implode()}}, "must be one number per window"),
        ({"targets": {"m": pl.col("x").sum() / pl.col("y").count()}}, "'m' is inf in the window of 'a' that begins at"),
        ({"start": 5, "stop": 5}, "stop must lie after start, got start=5 and stop=5"),
        ({"start": 5, "stop": 4}, "stop must lie after start"),
        ({"start": 0, "streams": ["z"]}, "streams may name those without any event, so start and stop must be given"),
        ({"start": True}, "start must be int64 nanoseconds, ISO 8601 text or a datetime, got True"),
        ({"stop": 2**63}, "stop must be int64 nanoseconds"),
        ({"stop": "soon"}, "time column 'stop', row 0: 'soon' is not ISO 8601"),
        ({"every": "1mo"}, "period must be nanoseconds or a fixed length"),
        ({"every": 1, "stop": "2100-01-01"}, "windows of ns would be .* rows .*; choose longer ones"),
    ],
)
def test_windows_that_can_not_be_are_refused_by_name(options, message):
    events = framed([("a", 5, "u", 1.0, None), ("b", 4, None, None, 2.0)])
    with pytest.raises(FrameError, match=message):
        windows(events, **{"every": 10, "targets": {"n": "count"}, **options})


def test_the_range_is_given_in_any_clock_and_reaches_both_ends_of_int64():
    events = framed([("a", 5 * HOUR, "u", 1.0, None)])
    berlin = dt.timezone(dt.timedelta(hours=1))
    for start, stop in [
        (4 * HOUR, 7 * HOUR),
        (np.int64(4 * HOUR + 1), np.int64(6 * HOUR + 1)),
        ("1970-01-01T04:59:59.999999999", "1970-01-01T07:00:00+00:00"),
        (dt.datetime(1970, 1, 1, 4), dt.datetime(1970, 1, 1, 8, tzinfo=berlin)),
        (pd.Timestamp(5 * HOUR - 1), pd.Timestamp(6 * HOUR + 1, tz="UTC")),
    ]:
        made = windows(events, "1h", targets={"n": "count"}, start=start, stop=stop)
        assert physical(made) == [("a", 4 * HOUR, 0.0), ("a", 5 * HOUR, 1.0), ("a", 6 * HOUR, 0.0)]
    ends = framed([("a", -(2**63) + 1, None, None, None), ("b", 2**63 - 1, None, None, None)])
    made = windows(ends, 2, targets={"n": "count"})
    assert physical(made) == [("a", -(2**63), 1.0), ("b", 2**63 - 2, 1.0)]
    both = ends.with_columns(pl.lit("a").alias(STREAM))
    with pytest.raises(FrameError, match=r"windows of ns would be 18,446,744,073,709,551,616 rows"):
        windows(both, 1, targets={"n": "count"})
    with pytest.raises(FrameError, match="a window of h would begin before 1677"):
        windows(ends, "1h", targets={"n": "count"})


def test_no_events_make_no_windows_but_silence_where_a_range_and_streams_are_given():
    none = framed([])
    assert windows(none, "1h", targets={"n": "count", "m": "mean(x)"}).shape == (0, 4)
    assert windows(none, "1h", targets={"n": "count"}, start=0).height == 0
    made = windows(none, "1h", targets={"n": "count", "m": "mean(x)"}, start=0, stop=2 * HOUR, streams=["b", "a", "a"])
    assert physical(made) == [(s, t, 0.0, None) for s in "ab" for t in (0, HOUR)]
    late = framed([("a", 9 * HOUR, None, None, None), ("b", HOUR, None, None, None)])
    assert windows(late, "1h", targets={"n": "count"}, start=8 * HOUR)[STREAM].to_list() == ["a", "a"]
    assert validate(made) is made
