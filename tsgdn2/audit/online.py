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
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsgdn2.audit.alerts import AlertLimits
from tsgdn2.audit.readings import SlotReadings, cohort_residual, slot_readings
from tsgdn2.audit.slab import FLOATS, SUMS, AuditConfig, Slab
from tsgdn2.audit.tracking import Eviction, admit, events_from_tensors, events_to_tensors, fallen, pin, unpin
from tsgdn2.audit.transition import book, bound, right_side
from tsgdn2.errors import SchemaError

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
_DECAY, _ERASE, _BEST = (FLOATS.index(name) for name in ("decay", "erase", "best"))
_EVICTOR, _EVICTOR_TIME = 2, 3
_BROKEN = SUMS.index("broken")


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
        self._shapes = {"before": (heads, key_dim, value_dim), "z": (heads, value_dim), "time": (), "cohort": ()}
        self._shapes |= {name: (heads, key_dim) for name in "keg"}
        self._queue: deque[Eviction] = deque(maxlen=config.events)
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
        at, groups = slots.numpy(), cohort.numpy()
        given = {"before": before, "k": k, "e": e, "z": z, "g": g, "time": time, "cohort": cohort}
        for name, value in given.items():
            if tuple(value.shape) != (len(at), *self._shapes[name]):
                raise SchemaError(f"{name} must be {(len(at), *self._shapes[name])}, got {tuple(value.shape)}")
        if factor is not None and tuple(factor.shape) != tuple(k.shape[:2]):
            raise SchemaError(f"factor must be {tuple(k.shape[:2])} or None, got {tuple(factor.shape)}")
        if at.min() < 0 or at.max() >= self.slots:
            raise SchemaError(f"slots must be in 0..{self.slots - 1}, got {at.tolist()}; call allocate() first")
        if groups.min() < 0 or groups.max() >= len(self.config.cohorts):
            raise SchemaError(f"cohort must index {self.config.cohorts}, got {groups.tolist()}")
        with np.errstate(all="ignore"):  # a NaN is counted and reported as an alert, not warned about
            found = self._advance(layer, at, before, k, e, z, g, factor, time.numpy(), groups)
        self.dropped += max(0, len(self._queue) + len(found) - self.config.events)
        self._queue.extend(found)
        return found

    def _advance(
        self, layer: int, at: Ints, before: Tensor, k: Tensor, e: Tensor, z: Tensor, g: Tensor,
        factor: Tensor | None, time: Ints, cohort: Ints,
    ) -> list[Eviction]:  # fmt: skip
        slab, config, place, n = self._slab, self.config, self._place[layer], len(at)
        A, N = len(slab.heads), config.tracked
        # Neighbouring slots are updated in place; others are copied out and back. The arithmetic is the same.
        run = bool(at[-1] - at[0] == n - 1 and (n == 1 or (at[1:] - at[:-1] == 1).all()))
        rows = slice(int(at[0]), int(at[-1]) + 1) if run else at
        arrays = tuple(array[place] for array in (slab.shadow, slab.ints, slab.floats, slab.sums, slab.clock))
        copies = tuple(array[rows] for array in arrays)
        X, ints, floats, sums = (copy.reshape(n * A, *copy.shape[2:]) for copy in copies[:4])
        clock: Ints = copies[4]
        k_, e_, g_, z_ = (self._rows(t, n * A) for t in (k, e, g, z))
        S = self._rows(before, n * A).reshape(n * A, slab.key_dim, slab.value_dim)
        first_n = clock[:, 0] == 0
        first = np.repeat(first_n, A)
        if first.any():
            X[first, :, slab.initial] = S[first]
            clock[first_n, 1] = clock[first_n, 2] = time[first_n]
        if config.ledger:
            X[:, :, slab.state] = S
        elapsed = np.repeat(time - clock[:, 2], A).astype(X.dtype)
        X[:, :, slab.aged] += elapsed[:, None, None] * X[:, :, slab.C]

        weight, ek = np.ones_like(X[:, :2, : slab.key_dim]), np.stack([e_, k_], 1)
        np.negative(np.expm1(2 * g_), out=weight[:, 1])
        alpha, size, value = np.exp(g_), (k_ * k_).sum(-1, keepdims=True), (z_ * z_).sum(-1)
        energy = np.matmul(weight, np.square(X[:, :, :N]))
        X *= alpha[:, :, None]
        moved = np.matmul(ek, X)
        u, p = moved[:, 0], moved[:, 1]
        erase = (2 * p[:, :N] - size * u[:, :N]) * u[:, :N]
        if config.ledger:
            book(sums, weight, S, u[:, slab.state], p[:, slab.state], z_, size, value, first)
            u[:, slab.state] -= z_
        u[:, slab.cohorts].reshape(n * A, -1, slab.value_dim)[np.arange(n * A), np.repeat(cohort, A)] -= z_
        X -= k_[:, :, None] * u[:, None, :]
        right_side(X, slab, alpha, e_, k_, value)

        kept = energy[:, 0] - energy[:, 1] - erase
        time_, writes = np.repeat(time, A), clock[:, 0]
        floats[:, _DECAY] += energy[:, 1]
        floats[:, _ERASE] += erase
        best = erase > floats[:, _BEST]
        np.copyto(floats[:, _BEST], erase, where=best)
        np.copyto(ints[:, _EVICTOR], np.repeat(writes, A)[:, None], where=best)
        np.copyto(ints[:, _EVICTOR_TIME], time_[:, None], where=best)
        f = None if factor is None else self._rows(factor, n * A)[:, 0]
        if f is not None:
            f = f if bool((f != 1).any()) else None
        if f is not None:
            kept = bound(X, slab, sums, floats, kept, f)
        found = fallen(ints, floats, kept, config, layer, slab.heads, at, time_)
        admit(X, ints, floats, config, writes, clock[:, 3:], k_, size[:, 0], value, time_, f)
        sums[:, _BROKEN] += ~np.isfinite(X[:, :, slab.cohorts].sum((1, 2)))
        clock[:, 0] += 1
        clock[:, 2] = time
        if not run:
            for array, copy in zip(arrays, copies, strict=True):
                array[at] = copy
        return found

    def pin(self, slot: int, write_id: int | Literal["next"]) -> int:
        """Keep following one write of a slot: a tracked one, one still to come, or the next; returns its id.

        Raises StreamError if it is no longer tracked, or if all pinned places are taken.
        """
        self._slab.check_slot(slot)
        return pin(self._slab, self.config, slot, None if write_id == "next" else write_id)

    def unpin(self, slot: int, write_id: int) -> None:
        """Free the place of a pinned write. Raises StreamError if it is not pinned."""
        self._slab.check_slot(slot)
        unpin(self._slab, self.config, slot, write_id)

    def readings(self, slot: int, *, limits: AlertLimits | None = None) -> SlotReadings:
        """Return retention, occupancy, ages, crosstalk, ledger, cohorts and alerts of one slot."""
        self._slab.check_slot(slot)
        return slot_readings(self._slab, self.config, slot, limits or AlertLimits())

    def check(self, slot: int, state: Tensor) -> float:
        """Return |sum of cohorts - state| / |state|, the worst of the pairs; state [len(pairs),K,V], order of `pairs`."""
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

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors, queued evictions too; loading them goes on bit for bit."""
        return {
            **self._slab.state_tensors(), **events_to_tensors(self._queue), "dropped": torch.tensor(self.dropped),
        }  # fmt: skip

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Replace everything by what `state_tensors` gave. Raises CheckpointError, with nothing changed."""
        queued = events_from_tensors(tensors)
        self._slab.load_state_tensors(tensors)
        self._queue = deque(queued, maxlen=self.config.events)
        self.dropped = int(tensors["dropped"])

    def _rows(self, t: Tensor, rows: int) -> Array:
        picked: Array = t.detach().to("cpu", self._slab.dtype).numpy()[:, self._heads].reshape(rows, -1)
        return picked
