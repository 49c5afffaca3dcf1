"""Copies of streams' rows on which the events held back have been applied: what a forecast reads under a watermark.

    a copy is made at a stream's first forecast, and remembers the last event that it has seen
    held events behind that one go into it at the next forecast; anything else has that forecast begin with a new copy

So a forecast costs the closings since the one before, and never touches the stream's own row. Copies are no state: they
are not saved, and a stream that nobody forecasts has none.

N streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tsgdn2.events.engine import Answer, EventEngine
from tsgdn2.events.held import NOTHING, Held, Key, from_rows
from tsgdn2.events.ingest import EventIngest
from tsgdn2.events.schema import EventSchema, Ints
from tsgdn2.events.slab import EventSlab
from tsgdn2.forecaster import Forecaster
from tsgdn2.scale import Floats


class EventAhead:
    """Copies of rows of one slab, and for each the last event that it has seen."""

    def __init__(self, slab: EventSlab, forecaster: Forecaster, schema: EventSchema) -> None:
        self.slab, self._copies = slab, EventSlab(forecaster, schema)
        self._engine = EventEngine(forecaster, self._copies, None)
        self._ingest = EventIngest(self._copies, self._engine, None)
        self._marks = len(schema.marks)
        self._place: dict[int, int] = {}
        self._seen: dict[int, Key] = {}
        """By stream, of the copies that are of use."""

    def changed(self, slot: int, held: Key | None, applied: Key | None) -> None:
        """The first event in order that a stream took into its buffer, the last that left it; None without one."""
        seen = self._seen.get(slot)
        if seen is not None and ((held is not None and held <= seen) or (applied is not None and applied > seen)):
            del self._seen[slot]

    def forget(self, slot: int) -> None:
        """Something else than what was held has changed this stream."""
        self._seen.pop(slot, None)

    def clear(self, slots: Ints) -> None:
        """Forget these streams, their copies too."""
        for slot in slots.tolist():
            self.forget(slot)
        self._copies.clear(self._places([slot for slot in slots.tolist() if slot in self._place]))

    def answer(self, slots: Ints, clock: Ints, future: Floats, held: Callable[[int], Held]) -> Answer:
        """See EventEngine; `held` tells what a stream holds back."""
        chosen = list(dict.fromkeys(slots.tolist()))
        anew = [slot for slot in chosen if slot not in self._seen]
        for slot in anew:
            self._place.setdefault(slot, len(self._place))
        self._copies.reserve(len(self._place))
        if anew:
            self._copies.take(self.slab, np.array(anew), self._places(anew))
        due = [held(slot).after(self._seen.get(slot, NOTHING)) for slot in chosen]
        apply(self._ingest, self._places(chosen), due, self._marks)
        for slot in chosen:
            self._seen[slot] = held(slot).last or self._seen.get(slot, NOTHING)
        return self._engine.answer(self._places(slots.tolist()), clock, future)

    def row_nbytes(self) -> int:
        """Bytes of one stream's copy."""
        return self.slab.row_nbytes()

    def _places(self, slots: Sequence[int]) -> Ints:
        return np.array([self._place[slot] for slot in slots], np.int64)


def apply(ingest: EventIngest, slots: Ints, rows: Sequence[Ints], marks: int) -> tuple[Ints, Floats]:
    """Put rows [R, K] of each of N streams on their way. Returns status and surprise of all, stream by stream."""
    codes = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    if not len(codes):
        return np.zeros(0, np.int64), np.zeros((0, ingest.slab.config.channels))
    events, known = from_rows(np.concatenate(rows), marks)
    plan = ingest.plan((), codes, slots, events.time, late="drop")
    return plan.status, ingest.advance(plan, slots, codes, events, known)
