"""What rows will cost, before they are applied: almost all of it is the patches that they close.

    a call                                some milliseconds, whatever it holds
    a row of a stream that closes none    some microseconds
    one that does                         its lanes' share of a pass through the model
    a stream that closes several          as many passes, one after another, that nobody shares

An estimate for cutting, no promise: it leaves out what is held back or replayed, and is corrected by what slices took.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tsgdn2.online import OnlinePredictor
from tsgdn2.service.batch import Batch, Floats
from tsgdn2.slab import NONE

_CALL, _ROW, _LANE, _PASS = 4e-3, 10e-6, 40e-6, 3e-3
"""Seconds on the machine of record (LOG.md), until the calls of this one have told better."""
_KEPT: Final = 0.98
"""What a call still counts when the next one has been seen."""
_WEIGHT: Final = 10.0
"""Calls that the figures above count for in the beginning."""


class Effort:
    """Estimates for one predictor, in the thread that owns it."""

    def __init__(self, online: OnlinePredictor) -> None:
        self._online = online
        self.call, self.factor = _CALL, 1.0
        """Seconds of a call, whatever it holds; and how much slower its rows are here than was thought."""
        points = np.array([0.5 * _CALL, 4 * _CALL])
        self._sums = _WEIGHT * np.array([1.0, points.mean(), points.mean() + _CALL, (points**2).mean(),
                                         (points * (points + _CALL)).mean()])  # fmt: skip

    def seconds(self, batch: Batch) -> Floats:
        """Seconds of each row [N] beside the call's own, in the order in which they will be applied."""
        online, config = self._online, self._online.config
        names = {name: code for code, name in enumerate(dict.fromkeys(batch.streams))}
        found = np.full(len(batch), _ROW)
        if not names:
            return found
        codes = np.array([names[stream] for stream in batch.streams], np.int64)
        slots = np.array([online._slots.get(name, -1) for name in names], np.int64)
        last = np.where(slots < 0, NONE, online._slab.last[slots])
        open_patch = last // config.patch_length
        patch = batch.times // (config.period_ns * config.patch_length)
        # Rows by stream, in their order; ranks of patches instead of patches, so that one running maximum serves all.
        order = np.argsort(codes, kind="stable")
        together = np.concatenate([open_patch, patch])
        ranks = np.searchsorted(np.unique(together), together)
        opens, mine = ranks[: len(slots)], ranks[len(slots) :][order]
        owner, width = codes[order], len(ranks) + 1
        high = np.maximum.accumulate(np.maximum(mine, opens[owner]) + owner * width) - owner * width
        first = np.concatenate(([True], owner[1:] != owner[:-1]))
        before = np.where(first, opens[owner], np.concatenate(([0], high[:-1])))
        known = np.where(first, last[owner] != NONE, True)
        closing = (mine > before) & known
        count = np.cumsum(closing)
        turn = np.asarray(count - np.maximum.accumulate(np.where(first, count - closing, 0)) - 1)[closing]
        cost = np.full(len(turn), config.lanes * _LANE)
        cost[turn > 0] += _PASS / np.bincount(turn, minlength=1)[turn[turn > 0]]
        found[order[closing]] += cost
        return found * self.factor

    def learn(self, estimated: float, took: float) -> None:
        """Correct what comes by a call that took so long for rows estimated so: a line through the last ones."""
        plain = estimated / self.factor
        took = min(took, 3 * (self.call + estimated))  # whatever else held it up is no property of the rows
        self._sums = _KEPT * self._sums + np.array([1.0, plain, took, plain**2, plain * took])
        weight, x, y, xx, xy = self._sums.tolist()
        spread = weight * xx - x * x
        if spread > 0:
            self.factor = min(max((weight * xy - x * y) / spread, 0.2), 5.0)
            self.call = min(max((y - self.factor * x) / weight, 1e-4), 0.05)
