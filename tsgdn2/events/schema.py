"""What an event is: a moment, a type of a vocabulary, marks; and what a model of events aims at, in a small grammar.

It checks and numbers; what is summed over events is in tsgdn2/events/sums.py. An event may lack its type or any mark,
never its moment. Equal moments are distinct events.

    targets:  count | count[type] | kind(mark) | kind(mark)[type]        kind: sum, mean, min, max

| symbol | meaning | shape | unit |
|---|---|---|---|
| time | moments, in order | [E] | int64 ns since 1970, UTC |
| type | slot: place in the vocabulary, then `other`, then `missing` | [E] | integer |
| marks | numbers that came with the event, NaN where missing | [E, M] | units of the mark |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsgdn2.clock import Steps
from tsgdn2.errors import ConfigError, SchemaError, StreamError, require
from tsgdn2.scale import Bools, Floats

Ints = NDArray[np.int64]

KINDS = ("count", "sum", "mean", "min", "max")
ANY = -1
LARGEST = 1e100
_GRAMMAR = re.compile(r"(?P<kind>[a-z]+)(?:\((?P<mark>[^()]+)\))?(?:\[(?P<type>.+)\])?")


class EventArrays(NamedTuple):
    """Events of one stream in the order of time; shapes in the table above."""

    time: Steps
    type: Ints
    marks: Floats

    def take(self, rows: Ints | Bools | slice) -> EventArrays:
        """Some of the events, in the order of `rows`."""
        return EventArrays(self.time[rows], self.type[rows], self.marks[rows])


class Target(NamedTuple):
    """One channel of an event model: its kind, the mark's column (ANY for count) and the type's slot (ANY: all)."""

    name: str
    kind: str
    mark: int
    type: int


@dataclass(frozen=True, kw_only=True)
class EventSchema:
    """Vocabulary, marks, targets and the units that training found; every layout of events follows from it."""

    types: tuple[str, ...]
    """Names of the types, at least one."""
    targets: tuple[str, ...]
    """Channels of the model, in order, in the grammar of the module."""
    period_ns: int
    """Length of a step in nanoseconds, >= 1."""
    marks: tuple[str, ...] = ()
    """Names of the marks."""
    low: tuple[float, ...] = ()
    """Smallest value that each mark may have."""
    high: tuple[float, ...] = ()
    """Largest value that each mark may have."""
    mean: tuple[float, ...] = ()
    """Mean of each mark over the training events."""
    scale: tuple[float, ...] = ()
    """Deviation of each mark over the training events, > 0."""
    unknown: str = "raise"
    """A type outside the vocabulary: "raise" is an error, "other" counts it in a slot of its own."""

    def __post_init__(self) -> None:
        """Check every bound; ConfigError names the field."""
        for field in ("types", "marks"):
            names = getattr(self, field)
            ok = all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)
            require(f"event_{field}", names, "names that differ and are not empty", ok)
        require("event_types", self.types, "at least one name", bool(self.types))
        require("event_targets", self.targets, "at least one target", bool(self.targets))
        require("event_targets", self.targets, "different from each other", len(set(self.targets)) == len(self.targets))
        require("period_ns", self.period_ns, ">= 1: events need a fixed period", self.period_ns >= 1)
        require("event_unknown", self.unknown, '"raise" or "other"', self.unknown in ("raise", "other"))
        for field in ("low", "high", "mean", "scale"):
            values = getattr(self, field)
            one_each = len(values) == len(self.marks) and not np.isnan(values).any()
            require(f"event_mark_{field}", values, f"one number for each of {self.marks}", one_each)
        ordered = all(a < b for a, b in zip(self.low, self.high, strict=True))
        require("event_mark_low", self.low, f"below event_mark_high = {self.high}", ordered)
        units = np.isfinite(self.mean).all() and np.isfinite(self.scale).all() and (np.array(self.scale) > 0).all()
        require("event_mark_scale", (self.mean, self.scale), "finite, and > 0 for the scale", bool(units))
        _ = self.parsed

    @cached_property
    def parsed(self) -> tuple[Target, ...]:
        """The targets, read."""
        return tuple(parse_target(text, self.types, self.marks) for text in self.targets)

    @property
    def slots(self) -> int:
        """Type slots: the vocabulary, `other`, `missing`."""
        return len(self.types) + 2

    @property
    def other(self) -> int:
        """Slot of a type outside the vocabulary."""
        return len(self.types)

    @property
    def missing(self) -> int:
        """Slot of an event without a type."""
        return len(self.types) + 1

    def codes(self, types: Sequence[str | None]) -> Ints:
        """Slots [E] of type names; None is missing. StreamError for a name outside the vocabulary, unless "other"."""
        try:
            return np.array([self._slot[name] for name in types], np.int64)
        except (KeyError, TypeError):
            return np.array([self.code(name) for name in types], np.int64)

    def code(self, name: str | None) -> int:
        """Slot of one type; as `codes`."""
        if name is not None and not isinstance(name, str):
            raise StreamError(f"type: must be a string or None (missing), got {name!r}; convert it")
        slot = self._slot.get(name)
        if slot is None and self.unknown == "raise":
            known = f"{list(self.types[:8])}{' ...' if len(self.types) > 8 else ''}"
            raise StreamError(
                f"type: {name!r} is not among the {len(self.types)} types of training {known}; send None, map it to "
                'one of them, or train with event_unknown="other"'
            )
        return self.other if slot is None else slot

    def check_marks(self, marks: Floats) -> None:
        """StreamError for the first of marks [E, M] that is infinite or outside its bounds; NaN is missing."""
        if not len(self.marks):
            return
        with np.errstate(invalid="ignore"):
            bad = (marks < self._bounds[0]) | (marks > self._bounds[1])
        if bad.any():
            row, column = np.argwhere(bad)[0]
            low, high = self._bounds[:, column]
            raise StreamError(
                f"marks: event {row}, mark {self.marks[column]!r} is {float(marks[row, column])!r}; it must lie in "
                f"[{low:g}, {high:g}] or be NaN (missing), clean the source or train with wider bounds"
            )

    def arrays(self, time: Steps, types: Sequence[str | None] | Ints, marks: Floats | None = None) -> EventArrays:
        """A history of events, checked: time [E] in order, types [E] names or slots, marks [E, M]."""
        slots = types if isinstance(types, np.ndarray) and types.dtype.kind == "i" else self.codes(list(types))
        given = np.zeros((len(time), 0)) if marks is None else np.asarray(marks, np.float64)
        if time.dtype != np.int64 or time.ndim != 1:
            raise SchemaError(f"time: must be int64 nanoseconds [E], got {time.dtype} of shape {time.shape}")
        if slots.shape != time.shape or given.shape != (len(time), len(self.marks)):
            raise SchemaError(
                f"events: {len(time)} moments need as many types and marks [{len(time)}, {len(self.marks)}], "
                f"got {slots.shape} and {given.shape}"
            )
        if (slots < 0).any() or (slots >= self.slots).any():
            raise SchemaError(f"types: slots must lie in [0, {self.slots}), got {slots.min()} to {slots.max()}")
        if (np.diff(time) < 0).any():
            raise SchemaError("time: events must be in the order of time; sort them by it")
        self.check_marks(given)
        return EventArrays(time, slots.astype(np.int64), given)

    @cached_property
    def _slot(self) -> dict[str | None, int]:
        return {**{name: i for i, name in enumerate(self.types)}, None: self.missing}

    @cached_property
    def _bounds(self) -> Floats:
        return np.array([np.maximum(self.low, -LARGEST), np.minimum(self.high, LARGEST)])


def parse_target(text: str, types: Sequence[str], marks: Sequence[str]) -> Target:
    """Read one target of the grammar; ConfigError says what is wrong with it."""
    found = _GRAMMAR.fullmatch(text)
    if found is None or found["kind"] not in KINDS:
        raise ConfigError(
            f"event_targets: {text!r} is no target; write count, count[type], kind(mark) or kind(mark)[type] with a "
            f"kind among {KINDS[1:]}"
        )
    kind, mark, name = found["kind"], found["mark"], found["type"]
    if (kind == "count") != (mark is None):
        raise ConfigError(f"event_targets: {text!r}: count takes no mark, every other kind takes one in parentheses")
    if mark is not None and mark not in marks:
        raise ConfigError(f"event_targets: {text!r} names the mark {mark!r}; event_marks are {tuple(marks)}")
    if name is not None and name not in types:
        raise ConfigError(f"event_targets: {text!r} names the type {name!r}; event_types are {tuple(types)}")
    return Target(
        text,
        kind,
        ANY if mark is None else list(marks).index(mark),
        ANY if name is None else list(types).index(name),
    )


def mark_units(histories: Sequence[EventArrays]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each mark over the events of many histories; 0 and 1 where it was never seen to vary."""
    marks = np.concatenate([events.marks for events in histories])
    seen = np.isfinite(marks)
    count = np.maximum(seen.sum(0), 1)
    mean = np.where(seen, marks, 0.0).sum(0) / count
    scale = np.sqrt((np.where(seen, marks - mean, 0.0) ** 2).sum(0) / count)
    return tuple(mean.tolist()), tuple(np.where(scale > 0, scale, 1.0).tolist())
