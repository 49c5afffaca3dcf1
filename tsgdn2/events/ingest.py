"""What rows of events do to the slab: which patch or group they close, what they add to the open one, what is late.

    late      time windows: patch(step) < open patch        number windows: time < the newest event
    earlier   in the open patch, but before the newest event
    segment   the rows of one stream, in their order, between two commits (number windows: and of one step)

Rows are sorted into segments first; wave n holds the n-th segment of every stream, so a burst costs as much as one
event. Within a segment sums run in the order of the rows, so the bits are those of one row at a time.

R rows, U streams, C targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tsgdn2.errors import LateDataError, StreamError
from tsgdn2.events.engine import Closing, EventEngine
from tsgdn2.events.schema import EventArrays, Ints
from tsgdn2.events.slab import NONE, EventSlab
from tsgdn2.ingest import waves_of
from tsgdn2.scale import Bools, Floats

TOGETHER = 256  # commits whose reference forecasts wait for each other: what is in flight stays small
STATUS = ("new", "earlier", "late", "held", "duplicate")
NEW, EARLIER, LATE, HELD, DUPLICATE = range(5)


class Plan(NamedTuple):
    """Rows in segments: status [R] and how far behind the newest event each late one is, lag [R] in ns; the rows that
    are not late, stream by stream; begin and stream of each segment."""

    status: Ints
    lag: Ints
    rows: Ints
    begin: Ints
    stream: Ints


class EventIngest:
    """Moves the streams of one slab forward."""

    def __init__(self, slab: EventSlab, engine: EventEngine, longest_gap: int | None) -> None:
        self.slab, self.engine, self.longest_gap = slab, engine, longest_gap
        self.period_ns, self.span = slab.period_ns, slab.span

    def plan(self, names: Sequence[str], codes: Ints, slots: Ints, time: Ints, *, late: str) -> Plan:
        """Sort R rows out; codes [R] number U streams, slots [U] are -1 for new ones. Changes nothing.

        LateDataError for the first late row with late="raise"; StreamError for one that leaps too far ahead. Without
        names [R] the rows have passed both checks before.
        """
        held = np.maximum(slots, 0)
        newest = np.where(slots >= 0, self.slab.newest[held], NONE)
        last = np.where(slots >= 0, self.slab.last[held], NONE)
        if len(codes) == 1:
            return self._one(names, codes, time, newest[codes], last[codes], late)
        order = np.argsort(codes, kind="stable")
        code, moment = codes[order], time[order]
        before = _before(code, moment, newest)
        self._check_gap(names, order, moment, before)
        patch = moment // self.period_ns // self.span
        opened = _before(code, patch, np.where(last == NONE, NONE, last // self.span))
        gone = moment < before if self.slab.number else patch < opened
        if gone.any() and late == "raise":
            self.refuse(names, time, int(order[gone].min()))
        status, lag = np.empty(len(codes), np.int64), np.empty(len(codes), np.int64)
        status[order] = np.where(gone, LATE, (moment < before).astype(np.int64))
        lag[order] = np.where(gone, before - moment, 0)
        keep = ~gone
        code, moment, patch = code[keep], moment[keep], np.maximum(patch, opened)[keep]
        cut = np.ones(len(code), np.bool_)
        cut[1:] = (code[1:] != code[:-1]) | (patch[1:] != patch[:-1])
        if self.slab.number and len(code):
            cut |= self._groups(code, moment, np.where(slots >= 0, self.slab.opened[held], 0), newest)
        begin = np.flatnonzero(cut)
        return Plan(status, lag, order[keep], begin, code[begin])

    def _one(self, names: Sequence[str], codes: Ints, time: Ints, newest: Ints, last: Ints, late: str) -> Plan:
        """The plan of a single row, without sorting."""
        self._check_gap(names, np.zeros(1, np.int64), time, newest)
        earlier = bool(time[0] < newest[0])
        gone = earlier and (self.slab.number > 0 or bool(time[0] // self.period_ns // self.span < last[0] // self.span))
        if gone and late == "raise":
            self.refuse(names, time, 0)
        rows = np.zeros(0 if gone else 1, np.int64)
        lag = newest - time if gone else np.zeros(1, np.int64)
        return Plan(np.array([LATE if gone else int(earlier)]), lag, rows, rows, codes[: len(rows)])

    def advance(self, plan: Plan, slots: Ints, codes: Ints, events: EventArrays, known: Floats) -> Floats:
        """Take the rows in; slots [U] of all streams, events and known by row. Returns the surprise [R, C]."""
        slab = self.slab
        surprise = np.full((len(codes), slab.config.channels), np.nan)
        ends = np.append(plan.begin[1:], len(plan.rows))
        closings: list[tuple[Ints, Closing]] = []
        for wave in waves_of(plan.stream) if len(plan.stream) > 1 else [np.zeros(1, np.int64)] * len(plan.stream):
            size = ends[wave] - plan.begin[wave]
            own = np.repeat(np.arange(len(wave)), size)
            rows = plan.rows[np.arange(len(own)) - np.repeat(np.cumsum(size) - size - plan.begin[wave], size)]
            slot, first = slots[plan.stream[wave]], plan.rows[plan.begin[wave]]
            closing = self.engine.passed(slot, events.time[first] + 1)
            if closing.any():
                closings.append((first[closing], self.engine.close(slot[closing])))
                if sum(len(rows) for rows, _ in closings) >= TOGETHER:
                    self._settle(closings, surprise)
            if slab.number:
                self.engine.absorb(slot, events.time[first] // self.period_ns)
            slab.write_events(slot, own, events.take(rows), known[rows])
        self._settle(closings, surprise)
        np.add.at(slab.counters[:, 1], slots[codes[plan.status == LATE]], 1)
        return surprise

    def _settle(self, closings: list[tuple[Ints, Closing]], surprise: Floats) -> None:
        """Score what was closed, put it where it belongs [R, C], and forget it."""
        if closings:
            rows = np.concatenate([rows for rows, _ in closings])
            surprise[rows] = self.engine.settle([closing for _, closing in closings])
            closings.clear()

    def _groups(self, code: Ints, time: Ints, opened: Ints, newest: Ints) -> Bools:
        """Where a new group begins among rows sorted by stream: at the first later moment once n events are there."""
        cut = np.zeros(len(code), np.bool_)
        borders = np.flatnonzero(np.concatenate(([True], code[1:] != code[:-1], [True])))
        for low, high in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            stream, moments = int(code[low]), time[low:high]
            together = np.searchsorted(moments, moments, side="right")
            missing = self.slab.number - int(opened[stream])
            if missing > 0:
                at = int(together[missing - 1]) if missing <= len(moments) else len(moments)
            else:
                at = int(np.searchsorted(moments, newest[stream], side="right"))
            while at < len(moments):
                cut[low + at] = True
                after = at + self.slab.number - 1
                at = int(together[after]) if after < len(moments) else len(moments)
        return cut

    def _check_gap(self, names: Sequence[str], order: Ints, time: Ints, before: Ints) -> None:
        if self.longest_gap is None or not names:
            return
        gap = time - np.where(before == NONE, time, before)
        far = (gap > self.longest_gap) | ((gap < 0) & (time > before) & (before != NONE))  # the second: it overflowed
        if far.any():
            self.refuse_leap(names, int(order[far].min()))

    def refuse_leap(self, names: Sequence[str], row: int) -> None:
        """StreamError for a row that leaps too far ahead."""
        raise StreamError(
            f"time: the event of {names[row]!r} in row {row} leaps more than longest_gap = {self.longest_gap} ns "
            "ahead of the newest one; mend its stamp, or build the predictor with a longer longest_gap"
        )

    def refuse(self, names: Sequence[str], time: Ints, row: int) -> None:
        """LateDataError for a row that is late."""
        what = "before its newest event" if self.slab.number else "in a patch that is closed"
        raise LateDataError(
            f"time: {time[row]} ns of stream {names[row]!r} lies {what}; send events in order, or build the predictor "
            'with a longer watermark, or with late="drop" or "tag"'
        )


def _before(code: Ints, values: Ints, floor: Ints) -> Ints:
    """Largest value of the same stream before each row, `floor` [U] where none was larger; code [R] is sorted."""
    levels, rank = np.unique(np.concatenate([floor, values]), return_inverse=True)
    streams = np.flatnonzero(np.concatenate(([True], code[1:] != code[:-1])))
    ranks = np.insert(rank[len(floor) :], streams, rank[code[streams]])
    owner = np.insert(code, streams, code[streams])
    top = np.maximum.accumulate(owner * len(levels) + ranks) - owner * len(levels)
    begins = np.zeros(len(code), np.int64)
    begins[streams] = 1
    place = np.arange(len(code)) + np.cumsum(begins) - 1
    return np.asarray(levels[top[place]], np.int64)
