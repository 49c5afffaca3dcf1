"""Rows of a slab by the name of their stream: what both online predictors are built on.

A name gets the next free row at its first observation and keeps it. All that is checked is whether a name is known.
"""

from __future__ import annotations

from tsgdn2.audit import OnlineAudit
from tsgdn2.errors import UnknownStreamError
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.scale import Floats
from tsgdn2.slab import Ints, Slab
from tsgdn2.standards import Standards


class Streams:
    """Names of the streams of one slab; the owner sets the other attributes."""

    config: ForecasterConfig
    standards: Standards
    audit: OnlineAudit | None
    _slab: Slab
    _slots: dict[str, int]

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams seen, in the order of what came first of each."""
        return tuple(self._slots)

    def _slot(self, stream: str) -> int:
        slot = self._slots.get(stream)
        if slot is None:
            known = ", ".join(list(self._slots)[:5]) or "none yet"
            raise UnknownStreamError(f"stream: {stream!r} has not been observed (known: {known}); observe it first")
        return slot

    def _open(self, stream: str, statics: tuple[Floats, Ints] | None, channels: tuple[str, ...]) -> int:
        """A row for a new stream with these channels; everything about it has been checked."""
        slot = len(self._slots)
        self._slab.reserve(slot + 1)
        if self.audit is not None:
            self.audit.allocate(self._slab.capacity * self.config.lanes)
        self._slab.prior[slot] = self.standards.prior_scale(stream, channels)
        if statics is not None:
            self._slab.static_real[slot], self._slab.static_categories[slot] = statics
        self._slots[stream] = slot
        return slot
