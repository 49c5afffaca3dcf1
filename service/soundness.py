"""Finds streams whose state holds a number that is not finite, so that one of them never speaks for the others.

    every row may touch      the scaler                                   looked at each time
    a closed patch touches   the model's state, the reference forecast    looked at when the stream's origin has moved

The state of a patch that is replayed changes without that, so whoever knows of it asks for the whole stream.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Final

import numpy as np
import torch

from tsgdn2.online import OnlinePredictor
from tsgdn2.service.batch import Ints
from tsgdn2.slab import NONE

_SCALER: Final = ("count", "mean", "m2")
_SOME: Final = 1024
"""Streams whose states are copied at a time."""


class Soundness:
    """Looks at the streams of one predictor, in the thread that owns it."""

    def __init__(self, online: OnlinePredictor) -> None:
        self._online = online
        self._origins = np.empty(0, np.int64)

    def unsound(self, streams: Sequence[str], *, whole: Set[str]) -> dict[str, str]:
        """What is not finite, by stream; those in `whole` are looked at whatever their origin is."""
        if not streams:
            return {}
        slab = self._online._slab
        slots = np.array([self._online._slots[stream] for stream in streams], np.int64)
        if len(self._origins) < slab.capacity:
            fresh = np.full(slab.capacity - len(self._origins), NONE, np.int64)
            self._origins = np.concatenate([self._origins, fresh])
        origin = slab.origin[slots]
        moved = origin != self._origins[slots]
        if whole:
            moved |= np.array([stream in whole for stream in streams])
        self._origins[slots] = origin
        found: dict[str, str] = {}
        for name in _SCALER:
            for row in np.flatnonzero(~np.isfinite(getattr(slab, name)[slots]).all(1)).tolist():
                found.setdefault(streams[row], f"the scaler's {name}")
        at = np.flatnonzero(moved & (origin != NONE))
        for row in at[~np.isfinite(slab.reference[slots[at]]).all((1, 2, 3))].tolist():
            found.setdefault(streams[row], "the reference forecast")
        for start in range(0, len(at), _SOME):
            part = at[start : start + _SOME]
            for row in part[self._broken(slots[part])].tolist():
                found.setdefault(streams[row], "the model's state")
        return found

    def _broken(self, slots: Ints) -> Ints:
        """Which of these slots [N] have a model's state that is not finite."""
        slab = self._online._slab
        lanes = torch.from_numpy(slab.lanes(slots))
        bad = torch.zeros(len(lanes), dtype=torch.bool)
        for layer in slab.state.layers:
            for tensor in layer.values():
                if tensor.is_floating_point():
                    rows = tensor[lanes].flatten(1)
                    # The sum of a row tells at once, and may only cry too early.
                    doubtful = ~torch.isfinite(rows.sum(1))
                    if doubtful.any():
                        bad |= doubtful & ~torch.isfinite(rows).all(1)
        return np.flatnonzero(bad.reshape(len(slots), -1).any(1).numpy())
