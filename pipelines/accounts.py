"""The offline audit of a trace, as frames: what became of every write, and what every token did to the state.

    state = sum_i r_i z_i^T + what is left of the state before the window          checked, not assumed
    before - decay - erase + write + interaction = after                           for every token

Only writes of the window are followed; what came before is one lump. Times are the ends of patches, ages are hours
or days of the data's own clock, never token counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tsgdn2.audit import (
    EvictionEvents,
    carried_state,
    energy_ledger,
    eviction_events,
    half_life,
    kaplan_meier,
    occupancy,
    retained_keys,
    retention_matrix,
    window_alerts,
)
from tsgdn2.pipelines.traces import PADDING, Trace

HOUR_NS: Final = 3_600_000_000_000
TOP: Final = 3
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How steps are shown: nanoseconds of a step, and the unit of ages."""

    period: int

    @property
    def unit(self) -> str:
        """Unit of ages: days for steps of ten minutes and more, else hours."""
        return "days" if self.period >= HOUR_NS // 6 else "hours"

    def age(self, steps: NDArray[np.int64] | Array) -> Array:
        """Steps as ages in the unit."""
        length = 24 * HOUR_NS if self.unit == "days" else HOUR_NS
        return np.asarray(steps, np.float64) * self.period / length

    def moment(self, steps: NDArray[np.int64]) -> NDArray[np.datetime64]:
        """Starts of steps, UTC."""
        return np.asarray((steps * self.period).astype("datetime64[ns]"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Account:
    """One layer of one trace, accounted for."""

    trace: Trace
    clock: Clock
    events: EvictionEvents
    heads: pl.DataFrame
    """One row per series and head: half-life, causes, occupancy, crosstalk, residuals."""
    evictions: pl.DataFrame
    """One row per eviction, with its cause and its evictors."""
    ledger: pl.DataFrame
    """One row per series, head and token."""
    alerts: pl.DataFrame
    """What needs a human."""

    def survival(self) -> tuple[dict[str, tuple[Array, Array]], dict[str, float]]:
        """Kaplan-Meier curve and half-life of each series over its audited heads; ages in the clock's unit."""
        curves, halves = {}, {}
        for lane, name in enumerate(self.trace.lanes):
            age, evicted = self._followed(lane)
            curves[name] = kaplan_meier(age, evicted)
            halves[name] = half_life(age, evicted)
        return curves, halves

    def _followed(self, lane: int) -> tuple[Array, NDArray[np.bool_]]:
        """Age at which each write of a lane fell or was last seen, and whether it fell."""
        when = self.trace.clocks[lane]
        void = self.events.void[lane].numpy()
        steps = np.where(
            self.events.censored[lane].numpy(), when[-1] - when, when[self.events.time[lane].numpy()] - when
        )
        return self.clock.age(steps[~void]), ~self.events.censored[lane].numpy()[~void]

    def retention(self, lane: int, head: int, tokens: int = 120) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
        """Retention [seen, written] of the newest writes after each token, then the steps written and seen."""
        when = self.trace.clocks[lane]
        first = max(int((when == PADDING).sum()), len(when) - tokens)
        part = (slice(lane, lane + 1), slice(first, None), slice(head, head + 1))
        rho = retention_matrix(self.trace.k[part], self.trace.e[part], self.trace.g[part])
        return rho[0, 0].double().numpy(), when[first:], when[first:]


def account(trace: Trace, period: int, *, threshold: float = 0.1) -> Account:
    """Account for every write and every token of a trace; period in nanoseconds. O(T^2) per series and head."""
    clock = Clock(period=period)
    events = eviction_events(trace.k, trace.e, trace.g, threshold=threshold, top=TOP)
    return Account(
        trace=trace, clock=clock, events=events, heads=_heads(trace, events, clock),
        evictions=_evictions(trace, events, clock), ledger=_ledger(trace, clock), alerts=_alerts(trace),
    )  # fmt: skip


def _heads(trace: Trace, events: EvictionEvents, clock: Clock) -> pl.DataFrame:
    full = occupancy(trace.k, trace.e, trace.z, trace.g)
    sums = energy_ledger(trace.k.double(), trace.e, trace.z, trace.g, initial_state=trace.initial)
    kept = retained_keys(trace.k.double(), trace.e, trace.g)
    rebuilt = torch.einsum("bthk,bthv->bhkv", kept, trace.z.double())
    rebuilt += carried_state(trace.k, trace.e, trace.g, trace.initial.double())
    size = trace.final.double().square().sum((-2, -1)).sqrt().clamp_min(1e-12)
    apart = (rebuilt - trace.final.double()).square().sum((-2, -1)).sqrt() / size
    rows = []
    for lane, name in enumerate(trace.lanes):
        when = trace.clocks[lane]
        for head in range(trace.k.shape[2]):
            void, censored = (t[lane, head].numpy() for t in (events.void, events.censored))
            fell = ~void & ~censored
            ages = np.where(censored, when[-1] - when, when[events.time[lane, head].numpy()] - when)
            rows.append(
                {
                    "series": name,
                    "layer": trace.layer,
                    "head": head,
                    "writes": int((~void).sum()),
                    "evicted": int(fell.sum()),
                    "half_life": half_life(clock.age(ages[~void]), ~censored[~void]),
                    "evicted_by_decay": _share(events.cause[lane, head].numpy()[fell] == 0),
                    "evicted_by_erase": _share(events.cause[lane, head].numpy()[fell] == 1),
                    "energy_lost_to_decay": _mean(events.decay[lane, head].double().numpy()[fell]),
                    "energy_lost_to_erase": _mean(events.erase[lane, head].double().numpy()[fell]),
                    "retained_writes": float(full.retained[lane, head, 0]),
                    "key_directions": float(full.directions[lane, head, 0]),
                    "mean_age": float(full.mean_age[lane, head, 0]),
                    "crosstalk_over_signal": _ratio(full.crosstalk[lane, head, 0], full.signal[lane, head, 0]),
                    "ledger_residual": float(sums.residual[lane, :, head].max()),
                    "state_residual": float(apart[lane, head]),
                }
            )
    return pl.DataFrame(rows)


def _evictions(trace: Trace, events: EvictionEvents, clock: Clock) -> pl.DataFrame:
    """One row per eviction; evictors are named by the moment at which they were written."""
    found = events.table()
    lane = np.asarray(found["row"], np.int64)
    written, fell = (trace.clocks[lane, np.asarray(found[name], np.int64)] for name in ("write", "time"))
    columns: dict[str, object] = {
        "series": [trace.lanes[i] for i in lane],
        "layer": np.full(len(lane), trace.layer),
        "head": found["head"],
        "written": clock.moment(written),
        "evicted": clock.moment(fell),
        f"age_{clock.unit}": clock.age(fell - written),
        "cause": found["cause"],
        "lost_to_decay": found["decay"],
        "lost_to_erase": found["erase"],
    }
    for rank in range(1, TOP + 1):
        token = np.asarray(found[f"evictor_{rank}"], np.int64)
        when = clock.moment(trace.clocks[lane, np.maximum(token, 0)])
        columns[f"evictor_{rank}"] = np.where(token >= 0, when, np.datetime64("NaT"))
        columns[f"took_{rank}"] = found[f"energy_{rank}"]
    return pl.DataFrame(columns).sort("evicted", "series", "head")


def _ledger(trace: Trace, clock: Clock) -> pl.DataFrame:
    booked = energy_ledger(trace.k, trace.e, trace.z, trace.g, initial_state=trace.initial)
    lanes, tokens, heads = booked.before.shape
    real = np.repeat((trace.clocks != PADDING).reshape(-1), heads)
    keys = {
        "series": np.repeat(np.array(trace.lanes, dtype=object), tokens * heads)[real].tolist(),
        "layer": np.full(int(real.sum()), trace.layer),
        "head": np.tile(np.arange(heads), lanes * tokens)[real],
        "time": clock.moment(np.repeat(trace.clocks.reshape(-1), heads)[real]),
    }
    terms = {name: value.reshape(-1).numpy()[real] for name, value in booked._asdict().items()}
    return pl.DataFrame(keys | terms | {"residual": booked.residual.reshape(-1).numpy()[real]})


def _alerts(trace: Trace) -> pl.DataFrame:
    rows = [
        {"series": name, "layer": alert.layer, "head": alert.head, "kind": alert.kind, "severity": alert.severity,
         "value": alert.value, "limit": alert.limit, "message": alert.message}
        for name, alerts in zip(
            trace.lanes, window_alerts(trace.k, trace.e, trace.z, trace.g, initial_state=trace.initial,
                                       layer=trace.layer, dtype=trace.k.dtype), strict=True)
        for alert in alerts
    ]  # fmt: skip
    schema = {"series": pl.String, "layer": pl.Int64, "head": pl.Int64, "kind": pl.String, "severity": pl.String,
              "value": pl.Float64, "limit": pl.Float64, "message": pl.String}  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def metrics(accounts: Sequence[Account]) -> dict[str, float]:
    """Figures of all accounted heads for a run."""
    heads = pl.concat([one.heads for one in accounts])
    unit = accounts[0].clock.unit
    halves = heads["half_life"].to_numpy()
    finite = halves[np.isfinite(halves)]
    out = {
        f"half_life_{unit}/median": float(np.median(finite)) if len(finite) else math.nan,
        "half_life/longer_than_window": float((~np.isfinite(halves)).mean()),
        "evictions": float(heads["evicted"].sum()),
        "writes": float(heads["writes"].sum()),
        "alerts": float(sum(one.alerts.height for one in accounts)),
        "ledger_residual/max": float(heads["ledger_residual"].to_numpy().max()),
        "state_residual/max": float(heads["state_residual"].to_numpy().max()),
    }
    for name in ("evicted_by_decay", "evicted_by_erase", "retained_writes", "key_directions", "crosstalk_over_signal"):
        values = heads[name].to_numpy()
        out[f"{name}/mean"] = float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
    return {name: value for name, value in out.items() if math.isfinite(value)}


def _share(chosen: NDArray[np.bool_]) -> float:
    return float(chosen.mean()) if chosen.size else math.nan


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else math.nan


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> float:
    return float(part / whole) if float(whole) > 0 else math.nan
