"""The wide frame schema of tsgdn2, and the way into it from loose frames and from long ones.

A frame is wide: one row per stream and instant. It holds no events (events.py does) and no units; a set with other
time zones, words or several tables has to be brought here first.

    column      dtype                  meaning
    stream      String                 who speaks; never null
    time        Datetime(ns, UTC)      when; exact int64 nanoseconds; never null; naive input is taken as UTC
    <channel>   Float64                what was measured; null is missing; never NaN, never infinite

Rows are sorted by stream, then time, and (stream, time) is unique. A missing row is a gap; nothing here fills one.
Sensors that report each at its own rate come long, one row per value: `widen` puts them side by side, null where a
channel did not report at that instant, and `lengthen` takes them apart again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import polars as pl

from tsgdn2.datasets.errors import FrameError
from tsgdn2.datasets.instants import Unit, instants

STREAM: Final = "stream"
TIME: Final = "time"
TIME_DTYPE: Final = pl.Datetime("ns", "UTC")
CHANNEL: Final = "channel"
VALUE: Final = "value"

Duplicates = Literal["error", "first", "last"]


def channels(frame: pl.DataFrame) -> list[str]:
    """Name the channels of a frame in column order; no check of the rest of the schema."""
    return [name for name in frame.columns if name not in (STREAM, TIME)]


def validate(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame itself if it follows the schema; nothing is repaired, `normalise` does that.

    Raises FrameError naming the first column and row that break a rule. Cost: a few passes over the frame.
    """
    check_dtypes(frame, {STREAM: pl.String, TIME: TIME_DTYPE}, remedy="normalise(frame)")
    if not channels(frame):
        raise FrameError("frame has no channel: at least one Float64 column beside stream and time is needed")
    check_numbers(frame, channels(frame), what="channel", remedy="normalise(frame)")
    row = first_row(repeats(frame, remedy="normalise(frame)"))
    if row is not None:
        raise FrameError(f"{_name(frame, row)} stands twice (row {row}); use normalise(frame, duplicates='last')")
    return frame


def normalise(
    frame: pl.DataFrame,
    *,
    stream: str = STREAM,
    time: str = TIME,
    name: str | None = None,
    channels: Sequence[str] | None = None,
    time_format: str | None = None,
    unit: Unit | None = None,
    missing: Sequence[float] = (),
    duplicates: Duplicates = "error",
) -> pl.DataFrame:
    """Bring a loose frame into the schema; the input is not changed, and no row is added.

    Args:
        frame: any polars frame with one row per stream and instant.
        stream: column with the stream's name (text, integer or categorical).
        time: column with the instant: datetime, date, text, or a number with `unit`; see instants.py.
        name: the stream's name when there is no such column; then `stream` is not read.
        channels: columns to keep as channels, in this order; None keeps all others, which must then be numbers.
        time_format: strftime format of a text column; None expects ISO 8601. A fraction of a second is %.f.
        unit: unit of numbers since 1970. Floats are rounded to the nanosecond, but hold 53 bits at most.
        missing: numbers that stand for a missing value, for example (-9999.0,). NaN always does.
        duplicates: rows of one stream with the same instant: "error", or keep the "first" or "last" in input order.

    Returns the frame of the schema, sorted by stream and time. Raises FrameError naming the column and input row.
    """
    _check_duplicates(duplicates)
    keys = [time] if name is not None else [stream, time]
    kept = columns_left(frame, keys, channels, reserved=(STREAM, TIME), what="channel")
    if not kept:
        raise FrameError("no channel is left beside stream and time; at least one numeric column is needed")
    columns = key_columns(frame, stream, time, name, time_format, unit)
    columns += [numbers_column(frame, column, missing, what="channel") for column in kept]
    out = pl.DataFrame(columns).sort(STREAM, TIME, maintain_order=True)
    return _unique(out, [STREAM, TIME], duplicates)


def widen(
    frame: pl.DataFrame,
    *,
    stream: str = STREAM,
    time: str = TIME,
    channel: str = CHANNEL,
    value: str = VALUE,
    name: str | None = None,
    channels: Sequence[str] | None = None,
    time_format: str | None = None,
    unit: Unit | None = None,
    missing: Sequence[float] = (),
    duplicates: Duplicates = "error",
) -> pl.DataFrame:
    """Put long rows (stream, time, channel, value) side by side: one row per stream and instant at which any came.

    Args:
        frame: any polars frame with one row per report of one channel; other columns are not read.
        stream, time, name, time_format, unit, missing: as in `normalise`.
        channel: column with the channel's name (text, integer or categorical).
        value: column with the number; null or NaN is a report of nothing, which leaves its row.
        channels: channels to keep, in this order, null throughout if they never report; None: all, sorted by name.
        duplicates: reports of one channel of one stream at the same instant: "error", or keep the "first" or "last"
            in input order.

    Returns the frame of the schema; a cell is null where the channel did not report. Raises FrameError.
    """
    _check_duplicates(duplicates)
    keys = [channel, value, time] if name is not None else [channel, value, stream, time]
    columns_left(frame, keys, (), reserved=(), what="channel")
    called = names_column(frame, channel, what="channel")
    columns = key_columns(frame, stream, time, name, time_format, unit)
    columns += [called.alias(CHANNEL), numbers_column(frame, value, missing, what="value").alias(VALUE)]
    wanted = sorted(called.unique()) if channels is None else list(channels)
    if not wanted or {STREAM, TIME} & set(wanted) or len(set(wanted)) < len(wanted):
        raise FrameError(f"channels must be one or more names, each once and neither stream nor time, got {wanted}")
    long = pl.DataFrame(columns).filter(pl.col(CHANNEL).is_in(wanted))
    long = _unique(long.sort(STREAM, TIME, maintain_order=True), [STREAM, TIME, CHANNEL], duplicates)
    wide = long.pivot(CHANNEL, index=[STREAM, TIME], values=VALUE)
    silent = [pl.lit(None, dtype=pl.Float64).alias(c) for c in wanted if c not in wide.columns]
    return wide.with_columns(silent).select(STREAM, TIME, *wanted).sort(STREAM, TIME)


def lengthen(frame: pl.DataFrame) -> pl.DataFrame:
    """Take a frame of the schema apart: one row (stream, time, channel, value) per value that is not missing.

    Sorted by stream, time, then the order of the channels. `widen` undoes it, but for rows and channels of nulls alone.
    """
    validate(frame)
    order = pl.Enum(channels(frame))
    long = frame.unpivot(index=[STREAM, TIME], variable_name=CHANNEL, value_name=VALUE).drop_nulls(VALUE)
    return long.cast({CHANNEL: order}).sort(STREAM, TIME, CHANNEL).cast({CHANNEL: pl.String})


def check_dtypes(frame: pl.DataFrame, dtypes: Mapping[str, pl.DataType | type[pl.DataType]], *, remedy: str) -> None:
    """Check that the columns are there with these dtypes, stream and time without nulls. Raises FrameError."""
    for name, dtype in dtypes.items():
        if name not in frame.columns:
            raise FrameError(f"frame has no column {name!r}, only {frame.columns}; bring it in with {remedy}")
        if frame.schema[name] != dtype:
            raise FrameError(f"column {name!r} must be {dtype}, got {frame.schema[name]}; use {remedy}")
    _no_nulls(frame, STREAM)
    _no_nulls(frame, TIME)


def check_numbers(frame: pl.DataFrame, names: Sequence[str], *, what: str, remedy: str) -> None:
    """Check that the columns are Float64, neither NaN nor infinite; `what` they are called. Raises FrameError."""
    for name in names:
        if frame.schema[name] != pl.Float64:
            raise FrameError(f"{what} {name!r} must be Float64, got {frame.schema[name]}; use {remedy}")
        row = first_row(frame[name].is_nan())
        if row is not None:
            raise FrameError(f"{what} {name!r} is NaN in row {row}; missing is null: use {remedy}")
        _finite(frame[name], what)


def repeats(frame: pl.DataFrame, *, remedy: str) -> pl.Series:
    """Mark the rows whose stream and time are those of the row before; raise FrameError where a row is out of order."""
    keys = frame.select(STREAM, pl.col(TIME).to_physical())
    before = keys.shift(1)
    same = keys[STREAM] == before[STREAM]
    row = first_row((keys[STREAM] < before[STREAM]) | (same & (keys[TIME] < before[TIME])))
    if row is not None:
        raise FrameError(f"row {row} is out of order: rows are sorted by stream, then time; use {remedy}")
    return same & (keys[TIME] == before[TIME])


def columns_left(
    frame: pl.DataFrame, keys: Sequence[str], wanted: Sequence[str] | None, *, reserved: Sequence[str], what: str
) -> list[str]:
    """Name the columns to keep beside the keys, which must be there: the wanted ones, or all others if None."""
    for column in (*keys, *(wanted or ())):
        if column not in frame.columns:
            raise FrameError(f"frame has no column {column!r}, only {frame.columns}; name the right one")
    kept = list(wanted) if wanted is not None else [c for c in frame.columns if c not in keys]
    wrong = set(reserved) & set(kept)
    if wrong:
        raise FrameError(f"a {what} can not be called {sorted(wrong)[0]!r}; rename that column first")
    return kept


def key_columns(
    frame: pl.DataFrame, stream: str, time: str, name: str | None, time_format: str | None, unit: Unit | None
) -> list[pl.Series]:
    """Give the columns stream and time of the schema, from the loose frame's or from the one stream's name."""
    if name is not None:
        who = pl.repeat(name, frame.height, dtype=pl.String, eager=True)
    else:
        who = names_column(frame, stream, what="stream")
    _no_nulls(frame, time)
    return [who.alias(STREAM), instants(frame[time], time_format, unit).alias(TIME)]


def names_column(frame: pl.DataFrame, column: str, *, what: str, optional: bool = False) -> pl.Series:
    """Give a column of names as text; without a null unless it is `optional`."""
    dtype = frame.schema[column]
    if not (dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum) or (optional and dtype == pl.Null)):
        raise FrameError(f"{what} column {column!r} must be text or integers, got {dtype}; cast it first")
    if not optional:
        _no_nulls(frame, column)
    return frame[column].cast(pl.String)


def numbers_column(frame: pl.DataFrame, column: str, missing: Sequence[float], *, what: str) -> pl.Series:
    """Give a column of numbers as Float64; NaN and the `missing` numbers become null, infinity is an error."""
    raw = frame[column]
    if raw.null_count() == len(raw):  # a CSV column without a single value has no type of its own
        return pl.repeat(None, len(raw), dtype=pl.Float64, eager=True).alias(column)
    if not (raw.dtype.is_numeric() or raw.dtype == pl.Boolean):
        raise FrameError(f"{what} {column!r} must hold numbers, got {raw.dtype}; cast it, or keep other {what}s alone")
    out = raw.cast(pl.Float64).fill_nan(None)
    if missing:
        out = pl.select(pl.when(~out.is_in([float(m) for m in missing])).then(out)).to_series()
    _finite(out.alias(column), what)
    return out.alias(column)


def first_row(mask: pl.Series) -> int | None:
    """Row of the first true value; null counts as false."""
    rows = mask.fill_null(False).arg_true()
    return int(rows[0]) if len(rows) else None


def _check_duplicates(duplicates: str) -> None:
    if duplicates not in ("error", "first", "last"):
        raise FrameError(f"duplicates must be 'error', 'first' or 'last', got {duplicates!r}")


def _unique(frame: pl.DataFrame, keys: list[str], duplicates: Duplicates) -> pl.DataFrame:
    """Keep one row of each key as `duplicates` says."""
    twice = frame.select(pl.struct(keys).is_duplicated()).to_series()
    if not twice.any():
        return frame
    if duplicates == "error":
        row, rows = first_row(twice) or 0, int(twice.sum())
        which = f"channel {frame[CHANNEL][row]!r} of " if CHANNEL in keys else ""
        raise FrameError(
            f"{which}{_name(frame, row)} stands more than once ({rows} such rows); "
            "pass duplicates='last' or 'first' to keep one"
        )
    return frame.unique(keys, keep=duplicates, maintain_order=True)


def _finite(numbers: pl.Series, what: str) -> None:
    row = first_row(numbers.is_infinite())
    if row is not None:
        raise FrameError(f"{what} {numbers.name!r} is {numbers[row]} in row {row}; make it null if it is missing")


def _no_nulls(frame: pl.DataFrame, column: str) -> None:
    row = first_row(frame[column].is_null())
    if row is None and frame.schema[column].is_float():
        row = first_row(frame[column].is_nan())
    if row is not None:
        raise FrameError(f"column {column!r} is empty in row {row}; no row can do without it")


def _name(frame: pl.DataFrame, row: int) -> str:
    return f"stream {frame[STREAM][row]!r} at {frame[TIME].dt.to_string('iso:strict')[row]}"
