"""Takes a stream back to a checkpoint and replays it when a value comes for a closed patch: there is no un-write.

    before a row that opens a new patch, every n patches:  ring <- copy of the stream's row
    after every row:                                        log <- the raw row, merged into its step
    a row for a closed patch:   log <- log + row,  stream's row <- newest checkpoint that fits, replay of the log since

The replay is the stream's own arithmetic on a copy of its row, so what it leaves is, bit for bit, the state of the
stream in which the row came in order, log and audit included; an error in it leaves all as it was. It costs one closing
per patch replayed. Rows beyond the oldest checkpoint are late. Evictions that were drained before a replay can not be
unsaid, those that still wait are replaced by what it finds; pins follow their writes, a reset of the audit is undone.

What came late for a patch that was open at a checkpoint is not in that copy: the log has it, and the replay begins with
the rows of that patch, where values twice change nothing.

N streams, K checkpoints per stream, C channels, F columns of covariates, P patch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from tsgdn2.audit import OnlineAudit
from tsgdn2.checkpoint import part
from tsgdn2.engine import Engine, audit_of
from tsgdn2.forecaster import Forecaster
from tsgdn2.ingest import DUPLICATE, LATE, MISSING, REPLAYED, Ingest, fits, marked
from tsgdn2.late import LatePolicy
from tsgdn2.rows import Rows, rows_from_tensors, rows_to_tensors
from tsgdn2.scale import Bools, Floats
from tsgdn2.slab import COUNTERS, Ints, Slab, fit

_REPLACED, _REPLAYS = COUNTERS.index("replaced"), COUNTERS.index("replays")


@dataclass
class Track:
    """What one stream can be taken back to."""

    log: Rows
    places: list[int] = field(default_factory=list)
    """Places in the ring of the checkpoints, oldest first."""
    touched: int = 0
    """Patches that the log has rows of since the newest checkpoint."""


class Rewind:
    """A route that can go back; rows in order pass through to `ingest`."""

    def __init__(self, ingest: Ingest, forecaster: Forecaster, audit: OnlineAudit | None, policy: LatePolicy) -> None:
        self.ingest, self.slab, self.audit = ingest, ingest.slab, audit
        config = forecaster.config
        self.kept, self.every, self.patch = policy.checkpoints, policy.every, ingest.patch
        most = (self.kept * self.every + 2) * self.patch
        self._empty = Rows(config.channels, config.step_covariates, config.past, most)
        self.tracks: dict[int, Track] = {}
        self.ring, self._copy = Slab(forecaster), Slab(forecaster, 1 + self.kept)
        self._ring_audit, self._copy_audit = (
            audit_of(None if audit is None else audit.config, forecaster) for _ in range(2)
        )
        for slab, beside in ((self.ring, self._ring_audit), (self._copy, self._copy_audit)):
            if beside is not None:
                beside.allocate(slab.capacity * config.lanes)
        self._replayer = Ingest(self._copy, Engine(forecaster, self._copy, self._copy_audit))

    def advance(self, slots: Ints, step: Ints, values: Floats, known: Floats) -> tuple[Floats, Ints]:
        """See Route."""
        logged = np.isfinite(values).any(1) | (known.shape[1] > 0)
        back = logged & ~fits(self.slab, slots, step)
        if not back.any():
            return self._forward(slots, step, values, known, logged)
        surprise, status = np.empty(values.shape), np.empty(len(slots), np.int64)
        on = np.flatnonzero(~back)
        surprise[on], status[on] = self._forward(slots[on], step[on], values[on], known[on], logged[on])
        for i in np.flatnonzero(back).tolist():
            surprise[i], status[i] = self._back(int(slots[i]), int(step[i]), values[i], known[i])
        return surprise, status

    def check(self, names: list[str], slots: Ints, order: Ints, waves: list[Ints], steps: Ints, values: Floats) -> None:
        """See Route; nothing is refused."""

    def clock(self, slots: Ints) -> Ints:
        """See Route."""
        return self.slab.clock[slots]

    def answer(self, slots: Ints, clock: Ints, future: Floats) -> Floats:
        """See Route."""
        return self.ingest.answer(slots, clock, future)

    def flush(self, slots: Ints) -> None:
        """See Route; nothing is held here."""

    def row_nbytes(self) -> int:
        """See Route: the checkpoints, with their rows of the audit, and the log."""
        plain = row = self.slab.row_nbytes()
        if self._copy_audit is not None:
            row += self._copy_audit.nbytes // self._copy_audit.slots * self.slab.config.lanes
        return plain + self.kept * row + self._empty.most_nbytes

    def tensors(self, slots: Ints) -> dict[str, Tensor]:
        """See Route."""
        tracks = [self.tracks.get(slot) for slot in slots.tolist()]
        places, logs = np.full((len(slots), self.kept), -1), [self._empty] * len(slots)
        for n, track in enumerate(tracks):
            if track is not None:
                logs[n] = track.log
                places[n, : len(track.places)] = track.places
        self._reserve(int(slots.max(initial=-1)) + 1)
        log, ring = rows_to_tensors(logs, self._empty), self._ring_rows(slots)
        found = {f"log.{name}": t for name, t in log.items()} | {"places": torch.from_numpy(places)}
        found |= {f"ring.{name}": t for name, t in self.ring.tensors(ring).items()}
        if self._ring_audit is not None:
            found |= {f"audit.{name}": t for name, t in self._ring_audit.tensors(self.ring.lanes(ring)).items()}
            found["audit.dropped"] = torch.tensor(0)  # earlier readers of schema 2 ask for it
        return self.ingest.tensors(slots) | {f"rewind.{name}": t for name, t in found.items()}

    def restore(self, tensors: dict[str, Tensor], slots: Ints) -> None:
        """See Route."""
        mine = part(tensors, "rewind.")
        logs, places = rows_from_tensors(part(mine, "log."), self._empty, len(slots)), self._read_places(mine, slots)
        self.ingest.restore(tensors, slots)
        self._reserve(int(slots.max(initial=-1)) + 1)
        ring = self._ring_rows(slots)
        self.ring.restore(part(mine, "ring."), ring)
        if self._ring_audit is not None:
            self._ring_audit.restore(part(mine, "audit."), self.ring.lanes(ring))
        for slot, log, held in zip(slots.tolist(), logs, places, strict=True):
            track = self.tracks[slot] = Track(log, held)
            if track.places:
                newest = marked(self.ring, self._rows(slot, track.places[-1:]))[0]
                track.touched = len({p for p in (log.all().steps // self.patch).tolist() if p > newest})

    def clear(self, slots: Ints) -> None:
        """See Route; checkpoints and log too."""
        self.ingest.clear(slots)
        ring = self._ring_rows(slots)
        ring = ring[ring < self.ring.capacity]
        self.ring.clear(ring)
        if self._ring_audit is not None:
            self._ring_audit.reset(self.ring.lanes(ring).tolist())
        for slot in slots.tolist():
            self.tracks.pop(slot, None)

    def _read_places(self, tensors: dict[str, Tensor], slots: Ints) -> list[list[int]]:
        """Places of the checkpoints of each stream; ValueError for one that the ring has not, or has given twice."""
        fit("places", tensors, torch.zeros(1, self.kept, dtype=torch.int64), len(slots))
        found = [[place for place in row if place >= 0] for row in tensors["places"].tolist()]
        if any(len(set(row)) < len(row) or max(row, default=0) >= self.kept for row in found):
            raise ValueError(f"places must differ and be below {self.kept}, got {found[:9]}")
        return found

    def _forward(self, slots: Ints, step: Ints, values: Floats, known: Floats, logged: Bools) -> tuple[Floats, Ints]:
        """Rows in order, or of the open patch: checkpoint where one is due, on to the slab, into the log."""
        chosen = np.flatnonzero(logged)
        tracks = [self._track(slot) for slot in slots[chosen].tolist()]
        begins = (step // self.patch > marked(self.slab, slots))[chosen].tolist()
        due = [i for i, t in enumerate(tracks) if begins[i] and (not t.places or t.touched >= self.every)]
        if due:
            self._checkpoint(slots[chosen[due]], [tracks[i] for i in due])
        found = self.ingest.advance(slots, step, values, known)
        for i, begun, track in zip(chosen.tolist(), begins, tracks, strict=True):
            track.touched += begun
            track.log.put(int(step[i]), values[i], known[i])
        return found

    def _back(self, slot: int, step: int, values: Floats, known: Floats) -> tuple[Floats, int]:
        """One row for what is closed already: surprise [C] and status."""
        seen, track = np.isfinite(values), self._track(slot)
        places = self._rows(slot, track.places)
        reach = np.flatnonzero(fits(self.ring, places, np.full(len(places), step)))
        if not len(reach):
            return self._beyond(slot, step, values, known)
        log, old = track.log.copy(), track.log.all()
        same, replaced = log.put(step, values, known)
        if same and np.array_equal(log.all().known, old.known):  # their shapes differ where the step is new
            return np.full(values.shape, np.nan), DUPLICATE if seen.any() else MISSING
        surprise = self._replay(slot, int(reach[-1]), log, step, values)
        self.slab.counters[slot, _REPLACED] += replaced
        return surprise, REPLAYED if seen.any() else MISSING

    def _beyond(self, slot: int, step: int, values: Floats, known: Floats) -> tuple[Floats, int]:
        """One row before every checkpoint; covariates alone are left out like a value of a closed patch."""
        nothing = np.full(values.shape, np.nan)
        if not np.isfinite(values).any():
            return nothing, MISSING
        if step // self.patch < self.slab.last[slot] // self.patch:
            return nothing, LATE
        # A gap of rows without values is longer than the reach, so no checkpoint is older than this value in it. Its
        # patch is open to it, but no checkpoint knows it: they begin anew.
        surprise, status = self.ingest.advance(np.array([slot]), np.array([step]), values[None], known[None])
        track = self._track(slot)
        track.log.put(step, values, known)
        track.places = []
        self._checkpoint(np.array([slot]), [track])
        return surprise[0], int(status[0])

    def _replay(self, slot: int, back: int, log: Rows, step: int, values: Floats) -> Floats:
        """Replay a log, new by one row, from checkpoint number `back`; the row's surprise [C] as it was at its time."""
        track, copy, lanes = self._track(slot), self._copy, self.slab.config.lanes
        origin, own = self._rows(slot, track.places[back : back + 1]), np.zeros(1, np.int64)
        self._take(copy, self._copy_audit, self.ring, self._ring_audit, origin, own)
        since = copy.token_clock[0].tolist()
        self._carry_pins(slot, step, values)
        patch, opened = int(marked(copy, own)[0]), int(copy.last[0] // self.patch)
        made = touched = 0
        surprise = np.full(values.shape, np.nan)
        steps, cells, covariates = log.all()
        for row in np.flatnonzero((steps // self.patch >= patch) | (steps // self.patch == opened)).tolist():
            at = steps[row : row + 1]
            if at[0] // self.patch > patch:
                if touched >= self.every:
                    keep = np.array([1 + made % self.kept])
                    self._take(copy, self._copy_audit, copy, self._copy_audit, own, keep)
                    made, touched = made + 1, 0
                patch, touched = int(at[0] // self.patch), touched + 1
            bits, _ = self._replayer.advance(own, at, cells[row : row + 1], covariates[row : row + 1])
            if at[0] == step:
                surprise = np.where(np.isfinite(values), bits[0], np.nan)
        # Nothing of the stream has changed so far; from here on nothing is computed.
        copy.clock[0] = max(copy.clock[0], self.slab.clock[slot])
        copy.counters[0] = self.slab.counters[slot]
        copy.counters[0, _REPLAYS] += 1
        self._take(self.slab, self.audit, copy, self._copy_audit, own, np.array([slot]))
        track.log, track.places, track.touched = log, track.places[: back + 1], touched
        for turn in range(made):
            place = self._next_place(track)
            if turn >= made - self.kept:
                keep, into = np.array([1 + turn % self.kept]), self._rows(slot, [place])
                self._take(self.ring, self._ring_audit, copy, self._copy_audit, keep, into)
        self._trim(slot, track)
        if self.audit is not None and self._copy_audit is not None:
            events = [replace(event, slot=event.slot + slot * lanes) for event in self._copy_audit.drain()]
            self.audit.retell(dict(enumerate(since, start=slot * lanes)), events)
            self.audit.dropped += self._copy_audit.dropped
        return surprise

    def _carry_pins(self, slot: int, step: int, values: Floats) -> None:
        """Keep following the writes pinned now; a commit that the row adds shifts the ids of those after it."""
        if self.audit is None or self._copy_audit is None:
            return
        self._copy_audit.drain()  # what an error left behind
        self._copy_audit.dropped = 0
        lanes = self.slab.config.lanes
        steps, cells, _ = self._track(slot).log.all()
        had = np.isfinite(cells[steps // self.patch == step // self.patch]).any(0).reshape(lanes, -1).any(1)
        adds = np.isfinite(values).reshape(lanes, -1).any(1) & ~had
        end = (step // self.patch + 1) * self.patch - 1
        for lane, shift in enumerate(adds.tolist()):
            self._copy_audit.follow_pins(self.audit, slot * lanes + lane, lane, after=end, shift=int(shift))

    def _checkpoint(self, slots: Ints, tracks: list[Track]) -> None:
        """Copy the rows of some streams into their rings."""
        self._reserve(int(slots.max()) + 1)
        into = np.array(
            [slot * self.kept + self._next_place(t) for slot, t in zip(slots.tolist(), tracks, strict=True)]
        )
        self._take(self.ring, self._ring_audit, self.slab, self.audit, slots, into)
        for slot, track in zip(slots.tolist(), tracks, strict=True):
            track.touched = 0
            self._trim(slot, track)

    def _next_place(self, track: Track) -> int:
        """A place for one checkpoint more; the oldest goes when all are taken."""
        place = (track.places[-1] + 1) % self.kept if track.places else 0
        track.places = [*track.places[-self.kept + 1 :], place] if self.kept > 1 else [place]
        return place

    def _trim(self, slot: int, track: Track) -> None:
        """Leave the log only what a replay from the oldest checkpoint can need."""
        oldest = self._rows(slot, track.places[:1])
        patches = track.log.all().steps // self.patch
        needed = (patches >= marked(self.ring, oldest)) | (patches == self.ring.last[oldest] // self.patch)
        if not needed.all():
            track.log.keep(needed)

    def _take(
        self, slab: Slab, audit: OnlineAudit | None, other: Slab, others: OnlineAudit | None, rows: Ints, into: Ints
    ) -> None:
        """Copy rows of a slab and of the audit that goes with it."""
        slab.take(other, rows, into)
        if audit is not None and others is not None:
            audit.take(others, slab.lanes(rows), slab.lanes(into))

    def _ring_rows(self, slots: Ints) -> Ints:
        """Rows of the ring of these streams, [N * K]."""
        return np.asarray((slots[:, None] * self.kept + np.arange(self.kept)).reshape(-1), np.int64)

    def _rows(self, slot: int, places: list[int]) -> Ints:
        return slot * self.kept + np.array(places, np.int64)

    def _track(self, slot: int) -> Track:
        if slot not in self.tracks:
            self.tracks[slot] = Track(self._empty.copy())
        return self.tracks[slot]

    def _reserve(self, streams: int) -> None:
        if streams * self.kept > self.ring.capacity:
            self.ring.reserve(max(streams, self.slab.capacity) * self.kept)
            if self._ring_audit is not None:
                self._ring_audit.allocate(self.ring.capacity * self.slab.config.lanes)
