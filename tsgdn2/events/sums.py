"""Sums over the events of a step: all that a token or a target needs of them, however many they were.

    e(event) = E[type] + V[type] x + U psi        x = asinh((mark - mean) / scale) where seen, else 0
    sum of e over a step = sum_k E[k] n_k + sum_km V[k, m] X_km + U Psi              psi = (u, sin 2 pi u, cos 2 pi u)

An embedding that is linear in the events acts on their sums, so it can be learned without a pass over the events, and a
stream holds a few numbers per step. Sums are float64 and run in the order of arrival: adding a thousand events at once
or one by one gives the same bits; another order may differ in the last ones. Everything per event is elementwise.

| symbol | meaning | shape |
|---|---|---|
| sums | n [K], X [K, M], seen marks S [K, M], Psi [3], flat | [R, F], F = K + 2 K M + 3 |
| cells | events of the target's type, those with its mark, and their sum, smallest or largest mark | [R, C, 3] |
| u | moment inside its step | in [0, 1) |

E events, K type slots, M marks, R rows (steps), C targets.
"""

from __future__ import annotations

import numpy as np

from tsgdn2.events.schema import ANY, KINDS, EventArrays, EventSchema, Ints
from tsgdn2.scale import Bools, Floats, Moments

BASIS = 3
TOTAL, OWN, VALUE = range(3)
_COUNT, _SUM, _MEAN, _MIN, _MAX = range(len(KINDS))


class EventSums:
    """The layout of sums and cells that follows from a schema, and the arithmetic on them; holds no events."""

    def __init__(self, schema: EventSchema) -> None:
        self.schema, self.period_ns = schema, schema.period_ns
        self.slots, self.marks = schema.slots, len(schema.marks)
        self.size = self.slots * (1 + 2 * self.marks) + BASIS
        self._mean, self._scale = np.array(schema.mean, np.float64), np.array(schema.scale, np.float64)
        self._kind = np.array([KINDS.index(t.kind) for t in schema.parsed], np.int64)
        self._mark = np.array([t.mark for t in schema.parsed], np.int64)
        self._type = np.array([t.type for t in schema.parsed], np.int64)
        self.empty = np.zeros((len(self._kind), 3))
        """[C, 3]: the cells of a step without events."""
        self.empty[self._kind == _MIN, VALUE], self.empty[self._kind == _MAX, VALUE] = np.inf, -np.inf
        self.silent: Bools = (self._kind == _COUNT) | (self._kind == _SUM)
        """[C]: targets that a step without events observes as 0."""

    def rows(self, count: int) -> tuple[Floats, Floats]:
        """Sums [count, F] and cells [count, C, 3] of steps without events."""
        return np.zeros((count, self.size)), np.repeat(self.empty[None], count, 0)

    def accumulate(self, events: EventArrays, row: Ints, sums: Floats, cell_row: Ints, cells: Floats) -> None:
        """Add E events to rows of sums [R, F] and cells [R', C, 3], in place; row and cell_row [E] say to which."""
        self.add(events, row, sums)
        self.add_cells(events, cell_row, cells)

    def add(self, events: EventArrays, row: Ints, sums: Floats) -> None:
        """Add E events to rows of sums [R, F], in place; row [E] says to which."""
        assert sums.flags.c_contiguous, "sums are added to through a flat view"
        slots, marks = self.slots, self.marks
        seen = np.isfinite(events.marks)
        x = np.arcsinh((np.where(seen, events.marks, 0.0) - self._mean) / self._scale)
        amount = np.empty((len(events.time), 1 + 2 * marks + BASIS))
        amount[:, 0] = 1.0
        amount[:, 1 : 1 + marks] = np.where(seen, x, 0.0)
        amount[:, 1 + marks : 1 + 2 * marks] = seen
        u = (events.time - events.time // self.period_ns * self.period_ns) / self.period_ns
        amount[:, -3], amount[:, -2], amount[:, -1] = u, np.sin(2 * np.pi * u), np.cos(2 * np.pi * u)
        column = np.empty(amount.shape, np.int64)
        column[:, 0] = events.type
        column[:, 1 : 1 + marks] = slots + events.type[:, None] * marks + np.arange(marks)
        column[:, 1 + marks : 1 + 2 * marks] = column[:, 1 : 1 + marks] + slots * marks
        column[:, 1 + 2 * marks :] = np.arange(self.size - BASIS, self.size)
        column += (row * self.size)[:, None]
        np.add.at(sums.reshape(-1), column.reshape(-1), amount.reshape(-1))

    def add_cells(self, events: EventArrays, row: Ints, cells: Floats) -> None:
        """Add E events to rows of cells [R, C, 3], in place; row [E] says to which."""
        assert cells.flags.c_contiguous, "cells are added to through a flat view"
        flat = cells.reshape(-1)
        event, target = self._pairs(events)
        at = (row[event] * len(self._kind) + target) * 3
        np.add.at(flat, at + TOTAL, 1.0)
        mark, kind = self._mark[target], self._kind[target]
        marked = mark != ANY
        if not marked.any():
            return
        own = np.flatnonzero(marked)
        value = events.marks[event[own], mark[own]]
        there = np.isfinite(value)
        own, value = own[there], value[there]
        at, kind = at[own], kind[own]
        np.add.at(flat, at + OWN, 1.0)
        added = (kind == _SUM) | (kind == _MEAN)
        np.add.at(flat, at[added] + VALUE, value[added])
        for code, extreme in ((_MIN, np.minimum), (_MAX, np.maximum)):
            mine = kind == code
            if mine.any():
                extreme.at(flat, at[mine] + VALUE, value[mine])

    def newest(self, events: EventArrays, row: Ints, last: Ints) -> None:
        """Raise last [R, C], in place, to the newest step in which something happened to each target; row [E]."""
        event, target = self._pairs(events)
        mark = self._mark[target]
        happened = mark == ANY
        marked = np.flatnonzero(~happened)
        happened[marked] = np.isfinite(events.marks[event[marked], mark[marked]])
        event, target = event[happened], target[happened]
        at = row[event] * len(self._kind) + target
        np.maximum.at(last.reshape(-1), at, events.time[event] // self.period_ns)

    def _pairs(self, events: EventArrays) -> tuple[Ints, Ints]:
        """Every event with every target that its type concerns, event by event."""
        event, target = np.nonzero((self._type == ANY) | (events.type[:, None] == self._type))
        return event, target

    def values(self, cells: Floats) -> tuple[Floats, Bools]:
        """Value of each target and whether it was observed, [.., C], from cells [.., C, 3].

        Silence is a fact: the count and the sum of no events are an observed 0; a mean, a smallest and a largest mark
        need an event that has it. A sum is over the marks that were there; where events came and none had it, missing.
        """
        total, own, value = cells[..., TOTAL], cells[..., OWN], cells[..., VALUE]
        count = self._kind == _COUNT
        seen = count | (own > 0) | ((self._kind == _SUM) & (total == 0))
        mean = np.where(self._kind == _MEAN, value / np.maximum(own, 1.0), value)
        return np.where(seen, np.where(count, total, mean), 0.0), seen

    def happened(self, cells: Floats) -> Bools:
        """Whether a step held an event that concerns the target: of its type, and with its mark; [.., C]."""
        return np.asarray(np.where(self._kind == _COUNT, cells[..., TOTAL], cells[..., OWN]) > 0)


def feature_count(slots: int, marks: int) -> int:
    """Features per row for a vocabulary of `slots` and so many marks."""
    return slots * (1 + marks) + marks + BASIS


def token_features(sums: Floats, slots: int, marks: int) -> Floats:
    """Features [.., R, K + K M + M + 3] of sums [.., R, F]: log counts, mean x, share of seen marks, mean basis."""
    n, x, seen, basis = _parts(sums, slots, marks)
    total = np.maximum(n.sum(-1, keepdims=True), 1.0)
    share = seen.reshape(*seen.shape[:-1], slots, marks).sum(-2) / total
    return np.concatenate([np.log1p(n), x / np.maximum(seen, 1.0), share, basis / total], axis=-1)


def observed_share(sums: Floats, slots: int, marks: int) -> Floats:
    """The weight m [..] of sums [.., F]: mean over the events of the share of moment, type and marks that was there.

    The moment always is, so a commit of bare events still writes; 0 where no event was.
    """
    n, _, seen, _ = _parts(sums, slots, marks)
    total = n.sum(-1)
    there = 2 * total - n[..., -1] + seen.sum(-1)
    return np.where(total > 0, there / np.maximum(total * (2 + marks), 1.0), 0.0)


def _parts(sums: Floats, slots: int, marks: int) -> tuple[Floats, Floats, Floats, Floats]:
    x, seen, basis = slots, slots + slots * marks, slots + 2 * slots * marks
    return sums[..., :x], sums[..., x:seen], sums[..., seen:basis], sums[..., basis:]


def absorb(moments: Moments, x: Floats, times: Floats, lam: float) -> Moments:
    """The scaler after each of G values in turn, `times` of it; moments [N, C], x and times [N, G, C]. No loop.

    n updates with one value are a group of weight w = (1 - lam^n) / (1 - lam) without deviation, and leave lam^n to
    what came before. Groups merge: a_g = lam^(values after g) w_g, W = sum a_g, x_ = sum a_g x_g / W, k = lam^(all):
    n' = k n + W, mean' = mean + (x_ - mean) W / n', m2' = k m2 + sum a_g (x_g - x_)^2 + (x_ - mean)^2 k n W / n'.
    A silence of a thousand years is one group of zeros; an outage of the source can not be told from it.
    """
    after = np.zeros((times.shape[0], times.shape[1] + 1, times.shape[2]))
    after[:, :-1] = np.cumsum(times[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(under="ignore"):
        weight = times if lam == 1.0 else -np.expm1(times * np.log(lam)) / (1.0 - lam)
        weight = weight * lam ** after[:, 1:]
        kept = lam ** after[:, 0]
        total = weight.sum(1)
        safe = np.where(total > 0, total, 1.0)
        center = (weight * x).sum(1) / safe
        spread = (weight * (x - center[:, None]) ** 2).sum(1)
        old = kept * moments.count
        count = old + total
        delta, share = center - moments.mean, total / np.where(count > 0, count, 1.0)
        mean = moments.mean + delta * share
        m2 = kept * moments.m2 + spread + delta**2 * old * share
    some = total > 0
    return Moments(
        np.where(some, count, moments.count), np.where(some, mean, moments.mean), np.where(some, m2, moments.m2)
    )
