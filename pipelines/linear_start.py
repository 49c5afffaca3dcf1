"""Where training begins when data are few: the lag skip at a ridge solution, the spread at its errors.

    y = K x + bias_q          x [L] the last scaled steps, y [H] the scaled horizon, at every origin of the training
    K0[h, L - m (i + 1) + (h mod m)] = a / s,  i = 0 .. s - 1         the mean of the last s seasons, shrunk by a
    K = argmin sum |y - K x|^2 + p n |K - K0|^2                       p -> inf is K0, a = s = 1 with it seasonal naive
    bias_q = (quantile_q(r) - quantile_{1-q}(r)) / 2                  r = y - K x where K was not fitted, by step

a and s are those of the least absolute error at all origins, p that of the last HELD_OUT of them, K fitted on what
ends before. Then K is fitted on all. The map from the memory to the horizon starts at zero, so that the first forecast
is this line and training adds what the memory knows: a handful of steps on a hundred rows can not be far worse than the
last season again.

| symbol | meaning |
|---|---|
| L, H, m | lags, horizon, season in steps |
| n       | origins |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.entries import read_entry
from tsgdn2.pipelines.estimator import GDN2Estimator
from tsgdn2.pipelines.packing import Lines, timelines_of
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.standardisation import standards_of

Floats: TypeAlias = NDArray[np.float64]

SHRINK: Final = (1.0, 0.9, 0.75, 0.5, 0.25)
PENALTIES: Final = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0, 1e3)
HELD_OUT: Final = 0.3
MOST: Final = 6_000
"""Origins of one fit at most, evenly taken; of a long horizon fewer, as each has many targets."""
CELLS: Final = 1_500_000
"""Targets of one fit at most, as long as that leaves a quarter of MOST."""


class Pairs(NamedTuple):
    """Origins of some lanes in the order of time: clock [n], x [n, L], y [n, H], seen [n, H]."""

    clock: NDArray[np.int64]
    x: Floats
    y: Floats
    seen: NDArray[np.bool_]


class Line(NamedTuple):
    """What was found for one group of lanes."""

    skip: Floats
    """K [H, L]."""
    errors: Floats
    """Errors of the held out origins [n, H], NaN where there was no target."""
    seasons: int
    """s."""
    shrink: float
    """a."""
    penalty: float
    """p."""


def linear_start(
    estimator: GDN2Estimator, data: Iterable[Mapping[str, object]], *, season: int
) -> tuple[GDN2Predictor, list[Line]]:
    """Build a predictor to give to `estimator.train_from`, and what it was made of: one line, or one per channel.

    data: the training series, all of which are looked at. ConfigError without a lag skip of at least a season, and for
    a distribution head, which has no quantiles to spread.
    """
    config = estimator.config
    if config.lag_skip < season or season < 1:
        raise ConfigError(f"lag_skip: must hold a season of {season} steps to start from, got {config.lag_skip}")
    if config.outputs:
        raise ConfigError("distr_output: a start from quantiles needs a model of quantiles")
    raw = [read_entry(entry, config, number, horizon=False) for number, entry in enumerate(data)]
    ends = [one.step + len(one.values) for one in raw]
    standards = standards_of(raw, ends, config)
    lines, _ = timelines_of(raw, config, standards, estimator.channel_names)
    torch.manual_seed(estimator.seed)
    made: GDN2Predictor = GDN2Predictor(
        config_json=config.to_json(),
        standards_json=standards.to_json(),
        freq=estimator.freq,
        channels=list(estimator.channel_names),
    )
    number = np.arange(len(lines)) % config.lanes if config.identities else np.zeros(len(lines), np.int64)
    groups = [np.flatnonzero(number == one) for one in range(max(1, config.identities))]
    found = []
    for lanes in groups:  # of many channels a few errors each are enough, and all of them would be gigabytes
        line = fit(pairs(lines, lanes, config.lag_skip), season)
        found.append(line._replace(errors=line.errors[:: max(1, len(groups) // 2)].copy()))
    errors = np.concatenate([one.errors for one in found])
    head = made.forecaster.head
    with torch.no_grad():
        assert head.skip is not None
        head.skip.copy_(torch.from_numpy(np.stack([one.skip for one in found])))
        head.linear.weight.zero_()
        if errors.size:
            spread = _spread(errors, np.array(config.quantiles))
            head.linear.bias.copy_(torch.from_numpy(np.repeat(spread[:, None], config.lane_channels, 1).reshape(-1)))
    return made, found


def pairs(lines: Lines, lanes: NDArray[np.int64], lags: int) -> Pairs:
    """Origins of some lanes whose lags have begun and whose horizon has not ended, in the order of time."""
    clocks, owners = [], []
    for lane in lanes.tolist():
        start, stop = int(lines.start[lane]), int(lines.start[lane] + lines.steps[lane])
        first = min(start + lags - 1, start + int(lines.steps[lane]) // 2)
        own = np.arange(first, stop - lines.horizon)
        clocks.append(own)
        owners.append(np.full(len(own), lane))
    clock, lane = np.concatenate(clocks), np.concatenate(owners)
    order = np.argsort(clock, kind="stable")
    most = min(len(order), MOST, max(MOST // 4, CELLS // lines.horizon))
    order = order[np.linspace(0, len(order) - 1, most).astype(np.int64)] if len(order) else order
    clock, lane = clock[order], lane[order]
    y, seen = lines.targets(lane, clock)
    return Pairs(clock, lines.lags(lane, clock, lags)[..., 0], y[..., 0], seen[..., 0])


def fit(found: Pairs, season: int) -> Line:
    """Fit one group of origins; without any it is the last season again."""
    horizon, lags = found.y.shape[1], found.x.shape[1]
    if len(found.x) < 2:
        return Line(naive(horizon, lags, season, 1), np.zeros((0, horizon)), 1, 1.0, np.inf)
    most = lags // season
    candidates = [(s, a) for s in sorted({1, 2, 3, 7, most}) if s <= most for a in SHRINK]
    costs = [_cost(found, a * naive(horizon, lags, season, s)) for s, a in candidates]
    seasons, shrink = candidates[int(np.argmin(costs))]
    base = shrink * naive(horizon, lags, season, seasons)
    cut = found.clock[int(len(found.x) * (1 - HELD_OUT))]
    late = Pairs(*(part[found.clock >= cut] for part in found))
    early = Pairs(*(part[found.clock < cut - horizon] for part in found))  # those between would have seen its targets
    tried = ridge(early, base, PENALTIES) if len(early.x) else [base] * len(PENALTIES)
    best = int(np.argmin([_cost(late, skip) for skip in tried]))
    errors = np.where(late.seen, late.y - late.x @ tried[best].T, np.nan)
    return Line(ridge(found, base, PENALTIES[best : best + 1])[0], errors, seasons, shrink, PENALTIES[best])


def naive(horizon: int, lags: int, season: int, seasons: int) -> Floats:
    """K0 with a = 1: the mean of the last seasons, [H, L]."""
    skip = np.zeros((horizon, lags))
    step = np.arange(horizon)
    for i in range(seasons):
        skip[step, lags - season * (i + 1) + step % season] += 1 / seasons
    return skip


def ridge(found: Pairs, base: Floats, penalties: Iterable[float]) -> list[Floats]:
    """K [H, L] for every penalty; a target that is missing says what `base` says."""
    x, rest = found.x, np.where(found.seen, found.y - found.x @ base.T, 0.0)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    moment = vectors.T @ (x.T @ rest / len(x))
    return [base + (vectors @ (moment / (np.maximum(values, 0.0) + p)[:, None])).T for p in penalties]


def _cost(found: Pairs, skip: Floats) -> float:
    error = np.abs(found.y - found.x @ skip.T)
    return float(error[found.seen].mean()) if found.seen.any() else np.inf


def _spread(errors: Floats, levels: Floats) -> Floats:
    """Symmetric quantiles of the errors by step, [H, Q]; a step without an error has those of all."""
    whole = np.nanquantile(errors, levels) if np.isfinite(errors).any() else np.zeros(len(levels))
    known = np.isfinite(errors).any(axis=0)
    by_step = np.repeat(whole[None], errors.shape[1], 0)
    by_step[known] = np.nanquantile(errors[:, known], levels, axis=0).T
    opposite = np.array([int(np.abs(levels - (1 - level)).argmin()) for level in levels])
    return np.asarray((by_step - by_step[:, opposite]) / 2)
