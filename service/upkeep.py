"""Keeps the journal short while rows come: snapshots of what has changed, a few at a time, and then a pruning.

    sweep     every journal_rows / 2 rows: all streams that are dirty then, paced by the rows that come
    idle      what has been dirty for longer than snapshot_after_s
    prune     after a sweep: the rows up to the older of two snapshots go

So between two groups there are some snapshots in one transaction, and never a pause for all of them. A store that
fails is asked again after some seconds: its rows are in the journal, and nothing depends on a snapshot.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import Final

from tsgdn2.errors import TsgdnError
from tsgdn2.service.pool import SOME, log
from tsgdn2.service.sessions import Sessions

STEP: Final = 8
"""Snapshots of one transaction between two groups."""
_MOST: Final = 32
"""Such transactions between two groups at most."""
_PAUSE: Final = 5.0
"""Seconds that a store is left alone after it has failed."""


class Upkeep:
    """What the worker does beside its groups."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions, self._limits = sessions, sessions.limits
        self._rows = 0  # since the last sweep began
        self._left, self._owed, self._pace = 0, 0.0, 0.0
        self._pruning = False
        self._again = self._renewed = sessions.clock()
        self.failed = ""
        """What the store said when it failed last; "" since it has done something."""

    @property
    def rows(self) -> int:
        """Rows since the last sweep began: about half of what the journal holds."""
        return self._rows

    def tend(self, rows: int, *, idle: bool) -> bool:
        """Do a part of what is due after so many new rows; whether there is more at once."""
        self._rows += rows
        self._owed += rows * self._pace
        now = self._sessions.clock()
        try:
            self._renew(now)
            if now < self._again:
                return False
            more = self._sessions.expire()
            more |= self._some(now, idle)
            if idle:
                self._sessions.flush()
        except TsgdnError as error:
            self.fail(error)
            return False
        self.failed = ""
        return more

    def fail(self, error: TsgdnError) -> None:
        """The store has failed: leave it alone for a while, and then see whether it is still ours."""
        now = self._sessions.clock()
        self._again, self._renewed = now + _PAUSE, now - self._limits.renew_s
        if str(error) != self.failed:
            log.error("memory.store_failed", error=str(error), pause_s=_PAUSE)
        self.failed = str(error)

    def finish(self) -> None:
        """Snapshot all that is dirty, and prune: the end of an orderly service."""
        sessions = self._sessions
        while sessions.dirty:
            sessions.keep(list(islice(sessions.dirty, SOME)))
        sessions.flush()
        sessions.store.prune()

    def _some(self, now: float, idle: bool) -> bool:
        """Snapshots that are due."""
        sessions, half = self._sessions, max(self._limits.journal_rows // 2, 1)
        if self._rows >= half and not self._left:
            self._rows, self._owed, self._left = 0, 0.0, len(sessions.dirty)
            self._pace = self._left / half
            self._pruning = True
        steps = int(self._owed) // STEP
        if idle and self._left:
            steps = max(steps, 1)
        for _ in range(min(steps, _MOST)):
            chosen = list(islice(sessions.dirty, min(STEP, self._left)))
            if not chosen:
                self._left = 0
                break
            sessions.keep(chosen)
            self._owed = max(self._owed - STEP, 0.0)
            self._left -= len(chosen)
        if self._pruning and not self._left:
            self._pace, self._owed, self._pruning = 0.0, 0.0, False
            found = sessions.store.prune()
            log.info("memory.pruned", removed=found.removed, held=found.held)
        if idle and not self._left:
            old = [
                stream
                for stream, since in islice(sessions.dirty.items(), STEP)
                if since + self._limits.snapshot_after_s <= now
            ]
            if old:
                sessions.keep(old)
                return True
        return idle and self._left > 0

    def _renew(self, now: float) -> None:
        """Keep the lease; where it is lost, open the store anew and forget what was hot: others may have gone on."""
        if now - self._renewed < self._limits.renew_s:
            return
        store, sessions = self._sessions.store, self._sessions
        self._renewed = now
        try:
            store.renew()
        except TsgdnError as error:
            log.error("memory.lease_lost", error=str(error))
            sessions.drop(list(sessions.hot))
            with suppress(TsgdnError):  # it can not give back what it has lost
                store.close()
            store.open(sessions.model)
            self._again = now
            log.info("memory.store_reopened")
