"""Prequential scoring: every value is forecast before the model is shown it, also when values arrive d steps late.

    step t = 0, 1, ..:   1. the value of step t - d arrives;  it was scored by every forecast that names it
                         2. observe(stream, time of t - d, value)
                         3. at an origin: forecast of t + 1 .. t + H from what has arrived, that is up to t - d

A model whose newest value is d steps old must look d + H steps ahead; the first d of them are not judged. The runner
hands over single rows and never the series, but a model may have been built from data that it should not know, or cache
what it was shown: `leaks` changes all that has not arrived at an origin and asks whether the forecast knew. It finds
what depends on values, and costs a second run per origin that is examined.

| symbol | meaning | shape |
|---|---|---|
| values | one stream, NaN is missing | [T, C] |
| t      | origin: the last step before a window | 0 <= t < T |
| d, H   | delay and horizon, steps | >= 0, >= 1 |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.metrics import LEVELS, Judged, Predicts, Score, pooled

Floats = NDArray[np.float64]


class Quantiles(Protocol):
    """What a forecast must have."""

    @property
    def quantiles(self) -> Floats:
        """[H, C, Q]."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When what is known, and when forecasts are asked for."""

    start: int
    """int64 nanoseconds at which row 0 begins."""
    period: int
    """Nanoseconds of a step."""
    freq: str
    """The same as pandas writes it."""
    horizon: int
    """Steps that are judged, H."""
    first: int
    """Origin of the first window; the last window ends with the data."""
    every: int = 1
    """Steps from one origin to the next."""
    delay: int = 0
    """Steps that a value arrives late, d."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        for name, least in (("period", 1), ("horizon", 1), ("every", 1), ("delay", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if self.first < self.delay:
            raise ConfigError(f"first: must be at least delay={self.delay}, before which nothing has arrived, "
                              f"got {self.first}")  # fmt: skip

    def origins(self, length: int) -> NDArray[np.int64]:
        """Origins on a series of so many rows; ConfigError for none."""
        if self.first >= length - self.horizon:
            raise ConfigError(
                f"first: must leave a horizon of {self.horizon} before the end of {length} rows, got {self.first}"
            )
        return np.arange(self.first, length - self.horizon, self.every, dtype=np.int64)


class Learner(Protocol):
    """Whatever remembers: OnlinePredictor is one, `Recall` makes one of any GluonTS predictor."""

    def observe(self, stream: str, time: int, values: Floats) -> object:
        """Take in one row [C] of the step that begins at `time` (ns); a row of nothing but NaN lets time pass."""

    def forecast(self, stream: str, horizon: int) -> Quantiles:
        """Forecast the `horizon` steps after the newest row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prequential:
    """What a prequential run found."""

    judged: Judged
    """Forecasts and labels, one window per origin in their order; every grouping of `metrics.scores` applies."""
    overall: Score
    """All of them pooled."""
    origins: NDArray[np.int64]
    """Step t of each window [N]."""
    known: NDArray[np.int64]
    """Step at which the last label of each window had arrived, and its score could be known [N]: t + H + d."""


class Recall:
    """A learner that keeps every row and asks a GluonTS predictor of one series per channel anew: slow and exact."""

    def __init__(
        self, predictor: Predicts, *, freq: str, channels: Sequence[str], levels: Sequence[float] = LEVELS
    ) -> None:
        """freq: pandas frequency of the steps. The predictor's prediction_length bounds the horizon."""
        self.predictor, self.freq, self.channels, self.levels = predictor, freq, tuple(channels), tuple(levels)
        self._rows: dict[str, list[Floats]] = {}
        self._first: dict[str, pd.Period] = {}

    def observe(self, stream: str, time: int, values: Floats) -> None:
        """Keep a copy of one row; rows must follow each other without a gap."""
        first = self._first.setdefault(stream, pd.Period(pd.Timestamp(time), freq=self.freq))
        rows = self._rows.setdefault(stream, [])
        if pd.Period(pd.Timestamp(time), freq=self.freq) != first + len(rows):
            raise SchemaError(f"time of {stream} must be {first + len(rows)}, the step after its newest row")
        rows.append(np.array(values, np.float64))

    def forecast(self, stream: str, horizon: int) -> Recalled:
        """Forecast every channel from its whole past."""
        past_TC = np.stack(self._rows[stream])
        entries = [
            {"item_id": f"{stream}/{name}", "start": self._first[stream], "target": past_TC[:, column]}
            for column, name in enumerate(self.channels)
        ]
        found = [
            np.stack([np.asarray(one.quantile(level), np.float64) for level in self.levels], axis=-1)
            for one in self.predictor.predict(entries)
        ]
        if found[0].shape[0] < horizon:
            raise ConfigError(
                f"horizon + delay must be at most the predictor's {found[0].shape[0]} steps, got {horizon}; "
                "train it for a longer prediction_length"
            )
        return Recalled(np.stack(found, axis=1)[:horizon])


@dataclass(frozen=True, eq=False)
class Recalled:
    """Quantiles of `Recall`."""

    quantiles: Floats
    """[H, C, Q]."""


def prequential(
    model: Learner,
    values: Floats,
    schedule: Schedule,
    *,
    channels: Sequence[str],
    season: int,
    levels: Sequence[float] = LEVELS,
    stream: str = "stream",
) -> Prequential:
    """Run a model over one stream, values [T, C], scoring every value before it is observed.

    levels: those of the model's quantiles. season: steps of MASE's season.
    Errors: ConfigError for bounds; those of the model; SchemaError where a forecast has another shape than asked for.
    """
    if len(channels) != values.shape[1] or season < 1:
        raise ConfigError(
            f"channels must name the {values.shape[1]} columns of values and season be at least 1, "
            f"got {tuple(channels)} and {season}"
        )
    origins = schedule.origins(len(values))
    forecasts = _forecasts(model, values, origins, schedule, stream)
    if forecasts[0].shape[2] != len(levels):
        raise SchemaError(f"levels must name the {forecasts[0].shape[2]} quantiles of a forecast, got {tuple(levels)}")
    zero = pd.Period(pd.Timestamp(schedule.start), freq=schedule.freq)
    ahead = origins[:, None] + np.arange(1, schedule.horizon + 1)
    judged = Judged(
        items=(stream,) * len(origins),
        starts=tuple(zero + int(origin) + 1 for origin in origins),
        windows=tuple(range(len(origins))),
        labels=values[ahead].transpose(0, 2, 1),
        quantiles=np.stack([one.transpose(2, 1, 0) for one in forecasts]),
        seasonal=_seasonal(values, origins - schedule.delay, season),
        levels=tuple(levels),
        channels=tuple(channels),
    )
    known = origins + schedule.horizon + schedule.delay
    return Prequential(judged=judged, overall=pooled(judged), origins=origins, known=known)


def leaks(
    make: Callable[[Floats], Learner],
    values: Floats,
    schedule: Schedule,
    *,
    at: Sequence[int] | None = None,
    seed: int = 0,
    stream: str = "stream",
) -> list[int]:
    """Find the origins whose forecast changes when only values change that have not arrived there; none: none found.

    make: builds the model from the data as it is given, so that what it takes from the future while it is built is
    found too. at: origins to examine, by default the first, the middle and the last. Errors as `prequential`.
    """
    origins = schedule.origins(len(values))
    examined = origins[[0, len(origins) // 2, -1]].tolist() if at is None else list(at)
    unknown = sorted(set(examined) - set(origins.tolist()))
    if unknown:
        raise ConfigError(f"at: must hold origins of the run, {origins[0]} to {origins[-1]}, got {unknown}")
    rng = np.random.default_rng(seed)
    spread = np.nanstd(values, axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    told = dict(zip(origins.tolist(), _forecasts(make(values.copy()), values, origins, schedule, stream), strict=True))
    found = []
    for origin in sorted(set(examined)):
        other = values.copy()
        late = other[origin - schedule.delay + 1 :]
        late += rng.normal(5.0, 1.0, late.shape) * spread
        until = origins[origins <= origin]
        again = _forecasts(make(other.copy()), other, until, schedule, stream)[-1]
        if not np.array_equal(again, told[origin]):
            found.append(origin)
    return found


def _forecasts(
    model: Learner, values: Floats, origins: NDArray[np.int64], schedule: Schedule, stream: str
) -> list[Floats]:
    """The loop of the module; the judged part [H, C, Q] of the forecast at each origin."""
    delay, horizon, asked = schedule.delay, schedule.horizon, set(origins.tolist())
    found = []
    for t in range(delay, int(origins[-1]) + 1):
        model.observe(stream, schedule.start + (t - delay) * schedule.period, values[t - delay].copy())
        if t not in asked:
            continue
        made = np.array(model.forecast(stream, delay + horizon).quantiles, np.float64)
        if made.ndim != 3 or made.shape[:2] != (delay + horizon, values.shape[1]):
            wanted = f"{delay + horizon} steps and {values.shape[1]} channels"
            raise SchemaError(f"forecast must be [H, C, Q] of {wanted}, got {made.shape}")
        found.append(made[delay:])
    return found


def _seasonal(values: Floats, newest: NDArray[np.int64], season: int) -> Floats:
    """MASE's scale [N, C] of all values up to row `newest` [N]; a past no longer than the season has a season of 1."""
    short = (newest < season)[:, None]
    return np.where(short, _mean_change(values, newest, 1), _mean_change(values, newest, season))


def _mean_change(values: Floats, newest: NDArray[np.int64], lag: int) -> Floats:
    """Mean |y_t - y_{t-lag}| over t <= newest, from one running sum; NaN without a pair."""
    change = np.full(values.shape, np.nan)
    change[lag:] = np.abs(values[lag:] - values[:-lag])
    seen = np.isfinite(change)
    total, count = np.cumsum(np.where(seen, change, 0.0), axis=0)[newest], np.cumsum(seen, axis=0)[newest]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
