"""Data for a job by one word: a named set or a file, brought to the frame schema, with its period and its fingerprint.

The period of a file is its most frequent step, which is a guess: a file of mostly gaps needs `columns.period`.
Events are read by event_source.py, whose `open_data` is what jobs call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import numpy as np
import polars as pl

from tsgdn2.datasets import catalog
from tsgdn2.datasets.errors import FrameError
from tsgdn2.datasets.events import TYPE
from tsgdn2.datasets.frame import STREAM, TIME, channels
from tsgdn2.datasets.gluon import Targets, entries
from tsgdn2.datasets.grid import pandas_freq, period_ns, regular
from tsgdn2.datasets.readers import Layout, file_table, table_frame
from tsgdn2.errors import ConfigError, DataError
from tsgdn2.pipelines.jobs import DataOptions
from tsgdn2.pipelines.runs import Run

TIMES: Final = ("time", "timestamp", "date", "datetime")
STREAMS: Final = ("stream", "item_id")
MISSING: Final = ("", "NA", "NaN", "nan", "null")
SHORT: Final = {"nyc": "nyc_weather", "beijing": "beijing_pm25", "air": "uci_air_quality"}
DAY_NS: Final = 86_400_000_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A frame that a job reads."""

    name: str
    """What it is called in runs and reports."""
    origin: str
    """Where it came from: a page or a path."""
    frame: pl.DataFrame
    """The frame, on the grid; gaps are gaps."""
    period: int
    """Nanoseconds of one step."""
    season: int
    """Steps of a season."""

    @property
    def freq(self) -> str:
        """The period as pandas writes it."""
        return pandas_freq(self.period)

    @property
    def channels(self) -> list[str]:
        """Names of the channels."""
        return channels(self.frame)

    @property
    def streams(self) -> list[str]:
        """Names of the streams."""
        return [str(name) for name in self.frame[STREAM].unique(maintain_order=True)]

    @property
    def digest(self) -> str:
        """SHA-256 of names and values, 32 hex digits."""
        rows = self.frame.with_columns(pl.col(TIME).to_physical())
        state = hashlib.sha256(repr(rows.schema).encode())
        for column in rows:
            state.update(column.hash(seed=0).to_numpy().tobytes())
        return state.hexdigest()[:32]

    def entries(self, targets: Targets = "univariate") -> list[dict[str, object]]:
        """GluonTS entries on the grid, NaN where nothing was observed."""
        return entries(self.frame, self.period, targets=targets, collisions="last")

    def select(self, names: Sequence[str]) -> Self:
        """Keep these channels in this order, as a model of several needs them; ConfigError names the absent ones."""
        absent = [name for name in names if name not in self.channels]
        if absent:
            raise ConfigError(f"data: the predictor's channels {absent} are not in {self.name}, which has "
                              f"{self.channels}; rename its columns to those of the training")  # fmt: skip
        return replace(self, frame=self.frame.select(STREAM, TIME, *names))

    def log(self, run: Run, *, context: str = "training") -> None:
        """Record the set in a run."""
        columns = {STREAM: "string", TIME: "datetime", **dict.fromkeys(self.channels, "double")}
        run.dataset(self.name, self.digest, self.origin, columns, context=context)


def open_source(data: str, columns: DataOptions) -> Source:
    """Load a named set ("nyc", "ett:ETTh1", "jena") or read a file.

    Errors: DataError naming the sets when the word is neither; errors of tsgdn2.datasets for what is in the file.
    """
    word = data.removeprefix("ett:")
    word = SHORT.get(word, word)
    if word in catalog.SETS:
        named = catalog.SETS[word]
        frame, period, season, origin = named.load(), period_ns(named.period), named.season, named.home
    elif Path(data).is_file():
        frame, origin = _read(Path(data), columns), str(Path(data).resolve())
        period = period_ns(columns.period) if columns.period else _usual_step(frame, data)
        season, word = max(1, round(DAY_NS / period)), Path(data).name.split(".")[0]
    else:
        raise unknown_data(data)
    if columns.channels and word in catalog.SETS:
        frame = frame.select(STREAM, TIME, *present("columns.channels", columns.channels, channels(frame), data))
    if columns.period:
        period = period_ns(columns.period)
    frame = regular(frame, period).frame
    no_long_silence(frame, data, columns)
    return Source(
        name=word, origin=origin, frame=frame, period=period, season=columns.season or season,
    )  # fmt: skip


def _read(path: Path, columns: DataOptions) -> pl.DataFrame:
    """Read a file; the columns of time and stream are found by their usual names."""
    text = [columns.time] if columns.unit and columns.time else ()
    table = table_with_rows(path, text)
    if table.schema.get(TYPE) == pl.String and not columns.channels:
        raise ConfigError(f"columns.targets: {path.name} has a column of words called {TYPE!r}, as files of events "
                          "have; say what to count in every window, '[\"count\"]' say, or name the sensors with "
                          "columns.channels")  # fmt: skip
    time, stream = key_columns(table, columns, path.name)
    no_stray_words("columns.channels", table, columns.channels or others(table, time, stream), path.name)
    numeric = [name for name in others(table, time, stream) if table.schema[name].is_numeric()]
    kept = present("columns.channels", columns.channels, numeric, path.name) if columns.channels else tuple(numeric)
    if not kept:
        raise DataError(f"columns.channels: {path.name} has no numeric column beside {time!r}; its columns are "
                        f"{table.columns}")  # fmt: skip
    layout = Layout(time=time, channels=kept, duplicates="last", stream=stream or STREAM,
                    name=None if stream else columns.name or path.name.split(".")[0],
                    time_format=columns.time_format, unit=columns.unit)  # fmt: skip
    return table_frame(table, layout, origin=str(path))


def table_with_rows(path: Path, text: Sequence[str]) -> pl.DataFrame:
    """The table of a file; DataError when it has no rows, of which no column tells what it is."""
    table = file_table(path, words=MISSING, text=text)
    if table.is_empty():
        raise DataError(f"data: {path.name} has no rows, only the columns {table.columns}; give a file with data")
    return table


def span_ns(option: str, text: str) -> int:
    """Nanoseconds of an option such as 2h; ConfigError names it."""
    try:
        return period_ns(text)
    except FrameError as error:
        raise ConfigError(f"{option}: {error}") from None


def no_long_silence(frame: pl.DataFrame, origin: str, columns: DataOptions) -> None:
    """Refuse a stream that is silent for longer than columns.longest_gap: one stray stamp would make years of steps."""
    most, stamp = span_ns("columns.longest_gap", columns.longest_gap), pl.col(TIME).to_physical()
    # Floats, for two stamps can lie further apart than int64 nanoseconds reach.
    gaps = frame.select(STREAM, stamp.alias("to"), stamp.shift(1).over(STREAM).alias("since")).filter(
        pl.col("to").cast(pl.Float64) - pl.col("since").cast(pl.Float64) > most)  # fmt: skip
    if not gaps.is_empty():
        stream, to, since = gaps.row(0)
        raise long_silence(stream, since, to, origin, columns)


def long_silence(stream: str, since: int, to: int, origin: str, columns: DataOptions) -> ConfigError:
    """The error for a silence between two moments in nanoseconds."""
    first, last = (str(np.datetime64(moment, "ns").astype("datetime64[s]")) for moment in (since, to))
    days = (to - since) // DAY_NS
    return ConfigError(f"columns.longest_gap: stream {stream!r} of {Path(origin).name} is silent from {first} to "
                       f"{last} ({days:,} days), longer than {columns.longest_gap}; mend the wrong one of the two "
                       "stamps, or give a longer columns.longest_gap where the silence is real")  # fmt: skip


def key_columns(table: pl.DataFrame, columns: DataOptions, origin: str) -> tuple[str, str | None]:
    """The columns of time and stream, told or found by their usual names; no stream column: the file is one stream."""
    time = columns.time or _first(TIMES, table.columns)
    if time is None:
        raise DataError(f"columns.time: {origin} has none of {', '.join(TIMES)}, only {table.columns}; name its column")
    stream = columns.stream or _first(STREAMS, table.columns)
    if stream and columns.name:
        raise ConfigError(f"columns.name: is for a file of one stream, got {columns.name!r} where {origin} has its "
                          f"streams in column {stream!r}; leave it out, or rename the column")  # fmt: skip
    return time, stream


def others(table: pl.DataFrame, *keys: str | None) -> list[str]:
    """The columns that are none of the keys."""
    return [name for name in table.columns if name not in keys]


def no_stray_words(option: str, table: pl.DataFrame, names: Sequence[str], origin: str) -> None:
    """Refuse a column that is text by a few cells only: else its numbers would be lost and nobody told."""
    for name in names:
        if table.schema.get(name) != pl.String:
            continue
        found = table[name].str.strip_chars().cast(pl.Float64, strict=False)
        bad = (found.is_null() & table[name].is_not_null()).arg_true()
        if len(bad) and found.count() > table[name].count() / 2:
            row = int(bad[0])
            raise DataError(f"{option}: {origin} has {table[name][row]!r} in row {row} of {name!r}, which is "
                            f"mostly numbers; empty that cell, or leave the column out with {option}")  # fmt: skip


def present(option: str, wanted: Sequence[str], known: Sequence[str], origin: str) -> tuple[str, ...]:
    """The wanted columns; DataError naming the option when one is not among the numeric ones that are known."""
    absent = [name for name in wanted if name not in known]
    if absent:
        raise DataError(f"{option}: {origin} has no numeric column {absent[0]!r}, only {list(known)}; rename it")
    return tuple(wanted)


def unknown_data(data: str) -> DataError:
    """The error for a word that is neither a file nor a set."""
    sets = (f"ett:{name}" if name.startswith("ETT") else name for name in catalog.SETS)
    known = ", ".join((*SHORT, *sets, *catalog.EVENT_SETS))
    return DataError(f"data: must be a file or one of {known}, got {data!r}; check the path")


def _first(wanted: Sequence[str], known: Sequence[str]) -> str | None:
    low: Mapping[str, str] = {name.lower(): name for name in reversed(known)}
    return next((low[name] for name in wanted if name in low), None)


def _usual_step(frame: pl.DataFrame, data: str) -> int:
    """The most frequent difference between neighbouring rows of a stream, in nanoseconds."""
    steps = frame.select(pl.col(TIME).to_physical().diff().over(STREAM).alias("step")).drop_nulls().filter(
        pl.col("step") > 0)  # fmt: skip
    if steps.is_empty():
        raise DataError(f"columns.period: {data} has no two rows of one stream to take the step from; give it, 1h say")
    return int(steps["step"].value_counts(sort=True)["step"][0])
