"""The streams that are hot, what is known of the others, and the ledger rows that wait for a transaction.

    hot      in the predictor, with marks, and with the numbers of the last row applied and of the last one covered;
             a new one is hot from its first commit, and in the predictor a moment later
    dirty    hot, with rows behind the newest snapshot
    aside    refused: its state is not finite, or can not be read

A snapshot is never made of a state that is not finite, so what is set aside comes back so, and never worse. All of it
belongs to the worker's thread; time is this process's own monotone clock, and a clock that jumps changes nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from tsgdn2.errors import UnknownStreamError
from tsgdn2.online import OnlinePredictor
from tsgdn2.passage import SCHEMA, passport
from tsgdn2.service.batch import Batch, Ints
from tsgdn2.service.limits import Limits
from tsgdn2.service.marks import Marks
from tsgdn2.service.receipts import Outcome
from tsgdn2.service.soundness import Soundness
from tsgdn2.service.store import Fact, LedgerRow, Model, Snapshot, Store

Clock = Callable[[], float]
log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tsgdn2.memory")

SOME: Final = 64
"""Snapshots of one transaction, streams of one deletion."""


@dataclass(slots=True)
class Hot:
    """A stream in the predictor; its marks know all rows in the journal, also those that are not yet applied."""

    marks: Marks
    seq: int
    """The last row in its state."""
    covered: int
    """The last row in its newest snapshot."""
    used: float


class Pool:
    """What the worker knows of streams."""

    def __init__(self, online: OnlinePredictor, store: Store, limits: Limits, clock: Clock = time.monotonic) -> None:
        """Begin with none."""
        self.online, self.store, self.limits, self.clock = online, store, limits, clock
        self.model = model_of(online)
        self.hot: OrderedDict[str, Hot] = OrderedDict()
        """By their last use."""
        self.dirty: OrderedDict[str, float] = OrderedDict()
        """Since when streams have had rows behind their snapshot; the oldest first."""
        self.cold: OrderedDict[str, float] = OrderedDict()
        """When the others were used last; kept only where they expire."""
        self.aside: dict[str, str] = {}
        """Why each stream that is set aside is."""
        self.notes: list[LedgerRow] = []
        """What the next transaction tells the ledger."""
        self.settle: Callable[[Collection[str]], None] = lambda _: None
        """Applies the rows of some streams that are in the journal and not yet in the predictor."""
        self.telling: Callable[[], None] = lambda: None
        """Notes what the predictor has to tell; asked before a snapshot, which would tell it again when it is read."""
        self.replayed: Callable[[Batch, Outcome, Ints], None] = lambda *_: None
        """Told of rows that were replayed from the journal."""
        self._soundness = Soundness(online)

    def known(self, streams: Sequence[str]) -> None:
        """Streams that are in the store, as far as they are to expire."""
        if self.limits.ttl_s is not None:
            now = self.clock()
            self.cold.update((stream, now) for stream in streams if stream not in self.hot)

    def away(self, streams: Iterable[str]) -> list[str]:
        """Those that are not hot and not set aside."""
        return [stream for stream in streams if stream not in self.hot and stream not in self.aside]

    def touch(self, streams: Collection[str]) -> None:
        """These hot streams were used now."""
        now = self.clock()
        for stream in streams:
            if (entry := self.hot.get(stream)) is not None:
                entry.used = now
                self.hot.move_to_end(stream)

    def kept(self, streams: Iterable[str], fresh: Mapping[str, Marks]) -> None:
        """Rows of these streams are in the journal; `fresh` marks are of new ones, which are hot from now on."""
        now = self.clock()
        for stream in dict.fromkeys(streams):
            if stream not in self.hot:
                self.hot[stream] = Hot(fresh.get(stream) or Marks(), 0, 0, now)
            if stream not in self.dirty:
                self.dirty[stream] = now

    def applied(self, streams: Sequence[str], seqs: Sequence[int]) -> None:
        """The rows seqs [N] of these streams [N] are in the predictor."""
        for stream, seq in zip(streams, seqs, strict=True):
            self.hot[stream].seq = seq

    def check(self, streams: Sequence[str], whole: Collection[str]) -> None:
        """Set aside those of these hot streams that are not finite; `whole` ones are looked at all over."""
        streams = [stream for stream in streams if stream in self.hot]
        for stream, what in self._soundness.unsound(streams, whole=frozenset(whole)).items():
            reason = f"stream: {stream!r} is set aside, {what} is not finite; delete the stream or import a sound state"
            self.set_aside(stream, "poisoned", reason, what)

    def set_aside(self, stream: str, kind: str, reason: str, what: str) -> None:
        """Take a stream out of the pool without a snapshot and refuse it from now on."""
        self.drop([stream])
        self.aside[stream] = reason
        self.known([stream])
        self.note(kind, stream, what=what)
        log.error("memory.set_aside", stream=stream, reason=reason)

    def drop(self, streams: Collection[str]) -> None:
        """Forget streams here, as if they had never been hot; the store has them."""
        for stream in streams:
            self.hot.pop(stream, None)
            self.dirty.pop(stream, None)
            try:
                self.online.remove(stream)
            except UnknownStreamError:
                continue

    def keep(self, streams: Sequence[str], ledger: Sequence[LedgerRow] = ()) -> None:
        """Snapshot these hot streams, in one transaction with ledger rows; what is not finite is set aside instead."""
        self.settle(streams)
        self.check(streams, streams)
        streams = [stream for stream in streams if stream in self.hot]
        self.telling()
        made = [self.snapshot_of(stream, self.hot[stream].seq, self.hot[stream].marks) for stream in streams]
        with self.noted() as notes:
            self.store.snapshot(made, ledger=[*notes, *ledger])
        for stream in streams:
            self.hot[stream].covered = self.hot[stream].seq
            self.dirty.pop(stream, None)

    def note(self, kind: str, stream: str, **facts: Fact) -> None:
        """Tell the ledger with the next transaction."""
        self.notes.append(LedgerRow(kind=kind, stream=stream, facts=facts))

    @contextmanager
    def noted(self) -> Iterator[list[LedgerRow]]:
        """Ledger rows for a transaction; they wait for the next one if it fails."""
        notes = list(self.notes)
        yield notes
        del self.notes[: len(notes)]

    def flush(self) -> None:
        """Write the ledger rows that wait."""
        if self.notes:
            with self.noted() as notes:
                self.store.record(notes)

    def snapshot_of(self, stream: str, seq: int, marks: Marks, *, imported: bool = False) -> Snapshot:
        """The snapshot of a stream in the predictor as it is now."""
        return Snapshot.of(
            stream, seq, self.online.take_out(stream), schema=SCHEMA, fingerprint=self.model.fingerprint, marks=marks,
            imported=imported,
        )  # fmt: skip


def model_of(online: OnlinePredictor) -> Model:
    """What a store of this predictor's states is of: weights, channels, late policy and audit, as a blob has them."""
    own = passport(
        online.PASSAGE, online.forecaster, online.standards, online.channels, online.policy.to_json(), online.audit
    )  # fmt: skip
    facts = repr(sorted(own.facts.items()))
    return Model(hashlib.sha256(facts.encode()).hexdigest(), online.channels)
