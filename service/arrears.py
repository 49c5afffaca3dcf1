"""Rows that are on the disk and not yet in the states: applied in slices, so that a commit never waits for all of them.

    commit -> owe:  rows cut into slices of some milliseconds           pay: the slices in their order, for a while;
                    small ones of groups that follow each other are applied in one call, which has its own price,
                    and where nobody waits for them they gather for a moment
    a reading, an eviction, a snapshot of a stream -> settle: the slices that have it, now

The journal may so run ahead of the states, by no more than the queue's limit; rows of one stream are applied in their
order, always. A crash in between changes nothing, for what is in the journal is applied at the recovery. A slice that
fails has its streams read from the store again, with all that is there, and later rows of theirs are then known to be
in the state by their number.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tsgdn2.service.backlog import Request
from tsgdn2.service.batch import Batch, Floats, Ints
from tsgdn2.service.effort import Effort
from tsgdn2.service.pool import log
from tsgdn2.service.receipts import KEPT, REFUSED, Outcome, applied
from tsgdn2.service.sessions import Sessions
from tsgdn2.service.spent import Spent

_WORTH: Final = 2.0
_LEAST: Final = 1e-3
"""A limit below this is meant: every row alone, say."""
_PATIENCE: Final = 0.1
"""Seconds that rows gather for which nobody waits."""
Heard = Callable[[Batch, Outcome, Ints], None]
"""Told of rows that were applied, what they did, and their numbers; in the worker's thread, so it must be quick."""


class Group:
    """Rows of some requests on their way: what is known of each so far."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = list(requests)
        self.batch = Batch.concat([request.admitted.batch for request in requests])
        self.status = np.full(len(self.batch), REFUSED, dtype=object)
        self.surprise = np.full(self.batch.values.shape, np.nan)
        self.reasons: dict[int, str] = {}
        self.urgent = any(not request.soon for request in requests)
        """Whether somebody waits until the rows are applied."""
        self.owed = 1
        """Slices that are still to be applied, and the commit itself."""

    def refuse(self, rows: Ints, why: dict[str, str]) -> None:
        """Rows of streams that can not take them."""
        for row in rows.tolist():
            self.status[row], self.surprise[row] = REFUSED, np.nan
            self.reasons[row] = why[self.batch.streams[row]]


@dataclass(slots=True, eq=False)
class Slice:
    """Rows [N] that are applied together: their places in the group, and their numbers in the journal."""

    group: Group
    batch: Batch
    places: Ints
    seqs: Ints
    streams: frozenset[str]
    seconds: float
    """Estimate of what they cost."""


class Arrears:
    """What is owed to the states of one pool."""

    def __init__(self, sessions: Sessions, spent: Spent, heard: Heard) -> None:
        self._sessions, self._spent, self._heard = sessions, spent, heard
        sessions.settle = self.settle
        self._effort = Effort(sessions.online)
        self._line: deque[Slice] = deque()
        self._urgent, self._seconds, self._since = 0, 0.0, 0.0
        self._paid: list[Group] = []
        self._caught: dict[int, tuple[str, Floats]] = {}

    def __bool__(self) -> bool:
        return bool(self._line or self._paid)

    @property
    def _most(self) -> float:
        """Seconds of the rows of one call: enough of them that its own price is the smaller part."""
        most = self._sessions.limits.slice_s
        return most if most < _LEAST else max(most, _WORTH * self._effort.call)

    @property
    def wait(self) -> float:
        """Seconds until something is to be applied or answered; infinite when nothing is owed."""
        if not self._line:
            return 0.0 if self._paid else math.inf
        if self._paid or self._urgent or self._seconds >= self._most:
            return 0.0
        return max(0.0, self._since + _PATIENCE - time.perf_counter())

    def owe(self, group: Group, batch: Batch, places: Ints, seqs: Ints) -> None:
        """Rows [N] of a group, their places there, and their numbers in the journal; their streams are hot."""
        most, seconds = self._most, self._effort.seconds(batch)
        group.status[places] = KEPT
        if not self._line:
            self._since = time.perf_counter()
        self._seconds += float(seconds.sum())
        ends = np.cumsum(seconds)
        cuts = np.flatnonzero(np.diff(np.floor(ends / most))) + 1
        for rows in np.split(np.arange(len(batch)), cuts):
            part = batch.take(rows)
            self._line.append(
                Slice(group, part, places[rows], seqs[rows], frozenset(part.streams), float(seconds[rows].sum()))
            )
            group.owed += 1
            self._urgent += group.urgent

    def paid(self, group: Group) -> None:
        """One of the things that a group owed is done."""
        group.owed -= 1
        if not group.owed:
            self._paid.append(group)

    def pay(self, seconds: float) -> None:
        """Apply slices in their order, at least one, and then as many as so much time has room for."""
        end = time.perf_counter() + seconds
        while self._line:
            self._apply(self._together(self._line))
            if not self._line or time.perf_counter() + self._effort.call + self._line[0].seconds >= end:
                return

    def _together(self, line: deque[Slice]) -> list[Slice]:
        """The next slices that are worth one call."""
        taken, most = [line.popleft()], self._most
        seconds = taken[0].seconds
        while line and (seconds := seconds + line[0].seconds) <= most:
            taken.append(line.popleft())
        return taken

    def settle(self, streams: Collection[str]) -> None:
        """Apply all that is owed to these streams, and what shares their slices."""
        wanted = set(streams)
        if not self._line or not wanted:
            return
        # A slice that comes earlier and has a stream of one that must be applied has to be applied before it.
        chosen = list[Slice]()
        for one in reversed(self._line):
            if not wanted.isdisjoint(one.streams):
                wanted |= one.streams
                chosen.append(one)
        taken = {id(one) for one in chosen}
        self._line = deque(one for one in self._line if id(one) not in taken)
        first = deque(reversed(chosen))
        while first:
            self._apply(self._together(first))

    def finished(self) -> list[Group]:
        """Groups whose rows are all applied since this was asked last."""
        paid, self._paid = self._paid, []
        if not self._line:
            self._caught.clear()
        return paid

    def unpaid(self) -> list[Group]:
        """Groups that are never applied here any more, when the worker has failed."""
        groups = {id(one.group): one.group for one in self._line}
        self._line.clear()
        self._urgent, self._seconds = 0, 0.0
        return [*self.finished(), *groups.values()]

    def _apply(self, slices: Sequence[Slice]) -> None:
        began = time.perf_counter()
        for one in slices:
            self._urgent -= one.group.urgent
            self._seconds -= one.seconds
        try:
            self._into_states(slices)
        except Exception as error:
            # It is on the disk, and whoever wants these streams next has them from there with all of their rows.
            streams = {stream for one in slices for stream in one.streams}
            self._sessions.drop(streams)
            log.exception("memory.not_applied", error=str(error), streams=len(streams))
        finally:
            for one in slices:
                self.paid(one.group)
            took = time.perf_counter() - began
            self._spent.slices += 1
            self._spent.apply += took
            self._effort.learn(sum(one.seconds for one in slices), took)

    def _into_states(self, slices: Sequence[Slice]) -> None:
        sessions, dropped = self._sessions, set[str]()
        mine = [np.flatnonzero(~self._standing(one)) for one in slices]
        batch = Batch.concat([one.batch.take(rows) for one, rows in zip(slices, mine, strict=True)])
        seqs = np.concatenate([one.seqs[rows] for one, rows in zip(slices, mine, strict=True)])
        if len(batch):
            streams = list(dict.fromkeys(batch.streams))
            try:
                found = applied(sessions.online, batch)
            except Exception as error:
                # What is in the journal shall be in the states: what the predictor has of them now, nobody knows.
                log.exception("memory.predictor_failed", error=str(error), streams=len(streams))
                sessions.drop(streams)
                dropped.update(streams)
            else:
                at = 0
                for one, rows in zip(slices, mine, strict=True):
                    span = slice(at, at + len(rows))
                    one.group.status[one.places[rows]] = found.status[span]
                    one.group.surprise[one.places[rows]] = found.surprise[span]
                    at += len(rows)
                new = {stream for stream in streams if not sessions.hot[stream].seq}
                sessions.applied(batch.streams, seqs.tolist())
                self._check(streams, new, batch, found.status)
                self._heard(batch, found, seqs)
        for one in slices:
            if dropped:
                self._read_back(one, one.streams & dropped)
            if sessions.aside:
                lost = [place for place in one.places.tolist() if one.group.batch.streams[place] in sessions.aside]
                one.group.refuse(np.array(lost, np.int64), sessions.aside)

    def _standing(self, one: Slice) -> NDArray[np.bool_]:
        """Which rows need no applying: their state has them, or it will have them from the journal when it is wanted.

        The second is so where a stream has left since (a lease was lost, a store failed): its rows say that they are
        kept. To fetch it here would have others evicted that a caller is about to use.
        """
        hot, done = self._sessions.hot, np.zeros(len(one.batch), np.bool_)
        for row, (stream, seq) in enumerate(zip(one.batch.streams, one.seqs.tolist(), strict=True)):
            entry = hot.get(stream)
            if entry is None:
                done[row] = True
            elif seq <= entry.seq:
                done[row] = True
                self._known(one, row, seq)
        return done

    def _read_back(self, one: Slice, streams: Collection[str]) -> None:
        """Have streams that were dropped just now from the store again, with all their rows that are in the journal."""
        self._caught |= self._sessions.bring(self._sessions.away(streams), since=int(one.seqs[0])).caught
        for row, seq in enumerate(one.seqs.tolist()):
            self._known(one, row, seq)

    def _known(self, one: Slice, row: int, seq: int) -> None:
        """A row that was applied when its stream was read back."""
        if (found := self._caught.pop(seq, None)) is not None:
            one.group.status[one.places[row]], one.group.surprise[one.places[row]] = found

    def _check(self, streams: list[str], new: set[str], batch: Batch, status: Sequence[str]) -> None:
        began = time.perf_counter()
        whole = {stream for stream, found in zip(batch.streams, status, strict=True) if found == "replayed"}
        self._sessions.check(streams, whole | new)
        self._spent.check += time.perf_counter() - began
