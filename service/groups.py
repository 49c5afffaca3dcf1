"""One group of requests: hot streams -> marks -> one append -> predictor -> receipts. What is not on disk never was.

    a row of a stream set aside   refused, in no journal
    a row that was seen before    left out
    the append fails              marks as they were, the predictor untouched: the whole group gets the error
    the predictor fails           its streams are read from the store again, one by one, and so are their receipts

A request with more streams than may be hot is appended as one, too; its cold streams then come from the store in parts,
with its rows behind them. That is slower, as each part looks through the journal.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tsgdn2.service.backlog import Request
from tsgdn2.service.batch import Batch, Floats, Ints
from tsgdn2.service.marks import BEHIND as MARKED_BEHIND
from tsgdn2.service.marks import NEW, Marks, sift
from tsgdn2.service.pool import log
from tsgdn2.service.receipts import BEHIND, REFUSED, SEEN, Receipt, applied
from tsgdn2.service.sessions import Sessions


@dataclass
class Spent:
    """Seconds that groups took since the start, by what they did, and what they handled."""

    groups: int = 0
    rows: int = 0
    hot: float = 0.0
    """Bringing cold streams back, and evicting others."""
    sift: float = 0.0
    """Telling duplicates from new rows."""
    append: float = 0.0
    """The store's group commit."""
    apply: float = 0.0
    """The predictor, and the look at the states behind it."""
    check: float = 0.0
    """That look alone; it is in `apply`."""
    answer: float = 0.0
    """The whole of a group, from requests to receipts."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Rows by their status."""


class Group:
    """Rows on their way: what is known of each so far."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.status = np.full(len(batch), REFUSED, dtype=object)
        self.surprise = np.full(batch.values.shape, np.nan)
        self.reasons: dict[int, str] = {}

    def refuse(self, rows: Ints, why: dict[str, str]) -> None:
        """Rows of streams that can not take them."""
        for row in rows.tolist():
            self.status[row], self.surprise[row] = REFUSED, np.nan
            self.reasons[row] = why[self.batch.streams[row]]


class Groups:
    """Commits groups into one pool."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self.spent = Spent()

    def commit(self, requests: Sequence[Request]) -> list[Receipt]:
        """Keep and apply the rows of some requests. An error is the error of them all, and nothing has changed then.

        The one exception: a store that fails while rows that it has kept are read back. They are kept then; a source
        that numbers its rows and sends them again hears that they were seen.
        """
        began = time.perf_counter()
        group = Group(Batch.concat([request.admitted.batch for request in requests]))
        self._take(group)
        self.spent.groups += 1
        self.spent.rows += len(group.batch)
        at, receipts = 0, list[Receipt]()
        for request in requests:
            rows = len(request.admitted.batch)
            receipts.append(receipt_of(request, group, at))
            at += rows
        for receipt in receipts:
            for status, count in receipt.counts.items():
                self.spent.statuses[status] = self.spent.statuses.get(status, 0) + count
        self.spent.answer += time.perf_counter() - began
        return receipts

    def _take(self, group: Group) -> None:
        sessions, clock = self._sessions, time.perf_counter
        began = clock()
        streams = dict.fromkeys(group.batch.streams)
        cold = [stream for stream in streams if stream not in sessions.hot and stream not in sessions.aside]
        large = len(streams) > sessions.most
        if large:
            why = sessions.store.claim(cold)
        else:
            sessions.make_room(len(cold), streams)
            why = sessions.bring(cold).elsewhere
        why = {stream: f"stream: {stream!r} is held by {label}; send it there" for stream, label in why.items()}
        why |= {stream: sessions.aside[stream] for stream in streams if stream in sessions.aside}
        rows = np.arange(len(group.batch))
        if why:
            out = np.array([stream in why for stream in group.batch.streams])
            group.refuse(rows[out], why)
            rows = rows[~out]
        sifted = clock()
        self.spent.hot += sifted - began
        taken, fresh_marks = group.batch.take(rows), dict[str, Marks]()

        def marks_of(stream: str) -> Marks:
            if (entry := sessions.hot.get(stream)) is not None:
                return entry.marks
            if stream not in fresh_marks:
                fresh_marks[stream] = sessions.store.marks(stream) if large else Marks()
            return fresh_marks[stream]

        sifting = sift(taken, marks_of)
        left_out = np.flatnonzero(sifting.status != NEW)
        group.status[rows[left_out]] = np.where(sifting.status[left_out] == MARKED_BEHIND, BEHIND, SEEN)
        fresh, rows = taken.take(sifting.fresh), rows[sifting.fresh]
        appending = clock()
        self.spent.sift += appending - sifted
        if not len(fresh):
            sessions.touch(streams)
            return
        try:
            with sessions.noted() as notes:
                first = sessions.store.append(fresh, ledger=notes)
        except BaseException:
            sifting.undo()
            raise
        applying = clock()
        self.spent.append += applying - appending
        self._apply(group, fresh, rows, first, fresh_marks, large=large)
        sessions.touch(streams)
        self.spent.apply += clock() - applying

    def _apply(
        self, group: Group, fresh: Batch, rows: Ints, first: int, marks: dict[str, Marks], *, large: bool
    ) -> None:
        """Rows [N] that are in the journal from `first` on, and their places in the group."""
        sessions, seqs = self._sessions, first + np.arange(len(rows))
        here = np.array([not large or stream in sessions.hot for stream in fresh.streams])
        away = list(dict.fromkeys(stream for stream, hot in zip(fresh.streams, here, strict=True) if not hot))
        if here.any():
            mine = fresh.take(here)
            streams = list(dict.fromkeys(mine.streams))
            try:
                found = applied(sessions.online, mine)
            except Exception as error:
                # What is in the journal shall be in the states: what the predictor has of them now, nobody knows.
                log.exception("memory.predictor_failed", error=str(error), streams=len(streams))
                sessions.drop(streams)
                away += streams
            else:
                group.status[rows[here]] = found.status
                group.surprise[rows[here]] = found.surprise
                new = {stream for stream in streams if stream not in sessions.hot}
                sessions.applied(mine.streams, seqs[here].tolist(), marks)
                self._check(streams, new, mine, found.status)
        caught: dict[int, tuple[str, Floats]] = {}
        for start in range(0, len(away), sessions.most):
            part = away[start : start + sessions.most]
            sessions.make_room(len(part), ())
            caught |= sessions.bring(part, since=first).caught
        if away:
            for row, seq in zip(rows.tolist(), seqs.tolist(), strict=True):
                if (one := caught.get(seq)) is not None:
                    group.status[row], group.surprise[row] = one
        if sessions.aside:
            lost = [row for row in rows.tolist() if group.batch.streams[row] in sessions.aside]
            group.refuse(np.array(lost, np.int64), sessions.aside)

    def _check(self, streams: list[str], new: set[str], batch: Batch, status: Sequence[str]) -> None:
        began = time.perf_counter()
        whole = {stream for stream, found in zip(batch.streams, status, strict=True) if found == "replayed"}
        self._sessions.check(streams, whole | new)
        self.spent.check += time.perf_counter() - began


def receipt_of(request: Request, group: Group, at: int) -> Receipt:
    """The receipt of a request whose admitted rows begin at `at` in a group."""
    admitted = request.admitted
    span = slice(at, at + len(admitted.batch))
    reasons = {row - at: group.reasons[row] for row in range(span.start, span.stop) if row in group.reasons}
    if not admitted.refused:
        return Receipt(status=tuple(group.status[span].tolist()), surprise=group.surprise[span], reasons=reasons)
    return spread(request, tuple(group.status[span].tolist()), group.surprise[span], reasons)


def spread(request: Request, status: tuple[str, ...], surprise: Floats, reasons: dict[int, str]) -> Receipt:
    """A receipt for all the rows that came, from what became of those that were admitted."""
    admitted = request.admitted
    whole = [REFUSED] * admitted.total
    cells = np.full((admitted.total, surprise.shape[1]), np.nan)
    cells[admitted.rows] = surprise
    why = dict(admitted.refused)
    for n, row in enumerate(admitted.rows.tolist()):
        whole[row] = status[n]
        if n in reasons:
            why[row] = reasons[n]
    return Receipt(status=tuple(whole), surprise=cells, reasons=why)
