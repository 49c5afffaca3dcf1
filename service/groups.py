"""One group of requests: hot streams -> marks -> one append -> owed to the states. What is not on disk never was.

    a row of a stream set aside   refused, in no journal
    a row that was seen before    left out
    the append fails              marks as they were, the predictor untouched: the whole group gets the error

A request with more streams than may be hot is appended as one, too; its cold streams then come from the store in parts,
with its rows behind them. That is slower, as each part looks through the journal.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from tsgdn2.service.arrears import Arrears, Group
from tsgdn2.service.backlog import Request
from tsgdn2.service.batch import Batch, Floats, Ints
from tsgdn2.service.marks import BEHIND as MARKED_BEHIND
from tsgdn2.service.marks import NEW, Marks, sift
from tsgdn2.service.pool import log
from tsgdn2.service.receipts import BEHIND, ELSEWHERE, KEPT, REFUSED, SEEN, Receipt
from tsgdn2.service.sessions import Sessions
from tsgdn2.service.spent import Spent


class Groups:
    """Commits groups into one pool."""

    def __init__(self, sessions: Sessions, arrears: Arrears, spent: Spent) -> None:
        self._sessions, self._arrears, self._spent = sessions, arrears, spent

    def commit(self, requests: Sequence[Request]) -> Group:
        """Keep the rows of some requests. An error is the error of them all, and nothing has changed then.

        What goes wrong behind the append is no error of theirs: their rows are kept, and say so.
        """
        group = Group(requests)
        self._take(group)
        self._spent.groups += 1
        self._spent.rows += len(group.batch)
        self._arrears.paid(group)
        return group

    def _take(self, group: Group) -> None:
        sessions, clock = self._sessions, time.perf_counter
        began = clock()
        streams = dict.fromkeys(group.batch.streams)
        large = len(streams) > sessions.most
        why = sessions.store.claim(sessions.away(streams)) if large else sessions.fetch(streams).elsewhere
        why = {stream: f"stream: {stream!r} is held by {label}; send it there" for stream, label in why.items()}
        away = set(why)
        why |= {stream: sessions.aside[stream] for stream in streams if stream in sessions.aside}
        rows = np.arange(len(group.batch))
        if why:
            out = np.array([stream in why for stream in group.batch.streams])
            group.refuse(rows[out], why)
            group.status[[row for row in rows[out] if group.batch.streams[row] in away]] = ELSEWHERE
            rows = rows[~out]
        sifted = clock()
        self._spent.hot += sifted - began
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
        self._spent.sift += appending - sifted
        if len(fresh):
            try:
                with sessions.noted() as notes:
                    first = sessions.store.append(fresh, ledger=notes)
            except BaseException:
                sifting.undo()
                raise
            self._spent.append += clock() - appending
            group.status[rows] = KEPT
            try:
                self._owe(group, fresh, rows, first, fresh_marks, large=large)
            except Exception as error:
                # It is on the disk and its sequences are taken: whoever wants these streams next has them from there.
                sessions.drop(set(fresh.streams))
                log.exception("memory.not_owed", error=str(error), rows=len(rows))
        sessions.touch(streams)

    def _owe(
        self, group: Group, fresh: Batch, rows: Ints, first: int, marks: Mapping[str, Marks], *, large: bool
    ) -> None:
        """Rows [N] that are in the journal from `first` on, and their places in the group."""
        sessions = self._sessions
        if not large:
            sessions.kept(fresh.streams, marks)
            self._arrears.owe(group, fresh, rows, first + np.arange(len(rows)))
            return
        hot = np.array([stream in sessions.hot for stream in fresh.streams])
        if hot.any():
            mine = fresh.take(hot)
            sessions.kept(mine.streams, marks)
            self._arrears.owe(group, mine, rows[hot], first + np.flatnonzero(hot))
            self._arrears.settle(mine.streams)  # the parts below may evict them
        away = list(dict.fromkeys(stream for stream, here in zip(fresh.streams, hot, strict=True) if not here))
        caught: dict[int, tuple[str, Floats]] = {}
        for start in range(0, len(away), sessions.most):
            caught |= sessions.fetch(away[start : start + sessions.most], since=first).caught
        for row in np.flatnonzero(~hot).tolist():
            if (one := caught.get(first + row)) is not None:
                group.status[rows[row]], group.surprise[rows[row]] = one
        if sessions.aside:
            lost = [row for row in rows.tolist() if group.batch.streams[row] in sessions.aside]
            group.refuse(np.array(lost, np.int64), sessions.aside)


def receipts_of(group: Group) -> list[Receipt]:
    """A receipt for each request, from what is known of its rows now."""
    at, receipts = 0, list[Receipt]()
    for request in group.requests:
        rows = len(request.admitted.batch)
        span = slice(at, at + rows)
        reasons = {row - at: group.reasons[row] for row in range(at, at + rows) if row in group.reasons}
        receipts.append(spread(request, tuple(group.status[span].tolist()), group.surprise[span].copy(), reasons))
        at += rows
    return receipts


def spread(request: Request, status: tuple[str, ...], surprise: Floats, reasons: Mapping[int, str]) -> Receipt:
    """A receipt for all the rows that came, from what became of those that were admitted."""
    admitted = request.admitted
    if not admitted.refused:
        return Receipt(status=status, surprise=surprise, reasons=reasons)
    whole = [REFUSED] * admitted.total
    cells = np.full((admitted.total, surprise.shape[1]), np.nan)
    cells[admitted.rows] = surprise
    why = dict(admitted.refused)
    for n, row in enumerate(admitted.rows.tolist()):
        whole[row] = status[n]
        if n in reasons:
            why[row] = reasons[n]
    return Receipt(status=tuple(whole), surprise=cells, reasons=why)
