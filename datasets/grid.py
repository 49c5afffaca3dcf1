"""The absolute time grid: which step an instant belongs to, and a frame brought onto it.

    step(t)  = t // period                 floor, also before 1970
    start(n) = n * period                  the instant that stands for step n

    t        int64 nanoseconds since 1970-01-01T00:00Z
    period   int64 nanoseconds, > 0
    n        int64, absolute: it does not depend on where a stream begins

Months and years have no fixed length and so no grid here. Weeks begin on Thursdays, as 1970 did.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import polars as pl

from tsgdn2.datasets.errors import FrameError
from tsgdn2.datasets.frame import STREAM, TIME, channels, validate

Period = int | str

_UNITS: Final[dict[str, int]] = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
    "w": 7 * 86400 * 10**9,
}
_ALIASES: Final[dict[str, str]] = {"t": "min", "m": "min", "S": "s", "T": "min", "H": "h", "D": "d", "W": "w"}
_MOST_ROWS: Final = 200_000_000


class Regular(NamedTuple):
    """A frame on the grid, and what was lost on the way."""

    frame: pl.DataFrame
    """The schema's frame; every time is a multiple of `period`."""
    period: int
    """Nanoseconds of one step."""
    collisions: dict[str, int]
    """Values per stream that another, later value of the same cell replaced; identical repeats do not count."""


def period_ns(period: Period) -> int:
    """Nanoseconds of a period given as int64 nanoseconds or as text such as "1h", "15min", "D"; months are an error."""
    if isinstance(period, int) and not isinstance(period, bool):
        if 0 < period < 2**63:
            return period
        raise FrameError(f"period must be a positive int64 number of nanoseconds, got {period}")
    found = re.fullmatch(r"\s*(\d*)\s*([a-zA-Z]+)\s*", period) if isinstance(period, str) else None
    unit = _ALIASES.get(found[2], found[2]) if found else ""
    count = int(found[1] or 1) if found else 0
    if unit not in _UNITS or not 0 < count * _UNITS[unit] < 2**63:
        raise FrameError(
            f"period must be nanoseconds or a fixed length such as '1h', '15min' or 'D' "
            f"(units {', '.join(_UNITS)}), got {period!r}"
        )
    return count * _UNITS[unit]


def pandas_freq(period: Period) -> str:
    """The pandas (and GluonTS) frequency of a period, in the largest unit that divides it: "h", "15min", "7D"."""
    length = period_ns(period)
    unit = max((u for u in _UNITS if u != "w" and length % _UNITS[u] == 0), key=lambda u: _UNITS[u])
    count = length // _UNITS[unit]
    return f"{count if count > 1 else ''}{'D' if unit == 'd' else unit}"


def regular(frame: pl.DataFrame, period: Period, *, fill_gaps: bool = False) -> Regular:
    """Put every stream on the absolute grid; the last value of a cell wins, and what it replaced is counted.

    A cell is one channel of one stream at one step. Gaps stay gaps unless `fill_gaps` adds their rows, all null,
    from each stream's first step to its last. Values are never interpolated. Raises FrameError.
    """
    validate(frame)
    length = period_ns(period)
    names = channels(frame)
    steps = frame.with_columns(_floor(pl.col(TIME), length))
    same_step = pl.struct(STREAM, TIME)
    if not steps.select(same_step.is_duplicated().any()).item():
        out, lost = steps, dict.fromkeys(frame[STREAM].unique(maintain_order=True).to_list(), 0)
    else:
        seen = [pl.col(name).drop_nulls() for name in names]
        grouped = steps.group_by(STREAM, TIME, maintain_order=True).agg(
            *(values.last().alias(name) for name, values in zip(names, seen, strict=True)),
            pl.sum_horizontal((values != values.shift(1)).sum() for values in seen).alias("\0lost"),
        )
        counts = grouped.group_by(STREAM, maintain_order=True).agg(pl.col("\0lost").sum())
        lost = {str(stream): int(count) for stream, count in counts.iter_rows()}
        out = grouped.drop("\0lost")
    return Regular(_filled(out, length) if fill_gaps else out, length, lost)


def _floor(time: pl.Expr, length: int) -> pl.Expr:
    return (time.to_physical() // length * length).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC").alias(TIME)


def _filled(frame: pl.DataFrame, length: int) -> pl.DataFrame:
    """Every step from a stream's first to its last, null where nothing was."""
    spans = frame.group_by(STREAM, maintain_order=True).agg(
        (pl.col(TIME).min().to_physical() // length).alias("first"),
        (pl.col(TIME).max().to_physical() // length).alias("last"),
    )
    rows = int((spans["last"] - spans["first"] + 1).sum())
    if rows > _MOST_ROWS:
        raise FrameError(
            f"fill_gaps would make {rows:,} rows of {frame.height:,} (at most {_MOST_ROWS:,}); "
            "choose a longer period, or leave the gaps"
        )
    every = spans.select(STREAM, (pl.int_ranges("first", pl.col("last") + 1) * length).alias(TIME)).explode(TIME)
    every = every.with_columns(pl.col(TIME).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC"))
    return every.join(frame, on=[STREAM, TIME], how="left", maintain_order="left")
