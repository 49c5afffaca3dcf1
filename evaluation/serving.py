"""What a service asks of a forecaster, one observation and one forecast, of ours and of rivals, behind one contract.

    update     one new value of each of N streams               forecast   H steps of each of N streams
    feed       values that came before, [N, T], not timed

Rivals that keep no state are re-run on the context that they were built for, which they get cut out of a ring of its
last values: that is the least they need, and the same at every age. River's model learns with each value, the others
do not. Forecasts are not judged here, only timed.

N streams, T steps, H horizon.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any, Final, Protocol, Self

import numpy as np
import pandas as pd
import polars as pl
import torch
from torch import nn

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.metrics import Predicts
from tsgdn2.online import OnlinePredictor
from tsgdn2.scale import Floats

HOUR_NS: Final = 3_600_000_000_000
BEGIN: Final = 1_700_000_000 // 3600 * HOUR_NS
SEASON: Final = 24


class Serves(Protocol):
    """N streams behind an update and a forecast."""

    streams: int

    def feed(self, values: Floats) -> None:
        """Take values [N, T] that came before."""

    def update(self, values: Floats) -> None:
        """Take one value of each stream, [N]."""

    def forecast(self) -> object:
        """Forecast every stream."""

    def nbytes(self) -> int:
        """Bytes that one stream holds."""

    def copy(self) -> Self:
        """The same streams, on their own."""


class Online:
    """Our predictor: `observe` and `forecast` for one stream, `observe_many` and `forecast_many` for several."""

    def __init__(self, online: OnlinePredictor, streams: int) -> None:
        if len(online.channels) != 1 or online.config.period_ns != HOUR_NS:
            raise ConfigError(f"online: must have one channel and hourly steps, got {online.channels}, {online.freq}")
        self.online, self.streams, self.step = online, streams, 0
        self.names = [str(name) for name in range(streams)]

    def feed(self, values: Floats) -> None:
        """Every value is observed, step by step across the streams."""
        for first in range(0, values.shape[1], 4096):
            part = values[:, first : first + 4096]
            steps = self.step + np.arange(part.shape[1])
            self.online.observe_many(self._frame(np.repeat(steps, self.streams), part.T.reshape(-1)))
            self.step += part.shape[1]

    def update(self, values: Floats) -> None:
        """One row of each stream."""
        if self.streams == 1:
            self.online.observe(self.names[0], BEGIN + self.step * HOUR_NS, values)
        else:
            self.online.observe_many(self._frame(np.full(self.streams, self.step), values))
        self.step += 1

    def forecast(self) -> object:
        """Quantiles of the whole horizon."""
        return self.online.forecast(self.names[0]) if self.streams == 1 else self.online.forecast_many(self.names)

    def nbytes(self) -> int:
        """See OnlinePredictor."""
        return self.online.state_nbytes

    def copy(self) -> Self:
        """The whole predictor again."""
        return copy.deepcopy(self)

    def _frame(self, steps: Any, values: Floats) -> pl.DataFrame:
        stamps = pl.Series("time", BEGIN + steps * HOUR_NS).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
        names = self.names * (len(steps) // self.streams)
        return pl.DataFrame({"stream": names, "time": stamps, self.online.channels[0]: values})


class Rerun:
    """A GluonTS predictor, run again on its context for every forecast."""

    def __init__(self, predictor: Predicts, context: int, streams: int, *, variates: bool = False) -> None:
        """context: values that a forecast reads. variates: it takes targets [C, T]; here one variate per stream."""
        self.predictor, self.streams, self.step, self.variates = predictor, streams, 0, variates
        self.ring = np.zeros((streams, context), np.float32)

    def feed(self, values: Floats) -> None:
        """The last ones stay, each at its step modulo the context."""
        context = self.ring.shape[1]
        last = np.concatenate([self._ordered(), values[:, -context:]], 1)[:, -context:]
        self.step += values.shape[1]
        self.ring = np.roll(last, self.step % context, axis=1).astype(np.float32)

    def update(self, values: Floats) -> None:
        """Over the oldest of the ring; `forecast` puts it in order."""
        self.ring[:, self.step % self.ring.shape[1]] = values
        self.step += 1

    def forecast(self) -> object:
        """One pass over the contexts of all streams."""
        start = pd.Period(pd.Timestamp(BEGIN), freq="h") + (self.step - self.ring.shape[1])
        contexts = self._ordered()[:, None] if self.variates else self._ordered()
        entries = [{"start": start, "target": own, "item_id": str(n)} for n, own in enumerate(contexts)]
        return list(self.predictor.predict(entries))

    def nbytes(self) -> int:
        """The context."""
        return int(self.ring[0].nbytes)

    def _ordered(self) -> Any:
        """The contexts, oldest value first."""
        return np.roll(self.ring, -(self.step % self.ring.shape[1]), axis=1)

    def copy(self) -> Self:
        """The model is shared, the contexts are not."""
        made = copy.copy(self)
        made.ring = self.ring.copy()
        return made


class River:
    """SNARIMAX of River: linear in one day of lags and the same hour of the day before, learnt value by value."""

    def __init__(self, horizon: int, streams: int) -> None:
        """ConfigError where River is not installed."""
        try:
            from river.time_series import SNARIMAX
        except ImportError as error:
            raise ConfigError("river: is not installed; pip install 'tsgdn2[bench]'") from error
        self.horizon, self.streams = horizon, streams
        self.models: list[Any] = [SNARIMAX(p=SEASON, d=0, q=0, m=SEASON, sp=1) for _ in range(streams)]

    def feed(self, values: Floats) -> None:
        """The first stream learns every value; the others are copies of it, which cost as much to go on with."""
        for value in values[0].tolist():
            self.models[0].learn_one(value)
        self.models = [self.models[0], *(copy.deepcopy(self.models[0]) for _ in range(self.streams - 1))]

    def update(self, values: Floats) -> None:
        """Each model learns one value."""
        for model, value in zip(self.models, values.tolist(), strict=True):
            model.learn_one(value)

    def forecast(self) -> object:
        """A point per step, no quantiles."""
        return [model.forecast(self.horizon) for model in self.models]

    def nbytes(self) -> int:
        """Bytes of a pickled model."""
        return len(pickle.dumps(self.models[0]))

    def copy(self) -> Self:
        """Every model again."""
        return copy.deepcopy(self)


class Stepped:
    """nn.LSTM one step at a time, all streams in one batch, and a linear head to all quantiles; random weights."""

    def __init__(self, horizon: int, quantiles: int, hidden: int, streams: int) -> None:
        self.streams, self.horizon = streams, horizon
        self.lstm, self.head = nn.LSTM(1, hidden).eval(), nn.Linear(hidden, horizon * quantiles).eval()
        self.state = (torch.zeros(1, streams, hidden), torch.zeros(1, streams, hidden))

    @torch.inference_mode()
    def feed(self, values: Floats) -> None:
        """In pieces, as one sequence."""
        for first in range(0, values.shape[1], 4096):
            part = torch.from_numpy(values[:, first : first + 4096].T[..., None].astype(np.float32))
            _, self.state = self.lstm(part, self.state)

    @torch.inference_mode()
    def update(self, values: Floats) -> None:
        """One step."""
        _, self.state = self.lstm(torch.from_numpy(values.astype(np.float32))[None, :, None], self.state)

    @torch.inference_mode()
    def forecast(self) -> object:
        """One product."""
        return self.head(self.state[0][0]).reshape(self.streams, self.horizon, -1).numpy()

    def nbytes(self) -> int:
        """h and c."""
        return int(sum(one[:, 0].nbytes for one in self.state))

    def copy(self) -> Self:
        """The weights are shared, the states are not."""
        made = copy.copy(self)
        made.state = (self.state[0].clone(), self.state[1].clone())
        return made


def values_of(streams: int, first: int, stop: int, seed: int) -> Floats:
    """Steps first .. stop of N daily waves with noise, [N, T]; the same whatever piece is asked for."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, streams)
    steps = np.arange(first, stop)
    noise = np.stack([np.random.default_rng((seed, int(block))).normal(size=(streams, 1024))
                      for block in range(first // 1024, -(-stop // 1024))], 1)  # fmt: skip
    own = noise.reshape(streams, -1)[:, first % 1024 :][:, : stop - first]
    return np.asarray(10 + 3 * np.sin(2 * np.pi * steps / SEASON + phase[:, None]) + 0.5 * own)


def entries_of(values: Floats) -> Sequence[dict[str, object]]:
    """A GluonTS data set of values [N, T], or [N, C, T] for targets of C variates."""
    start = pd.Period(pd.Timestamp(BEGIN), freq="h")
    return [{"start": start, "target": own.astype(np.float32), "item_id": str(n)} for n, own in enumerate(values)]
