"""GluonTS data entries to series on the absolute grid, and frequencies to periods.

    step = start.ns // period       for a fixed period (seconds to weeks)
    step = start.ordinal            for a calendar frequency (months, quarters, business days): period_ns = 0

An entry is {start: pandas.Period, target [T] or [C, T], item_id, feat_dynamic_real [F, T(+H)], feat_dynamic_cat
[G, T(+H)], past_feat_dynamic_real [U, T], feat_static_real [R], feat_static_cat [K]}; missing is NaN. A field that the
model reads has the model's width, nothing of it is cut or cast; one that it does not read is not looked at.

An entry of events has event_time [E] (int64 ns, in order), event_type [E] and event_marks [E, M] beside a target that
says how long it is; later events are not looked at. event_mark_names [M] says what the marks are, and they are taken by
name; event_targets [C] says in the grammar of datasets/events.py what the target is, and must be what the model
forecasts, in its order. An entry made by hand without them is taken at its word: marks in the order of the model and as
many, a target that is what the model forecasts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import TypeAlias, cast

import numpy as np
import pandas as pd

from tsgdn2.covariates import Covariates, wrong_categories
from tsgdn2.errors import ConfigError, SchemaError, TsgdnError
from tsgdn2.events.history import EventSeries
from tsgdn2.events.schema import EventArrays, EventSchema
from tsgdn2.forecaster import ForecasterConfig
from tsgdn2.intake import LARGEST
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
    _check_targets(entry, config.event_targets, item)
    target = _numbers(entry["target"], "target", item)
    flat = target.ndim == 1
    target = target[None] if flat else target
    if target.ndim != 2 or 0 in target.shape or (config.bound and target.shape[0] != config.channels):
        wanted = f"target_channels={config.channels}" if config.bound else "one row per channel, as many as there are"
        raise SchemaError(
            f"target: item {item!r} has shape {np.asarray(entry['target']).shape}, the model takes {wanted}; expected "
            f"[T] for 1, else [{config.channels if config.bound else 'C'}, T], T >= 1"
        )
    if (np.abs(target) > LARGEST).any():
        raise SchemaError(f"target: item {item!r} holds {float(target[np.abs(target) > LARGEST][0])!r}, an infinite or "
                          f"absurd value; finite numbers up to {LARGEST:g} and NaN (missing) are allowed")  # fmt: skip
    length = target.shape[1]
    whole = length + config.prediction_length
    need = whole if horizon else length
    reals = _dynamic(entry, "feat_dynamic_real", config.known, need, whole, item)
    codes = _dynamic(entry, "feat_dynamic_cat", len(config.known_cardinalities), need, whole, item)
    _check_known(reals, codes, config.known_cardinalities, item)
    steps = min(len(reals), len(codes))
    past = np.full((steps, config.past), np.nan)
    past[:length] = _dynamic(entry, "past_feat_dynamic_real", config.past, length, length, item)
    if np.isinf(past).any():
        raise SchemaError(f"past_feat_dynamic_real: item {item!r} holds an infinite value; only finite numbers and NaN "
                          "(missing) are allowed, clean the source")  # fmt: skip
    real = _static(entry, "feat_static_real", config.static_real, item)
    if not np.isfinite(real).all():
        raise SchemaError(f"feat_static_real: item {item!r} needs finite numbers, got {real.tolist()}; fill what is "
                          "missing, or train without it")  # fmt: skip
    sizes = config.static_cardinalities
    categories = _static(entry, "feat_static_cat", len(sizes), item)
    if wrong_categories(categories, sizes).any():
        raise SchemaError(f"feat_static_cat: item {item!r} needs integers from 0 to below {list(sizes)}, got "
                          f"{categories.tolist()}; map what training did not know to a value that it did")  # fmt: skip
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
        categories.astype(np.int64),
        flat,
        events=events,
    )


def _dynamic(entry: Entry, name: str, width: int, need: int, most: int, item: str) -> Floats:
    """A field [width, T or longer] of an entry as [T, width], `need` to `most` steps long."""
    if not width:
        return np.zeros((most, 0))
    raw = _numbers(entry.get(name, np.zeros((0, 0))), name, item)
    if raw.ndim != 2 or raw.shape[0] != width or raw.shape[1] < need:
        raise SchemaError(
            f"{name}: item {item!r} needs [{width}, {need}] or longer (what is known must reach over the horizon of a "
            f"forecast), got {raw.shape}"
        )
    return raw.T[:most]


def _static(entry: Entry, name: str, width: int, item: str) -> Floats:
    """A static field of an entry as [width]; one that the model does not read is not looked at."""
    if not width:
        return np.zeros(0)
    raw = _numbers(entry.get(name, ()), name, item).reshape(-1)
    if len(raw) != width:
        raise SchemaError(f"{name}: item {item!r} needs {width} values, got {raw.tolist()}; give what training had")
    return raw


def _numbers(given: object, name: str, item: str) -> Floats:
    try:
        return np.asarray(given, np.float64)
    except (ValueError, TypeError):
        raise SchemaError(f"{name}: item {item!r} must hold numbers in a regular shape, got {given!r}") from None


def _check_known(reals: Floats, codes: Floats, sizes: Sequence[int], item: str) -> None:
    """What is known of every step is there: finite reals [T, F], categories [T, G] that training knew."""
    if not np.isfinite(reals).all():
        bad = float(reals[~np.isfinite(reals)][0])
        raise SchemaError(f"feat_dynamic_real: item {item!r} must be finite, got {bad}; a known covariate is known, "
                          "fill it, or train without it")  # fmt: skip
    for i, size in enumerate(sizes):
        wrong = ~np.isin(codes[:, i], np.arange(size))
        if wrong.any():
            bad = float(codes[wrong, i][0])
            raise SchemaError(f"feat_dynamic_cat: item {item!r} must hold integers from 0 to {size - 1} in row {i}, "
                              f"got {bad:g}; map what training did not know to a value that it did")  # fmt: skip


def _check_targets(entry: Entry, wanted: Sequence[str], item: str) -> None:
    """The target of an entry of events is what the model forecasts, as far as the entry says what it is."""
    if not wanted or "event_targets" not in entry:
        return
    given = [str(target) for target in cast(Sequence[object], entry["event_targets"])]
    if given != list(wanted):
        odd = next((a for a, b in zip_longest(given, wanted) if a != b), None)
        lacks = "lacks the last target" if odd is None else f"has the target {odd!r} where the model has another"
        raise SchemaError(f"event_targets: item {item!r} {lacks}; it was made with {given}, the model forecasts "
                          f"{list(wanted)}; make entries with these targets in this order")  # fmt: skip


def marks_of(entry: Entry, names: Sequence[str], count: int, item: str) -> Floats:
    """Marks [E, M] of an entry in the order of the model, found by name where the entry has names."""
    if not names:
        return np.zeros((count, 0))
    marks = _numbers(entry.get("event_marks", np.zeros((count, 0))), "event_marks", item)
    if marks.ndim != 2 or len(marks) != count:
        raise SchemaError(f"event_marks: item {item!r} needs [{count}, M], a row for each event, got {marks.shape}")
    if "event_mark_names" not in entry:
        if marks.shape[1] != len(names):
            raise SchemaError(f"event_marks: item {item!r} has {marks.shape[1]} columns without names, the model reads "
                              f"{list(names)}; say what they are in event_mark_names, or give these alone")  # fmt: skip
        return marks
    given = [str(name) for name in cast(Sequence[object], entry["event_mark_names"])]
    if len(given) != marks.shape[1] or len(set(given)) != len(given):
        raise SchemaError(f"event_marks: item {item!r} has {marks.shape[1]} columns, so event_mark_names needs "
                          f"{marks.shape[1]} names that differ, got {given}")  # fmt: skip
    absent = [name for name in names if name not in given]
    if absent:
        raise SchemaError(f"event_marks: item {item!r} carries {given}, the model reads {list(names)}; make entries "
                          f"that carry {absent} too")  # fmt: skip
    return marks[:, [given.index(name) for name in names]]


def _events(entry: Entry, schema: EventSchema, item: str, begin: int, end: int) -> EventArrays:
    """The events of an entry with begin <= time < end, in order."""
    missing = [name for name in ("event_time", "event_type") if name not in entry]
    if missing:
        raise SchemaError(
            f"entry: item {item!r} lacks {missing}; make entries of events with datasets.gluon.event_entries"
        )
    time = np.asarray(entry["event_time"], np.int64)
    types: Sequence[str | None] = list(np.asarray(entry["event_type"], object))
    marks = marks_of(entry, schema.marks, len(time), item)
    inside = slice(*np.searchsorted(time, (begin, end)).tolist())
    try:
        return schema.arrays(time[inside], types[inside], marks[inside])
    except TsgdnError as error:
        raise type(error)(f"{error} (item {item!r})") from None
