"""The model beside the slab of events: closes patches or groups, and answers queries at any moment.

    close:  what is open -> one commit               settle: query at tau of that commit, on the state before it
                                                             -> reference forecast that scores the steps after it
    answer: (commit passed by the query's tau? made on a copy)  ->  query at tau  ->  quantiles and waits

A commit needs the one before it; the reference forecasts of many commits wait and are read together, in full tiles.

tau of a commit is the end of its patch, or right after the newest event of a group of n or more. A query passes it if
its own tau is later; until then it sees what is open in its window. The passes themselves are in tsgdn2/tiles.py.

N streams, lanes per stream, C targets, P patch, H horizon, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from tsgdn2.audit import OnlineAudit
from tsgdn2.events.patch import EventWindows, lagged, shown, step_of
from tsgdn2.events.slab import NONE, EventSlab
from tsgdn2.events.sums import observed_share
from tsgdn2.forecast import probability, surprise_bits
from tsgdn2.forecaster import Forecaster
from tsgdn2.scale import Bools, Floats, Moments, forgetting, scale_of
from tsgdn2.slab import Ints
from tsgdn2.state import ForecasterState
from tsgdn2.tiles import Tiles, put


class Answer(NamedTuple):
    """Quantiles [N, H, C, Q] in the units of the targets; waits [N, Q], log1p(periods to the next event)."""

    quantiles: Floats
    waits: Floats


class Asked(NamedTuple):
    """A query of N streams: what its lanes see, lags [N, L, C], elapsed [N * lanes], scaler [N, C], states."""

    slots: Ints
    windows: EventWindows
    lags: Floats
    elapsed: Floats
    mean: Floats
    scale: Floats
    state: ForecasterState


class Closing(NamedTuple):
    """What a close leaves to be settled: the reference's query, and values [N, S, C] of the steps that it scores.

    lead [N, S] is their distance from the reference before, seen [N, S, C] which of them it reaches.
    """

    asked: Asked
    values: Floats
    seen: Bools
    lead: Ints


class EventEngine:
    """Runs one forecaster over the rows of one slab of events."""

    def __init__(self, forecaster: Forecaster, slab: EventSlab, audit: OnlineAudit | None) -> None:
        self.config, self.slab = forecaster.config, slab
        self.period_ns, self._span = slab.period_ns, self.config.patch_length * slab.period_ns
        self._tiles = Tiles(forecaster, slab, audit)
        self._lam, self._levels = forgetting(self.config.half_life), np.array(self.config.quantiles)

    def commit_clock(self, slots: Ints) -> Ints:
        """tau [N] at which what is open in each stream commits."""
        if self.slab.number:
            return np.asarray(self.slab.newest[slots] + 1)
        return np.asarray((self.slab.last[slots] // self.config.patch_length + 1) * self._span)

    def passed(self, slots: Ints, clock: Ints) -> Bools:
        """Whether what is open in each stream has committed before a clock [N]."""
        ready = self.slab.last[slots] != NONE
        if self.slab.number:
            ready = self.slab.opened[slots] >= self.slab.number
        return np.asarray(ready & (clock > self.commit_clock(slots)))

    @torch.inference_mode()
    def close(self, slots: Ints) -> Closing:
        """Commit what is open in every stream of slots [N]; `settle` has to follow before the next answer or save."""
        slab, clock = self.slab, self.commit_clock(slots)
        moments, state = self._moments(slots, clock), slab.load(slab.lanes(slots))
        asked = self._look(slots, clock, moments, slab.token_clock[slots], slab.pending[slots], state)
        scored = self._scored(slots, clock // self.period_ns - 1)
        slab.store(slab.lanes(slots), self._commit(asked, clock, audit=True))
        slab.origin[slots], slab.token_clock[slots] = step_of(clock, self.period_ns), clock
        slab.opened[slots], slab.pending[slots] = 0, 0.0
        if not slab.number:
            slab.keep(slots, clock // self.period_ns - 1, moments)
        return Closing(asked, *scored)

    @torch.inference_mode()
    def settle(self, closings: Sequence[Closing]) -> Floats:
        """Make the reference forecasts of closings in their order. Returns the surprise [N of all, C] of each.

        Bits of the steps since the commit before under its reference, mean over those that it reaches and the ring
        still held; NaN where there are none.
        """
        asked = _joined([closing.asked for closing in closings])
        found = self._read(asked, np.zeros(0)).quantiles
        latest: dict[int, int] = {}
        before = np.empty(len(found), np.int64)
        for n, slot in enumerate(asked.slots.tolist()):
            before[n], latest[slot] = latest.get(slot, -1), n
        values, seen, lead = (np.concatenate(part) for part in list(zip(*closings, strict=True))[1:])
        bits = np.zeros(values.shape)
        row, place, target = np.nonzero(seen)
        if len(row):
            ahead, own = lead[row, place] - 1, before[row]
            reference = self.slab.reference[asked.slots[row], ahead, target]
            reference = np.where((own >= 0)[:, None], found[own, ahead, target], reference)
            bits[row, place, target] = surprise_bits(probability(values[row, place, target], reference, self._levels))
        rows = np.fromiter(latest.values(), np.int64, len(latest))
        self.slab.reference[asked.slots[rows]] = found[rows]
        count = seen.sum(1)
        return np.where(count > 0, bits.sum(1) / np.maximum(count, 1), np.nan)

    @torch.inference_mode()
    def answer(self, slots: Ints, clock: Ints, future: Floats) -> Answer:
        """What a query at each clock [N] reads; future [N, H, F]. Changes nothing."""
        slab = self.slab
        state, held = slab.load(slab.lanes(slots)), slab.token_clock[slots]
        pending, passed = slab.pending[slots], self.passed(slots, clock)
        if passed.any():
            rows = np.flatnonzero(passed)
            own, end = slots[rows], self.commit_clock(slots[rows])
            lanes = np.flatnonzero(np.repeat(passed, self.config.lanes))
            before = state.rows(torch.from_numpy(lanes))
            asked = self._look(own, end, self._moments(own, end), held[rows], pending[rows], before)
            put(state, lanes, self._commit(asked, end, audit=False))
            held[rows], pending[rows] = end, 0.0
        return self._read(self._look(slots, clock, self._moments(slots, clock), held, pending, state), future)

    def absorb(self, slots: Ints, step: Ints) -> None:
        """Number windows: take the steps before `step` [N], the step of the next event, into the scaler."""
        later = (self.slab.last[slots] != NONE) & (step > self.slab.last[slots])
        if later.any():
            own, upto = slots[later], step[later] - 1
            self.slab.keep(own, upto, self.slab.moments(own, self._lam, upto))

    def _read(self, asked: Asked, future: Floats) -> Answer:
        """One query per lane."""
        read = self._tiles.read(asked.slots, asked.windows, future, asked.lags, asked.elapsed, asked.state)
        assert read.wait is not None, "a model of events has a wait head"
        return Answer(asked.mean[:, None, :, None] + asked.scale[:, None, :, None] * read.horizon, read.wait)

    def _commit(self, asked: Asked, clock: Ints, *, audit: bool) -> ForecasterState:
        """One commit per lane, of what a query at the same clock [N] sees. Returns the state after."""
        windows, elapsed, cohort = asked.windows, asked.elapsed, None
        if audit and self._tiles.audit is not None:
            own = windows.sums[:, -1] if self.slab.number else windows.sums.sum(1)
            share = observed_share(own, self.slab.sums_of.slots, self.slab.sums_of.marks)
            cohort = np.where(elapsed > 1, 2, (share < 1).astype(np.int64))
        step = np.repeat(step_of(clock, self.period_ns), self.config.lanes)
        every = np.ones(len(step), np.bool_)
        return self._tiles.commit(asked.slots, windows, every, elapsed, asked.state, step, cohort)

    def _look(
        self, slots: Ints, clock: Ints, moments: Moments, held: Ints, pending: Floats, state: ForecasterState
    ) -> Asked:
        """What each stream sees at a clock [N]; held [N] is the clock of its last commit."""
        cfg, slab, lanes, step = self.config, self.slab, self.config.lanes, step_of(clock, self.period_ns)
        values, seen = slab.window(slots, step, cfg.window)
        mean, scale = moments.mean, scale_of(moments, slab.prior[slots])
        sums = slab.sums_window(slots, step)
        if slab.number:
            sums = np.concatenate([sums, pending[:, None]], 1)
        split = self._tiles.split
        windows = EventWindows(
            values=split(shown(values, seen, mean, scale, cfg.patch_length, cfg.bridge)),
            seen=split(seen[:, cfg.window - cfg.patch_length :]),
            mean=split(mean),
            scale=split(scale),
            since=split(slab.since(slots, step)),
            clock=np.repeat(clock, lanes),
            known=np.repeat(slab.known_window(slots, step), lanes, axis=0),
            sums=np.repeat(sums, lanes, axis=0),
            idle=np.repeat((clock - slab.newest[slots]) / self.period_ns, lanes),
        )
        lags = lagged(values, seen, clock % self.period_ns != 0, mean, scale, cfg.lag_skip, cfg.bridge)
        since = np.where(held == NONE, 0, clock - np.where(held == NONE, clock, held))
        return Asked(slots, windows, lags, np.repeat(since / self._span, lanes), mean, scale, state)

    def _moments(self, slots: Ints, clock: Ints) -> Moments:
        """Scaler after the complete steps before each clock."""
        return self.slab.moments(slots, self._lam, clock // self.period_ns - 1)

    def _scored(self, slots: Ints, end: Ints) -> tuple[Floats, Bools, Ints]:
        """Values, mask and leads of the steps behind the last reference, up to step `end` [N]."""
        slab, horizon = self.slab, self.config.prediction_length
        steps = min(horizon, self.config.window)
        values, seen = slab.window(slots, end, steps)
        at, origin = end[:, None] + np.arange(1 - steps, 1), slab.origin[slots][:, None]
        lead, held = at - origin, at > slab.last[slots][:, None] - self.config.window
        return values, seen & (held & (lead >= 1) & (lead <= horizon) & (origin != NONE))[..., None], lead


def _joined(asked: Sequence[Asked]) -> Asked:
    """Queries one after the other."""
    if len(asked) == 1:
        return asked[0]
    states = [one.state for one in asked]
    layers = tuple(
        {name: torch.cat([state.layers[i][name] for state in states]) for name in layer}
        for i, layer in enumerate(states[0].layers)
    )
    state = replace(states[0], layers=layers, count=torch.cat([state.count for state in states]))
    windows = EventWindows._make(np.concatenate(part) for part in zip(*(one.windows for one in asked), strict=True))
    lags, elapsed, mean, scale = (
        np.concatenate(part) for part in zip(*((o.lags, o.elapsed, o.mean, o.scale) for o in asked), strict=True)
    )
    return Asked(np.concatenate([one.slots for one in asked]), windows, lags, elapsed, mean, scale, state)
