"""GRU-D, the recurrent rival that was made for missing values, as a plain module with a face for GluonTS.

Che et al. 2018, arXiv 1606.01865, from its equations; one sequence per series with shared weights, so that it stands
beside a model of independent channels at the same scaler, loss and windows. It goes step by step: long histories are
dear, and by default it reads no further back than a training window.

    gamma_x = exp(-max(0, w_x delta + b_x))            gamma_h = exp(-max(0, W_h delta + b_h))
    x^ = m x + (1 - m) gamma_x x'                      the empirical mean, to which x' decays, is 0 in standard units
    h~ = gamma_h h
    r, z = sigmoid(W x^ + V m + C u + b + U h~)        c = tanh(W x^ + V m + C u + b + U (r h~))
    h <- (1 - z) h~ + z c                              y_q = mean + scale (head(h) + K l)
    l = the last L of (mean + scale sinh x^), standardised by the statistics of the step that is asked

| symbol | meaning | shape | unit, range |
|---|---|---|---|
| x, x' | asinh of the standardised cell; the last one that was observed | [B, T] | standard deviations |
| m | 1 where observed | [B, T] | 0, 1 |
| delta | steps since the last observed cell before this step, or since the beginning | [B, T] | steps, >= 0 |
| u | calendar: sine and cosine of the phase of the day and the week | [B, T, U] | [-1, 1] |
| h | state | [B, D] | |
| K, l | linear lag skip, where asked for, and its inputs | [H, L], [B, L] | |

Two things are not in the paper: the calendar and the lag skip, which the model beside it has too.
B series, T steps, D width, H horizon, Q quantiles, L lags, U calendar features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from gluonts.model.forecast import QuantileForecast
from numpy.typing import NDArray
from torch import Tensor, nn

from tsgdn2.clock import calendar, calendar_cycles
from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.baselines import Entry, quantile_forecast
from tsgdn2.evaluation.metrics import LEVELS
from tsgdn2.scale import Bools, Floats, forgetting, scale_of, scan

BLOCK = 512
"""Entries that are forecast at once."""


@dataclass(frozen=True, kw_only=True)
class GRUDConfig:
    """What fixes the rival's shape and its inputs."""

    prediction_length: int
    """Steps of a forecast, >= 1."""
    period_ns: int
    """Nanoseconds of a step, > 0; the calendar needs it."""
    width: int = 64
    """D, width of the state."""
    lag_skip: int = 0
    """L, last steps that reach the horizon by a linear map; 0 is off and the paper's form."""
    half_life: float = 336.0
    """Observed values after which the scaler has forgotten half."""
    context_length: int = 256
    """Steps that one forecast reads, after the scaler has read the whole history."""
    quantiles: tuple[float, ...] = LEVELS
    """Levels, increasing."""

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError names the field."""
        for name in ("prediction_length", "period_ns", "width", "context_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.lag_skip <= self.context_length:
            raise ConfigError(f"lag_skip: must lie in [0, context_length = {self.context_length}], got {self.lag_skip}")


class Lane(NamedTuple):
    """One standardised history; every array has T rows."""

    x: Floats
    """asinh of the standardised cell, 0 where missing."""
    last: Floats
    """The last observed x before this step, 0 before the first."""
    seen: Bools
    heard: Bools
    """Whether anything was observed up to this step."""
    delta: Floats
    """Steps since the last observed cell before this step, since the first step where there is none."""
    clock: NDArray[np.int64]
    """Absolute step."""
    mean: Floats
    scale: Floats


class Inputs(NamedTuple):
    """T steps of B lanes; phase [B, T, U], all others [B, T]; seen and heard boolean, mean and scale float64."""

    x: Tensor
    last: Tensor
    seen: Tensor
    heard: Tensor
    delta: Tensor
    mean: Tensor
    scale: Tensor
    phase: Tensor

    def part(self, begin: int) -> Inputs:
        """The steps from `begin` on."""
        return Inputs(*(column[:, begin:] for column in self))


class GRUD(nn.Module):
    """GRU-D with a direct multi-horizon quantile head; see the equations above."""

    def __init__(self, config: GRUDConfig) -> None:
        super().__init__()
        self.config = config
        self.cycles = calendar_cycles(config.period_ns)
        width, horizon, levels = config.width, config.prediction_length, len(config.quantiles)
        self.input_decay = nn.Linear(1, 1)
        self.hidden_decay = nn.Linear(1, width)
        self.inputs = nn.Linear(2 + 2 * len(self.cycles), 3 * width)  # W, V and C side by side, and b
        self.gates = nn.Linear(width, 2 * width, bias=False)  # U of r and z
        self.candidate = nn.Linear(width, width, bias=False)  # U of c
        self.head = nn.Linear(width, horizon * levels)
        self.skip = nn.Parameter(torch.zeros(horizon, config.lag_skip)) if config.lag_skip else None
        nn.init.normal_(self.head.weight, std=0.02)
        for decay, slowest in ((self.input_decay, 0.1), (self.hidden_decay, 0.1)):
            nn.init.uniform_(decay.weight, 0.0, slowest)  # max(0, .) would never learn from a negative slope
            nn.init.zeros_(decay.bias)
        normal = torch.special.ndtri(torch.tensor(config.quantiles, dtype=torch.float64))
        self.head.bias.data.copy_((0.7 * normal).repeat(horizon))

    @property
    def dtype(self) -> torch.dtype:
        """Parameter dtype."""
        return self.head.weight.dtype

    def initial_state(self, batch: int) -> Tensor:
        """State of `batch` series that have seen nothing, [B, D]."""
        return self.head.weight.new_zeros(batch, self.config.width)

    def fill(self, inputs: Inputs) -> Tensor:
        """x^ [B, T]."""
        gamma_x = torch.exp(-torch.relu(self.input_decay(inputs.delta[..., None])))[..., 0]
        return torch.where(inputs.seen, inputs.x, gamma_x * inputs.last)

    def forward(self, inputs: Inputs, state: Tensor) -> Tensor:
        """Every state [B, T, D], read from `state` [B, D] on."""
        filled, width = self.fill(inputs), self.config.width
        gamma_h = torch.exp(-torch.relu(self.hidden_decay(inputs.delta[..., None])))
        columns = [filled[..., None], inputs.seen[..., None].to(filled.dtype), inputs.phase]
        given = self.inputs(torch.cat(columns, -1))
        states = []
        # cut once: the gradient of an index into the whole would be as large as the whole, at every step
        for given_BD, gamma_BD in zip(given.unbind(1), gamma_h.unbind(1), strict=True):
            state = state * gamma_BD
            r, z = torch.sigmoid(given_BD[:, : 2 * width] + self.gates(state)).chunk(2, -1)
            c = torch.tanh(given_BD[:, 2 * width :] + self.candidate(r * state))
            state = torch.lerp(state, c, z)
            states.append(state)
        return torch.stack(states, 1)

    def lags(self, inputs: Inputs, at: Tensor) -> Tensor:
        """l [B, N, L] of the rows `at` [N], each of which has L - 1 rows before it; 0 where nothing was heard yet."""
        count = self.config.lag_skip
        if not count:
            return inputs.x.new_zeros(len(inputs.x), len(at), 0)
        values, heard, mean, scale = (
            column.unfold(1, count, 1)[:, at - (count - 1)]
            for column in (torch.sinh(self.fill(inputs)), inputs.heard, inputs.mean, inputs.scale)
        )
        own_mean, own_scale = inputs.mean[:, at, None], inputs.scale[:, at, None]
        shift, ratio = (mean - own_mean) / own_scale, scale / own_scale
        return torch.where(heard, values * ratio.to(values.dtype) + shift.to(values.dtype), 0.0)

    def read(self, states: Tensor, lags: Tensor) -> Tensor:
        """Quantiles [B, N, H, Q] in standard units; states [B, N, D], lags [B, N, L] as `lags` gives them."""
        out = self.head(states).unflatten(-1, (self.config.prediction_length, len(self.config.quantiles)))
        if self.skip is not None:
            out = out + (lags @ self.skip.T)[..., None]
        return torch.as_tensor(out)


def lane(values: Floats, start: int, prior: float, half_life: float, hidden: Bools | None = None) -> Lane:
    """Standardise values [T] (NaN is missing) causally; `hidden` cells [T] are treated as missing.

    start: absolute step of the first value. prior: deviation of the series where little was seen, > 0.
    """
    seen = np.isfinite(values) if hidden is None else np.isfinite(values) & ~hidden
    raw = np.where(seen, values, 0.0)
    moments = scan(raw[:, None], seen[:, None], forgetting(half_life))
    mean, scale = moments.mean[:, 0], scale_of(moments, np.array([prior]))[:, 0]
    x = np.where(seen, np.arcsinh((raw - mean) / scale), 0.0)
    step = np.arange(len(values))
    newest = np.maximum.accumulate(np.where(seen, step, -1))
    before = np.concatenate(([-1], newest[:-1]))
    return Lane(
        x=x,
        last=np.where(before >= 0, x[np.maximum(before, 0)], 0.0),
        seen=seen,
        heard=newest >= 0,
        delta=(step - np.maximum(before, 0)).astype(np.float64),
        clock=start + step,
        mean=mean,
        scale=scale,
    )


def stack(model: GRUD, lanes: Sequence[Lane], begins: Sequence[int], steps: int) -> Inputs:
    """`steps` rows of each lane from its row in `begins` on; rows before and after a lane are missing ones."""
    names = ("x", "last", "seen", "heard", "delta", "mean", "scale", "clock")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for one, begin in zip(lanes, begins, strict=True):
        before = min(max(-begin, 0), steps)
        rows = slice(max(begin, 0), max(begin + steps, 0))
        for name, column in columns.items():
            own = getattr(one, name)[rows]
            column.append(np.pad(own, (before, steps - before - len(own)), constant_values=name == "scale"))
    phase = calendar(np.stack(columns.pop("clock")), model.config.period_ns, model.cycles)
    x, last, seen, heard, delta, mean, scale = (torch.from_numpy(np.stack(column)) for column in columns.values())
    dtype = model.dtype
    return Inputs(
        x=x.to(dtype),
        last=last.to(dtype),
        seen=seen,
        heard=heard,
        delta=delta.to(dtype),
        mean=mean,
        scale=scale,
        phase=torch.from_numpy(phase).to(dtype),
    )


class GRUDPredictor:
    """A trained GRU-D that forecasts GluonTS entries of univariate targets."""

    def __init__(self, model: GRUD, priors: Mapping[str, float]) -> None:
        """priors: deviation of each item in training; another item starts from their geometric mean."""
        if not priors:
            raise ConfigError("priors: must hold the deviation of at least one series")
        self.model, self.priors = model.eval(), dict(priors)
        self.prediction_length = model.config.prediction_length
        self._default = float(np.exp(np.mean(np.log(list(priors.values())))))

    def predict(self, dataset: Iterable[Entry]) -> Iterator[QuantileForecast]:
        """One forecast per entry, in their order; SchemaError for a target that is not [T] or a start of no period."""
        block: list[Entry] = []
        for entry in dataset:
            block.append(entry)
            if len(block) == BLOCK:
                yield from self._block(block)
                block = []
        if block:
            yield from self._block(block)

    @torch.inference_mode()
    def _block(self, block: Sequence[Entry]) -> Iterator[QuantileForecast]:
        config = self.model.config
        lanes = [self._lane(entry) for entry in block]
        steps = config.context_length
        inputs = stack(self.model, lanes, [len(one.x) - steps for one in lanes], steps)
        states = self.model(inputs, self.model.initial_state(len(lanes)))
        lags = self.model.lags(inputs, torch.tensor([steps - 1]))
        z = self.model.read(states[:, -1:], lags)[:, 0].double().sort(-1).values.numpy()
        for entry, one, own in zip(block, lanes, z, strict=True):
            quantiles_QH1 = (one.mean[-1] + one.scale[-1] * own).T[:, :, None]
            yield quantile_forecast(entry, quantiles_QH1, config.quantiles)

    def _lane(self, entry: Entry) -> Lane:
        values, start = np.asarray(entry["target"], np.float64), entry["start"]
        if values.ndim != 1 or not len(values):
            raise SchemaError(f"target: GRU-D reads univariate series [T], T >= 1, got shape {values.shape}")
        if not isinstance(start, pd.Period):
            raise SchemaError(f"start: must be a pandas.Period, got {type(start).__name__}")
        prior = self.priors.get(str(entry.get("item_id", "0")), self._default)
        first = start.start_time.value // self.model.config.period_ns
        return lane(values, first, prior, self.model.config.half_life)
