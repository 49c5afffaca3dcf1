"""What the online audit says about one slot, computed when asked.

Nothing here changes the audit. The half-life is Kaplan-Meier's over the ring and the reservoir: the reservoir is a
uniform draw from all older writes, and a write that is still above the threshold is right-censored; pinned writes are
left out, because somebody chose them. Exact quantities of every write of a window: retention.py, eviction.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsgdn2.audit.alerts import Alert, AlertLimits, HeadFacts, judge
from tsgdn2.audit.eviction import half_life
from tsgdn2.audit.slab import ALIVE, EVICTED, FLOATS, INTS, NEVER, SUMS, AuditConfig, Slab
from tsgdn2.audit.tracking import PLACES

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
LEDGER = ("decay", "bound", "erase", "write", "interaction")


@dataclass(frozen=True)
class TrackedWrites:
    """The tracked writes of one (layer, head), oldest first: a struct of arrays [N].

    write: running id; birth and age: token time; place: "ring", "reservoir", "pinned"; retention: rho in [0, ..);
    value: |z|; decay, erase: signed shares of |k|^2 lost since; evicted: below the threshold (with hysteresis);
    evictor, evictor_time, evictor_share: whose erase took most, -1 for nobody.
    """

    write: Ints
    birth: Ints
    age: Ints
    place: tuple[str, ...]
    retention: Array
    value: Array
    decay: Array
    erase: Array
    evicted: NDArray[np.bool_]
    evictor: Ints
    evictor_time: Ints
    evictor_share: Array


@dataclass(frozen=True)
class HeadReadings:
    """One sampled (layer, head) of one slot.

    retained: tr C, effective number of retained writes; directions: (tr C)^2 / tr C^2, at most K; mean_age and
    half_life: token time (inf: more than half survive); signal and crosstalk: energies; ledger: sums per cause since
    the slot was reset, `bound` being the part of decay that the norm bound took, empty when the ledger is off;
    energy: |S|^2; residual: the ledger's worst; swell: the factor by which transitions alone have enlarged the
    state beyond what they took since, 1 or more; cohorts: |shadow|^2 by name,
    and "initial" for what the state held when the audit began.
    """

    layer: int
    head: int
    retained: float
    directions: float
    mean_age: float
    half_life: float
    signal: float
    crosstalk: float
    energy: float
    ledger: dict[str, float]
    residual: float
    swell: float
    cohorts: dict[str, float]
    tracked: TrackedWrites


@dataclass(frozen=True)
class SlotReadings:
    """All sampled heads of one slot, the number of its writes, its first and last token time, and its alerts."""

    slot: int
    writes: int
    first_time: int
    last_time: int
    heads: tuple[HeadReadings, ...]
    alerts: tuple[Alert, ...]


def slot_readings(slab: Slab, config: AuditConfig, slot: int, limits: AlertLimits) -> SlotReadings:
    """Read one slot; a slot without writes has zeros, and no alerts."""
    heads, alerts = [], []
    for place, layer in enumerate(slab.layers):
        writes, first, last = (int(value) for value in slab.clock[place, slot, :3])
        for a, head in enumerate(slab.heads):
            reading = _head(slab, config, place, slot, a, last)
            sums = dict(zip(SUMS, slab.sums[place, slot, a].tolist(), strict=True))
            heads.append(reading)
            alerts += judge(
                HeadFacts(
                    layer=layer, head=head, key_dim=slab.key_dim, writes=writes, elapsed=float(last - first),
                    directions=reading.directions, signal=reading.signal, crosstalk=reading.crosstalk,
                    mean_age=reading.mean_age, half_life=reading.half_life, swell=sums["swell"],
                    residual=sums["residual"], finite=sums["broken"] == 0,
                ),
                limits,
                limits.residual_for(slab.dtype),
            )  # fmt: skip
    writes, first, last = (int(value) for value in slab.clock[0, slot, :3])
    return SlotReadings(slot, writes, first, last, tuple(heads), tuple(alerts))


def cohort_residual(slab: Slab, slot: int, state: Array) -> float:
    """|sum of cohorts - state| / |state|, the worst of the pairs; state [pairs,K,V] in the order of `pairs`."""
    worst = 0.0
    for pair, given in enumerate(state.astype(np.float64)):
        place, a = divmod(pair, len(slab.heads))
        total = _cohorts(slab, place, slot, a).sum(0)
        size = max(float(np.linalg.norm(given)), float(np.linalg.norm(total)))
        error = float(np.linalg.norm(total - given))
        worst = max(worst, error / size if size > 0 else error) if math.isfinite(error) else math.inf
    return worst


def _head(slab: Slab, config: AuditConfig, place: int, slot: int, a: int, last: int) -> HeadReadings:
    X = slab.shadow[place, slot, a].astype(np.float64)
    sums = dict(zip(SUMS, slab.sums[place, slot, a].tolist(), strict=True))
    C, aged, weighted = X[:, slab.C], X[:, slab.aged], X[:, slab.weighted]
    retained, square, signal = float(np.trace(C)), float((C * C).sum()), float(np.trace(weighted))
    groups = _cohorts(slab, place, slot, a)
    ints, floats = slab.ints[place, slot, a], slab.floats[place, slot, a]
    tracked = _tracked(X[:, slab.writes], ints, floats, config, last)
    return HeadReadings(
        layer=slab.layers[place],
        head=slab.heads[a],
        retained=retained,
        directions=retained**2 / square if square > 0 else 0.0,
        mean_age=float(np.trace(aged)) / retained if retained > 0 else 0.0,
        half_life=_half_life(ints, floats, config, last),
        signal=signal,
        crosstalk=float((groups[:-1].sum(0) ** 2).sum()) - signal,
        energy=float((groups.sum(0) ** 2).sum()),
        ledger={name: sums[name] for name in LEDGER} if config.ledger else {},
        residual=sums["residual"],
        swell=math.exp(min(sums["swell"], 700.0)),
        cohorts=dict(zip((*config.cohorts, "initial"), (groups**2).sum((1, 2)).tolist(), strict=True)),
        tracked=tracked,
    )


def _tracked(R: Array, ints: Ints, floats: Array, config: AuditConfig, last: int) -> TrackedWrites:
    kind = np.repeat(PLACES, (config.ring, config.reservoir, config.pinned))
    order = np.lexsort((np.arange(ints.shape[1]), ints[0]))
    order = order[ints[0, order] >= 0]
    i, f = dict(zip(INTS, ints[:, order], strict=True)), dict(zip(FLOATS, floats[:, order], strict=True))
    size = np.where(f["key"] > 0, f["key"], 1.0)
    return TrackedWrites(
        write=i["write"], birth=i["birth"], age=last - i["birth"], place=tuple(kind[order].tolist()),
        retention=np.sqrt((R[:, order] ** 2).sum(0) / size), value=f["value"].copy(), decay=f["decay"] / size,
        erase=f["erase"] / size, evicted=i["status"] == EVICTED, evictor=i["evictor"],
        evictor_time=i["evictor_time"], evictor_share=f["best"] / size,
    )  # fmt: skip


def _half_life(ints: Ints, floats: Array, config: AuditConfig, last: int) -> float:
    drawn = slice(0, config.ring + config.reservoir)
    i = dict(zip(INTS, ints[:, drawn], strict=True))
    known = (i["status"] >= ALIVE) & (floats[FLOATS.index("key"), drawn] > 0)
    evicted = i["evicted_at"][known] != NEVER
    return half_life(np.where(evicted, i["evicted_at"][known], last) - i["birth"][known], evicted)


def _cohorts(slab: Slab, place: int, slot: int, a: int) -> Array:
    X = slab.shadow[place, slot, a][:, slab.cohorts].astype(np.float64)
    groups: Array = X.reshape(slab.key_dim, -1, slab.value_dim).transpose(1, 0, 2)
    return groups
