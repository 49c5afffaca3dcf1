"""Forecasters that any model must beat: the last season again, the last mean, and the climate of the training range.

They are GluonTS predictors for univariate and multivariate targets alike, cost next to nothing, and know no covariates;
`ridge.RidgeLags` is the strong one. Serialization writes tables as text, which is slow beyond some thousand series.

    SeasonalNaive   y_h = y[T - season + (h mod season)],  missing cells hold the last value seen
                    point:   every quantile is y_h                                          (GluonTS's own predictor)
                    normal:  y_h + z_q sigma_h,  sigma = sqrt(sum residual^2 / (n - season)),
                             sigma_h = sigma sqrt(floor(h / season) + 1),  h = 0 .. H-1
    LastMean        y_h = mean of the last n steps
    Climatology     y_q = quantile_q of the training cells whose slot is that of T + h,  slot = step number mod slots

| symbol | shape | unit, range |
|---|---|---|
| y | [C, T] | the data's, NaN is missing |
| table | [slots, Q, C] | the data's |
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Self

import numpy as np
import pandas as pd
from gluonts.core.component import validated
from gluonts.dataset.util import forecast_start
from gluonts.model.forecast import QuantileForecast
from gluonts.model.predictor import RepresentablePredictor

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.metrics import LEVELS

Entry = Mapping[str, object]


class SeasonalNaive(RepresentablePredictor):
    """Repeat the last season; `spread` gives it normal quantiles, without which its CRPS is its absolute error."""

    @validated()
    def __init__(
        self,
        prediction_length: int,
        season_length: int,
        spread: str = "point",
        quantiles: Sequence[float] = LEVELS,
    ) -> None:
        """spread: point or normal. Errors: ConfigError."""
        super().__init__(prediction_length=prediction_length)
        if season_length < 1:
            raise ConfigError(f"season_length must be at least 1 step, got {season_length}")
        if spread not in ("point", "normal"):
            raise ConfigError(f"spread must be point or normal, got {spread!r}")
        self.season_length = season_length
        self.spread = spread
        self.quantiles = list(quantiles)

    def predict_item(self, item: Entry) -> QuantileForecast:
        """Forecast one entry; a series shorter than the season repeats its mean."""
        values_CT, _ = filled(item["target"])
        season, horizon = self.season_length, np.arange(self.prediction_length)
        length = values_CT.shape[1]
        if length == 0:
            raise SchemaError(f"target of {item.get('item_id')} is empty; give at least one step")
        if length >= season:
            point_CH = values_CT[:, length - season + horizon % season]
        else:
            point_CH = np.repeat(values_CT.mean(axis=1, keepdims=True), len(horizon), axis=1)
        width_CH = np.zeros_like(point_CH)
        if self.spread == "normal" and length > season:
            residual_CT = values_CT[:, season:] - values_CT[:, :-season]
            sigma_C1 = np.sqrt(np.square(residual_CT).sum(axis=1, keepdims=True) / (length - season))
            width_CH = sigma_C1 * np.sqrt(horizon // season + 1)
        z_Q = np.array([NormalDist().inv_cdf(level) for level in self.quantiles])
        quantiles_QCH = point_CH + z_Q[:, None, None] * width_CH
        return quantile_forecast(item, quantiles_QCH.transpose(0, 2, 1), self.quantiles)


class LastMean(RepresentablePredictor):
    """Repeat the mean of the last steps; all quantiles are that point (`residuals.ResidualQuantiles` spreads it)."""

    @validated()
    def __init__(self, prediction_length: int, steps: int, quantiles: Sequence[float] = LEVELS) -> None:
        """steps: how many of the last ones; a shorter series gives all of its own. Errors: ConfigError."""
        super().__init__(prediction_length=prediction_length)
        if steps < 1:
            raise ConfigError(f"steps must be at least 1, got {steps}")
        self.steps = steps
        self.quantiles = list(quantiles)

    def predict_item(self, item: Entry) -> QuantileForecast:
        """Forecast one entry; SchemaError for an empty one."""
        values_CT, _ = filled(item["target"])
        if not values_CT.shape[1]:
            raise SchemaError(f"target of {item.get('item_id')} is empty; give at least one step")
        mean_C = values_CT[:, -self.steps :].mean(axis=1)
        shape = (len(self.quantiles), self.prediction_length, len(mean_C))
        return quantile_forecast(item, np.broadcast_to(mean_C, shape), self.quantiles)


class Climatology(RepresentablePredictor):
    """Forecast the training range's empirical quantiles of the same slot of the cycle, blind to the recent past.

    Build it with `train`; the constructor takes finished tables so that it can be serialized.
    """

    @validated()
    def __init__(
        self,
        prediction_length: int,
        tables: dict[str, np.ndarray],
        quantiles: Sequence[float] = LEVELS,
    ) -> None:
        """tables: item_id to [slots, Q, C] in the data's unit."""
        super().__init__(prediction_length=prediction_length)
        self.tables = {name: np.asarray(table, dtype=np.float64) for name, table in tables.items()}
        self.quantiles = list(quantiles)

    @classmethod
    def train(
        cls,
        dataset: Iterable[Entry],
        prediction_length: int,
        *,
        slots: int = 24,
        quantiles: Sequence[float] = LEVELS,
    ) -> Self:
        """Count each series' cells by slot; an unobserved slot borrows the whole series, an empty channel is 0.

        slots: steps of the cycle; 24 for hourly data is the hour of the day.
        """
        if slots < 1:
            raise ConfigError(f"slots must be at least 1, got {slots}; hourly data with a daily cycle has 24")
        tables = {}
        for entry in dataset:
            target_CT = np.atleast_2d(np.asarray(entry["target"], dtype=np.float64))
            slot_T = slot_of(entry["start"], np.arange(target_CT.shape[1]), slots)
            table = np.zeros((slots, len(quantiles), len(target_CT)))
            for channel, values_T in enumerate(target_CT):
                seen_T = np.isfinite(values_T)
                if not seen_T.any():
                    continue
                for slot in range(slots):
                    here_T = seen_T & (slot_T == slot)
                    cells = values_T[here_T if here_T.any() else seen_T]
                    table[slot, :, channel] = np.quantile(cells, quantiles)
            tables[name_of(entry)] = table
        made: Self = cls(prediction_length=prediction_length, tables=tables, quantiles=list(quantiles))
        return made

    def predict_item(self, item: Entry) -> QuantileForecast:
        """Look one entry's horizon up; SchemaError for a series that training did not see."""
        table = known_item(self.tables, item)
        slot_H = slot_of(forecast_start(item), np.arange(self.prediction_length), len(table))
        return quantile_forecast(item, table[slot_H].transpose(1, 0, 2), self.quantiles)


def filled(target: object) -> tuple[np.ndarray, np.ndarray]:
    """Fill gaps with the last value seen, before the first one with the first, a channel never seen with 0.

    Returns values [C, T] and what was really observed [C, T].
    """
    values_CT = np.atleast_2d(np.asarray(target, dtype=np.float64))
    seen_CT = np.isfinite(values_CT)
    if seen_CT.all():
        return values_CT, seen_CT
    last_CT = np.maximum.accumulate(np.where(seen_CT, np.arange(values_CT.shape[1]), -1), axis=1)
    last_CT = np.where(last_CT < 0, seen_CT.argmax(axis=1)[:, None], last_CT)
    values_CT = np.take_along_axis(values_CT, last_CT, axis=1)
    return np.where(seen_CT.any(axis=1, keepdims=True), values_CT, 0.0), seen_CT


def slot_of(start: object, offsets: np.ndarray, slots: int) -> np.ndarray:
    """Number the steps start + offsets within a cycle of `slots` steps, on the calendar's absolute grid."""
    if not isinstance(start, pd.Period):
        raise SchemaError(f"start must be a pandas Period, as in GluonTS datasets, got {type(start).__name__}")
    return (start.ordinal // start.freq.n + offsets) % slots


def name_of(entry: Entry) -> str:
    """Give the series' item_id, or 0 for the only series that has none."""
    return str(entry.get("item_id", "0"))


def known_item(tables: Mapping[str, np.ndarray], entry: Entry) -> np.ndarray:
    """Look up what was trained for this series."""
    if name_of(entry) not in tables:
        known = ", ".join(list(tables)[:5])
        raise SchemaError(
            f"item_id must be one of the {len(tables)} trained series ({known} ..), got {name_of(entry)!r}"
        )
    return tables[name_of(entry)]


def quantile_forecast(entry: Entry, quantiles_QHC: np.ndarray, levels: Sequence[float]) -> QuantileForecast:
    """Wrap quantiles as GluonTS does: [Q, H] for a univariate target, [Q, H, C] for a multivariate one."""
    univariate = np.ndim(entry["target"]) == 1  # type: ignore[arg-type]
    return QuantileForecast(
        forecast_arrays=quantiles_QHC[:, :, 0] if univariate else quantiles_QHC,
        start_date=forecast_start(entry),
        forecast_keys=[str(level) for level in levels],
        item_id=entry.get("item_id"),
        info=entry.get("info"),
    )
