"""When a memory needs a human: the limits of math.md 3, each with what to do about it.

A transition that enlarges a state has a singular value above 1. It is the growth that is judged, because almost any
channel-wise erase has such a direction, and few states lie along it.

An alert is a judgement of one head at one moment; it has no history of its own, so whoever shows it decides how often.

| kind | fires when |
|---|---|
| occupancy | (tr C)^2 / tr C^2 > share of K: no free key direction is left |
| crosstalk | (energy of S - P..P S_0, minus tr C_z) / tr C_z > limit: reads return more of the others than their own |
| half_life | the Kaplan-Meier half-life is below the horizon that the sensor needs |
| never_forgets | mean age > share of the stream's length: it grows with t |
| expansion | transitions alone (P_t, no write) have enlarged S more than they shrank it since |
| ledger | the energy ledger leaves a residual, relative to energy of S and z: kernel and audit disagree |
| non_finite | a NaN or an infinity came by |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tsgdn2.audit.eviction import eviction_events
from tsgdn2.audit.ledger import energy_ledger
from tsgdn2.audit.occupancy import occupancy
from tsgdn2.errors import ConfigError

RESIDUAL_LIMIT = {torch.float64: 1e-9}
_RESIDUAL_DEFAULT = 1e-3


@dataclass(frozen=True, kw_only=True)
class AlertLimits:
    """Where a reading becomes an alert."""

    occupancy: float = 0.9
    """Share of the K key directions in use; in (0, 1]."""
    crosstalk: float = 1.0
    """Crosstalk energy over signal energy; positive."""
    horizon: float | None = None
    """Time units (tokens offline) for which half of the writes must be retained; None asks for nothing."""
    never_forgets: float = 0.35
    """Mean age over the length of the stream; a head without forgetting has 0.5. In (0, 0.5)."""
    expansion: float = 2.0
    """Factor by which the transitions alone may have enlarged the state; above 1."""
    residual: float | None = None
    """Ledger residual relative to |S|^2 + |z|^2; None: 1e-9 in float64, 1e-3 in anything smaller."""
    writes: int = 256
    """Writes before occupancy, crosstalk, half-life and forgetting are judged; at least 1."""

    def __post_init__(self) -> None:
        allowed = {
            "occupancy": (0 < self.occupancy <= 1, "in (0, 1]"),
            "crosstalk": (self.crosstalk > 0, "positive"),
            "horizon": (self.horizon is None or self.horizon > 0, "positive or None"),
            "never_forgets": (0 < self.never_forgets < 0.5, "in (0, 0.5)"),
            "expansion": (self.expansion > 1, "above 1"),
            "residual": (self.residual is None or self.residual > 0, "positive or None"),
            "writes": (self.writes >= 1, "at least 1"),
        }
        for name, (good, bounds) in allowed.items():
            if not good:
                raise ConfigError(f"AlertLimits.{name} must be {bounds}, got {getattr(self, name)}")

    def residual_for(self, dtype: torch.dtype) -> float:
        """The residual limit for states of this dtype."""
        return self.residual if self.residual is not None else RESIDUAL_LIMIT.get(dtype, _RESIDUAL_DEFAULT)


@dataclass(frozen=True)
class Alert:
    """One limit that one head has crossed; severity is "warning" or "error", `message` says what to do."""

    kind: str
    severity: str
    layer: int
    head: int
    value: float
    limit: float
    message: str


@dataclass(frozen=True, kw_only=True)
class HeadFacts:
    """What is known of one head when it is judged; times and ages in one unit, `swell` is a logarithm."""

    layer: int
    head: int
    key_dim: int
    writes: int
    elapsed: float
    directions: float
    signal: float
    crosstalk: float
    mean_age: float
    half_life: float
    swell: float
    residual: float
    finite: bool


def judge(facts: HeadFacts, limits: AlertLimits, residual_limit: float) -> list[Alert]:
    """Return the alerts of one head; limits that need a filled memory wait for `limits.writes` writes."""
    found: list[tuple[str, str, float, float, str]] = []
    if not facts.finite:
        found.append(("non_finite", "error", math.nan, 0.0, "reset the stream and replay it from its last checkpoint"))
    if facts.residual > residual_limit:
        found.append(
            ("ledger", "error", facts.residual, residual_limit,
             "the state was changed outside the audited update, or the kernel is wrong: compare with the reference "
             "backend")
        )  # fmt: skip
    if facts.swell > math.log(limits.expansion):
        found.append(
            ("expansion", "error", math.exp(min(facts.swell, 700.0)), limits.expansion,
             "erases enlarge the state: check the norm bound, and retrain with a decay floor")
        )  # fmt: skip
    if facts.writes >= limits.writes:
        found += _full_memory(facts, limits)
    return [
        Alert(kind, severity, facts.layer, facts.head, value, limit,
              f"{kind} in layer {facts.layer}, head {facts.head}: {value:.4g} beyond {limit:.4g}; {remedy}")
        for kind, severity, value, limit, remedy in found
    ]  # fmt: skip


def _full_memory(facts: HeadFacts, limits: AlertLimits) -> list[tuple[str, str, float, float, str]]:
    found = []
    if facts.directions > limits.occupancy * facts.key_dim:
        found.append(
            ("occupancy", "warning", facts.directions, limits.occupancy * facts.key_dim,
             "new writes must evict old ones: enlarge key_dim, or use more heads")
        )  # fmt: skip
    if facts.signal > 0 and facts.crosstalk / facts.signal > limits.crosstalk:
        found.append(
            ("crosstalk", "warning", facts.crosstalk / facts.signal, limits.crosstalk,
             "keys overlap: enlarge key_dim, or use one state per channel")
        )  # fmt: skip
    if limits.horizon is not None and facts.half_life < limits.horizon:
        found.append(
            ("half_life", "warning", facts.half_life, limits.horizon,
             "the memory is shorter than the sensor needs: train on longer windows, or start from slower decays")
        )  # fmt: skip
    if facts.elapsed > 0 and facts.mean_age / facts.elapsed > limits.never_forgets:
        found.append(
            ("never_forgets", "warning", facts.mean_age / facts.elapsed, limits.never_forgets,
             "the mean age grows with the stream: this head will not follow a change; raise its decay or reset it")
        )  # fmt: skip
    return found


def window_alerts(
    k: Tensor, e: Tensor, z: Tensor, g: Tensor, *, initial_state: Tensor | None = None,
    limits: AlertLimits | None = None, layer: int = 0, dtype: torch.dtype | None = None,
) -> list[list[Alert]]:  # fmt: skip
    """Judge every row of a window, all heads: one list per row of the batch; arguments as `energy_ledger`.

    dtype: the dtype in which the state ran, k's by default; the ledger here is float64 whatever it was.
    """
    limits = limits or AlertLimits()
    k, e, z, g = (t.double() for t in (k, e, z, g))
    ledger = energy_ledger(k, e, z, g, initial_state=initial_state)
    full, half_life = occupancy(k, e, z, g), eviction_events(k, e, g).half_life()
    swell = torch.zeros_like(full.retained[..., 0])
    for step in ledger.transition_gain.clamp_min(1e-300).log().unbind(1):
        swell = (swell + step).clamp_min(0)
    residual = ledger.residual.amax(1)
    finite = torch.isfinite(ledger.after).all(1) & torch.isfinite(ledger.before).all(1)
    rows = []
    for b in range(k.shape[0]):
        alerts: list[Alert] = []
        for h in range(k.shape[2]):
            facts = HeadFacts(
                layer=layer, head=h, key_dim=k.shape[3], writes=k.shape[1], elapsed=float(k.shape[1] - 1),
                directions=float(full.directions[b, h, 0]), signal=float(full.signal[b, h, 0]),
                crosstalk=float(full.crosstalk[b, h, 0]), mean_age=float(full.mean_age[b, h, 0]),
                half_life=float(half_life[b, h]), swell=float(swell[b, h]), residual=float(residual[b, h]),
                finite=bool(finite[b, h]),
            )  # fmt: skip
            alerts += judge(facts, limits, limits.residual_for(dtype or torch.float64))
        rows.append(alerts)
    return rows
