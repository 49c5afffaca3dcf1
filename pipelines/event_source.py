"""Events for a job by one word: a named set or a file of one event per row, and what is to be counted of them.

A file of events has no step that could be guessed: its period is the length of the windows in which events are counted,
and has to be told. A predictor that is there already knows targets, marks and period, and the file only its columns.

    tsgdn2 train --data flights
    tsgdn2 train --data log.csv --columns.targets '["count","mean(ms)"]' --columns.type route --columns.period 1min
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, cast

import numpy as np
import pandas as pd
import polars as pl

from tsgdn2.datasets import catalog
from tsgdn2.datasets import events as happenings
from tsgdn2.datasets.errors import FrameError
from tsgdn2.datasets.event_sets import azure_llm_trace, flights
from tsgdn2.datasets.events import TYPE, parse_aggregate
from tsgdn2.datasets.frame import STREAM, TIME
from tsgdn2.datasets.gluon import Targets, event_entries
from tsgdn2.datasets.grid import pandas_freq, period_ns
from tsgdn2.datasets.readers import EventLayout, table_frame
from tsgdn2.errors import ConfigError, DataError
from tsgdn2.forecaster import ForecasterConfig
from tsgdn2.pipelines.entries import absolute_step
from tsgdn2.pipelines.entries import period_ns as freq_ns
from tsgdn2.pipelines.jobs import DataOptions, ModelOptions
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.source import (
    DAY_NS,
    SHORT,
    Source,
    key_columns,
    no_long_silence,
    no_stray_words,
    open_source,
    others,
    present,
    table_with_rows,
    unknown_data,
)

if TYPE_CHECKING:
    from tsgdn2.pipelines.predictor import GDN2Predictor

MOST_TYPES: Final = 1_000
ONE_KIND: Final = "event"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a named set is asked for unless the job says otherwise; its marks are known when their event happens."""

    load: Callable[[], pl.DataFrame]
    targets: tuple[str, ...]
    marks: tuple[str, ...]


ASKED: Final[Mapping[str, Asked]] = {
    "flights": Asked(
        load=lambda: flights(time="actual"), targets=("count", "mean(dep_delay)"), marks=("dep_delay", "distance")
    ),
    "azure_code": Asked(load=lambda: azure_llm_trace("code"), targets=("count",), marks=("ContextTokens",)),
    "azure_conv": Asked(load=lambda: azure_llm_trace("conv"), targets=("count",), marks=("ContextTokens",)),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class EventSource(Source):
    """A frame of events that a job reads; its channels are the targets of a window."""

    targets: tuple[str, ...]
    """What is forecast per window, in the grammar of datasets/events.py."""
    marks: tuple[str, ...]
    """Marks that a model sees."""

    @property
    def channels(self) -> list[str]:
        """Names of the targets."""
        return list(self.targets)

    def entries(self, targets: Targets = "univariate") -> list[dict[str, object]]:  # noqa: ARG002
        """GluonTS entries, one per stream: always all targets together, for they come from the same events."""
        return event_entries(self.frame, self.period, targets={t: t for t in self.targets}, marks=self.marks)

    def select(self, names: Sequence[str]) -> Self:
        """Keep these targets in this order; ConfigError names those that are not asked for."""
        absent = [name for name in names if name not in self.targets]
        if absent:
            raise ConfigError(f"columns.targets: the predictor's {absent} are not among {self.channels}; leave "
                              "columns.targets out, the predictor knows its own")  # fmt: skip
        return replace(self, targets=tuple(names))

    def log(self, run: Run, *, context: str = "training") -> None:
        """Record the set in a run."""
        columns = {STREAM: "string", TIME: "datetime", TYPE: "string", **dict.fromkeys(self.marks, "double")}
        run.dataset(self.name, self.digest, self.origin, columns, context=context)


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """What a model of events is built for."""

    types: tuple[str, ...]
    """Vocabulary, of the training part alone."""
    targets: tuple[str, ...]
    """What is forecast per window."""
    marks: tuple[str, ...]
    """Numbers that come with an event."""


def data_for(predictor: GDN2Predictor, data: str, columns: DataOptions) -> Source:
    """Load what a predictor is to be judged on: its channels, at its step. Errors: `open_data`'s; ConfigError."""
    source = open_data(data, columns, predictor.config)
    if predictor.config.channels > 1:
        source = source.select(list(predictor.channels))
    if source.freq != predictor.freq and source.period != predictor.config.period_ns:
        raise ConfigError(f"data: its step is {source.freq}, the predictor's {predictor.freq}; give columns.period")
    return source


def open_data(data: str, columns: DataOptions, model: ForecasterConfig | None = None) -> Source:
    """Load a named set or read a file: events where the set, `columns.targets` or the model says so, else sensors.

    model: config of the predictor that is to read it; it gives targets, marks and period.
    Errors: ConfigError where data, options and model do not belong together; those of `source.open_source`.
    """
    sensors, told = SHORT.get(data.removeprefix("ett:"), data.removeprefix("ett:")) in catalog.SETS, columns.targets
    if model is not None and model.event_types:
        if sensors:
            raise ConfigError(f"data: {data} is a set of sensors, this predictor reads events; name a file of events "
                              f"or one of {', '.join(ASKED)}")  # fmt: skip
        if told is not None and told != model.event_targets:
            raise ConfigError(f"columns.targets: must be the predictor's {list(model.event_targets)}, got "
                              f"{list(told)}; leave it out")  # fmt: skip
        known = replace(columns, targets=model.event_targets, marks=model.event_marks,
                        period=columns.period or pandas_freq(model.period_ns))  # fmt: skip
        return _open_events(data, known)
    if model is not None and (data in ASKED or told is not None):
        what = f"data: {data} is a set of events" if data in ASKED else "columns.targets: is for events"
        raise ConfigError(f"{what}, this predictor reads sensors; name another predictor, or a table of sensors")
    if told is not None and sensors:
        raise ConfigError(f"columns.targets: is for events, {data} is a set of sensors; leave it out, or name one of "
                          f"{', '.join(ASKED)}")  # fmt: skip
    if data in ASKED or told is not None:
        return _open_events(data, columns)
    given = next((name for name in ("type", "marks") if getattr(columns, name) is not None), None)
    if given is not None:
        raise ConfigError(f"columns.targets: is needed where columns.{given} says that {data} holds events; say what "
                          "to count in every window, '[\"count\"]' say")  # fmt: skip
    return open_source(data, columns)


def events_of(source: Source, entries: Sequence[Mapping[str, object]], model: ModelOptions) -> Kinds | None:
    """What the events of a training part hold; None where the source is one of sensors.

    Errors: those of `vocabulary`; ConfigError for a target of a type that is not in it.
    """
    if not isinstance(source, EventSource):
        return None
    types = vocabulary(entries, unknown=model.event_unknown)
    for target in source.targets:
        kind = parse_aggregate(target).type
        if kind is not None and kind not in types:
            raise ConfigError(f"columns.targets: {target!r} names the type {kind!r}, which the training part of "
                              f"{source.name} does not have; it has {list(types[:20])}")  # fmt: skip
    return Kinds(types=types, targets=source.targets, marks=source.marks)


def vocabulary(entries: Sequence[Mapping[str, object]], *, unknown: str) -> tuple[str, ...]:
    """Types of the events inside the targets of the entries, in the order of the alphabet.

    unknown: "other" keeps the MOST_TYPES most frequent ones, the rest are then others; "raise" refuses more.
    Errors: ConfigError; DataError where no event has a type.
    """
    count: Counter[str] = Counter()
    for entry in entries:
        types = np.asarray(entry["event_type"], object)[: inside(entry)]
        count.update(str(name) for name in types if name is not None)
    if not count:
        raise DataError("columns.type: no event of the training part has a type; name another column, or give "
                        "columns.type='' where all events are of one kind")  # fmt: skip
    if len(count) > MOST_TYPES and unknown == "raise":
        raise ConfigError(f"columns.type: the training part has {len(count):,} types, at most {MOST_TYPES:,} are "
                          "learned; name a coarser column, or take model.event_unknown=other, which learns the most "
                          "frequent ones and counts the rest as one")  # fmt: skip
    return tuple(sorted(name for name, _ in count.most_common(MOST_TYPES)))


def inside(entry: Mapping[str, object]) -> int:
    """How many of an entry's events lie before the end of its target; the others are its future."""
    start, steps = cast(pd.Period, entry["start"]), np.shape(cast(np.ndarray, entry["target"]))[-1]
    period = freq_ns(start.freqstr)
    stop = (absolute_step(start, period) + steps) * period
    return int(np.searchsorted(cast(np.ndarray, entry["event_time"]), stop))


def _open_events(data: str, columns: DataOptions) -> EventSource:
    """Read events; what to count is told, or known of the set."""
    if columns.channels:
        raise ConfigError(f"columns.channels: is for tables of sensors, got {list(columns.channels)} where {data} is "
                          "read as events; choose with columns.targets and columns.marks")  # fmt: skip
    asked = ASKED.get(data)
    targets = columns.targets or (() if asked is None else asked.targets)
    for target in targets:
        try:
            parse_aggregate(target)
        except FrameError as error:
            raise ConfigError(f"columns.targets: {error}") from None
    if asked is not None:
        named = catalog.EVENT_SETS[data]
        frame, origin, word, season = asked.load(), named.home, data, named.season
        period = period_ns(columns.period or named.period)
        marks = _needed(targets, asked.marks if columns.marks is None else columns.marks)
    elif Path(data).is_file():
        if columns.period is None:
            raise ConfigError(f"columns.period: {data} is read as events, which have no step to take it from; give the "
                              "length of the windows to count in, 1h say")  # fmt: skip
        period = period_ns(columns.period)
        frame, origin, word = _read(Path(data), columns), str(Path(data).resolve()), Path(data).name.split(".")[0]
        marks, season = tuple(happenings.marks(frame)), max(1, round(DAY_NS / period))
    else:
        raise unknown_data(data)
    for target in targets:
        mark = parse_aggregate(target).mark
        if mark is not None and mark not in happenings.marks(frame):
            raise ConfigError(f"columns.targets: {target!r} names the mark {mark!r}, {data} has the marks "
                              f"{happenings.marks(frame)}; name one of those")  # fmt: skip
    present("columns.marks", marks, happenings.marks(frame), data)
    no_long_silence(frame, data, columns)
    return EventSource(
        name=word, origin=origin, frame=frame.select(STREAM, TIME, TYPE, *marks), period=period,
        season=columns.season or season, targets=tuple(targets), marks=marks,
    )  # fmt: skip


def _read(path: Path, columns: DataOptions) -> pl.DataFrame:
    """Read a file; its marks are those of the targets and `columns.marks`, by default every numeric column."""
    text = [columns.time] if columns.unit and columns.time else ()
    table = table_with_rows(path, text)
    time, stream = key_columns(table, columns, path.name)
    kind = TYPE if columns.type is None else columns.type
    if kind and kind not in table.columns:
        raise DataError(f"columns.type: {path.name} has no column {kind!r}, only {table.columns}; name the column of "
                        "an event's type, give columns.type='' where all events are of one kind, or leave "
                        "columns.targets out where the rows are no events")  # fmt: skip
    rest = others(table, time, stream, kind)
    no_stray_words("columns.marks", table, rest if columns.marks is None else columns.marks, path.name)
    numeric = [name for name in rest if table.schema[name].is_numeric()]
    if columns.marks is not None:
        present("columns.marks", columns.marks, numeric, path.name)
        aimed = _needed(columns.targets or (), columns.marks)
        numeric = [name for name in aimed if name in numeric]
    layout = EventLayout(time=time, stream=stream or STREAM, type=kind or None, marks=tuple(numeric),
                         name=None if stream else columns.name or path.name.split(".")[0],
                         time_format=columns.time_format, unit=columns.unit)  # fmt: skip
    frame = table_frame(table, layout, origin=str(path))
    return frame if kind else frame.with_columns(pl.lit(ONE_KIND).alias(TYPE))


def _needed(targets: Sequence[str], marks: Sequence[str]) -> tuple[str, ...]:
    """The marks, and behind them those that a target is taken of: a model aims at what it sees."""
    aimed = (parse_aggregate(target).mark for target in targets)
    return tuple(dict.fromkeys((*marks, *(name for name in aimed if name is not None))))
