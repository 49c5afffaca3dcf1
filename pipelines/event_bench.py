"""Benchmarks of events, accuracy: New York's flights streamed event by event, and requests to language models.

    flights   departures and mean delay per airport and hour, 24 hours ahead, 91 days after nine months of training
              and at a random moment of every hour the time to the next departure of each airport (wait_bench.py)
    azure     requests per 10 s, 60 windows ahead, from every sixth window after half an hour of training

Both read their history event by event; the same forecasts are made from it in a batch, and the largest difference is a
row's `streamed_minus_batch`. Baselines are judged on the same windows in the same run, and the best of them is the
bar, whichever that is. Time is measured in event_speed.py. The settings come from trials on the training parts alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import pandas as pd
import polars as pl
from gluonts.dataset.split import TestData
from gluonts.model.forecast import Forecast as GluonForecast
from gluonts.model.predictor import RepresentablePredictor

from tsgdn2.datasets.event_sets import azure_llm_trace, flights
from tsgdn2.datasets.frame import TIME
from tsgdn2.datasets.gluon import event_entries
from tsgdn2.evaluation.backtest import Protocol, training, windows
from tsgdn2.evaluation.baselines import LastMean, SeasonalNaive
from tsgdn2.evaluation.holt_winters import HoltWinters
from tsgdn2.evaluation.metrics import Judged, channel_key, evaluate, judge, pooled, scores
from tsgdn2.evaluation.residuals import ResidualQuantiles
from tsgdn2.evaluation.rows import Row, row
from tsgdn2.events.online import OnlineEvents
from tsgdn2.pipelines.comparison import in_order
from tsgdn2.pipelines.estimator import GDN2Estimator
from tsgdn2.pipelines.event_source import ASKED, vocabulary
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.streaming import one_thread, stream_events
from tsgdn2.pipelines.wait_bench import WaitTest

OURS: Final = "tsgdn2, streamed event by event"
DEPARTURES: Final = Protocol(
    name="flights", prediction_length=24, season=168, windows=91, distance=24,
    train_end=pd.Period("2013-09-30 23:00", freq="h"), end=pd.Period("2013-12-30 23:00", freq="h"),
)  # fmt: skip
REQUESTS: Final = ("code", "conv")
TRAIN, HORIZON, EVERY = 180, 60, 6


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A model and its training, as GDN2Estimator takes them."""

    arguments: Mapping[str, object]
    epochs: int

    def quick(self) -> Settings:
        """Two batches of a small model, to see that everything works."""
        small = {"width": 16, "mlp": 16, "num_batches_per_epoch": 2, "batch_size": 4}
        return Settings(arguments={**self.arguments, **small}, epochs=1)


# Found by trials on the training parts (LOG.md); nothing here is a general recommendation.
FLIGHTS: Final = Settings(
    arguments=MappingProxyType(
        {"lag_skip": 168, "patch_length": 4, "channel_identity": True, "half_life": 336.0, "dropout": 0.1}
    ),
    epochs=8,
)
AZURE: Final = Settings(
    arguments=MappingProxyType(
        {
            "width": 16, "mlp": 32, "patch_length": 6, "half_life": 12.0, "dropout": 0.2, "validation_share": 0.35,
            "num_batches_per_epoch": 20, "lag_skip": 60, "lr": 2e-3,
        }
    ),
    epochs=8,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A predictor of one seed and the processor seconds of its training."""

    predictor: GDN2Predictor
    seed: int
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Streamed:
    """Forecasts of a test, event by event and in one batch, in the order of its windows."""

    forecasts: list[GluonForecast]
    batch: list[GluonForecast]
    nanoseconds: list[np.ndarray] = field(default_factory=list)
    """Wall clock of each event that was observed by itself."""

    def gap(self, labels: np.ndarray) -> float:
        """The largest difference between the two, in mean absolute labels of the channel [N, C, H]."""
        streamed, batch = (np.stack([one.forecast_array for one in own]) for own in (self.forecasts, self.batch))
        loud = np.nanmean(np.abs(labels), axis=(0, 2))
        return float((np.abs(streamed - batch).reshape(*streamed.shape[:3], -1) / loud).max())


@one_thread()
def flight_rows(seeds: Sequence[int], *, quick: bool) -> list[Row]:
    """Rows of the flights: both forms of SeasonalNaive, then ours by seed with its share of the better form."""
    targets, marks = ASKED["flights"].targets, ASKED["flights"].marks
    frame = flights(time="actual").select("stream", TIME, "type", *marks)
    protocol, settings = DEPARTURES, FLIGHTS
    if quick:
        protocol = Protocol(name="flights", prediction_length=24, season=168, windows=2, distance=24,
                            train_end=pd.Period("2013-02-01 23:00", freq="h"),
                            end=pd.Period("2013-02-03 23:00", freq="h"))  # fmt: skip
        frame, settings = frame.filter(pl.col(TIME).dt.month() < 3), settings.quick()
    data = event_entries(frame, "1h", targets={target: target for target in targets}, marks=marks)
    test, season = protocol.test(data), protocol.season
    shape: dict[str, str | int] = {"horizon": protocol.prediction_length, "windows": protocol.windows}
    naive = {spread: evaluate(SeasonalNaive(24, season, spread), test, season=season, channels=targets)
             for spread in ("point", "normal")}  # fmt: skip
    rows = [row(f"flights: SeasonalNaive({season} h), {spread}", shape, **_figures(judged))
            for spread, judged in naive.items()]  # fmt: skip
    bar = {name: min(_figures(judged)[name] for judged in naive.values()) for name in _figures(naive["point"])}
    first, end = protocol.train_end, protocol.end
    assert isinstance(first, pd.Period)
    assert isinstance(end, pd.Period)
    since = (first + 1).start_time.value
    waiting = WaitTest.of("flights", frame, since, (end + 1).start_time.value)
    bars = waiting.baselines()
    rows += bars
    for one in _trained(settings, "h", 24, protocol.train(data), targets, marks, seeds):
        streamed = _stream(one.predictor, frame, test, since)
        judged = judge(streamed.forecasts, test.label, test.input, season=season, channels=targets)
        rows += [_ours("flights", shape, one, judged, bar, streamed), waiting.ours(one.predictor, one.seed, bars)]
    return rows


@one_thread()
def azure_rows(seeds: Sequence[int], *, quick: bool) -> list[Row]:
    """Rows of the request traces: every baseline as a point and with quantiles, then ours by seed."""
    marks = ASKED["azure_code"].marks
    frames = {name: azure_llm_trace(name).select("stream", TIME, "type", *marks) for name in REQUESTS}
    data = [event_entries(frame, "10s", targets={"count": "count"}, marks=marks)[0] for frame in frames.values()]
    train = training(data, TRAIN)
    tests = [_rolling(entry, 2 if quick else None) for entry in data]
    settings = AZURE.quick() if quick else AZURE
    shape: dict[str, str | int] = {"horizon": HORIZON, "windows": sum(len(list(test.label)) for test in tests)}
    rows: list[Row] = []
    found: list[dict[str, Any]] = []
    for name, point, first in _rivals():
        forms = {"point": point}
        if first is not None:
            every = 12 if quick else 1
            forms["quantiles of its errors"] = ResidualQuantiles.train(point, train, first=first, every=every)
        for form, predictor in forms.items():
            figures = _figures(_judged([list(predictor.predict(test.input)) for test in tests], tests))
            found.append(figures)
            rows.append(row(f"azure: {name}, {form}", shape, **figures))
    bar = {name: min(figures[name] for figures in found) for name in found[0]}
    for one in _trained(settings, "10s", HORIZON, train, ("count",), marks, seeds):
        parts = [_stream(one.predictor, frames[name], test) for name, test in zip(REQUESTS, tests, strict=True)]
        judged = _judged([part.forecasts for part in parts], tests)
        whole = Streamed(forecasts=[f for part in parts for f in part.forecasts],
                         batch=[f for part in parts for f in part.batch],
                         nanoseconds=[n for part in parts for n in part.nanoseconds])  # fmt: skip
        rows.append(_ours("azure", shape, one, judged, bar, whole))
    return rows


def _rivals() -> Iterator[tuple[str, RepresentablePredictor, int | None]]:
    """Name, point forecaster, and the windows before its first own error; None: too many to have quantiles."""
    yield "mean of the last minute", LastMean(HORIZON, 6), 30
    yield "SeasonalNaive(1 min)", SeasonalNaive(HORIZON, 6), 30
    yield "SeasonalNaive(10 min)", SeasonalNaive(HORIZON, 60), 60
    yield "Holt-Winters, season of 1 min", HoltWinters(HORIZON, 6), 30
    yield "Holt-Winters, season of 1 min, damped", HoltWinters(HORIZON, 6, damped=True), 30
    yield "Holt-Winters, no season, damped", HoltWinters(HORIZON, damped=True), 30
    yield "Holt-Winters, season of 10 min", HoltWinters(HORIZON, 60), None


def _rolling(entry: Mapping[str, object], count: int | None) -> TestData:
    """Origins every EVERY windows from TRAIN on, as many as there are."""
    length = np.shape(entry["target"])[-1]  # type: ignore[call-overload]
    number = (length - TRAIN - HORIZON) // EVERY + 1 if count is None else count
    return windows([entry], HORIZON, number, distance=EVERY, end=TRAIN + HORIZON + (number - 1) * EVERY)


def _trained(
    settings: Settings, freq: str, horizon: int, train: Sequence[Mapping[str, object]], targets: Sequence[str],
    marks: Sequence[str], seeds: Sequence[int],
) -> Iterator[Trained]:  # fmt: skip
    """Train one model per seed on the same data."""
    types = vocabulary(train, unknown="raise")
    for seed in seeds:
        began = time.process_time()
        estimator: GDN2Estimator = GDN2Estimator(
            freq, horizon, event_types=types, event_targets=list(targets), event_marks=list(marks), seed=seed,
            trainer_kwargs={"max_epochs": settings.epochs}, **settings.arguments,
        )  # fmt: skip
        predictor = estimator.train(train)
        yield Trained(predictor=predictor, seed=seed, cpu_seconds=time.process_time() - began)


def _stream(predictor: GDN2Predictor, frame: pl.DataFrame, test: TestData, since: int | None = None) -> Streamed:
    """Forecasts at the beginning of every window of a test; events before `since` [ns] are taken in at once."""
    online = OnlineEvents.from_predictor(predictor)
    stamp, period = pl.col(TIME).to_physical(), predictor.config.period_ns
    starts = sorted({label["start"] for label in test.label})
    stop = (starts[-1]).start_time.value
    if since is not None:
        online.observe_many(frame.filter(stamp < since))
    rest = frame.filter((stamp >= (since if since is not None else -(2**63))) & (stamp < stop))
    seen = stream_events(online, rest, [start.start_time.value // period - 1 for start in starts])
    found = {(one.stream, pd.Period(pd.Timestamp(one.times[0]), freq=predictor.freq)): one.to_gluonts()
             for one in seen.forecasts}  # fmt: skip
    batch = list(predictor.predict(test.input))
    return Streamed(forecasts=in_order(test, found), batch=batch, nanoseconds=[seen.nanoseconds])


def _judged(forecasts: Sequence[Sequence[GluonForecast]], tests: Sequence[TestData]) -> Judged:
    """Several tests of one channel as one; its items are the traces."""
    labels = [label for test in tests for label in test.label]
    inputs = [past for test in tests for past in test.input]
    return judge([f for own in forecasts for f in own], labels, inputs, season=EVERY)


def _figures(judged: Judged) -> dict[str, Any]:
    """CRPS of every channel, or of every series where there is one channel, and of all cells pooled."""
    by_item = len(judged.channels) == 1
    parts = scores(judged, (lambda item, _channel, _window: (item,)) if by_item else channel_key)
    return {**{f"CRPS {name}": score.crps for (name,), score in parts.items()}, "CRPS": pooled(judged).crps}


def _ours(
    data: str, shape: Mapping[str, str | int], one: Trained, judged: Judged, bar: Mapping[str, float],
    streamed: Streamed,
) -> Row:  # fmt: skip
    figures, each = _figures(judged), np.concatenate(streamed.nanoseconds) / 1e3
    weights = sum(p.numel() for p in one.predictor.forecaster.parameters())
    return row(
        f"{data}: {OURS}", {**shape, "parameters": weights}, seed=one.seed, cpu_seconds=one.cpu_seconds,
        **figures, **{f"{name} / best baseline": value / bar[name] for name, value in figures.items()},
        coverage=pooled(judged).coverage, streamed_minus_batch=streamed.gap(judged.labels), events=len(each),
        median_us=float(np.median(each)), mean_us=float(each.mean()),
    )  # fmt: skip
