"""Cold streams become hot again: the snapshot is put in, and the predictor itself replays the rows behind it.

Rows of many streams are replayed together, as they would have been observed; the cut makes no difference to any of
them, so what comes back is, bit for bit, what it would be had it never left. A stream that can not be had is set aside,
and the others come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.service.batch import Batch, Floats
from tsgdn2.service.errors import CorruptError, StoreError
from tsgdn2.service.marks import Marks
from tsgdn2.service.pool import Hot, Pool, log
from tsgdn2.service.receipts import applied
from tsgdn2.service.recovery import take_all
from tsgdn2.service.store import Recovered, Rows

_REPLAYED: Final = 16_384
"""Rows that are replayed together."""
_FEW: Final = 8
"""Cold streams that are asked for one by one; more of them share their passes over the journal."""


class Brought(NamedTuple):
    """What came of bringing streams."""

    caught: dict[int, tuple[str, Floats]]
    """Status and surprise [C] of rows that were asked for, by seq."""
    elsewhere: dict[str, str]
    """Who holds those that this process may not have."""
    rows: int
    """Rows that were replayed."""


class Recall(Pool):
    """The way from the store into the pool."""

    def bring(self, streams: Sequence[str], since: int | None = None, *, told: bool = True) -> Brought:
        """Make those of these cold streams hot that there are; there is room for all.

        A stream that can not be had is set aside. ConfigError: none fits this predictor; StoreError, CorruptError: the
        store fails. None of these is hot then.

        Args:
            streams: Names of streams that are not hot.
            since: Catch what the rows from here on did.
            told: Whether the ledger hears of each.
        """
        if not streams:
            return Brought({}, {}, 0)
        elsewhere = self.store.claim(streams)
        mine = [stream for stream in streams if stream not in elsewhere]
        try:
            caught, back = self._bring(mine, since, told)
        except (StoreError, ConfigError):
            self.drop(mine)
            raise
        except Exception as error:
            # The rows of one of them can not be applied: the others shall not be lost with it.
            self.drop(mine)
            mine = [stream for stream in mine if stream not in self.aside]
            if len(mine) == 1:
                reason = (
                    f"stream: {mine[0]!r} is set aside, a row of it can not be applied ({error}); delete or import it"
                )
                self.set_aside(mine[0], "poisoned", reason, str(error))
                return Brought({}, elsewhere, 0)
            halves = mine[: len(mine) // 2], mine[len(mine) // 2 :]
            found = [self.bring(half, since, told=told) for half in halves]
            return Brought(found[0].caught | found[1].caught, elsewhere, found[0].rows + found[1].rows)
        self.check(list(back), back)
        return Brought(caught, elsewhere, sum(back.values()))

    def _bring(
        self, streams: Sequence[str], since: int | None, told: bool
    ) -> tuple[dict[int, tuple[str, Floats]], dict[str, int]]:
        caught: dict[int, tuple[str, Floats]] = {}
        waiting: list[Rows] = []
        held = 0
        back: dict[str, int] = {}
        now = self.clock()
        for found in self._recovered(streams):
            stream = found.stream
            if found.damage:
                self.set_aside(stream, "corrupt", found.damage, "damage")
                continue
            try:
                marks = Marks() if found.snapshot is None else Marks.from_bytes(found.snapshot.marks)
                if found.snapshot is not None:
                    self.online.put_in(stream, found.snapshot.blob)
            except (CheckpointError, CorruptError) as error:
                self.set_aside(stream, "corrupt", f"stream: {stream!r} is set aside: {error}", str(error))
                continue
            seq = 0 if found.snapshot is None else found.snapshot.seq
            self.hot[stream] = Hot(marks, seq, seq, now)
            back[stream] = 0
            for rows in found.rows:
                waiting.append(rows)
                back[stream] += len(rows.seqs)
                held += len(rows.seqs)
                if held >= _REPLAYED:
                    self._replay(waiting, since, caught)
                    held = 0
        self._replay(waiting, since, caught)
        for stream, count in back.items():
            self.cold.pop(stream, None)
            if told:
                self.note("reloaded", stream, rows=count)
        return caught, back

    def _recovered(self, streams: Sequence[str]) -> Iterator[Recovered]:
        if len(streams) > _FEW:
            yield from self.store.recover(streams)
            return
        for stream in streams:
            if (found := self.store.restore(stream)) is not None:
                yield found

    def _replay(self, waiting: list[Rows], since: int | None, caught: dict[int, tuple[str, Floats]]) -> None:
        """Apply rows behind snapshots, of many streams at once; the cut makes no difference to any."""
        if not waiting:
            return
        batch, now = Batch.concat([rows.batch for rows in waiting]), self.clock()
        found = applied(self.online, batch)
        at, numbers = 0, np.concatenate([rows.seqs for rows in waiting])
        for rows in waiting:
            stream, seqs = rows.batch.streams[0], rows.seqs.tolist()
            entry = self.hot[stream]
            take_all(entry.marks, rows.batch)
            entry.seq = seqs[-1]
            if stream not in self.dirty:
                self.dirty[stream] = now
                self.dirty.move_to_end(stream, last=False)
            for n, seq in enumerate(seqs, at):
                if since is not None and seq >= since:
                    caught[seq] = found.status[n], found.surprise[n]
            at += len(seqs)
        waiting.clear()
        try:
            self.replayed(batch, found, numbers)
        except StoreError:
            raise
        except Exception as error:  # of what is told only: the states are as they should be
            log.exception("memory.not_told", error=str(error))
