"""One row of the GIFT-Eval table: train a model on a configuration at a budget, judge its windows, stream them once.

    batch     every window from the whole history before it                          -> MASE, CRPS
    stream    one pass of the online predictor over the series, a forecast at each origin
    streamed_minus_batch = max |difference of a quantile| / deviation of the channel's training part

`inside` does all of it on the training part alone, cut anew by the same rules: that is where settings are chosen.
A task is plain data and `measure` a plain function, so that processes can take them. One thread each: small passes that
share cores wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import polars as pl
from gluonts.model.forecast import Forecast
from numpy.typing import NDArray

from tsgdn2.datasets.frame import STREAM, TIME, channels
from tsgdn2.datasets.gift_eval import frame_without_markers, gift_eval_frame, without_markers
from tsgdn2.errors import SchemaError
from tsgdn2.evaluation.gift_eval import (
    NAIVE,
    SEASONAL_NAIVE,
    Configuration,
    configuration,
    judge,
    length_of,
    naive,
    seasonal_naive,
    series,
)
from tsgdn2.evaluation.metrics import Judged, Predicts
from tsgdn2.evaluation.rows import Row, Value, row
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.budget import CpuBudget
from tsgdn2.pipelines.estimator import GDN2Estimator
from tsgdn2.pipelines.gift_eval_recipes import recipe, rival_digest, seconds
from tsgdn2.pipelines.linear_start import linear_start
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.streaming import one_thread
from tsgdn2.pipelines.together import Together, together

Floats: TypeAlias = NDArray[np.float64]

OURS: Final = "tsgdn2"
STILL: Final[dict[str, object]] = {"lr": 1e-12, "num_batches_per_epoch": 1, "batch_size": 1}
"""A training that moves nothing, for the validation loss of where it begins."""
UNSEEDED: Final = frozenset({SEASONAL_NAIVE, NAIVE, "SeasonalNaive"})
"""Models that chance has no part in: one row, whatever the seeds."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process does at a time."""

    model: str
    """Ours, the protocol's naive ones, or a rival."""
    configuration: str
    """dataset/freq/term."""
    seed: int | None
    """None where chance has no part."""
    budget: float
    """Processor minutes of the whole family."""
    streaming: bool = True
    """Stream too, where the model can."""
    inside: bool = False
    """The training part stands for the whole series; no window of the benchmark is looked at."""

    @property
    def key(self) -> tuple[object, ...]:
        """What makes a row of this task: the same settings, seed and budget."""
        return self.model, self.configuration, self.seed, *_settings(self), self.inside

    def answered_by(self, found: Row | None) -> bool:
        """Whether a row of this key says all that is asked: one that was not streamed does not do where it should."""
        wanted = self.streaming and self.model == OURS
        return found is not None and (not wanted or found.values.get("streamed_minus_batch") is not None)


def key(found: Row) -> tuple[object, ...]:
    """The task that a row answers."""
    shape = found.shape
    settings = shape.get("budget"), shape.get("recipe"), bool(shape.get("inside"))
    return found.what, shape.get("configuration"), found.seed, *settings


def tasks(
    models: Sequence[str],
    names: Sequence[str],
    seeds: Sequence[int],
    budget: float,
    *,
    streaming: bool,
    inside: bool = False,
) -> list[Task]:
    """Every model on every configuration with every seed; the reference first."""
    return [
        Task(
            model=model, configuration=name, seed=seed, budget=budget, streaming=streaming and not inside, inside=inside
        )
        for model in dict.fromkeys((SEASONAL_NAIVE, *models))
        for name in names
        for seed in ((None,) if model in UNSEEDED else seeds)
    ]


@one_thread()
def measure(task: Task) -> Row:
    """Do one task. Errors: those of the data, of the training and of the judging."""
    one = configuration(task.configuration)
    dataset: list[Mapping[str, object]] = list(series(one))
    protocol = one.protocol(length_of(dataset))
    if task.inside:
        dataset = protocol.train(dataset)
        protocol = one.protocol(length_of(dataset))
    train = without_markers(protocol.train(dataset))
    began = time.process_time()
    predictor, facts, ours = _trained(task, one, train)
    used = time.process_time() - began
    cleaned = predictor if ours is None else Together(ours, prepare=without_markers, block=1)
    found = judge(one, cleaned, dataset)
    judged = time.process_time() - began - used
    values: dict[str, Any] = {
        "MASE": found.overall.mase, "CRPS": found.overall.crps, "coverage": found.overall.coverage,
        "observed": found.overall.observed, "judging_cpu_seconds": judged, **facts,
    }  # fmt: skip
    if ours is not None and task.streaming:
        began = time.process_time()
        values["streamed_minus_batch"] = streamed_minus_batch(ours, one, found.judged, train)
        values["streaming_cpu_seconds"] = time.process_time() - began
    budget, digest = _settings(task)
    shape: dict[str, Value] = {
        "configuration": one.name, "horizon": one.horizon, "windows": protocol.windows, "series": len(dataset),
        "training_rows": len(np.asarray(train[0]["target"])), "budget": budget, "recipe": digest,
        "inside": task.inside,
    }  # fmt: skip
    return row(task.model, shape, seed=task.seed, cpu_seconds=used, **values)


def train_ours(
    one: Configuration, train: Sequence[Mapping[str, object]], *, seed: int, budget: float
) -> tuple[GDN2Predictor, CpuBudget]:
    """Train our model on univariate entries of one stream by the configuration's recipe. Errors: the estimator's.

    Early stopping counts from step 0: where no epoch has a lower validation loss than the start, the start is kept.
    """
    began = time.process_time()
    own, stacked = recipe(one), together(train)
    names = [str(entry["item_id"]).rpartition("/")[2] for entry in train]
    limit = CpuBudget(seconds(one, budget))
    fixed: dict[str, Any] = {"target_channels": len(names), "channel_names": names, "seed": seed}
    estimator = GDN2Estimator(
        one.pandas_freq, one.horizon, **fixed, **own.model,
        trainer_kwargs={"max_epochs": own.epochs_at(budget), "callbacks": [limit]},
    )  # fmt: skip
    still = GDN2Estimator(
        one.pandas_freq, one.horizon, **fixed, **{**own.model, **STILL}, trainer_kwargs={"max_epochs": 1},
    )  # fmt: skip
    start, _ = linear_start(estimator, stacked, season=one.season)
    before = still.fit(stacked, None, start)
    limit.seconds = max(0.0, limit.seconds - (time.process_time() - began))  # the line is part of the budget
    after = estimator.fit(stacked, None, start)
    predictor = (before if before.best_loss < after.best_loss else after).predictor(estimator)
    predictor.batch_size = 1  # one window of all channels at a time: histories are long
    return predictor, limit


def streamed_minus_batch(
    predictor: GDN2Predictor, one: Configuration, batch: Judged, train: Sequence[Mapping[str, object]]
) -> float:
    """Largest difference between the streamed and the batch forecasts of the same windows; see the module."""
    frame = frame_without_markers(gift_eval_frame(one.dataset, one.freq))
    names = channels(frame)
    ends = sorted({start.ordinal // start.freq.n for start in batch.starts})
    zero = train[0]["start"]
    origins = [end - zero.ordinal // zero.freq.n for end in ends]  # type: ignore[attr-defined]
    streamed = stream_once(predictor, frame, origins)
    column = {f"{one.dataset}/{name}": number for number, name in enumerate(names)}
    spread = np.array([np.nanstd(np.asarray(entry["target"], np.float64)) for entry in train])
    worst = 0.0
    for number, (item, window) in enumerate(zip(batch.items, batch.windows, strict=True)):
        theirs = streamed[window][:, column[item]].T  # [Q, H]
        name = f"{item}, window {window}"
        worst = max(worst, difference(theirs, batch.quantiles[number, :, 0], spread[column[item]], name))
    return worst


def difference(streamed: Floats, batch: Floats, spread: float, name: str) -> float:
    """Largest difference of two forecasts in deviations of the channel; SchemaError where one is not finite."""
    found = float(np.abs(streamed - batch).max() / (spread or 1.0))
    if not np.isfinite(found):  # a maximum over windows would pass over it
        raise SchemaError(f"forecasts: those of {name} are not finite, streamed or in a batch")
    return found


def stream_once(predictor: GDN2Predictor, frame: pl.DataFrame, origins: Sequence[int]) -> list[Floats]:
    """Feed a frame of one stream row by row; forecast when `origin` steps of the grid have passed. [H, C, Q] each.

    Rows are those before the step of each origin, gaps are gaps; the clock stands at the last step before it.
    """
    online = OnlinePredictor.from_predictor(predictor, channels=channels(frame))
    stream, period = str(frame[STREAM][0]), online.config.period_ns
    stamps = frame[TIME].to_physical().to_numpy()
    found, before = [], 0
    for origin in origins:
        end = stamps[0] + origin * period
        until = int(np.searchsorted(stamps, end))
        online.observe_many(frame[before:until])
        before = until
        found.append(online.forecast(stream, at=int(end - period)).quantiles)
    return found


def _settings(task: Task) -> tuple[float | None, str | None]:
    """Budget and recipe of a row; neither for a model that is not trained."""
    if task.model in UNSEEDED:
        return None, None
    one = configuration(task.configuration)
    return task.budget, recipe(one).digest if task.model == OURS else rival_digest(one, task.budget)


def _trained(
    task: Task, one: Configuration, train: Sequence[Mapping[str, object]]
) -> tuple[Predicts, dict[str, int], GDN2Predictor | None]:
    """The predictor of a task, what it is made of, and itself where it can stream."""
    if task.model == SEASONAL_NAIVE:
        return seasonal_naive(one), {}, None
    if task.model == NAIVE:
        return naive(one), {}, None
    if task.model == OURS:
        made, limit = train_ours(one, train, seed=task.seed or 0, budget=task.budget)
        weights = sum(p.numel() for p in made.forecaster.parameters())
        return made, {"steps": limit.steps, "parameters": weights}, made
    from tsgdn2.pipelines.gift_eval_rivals import rival  # GluonTS's networks, which only rivals need

    theirs, limit = rival(task.model, one, train, seconds=seconds(one, task.budget), seed=task.seed or 0)
    return Cleaned(theirs), {"steps": limit.steps}, None


class Cleaned:
    """A predictor that is fed without markers, as ours is, in the float32 that GluonTS's networks are in.

    The protocol's naive ones get the markers, as published.
    """

    def __init__(self, predictor: Predicts) -> None:
        """Wrap any predictor of univariate entries."""
        self.predictor = predictor

    def predict(self, dataset: Iterable[Mapping[str, object]]) -> Iterator[Forecast]:
        """Forecast every entry."""
        entries = without_markers(dict(entry) for entry in dataset)
        yield from self.predictor.predict([
            {**entry, "target": np.asarray(entry["target"], np.float32)} for entry in entries
        ])  # fmt: skip
