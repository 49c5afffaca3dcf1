"""The audit's memory: one slab of arrays for all streams, and how it grows, is saved and is restored.

Its size is fixed by the configuration and the number of slots; nothing in it grows with the length of a stream.

Legend: L sampled layers, S slots, A sampled heads, K key, V value, N tracked writes (ring, reservoir, pinned, in this
order), G cohorts and one more for what the state held when the audit began.

| array | shape | dtype | holds |
|---|---|---|---|
| shadow | [L,S,A,K,M] | state's | columns: N retained keys; V state; (G+1) V cohort states; C, aged C, C_z, K each |
| ints | [L,S,A,6,N] | int64 | INTS: write, birth, evictor, evictor_time, evicted_at, status of each tracked write |
| floats | [L,S,A,7,N] | float64 | FLOATS: energies of each tracked write; energy below `low` or above `high` is news |
| sums | [L,S,A,10] | float64 | SUMS: the ledger so far |
| clock | [L,S,4+pinned] | int64 | writes so far, first and last time, next write for the reservoir, writes to pin |

A field of one row is all that a row's update reads and writes, so no row can depend on its neighbours.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsgdn2.errors import CheckpointError, ConfigError, SchemaError

INTS = ("write", "birth", "evictor", "evictor_time", "evicted_at", "status")
FLOATS = ("key", "value", "decay", "erase", "best", "low", "high")
SUMS = ("energy", "scale", "decay", "bound", "erase", "write", "interaction", "residual", "swell", "broken")
ALIVE, EVICTED = 1, 2
NEVER = int(np.iinfo(np.int64).min)
WAITING = 4
AUDIT_SCHEMA = 1
MOST_WRITES = 2**36
_ARRAYS = ("shadow", "ints", "floats", "sums", "clock")


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What the online audit samples and how much it remembers; memory and time grow with layers x heads."""

    layers: tuple[int, ...] | Literal["last", "all"] = "last"
    """Which layers are audited; indices from 0."""
    heads: tuple[int, ...] | Literal["all"] = (0,)
    """Which heads of each audited layer; indices from 0."""
    ring: int = 16
    """The most recent writes that are tracked one by one; at least 1."""
    reservoir: int = 16
    """Tracked writes drawn uniformly from all that left the ring; 0 for none."""
    pinned: int = 4
    """Places for writes that a caller names; 0 for none."""
    threshold: float = 0.1
    """Retention below which a write counts as evicted; in (0, 1)."""
    hysteresis: float = 0.05
    """How far above the threshold an evicted write must rise before it can be evicted again; threshold + it < 1."""
    ledger: bool = True
    """Book the energy of the state per token; costs about a tenth of the audit."""
    cohorts: tuple[str, ...] = ("complete", "partial", "after_gap")
    """Names of the groups of writes that get a shadow state each; at least one."""
    events: int = 1024
    """Evictions kept until they are drained; older ones are dropped and counted. At least 1."""
    seed: int = 0
    """Seed of the reservoir's hash."""

    def __post_init__(self) -> None:
        bounds = {
            "ring": (self.ring >= 1, "at least 1"),
            "reservoir": (self.reservoir >= 0, "0 or more"),
            "pinned": (self.pinned >= 0, "0 or more"),
            "threshold": (0 < self.threshold < 1, "in (0, 1)"),
            "hysteresis": (0 <= self.hysteresis < 1 - self.threshold, "0 or more, and threshold + hysteresis below 1"),
            "cohorts": (len(self.cohorts) == len(set(self.cohorts)) > 0, "at least one name, without duplicates"),
            "events": (self.events >= 1, "at least 1"),
            "layers": (self.layers in ("last", "all") or isinstance(self.layers, tuple), '"last", "all" or a tuple'),
            "heads": (self.heads == "all" or isinstance(self.heads, tuple), '"all" or a tuple'),
        }
        for name, (good, allowed) in bounds.items():
            if not good:
                raise ConfigError(f"AuditConfig.{name} must be {allowed}, got {getattr(self, name)!r}")

    @property
    def tracked(self) -> int:
        """N, how many writes are followed one by one."""
        return self.ring + self.reservoir + self.pinned

    def sampled_layers(self, layers: int) -> tuple[int, ...]:
        """The audited layers of a model that has `layers`. Raises ConfigError for one that it does not have."""
        if self.layers == "last":
            return (layers - 1,)
        return _indices("layers", self.layers, layers)

    def sampled_heads(self, heads: int) -> tuple[int, ...]:
        """The audited heads of a layer that has `heads`. Raises ConfigError for one that it does not have."""
        return _indices("heads", self.heads, heads)


def _indices(name: str, chosen: tuple[int, ...] | str, size: int) -> tuple[int, ...]:
    picked = tuple(range(size)) if chosen == "all" else tuple(int(i) for i in chosen)
    if not picked or list(picked) != sorted(set(picked)) or picked[0] < 0 or picked[-1] >= size:
        raise ConfigError(f"AuditConfig.{name} must be increasing indices in 0..{size - 1}, got {chosen}")
    return picked


class Slab:
    """Arrays of all slots; private to the audit, changed in place."""

    empty_ints = (-1, 0, -1, 0, NEVER, 0)
    empty_floats = (0.0, 0.0, 0.0, 0.0, 0.0, -math.inf, math.inf)

    def __init__(
        self, config: AuditConfig, *, layers: int, heads: int, key_dim: int, value_dim: int, dtype: torch.dtype
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"dtype must be torch.float32 or torch.float64, got {dtype}; states are never smaller")
        self.layers = config.sampled_layers(layers)
        self.heads = config.sampled_heads(heads)
        self.dtype, self.key_dim, self.value_dim = dtype, key_dim, value_dim
        tracked, states = config.tracked, len(config.cohorts) + 1
        edges = np.cumsum([0, tracked, value_dim * config.ledger, states * value_dim, key_dim, key_dim, key_dim])
        self.writes, self.state, self.cohorts, self.C, self.aged, self.weighted = (
            slice(int(a), int(b)) for a, b in itertools.pairwise(edges)
        )
        self.initial = slice(self.cohorts.stop - value_dim, self.cohorts.stop)
        count, sampled = len(self.layers), len(self.heads)
        self.shadow = np.zeros((count, 0, sampled, key_dim, int(edges[-1])), np.dtype(str(dtype).split(".")[1]))
        self.ints = np.zeros((count, 0, sampled, len(INTS), tracked), np.int64)
        self.floats = np.zeros((count, 0, sampled, len(FLOATS), tracked), np.float64)
        self.sums = np.zeros((count, 0, sampled, len(SUMS)), np.float64)
        self.clock = np.zeros((count, 0, WAITING + config.pinned), np.int64)

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return int(self.clock.shape[1])

    @property
    def waiting(self) -> bool:
        """Whether any slot waits for a write to pin."""
        return self.waits(slice(None))

    def waits(self, slots: NDArray[np.int64] | slice) -> bool:
        """Whether one of these slots waits for a write to pin."""
        return bool((self.clock[:, slots, WAITING:] >= 0).any())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(self._array(name).nbytes for name in _ARRAYS)

    def allocate(self, slots: int) -> None:
        """Grow to at least `slots`, keeping what is there."""
        extra = slots - self.slots
        if extra <= 0:
            return
        for name in _ARRAYS:
            old = self._array(name)
            setattr(self, name, np.concatenate([old, np.zeros((old.shape[0], extra, *old.shape[2:]), old.dtype)], 1))
        self.reset(np.arange(slots - extra, slots))

    def reset(self, slots: NDArray[np.int64]) -> None:
        """Forget everything about some slots."""
        for name in _ARRAYS:
            self._array(name)[:, slots] = 0
        self.ints[:, slots] = np.array(self.empty_ints)[:, None]
        self.floats[:, slots] = np.array(self.empty_floats)[:, None]
        self.clock[:, slots, WAITING:] = -1

    def take(self, other: Slab, rows: NDArray[np.int64], into: NDArray[np.int64]) -> None:
        """Copy rows of another slab of the same shape into rows `into` of this one."""
        for name in _ARRAYS:
            self._array(name)[:, into] = other._array(name)[:, rows]

    def tensors(self, slots: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return copies of the arrays of some slots, in this order, by name."""
        tensors = {name: torch.from_numpy(self._array(name)[:, slots]) for name in _ARRAYS}
        return {"schema": torch.tensor(AUDIT_SCHEMA), **tensors}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Replace all arrays. Raises CheckpointError, and changes nothing, if one is missing or does not fit."""
        for name, value in self._fitting(tensors).items():
            setattr(self, name, value.copy())

    def restore(self, tensors: dict[str, Tensor], slots: NDArray[np.int64]) -> None:
        """Fill some slots from the first that `tensors` holds. Raises CheckpointError as `load` does.

        A file may hold more than those of its streams. No stream has MOST_WRITES; more would be a search without end
        for the reservoir's next write.
        """
        fresh = {name: value[:, : len(slots)] for name, value in self._fitting(tensors).items()}
        clock = fresh["clock"].astype(np.int64, copy=False)
        if clock.shape[1] < len(slots) or ((clock[..., 0] < 0) | (clock[..., 0] > MOST_WRITES)).any():
            raise CheckpointError(
                f"the audit's clock must be of {len(slots)} slots with 0 to {MOST_WRITES} writes, got {clock.shape[1]} "
                "slots; take what state_tensors() or take_out() gave"
            )
        self.allocate(int(slots.max(initial=-1)) + 1)
        for name, value in fresh.items():
            self._array(name)[:, slots] = value

    def _fitting(self, tensors: dict[str, Tensor]) -> dict[str, NDArray[np.generic]]:
        """The arrays among some tensors. Raises CheckpointError if one is missing or does not fit."""
        missing = {"schema", *_ARRAYS} - tensors.keys()
        if missing:
            raise CheckpointError(f"the audit's state lacks {sorted(missing)}; save it again with state_tensors()")
        if int(tensors["schema"]) > AUDIT_SCHEMA:
            raise CheckpointError(
                f"the audit's state has schema {int(tensors['schema'])}, this version reads up to {AUDIT_SCHEMA}; "
                "update tsgdn2"
            )
        fresh = {name: tensors[name].detach().cpu().numpy() for name in _ARRAYS}
        slots = fresh["clock"].shape[1] if fresh["clock"].ndim == 3 else -1
        for name, value in fresh.items():
            old = self._array(name)
            if value.dtype != old.dtype or value.shape != (old.shape[0], slots, *old.shape[2:]):
                raise CheckpointError(
                    f"the audit's {name} must be {old.dtype} [{old.shape[0]}, slots, {old.shape[2:]}], got "
                    f"{value.dtype} {value.shape}; load it with the config and model that saved it"
                )
        return fresh

    def check_slot(self, slot: int) -> None:
        """Raise SchemaError for a slot that was never allocated."""
        if not 0 <= slot < self.slots:
            raise SchemaError(f"slot must be in 0..{self.slots - 1}, got {slot}; call allocate() first")

    def _array(self, name: str) -> NDArray[np.float64]:
        found: NDArray[np.float64] = getattr(self, name)
        return found
