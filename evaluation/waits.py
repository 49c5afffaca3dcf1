"""The time to the next event against what came: CRPS, coverage, and baselines that need no model.

    w = time of the first event at or after tau - tau                        events before tau are known, none at it
    CRPS = mean_q( sum 2 |w - w_q| |1{w <= w_q} - q| / sum w )               q = 0.1 .. 0.9, as in metrics.py
    exponential   w_q = -log(1 - q) / rate,    rate = max(events of the last hour, 1/2) per hour
    empirical     w_q = q-quantile of the waits of the training part, of the stream, or of it and the hour of the day

Censored on the right: where the data end before the next event, only a lower bound of w is known. Such moments are left
out of every figure and counted; as long waits go first, ask until well before the end, so that they are few.

N moments, Q levels. Times are int64 ns, waits float64 ns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tsgdn2.errors import ConfigError, SchemaError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

HOUR_NS: Final = 3_600_000_000_000
LEAST: Final = 0.5
"""Events that a silent hour counts for: a rate of zero would have no next event at all."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Where the next event is asked for: streams [N] and the exclusive moments clock [N]."""

    streams: tuple[str, ...]
    clock: Ints

    def __post_init__(self) -> None:
        """SchemaError where the two do not belong together."""
        if self.clock.shape != (len(self.streams),):
            raise SchemaError(f"clock: needs one moment for each of {len(self.streams)} streams, got "
                              f"{self.clock.shape}")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WaitScore:
    """The figures of one forecaster of waits; NaN where every moment is censored."""

    crps: float
    """Mean weighted quantile loss; a share of the mean wait, >= 0."""
    coverage: float
    """Share of waits between the outermost quantiles; nominal 0.8 for levels 0.1 .. 0.9."""
    asked: int
    """Moments that are judged."""
    censored: int
    """Moments after which no event is known; they are in no figure."""


def one_per_hour(streams: Sequence[str], begin: int, end: int, seed: int) -> Moments:
    """One random moment in every hour from begin to end [ns], the same for all streams, in the order of time."""
    if end - begin < HOUR_NS:
        raise ConfigError(f"end: must lie at least an hour after begin = {begin}, got {end}")
    hours = np.arange((end - begin) // HOUR_NS)
    clock = begin + hours * HOUR_NS + np.random.default_rng(seed).integers(1, HOUR_NS, len(hours))
    return Moments(streams=tuple(streams) * len(hours), clock=np.repeat(clock, len(streams)))


def waits(times: Mapping[str, Ints], asked: Moments, until: int | None = None) -> Floats:
    """Time to the next event [N] in ns; NaN where none is known before `until`, by default the end of the data.

    times: moments of the events of each stream, ascending. SchemaError for a stream that is not there.
    """
    found = np.full(len(asked.streams), np.nan)
    for rows, own in _each(times, asked):
        known = own if until is None else own[: np.searchsorted(own, until)]
        after = np.searchsorted(known, asked.clock[rows])
        here = after < len(known)
        found[rows[here]] = known[after[here]] - asked.clock[rows[here]]
    return found


def exponential(times: Mapping[str, Ints], asked: Moments, levels: Sequence[float], span: int = HOUR_NS) -> Floats:
    """Quantiles [N, Q] of a Poisson process with the mean rate of the last `span` ns before each moment."""
    count = np.empty(len(asked.streams))
    for rows, own in _each(times, asked):
        clock = asked.clock[rows]
        count[rows] = np.searchsorted(own, clock) - np.searchsorted(own, clock - span)
    return np.asarray(-np.log1p(-np.asarray(levels)) * (span / np.maximum(count, LEAST))[:, None])


def empirical(
    times: Mapping[str, Ints], training: Moments, asked: Moments, levels: Sequence[float], *, by_hour: bool = False
) -> Floats:
    """Quantiles [N, Q] of the waits at moments of the training part, of the same stream.

    by_hour: and of the same hour of the day (UTC). ConfigError where the training part has no wait to go by.
    """
    known = waits(times, training)
    past, now = (_groups(one, by_hour=by_hour) for one in (training, asked))
    quantiles = {}
    for group in dict.fromkeys(now):
        own = known[[name == group for name in past]]
        own = own[np.isfinite(own)]
        if not len(own):
            raise ConfigError(f"training: has no wait of stream and hour {group}; ask at more moments, or by stream")
        quantiles[group] = np.quantile(own, levels)
    return np.array([quantiles[group] for group in now]).reshape(len(now), len(levels))


def score(quantiles: Floats, known: Floats, levels: Sequence[float]) -> WaitScore:
    """Judge quantiles [N, Q] by waits [N], NaN where censored; any one unit of time. SchemaError for a wrong shape."""
    if quantiles.shape != (len(known), len(levels)):
        raise SchemaError(f"quantiles: must be [{len(known)}, {len(levels)}], got {quantiles.shape}")
    seen = np.isfinite(known)
    w, w_q, q = known[seen], quantiles[seen], np.asarray(levels)
    loss = 2 * np.abs(w[:, None] - w_q) * np.abs((w[:, None] <= w_q) - q)
    total, inside = w.sum(), (w >= w_q[:, 0]) & (w <= w_q[:, -1])
    return WaitScore(
        crps=float(loss.sum(0).mean() / total) if total > 0 else float("nan"),
        coverage=float(inside.mean()) if len(w) else float("nan"),
        asked=len(w),
        censored=int((~seen).sum()),
    )


def _each(times: Mapping[str, Ints], asked: Moments) -> list[tuple[Ints, Ints]]:
    """Places of every stream among the moments, and the moments of its events."""
    absent = sorted(set(asked.streams) - set(times))
    if absent:
        raise SchemaError(f"times: has no stream {absent[0]!r}; give the events of every stream that is asked for")
    names = np.array(asked.streams, object)
    return [(np.flatnonzero(names == name), times[name]) for name in dict.fromkeys(asked.streams)]


def _groups(asked: Moments, *, by_hour: bool) -> list[tuple[str, int]]:
    hours = (asked.clock // HOUR_NS % 24).tolist() if by_hour else [-1] * len(asked.streams)
    return list(zip(asked.streams, hours, strict=True))
