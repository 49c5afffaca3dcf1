"""What a row of observations does to the slab: which patch it closes, which cell it fills, how surprising it was.

    late      patch(step) < open patch            missing   no value: only the clock moves
    closing   patch(step) > open patch            surprise  bits under the forecast made when the open patch began

Rows of one call belong to different streams; a stream with several rows comes in several waves. This is the shortest
of the routes of a row; Rewind and Reorder put themselves in front of it and end here.
N rows, C channels, P patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from tsgdn2.engine import Engine
from tsgdn2.errors import LateDataError
from tsgdn2.forecast import probability, surprise_bits
from tsgdn2.scale import Bools, Floats
from tsgdn2.slab import COUNTERS, NONE, Ints, Slab

STATUS = ("new", "missing", "duplicate", "replaced", "filled", "late", "held", "replayed")
NEW, MISSING, DUPLICATE, REPLACED, FILLED, LATE, HELD, REPLAYED = range(len(STATUS))
_COUNTER = ("", "", "duplicates", "replaced", "", "late", "", "")
_TALLY = np.array([[name in ("observations", counter) for name in COUNTERS] for counter in _COUNTER], np.int64)


class Route(Protocol):
    """The way of a row into the slab: Ingest, or Rewind or Reorder before it."""

    def advance(self, slots: Ints, step: Ints, values: Floats, known: Floats) -> tuple[Floats, Ints]:
        """One row for each of N different streams; values [N, C], known [N, F]. Returns surprise [N, C], status [N]."""

    def check(self, names: list[str], slots: Ints, order: Ints, waves: list[Ints], steps: Ints, values: Floats) -> None:
        """LateDataError for the first of R rows that would come too late; nothing changes.

        slots [S] of the streams (-1: not open yet), order [R] the stream of each row, waves as `waves_of(order)`.
        """

    def clock(self, slots: Ints) -> Ints:
        """Last step heard of, [N]."""

    def answer(self, slots: Ints, clock: Ints, future: Floats) -> Floats:
        """Quantiles [N, H, C, Q] after each clock, of all that was heard; future [N, H, F]. Changes nothing."""

    def flush(self, slots: Ints) -> None:
        """Apply what is held back."""

    def row_nbytes(self) -> int:
        """Bytes of one stream, at most."""

    def tensors(self, slots: Ints) -> dict[str, Tensor]:
        """All that these streams [N] hold, in this order, for a file or a passage."""

    def restore(self, tensors: dict[str, Tensor], slots: Ints) -> None:
        """Put what `tensors` gave into slots [N] that are clear; KeyError or ValueError where it does not fit."""

    def clear(self, slots: Ints) -> None:
        """Forget all about these streams; their slots are as they were before their first stream."""


class Ingest:
    """Moves the streams of one slab forward."""

    def __init__(self, slab: Slab, engine: Engine) -> None:
        self.slab, self.engine = slab, engine
        self.patch, self.horizon = slab.config.patch_length, slab.config.prediction_length
        self._levels = np.array(slab.config.quantiles)

    def advance(self, slots: Ints, step: Ints, values: Floats, known: Floats) -> tuple[Floats, Ints]:
        """See Route. The arithmetic of a row does not depend on the others."""
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
        if slab.config.step_covariates:
            slab.write_known(slots, step, known, take)
        surprise = np.full(values.shape, np.nan)
        status = np.where(late, LATE, MISSING)
        if take.all():
            surprise, status = self._take(slots, step, values, seen, last)
        elif take.any():
            surprise[take], status[take] = self._take(slots[take], step[take], values[take], seen[take], last[take])
        slab.clock[slots] = np.where(late, slab.clock[slots], np.maximum(slab.clock[slots], step))
        return surprise, status

    def check(self, names: list[str], slots: Ints, order: Ints, waves: list[Ints], steps: Ints, values: Floats) -> None:
        """See Route."""
        last = np.where(slots >= 0, self.slab.last[np.maximum(slots, 0)], NONE)
        for rows in waves:
            at = order[rows]
            self.check_late([names[r] for r in rows], steps[rows], values[rows], last[at])
            has = np.isfinite(values[rows]).any(1)
            last[at] = np.where(has, np.maximum(last[at], steps[rows]), last[at])

    def clock(self, slots: Ints) -> Ints:
        """See Route."""
        return self.slab.clock[slots]

    def answer(self, slots: Ints, clock: Ints, future: Floats) -> Floats:
        """See Route."""
        return self.engine.answer(slots, clock, future)

    def flush(self, slots: Ints) -> None:
        """See Route; nothing is held here."""

    def row_nbytes(self) -> int:
        """See Route."""
        return self.slab.row_nbytes()

    def tensors(self, slots: Ints) -> dict[str, Tensor]:
        """See Route."""
        return self.slab.tensors(slots)

    def restore(self, tensors: dict[str, Tensor], slots: Ints) -> None:
        """See Route."""
        self.slab.restore(tensors, slots)

    def clear(self, slots: Ints) -> None:
        """See Route."""
        self.slab.clear(slots)

    def tally(self, slots: Ints, status: Ints) -> None:
        """Count one row that arrived for each of N different streams, whatever its route did with it."""
        self.slab.counters[slots] += _TALLY[status]

    def _take(self, slots: Ints, step: Ints, values: Floats, seen: Bools, last: Ints) -> tuple[Floats, Ints]:
        surprise = self.surprise(slots, step, values, seen)
        same, replaced = self.slab.write(slots, step, values, seen)
        status = np.where(replaced, REPLACED, np.where(same, DUPLICATE, np.where(step < last, FILLED, NEW)))
        return surprise, status

    def surprise(self, slots: Ints, step: Ints, values: Floats, seen: Bools) -> Floats:
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
                f"{last[n] // patch * patch}); send rows in order, or build the predictor with a watermark, or with "
                'late="drop", "tag" or "replay"'
            )


def marked(slab: Slab, rows: Ints) -> Ints:
    """Latest patch of which these rows of a slab know anything, [N]; covariates alone count, where there are some."""
    return np.asarray((slab.clock if slab.config.step_covariates else slab.last)[rows] // slab.config.patch_length)


def fits(slab: Slab, rows: Ints, step: Ints) -> Bools:
    """Whether something at step [N] can be put into these rows of a slab as if it had come in order, bit for bit.

    It can into the open patch, whose values have no order, and from the latest patch on of which anything is known.
    """
    patch = step // slab.config.patch_length
    return np.asarray((patch == slab.last[rows] // slab.config.patch_length) | (patch >= marked(slab, rows)))


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
