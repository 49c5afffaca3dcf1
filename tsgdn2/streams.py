"""Streams by their name in the slots of a slab: what both online predictors are built on.

    observe of a new name:  the lowest free slot                     remove:  slot cleared everywhere, free again
    take_out:               all that is of one stream -> a blob      put_in:  the blob -> a free slot, or its own

A name keeps its slot until it is removed. No slot shows anything of the stream that had it before, and what is of one
stream costs its own bytes, however many others there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from heapq import heappop, heappush
from typing import Any, ClassVar, Generic

import numpy as np
import torch
from torch import Tensor

from tsgdn2 import intake
from tsgdn2.audit import OnlineAudit
from tsgdn2.audit.tracking import Eviction
from tsgdn2.checkpoint import part
from tsgdn2.errors import ConfigError, StreamError, UnknownStreamError
from tsgdn2.forecaster import Forecaster
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.passage import Arrival, Evicted, Listed, Passing, Passport, Policy, Unread, fitting, pack, passport, unpack
from tsgdn2.scale import Floats
from tsgdn2.slab import Ints, Slab
from tsgdn2.standards import Standards


class Streams(Generic[Arrival]):
    """Names of the streams of one slab, and their coming and going; the owner sets the attributes."""

    PASSAGE: ClassVar[str]
    """Kind of a blob."""
    forecaster: Forecaster
    config: ForecasterConfig
    standards: Standards
    audit: OnlineAudit | None
    _slab: Slab
    policy: Policy
    _route: Passing
    _late: Listed
    _series: tuple[str, ...]
    """Names of the channels."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._free: list[int] = []
        """A heap of the slots below `_used` that have no stream."""
        self._used = 0

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams, in the order in which they were first observed or put in."""
        return tuple(self._slots)

    @property
    def slots(self) -> int:
        """Slots allocated: so many streams fit before the memory grows, by doubling.

        Each costs `state_nbytes` and `audit_nbytes` at most.
        """
        return self._slab.capacity

    @property
    def audit_nbytes(self) -> int:
        """Bytes of the audit for one stream, 0 without one; those of its checkpoints are in `state_nbytes`."""
        return 0 if self.audit is None else self.audit.nbytes // self.audit.slots * self.config.lanes

    def reserve(self, streams: int) -> None:
        """Have at least this many slots, so that no growth comes later; what is there stays. ConfigError below 0."""
        if isinstance(streams, bool) or not isinstance(streams, int | np.integer) or streams < 0:
            raise ConfigError(f"streams: must be a number of streams, 0 or more, got {streams!r}")
        self._slab.reserve(streams)
        if self.audit is not None:
            self.audit.allocate(self._slab.capacity * self.config.lanes)

    def audit_slots(self, stream: str) -> tuple[int, ...]:
        """Slots of the audit that belong to a stream: one per channel, or one for all. UnknownStreamError."""
        return tuple(self._slab.lanes(np.array([self._slot(stream)])).tolist())

    def evictions(self, *, drain: bool = False) -> list[Evicted]:
        """Evictions that wait in the audit, with their streams, oldest first; `drain` forgets them."""
        if self.audit is None:
            return []
        return self._evicted(self.audit.drain() if drain else self.audit.queued())

    def take_out(self, stream: str) -> bytes:
        """All of one stream as one blob (safetensors): state, what waits, checkpoints, late arrivals, audit, counters.

        It reads and changes nothing. `put_in` is its inverse; for a stream that leaves, `remove` it next. What it had
        unread (evictions, late arrivals) is in the blob and in what `remove` returns: log one of the two. Raises
        UnknownStreamError.
        """
        tensors = self._tensors(np.array([self._slot(stream)]))
        tensors.pop("late.dropped", None)  # that count is the predictor's
        return pack(self._passport, tensors, stream)

    def take_out_many(self, streams: Iterable[str]) -> dict[str, bytes]:
        """`take_out` of many streams, each once; an unknown one is an error before any."""
        chosen = dict.fromkeys(streams)
        for stream in chosen:
            self._slot(stream)
        return {stream: self.take_out(stream) for stream in chosen}

    def put_in(self, stream: str, blob: bytes, *, replace: bool = False) -> None:
        """Go on with a stream that was taken out of this predictor or one like it, under this name, bit for bit.

        A stream of that name is an error, or replaced. CheckpointError: truncated, altered, newer; ConfigError: it left
        another model, channels, late policy or audit; StreamError: the name. Nothing has changed then.
        """
        self.put_in_many({stream: blob}, replace=replace)

    def put_in_many(self, blobs: Mapping[str, bytes], *, replace: bool = False) -> None:
        """`put_in` of many streams, all or none of them."""
        for stream in blobs:
            intake.check_stream(stream)
            if stream in self._slots and not replace:
                raise StreamError(
                    f"stream: {stream!r} is here already; remove it first, or say replace=True to have that of the blob"
                )
        read = [unpack(self._passport, blob) for blob in blobs.values()]
        self.reserve(len(self._slots) + sum(stream not in self._slots for stream in blobs))
        known = [self._slots.get(stream) for stream in blobs]
        replaced = [slot for slot in known if slot is not None]
        kept = [self._tensors(np.array([slot])) for slot in replaced]
        slots = [self._take_slot() if slot is None else slot for slot in known]
        evictions, late = list[Eviction](), list[Any]()
        try:
            with fitting():
                self._clear(replaced)
                for slot, tensors in zip(slots, read, strict=True):
                    events, rows = self._restore(tensors, np.array([slot]))
                    evictions += events
                    late += rows
        except BaseException:
            self._clear(slots)
            for slot, tensors in zip(replaced, kept, strict=True):
                self._restore(tensors, np.array([slot]))
            for slot in set(slots) - set(replaced):
                heappush(self._free, slot)
            raise
        self._hear(evictions, late, instead=replaced)
        for stream, slot in zip(blobs, slots, strict=True):
            self._slots[stream], self._names[slot] = slot, stream

    def remove(self, stream: str) -> Unread[Arrival]:
        """Forget a stream; its slot is cleared everywhere, and free. UnknownStreamError.

        Returns what nobody had read of it, because it is not handed out later: an eviction that `evictions` or the
        audit's `drain` hands out is always of the stream that has the slot now.
        """
        return self.remove_many([stream])[stream]

    def remove_many(self, streams: Iterable[str]) -> dict[str, Unread[Arrival]]:
        """`remove` of many streams, each once; an unknown one is an error before any."""
        slots = {stream: self._slot(stream) for stream in streams}
        unread = {stream: self._unread(slot) for stream, slot in slots.items()}
        self._hear([], [], instead=list(slots.values()))
        self._clear(list(slots.values()))
        for stream, slot in slots.items():
            del self._slots[stream], self._names[slot]
            heappush(self._free, slot)
        return unread

    def _slot(self, stream: str) -> int:
        slot = self._slots.get(stream)
        if slot is None:
            known = ", ".join(list(self._slots)[:5]) or "none yet"
            raise UnknownStreamError(f"stream: {stream!r} has not been observed (known: {known}); observe it first")
        return slot

    def _open(self, stream: str, statics: tuple[Floats, Ints] | None) -> int:
        """A slot for a new stream; everything about it has been checked."""
        prior = self.standards.prior_scale(stream, self._series)
        self.reserve(len(self._slots) + 1)
        slot = self._take_slot()
        self._slab.prior[slot] = prior
        if statics is not None:
            self._slab.static_real[slot], self._slab.static_categories[slot] = statics
        self._slots[stream], self._names[slot] = slot, stream
        return slot

    def _take_slot(self) -> int:
        if self._free:
            return heappop(self._free)
        self._used += 1
        return self._used - 1

    def _whole(self) -> dict[str, Tensor]:
        """All streams, in the order of `streams`, and what is counted of them together: what `_resume` takes."""
        counted = {} if self.audit is None else {"audit.dropped": torch.tensor(self.audit.dropped)}
        return self._tensors(self._order()) | counted

    def _resume(self, tensors: dict[str, Tensor], names: Sequence[str]) -> None:
        """Give these streams to a predictor that has none; KeyError or ValueError where the tensors do not fit."""
        self.reserve(len(names))
        self._slots, self._names = {name: slot for slot, name in enumerate(names)}, dict(enumerate(names))
        self._used = len(names)
        self._hear(*self._restore(tensors, self._order()), instead=())
        if "late.dropped" in tensors:
            self._late.dropped = int(tensors["late.dropped"])
        if self.audit is not None:
            self.audit.dropped = int(tensors["audit.dropped"])

    def _order(self) -> Ints:
        """Slots of all streams, in the order of `streams`."""
        return np.fromiter(self._slots.values(), np.int64, len(self._slots))

    @cached_property
    def _passport(self) -> Passport:
        return passport(
            self.PASSAGE, self.forecaster, self.standards, self._series, self.policy.to_json(), self.audit
        )  # fmt: skip

    def _tensors(self, slots: Ints) -> dict[str, Tensor]:
        """All that is of these streams [N], in this order."""
        found = self._route.tensors(slots) | {f"late.{name}": t for name, t in self._late.tensors(slots).items()}
        if self.audit is not None:
            found |= {f"audit.{name}": t for name, t in self.audit.tensors(self._slab.lanes(slots)).items()}
        return found

    def _restore(self, tensors: dict[str, Tensor], slots: Ints) -> tuple[list[Eviction], list[Any]]:
        """Put what `_tensors` gave into slots that are clear; what it had queued and listed is left to `_hear`."""
        late = self._late.read(part(tensors, "late."), slots)
        self._route.restore(tensors, slots)
        if self.audit is None:
            return [], late
        return self.audit.restore(part(tensors, "audit."), self._slab.lanes(slots)), late

    def _hear(self, evictions: Iterable[Eviction], late: Sequence[Any], instead: Sequence[int]) -> None:
        """Queue evictions and list what came late, in place of all that is of the streams in slots `instead`."""
        self._late.put(late, instead)
        if self.audit is not None:
            self.audit.enqueue(evictions, self._slab.lanes(np.array(instead, np.int64)).tolist())

    def _clear(self, slots: Sequence[int]) -> None:
        chosen = np.array(slots, np.int64)
        if len(chosen):
            self._route.clear(chosen)
            if self.audit is not None:
                self.audit.reset(self._slab.lanes(chosen).tolist())

    def _unread(self, slot: int) -> Unread[Arrival]:
        lanes = self._slab.lanes(np.array([slot])).tolist()
        queued = [] if self.audit is None else self.audit.queued(lanes)
        return Unread(self._evicted(queued), self._arrivals({slot: self._names[slot]}))

    def _evicted(self, events: Iterable[Eviction]) -> list[Evicted]:
        lanes, found = self.config.lanes, []
        for event in events:
            slot, lane = divmod(event.slot, lanes)
            channel = self._series[lane] if lanes == len(self._series) else None
            found.append(Evicted(self._names[slot], channel, event))
        return found

    def _arrivals(self, names: Mapping[int, str]) -> list[Arrival]:
        """What came too late of the streams in these slots."""
        raise NotImplementedError
