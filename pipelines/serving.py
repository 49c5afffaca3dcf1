"""The serving benchmark: one update and one forecast, by the age of a stream and by the number of streams.

    age        one stream, 10^3 .. 10^6 observations behind it, every one of them fed
    streams    1 .. 10,000 streams of one age, each timing over the number of streams

In a turn every contender, at every age, takes one patch of updates and makes one forecast; turns alternate, medians
over them. Our updates close a patch in every eighth step, so a patch is the least that shows their mean. Ratios are of
one turn, so that what else the machine does falls on both sides; medians over the turns again. Models of GluonTS are
trained for a moment: it is their time that counts here, and no weight changes that. One thread.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as pl
import numpy as np
from gluonts.model.seasonal_naive import SeasonalNaivePredictor
from gluonts.torch import (
    DeepAREstimator,
    DLinearEstimator,
    PatchTSTEstimator,
    TemporalFusionTransformerEstimator,
)
from gluonts.torch.model.i_transformer import ITransformerEstimator

from tsgdn2.evaluation.metrics import LEVELS, Predicts
from tsgdn2.evaluation.rows import Row, Timing, Value, row, timing_quantiles
from tsgdn2.evaluation.serving import SEASON, Online, Rerun, River, Serves, Stepped, entries_of, values_of
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.estimator import GDN2Estimator
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.streaming import one_thread

HORIZON: Final = 24
PATCH: Final = 8
CONTEXT: Final = 96
LAGS: Final = (1, 2, 3, 24)
CHANNEL: Final = "value"
OURS: Final = "tsgdn2"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How old and how many the streams are, and how often each is asked."""

    ages: tuple[int, ...] = (10**3, 10**4, 10**5, 10**6)
    """Observations behind one stream."""
    streams: tuple[tuple[int, int], ...] = ((10, 10), (100, 5), (1_000, 5), (10_000, 3))
    """Numbers of streams, and the turns of each."""
    history: int = 128
    """Observations behind each of many streams."""
    turns: int = 40
    """Turns of one stream."""
    batches: int = 20
    """Batches that the models are trained for."""


QUICK: Final = Plan(ages=(200, 400), streams=((3, 2),), history=104, turns=2, batches=2)
"""Seconds instead of minutes."""


@dataclass(eq=False)
class Clocked:
    """A contender with its age, and what it took: wall clock and processor, seconds for all its streams."""

    name: str
    serves: Serves
    age: int
    updates: list[float]
    update_cpu: list[float]
    forecasts: list[float]
    forecast_cpu: list[float]


def serving_rows(seed: int, *, quick: bool) -> Iterator[Row]:
    """Rows of one stream by age, then of many streams by number."""
    with one_thread():
        plan = QUICK if quick else Plan()
        makers = _makers(plan, seed)
        young = {name: make(1) for name, make in makers.items()}
        aged, age = [], 0
        for mark in plan.ages:
            for name, serves in young.items():
                serves.feed(values_of(1, age, mark, seed))
                aged.append(_clocked(name, serves.copy(), mark))
            age = mark
        yield from _rows(aged, plan.turns, seed)
        for count, turns in plan.streams:
            many = []
            for name, make in makers.items():
                serves = make(count)
                serves.feed(values_of(count, 0, plan.history, seed))
                many.append(_clocked(name, serves, plan.history))
            yield from _rows(many, turns, seed)


def _clocked(name: str, serves: Serves, age: int) -> Clocked:
    return Clocked(name, serves, age, [], [], [], [])


def _rows(contenders: list[Clocked], turns: int, seed: int) -> Iterator[Row]:
    """Let all take turns, then give one row each."""
    values = values_of(contenders[0].serves.streams, 0, (turns + 1) * PATCH, seed + 1)
    with _quiet():
        for turn in range(turns + 1):
            for one in contenders:
                _turn(one, values[:, turn * PATCH : (turn + 1) * PATCH])
                if turn == 0:  # first calls load and allocate
                    one.updates, one.update_cpu, one.forecasts, one.forecast_cpu = [], [], [], []
    ours = {one.age: one for one in contenders if one.name.startswith(OURS)}
    youngest = {one.name: one for one in reversed(contenders)}
    for one in contenders:
        yield _row(one, ours[one.age], youngest[one.name], seed)


def _turn(one: Clocked, values: np.ndarray) -> None:
    """A patch of updates and one forecast."""
    for column in np.ascontiguousarray(values.T):
        wall, used = time.perf_counter(), time.process_time()
        one.serves.update(column)
        one.updates.append(time.perf_counter() - wall)
        one.update_cpu.append(time.process_time() - used)
    wall, used = time.perf_counter(), time.process_time()
    one.serves.forecast()
    one.forecasts.append(time.perf_counter() - wall)
    one.forecast_cpu.append(time.process_time() - used)


def _ratios(one: Clocked, other: Clocked, over: str) -> dict[str, Any]:
    """Time of an update (mean of a patch) and of a forecast over another's of the same turn; medians."""
    updates = [_patches(each) for each in (one, other)]
    forecasts = [np.array(each.forecasts) for each in (one, other)]
    return {f"{name}_over_{over}": float(np.median(own / its))
            for name, (own, its) in (("update", updates), ("forecast", forecasts))}  # fmt: skip


def _patches(one: Clocked) -> np.ndarray:
    """Seconds of an update, mean of each patch of them, [turns]."""
    return np.asarray(np.reshape(one.updates, (-1, PATCH)).mean(1))


def _row(one: Clocked, ours: Clocked, youngest: Clocked, seed: int) -> Row:
    count = one.serves.streams
    figures: dict[str, Any] = {
        "update_us": float(np.median(one.updates)) / count * 1e6,
        "update_patch_us": float(np.median(_patches(one))) / count * 1e6,
        "update_mean_us": float(np.mean(one.updates)) / count * 1e6,
        "update_cpu_us": float(np.mean(one.update_cpu)) / count * 1e6,
        "forecast_us": float(np.median(one.forecasts)) / count * 1e6,
        "forecast_cpu_us": float(np.mean(one.forecast_cpu)) / count * 1e6,
        "bytes": one.serves.nbytes(),
    }
    if one is not ours:
        figures |= _ratios(one, ours, "ours")
    if one is not youngest:
        figures |= _ratios(one, youngest, "youngest")
    shape: dict[str, Value] = {
        "streams": count,
        "observations": one.age,
        "horizon": HORIZON,
        "turns": len(one.forecasts),
    }
    timing = Timing(seconds=timing_quantiles(one.forecasts), cpu_seconds=sum(one.update_cpu) + sum(one.forecast_cpu))
    what = f"{one.name}, {count:,} stream{'s' if count > 1 else ''}"
    return row(what, shape, seed=seed, timing=timing, **figures)


def _makers(plan: Plan, seed: int) -> dict[str, Callable[[int], Serves]]:
    """Contender by name, for a number of streams; what can be trained once is trained here."""
    data = values_of(4, 0, 1_000, seed)
    ours = _ours(data, plan, seed)
    patchtst = _gluonts(PatchTSTEstimator, data, plan, seed, patch_len=16, stride=8, scaling="std")
    deepar = _gluonts(DeepAREstimator, data, plan, seed, freq="h", lags_seq=list(LAGS))
    tft = _gluonts(TemporalFusionTransformerEstimator, data, plan, seed, freq="h", quantiles=list(LEVELS))
    dlinear = _gluonts(DLinearEstimator, data, plan, seed)
    itransformer = _gluonts(ITransformerEstimator, data[:, None], plan, seed)
    naive = SeasonalNaivePredictor(prediction_length=HORIZON, season_length=SEASON)

    def online(streams: int) -> Serves:
        return Online(OnlinePredictor.from_predictor(ours, channels=(CHANNEL,)), streams)

    return {
        f"{OURS}, observe and forecast": online,
        "nn.LSTM, one step": lambda streams: Stepped(HORIZON, len(LEVELS), 64, streams),
        "River SNARIMAX, learn and forecast": lambda streams: River(HORIZON, streams),
        "GluonTS SeasonalNaive, run again": lambda streams: Rerun(naive, SEASON, streams),
        "GluonTS DLinear, run again": lambda streams: Rerun(dlinear, CONTEXT, streams),
        "GluonTS PatchTST, run again": lambda streams: Rerun(patchtst, CONTEXT, streams),
        "GluonTS iTransformer, run again": lambda streams: Rerun(itransformer, CONTEXT, streams, variates=True),
        "GluonTS TFT, run again": lambda streams: Rerun(tft, CONTEXT, streams),
        "GluonTS DeepAR, run again": lambda streams: Rerun(deepar, CONTEXT + max(LAGS), streams),
    }


def _ours(data: np.ndarray, plan: Plan, seed: int) -> GDN2Predictor:
    estimator: GDN2Estimator = GDN2Estimator(
        "h", HORIZON, patch_length=PATCH, context_length=256, num_batches_per_epoch=plan.batches, seed=seed,
        trainer_kwargs={"max_epochs": 1},
    )  # fmt: skip
    return estimator.train(entries_of(data))


def _gluonts(kind: Any, data: np.ndarray, plan: Plan, seed: int, **settings: object) -> Predicts:
    """A model of GluonTS at its own size, on CONTEXT steps."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        pl.seed_everything(seed, verbose=False)
        trainer = {
            "max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
            "enable_model_summary": False, "default_root_dir": str(Path(folder)),
        }  # fmt: skip
        estimator = kind(
            prediction_length=HORIZON, context_length=CONTEXT, batch_size=32, num_batches_per_epoch=plan.batches,
            trainer_kwargs=trainer, **settings,
        )  # fmt: skip
        predictor: Predicts = estimator.train(entries_of(data))
    return predictor


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says of a training that is this short on purpose, and torch of GluonTS's indices."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
