"""Rolling-origin backtests: which windows are judged, and one row per window of how it went.

Each window is forecast from the whole history before it, so a backtest never leaks and never truncates; its cost grows
with windows times history for predictors that do not stream.

    the last window ends at `end`;
    window j of n starts at  end - prediction_length - (n - 1 - j) * distance,  j = 0 .. n - 1
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol as Shape

import numpy as np
import pandas as pd
import polars as pl
from gluonts.dataset.split import DateSplitter, OffsetSplitter, TestData, periods_between

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.metrics import LEVELS, Judged, Predicts, Score, channel_key, evaluate, pooled, scores


class Entries(Sized, Shape):
    """A GluonTS dataset: sized, iterable more than once, entries with `start` and `target`."""

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        """Give the entries from the first on."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A fixed evaluation: what may be trained on, and which windows are judged."""

    name: str
    """How rows call it."""
    prediction_length: int
    """Steps of each forecast, >= 1."""
    season: int
    """Steps of MASE's season, >= 1."""
    windows: int
    """Forecasts of each series, >= 1."""
    distance: int
    """Steps from one origin to the next, >= 1; smaller than prediction_length lets windows overlap."""
    train_end: int | pd.Period
    """Training data are the first `train_end` rows, or those up to and including that period."""
    end: int | pd.Period | None = None
    """The last window ends after this many rows, or with this period; None: with each series."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        for field in ("prediction_length", "season", "windows", "distance"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} of {self.name} must be at least 1, got {getattr(self, field)}")

    def train(self, dataset: Entries) -> list[Mapping[str, object]]:
        """Cut every series where training must stop."""
        return training(dataset, self.train_end)

    def test(self, dataset: Entries) -> TestData:
        """Give the windows that are judged."""
        return windows(dataset, self.prediction_length, self.windows, distance=self.distance, end=self.end)


ETTH1_A = Protocol(
    name="ETTh1 A", prediction_length=24, season=24, windows=20, distance=24, train_end=11_520, end=14_400
)
ETTH1_B = Protocol(
    name="ETTh1 B", prediction_length=24, season=24, windows=20, distance=24, train_end=11_520, end=17_420
)
# The source ends at 23:00 UTC on 30 December, so October to December hold 91 whole days.
NYC_WEATHER = Protocol(
    name="NYC weather",
    prediction_length=24,
    season=24,
    windows=91,
    distance=24,
    train_end=pd.Period("2013-09-30 23:00", freq="h"),
    end=pd.Period("2013-12-30 23:00", freq="h"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Backtest:
    """What a backtest found."""

    rows: pl.DataFrame
    """One row per window and channel: item_id, window, start, channel, CRPS, MASE, coverage, observed."""
    overall: Score
    """All windows, series and channels pooled."""
    judged: Judged
    """Forecasts and labels, for plots and other groupings."""
    seconds: float
    """Wall clock of predicting and judging."""


def training(dataset: Entries, end: int | pd.Period) -> list[Mapping[str, object]]:
    """Cut every series after its first `end` rows, or after the period `end`; features of the future are cut too."""
    splitter = OffsetSplitter(end) if isinstance(end, int) else DateSplitter(end)
    return list(splitter.generate_training_entries(dataset))


def windows(
    dataset: Entries,
    prediction_length: int,
    windows: int,
    *,
    distance: int | None = None,
    end: int | pd.Period | None = None,
) -> TestData:
    """Give GluonTS test data of `windows` rolling windows per series, the whole history before each.

    distance: steps between origins, prediction_length unless given. end: see Protocol.end.
    Errors: ConfigError when a window would begin before the data or end after them.
    """
    step = prediction_length if distance is None else distance
    if min(prediction_length, windows, step) < 1:
        raise ConfigError(
            "prediction_length, windows and distance must be at least 1, "
            f"got prediction_length={prediction_length}, windows={windows}, distance={step}"
        )
    span = prediction_length + (windows - 1) * step
    for entry in dataset:
        length = np.shape(entry["target"])[-1]  # type: ignore[call-overload]
        stop = length if end is None else end
        if not isinstance(stop, int):
            stop = periods_between(entry["start"], stop)
        if not span < stop <= length:
            raise ConfigError(
                f"windows={windows} of prediction_length={prediction_length} at distance={step} span {span} rows "
                f"before end={stop}, but {entry.get('item_id', 'a series')} has {length} rows and needs some history; "
                "ask for fewer windows"
            )
    if end is None:
        splitter: OffsetSplitter | DateSplitter = OffsetSplitter(-span)
    else:
        splitter = OffsetSplitter(end - span) if isinstance(end, int) else DateSplitter(end - span)
    return TestData(dataset, splitter, prediction_length, windows, step)


def backtest(
    predictor: Predicts,
    test_data: TestData,
    *,
    season: int,
    levels: Sequence[float] = LEVELS,
    channels: Sequence[str] | None = None,
) -> Backtest:
    """Forecast and judge every window; errors as in `metrics.judge`."""
    began = time.perf_counter()
    judged = evaluate(predictor, test_data, season=season, levels=levels, channels=channels)
    rows = window_rows(judged)
    return Backtest(rows=rows, overall=pooled(judged), judged=judged, seconds=time.perf_counter() - began)


def window_rows(judged: Judged) -> pl.DataFrame:
    """Give one row per window and channel; null where a window holds nothing to judge by."""
    starts = {
        (item, window): start.to_timestamp()
        for item, window, start in zip(judged.items, judged.windows, judged.starts, strict=True)
    }
    found = scores(judged, lambda item, channel, window: (item, channel, str(window)))
    return pl.DataFrame(
        [
            {
                "item_id": item,
                "window": int(window),
                "start": starts[item, int(window)].to_pydatetime(),
                "channel": channel,
                **_figures(score),
            }
            for (item, channel, window), score in found.items()
        ],
        schema_overrides={"start": pl.Datetime("ns")},
    )


def summary(results: Mapping[str, Judged], by: str = "all") -> pl.DataFrame:
    """Compare models: one row per model and group, pooled over the group's cells.

    results: model name to what `evaluate` or `Backtest.judged` gave. by: all, item, or channel, which is the
    sensor's name in univariate series called stream/channel too.
    """
    keys = {
        "all": lambda _item, _channel, _window: ("all",),
        "item": lambda item, _channel, _window: (item,),
        "channel": channel_key,
    }
    if by not in keys:
        raise ConfigError(f"by must be one of {', '.join(keys)}, got {by!r}")
    if not results:
        raise SchemaError("results must hold at least one model")
    return pl.DataFrame(
        [
            {"model": model, by: name, **_figures(score)}
            for model, judged in results.items()
            for (name,), score in scores(judged, keys[by]).items()
        ]
    )


def _figures(score: Score) -> dict[str, float | int | None]:
    """Name the figures as tables do, with null for NaN."""

    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "CRPS": known(score.crps),
        "MASE": known(score.mase),
        "coverage": known(score.coverage),
        "observed": score.observed,
    }
