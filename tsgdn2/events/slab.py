"""The private memory of a stream of events: rings of sums and cells, as many bytes after one event as after a million.

    ring slot of step s = s mod P (sums), s mod W (cells): the last steps up to `last`, the last step with an event
    closed steps live in `moments`; those of the open patch live in the rings alone, so its events come in any order
    silent steps are never visited: the scaler passes over them in closed form (sums.absorb)

With number windows events come in order, the open span is one step, and `pending` sums the events since the commit.

| array | shape | what |
|---|---|---|
| sums, cells | [S, P, F], [S, W, C, 3] | rings of what tsgdn2/events/sums.py adds up per step |
| pending, opened | [S, F] or [S, 0], [S] | the same for the events since the last commit, and their number |
| known | [S, P, F] | ring of standardised covariates of the steps that had events |
| count, mean, m2, prior | [S, C] | scaler after step `absorbed`, and its prior deviation |
| first, absorbed, last | [S] | first step, last step in the scaler, last step with an event |
| newest, token_clock | [S] | moment of the newest event, clock of the last commit |
| last_seen | [S, C] | last step in which something happened to the target |
| reference, origin | [S, H, C, Q], [S] | quantiles that score the next steps, and the step they follow |
| counters | [S, 3] | events, late, unknown types |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tsgdn2.events.schema import EventArrays, EventSchema
from tsgdn2.events.sums import EventSums, absorb
from tsgdn2.forecaster import Forecaster
from tsgdn2.patch import NEVER_SEEN
from tsgdn2.scale import Bools, Floats, Moments
from tsgdn2.slab import Ints, Slab

NONE = int(np.iinfo(np.int64).min)
LATER = int(np.iinfo(np.int64).max)
COUNTERS = ("events", "late", "unknown")


class EventSlab(Slab):
    """Rows of S streams and their model states; grows by doubling."""

    sums: Floats
    cells: Floats
    pending: Floats
    opened: Ints
    first: Ints
    absorbed: Ints
    newest: Ints

    def __init__(self, forecaster: Forecaster, schema: EventSchema, capacity: int = 16) -> None:
        self.sums_of, self.period_ns = EventSums(schema), schema.period_ns
        self.number = forecaster.config.event_window
        self.span = 1 if self.number else forecaster.config.patch_length
        """Steps that are open together."""
        super().__init__(forecaster, capacity)

    def write_events(self, slots: Ints, own: Ints, events: EventArrays, known: Floats) -> None:
        """Add events to N different streams: own [E] is the place in slots [N] of each, known [E, F] its covariates.

        The events of a stream lie in its open patch, or in a later one where it was closed before.
        """
        step, slot = events.time // self.period_ns, slots[own]
        fresh = slots[(self.last if self.number else self.token_clock)[slots] == NONE]
        np.minimum.at(self.first, slot, step)
        self.absorbed[fresh] = self.first[fresh] - 1
        before = self.last[slots]
        last = before.copy()
        np.maximum.at(last, own, step)
        for ring, empty in ((self.sums, 0.0), (self.cells, self.sums_of.empty), (self.known, 0.0)):
            size = ring.shape[1]
            rows, columns = np.nonzero(last[:, None] - (last[:, None] - np.arange(size)) % size > before[:, None])
            ring[slots[rows], columns] = empty
        self.last[slots] = last
        p, w = self.config.patch_length, self.config.window
        self.sums_of.add(events, slot * p + step % p, self.sums.reshape(-1, self.sums_of.size))
        self.sums_of.add_cells(events, slot * w + step % w, self.cells.reshape(-1, *self.cells.shape[2:]))
        self.sums_of.newest(events, slot, self.last_seen)
        if self.config.step_covariates:
            self.known[slot, step % p] = known
        np.maximum.at(self.newest, slot, events.time)
        np.add.at(self.counters[:, 0], slot, 1)
        np.add.at(self.counters[:, 2], slot, events.type == self.sums_of.schema.other)
        if self.number:
            self.sums_of.add(events, slot, self.pending)
            np.add.at(self.opened, slot, 1)

    def keep(self, slots: Ints, upto: Ints, moments: Moments) -> None:
        """Keep the scaler after the steps up to `upto` [N], which no event can change any more."""
        self.count[slots], self.mean[slots], self.m2[slots] = moments
        self.absorbed[slots] = np.maximum(self.absorbed[slots], upto)

    def moments(self, slots: Ints, lam: float, upto: Ints | None = None) -> Moments:
        """Scaler of each stream after step `upto` [N], by default the end of its open patch; [N, C] each."""
        moments = Moments(self.count[slots], self.mean[slots], self.m2[slots])
        begin, absorbed = self.last[slots] // self.span * self.span, self.absorbed[slots]
        end = begin + self.span - 1
        stop = end if upto is None else upto
        values, seen = self.window(slots, end, self.span)
        step = begin[:, None] + np.arange(self.span)
        times = np.empty((len(slots), self.span + 2, values.shape[2]))
        times[:, 1:-1] = seen & ((step > absorbed[:, None]) & (step <= stop[:, None]))[..., None]
        times[:, 0] = np.maximum(begin - 1 - absorbed, 0)[:, None] * self.sums_of.silent
        times[:, -1] = np.maximum(stop - np.maximum(end, absorbed), 0)[:, None] * self.sums_of.silent
        nothing = np.zeros_like(values[:, :1])
        return absorb(moments, np.concatenate([nothing, values, nothing], 1), times, lam)

    def window(self, slots: Ints, clock: Ints, steps: int) -> tuple[Floats, Bools]:
        """Values and what was seen [N, steps, C] of the steps that end with step `clock` [N]; silent where unknown."""
        at, held = self._held(slots, clock, steps, self.cells.shape[1])
        found = self.cells[slots[:, None], at % self.cells.shape[1]]
        values, seen = self.sums_of.values(np.where(held[..., None, None], found, self.sums_of.empty))
        seen &= (at >= self.first[slots][:, None])[..., None]
        return np.where(seen, values, 0.0), seen

    def sums_window(self, slots: Ints, clock: Ints) -> Floats:
        """Sums [N, P, F] of the P steps that end with step `clock`."""
        p = self.config.patch_length
        at, held = self._held(slots, clock, p, p)
        return np.where(held[..., None], self.sums[slots[:, None], at % p], 0.0)

    def known_window(self, slots: Ints, clock: Ints) -> Floats:
        """Covariates [N, P, F] of the P steps that end with step `clock`; 0 where no event came."""
        p = self.config.patch_length
        at, held = self._held(slots, clock, p, p)
        return np.where(held[..., None], self.known[slots[:, None], at % p], 0.0)

    def _held(self, slots: Ints, clock: Ints, steps: int, ring: int) -> tuple[Ints, Bools]:
        """Steps [N, steps] that end with `clock`, and which of them a ring of this size holds."""
        at = clock[:, None] + np.arange(1 - steps, 1)
        last = self.last[slots][:, None]
        return at, (at <= last) & (at > last - ring)

    def since(self, slots: Ints, clock: Ints) -> Ints:
        """Steps since something happened to each target, [N, C]."""
        seen = self.last_seen[slots]
        return np.where(seen == NONE, NEVER_SEEN, clock[:, None] - np.where(seen == NONE, 0, seen))

    def _fresh(self, rows: int) -> dict[str, NDArray[np.generic]]:
        cfg, c, p = self.config, self.config.channels, self.config.patch_length
        none = NONE
        sums, cells = self.sums_of.rows(rows * p)[0], self.sums_of.rows(rows * cfg.window)[1]
        return {
            "sums": sums.reshape(rows, p, self.sums_of.size),
            "cells": cells.reshape(rows, cfg.window, c, 3),
            "pending": np.zeros((rows, self.sums_of.size if self.number else 0)),
            "opened": np.zeros(rows, np.int64),
            "known": np.zeros((rows, p, cfg.step_covariates)),
            "count": np.zeros((rows, c)),
            "mean": np.zeros((rows, c)),
            "m2": np.zeros((rows, c)),
            "prior": np.ones((rows, c)),
            "first": np.full(rows, LATER),
            "absorbed": np.full(rows, none),
            "last": np.full(rows, none),
            "newest": np.full(rows, none),
            "token_clock": np.full(rows, none),
            "last_seen": np.full((rows, c), none),
            "reference": np.full((rows, cfg.prediction_length, c, len(cfg.quantiles)), np.nan),
            "origin": np.full(rows, none),
            "counters": np.zeros((rows, len(COUNTERS)), np.int64),
            "static_real": np.zeros((rows, cfg.static_real)),
            "static_categories": np.zeros((rows, len(cfg.static_cardinalities)), np.int64),
        }
