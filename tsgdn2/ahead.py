"""Copies of streams' rows on which the rows held back have been applied: what a forecast reads under a watermark.

    a copy is made at a stream's first forecast; each held row goes into it once, at the next forecast
    a row that does not fit the copy any more (its patch is closed there) has that forecast begin with a new copy

So a forecast costs the closings since the one before, not those of the whole watermark, and never touches the stream's
own row. Copies are no state: they are not saved, and a stream that nobody forecasts has none.

N streams, H horizon, F columns of covariates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tsgdn2.engine import Engine
from tsgdn2.forecaster import Forecaster
from tsgdn2.ingest import Ingest, Route, fits
from tsgdn2.rows import Rows, Span
from tsgdn2.scale import Floats
from tsgdn2.slab import Ints, Slab


class Ahead:
    """Copies of rows of one slab, and for each the held rows that it has not seen."""

    def __init__(self, slab: Slab, forecaster: Forecaster, empty: Rows) -> None:
        self.slab, self._copies = slab, Slab(forecaster)
        self._reader = Ingest(self._copies, Engine(forecaster, self._copies, None))
        self._empty = empty
        self._place: dict[int, int] = {}
        self._unseen: dict[int, Rows] = {}
        """By stream, of the copies that are of use; never more rows than a new copy would need."""

    def hold(self, slot: int, step: int, values: Floats, known: Floats) -> None:
        """A row of a stream is held from now on."""
        unseen = self._unseen.get(slot)
        if unseen is None:
            return
        if len(unseen) < unseen.most and fits(self._copies, np.array([self._place[slot]]), np.array([step]))[0]:
            unseen.put(step, values, known)
        else:
            del self._unseen[slot]

    def forget(self, slots: Ints) -> None:
        """Something else than the rows held has changed these streams."""
        for slot in slots.tolist():
            self._unseen.pop(slot, None)

    def clear(self, slots: Ints) -> None:
        """Forget these streams, their copies too."""
        self.forget(slots)
        made = [slot for slot in slots.tolist() if slot in self._place]
        self._copies.clear(self._places(made))

    def answer(self, slots: Ints, clock: Ints, future: Floats, held: Callable[[int], Span]) -> Floats:
        """Quantiles [N, H, C, Q] after each clock, future as in Route; `held` tells what a stream holds back."""
        chosen = list(dict.fromkeys(slots.tolist()))
        rows = [self._unseen.pop(slot).all() if slot in self._unseen else None for slot in chosen]
        anew = [slot for slot, unseen in zip(chosen, rows, strict=True) if unseen is None]
        for slot in anew:
            self._place.setdefault(slot, len(self._place))
        self._copies.reserve(len(self._place))
        if anew:
            self._copies.take(self.slab, np.array(anew), self._places(anew))
        due = [held(slot) if unseen is None else unseen for slot, unseen in zip(chosen, rows, strict=True)]
        apply(self._reader, self._places(chosen), due)
        self._unseen |= {slot: self._empty.copy() for slot in chosen}
        return self._reader.answer(self._places(slots.tolist()), clock, future)

    def row_nbytes(self) -> int:
        """Bytes of one stream's copy and of what it has not seen, at most."""
        return self.slab.row_nbytes() + self._empty.most_nbytes

    def _places(self, slots: Sequence[int]) -> Ints:
        return np.array([self._place[slot] for slot in slots], np.int64)


def apply(route: Route, slots: Ints, rows: Sequence[Span]) -> None:
    """Put the rows of N different streams on their way, the oldest of every stream together, then the next."""
    counts = np.array([len(span.steps) for span in rows], np.int64)
    for turn in range(int(counts.max(initial=0))):
        chosen = np.flatnonzero(counts > turn)
        step, values, known = (np.stack([rows[n][field][turn] for n in chosen.tolist()]) for field in range(3))
        route.advance(slots[chosen], step, values, known)
