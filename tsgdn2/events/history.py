"""Histories of many event streams in contiguous arrays, dense in steps, sparse in sums, with the events themselves.

Any moment can be asked: the complete steps before it are rows of dense arrays, the events of its own step are gathered.

    row of step s of stream i = offset_i + s          before(tau) = number of events with time < tau
    statistics of a row: after the values of that step, silent steps included as zeros

A history begins with the step of its first event and ends before `end`; silence in between is a fact. A history of 1e8
steps is refused, however few its events are; a stream passes over such a gap (tsgdn2/events/slab.py).

S streams, R rows, E events, C targets, F sums per step, N.. any leading shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tsgdn2.errors import SchemaError
from tsgdn2.events.patch import step_of
from tsgdn2.events.schema import EventArrays, EventSchema, Ints
from tsgdn2.events.sums import EventSums
from tsgdn2.scale import Bools, Floats, forgetting, scale_of, scan

MOST_STEPS = 10**8
NONE = int(np.iinfo(np.int64).min)


@dataclass(frozen=True, kw_only=True)
class EventSeries:
    """One history of events, in order and checked (EventSchema.arrays); covariates, statics, prior scale [C]."""

    events: EventArrays
    prior_scale: Floats
    end: int | None = None
    """Moment in ns before which everything is known; by default right after the last event."""
    known: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """[T or T + H, F] from the step of the first event, standardised (Covariates.columns). The row of a past step
    reaches a window with its events: a stream hears of a silent step only when it is over."""
    static_real: Floats = field(default_factory=lambda: np.zeros(0))
    static_categories: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        """Check that there is a history; SchemaError names the field."""
        if not len(self.events.time):
            raise SchemaError("events: a history needs at least one event; leave the stream out")
        if self.end is not None and self.end <= int(self.events.time[-1]):
            raise SchemaError(f"end: must lie after the last event {self.events.time[-1]}, got {self.end}")
        if not (self.prior_scale > 0).all():
            raise SchemaError(f"prior_scale: must be [C] and > 0, got {self.prior_scale}")
        if self.known.size and not np.isfinite(self.known).all():
            raise SchemaError("known: must be finite over history and horizon; fill or drop the covariate")

    @property
    def tau(self) -> int:
        """The end of the history."""
        return int(self.events.time[-1]) + 1 if self.end is None else self.end


class EventHistories:
    """Streams laid end to end, each between margins of `window` steps before, `window + horizon` after."""

    def __init__(
        self, series: Sequence[EventSeries], schema: EventSchema, *, window: int, horizon: int, half_life: float
    ) -> None:
        self.sums_of, self.period_ns = EventSums(schema), schema.period_ns
        self.start: Ints = np.array([one.events.time[0] // self.period_ns for one in series], np.int64)
        self.end: Ints = np.array([one.tau for one in series], np.int64)
        self.steps: Ints = self.end // self.period_ns - self.start
        """Complete steps [S]; the last one may be partial, and is no row of `values`."""
        if int(self.steps.max()) > MOST_STEPS:
            raise SchemaError(
                f"events: history {int(self.steps.argmax())} spans {int(self.steps.max())} steps of {self.period_ns} "
                f"ns; a batch is dense in steps and takes {MOST_STEPS}, check the stamps or take a longer period"
            )
        if any(one.prior_scale.shape != (len(schema.targets),) for one in series):
            raise SchemaError(f"prior_scale: must be one deviation for each of {schema.targets}")
        lengths = self.steps + 2 * window + horizon + 2
        ends = np.cumsum(lengths)
        self.offset: Ints = ends - lengths + window - self.start
        total, targets = int(ends[-1]), len(schema.targets)
        self.values, self.seen = np.zeros((total, targets)), np.zeros((total, targets), np.bool_)
        self.mean, self.scale = np.zeros((total, targets)), np.ones((total, targets))
        self.last: Ints = np.full((total, targets), NONE, np.int64)
        """Newest step up to each row in which something happened to the target, NONE without one."""
        self.row: Ints = np.zeros(total, np.int64)
        """Row of each step in `sums`; 0 is that of a step without events."""
        self.known = np.zeros((total, series[0].known.shape[1]))
        self.first: Ints = np.zeros(total + 1, np.int64)
        """Events before the beginning of each step, of all streams."""
        self.events = EventArrays(*(np.concatenate(part) for part in zip(*(s.events for s in series), strict=True)))
        self.bounds: Ints = np.concatenate(([0], np.cumsum([len(one.events.time) for one in series])))
        """Events before each stream [S + 1]."""
        self.busy: list[Ints] = []
        """Steps that hold events, of each stream."""
        parts = [self.sums_of.rows(1)[0]]
        for i, one in enumerate(series):
            rows = slice(int(ends[i] - lengths[i]), int(ends[i]))
            sums = self._lay(i, one, rows, sum(map(len, parts)), window, forgetting(half_life))
            parts.append(sums)
        self.sums = np.concatenate(parts)

    def _lay(self, i: int, one: EventSeries, rows: slice, number: int, window: int, lam: float) -> Floats:
        """Fill the rows of one stream; returns the sums of its busy steps, the first of which has this number."""
        step = one.events.time // self.period_ns
        busy, turn = np.unique(step, return_inverse=True)
        sums, cells = self.sums_of.rows(len(busy))
        self.sums_of.accumulate(one.events, turn, sums, turn, cells)
        self.busy.append(busy)
        start, count = int(self.start[i]), int(self.steps[i])
        at = busy + self.offset[i]
        self.row[at] = number + np.arange(len(busy))
        self.first[rows] = self.bounds[i]
        self.first[at + 1] += np.bincount(turn)
        self.first[rows] = self.bounds[i] + np.cumsum(self.first[rows] - self.bounds[i])
        inside = slice(rows.start + window, rows.start + window + count)
        whole = np.repeat(self.sums_of.empty[None], count, 0)
        complete = busy < start + count
        whole[busy[complete] - start] = cells[complete]
        values, seen = self.sums_of.values(whole)
        moments = scan(values, seen, lam)
        self.values[inside], self.seen[inside] = values, seen
        self.mean[inside], self.scale[rows] = moments.mean, one.prior_scale
        self.scale[inside] = scale_of(moments, one.prior_scale)
        happened = np.where(self.sums_of.happened(whole), np.arange(start, start + count)[:, None], NONE)
        self.last[inside] = np.maximum.accumulate(happened, 0)
        if count:  # what comes after the end keeps the units of the end
            after = slice(inside.stop, rows.stop)
            self.mean[after], self.scale[after] = self.mean[inside.stop - 1], self.scale[inside.stop - 1]
            self.last[after] = self.last[inside.stop - 1]
        covered = one.known[: rows.stop - inside.start]
        self.known[inside.start : inside.start + len(covered)] = covered
        return sums

    def locate(self, stream: Ints, clock: Ints) -> tuple[Ints, Bools]:
        """Row of step c of each clock, and whether that step is partial at it; [..]."""
        step = step_of(clock, self.period_ns)
        return self.offset[stream] + step, clock != (step + 1) * self.period_ns

    def before(self, stream: Ints, clock: Ints) -> Ints:
        """Number of events of all streams that lie before each clock of this stream, [..]; a bisection in its step."""
        at = self.offset[stream] + step_of(clock, self.period_ns)
        low, high = self.first[at], self.first[at + 1]
        while (low < high).any():
            middle = (low + high) // 2
            earlier = (low < high) & (self.events.time[np.minimum(middle, len(self.events.time) - 1)] < clock)
            low, high = np.where(earlier, middle + 1, low), np.where(earlier, high, middle)
        return np.asarray(low, np.int64)

    def gather(self, low: Ints, high: Ints) -> tuple[Floats, Floats]:
        """Sums [Q, F] and cells [Q, C, 3] of the events low .. high - 1 of each of Q ranges."""
        size = np.maximum(high - low, 0)
        own = np.repeat(np.arange(len(size)), size)
        index = np.arange(len(own)) - np.repeat(np.cumsum(size) - size - low, size)
        sums, cells = self.sums_of.rows(len(size))
        self.sums_of.accumulate(self.events.take(index), own, sums, own, cells)
        return sums, cells
