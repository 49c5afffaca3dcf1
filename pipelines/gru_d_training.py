"""Train the rival GRU-D as our forecaster is trained: the same windows, loss, optimiser, schedule, average and choice.

    a batch: windows of `context_length` steps of lanes drawn by their length, a query after every `stride` steps
    each series also appears in a copy per hidden share: cells hidden from the inputs, never from the targets

The last `validation_share` of every series picks the weights. Univariate series only, as the rival itself.
B windows, N queries, H horizon, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from tsgdn2.errors import SchemaError
from tsgdn2.evaluation.gru_d import GRUD, GRUDConfig, GRUDPredictor, Inputs, Lane, lane, stack
from tsgdn2.forecaster import Forecaster
from tsgdn2.head import quantile_loss
from tsgdn2.pipelines.entries import Entry, absolute_step
from tsgdn2.pipelines.lightning_module import ForecastTraining
from tsgdn2.pipelines.loader import WindowSampler
from tsgdn2.pipelines.trainer import run
from tsgdn2.scale import Bools, Floats
from tsgdn2.timeline import Ints


class Batch(NamedTuple):
    """Windows with lead-in rows for the lags, queries at rows `at` [N] of the window, target and weight [B, N, H]."""

    inputs: Inputs
    lead: int
    at: Ints
    target: Floats
    weight: Bools
    fresh: bool = True


class Sample(NamedTuple):
    """A lane to learn from: what is shown, what came true [T] in its unit (NaN is missing), first row held out."""

    shown: Lane
    truth: Floats
    cut: int


class GRUDTraining(ForecastTraining):
    """ForecastTraining of the rival: only what a batch means is its own."""

    def loss(self, model: object, batch: Batch, _state: object) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Mean loss over the observed targets of a batch; the state is not carried."""
        assert isinstance(model, GRUD)
        states = model(batch.inputs.part(batch.lead), model.initial_state(len(batch.inputs.x)))
        at = torch.from_numpy(batch.at)
        out = model.read(states[:, at], model.lags(batch.inputs, at + batch.lead))[..., None, :]
        weight = torch.from_numpy(batch.weight)[..., None].to(out.dtype)
        each = quantile_loss(out, torch.from_numpy(batch.target)[..., None].to(out.dtype), self.levels.to(out.dtype))
        return (each * weight).sum() / weight.sum().clamp_min(1.0), states[:, -1]


class Windows:
    """An endless stream of training batches; the same seed gives the same ones."""

    def __init__(
        self, model: GRUD, samples: Sequence[Sample], *, stride: int, batch_size: int, batches: int, seed: int
    ) -> None:
        self.model, self.samples, self.stride = model, samples, stride
        self.batch_size, self.batches = batch_size, batches
        self.rng = np.random.default_rng(seed)
        sizes = np.array([sample.cut for sample in samples], np.float64)
        self._chance = sizes / sizes.sum()

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        steps = self.model.config.context_length
        for _ in range(self.batches):
            drawn = [self.samples[i] for i in self.rng.choice(len(self.samples), self.batch_size, p=self._chance)]
            begins = [int(self.rng.integers(max(1, sample.cut - steps))) for sample in drawn]
            at = np.arange(int(self.rng.integers(self.stride)), steps, self.stride)
            yield assemble(self.model, drawn, begins, at, [(0, sample.cut) for sample in drawn])


def train(
    data: Sequence[Entry],
    config: GRUDConfig,
    *,
    hidden_shares: Sequence[float] = (),
    epochs: int,
    batches: int,
    batch_size: int = 32,
    stride: int = 4,
    lr: float = 4e-3,
    weight_decay: float = 0.05,
    validation_share: float = 0.1,
    seed: int = 0,
    trainer_kwargs: Mapping[str, object] | None = None,
) -> GRUDPredictor:
    """Fit on univariate entries and return the predictor with the best averaged weights. SchemaError without data."""
    rng = np.random.default_rng([seed, 1])
    samples, priors = [], {}
    for index, entry in enumerate(data):
        values = np.asarray(entry["target"], np.float64)
        if values.ndim != 1:
            raise SchemaError(f"training_data: GRU-D reads univariate targets [T], got shape {values.shape}")
        held = max(config.prediction_length, int(len(values) * validation_share))
        cut = max(len(values) - held, len(values) // 2)
        known = values[:cut][np.isfinite(values[:cut])]
        prior = float(known.std()) if len(known) and known.std() > 0 else 1.0
        priors[str(entry.get("item_id", index))] = prior
        start = absolute_step(entry["start"], config.period_ns)  # type: ignore[arg-type]
        for share in (0.0, *hidden_shares):
            hidden = rng.random(len(values)) < share
            samples.append(Sample(lane(values, start, prior, config.half_life, hidden), values, cut))
    if not samples:
        raise SchemaError("training_data: empty; there is nothing to train on")
    torch.manual_seed(seed)
    model = GRUD(config)
    module = GRUDTraining(
        cast(Forecaster, model), learning_rate=lr, weight_decay=weight_decay, steps=epochs * batches
    )  # the module asks a forecaster for its levels and its dtype alone
    windows = Windows(model, samples, stride=stride, batch_size=batch_size, batches=batches, seed=seed)
    checks = held_out(model, samples, stride=stride, batch_size=batch_size)
    options = {"max_epochs": epochs, **(trainer_kwargs or {})}
    run(module, cast(WindowSampler, windows), cast(list[object], checks), options)  # type: ignore[arg-type]
    return GRUDPredictor(cast(GRUD, module.best()), priors)


def held_out(model: GRUD, samples: Sequence[Sample], *, stride: int, batch_size: int) -> list[Batch]:
    """Windows that score every query after a sample's cut once, warmed by at least half of their steps."""
    steps = model.config.context_length
    warm = steps // 2
    runs = [
        (sample, begin - warm) for sample in samples for begin in range(sample.cut - 1, len(sample.truth), steps - warm)
    ]
    batches = []
    for first in range(0, len(runs), batch_size):
        part = runs[first : first + batch_size]
        drawn = [sample for sample, _ in part]
        limits = [(sample.cut, len(sample.truth)) for sample in drawn]
        made = assemble(model, drawn, [begin for _, begin in part], np.arange(warm, steps, stride), limits)
        if made.weight.any():
            batches.append(made)
    return batches


def assemble(
    model: GRUD, drawn: Sequence[Sample], begins: Sequence[int], at: Ints, limits: Sequence[tuple[int, int]]
) -> Batch:
    """Windows from `begins` on, which may lie before a lane; only targets at rows in [low, high) of `limits` weigh."""
    config = model.config
    lead = max(0, config.lag_skip - 1)
    steps = config.context_length
    horizon = np.arange(1, config.prediction_length + 1)
    target = np.zeros((len(drawn), len(at), len(horizon)))
    weight = np.zeros(target.shape, np.bool_)
    for row, (sample, begin, (low, high)) in enumerate(zip(drawn, begins, limits, strict=True)):
        query = begin + at
        there = (query >= 0) & (query < len(sample.truth))
        step = query[:, None] + horizon
        inside = there[:, None] & (step >= low) & (step < min(high, len(sample.truth)))
        value = np.where(inside, sample.truth[np.clip(step, 0, len(sample.truth) - 1)], np.nan)
        own = np.clip(query, 0, len(sample.truth) - 1)
        weight[row] = np.isfinite(value)
        z = (value - sample.shown.mean[own, None]) / sample.shown.scale[own, None]
        target[row] = np.where(weight[row], z, 0.0)
    shown = [sample.shown for sample in drawn]
    inputs = stack(model, shown, [begin - lead for begin in begins], steps + lead)
    return Batch(inputs, lead, at, target, weight)
