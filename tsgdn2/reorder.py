"""Holds rows back until the stream's newest time has passed them by the watermark; applies them in the order of time.

    newest <- max(newest, step);   passed = max(newest - W - 1, clock of the slab)
    step > passed: held, merged into the row of its step          step <= passed: applied at once (or late)
    then every held row with step <= passed goes on, oldest first

So rows that arrive at most W steps behind the newest leave the state that the same rows leave in order, bit for bit.
The price is that the slab's row trails by the watermark. A forecast does not: it is read from a copy of the row, on
which the held rows have been applied (ahead.py), so nothing has to be undone.

The surprise of a held value is taken when it arrives, under the reference forecast as the passed rows left it: a lead
beyond the model's horizon has none (NaN).

W watermark in steps, N rows, C channels, F columns of covariates.
"""

from __future__ import annotations

import heapq

import numpy as np
from torch import Tensor

from tsgdn2.ahead import Ahead, apply
from tsgdn2.checkpoint import part
from tsgdn2.forecaster import Forecaster
from tsgdn2.ingest import DUPLICATE, HELD, MISSING, REPLACED, Ingest, Route
from tsgdn2.rows import Rows, Span, rows_from_tensors, rows_to_tensors
from tsgdn2.scale import Floats
from tsgdn2.slab import NONE, Ints


class Reorder:
    """A route that sorts; `route` is where its rows go on, `ingest` the end of it."""

    def __init__(self, route: Route, ingest: Ingest, forecaster: Forecaster, watermark: int) -> None:
        self.route, self.ingest, self.slab, self.watermark = route, ingest, ingest.slab, watermark
        self.held: dict[int, Rows] = {}
        config = forecaster.config
        # One row more than the steps of the watermark: the newest is taken in before the passed ones leave.
        self._empty = Rows(config.channels, config.step_covariates, config.past, watermark + 2)
        self._ahead = Ahead(self.slab, forecaster, self._empty)

    def advance(self, slots: Ints, step: Ints, values: Floats, known: Floats) -> tuple[Floats, Ints]:
        """See Route."""
        seen = np.isfinite(values)
        surprise, status = np.full(values.shape, np.nan), np.full(len(slots), MISSING)
        newest = np.maximum(self.clock(slots), step)
        passed = np.maximum(newest - self.watermark - 1, self.slab.clock[slots])
        hold = np.flatnonzero(step > passed)
        for i in hold.tolist():
            slot, row = int(slots[i]), (int(step[i]), values[i], known[i])
            same, replaced = self._rows(slot).put(*row)
            self._ahead.hold(slot, *row)
            if seen[i].any():
                status[i] = REPLACED if replaced else DUPLICATE if same else HELD
        self._release(slots[hold], passed[hold])
        surprise[hold] = self.ingest.surprise(slots[hold], step[hold], values[hold], seen[hold])
        at_once = np.flatnonzero(step <= passed)
        if len(at_once):
            self._ahead.forget(slots[at_once])
            surprise[at_once], status[at_once] = self.route.advance(
                slots[at_once], step[at_once], values[at_once], known[at_once]
            )
        return surprise, status

    def clock(self, slots: Ints) -> Ints:
        """See Route."""
        clock = self.slab.clock[slots]
        for i, slot in enumerate(slots.tolist()):
            rows = self.held.get(slot)
            if rows:
                clock[i] = max(clock[i], rows.newest)
        return clock

    def answer(self, slots: Ints, clock: Ints, future: Floats) -> Floats:
        """See Route; of copies that have seen what is held (ahead.py)."""
        if not any(self.held.get(slot) for slot in slots.tolist()):
            return self.route.answer(slots, clock, future)
        return self._ahead.answer(slots, clock, future, self._held)

    def flush(self, slots: Ints) -> None:
        """See Route."""
        self._release(slots, self.clock(slots))

    def check(self, names: list[str], slots: Ints, order: Ints, waves: list[Ints], steps: Ints, values: Floats) -> None:
        """See Route; the policy is run over the steps alone, row by row."""
        patch = self.slab.config.patch_length
        last = np.where(slots >= 0, self.slab.last[np.maximum(slots, 0)], NONE).tolist()
        clock = np.where(slots >= 0, self.slab.clock[np.maximum(slots, 0)], NONE).tolist()
        newest, waiting = list(clock), list[list[int]]()
        for stream, slot in enumerate(slots.tolist()):
            held = self._held(slot)
            waiting.append(held.steps[np.isfinite(held.values).any(1)].tolist())
            newest[stream] = max([newest[stream], *held.steps[-1:].tolist()])
        has = np.asarray(np.isfinite(values).any(1)).tolist()
        for row in np.concatenate(waves).tolist():
            stream, step = int(order[row]), int(steps[row])
            if has[row] and last[stream] != NONE and step // patch < last[stream] // patch:
                self.ingest.check_late([names[row]], steps[[row]], values[[row]], np.array(last[stream : stream + 1]))
            newest[stream] = max(newest[stream], step)
            if has[row]:
                heapq.heappush(waiting[stream], step)
            while waiting[stream] and waiting[stream][0] <= max(newest[stream] - self.watermark - 1, clock[stream]):
                last[stream] = max(last[stream], heapq.heappop(waiting[stream]))

    def row_nbytes(self) -> int:
        """See Route."""
        return self.route.row_nbytes() + self._empty.most_nbytes + self._ahead.row_nbytes()

    def tensors(self, slots: Ints) -> dict[str, Tensor]:
        """See Route."""
        found = rows_to_tensors([self.held.get(slot, self._empty) for slot in slots.tolist()], self._empty)
        return self.route.tensors(slots) | {f"held.{name}": t for name, t in found.items()}

    def restore(self, tensors: dict[str, Tensor], slots: Ints) -> None:
        """See Route."""
        held = rows_from_tensors(part(tensors, "held."), self._empty, len(slots))
        self.route.restore(tensors, slots)
        self.held |= dict(zip(slots.tolist(), held, strict=True))

    def clear(self, slots: Ints) -> None:
        """See Route."""
        self.route.clear(slots)
        self._ahead.clear(slots)
        for slot in slots.tolist():
            self.held.pop(slot, None)

    def _rows(self, slot: int) -> Rows:
        if slot not in self.held:
            self.held[slot] = self._empty.copy()
        return self.held[slot]

    def _held(self, slot: int) -> Span:
        return self.held.get(slot, self._empty).all()

    def _release(self, slots: Ints, passed: Ints) -> None:
        due = [
            (slot, self.held[slot].take(through))
            for slot, through in zip(slots.tolist(), passed.tolist(), strict=True)
            if (rows := self.held.get(slot)) and rows.oldest <= through
        ]
        if due:
            apply(self.route, np.array([slot for slot, _ in due]), [span for _, span in due])
