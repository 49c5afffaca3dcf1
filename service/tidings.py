"""What rows and states have to tell the ledger: surprises that are alerts, rows that came too late, writes that fell.

    alert       a cell's surprise reached alert_bits           facts: channel, bits, at (ns), row (its number)
    late        a row was too late to be used                  facts: rows, of one stream at a time
    forgotten   a tracked write of the state was evicted       facts: channel, layer, head, cause, written, evictor, ..

A crash loses what was told to nobody yet, and replays the rows that told it: so what a replay tells again is looked up
in the ledger first, and is there once. A burst is cut: beyond so many rows at a time only their number is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Final

import numpy as np

from tsgdn2.service.batch import Batch, Ints
from tsgdn2.service.receipts import Outcome
from tsgdn2.service.sessions import Sessions
from tsgdn2.service.store import Fact

EVERY_S: Final = 1.0
"""Seconds between two looks at the evictions that wait in the audit."""
MOST: Final = 200
"""Rows of a kind that are told one by one between two looks; of more, the number."""
_PAGE: Final = 1_000
"""Newest ledger rows of a stream that are looked through; more is not told behind one snapshot."""
_KEY: Final = {"alert": ("channel", "row"), "forgotten": ("channel", "layer", "head", "written", "evicted")}
"""Facts that tell one row of a kind of a stream from another."""


Listener = Callable[[Batch, Outcome], None]
"""Told of rows that were applied, never of those that are replayed; in the worker's thread, so it must be quick."""


class Tidings:
    """Notes for the ledger of one pool; all of it in the worker's thread."""

    def __init__(self, sessions: Sessions, alert_bits: float) -> None:
        self._sessions, self._bits = sessions, alert_bits
        self.listener: Listener | None = None
        self._told = Counter[str]()
        self._more = Counter[str]()
        self._late = Counter[str]()
        self._replayed: dict[str, set[tuple[object, ...]]] = {}
        """Streams that were replayed since the last look, and what the ledger knows of them."""
        self._looked = 0.0
        sessions.replayed, sessions.telling = self.again, self.forgotten

    def heard(self, batch: Batch, outcome: Outcome, seqs: Ints) -> None:
        """Rows [N] were applied; seqs are their numbers."""
        self._alerts(batch, outcome, seqs)
        if "late" in outcome.status:
            self._late.update(
                stream for stream, status in zip(batch.streams, outcome.status, strict=True) if status == "late"
            )
        if self.listener is not None:
            self.listener(batch, outcome)

    def again(self, batch: Batch, outcome: Outcome, seqs: Ints) -> None:
        """Rows [N] were replayed from the journal: what they tell may be known already."""
        fresh = {stream for stream in batch.streams if stream not in self._replayed}
        self._replayed.update(self._known(fresh))
        self._alerts(batch, outcome, seqs)

    def tell(self, *, now: bool = False) -> None:
        """Note what has gathered, once in a while or now."""
        moment = self._sessions.clock()
        if not now and moment - self._looked < EVERY_S:
            return
        self._looked = moment
        self.forgotten()
        for stream, rows in self._late.most_common(MOST):
            self._sessions.note("late", stream, rows=rows)
        if len(self._late) > MOST:
            self._more["late"] += sum(self._late.values()) - sum(rows for _, rows in self._late.most_common(MOST))
        for kind, rows in self._more.items():
            self._sessions.note(kind, "", more=rows)
        for gathered in (self._late, self._more, self._told):
            gathered.clear()
        self._replayed.clear()

    def forgotten(self) -> None:
        """Note the evictions that wait in the audit."""
        online = self._sessions.online
        if online.audit is not None:
            for stream, channel, event in online.evictions(drain=True):
                self._note(
                    "forgotten", stream, channel="" if channel is None else channel, layer=event.layer, head=event.head,
                    cause=event.cause, written=self._moment(event.birth), evicted=self._moment(event.time),
                    evictor=None if event.evictor < 0 else self._moment(event.evictor_time), tracked=event.tracked,
                    retention=event.retention, decay=event.decay, erase=event.erase,
                )  # fmt: skip

    def _alerts(self, batch: Batch, outcome: Outcome, seqs: Ints) -> None:
        with np.errstate(invalid="ignore"):
            rows, channels = np.nonzero(outcome.surprise >= self._bits)
        for row, channel in zip(rows.tolist(), channels.tolist(), strict=True):
            self._note(
                "alert", batch.streams[row], channel=self._sessions.online.channels[channel],
                bits=round(float(outcome.surprise[row, channel]), 3), at=int(batch.times[row]), row=int(seqs[row]),
            )  # fmt: skip

    def _note(self, kind: str, stream: str, **facts: Fact) -> None:
        known = self._replayed.get(stream)
        if known is not None and _identity(kind, facts) in known:
            return
        self._told[kind] += 1
        if self._told[kind] > MOST:
            self._more[kind] += 1
        else:
            self._sessions.note(kind, stream, **facts)

    def _known(self, streams: Collection[str]) -> dict[str, set[tuple[object, ...]]]:
        """What the ledger has of these streams, and what waits for it."""
        found: dict[str, set[tuple[object, ...]]] = {stream: set() for stream in streams}
        for stream, known in found.items():
            page = self._sessions.store.newest_ledger(2**62, _PAGE, stream=stream)
            known.update(_identity(row.kind, row.facts) for row in page if row.kind in _KEY)
        for row in self._sessions.notes:
            if row.kind in _KEY and row.stream in found:
                found[row.stream].add(_identity(row.kind, row.facts))
        return found

    def _moment(self, step: int) -> int:
        """The end of a step of the model's clock, in ns."""
        return int(step + 1) * self._sessions.online.config.period_ns


def _identity(kind: str, facts: Mapping[str, Fact]) -> tuple[object, ...]:
    return (kind, *(facts.get(name) for name in _KEY[kind]))
