"""The one frame schema of tsgdn2, and the way into it from loose frames.

A frame is wide: one row per stream and instant. It holds no event lists and no units; a set with other time zones,
words or several tables has to be brought here first.

    column      dtype                  meaning
    stream      String                 who speaks; never null
    time        Datetime(ns, UTC)      when; exact int64 nanoseconds; never null; naive input is taken as UTC
    <channel>   Float64                what was measured; null is missing; never NaN, never infinite

Rows are sorted by stream, then time, and (stream, time) is unique. A missing row is a gap; nothing here fills one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import polars as pl

from tsgdn2.datasets.errors import FrameError

STREAM: Final = "stream"
TIME: Final = "time"
TIME_DTYPE: Final = pl.Datetime("ns", "UTC")

Duplicates = Literal["error", "first", "last"]
Unit = Literal["ns", "us", "ms", "s"]

_NS: Final[dict[str, int]] = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
_INT64_MAX: Final = 2**63 - 1


def channels(frame: pl.DataFrame) -> list[str]:
    """Name the channels of a frame in column order; no check of the rest of the schema."""
    return [name for name in frame.columns if name not in (STREAM, TIME)]


def validate(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame itself if it follows the schema; nothing is repaired, `normalise` does that.

    Raises FrameError naming the first column and row that break a rule. Cost: a few passes over the frame.
    """
    for name, dtype in ((STREAM, pl.String), (TIME, TIME_DTYPE)):
        if name not in frame.columns:
            raise FrameError(f"frame has no column {name!r}, only {frame.columns}; bring it in with normalise(frame)")
        if frame.schema[name] != dtype:
            raise FrameError(f"column {name!r} must be {dtype}, got {frame.schema[name]}; use normalise(frame)")
        _no_nulls(frame, name)
    if not channels(frame):
        raise FrameError("frame has no channel: at least one Float64 column beside stream and time is needed")
    for name in channels(frame):
        if frame.schema[name] != pl.Float64:
            raise FrameError(f"channel {name!r} must be Float64, got {frame.schema[name]}; use normalise(frame)")
        row = _first(frame[name].is_nan())
        if row is not None:
            raise FrameError(f"channel {name!r} is NaN in row {row}; missing is null: use normalise(frame)")
        _finite(frame, name)
    keys = frame.select(STREAM, pl.col(TIME).to_physical())
    before = keys.shift(1)
    same = keys[STREAM] == before[STREAM]
    row = _first((keys[STREAM] < before[STREAM]) | (same & (keys[TIME] < before[TIME])))
    if row is not None:
        raise FrameError(f"row {row} is out of order: rows are sorted by stream, then time; use normalise(frame)")
    row = _first(same & (keys[TIME] == before[TIME]))
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
        time: column with the instant: datetime, date, text, or a number with `unit`.
        name: the stream's name when there is no such column; then `stream` is not read.
        channels: columns to keep as channels, in this order; None keeps all others, which must then be numbers.
        time_format: strftime format of a text column; None expects ISO 8601.
        unit: unit of a numeric time column. Floats are rounded to the nanosecond, but hold 53 bits at most.
        missing: numbers that stand for a missing value, for example (-9999.0,). NaN always does.
        duplicates: rows of one stream with the same instant: "error", or keep the "first" or "last" in input order.

    Returns the frame of the schema, sorted by stream and time. Raises FrameError naming the column and input row.
    """
    if duplicates not in ("error", "first", "last"):
        raise FrameError(f"duplicates must be 'error', 'first' or 'last', got {duplicates!r}")
    key_columns = (time,) if name is not None else (stream, time)
    for column in (*key_columns, *(channels or ())):
        if column not in frame.columns:
            raise FrameError(f"frame has no column {column!r}, only {frame.columns}; name the right one")
    kept = list(channels) if channels is not None else [c for c in frame.columns if c not in key_columns]
    wrong = {STREAM, TIME} & set(kept)
    if wrong:
        raise FrameError(f"a channel can not be called {sorted(wrong)[0]!r}; rename that column first")
    if not kept:
        raise FrameError("no channel is left beside stream and time; at least one numeric column is needed")
    who = pl.repeat(name, frame.height, dtype=pl.String, eager=True) if name is not None else _streams(frame, stream)
    when = _times(frame, time, time_format, unit)
    columns = [who.alias(STREAM), when.alias(TIME), *(_values(frame, column, missing) for column in kept)]
    out = pl.DataFrame(columns).sort(STREAM, TIME, maintain_order=True)
    twice = out.select(pl.struct(STREAM, TIME).is_duplicated()).to_series()
    if not twice.any():
        return out
    if duplicates == "error":
        rows = int(twice.sum())
        raise FrameError(
            f"{_name(out, _first(twice) or 0)} stands more than once ({rows} such rows); "
            "pass duplicates='last' or 'first' to keep one"
        )
    return out.unique([STREAM, TIME], keep=duplicates, maintain_order=True)


def _streams(frame: pl.DataFrame, column: str) -> pl.Series:
    dtype = frame.schema[column]
    if not (dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise FrameError(f"stream column {column!r} must be text or integers, got {dtype}; cast it first")
    _no_nulls(frame, column)
    return frame[column].cast(pl.String)


def _times(frame: pl.DataFrame, column: str, time_format: str | None, unit: Unit | None) -> pl.Series:
    raw = frame[column]
    dtype = raw.dtype
    _no_nulls(frame, column)
    if isinstance(dtype, pl.Datetime):
        out = raw.cast(pl.Datetime("ns", dtype.time_zone), strict=False)
        out = out.dt.convert_time_zone("UTC") if dtype.time_zone else out.dt.replace_time_zone("UTC")
        why = "outside the years 1677 to 2262 that int64 nanoseconds reach"
    elif dtype == pl.Date:
        out = raw.cast(pl.Datetime("ns"), strict=False).dt.replace_time_zone("UTC")
        why = "outside the years 1677 to 2262 that int64 nanoseconds reach"
    elif dtype == pl.String:
        row = None if time_format else _first(~raw.str.contains(r"^\s*\d{4}[-/]?\d{2}"))
        if row is not None:  # polars would guess, and read 01/02 as the first of February
            raise FrameError(
                f"time column {column!r}, row {row}: {raw[row]!r} is not ISO 8601 (year first); "
                "pass time_format, '%d/%m/%Y' or '%m/%d/%Y' say"
            )
        out = raw.str.strip_chars().str.to_datetime(time_format, time_unit="ns", time_zone="UTC", strict=False)
        why = f"not text of the form {time_format}" if time_format else "not ISO 8601; pass time_format"
    elif dtype.is_numeric():
        if unit not in _NS:
            raise FrameError(
                f"time column {column!r} holds numbers ({dtype}): unit must be ns, us, ms or s, got {unit!r}"
            )
        out = _from_numbers(raw, _NS[unit]).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
        why = f"no finite number of {unit} within int64 nanoseconds"
    else:
        raise FrameError(f"time column {column!r} must be datetime, date, text or numbers, got {dtype}")
    row = _first(out.is_null())
    if row is not None:
        raise FrameError(f"time column {column!r}, row {row}: {raw[row]!r} is {why}")
    return out


def _from_numbers(raw: pl.Series, factor: int) -> pl.Series:
    """Nanoseconds as Int64, null where they do not fit; whole units and fraction apart, to keep what a float holds."""
    if raw.dtype.is_integer():
        whole, limit = raw.cast(pl.Int64, strict=False), _INT64_MAX // factor
        fits = (whole >= -limit) & (whole <= limit)
        return pl.select(pl.when(fits).then(whole * factor)).to_series()
    whole = raw.cast(pl.Float64).floor()
    rest = ((raw.cast(pl.Float64) - whole) * factor).round()
    fits = (whole.abs() < float(_INT64_MAX // factor)) & whole.is_finite()
    safe = pl.select(pl.when(fits).then(whole)).to_series().cast(pl.Int64, strict=False)
    return safe * factor + rest.cast(pl.Int64, strict=False)


def _values(frame: pl.DataFrame, column: str, missing: Sequence[float]) -> pl.Series:
    raw = frame[column]
    if raw.null_count() == len(raw):  # a CSV column without a single value has no type of its own
        return pl.repeat(None, len(raw), dtype=pl.Float64, eager=True).alias(column)
    if not (raw.dtype.is_numeric() or raw.dtype == pl.Boolean):
        raise FrameError(
            f"channel {column!r} must hold numbers, got {raw.dtype}; leave it out with channels=[...] or cast it"
        )
    out = raw.cast(pl.Float64).fill_nan(None)
    if missing:
        out = pl.select(pl.when(~out.is_in([float(m) for m in missing])).then(out)).to_series()
    out = out.alias(column)
    _finite(out.to_frame(), column)
    return out


def _finite(frame: pl.DataFrame, column: str) -> None:
    row = _first(frame[column].is_infinite())
    if row is not None:
        raise FrameError(f"channel {column!r} is {frame[column][row]} in row {row}; make it null if it is missing")


def _no_nulls(frame: pl.DataFrame, column: str) -> None:
    row = _first(frame[column].is_null())
    if row is None and frame.schema[column].is_float():
        row = _first(frame[column].is_nan())
    if row is not None:
        raise FrameError(f"column {column!r} is empty in row {row}; every row needs a stream and a time")


def _first(mask: pl.Series) -> int | None:
    """Row of the first true value; null counts as false."""
    rows = mask.fill_null(False).arg_true()
    return int(rows[0]) if len(rows) else None


def _name(frame: pl.DataFrame, row: int) -> str:
    return f"stream {frame[STREAM][row]!r} at {frame[TIME].dt.to_string('iso:strict')[row]}"
