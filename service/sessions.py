"""A pool of hot streams with a memory limit: who comes in, who goes out, and what the ledger is told of it.

    bring      cold -> hot (recall.py)             evict    the one used longest ago -> snapshot -> removed, slot clear
    remove     deleted, wherever it is             put      a state from elsewhere, in the place of all there is of it
    expire     not used for a time, hot or cold -> deleted

Each is a row of the ledger, in the transaction that it belongs to where there is one, else in the next. TTL is counted
by this process's own clock, so a restart begins it anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from itertools import islice
from typing import Final

from tsgdn2.errors import ConfigError, StreamError, UnknownStreamError
from tsgdn2.online import OnlinePredictor
from tsgdn2.service.errors import ElsewhereError
from tsgdn2.service.limits import Limits
from tsgdn2.service.marks import Marks
from tsgdn2.service.pool import SOME, Clock, Hot
from tsgdn2.service.recall import Brought, Recall
from tsgdn2.service.store import LedgerRow, Store

_BESIDE: Final = 4_096
"""Bytes of a hot stream beside its state: names, marks, entries."""
_NOTES: Final = 4_096
"""Ledger rows that may wait for a transaction."""


class Sessions(Recall):
    """The pool of one predictor and one store."""

    def __init__(self, online: OnlinePredictor, store: Store, limits: Limits, clock: Clock = time.monotonic) -> None:
        """ConfigError for a predictor with streams, or a memory limit that not even two of them fit into."""
        super().__init__(online, store, limits, clock)
        each = online.state_nbytes + online.audit_nbytes + _BESIDE
        self.on_gone: Callable[[str], None] = lambda _: None
        """Hears the name of each stream that was deleted or has expired, in the worker's thread."""
        self.most = limits.memory_bytes // each
        """Streams that may be hot."""
        if self.most < 2:
            raise ConfigError(
                f"memory_bytes: must hold at least two streams of {each} bytes each, got {limits.memory_bytes}"
            )
        if online.streams:
            raise ConfigError(
                f"online: must begin without streams, it has {len(online.streams)} that no store knows of; take them "
                "out and import them one by one"
            )

    def make_room(self, needed: int, pinned: Collection[str]) -> None:
        """Evict the coldest but the pinned until so many more fit. StoreError, with those evicted that could be."""
        self._reserve(min(len(self.hot) + needed, self.most))
        over = len(self.hot) + needed - self.most
        if over > 0:
            chosen = list(islice((stream for stream in self.hot if stream not in pinned), over))
            for start in range(0, len(chosen), SOME):
                self._evict(chosen[start : start + SOME])

    def fetch(self, streams: Collection[str], since: int | None = None) -> Brought:
        """Have these streams hot, as far as there are any; there is room for all of them. As `bring`.

        Who is cold is asked again behind the making of room: to evict is to apply what is owed, and that may take a
        stream away or bring one.
        """
        self.make_room(len(self.away(streams)), streams)
        return self.bring(self.away(streams), since=since)

    def remove(self, stream: str) -> None:
        """Delete a stream, hot, cold or set aside. UnknownStreamError; StoreError, and it is there still."""
        self.settle([stream])
        self._own(stream)
        if stream not in self.hot and self.store.restore(stream) is None:
            raise UnknownStreamError(f"stream: {stream!r} has not been observed; there is nothing to delete")
        self._delete([stream], "deleted")

    def put(self, stream: str, blob: bytes) -> None:
        """Import a state, in the place of all that is of this stream; its sources begin with no row seen.

        CheckpointError, ConfigError, StreamError: it does not fit, or is not finite. Nothing has changed then.
        """
        self.settle([stream])
        self._own(stream)
        before = self.online.take_out(stream) if stream in self.hot else None
        if before is None:
            self.make_room(1, ())
        self.online.put_in(stream, blob, replace=True)
        try:
            if found := self._soundness.unsound([stream], whole={stream}):
                raise StreamError(f"blob: {found[stream]} of it is not finite; take it out where it is sound")
            made = self.snapshot_of(stream, self.store.last, Marks(), imported=True)
            imported = LedgerRow(kind="imported", stream=stream, facts={"bytes": len(blob)})
            with self.noted() as notes:
                self.store.snapshot([made], ledger=[*notes, imported])
        except BaseException:
            self.online.remove(stream)
            if before is not None:
                self.online.put_in(stream, before)
            raise
        self.hot[stream] = Hot(Marks(), made.seq, made.seq, self.clock())
        self.hot.move_to_end(stream)
        for others in (self.dirty, self.cold, self.aside):
            others.pop(stream, None)

    def expire(self) -> bool:
        """Delete some of the streams that were not used for too long; whether there were any."""
        if self.limits.ttl_s is None:
            return False
        end = self.clock() - self.limits.ttl_s
        gone = [stream for stream, used in islice(self.cold.items(), SOME) if used <= end]
        gone += [stream for stream, entry in islice(self.hot.items(), SOME) if entry.used <= end]
        if gone:
            self._delete(gone, "expired")
        return bool(gone)

    def _own(self, stream: str) -> None:
        if elsewhere := self.store.claim([stream]):
            raise ElsewhereError(f"stream: {stream!r} is held by {elsewhere[stream]}; ask there")

    def _reserve(self, streams: int) -> None:
        """Grow in doublings that end at the limit, so that the slots never hold more than it."""
        if streams > self.online.slots:
            steps = max((self.most // 64).bit_length() - 1, 0) if self.most >= 64 else 0
            self.online.reserve(min(max(streams, -(-self.most >> steps)), self.most))

    def _evict(self, streams: list[str]) -> None:
        self.settle(streams)
        streams = [stream for stream in streams if stream in self.hot]
        rows = [LedgerRow(kind="evicted", stream=stream, facts={"seq": self.hot[stream].seq}) for stream in streams]
        changed = [stream for stream in streams if stream in self.dirty]
        used = {stream: self.hot[stream].used for stream in streams}
        if changed or len(self.notes) > _NOTES:
            self.keep(changed, rows)
        else:
            self.notes += rows
        if self.limits.ttl_s is not None:
            self.cold.update(used)
        self.drop(streams)

    def _delete(self, streams: list[str], kind: str) -> None:
        self.settle(streams)
        with self.noted() as notes:
            gone = [LedgerRow(kind=kind, stream=stream) for stream in streams]
            self.store.forget(streams, ledger=[*notes, *gone])
        self.drop(streams)
        for stream in streams:
            self.cold.pop(stream, None)
            self.aside.pop(stream, None)
            self.on_gone(stream)
