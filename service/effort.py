"""What rows will cost, before they are applied: almost all of it is the patches that they close.

    a row of a stream that closes none    some microseconds
    one that does                         a pass through the model for each of its lanes
    a stream that closes several          as many passes, one after another, that nobody shares

An estimate for cutting, no promise: it leaves out what is held back or replayed, and is corrected by what slices took.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tsgdn2.ingest import waves_of
from tsgdn2.online import OnlinePredictor
from tsgdn2.service.batch import Batch, Floats
from tsgdn2.slab import NONE

_ROW: Final = 10e-6
_LANE: Final = 40e-6
_PASS: Final = 3e-3
"""Seconds on the machine of record (LOG.md)."""


class Effort:
    """Estimates for one predictor, in the thread that owns it."""

    def __init__(self, online: OnlinePredictor) -> None:
        self._online = online
        self._factor = 1.0

    def seconds(self, batch: Batch) -> Floats:
        """Seconds of each row [N], in the order in which they will be applied."""
        online, config = self._online, self._online.config
        names = {name: code for code, name in enumerate(dict.fromkeys(batch.streams))}
        codes = np.array([names[stream] for stream in batch.streams], np.int64)
        slots = np.array([online._slots.get(name, -1) for name in names], np.int64)
        open_patch = np.where(slots < 0, NONE, online._slab.last[slots] // config.patch_length)
        patch = batch.times // (config.period_ns * config.patch_length)
        found = np.full(len(batch), _ROW)
        for wave in waves_of(codes):
            before = open_patch[codes[wave]]
            closing = wave[(patch[wave] > before) & (before > NONE // config.patch_length)]
            if len(closing):
                found[closing] += config.lanes * _LANE + _PASS / len(closing)
            open_patch[codes[wave]] = np.maximum(before, patch[wave])
        return found * self._factor

    def learn(self, estimated: float, took: float) -> None:
        """Correct what comes by what was."""
        if estimated > 0 and took > 0:
            ratio = min(max(took / estimated, 0.1), 10.0)
            self._factor = min(max(self._factor * ratio**0.1, 0.01), 100.0)
