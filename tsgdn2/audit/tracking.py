"""Tracked writes: who gets a place, when one has fallen, and what is said about it.

Bounded: a ring of the latest writes, a uniform reservoir of the older ones, and places that a caller pins; a write that
got no place is known only through the aggregates. Everything works on the rows of one update, B = rows x heads.

    ring place = id mod ring            a write leaves the ring when its place is taken, `ring` writes later
    reservoir  : leaver j sits at j while j < size, else at u = hash(seed, j) mod (j + 1) if u < size   (algorithm R)
    fallen     : |r|^2 < threshold^2 |k|^2 while alive;  back: |r|^2 > (threshold + hysteresis)^2 |k|^2 while fallen
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsgdn2.audit.eviction import CAUSES
from tsgdn2.audit.slab import ALIVE, EVICTED, FLOATS, INTS, NEVER, WAITING, AuditConfig, Slab
from tsgdn2.audit.transition import Workspace
from tsgdn2.errors import CheckpointError, StreamError

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
PLACES = ("ring", "reservoir", "pinned")
NEXT = WAITING - 1
WRITE, BIRTH, EVICTOR, EVICTOR_TIME, EVICTED_AT, STATUS = range(len(INTS))
KEY, VALUE, DECAY, ERASE, BEST, LOW, HIGH = range(len(FLOATS))


@dataclass(frozen=True)
class Eviction:
    """A tracked write fell below the threshold. Times in the predictor's token time; energies in units of |k|^2.

    cause is "decay" or "erase"; decay and erase are the signed energies booked since the write; evictor is the write
    whose erase took most of it (-1: none), when, and how much. tracked: "ring", "reservoir" or "pinned".
    """

    slot: int
    layer: int
    head: int
    write: int
    birth: int
    time: int
    cause: str
    tracked: str
    evictor: int
    evictor_time: int
    evictor_energy: float
    retention: float
    decay: float
    erase: float


def fallen(
    ints: Ints, floats: Array, kept: Array, config: AuditConfig, layer: int, heads: tuple[int, ...], slots: list[int],
    time: Ints,
) -> list[Eviction]:  # fmt: skip
    """Mark the writes that fell or came back at this token, and describe those that fell. Arrays as in slab.py, [B,..].

    A pinned write that also has a place in the ring or the reservoir is reported once, as pinned.
    """
    low, back = kept < floats[:, LOW], kept > floats[:, HIGH]
    if not (low.any() or back.any()):
        return []
    status, key = ints[:, STATUS], floats[:, KEY]
    status[low], status[back] = EVICTED, ALIVE
    floats[:, LOW][low], floats[:, HIGH][back] = -np.inf, np.inf
    np.copyto(floats[:, HIGH], (config.threshold + config.hysteresis) ** 2 * key, where=low)
    np.copyto(floats[:, LOW], config.threshold**2 * key, where=back)
    np.copyto(ints[:, EVICTED_AT], time[:, None], where=low & (ints[:, EVICTED_AT] == NEVER))
    found, pins = [], config.ring + config.reservoir
    for b, column in zip(*(index.tolist() for index in low.nonzero()), strict=True):
        write, birth, evictor, evictor_time = (int(ints[b, field, column]) for field in range(4))
        if column < pins and write in ints[b, WRITE, pins:]:
            continue
        size = float(key[b, column])
        decay, erase, best = (float(floats[b, field, column]) / size for field in (DECAY, ERASE, BEST))
        found.append(
            Eviction(
                slot=int(slots[b // len(heads)]), layer=layer, head=heads[b % len(heads)], write=write, birth=birth,
                time=int(time[b]), cause=CAUSES[int(erase > decay)],
                tracked=PLACES[int(column >= config.ring) + int(column >= pins)],
                evictor=evictor, evictor_time=evictor_time, evictor_energy=best,
                retention=float(max(kept[b, column], 0.0) / size) ** 0.5, decay=decay, erase=erase,
            )
        )  # fmt: skip
    return found


def admit(
    X: Array, ints: Ints, floats: Array, config: AuditConfig, clock: Ints, key: Array, key_energy: Array,
    value_energy: Array, time: Ints, factor: Array | None, waiting: bool, work: Workspace,
) -> None:  # fmt: skip
    """Give the new write of every row its place in the ring, the write that had it a chance in the reservoir.

    clock [n,..] as in slab.py, the rest [B,..], B = n heads; waiting: whether any slot waits for a write to pin.
    """
    writes = clock[:, 0]
    heads, row = len(X) // len(writes), work.row
    place = np.repeat(writes % config.ring, heads) if heads > 1 else writes % config.ring
    if config.reservoir:
        leaver = writes - config.ring
        moves = leaver == clock[:, NEXT]
        if moves.any():
            n = moves.nonzero()[0]
            b = (n[:, None] * heads + np.arange(heads)).ravel()
            seats = np.repeat(seat(config.seed, config.reservoir, leaver[n]), heads)
            _copy(X, ints, floats, b, place[b], config.ring + seats)
            clock[n, NEXT] = [next_move(config.seed, config.reservoir, gone) for gone in leaver[n].tolist()]
    born_i, born_f = work.born_ints, work.born_floats
    born_i[:, WRITE], born_i[:, BIRTH] = np.repeat(writes, heads), time
    born_i[:, STATUS] = ALIVE
    born_f[:, KEY], born_f[:, VALUE], born_f[:, HIGH] = key_energy, np.sqrt(value_energy), np.inf
    np.multiply(born_f[:, KEY], config.threshold**2, out=born_f[:, LOW])
    born_f[:, DECAY] = 0.0 if factor is None else (1.0 - factor.astype(np.float64) ** 2) * key_energy
    X[row, :, place] = key if factor is None else key * factor[:, None]
    ints[row, :, place], floats[row, :, place] = born_i, born_f
    if waiting:
        n, p = (clock[:, WAITING:] == writes[:, None]).nonzero()
        b = (n[:, None] * heads + np.arange(heads)).ravel()
        _copy(X, ints, floats, b, place[b], config.ring + config.reservoir + np.repeat(p, heads))
        clock[n, WAITING + p] = -1


def seat(seed: int, reservoir: int, leaver: Ints) -> Ints:
    """Return the reservoir seat of each write id that leaves the ring; reservoir or more: it gets none."""
    drawn = (draw(seed, leaver) % (leaver + 1).astype(np.uint64)).astype(np.int64)
    return np.where(leaver < reservoir, leaver, drawn)


@lru_cache(maxsize=4_096)
def next_move(seed: int, reservoir: int, leaver: int) -> int:
    """Return the next write id after `leaver` that gets a seat; a search in blocks, about leaver / reservoir long.

    It is the same for every slot, and many slots are of one age: remembered, it costs next to nothing.
    """
    begin = leaver + 1
    while True:
        ids = np.arange(begin, begin + 256)
        taken = np.flatnonzero(seat(seed, reservoir, ids) < reservoir)
        if taken.size:
            return int(ids[taken[0]])
        begin += 256


def draw(seed: int, counter: Ints) -> NDArray[np.uint64]:
    """Hash (seed, counter) to 64 bits (the finaliser of splitmix64): the same wherever and whenever it is asked."""
    x = counter.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def pin(slab: Slab, config: AuditConfig, slot: int, write: int | None) -> int:
    """Keep one write of a slot until it is unpinned, or (None) the next one; returns its id. Raises StreamError."""
    clock = slab.clock[:, slot]
    wanted = int(clock[0, 0]) if write is None else int(write)
    pins = config.ring + config.reservoir
    held, waiting = slab.ints[0, slot, 0, WRITE], clock[0, WAITING:]
    if wanted in held[pins:] or wanted in waiting:
        return wanted
    free = np.flatnonzero((held[pins:] == -1) & (waiting == -1))
    if not free.size:
        raise StreamError(
            f"pin: all {config.pinned} places of slot {slot} are taken by writes {sorted({*held[pins:], *waiting})}; "
            "unpin one, or raise AuditConfig.pinned"
        )
    if wanted >= int(clock[0, 0]):
        clock[:, WAITING + free[0]] = wanted
        return wanted
    found = np.flatnonzero(held[:pins] == wanted)
    if wanted < 0 or not found.size:
        raise StreamError(
            f"pin: write {wanted} of slot {slot} is no longer tracked, tracked are {sorted(set(held[:pins]) - {-1})}; "
            'pin a write before it happens (its id, or "next")'
        )
    for array in (slab.shadow, slab.ints, slab.floats):
        array[:, slot, ..., pins + free[0]] = array[:, slot, ..., found[0]]
    return wanted


def unpin(slab: Slab, config: AuditConfig, slot: int, write: int) -> None:
    """Free a pinned place. Raises StreamError if the write is not pinned."""
    pins = config.ring + config.reservoir
    held, waiting = slab.ints[0, slot, 0, WRITE, pins:], slab.clock[0, slot, WAITING:]
    found = np.flatnonzero((held == write) | (waiting == write))
    if write < 0 or not found.size:
        raise StreamError(f"unpin: write {write} of slot {slot} is not pinned; pinned are {[*held, *waiting]}")
    column = pins + int(found[0])
    slab.clock[:, slot, WAITING + found[0]] = -1
    slab.shadow[:, slot, ..., column] = 0
    slab.ints[:, slot, ..., column], slab.floats[:, slot, ..., column] = slab.empty_ints, slab.empty_floats


def events_to_tensors(events: Iterable[Eviction]) -> dict[str, Tensor]:
    """Return evictions as two tables, so that what was not drained yet is saved as well."""
    rows = [astuple(event) for event in events]
    whole = [(*row[:6], CAUSES.index(row[6]), PLACES.index(row[7]), *row[8:10]) for row in rows]
    return {
        "event_ints": torch.tensor(whole, dtype=torch.int64).reshape(-1, 10),
        "event_floats": torch.tensor([row[10:] for row in rows], dtype=torch.float64).reshape(-1, 4),
    }


def events_from_tensors(tensors: dict[str, Tensor]) -> list[Eviction]:
    """Undo `events_to_tensors`. Raises CheckpointError."""
    ints, floats = tensors.get("event_ints"), tensors.get("event_floats")
    if (
        ints is None
        or floats is None
        or ints.shape[1:] != (10,)
        or floats.shape != (len(ints), 4)
        or (ints.dtype != torch.int64 or floats.dtype != torch.float64)
    ):
        raise CheckpointError("event_ints [E,10] and event_floats [E,4] must be in the audit's state; save it again")
    causes, places = ints[:, 6], ints[:, 7]
    if ((causes < 0) | (causes >= len(CAUSES)) | (places < 0) | (places >= len(PLACES))).any():
        raise CheckpointError("event_ints: a cause or a place that no eviction has; save it again")
    return [
        Eviction(i[0], i[1], i[2], i[3], i[4], i[5], CAUSES[i[6]], PLACES[i[7]], i[8], i[9], f[0], f[1], f[2], f[3])
        for i, f in zip(ints.tolist(), floats.tolist(), strict=True)
    ]


def _copy(X: Array, ints: Ints, floats: Array, row: Ints, source: Ints, target: Ints) -> None:
    X[row, :, target] = X[row, :, source]
    ints[row, :, target] = ints[row, :, source]
    floats[row, :, target] = floats[row, :, source]
