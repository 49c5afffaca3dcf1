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

from tsgdn2.ingest import waves_of
from tsgdn2.online import OnlinePredictor
from tsgdn2.service.batch import Batch, Floats
from tsgdn2.slab import NONE

CALL: Final = 4e-3
"""Seconds of a call that closes patches, whatever it holds, on the machine of record (LOG.md)."""
_ROW, _LANE, _PASS = 10e-6, 40e-6, 3e-3
_TOLD: Final = 2e-3
"""An estimate of less says nothing about the factor: the call's own cost is most of it."""


class Effort:
    """Estimates for one predictor, in the thread that owns it."""

    def __init__(self, online: OnlinePredictor) -> None:
        self._online = online
        self._factor = 1.0

    def seconds(self, batch: Batch) -> Floats:
        """Seconds of each row [N] beside the call's own, in the order in which they will be applied."""
        online, config = self._online, self._online.config
        names = {name: code for code, name in enumerate(dict.fromkeys(batch.streams))}
        codes = np.array([names[stream] for stream in batch.streams], np.int64)
        slots = np.array([online._slots.get(name, -1) for name in names], np.int64)
        open_patch = np.where(slots < 0, NONE, online._slab.last[slots] // config.patch_length)
        patch = batch.times // (config.period_ns * config.patch_length)
        found = np.full(len(batch), _ROW)
        for turn, wave in enumerate(waves_of(codes)):
            before = open_patch[codes[wave]]
            closing = wave[(patch[wave] > before) & (before > NONE // config.patch_length)]
            if len(closing):
                found[closing] += config.lanes * _LANE + (_PASS / len(closing) if turn else 0.0)
            open_patch[codes[wave]] = np.maximum(before, patch[wave])
        return found * self._factor

    def learn(self, estimated: float, took: float) -> None:
        """Correct what comes by what a call took whose rows were estimated so."""
        if estimated >= _TOLD:
            ratio = min(max((took - CALL) / estimated, 0.5), 2.0)
            self._factor = min(max(self._factor * ratio**0.1, 0.25), 4.0)
