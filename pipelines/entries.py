"""GluonTS data entries to series on the absolute grid, and frequencies to periods.

    step = start.ns // period       for a fixed period (seconds to weeks)
    step = start.ordinal            for a calendar frequency (months, quarters, business days): period_ns = 0

An entry is {start: pandas.Period, target [T] or [C, T], item_id, feat_dynamic_real [F, T(+H)], feat_dynamic_cat
[G, T(+H)], past_feat_dynamic_real [U, T], feat_static_real [R], feat_static_cat [K]}; missing is NaN. One of events has
event_time [E] (int64 ns, in order), event_type [E] and event_marks [E, M] beside a target that says how long it is;
later events are not looked at.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import pandas as pd

from tsgdn2.covariates import Covariates
from tsgdn2.errors import ConfigError, SchemaError, TsgdnError
from tsgdn2.events.history import EventSeries
from tsgdn2.events.schema import EventArrays, EventSchema
from tsgdn2.forecaster import ForecasterConfig
from tsgdn2.scale import Bools, Floats
from tsgdn2.standards import Standards
from tsgdn2.timeline import Ints, Series

Entry: TypeAlias = Mapping[str, object]


@lru_cache(maxsize=64)
def period_ns(freq: str) -> int:
    """Nanoseconds of one step, 0 for a calendar frequency. ConfigError names `freq` when pandas does not know it."""
    try:
        with warnings.catch_warnings():  # pandas renames its aliases; old and new ones mean the same period here
            warnings.simplefilter("ignore", FutureWarning)
            offset = pd.Period("2001-01-01", freq=freq).freq
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"freq: {freq!r} is no pandas period frequency such as 'h', '15min', 'D' ({error})") from None
    if isinstance(offset, pd.offsets.Week):
        return int(offset.n * pd.Timedelta(days=7).value)
    return int(offset.nanos) if isinstance(offset, pd.offsets.Tick) else 0


def absolute_step(start: pd.Period, period: int) -> int:
    """Absolute step of a period's start."""
    return int(start.start_time.value // period) if period else int(start.ordinal)


@dataclass(frozen=True)
class RawSeries:
    """One entry in arrays: values [T, C], known [T(+H), F + G], past [T(+H), U], static features, start, name."""

    config: ForecasterConfig

    item_id: str
    start: pd.Period
    step: int
    values: Floats
    known: Floats
    """Reals, then categories."""
    past: Floats
    """NaN where missing, and beyond the last step."""
    static_real: Floats
    static_categories: Ints
    flat: bool
    """The target came as [T]."""
    hidden: Bools | None = None
    """Cells of `values` that training hides from the input."""
    events: EventArrays | None = None
    """The events of the span of `values`, where the model reads events."""

    def series(self, standards: Standards, channels: tuple[str, ...]) -> Series:
        """Standardised covariates and the prior of this item."""
        return Series(
            values=self.values,
            start=self.step,
            prior_scale=standards.prior_scale(self.item_id, names_of(channels, self.values.shape[1])),
            known=self._known(standards),
            static_real=standards.static(self.static_real) if standards.static_mean else np.zeros(0),
            static_categories=self.static_categories,
            hidden=self.hidden,
        )

    def event_series(self, standards: Standards, channels: tuple[str, ...], period: int) -> EventSeries:
        """The same of events; it ends with the last step of `values`, which may be silent."""
        assert self.events is not None
        if not len(self.events.time):
            raise SchemaError(f"event_time: item {self.item_id!r} has no event in the span of its target; leave it out")
        silent = int(self.events.time[0]) // period - self.step
        return EventSeries(
            events=self.events,
            prior_scale=standards.prior_scale(self.item_id, channels),
            end=(self.step + len(self.values)) * period,
            known=self._known(standards)[silent:],
            static_real=standards.static(self.static_real) if standards.static_mean else np.zeros(0),
            static_categories=self.static_categories,
        )

    def _known(self, standards: Standards) -> Floats:
        return Covariates(self.config, standards).columns(self.known, self.past, "feat_dynamic_real")


def names_of(channels: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Names of `count` channels: those of the model where it has as many, else value or c0, c1, .."""
    if len(channels) == count:
        return channels
    return ("value",) if count == 1 else tuple(f"c{i}" for i in range(count))


def read_entry(entry: Entry, config: ForecasterConfig, index: int, *, horizon: bool) -> RawSeries:
    """Check one entry against the config. SchemaError names the field and the item.

    horizon: the entry must hold the known covariates of the horizon too.
    """
    item = str(entry.get("item_id", index))
    missing = [name for name in ("start", "target") if name not in entry]
    if missing:
        raise SchemaError(f"entry: item {item!r} lacks {missing}; GluonTS entries have start and target")
    start = entry["start"]
    if not isinstance(start, pd.Period):
        raise SchemaError(f"start: item {item!r} must start with a pandas.Period, got {type(start).__name__}")
    if period_ns(start.freqstr) != config.period_ns:
        raise SchemaError(f"start: item {item!r} has steps of {start.freqstr!r}, the model another; resample it")
    target = np.asarray(entry["target"], np.float64)
    flat = target.ndim == 1
    target = target[None] if flat else target
    if target.ndim != 2 or 0 in target.shape or (config.bound and target.shape[0] != config.channels):
        wanted = f"target_channels={config.channels}" if config.bound else "one row per channel, as many as there are"
        raise SchemaError(
            f"target: item {item!r} has shape {np.asarray(entry['target']).shape}, the model takes {wanted}; expected "
            f"[T] for 1, else [{config.channels if config.bound else 'C'}, T], T >= 1"
        )
    length = target.shape[1]
    whole = length + config.prediction_length
    need = whole if horizon else length
    reals = _dynamic(entry, "feat_dynamic_real", config.known, need, whole, item)
    codes = _dynamic(entry, "feat_dynamic_cat", len(config.known_cardinalities), need, whole, item)
    steps = min(len(reals), len(codes))
    past = np.full((steps, config.past), np.nan)
    past[:length] = _dynamic(entry, "past_feat_dynamic_real", config.past, length, length, item)
    real = np.asarray(entry.get("feat_static_real", ()), np.float64).reshape(-1)[: config.static_real]
    if len(real) != config.static_real:
        raise SchemaError(f"feat_static_real: item {item!r} needs {config.static_real} values, got {real}")
    sizes = np.array(config.static_cardinalities, np.int64)
    categories = np.asarray(entry.get("feat_static_cat", ()), np.int64).reshape(-1)[: len(sizes)]
    if len(categories) != len(sizes) or (categories < 0).any() or (categories >= sizes).any():
        raise SchemaError(f"feat_static_cat: item {item!r} needs integers below {sizes}, got {categories}")
    step = absolute_step(start, config.period_ns)
    events = None
    if config.event_types:
        period = config.period_ns
        events = _events(entry, config.event_schema(), item, step * period, (step + length) * period)
    return RawSeries(
        config,
        item,
        start,
        step,
        target.T,
        np.hstack([reals[:steps], codes[:steps]]),
        past,
        real,
        categories,
        flat,
        events=events,
    )


def _dynamic(entry: Entry, name: str, width: int, need: int, most: int, item: str) -> Floats:
    """A field [width, T or longer] of an entry as [T, width], `need` to `most` steps long."""
    if not width:
        return np.zeros((most, 0))
    raw = np.asarray(entry.get(name, np.zeros((0, 0))), np.float64)
    if raw.ndim != 2 or raw.shape[0] != width or raw.shape[1] < need:
        raise SchemaError(
            f"{name}: item {item!r} needs [{width}, {need}] or longer (what is known must reach over the horizon of a "
            f"forecast), got {raw.shape}"
        )
    return raw.T[:most]


def _events(entry: Entry, schema: EventSchema, item: str, begin: int, end: int) -> EventArrays:
    """The events of an entry with begin <= time < end, in order."""
    missing = [name for name in ("event_time", "event_type") if name not in entry]
    if missing:
        raise SchemaError(
            f"entry: item {item!r} lacks {missing}; make entries of events with datasets.gluon.event_entries"
        )
    time = np.asarray(entry["event_time"], np.int64)
    types: Sequence[str | None] = list(np.asarray(entry["event_type"], object))
    marks = np.asarray(entry.get("event_marks", np.zeros((len(time), 0))), np.float64)
    inside = slice(*np.searchsorted(time, (begin, end)).tolist())
    try:
        return schema.arrays(time[inside], types[inside], marks[inside][:, : len(schema.marks)])
    except TsgdnError as error:
        raise type(error)(f"{error} (item {item!r})") from None
