"""The audit that runs beside the predictor: bounded memory, one vectorised update per committed token and layer.

It follows sampled heads and a bounded set of writes; for every write of a window use the offline functions. Each row
of the slab holds vectors that move under the state's own transition, side by side in one matrix X [K,M] (slab.py):

    X <- P X,  P = (I - k e^T) Diag(alpha)       with u = e^T Diag(alpha) X:   X <- Diag(alpha) X - k u
    cohort and predicted state columns: + k z^T   C <- P C P^T + k k^T   aged <- P (aged + dt C) P^T
    C_z <- P C_z P^T + |z|^2 k k^T                bound factor f: X <- f X, C.. <- f^2 C.., booked as decay

numpy, not torch: at these sizes an update is a few dozen small operations, and numpy's cost per operation is lower.
No product mixes rows and none depends on their number, so a row's bits depend neither on its slot nor its neighbours.

Legend: n rows, A sampled heads, B = n A, H heads, K key, V value, M columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsgdn2.audit.alerts import AlertLimits
from tsgdn2.audit.readings import SlotReadings, cohort_residual, slot_readings
from tsgdn2.audit.slab import FLOATS, SUMS, WAITING, AuditConfig, Slab
from tsgdn2.audit.tracking import Eviction, admit, events_from_tensors, events_to_tensors, fallen, pin, unpin
from tsgdn2.audit.transition import Workspace, add_age, book, bound, left_side, right_side
from tsgdn2.errors import CheckpointError, SchemaError

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
_DECAY, _ERASE, _BEST = (FLOATS.index(name) for name in ("decay", "erase", "best"))
_EVICTOR, _EVICTOR_TIME = 2, 3
_BROKEN, _SCALE, _ENERGY = (SUMS.index(name) for name in ("broken", "scale", "energy"))


class OnlineAudit:
    """Ledger, occupancy, cohorts and tracked writes of many streams; see the module's docstring.

    It costs one slab of memory per slot (`nbytes`) and no more, however long a stream is. Rows given to one update
    must be distinct slots. Padding tokens must not be given: every token counts as a write.
    """

    def __init__(
        self, config: AuditConfig, *, layers: int, heads: int, key_dim: int, value_dim: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.config = config
        self._slab = Slab(config, layers=layers, heads=heads, key_dim=key_dim, value_dim=value_dim, dtype=dtype)
        self._place = {layer: i for i, layer in enumerate(self._slab.layers)}
        picked = self._slab.heads
        together = picked == tuple(range(picked[0], picked[-1] + 1))
        self._heads: slice | list[int] = slice(picked[0], picked[-1] + 1) if together else list(picked)
        self._shapes = {"before": (heads, key_dim, value_dim), "z": (heads, value_dim), "time": ()}
        self._shapes |= {name: (heads, key_dim) for name in "keg"}
        self._queue: deque[Eviction] = deque(maxlen=config.events)
        self._work: Workspace | None = None
        self._waiting = False
        self.dropped = 0
        """Evictions that were never drained, because the queue was full."""

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The sampled (layer, head) pairs, in the order of every per-pair result."""
        return tuple((layer, head) for layer in self._slab.layers for head in self._slab.heads)

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return self._slab.slots

    @property
    def nbytes(self) -> int:
        """Bytes of the slab; does not grow with the streams."""
        return self._slab.nbytes

    def samples(self, layer: int) -> bool:
        """Whether `update` wants this layer."""
        return layer in self._place

    def allocate(self, slots: int) -> None:
        """Have at least `slots` slots; what is there stays."""
        self._slab.allocate(slots)

    def reset(self, slots: Tensor | Sequence[int]) -> None:
        """Forget everything about these slots, as when a stream begins anew. Raises SchemaError for unknown ones."""
        chosen = np.atleast_1d(np.asarray(slots, np.int64))
        for slot in chosen.tolist():
            self._slab.check_slot(slot)
        self._slab.reset(chosen)

    def update(
        self, slots: Tensor, layer: int, before: Tensor, k: Tensor, e: Tensor, z: Tensor, g: Tensor,
        factor: Tensor | None, time: Tensor, cohort: Tensor,
    ) -> list[Eviction]:  # fmt: skip
        """Book one committed token per row of one layer; returns the evictions it caused (they are queued, too).

        slots [n] int64, distinct; before [n,H,K,V], the state that the token met; k, e, g [n,H,K]; z [n,H,V]; factor
        [n,H] the norm bound applied after the write, or None; time [n] int64, not decreasing per slot; cohort [n]
        int64, an index of config.cohorts. A layer that is not sampled is skipped. Raises SchemaError, with nothing
        changed, for shapes, slots or cohorts that do not fit.
        """
        if layer not in self._place or not len(slots):
            return []
        at, groups, n = slots.tolist(), cohort.tolist(), len(slots)
        given = (("before", before), ("k", k), ("e", e), ("g", g), ("z", z), ("time", time))
        for name, value in given:
            if value.shape != (n, *self._shapes[name]):
                raise SchemaError(f"{name} must be {(n, *self._shapes[name])}, got {tuple(value.shape)}")
        if factor is not None and factor.shape != k.shape[:2]:
            raise SchemaError(f"factor must be {tuple(k.shape[:2])} or None, got {tuple(factor.shape)}")
        if min(at) < 0 or max(at) >= self.slots:
            raise SchemaError(f"slots must be in 0..{self.slots - 1}, got {at}; call allocate() first")
        if len(groups) != n or min(groups) < 0 or max(groups) >= len(self.config.cohorts):
            raise SchemaError(f"cohort must hold {n} indices of {self.config.cohorts}, got {groups}")
        with np.errstate(all="ignore"):  # a NaN is counted and reported as an alert, not warned about
            found = self._advance(layer, at, before, k, e, z, g, factor, time.numpy(), cohort.numpy())
        self.dropped += max(0, len(self._queue) + len(found) - self.config.events)
        self._queue.extend(found)
        return found

    def _advance(
        self, layer: int, at: list[int], before: Tensor, k: Tensor, e: Tensor, z: Tensor, g: Tensor,
        factor: Tensor | None, time: Ints, cohort: Ints,
    ) -> list[Eviction]:  # fmt: skip
        slab, config, place, n = self._slab, self.config, self._place[layer], len(at)
        A, N, V = len(slab.heads), config.tracked, slab.value_dim
        B = n * A
        # Neighbouring slots are updated in place; others are copied out and back. The arithmetic is the same.
        run = at == list(range(at[0], at[0] + n))
        rows = slice(at[0], at[0] + n) if run else at
        arrays = (slab.shadow[place], slab.ints[place], slab.floats[place], slab.sums[place], slab.clock[place])
        copies = tuple(array[rows] for array in arrays)
        X, ints, floats, sums = (copy.reshape(B, *copy.shape[2:]) for copy in copies[:4])
        clock: Ints = copies[4]
        if self._work is None or len(self._work.row) < B:
            self._work = Workspace(B, slab)
        work = self._work.first(B)
        k_, e_, g_, z_ = (self._rows(t).reshape(B, -1) for t in (k, e, g, z))
        S = self._rows(before).reshape(B, slab.key_dim, V)
        first_n = clock[:, 0] == 0
        if first_n.any():
            first = first_n.repeat(A)
            X[first, :, slab.initial] = S[first]
            sums[first, _SCALE] = np.inf  # there is no prediction to compare with
            clock[first_n, 1] = clock[first_n, 2] = time[first_n]
        if config.ledger:
            X[:, :, slab.state] = S
        add_age(X, slab, (time - clock[:, 2]).repeat(A).astype(X.dtype), work)

        weight, pair, end = work.weight, work.pair, slab.state.stop
        pair[:, 0], pair[:, 1] = e_, k_
        np.negative(np.expm1(2 * g_), out=weight[:, 1])
        alpha, size, value = np.exp(g_), (k_ * k_).sum(-1, keepdims=True), (z_ * z_).sum(-1)
        energies = np.matmul(weight, np.square(X[:, :, :end]))
        energy, decay = energies[:, 0], energies[:, 1]
        torch.from_numpy(X).mul_(torch.from_numpy(alpha)[:, :, None])
        moved = np.matmul(pair, X)
        u, p = moved[:, 0], moved[:, 1]
        erase = (2 * p[:, :end] - size * u[:, :end]) * u[:, :end]
        if config.ledger:
            book(sums, energy[:, N:], decay[:, N:], erase[:, N:], u[:, N:end], p[:, N:end], z_, size, value)
            u[:, N:end] -= z_
        u[:, slab.cohorts].reshape(B, -1, V)[work.row, cohort.repeat(A)] -= z_
        left_side(X, k_, u, work)
        right_side(X, slab, alpha, e_, k_, value, work)

        energy, decay, erase = energy[:, :N], decay[:, :N], erase[:, :N]
        kept, time_ = energy - decay - erase, time.repeat(A)
        floats[:, _DECAY] += decay
        floats[:, _ERASE] += erase
        best = erase > floats[:, _BEST]
        if best.any():
            np.copyto(floats[:, _BEST], erase, where=best)
            np.copyto(ints[:, _EVICTOR], clock[:, 0].repeat(A)[:, None], where=best)
            np.copyto(ints[:, _EVICTOR_TIME], time_[:, None], where=best)
        f = None if factor is None else self._rows(factor).reshape(B)
        if f is not None and not (f != 1).any():
            f = None
        if f is not None:
            kept = bound(X, slab, sums, floats, kept, f)
        found = fallen(ints, floats, kept, config, layer, slab.heads, at, time_)
        admit(X, ints, floats, config, clock, k_, size[:, 0], value, time_, f, self._waiting, work)
        sums[:, _BROKEN] += ~np.isfinite(sums[:, _ENERGY] if config.ledger else moved.sum((1, 2)))
        clock[:, 0] += 1
        clock[:, 2] = time
        if not run:
            for array, copy in zip(arrays, copies, strict=True):
                array[at] = copy
        if self._waiting:
            self._waiting = slab.waiting
        return found

    def pin(self, slot: int, write_id: int | Literal["next"]) -> int:
        """Keep following one write of a slot: a tracked one, one still to come, or the next; returns its id.

        Raises StreamError if it is no longer tracked, or if all pinned places are taken.
        """
        self._slab.check_slot(slot)
        write = pin(self._slab, self.config, slot, None if write_id == "next" else write_id)
        self._waiting = self._slab.waiting
        return write

    def unpin(self, slot: int, write_id: int) -> None:
        """Free the place of a pinned write. Raises StreamError if it is not pinned."""
        self._slab.check_slot(slot)
        unpin(self._slab, self.config, slot, write_id)

    def take(self, other: OnlineAudit, rows: Ints, into: Ints) -> None:
        """Copy slots of another audit of the same configuration into slots `into` of this one; the queue stays."""
        self._slab.take(other._slab, rows, into)
        self._waiting = self._waiting or self._slab.waits(into)

    def follow_pins(self, other: OnlineAudit, theirs: int, slot: int, *, after: int, shift: int) -> None:
        """Pin in `slot` what `other`, which saw more, pins in its slot; ids of writes born after `after` go up."""
        wanted, mine = other._pinned(theirs), self._pinned(slot)
        for write in mine.keys() - wanted.keys():
            unpin(self._slab, self.config, slot, write)
        for write, birth in wanted.items():
            if write not in mine:
                pin(self._slab, self.config, slot, write + shift * (birth > after))
        self._waiting = self._slab.waiting

    def retell(self, since: Mapping[int, int], events: Sequence[Eviction]) -> None:
        """Queue `events` in place of what is queued about the slots in `since` and happened after the time there."""
        kept = [event for event in self._queue if event.time <= since.get(event.slot, event.time)]
        self.dropped += max(0, len(kept) + len(events) - self.config.events)
        self._queue = deque([*kept, *events], maxlen=self.config.events)

    def readings(self, slot: int, *, limits: AlertLimits | None = None) -> SlotReadings:
        """Return retention, occupancy, ages, crosstalk, ledger, cohorts and alerts of one slot."""
        self._slab.check_slot(slot)
        return slot_readings(self._slab, self.config, slot, limits or AlertLimits())

    def check(self, slot: int, state: Tensor) -> float:
        """Return |sum of cohorts - state| / |state|, the worst pair's; state [len(pairs),K,V], in `pairs` order."""
        self._slab.check_slot(slot)
        wanted = (len(self.pairs), self._slab.key_dim, self._slab.value_dim)
        if tuple(state.shape) != wanted:
            raise SchemaError(f"state must be {wanted}, the sampled pairs {self.pairs}, got {tuple(state.shape)}")
        return cohort_residual(self._slab, slot, state.detach().double().cpu().numpy())

    def drain(self) -> list[Eviction]:
        """Hand out the queued evictions, oldest first, and forget them."""
        events = list(self._queue)
        self._queue.clear()
        return events

    def queued(self, slots: Iterable[int] | None = None) -> list[Eviction]:
        """The queued evictions, of all slots or of some, oldest first; they stay in the queue."""
        chosen = None if slots is None else set(slots)
        return [event for event in self._queue if chosen is None or event.slot in chosen]

    def enqueue(self, events: Iterable[Eviction], instead: Iterable[int] = ()) -> None:
        """Queue evictions, in place of all that is queued about the slots `instead`."""
        gone, more = set(instead), list(events)
        if gone and self._queue:
            self._queue = deque((e for e in self._queue if e.slot not in gone), maxlen=self.config.events)
        self.dropped += max(0, len(self._queue) + len(more) - self.config.events)
        self._queue.extend(more)

    def tensors(self, slots: Ints) -> dict[str, Tensor]:
        """Return some slots as tensors, their queued evictions too; slot n of these tensors is slots[n]."""
        place = {slot: n for n, slot in enumerate(slots.tolist())}
        events = [replace(event, slot=place[event.slot]) for event in self._queue if event.slot in place]
        return {**self._slab.tensors(slots), **events_to_tensors(events)}

    def restore(self, tensors: dict[str, Tensor], slots: Ints) -> list[Eviction]:
        """Fill slots from what `tensors` gave. Returns the evictions that were queued, for `enqueue`.

        Raises CheckpointError, with nothing changed.
        """
        found = events_from_tensors(tensors)
        pairs = set(self.pairs)
        if any(not 0 <= event.slot < len(slots) or (event.layer, event.head) not in pairs for event in found):
            raise CheckpointError("event_ints: an eviction of a slot, layer or head that is not there; save it again")
        self._slab.restore(tensors, slots)
        self._waiting = self._waiting or self._slab.waits(slots)
        return [replace(event, slot=int(slots[event.slot])) for event in found]

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors, queued evictions too; loading them goes on bit for bit."""
        return {**self.tensors(np.arange(self.slots)), "dropped": torch.tensor(self.dropped)}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Replace everything by what `state_tensors` gave. Raises CheckpointError, with nothing changed."""
        queued = events_from_tensors(tensors)
        self._slab.load(tensors)
        self._waiting = self._slab.waiting
        self._queue = deque(queued, maxlen=self.config.events)
        self.dropped = int(tensors["dropped"])

    def _pinned(self, slot: int) -> dict[int, int]:
        """Ids of the pinned writes of a slot and when each was born; those still to come are born last of all."""
        pins, ints, waiting = (
            self.config.ring + self.config.reservoir,
            self._slab.ints,
            self._slab.clock[0, slot, WAITING:],
        )
        held = dict(zip(*ints[0, slot, 0, :2, pins:].tolist(), strict=True))
        return {write: birth for write, birth in held.items() if write >= 0} | {
            write: np.iinfo(np.int64).max for write in waiting.tolist() if write >= 0
        }

    def _rows(self, t: Tensor) -> Array:
        if t.dtype != self._slab.dtype or t.requires_grad or not t.is_cpu:
            t = t.detach().to("cpu", self._slab.dtype)
        picked: Array = t.numpy()[:, self._heads]
        return picked
