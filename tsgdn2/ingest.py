"""What a row of observations does to the slab: which patch it closes, which cell it fills, how surprising it was.

    late      patch(step) < open patch            missing   no value: only the clock moves
    closing   patch(step) > open patch            surprise  bits under the forecast made when the open patch began

Rows of one call belong to different streams; a stream with several rows comes in several waves.
N rows, C channels, P patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tsgdn2.engine import Engine
from tsgdn2.errors import LateDataError
from tsgdn2.forecast import probability, surprise_bits
from tsgdn2.scale import Bools, Floats
from tsgdn2.slab import NONE, Ints, Slab

STATUS = ("new", "missing", "duplicate", "replaced", "filled", "late")
_NEW, _MISSING, _DUPLICATE, _REPLACED, _FILLED, _LATE = range(len(STATUS))


class Ingest:
    """Moves the streams of one slab forward."""

    def __init__(self, slab: Slab, engine: Engine) -> None:
        self.slab, self.engine = slab, engine
        self.patch, self.horizon = slab.config.patch_length, slab.config.prediction_length
        self._levels = np.array(slab.config.quantiles)

    def advance(self, slots: Ints, step: Ints, values: Floats, known: Floats) -> tuple[Floats, Ints]:
        """One row for each of N different streams. Returns surprise [N, C] and status codes [N]."""
        slab, patch = self.slab, self.patch
        seen = np.isfinite(values)
        has = seen.any(1)
        last = slab.last[slots]
        started = last != NONE
        late = has & started & (step // patch < last // patch)
        take = has & ~late
        closing = take & started & (step // patch > last // patch)
        if closing.any():
            self.engine.close(slots[closing])
        if slab.config.known:
            slab.write_known(slots, step, known, take)
        surprise = np.full(values.shape, np.nan)
        status = np.where(late, _LATE, _MISSING)
        if take.all():
            surprise, status = self._take(slots, step, values, seen, last)
        elif take.any():
            surprise[take], status[take] = self._take(slots[take], step[take], values[take], seen[take], last[take])
        slab.clock[slots] = np.where(late, slab.clock[slots], np.maximum(slab.clock[slots], step))
        for column, code in ((1, _DUPLICATE), (2, _REPLACED), (3, _LATE)):
            slab.counters[slots, column] += status == code
        slab.counters[slots, 0] += 1
        return surprise, status

    def _take(self, slots: Ints, step: Ints, values: Floats, seen: Bools, last: Ints) -> tuple[Floats, Ints]:
        surprise = self._surprise(slots, step, values, seen)
        same, replaced = self.slab.write(slots, step, values, seen)
        status = np.where(replaced, _REPLACED, np.where(same, _DUPLICATE, np.where(step < last, _FILLED, _NEW)))
        return surprise, status

    def _surprise(self, slots: Ints, step: Ints, values: Floats, seen: Bools) -> Floats:
        """Bits of each cell under the stream's reference forecast, [N, C]; NaN where it does not reach."""
        lead = step - self.slab.origin[slots]
        inside = (lead >= 1) & (lead <= self.horizon)
        out = np.full(values.shape, np.nan)
        rows, columns = np.nonzero(seen & inside[:, None])
        if len(rows):
            reference = self.slab.reference[slots[rows], lead[rows] - 1, columns]
            out[rows, columns] = surprise_bits(probability(values[rows, columns], reference, self._levels))
        return out

    def check_late(self, names: Sequence[str], step: Ints, values: Floats, last: Ints) -> None:
        """LateDataError for the first of N rows that carries a value for a closed patch; `last` [N] as `slab.last`."""
        patch = self.patch
        late = np.isfinite(values).any(1) & (last != NONE) & (step // patch < last // patch)
        if late.any():
            n = int(np.flatnonzero(late)[0])
            raise LateDataError(
                f"time: step {step[n]} of stream {names[n]!r} lies in a closed patch (its open patch began at step "
                f'{last[n] // patch * patch}); send rows in order, or build the predictor with late="drop"'
            )


def waves_of(codes: Ints) -> list[Ints]:
    """Row numbers in waves: wave n holds the n-th row of every stream; codes [N] number the streams."""
    order = np.argsort(codes, kind="stable")
    ranked = codes[order]
    first = np.concatenate(([True], ranked[1:] != ranked[:-1]))
    begin = np.maximum.accumulate(np.where(first, np.arange(len(codes)), 0))
    turn = np.empty(len(codes), np.int64)
    turn[order] = np.arange(len(codes)) - begin
    by_turn = np.argsort(turn, kind="stable")
    return np.split(by_turn, np.flatnonzero(np.diff(turn[by_turn])) + 1)
