"""Holds events back until the stream's newest time has passed them by the watermark; applies them in canonical order.

    newest <- max(newest, t);   passed = max(newest - W - 1, newest applied)
    t > passed: held, sorted by (time, type, marks, covariates, id), NaN first     t <= passed: applied at once, or late
    then every held event with time <= passed goes on, the first of the order first

So events that arrive at most W behind the newest leave the state of the ordered ones, bit for bit, those of one moment
too. The price is that the stream's row trails by the watermark; a forecast does not (ahead.py). The buffer is bounded:
when it is full, its oldest events are applied early, and counted.

An event with an id that is held, or among the last ones applied, is a duplicate and changes nothing. Without watermark
and ids events go straight to the ingest.

W watermark in ns, E events of a call, U streams, K columns of a row (held.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tsgdn2.checkpoint import part
from tsgdn2.events.ahead import EventAhead, apply
from tsgdn2.events.engine import Answer
from tsgdn2.events.held import Held, Key, Recent, identities, to_rows
from tsgdn2.events.ingest import DUPLICATE, HELD, LATE, NEW, EventIngest, Plan
from tsgdn2.events.late import EventPolicy
from tsgdn2.events.schema import EventArrays, Ints
from tsgdn2.events.slab import NONE
from tsgdn2.forecaster import Forecaster
from tsgdn2.scale import Floats
from tsgdn2.slab import fit

Ids = Sequence[str | int | None]
COUNTERS = ("duplicates", "overflowed")
PREFIX = "waiting."


class Moved(NamedTuple):
    """What a call did: surprise [E, C], status [E], and how far behind the newest each late event came, lag [E]."""

    surprise: Floats
    status: Ints
    lag: Ints


class Waiting:
    """What one stream holds beside its row, as it is while the events of a call are sorted out."""

    def __init__(self, held: Held, recent: Recent | None, counts: list[int], applied: int) -> None:
        self.held, self.recent, self.counts = held, recent, counts
        self.applied = applied
        self.newest = max(applied, held.newest) if len(held) else applied
        self.first: Key | None = None
        """First in order of what this call held back."""
        self.straight = False
        """Whether this call applied an event that was not held."""


class Sorted(NamedTuple):
    """Events of a call sorted out: the streams after it [U], status and lag [E], rows to apply and who sent them on.

    straight: a plan without any of this.
    """

    waiting: list[Waiting]
    status: Ints
    lag: Ints
    rows: list[list[Ints]]
    sender: list[list[int]]
    straight: Plan | None


class EventReorder:
    """The way of events into the slab; holds what waits, and the identities."""

    def __init__(self, ingest: EventIngest, forecaster: Forecaster, policy: EventPolicy) -> None:
        self.ingest, self.slab, self.policy = ingest, ingest.slab, policy
        schema = self.slab.sums_of.schema
        self._marks = len(schema.marks)
        self._columns = 4 + self._marks + forecaster.config.step_covariates
        self._ahead = EventAhead(self.slab, forecaster, schema)
        self._empty = Held(self._columns, policy.most_held)
        self._held: dict[int, Held] = {}
        self._recent: dict[int, Recent] = {}
        self._counts: dict[int, list[int]] = {}

    def plan(
        self, names: Sequence[str], codes: Ints, slots: Ints, events: EventArrays, known: Floats, ids: Ids | None
    ) -> Sorted:
        """Sort E events out; codes [E] number U streams, slots [U] are -1 for new ones.

        The same errors as EventIngest.plan, with nothing changed. What it returns has to go to `advance` at once.
        """
        late = self.policy.late
        if not self.policy.watermark and (ids is None or not any(one is not None for one in ids)):
            plan = self.ingest.plan(names, codes, slots, events.time, late=late)
            return Sorted([], plan.status, plan.lag, [], [], plan)
        identity = identities([None] * len(codes) if ids is None else ids)
        rows = to_rows(events, known, identity)
        waiting = [self._waiting(slot, own=len(codes) == 1) for slot in slots.tolist()]
        status, lag = np.empty(len(codes), np.int64), np.zeros(len(codes), np.int64)
        out = Sorted(waiting, status, lag, [[] for _ in waiting], [[] for _ in waiting], None)
        gap = self.ingest.longest_gap
        for row, (code, time) in enumerate(zip(codes.tolist(), events.time.tolist(), strict=True)):
            one = waiting[code]
            status[row] = found = self._status(one, time, identity[row])
            if found == DUPLICATE:
                one.counts[0] += 1
                continue
            if gap is not None and one.newest != NONE and time - one.newest > gap:
                self.ingest.refuse_leap(names, row)
            if found == LATE:
                if late == "raise":
                    self.ingest.refuse(names, events.time, row)
                lag[row] = min(one.newest - time, 2**63 - 1)
            parts = self._take(one, found, rows[row])
            out.rows[code].append(parts)
            out.sender[code] += [row] * len(parts)
        return out

    def advance(self, plan: Sorted, slots: Ints, codes: Ints, events: EventArrays, known: Floats) -> Moved:
        """Take the events in; slots [U] of all streams. The surprise of an event is that of what it sent on."""
        if plan.straight is not None:
            surprise = self.ingest.advance(plan.straight, slots, codes, events, known)
            return Moved(surprise, plan.status, plan.lag)
        none = np.zeros((0, self._columns), np.int64)
        rows = [np.concatenate(parts) if parts else none for parts in plan.rows]
        for slot, one, own in zip(slots.tolist(), plan.waiting, rows, strict=True):
            self._held[slot], self._counts[slot] = one.held, one.counts
            if one.recent is not None:
                self._recent[slot] = one.recent
            self._ahead.changed(slot, one.first, tuple(own[-1].tolist()) if len(own) else None)
            if one.straight:
                self._ahead.forget(slot)
        status, surprise = plan.status, np.full((len(codes), self.slab.config.channels), np.nan)
        sender = np.array([row for own in plan.sender for row in own], np.int64)
        applied, bits = apply(self.ingest, slots, rows, self._marks)
        if len(sender):
            order = np.argsort(sender, kind="stable")
            row, begin = np.unique(sender[order], return_index=True)
            surprise[row] = _means(bits[order], begin)
            status[row] = np.where(status[row] == HELD, HELD, applied[order[begin]])
        return Moved(surprise, status, plan.lag)

    def newest(self, slots: Ints) -> Ints:
        """Moment of the newest event of each stream [N], held or applied."""
        newest = np.asarray(self.slab.newest[slots])
        for i, slot in enumerate(slots.tolist()):
            held = self._held.get(slot)
            if held:
                newest[i] = max(newest[i], held.newest)
        return newest

    def answer(self, slots: Ints, clock: Ints, future: Floats) -> Answer:
        """See EventEngine; of copies that have seen what is held (ahead.py)."""
        if not any(self._held.get(slot) for slot in slots.tolist()):
            return self.ingest.engine.answer(slots, clock, future)
        return self._ahead.answer(slots, clock, future, lambda slot: self._held.get(slot, self._empty))

    def flush(self, slots: Ints) -> None:
        """Apply what these streams hold."""
        rows = []
        for slot in slots.tolist():
            held = self._held.get(slot)
            rows.append(held.take(held.newest) if held else self._empty.all())
            if rows[-1][:, -2:].any():
                self._recent.setdefault(slot, Recent(self.policy.recent_ids)).push(rows[-1][:, -2:])
            self._ahead.changed(slot, None, tuple(rows[-1][-1].tolist()) if len(rows[-1]) else None)
        apply(self.ingest, slots, rows, self._marks)

    def counters(self, slot: int) -> dict[str, int]:
        """Duplicates, and events that a full buffer applied early."""
        return dict(zip(COUNTERS, self._counts.get(slot, [0, 0]), strict=True))

    def row_nbytes(self) -> int:
        """Bytes of one stream at most, beside its own row."""
        ids = 16 * self.policy.recent_ids if self._recent else 0
        return ids + (self._empty.most_nbytes + self._ahead.row_nbytes() if self.policy.watermark else 0)

    def tensors(self, slots: Ints) -> dict[str, Tensor]:
        """All that these streams [N] hold, in this order, for a file or a passage."""
        return self.slab.tensors(slots) | {f"{PREFIX}{name}": t for name, t in self.waiting(slots).items()}

    def restore(self, tensors: dict[str, Tensor], slots: Ints) -> None:
        """Put what `tensors` gave into slots [N] that are clear; KeyError or ValueError where it does not fit."""
        waiting = self._read(part(tensors, PREFIX), len(slots))
        self.slab.restore(tensors, slots)
        for n, (held, counts, recent) in waiting.items():
            slot = int(slots[n])
            self._held[slot], self._counts[slot] = held, counts
            if recent is not None:
                self._recent[slot] = recent

    def clear(self, slots: Ints) -> None:
        """Forget all about these streams; their slots are as they were before their first stream."""
        self.slab.clear(slots)
        self._ahead.clear(slots)
        for slot in slots.tolist():
            for kept in (self._held, self._recent, self._counts):
                kept.pop(slot, None)

    def waiting(self, slots: Ints) -> dict[str, Tensor]:
        """What waits, the identities and the counters of these streams; nothing where there never were."""
        chosen = slots.tolist()
        if not any(slot in self._held for slot in chosen):
            return {}
        held = [self._held.get(slot, self._empty).all() for slot in chosen]
        places = [n for n, slot in enumerate(chosen) if slot in self._recent]
        with_ids = [chosen[n] for n in places]
        none = np.zeros((0, self.policy.recent_ids, 2), np.int64)
        rings = np.concatenate([none, *(self._recent[slot].ring[None] for slot in with_ids)])
        return {
            "rows": torch.from_numpy(np.concatenate([self._empty.all(), *held])),
            "held": torch.tensor([len(own) for own in held]),
            "counts": torch.tensor([self._counts.get(slot, [0, 0]) for slot in chosen]),
            "ids": torch.from_numpy(rings),
            "ids_slot": torch.tensor(places, dtype=torch.int64),
            "ids_count": torch.tensor([self._recent[slot].count for slot in with_ids], dtype=torch.int64),
        }

    def _read(self, tensors: dict[str, Tensor], streams: int) -> dict[int, tuple[Held, list[int], Recent | None]]:
        """What `waiting` gave of so many streams, by their place; KeyError or ValueError where it can not be so.

        An event of a type that is not there would be added to the sums of another stream, so types are looked at here.
        """
        if not tensors:
            return {}
        many, counts, owners = (tensors[name].tolist() for name in ("held", "counts", "ids_slot"))
        fit("held", tensors, torch.zeros(1, dtype=torch.int64), streams)
        fit("counts", tensors, torch.zeros(1, 2, dtype=torch.int64), streams)
        fit("ids_slot", tensors, torch.zeros(1, dtype=torch.int64), len(owners))
        fit("ids_count", tensors, torch.zeros(1, dtype=torch.int64), len(owners))
        fit("ids", tensors, torch.zeros(1, self.policy.recent_ids, 2, dtype=torch.int64), len(owners))
        fit("rows", tensors, torch.from_numpy(self._empty.all()), sum(many))
        rows, kinds, begin = tensors["rows"].numpy(), len(self.slab.sums_of.schema.types) + 2, 0
        wrong = ((rows[:, 1] < 0) | (rows[:, 1] >= kinds)).any() or not set(owners) <= set(range(streams))
        if wrong or len(set(owners)) < len(owners) or any(not 0 <= n <= self.policy.most_held for n in many):
            raise ValueError("events held or identities that this predictor can not hold")
        recent: dict[int, Recent] = {}
        for owner, ring, seen in zip(owners, tensors["ids"].numpy(), tensors["ids_count"].tolist(), strict=True):
            recent[owner] = Recent(0)
            recent[owner].ring, recent[owner].count = ring.copy(), max(0, seen)
        found = {}
        for n, count in enumerate(many):
            held = self._empty.copy()
            for row in rows[begin : begin + count].tolist():
                held.put(tuple(row))
            found[n], begin = (held, counts[n], recent.get(n)), begin + count
        return found

    def _waiting(self, slot: int, *, own: bool) -> Waiting:
        """Of one stream; a copy unless it may change what it is made of: a single event is checked before it does."""
        held, recent = self._held.get(slot, self._empty), self._recent.get(slot)
        own = own and slot in self._held
        counts = self._counts.get(slot, [0, 0])
        applied = int(self.slab.newest[slot]) if slot >= 0 else NONE
        if own:
            return Waiting(held, recent, counts, applied)
        return Waiting(held.copy(), recent.copy() if recent else None, list(counts), applied)

    def _status(self, one: Waiting, time: int, identity: Ints) -> int:
        """What becomes of an event: DUPLICATE, HELD, LATE, or NEW for one that is applied at once. Changes nothing."""
        if identity.any() and (one.held.has(identity) or (one.recent is not None and one.recent.has(identity))):
            return DUPLICATE
        if self.policy.watermark and time > max(one.newest - self.policy.watermark - 1, one.applied):
            return HELD
        span = self.ingest.period_ns * self.ingest.span
        gone = time < one.applied if self.slab.number else time // span < one.applied // span
        return LATE if gone and one.applied != NONE else NEW

    def _take(self, one: Waiting, status: int, row: Ints) -> Ints:
        """Take one event in. Returns the rows [R, K] that go on because of it."""
        time, parts = int(row[0]), row[None]
        if status == HELD:
            key = tuple(row.tolist())
            one.first = key if one.first is None else min(one.first, key)
            one.newest = max(one.newest, time)
            one.held.put(key)
            passed, over = max(one.newest - self.policy.watermark - 1, one.applied), len(one.held) - one.held.most
            parts = one.held.take(passed)
            if over > len(parts):
                early = one.held.take(one.held.moment(over - len(parts) - 1))
                one.counts[1] += len(early)
                parts = np.concatenate([parts, early])
            if len(parts):
                one.applied = max(one.applied, int(parts[-1, 0]))
        elif status == NEW:
            one.straight = True
            one.newest, one.applied = max(one.newest, time), max(one.applied, time)
        if status != LATE and parts[:, -2:].any():
            if one.recent is None:
                one.recent = Recent(self.policy.recent_ids)
            one.recent.push(parts[:, -2:])
        return parts


def _means(bits: Floats, begin: Ints) -> Floats:
    """Mean [G, C] over the rows of each group of [R, C] that have a surprise, NaN where none has."""
    seen = np.isfinite(bits)
    count, total = (np.add.reduceat(part, begin, axis=0) for part in (seen.astype(np.int64), np.where(seen, bits, 0.0)))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
