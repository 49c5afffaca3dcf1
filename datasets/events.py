"""The event frame schema, the way into it, and windows: a wide frame of what happened in each stretch of time.

An event has an instant, a type and marks, any of the last two missing. A window knows how many events it held and
their means, not their order; what needs single events takes them from the frame itself.

    column      dtype                  meaning
    stream      String                 who speaks; never null
    time        Datetime(ns, UTC)      when; exact int64 nanoseconds; never null
    type        String                 what kind of event; null is missing
    <mark>      Float64                what was measured, none or more marks; null is missing; never NaN, never infinite

Rows are sorted by stream, then time. Rows of one instant are different events and keep their order, equal ones too.

    window(t) = t // every             absolute, as in grid.py: an event at a border belongs to the window it opens
    target    = "count" | kind "(" mark ")", then at most one "[" type "]"       kind = mean | sum | min | max
                "count", "count[UA]", "mean(dep_delay)", "mean(dep_delay)[UA]"

    t         int64 nanoseconds since 1970-01-01T00:00Z
    every     int64 nanoseconds, > 0
    count     all events, those without type or marks too; [type] takes the events of that type alone, none is no error
    mean ...  of the marks that are not missing; the sum of none is 0, their mean, min and max are null
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Final, Literal, SupportsIndex, cast

import polars as pl
from polars.exceptions import PolarsError

from tsgdn2.datasets.errors import FrameError
from tsgdn2.datasets.frame import (
    STREAM,
    TIME,
    TIME_DTYPE,
    check_dtypes,
    check_numbers,
    columns_left,
    first_row,
    key_columns,
    names_column,
    numbers_column,
    repeats,
)
from tsgdn2.datasets.grid import Period, pandas_freq, period_ns
from tsgdn2.datasets.instants import Unit, instants

TYPE: Final = "type"

Instant = SupportsIndex | str | dt.datetime
Kind = Literal["count", "mean", "sum", "min", "max"]
Targets = Mapping[str, "str | pl.Expr"]

_TARGET: Final = re.compile(r"(?:(count)|(mean|sum|min|max)\(([^()\[\]]+)\))(?:\[(.+)\])?")
_WINDOW: Final = "\0window"
_EVENTS: Final = "\0events"
_MOST_ROWS: Final = 200_000_000
_INT64_MAX: Final = 2**63 - 1


def marks(events: pl.DataFrame) -> list[str]:
    """Name the marks of an event frame in column order; no check of the rest of the schema."""
    return [name for name in events.columns if name not in (STREAM, TIME, TYPE)]


def validate_events(events: pl.DataFrame) -> pl.DataFrame:
    """Return the frame itself if it follows the event schema; nothing is repaired, `normalise_events` does that.

    Raises FrameError naming the first column and row that break a rule. Cost: a few passes over the frame.
    """
    remedy = "normalise_events(frame)"
    check_dtypes(events, {STREAM: pl.String, TIME: TIME_DTYPE, TYPE: pl.String}, remedy=remedy)
    check_numbers(events, marks(events), what="mark", remedy=remedy)
    repeats(events, remedy=remedy)
    return events


def normalise_events(
    frame: pl.DataFrame,
    *,
    stream: str = STREAM,
    time: str = TIME,
    type: str | None = TYPE,
    marks: Sequence[str] | None = None,
    name: str | None = None,
    time_format: str | None = None,
    unit: Unit | None = None,
    missing: Sequence[float] = (),
) -> pl.DataFrame:
    """Bring a loose frame of one row per event into the event schema; no row is added, left out or merged.

    Args:
        frame: any polars frame; it is not changed.
        stream, time, name, time_format, unit: as in `frame.normalise`.
        type: column with the event's type (text, integer or categorical; null is missing); None where there is none,
            then every type is missing.
        marks: columns to keep as marks, in this order; () keeps none, None all others, which must then be numbers.
        missing: numbers that stand for a missing mark. NaN always does.

    Returns the event frame; events of one stream and instant stay in the order of `frame`.
    Raises FrameError naming the column and the input row.
    """
    keys = [column for column in (stream if name is None else None, time, type) if column is not None]
    if type is not None and type not in frame.columns:
        raise FrameError(
            f"frame has no column {type!r} of types, only {frame.columns}; pass type=None if there is none"
        )
    kept = columns_left(frame, keys, marks, reserved=(STREAM, TIME, TYPE), what="mark")
    columns = key_columns(frame, stream, time, name, time_format, unit)
    if type is None:
        columns.append(pl.repeat(None, frame.height, dtype=pl.String, eager=True).alias(TYPE))
    else:
        columns.append(names_column(frame, type, what="type", optional=True).alias(TYPE))
    columns += [numbers_column(frame, column, missing, what="mark") for column in kept]
    return pl.DataFrame(columns).sort(STREAM, TIME, maintain_order=True)


@dataclass(frozen=True)
class Aggregate:
    """One target of a window, as the grammar above writes it; str() writes it back."""

    kind: Kind
    """What is taken of the events."""
    mark: str | None = None
    """Of which mark; None for a count alone."""
    type: str | None = None
    """Of the events of this type; None: of all, those without a type too."""

    def __str__(self) -> str:
        of = "" if self.mark is None else f"({self.mark})"
        return f"{self.kind}{of}" + ("" if self.type is None else f"[{self.type}]")


def parse_aggregate(text: str) -> Aggregate:
    """Read a target such as "count", "count[UA]", "mean(dep_delay)" or "mean(dep_delay)[UA]".

    The name of a mark may hold no bracket, that of a type may hold any. Raises FrameError.
    """
    found = _TARGET.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise FrameError(
            f"a target must be count, count[type], or mean, sum, min or max of a mark, as in mean(mark) or "
            f"mean(mark)[type], got {text!r}"
        )
    return Aggregate(cast(Kind, found[1] or found[2]), found[3], found[4])


def windows(
    events: pl.DataFrame,
    every: Period,
    *,
    targets: Targets,
    start: Instant | None = None,
    stop: Instant | None = None,
    streams: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Make one row per stream and window, from the window of its first event to that of its last, none left out.

    A window without events has what the target is of no events: count and sum 0, mean, min and max null.

    Args:
        events: an event frame.
        every: length of the windows, "1h" or nanoseconds; they lie on the absolute grid.
        targets: channel's name to a target of the grammar, or to any polars expression over the event columns that
            gives one number per window, pl.col("dep_delay").quantile(0.9) say; its NaN is null.
        start: its window is the first of every stream; events before that window are left out. Instants are int64
            nanoseconds, ISO 8601 text or datetime; naive ones are UTC.
        stop: windows that begin before it exist for every stream, and no later ones. Silence up to `stop` is a fact.
        streams: streams that have rows even if they have no event at all; needs `start` and `stop`.

    Returns a frame of the wide schema; `time` is where a window begins. A stream whose events are all outside the range
    has rows if both `start` and `stop` are given. Raises FrameError.
    """
    validate_events(events)
    length = period_ns(every)
    made = _expressions(events, targets)
    since = None if start is None else _nanoseconds("start", start)
    until = None if stop is None else _nanoseconds("stop", stop)
    if since is not None and until is not None and since >= until:
        raise FrameError(f"stop must lie after start, got start={start!r} and stop={stop!r}")
    if streams is not None and (since is None or until is None):
        raise FrameError("streams may name those without any event, so start and stop must be given, too")
    first = None if since is None else since // length
    last = None if until is None else -(-until // length) - 1
    kept = events.with_columns((pl.col(TIME).to_physical() // length).alias(_WINDOW))
    if first is not None:
        kept = kept.filter(pl.col(_WINDOW) >= first)
    if last is not None:
        kept = kept.filter(pl.col(_WINDOW) <= last)
    found = kept.group_by(STREAM, _WINDOW, maintain_order=True).agg(pl.len().alias(_EVENTS), *made.values())
    grid = _grid(found, first, last, [*events[STREAM].unique(), *(streams or ())], length)
    nothing = events.clear().select(made.values()).row(0, named=True)
    silent = pl.col(_EVENTS).is_null()
    cells = [pl.when(silent).then(pl.lit(nothing[name], pl.Float64)).otherwise(name).alias(name) for name in made]
    out = grid.join(found, on=[STREAM, _WINDOW], how="left", maintain_order="left").with_columns(cells)
    begins = (pl.col(_WINDOW) * length).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
    out = out.select(STREAM, begins.alias(TIME), *made)
    for name in made:
        row = first_row(out[name].is_infinite())
        if row is not None:
            raise FrameError(
                f"target {name!r} is {out[name][row]} in the window of {out[STREAM][row]!r} that begins at "
                f"{out[TIME][row]}; it must be a finite number, or null"
            )
    return out


def _expressions(events: pl.DataFrame, targets: Targets) -> dict[str, pl.Expr]:
    """Give the expression of each target, tried on no events: it must give one number then, or null."""
    if not targets:
        raise FrameError("targets must name at least one channel, {'events': 'count'} say")
    made: dict[str, pl.Expr] = {}
    for name, target in targets.items():
        if name in (STREAM, TIME):
            raise FrameError(f"a target can not be called {name!r}; give its channel another name")
        expression = target if isinstance(target, pl.Expr) else _expression(events, parse_aggregate(target))
        try:
            tried = events.clear().select(expression.alias(name))
        except PolarsError as error:
            raise FrameError(f"target {name!r} can not be taken of the columns {events.columns}: {error}") from error
        dtype = tried.schema[name]
        if tried.height != 1 or not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
            raise FrameError(f"target {name!r} must be one number per window, its expression gives {dtype} "
                             f"in {tried.height} rows for no events; aggregate it")  # fmt: skip
        made[name] = expression.cast(pl.Float64).fill_nan(None).alias(name)
    return made


def _expression(events: pl.DataFrame, aggregate: Aggregate) -> pl.Expr:
    if aggregate.mark is not None and aggregate.mark not in marks(events):
        raise FrameError(f"target {str(aggregate)!r} needs a mark {aggregate.mark!r}, there is only {marks(events)}")
    here = None if aggregate.type is None else pl.col(TYPE) == aggregate.type
    if aggregate.mark is None:
        return pl.len() if here is None else here.sum()
    values = pl.col(aggregate.mark) if here is None else pl.when(here).then(pl.col(aggregate.mark))
    taken: pl.Expr = getattr(values, aggregate.kind)()
    return taken


def _grid(found: pl.DataFrame, first: int | None, last: int | None, streams: list[str], length: int) -> pl.DataFrame:
    """Every window of every stream, from `first` to `last` or from its first event to its last."""
    ends = {"first": first, "last": last}
    given = [pl.lit(window, pl.Int64).alias(end) for end, window in ends.items() if window is not None]
    if len(given) == len(ends):
        spans = pl.DataFrame({STREAM: sorted(set(streams))}, schema={STREAM: pl.String})
    else:
        spans = found.group_by(STREAM).agg(pl.col(_WINDOW).min().alias("first"), pl.col(_WINDOW).max().alias("last"))
    spans = spans.with_columns(given)
    rows = float((spans["last"].cast(pl.Float64) - spans["first"].cast(pl.Float64) + 1).sum())
    if rows > _MOST_ROWS:
        raise FrameError(f"windows of {pandas_freq(length)} would be {rows:,.0f} rows (at most {_MOST_ROWS:,}); choose "
                         "longer ones, or a shorter range")  # fmt: skip
    if len(spans) and min(spans["first"]) * length < -_INT64_MAX - 1:
        raise FrameError(f"a window of {pandas_freq(length)} would begin before 1677; choose a shorter one")
    return spans.sort(STREAM).select(STREAM, pl.int_ranges("first", pl.col("last") + 1).alias(_WINDOW)).explode(_WINDOW)


def _nanoseconds(name: str, instant: Instant) -> int:
    """Nanoseconds of an instant; a stamp of pandas keeps those that a datetime has no room for."""
    if isinstance(instant, SupportsIndex) and not isinstance(instant, bool):
        if abs(index(instant)) <= _INT64_MAX:
            return index(instant)
    elif isinstance(instant, (str, dt.datetime)):
        found = int(instants(pl.Series(name, [instant])).to_physical()[0])
        return found + int(getattr(instant, "nanosecond", 0))
    raise FrameError(f"{name} must be int64 nanoseconds, ISO 8601 text or a datetime, got {instant!r}")
