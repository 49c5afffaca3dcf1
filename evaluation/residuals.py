"""Quantiles for a forecaster that has none: those of its own errors at every origin of a training range.

The training range stands for the future; where it is short, neighbouring origins share most of their steps and the
quantiles are rougher than their number says.

    r[o, h] = y[o+h] - point(y[..o])[h]          o = first .. T - H by `every`,  h = 0 .. H-1
    y_q[o, h] = point(y[..o])[h] + quantile_q of r[., h]            pooled: of all r[., .]

| symbol | shape | unit, range |
|---|---|---|
| y | [C, T] | the data's; an error at a missing value is left out |
| point | [C, H] | median of the point forecaster |
| table | [Q, H, C] | quantiles of r by series, 0 where nothing was observed |
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy as np
from gluonts.core.component import validated
from gluonts.model.forecast import QuantileForecast
from gluonts.model.predictor import RepresentablePredictor

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.baselines import known_item, name_of, quantile_forecast
from tsgdn2.evaluation.metrics import LEVELS

Entry = Mapping[str, object]


class ResidualQuantiles(RepresentablePredictor):
    """A point forecaster with the quantiles of its training errors around it; build it with `train`."""

    @validated()
    def __init__(
        self,
        point: RepresentablePredictor,
        tables: dict[str, np.ndarray],
        quantiles: Sequence[float] = LEVELS,
    ) -> None:
        """tables: item_id to [Q, H, C] in the data's unit."""
        super().__init__(prediction_length=point.prediction_length)
        self.point = point
        self.tables = {name: np.asarray(table, dtype=np.float64) for name, table in tables.items()}
        self.quantiles = list(quantiles)

    @classmethod
    def train(
        cls,
        point: RepresentablePredictor,
        dataset: Iterable[Entry],
        *,
        first: int,
        every: int = 1,
        pooled: bool = False,
        quantiles: Sequence[float] = LEVELS,
    ) -> Self:
        """Forecast from every origin of the training range and keep the quantiles of the errors.

        first: steps before the first origin. every: steps between origins. pooled: one set of quantiles for all steps
        of the horizon. Errors: ConfigError; SchemaError where a series has no origin.
        """
        if first < 1 or every < 1:
            raise ConfigError(f"first and every must be at least 1 step, got first={first}, every={every}")
        horizon = point.prediction_length
        tables = {}
        for entry in dataset:
            target_CT = np.atleast_2d(np.asarray(entry["target"], dtype=np.float64))
            origins = range(first, target_CT.shape[1] - horizon + 1, every)
            if not origins:
                raise SchemaError(
                    f"target of {name_of(entry)} has {target_CT.shape[1]} steps, errors need first={first} and "
                    f"{horizon} more; give a longer training range or a smaller first"
                )
            points = point.predict([{**entry, "target": target_CT[:, :origin]} for origin in origins])
            errors_OHC = np.stack(
                [
                    (target_CT[:, origin : origin + horizon] - np.atleast_2d(forecast.quantile(0.5).T)).T
                    for origin, forecast in zip(origins, points, strict=True)
                ]
            )
            tables[name_of(entry)] = _quantiles(errors_OHC, list(quantiles), pooled=pooled)
        made: Self = cls(point=point, tables=tables, quantiles=list(quantiles))
        return made

    def predict_item(self, item: Entry) -> QuantileForecast:
        """Forecast one entry; SchemaError for a series that training did not see."""
        (forecast,) = self.point.predict([item])
        point_HC = np.atleast_2d(forecast.quantile(0.5).T).T
        return quantile_forecast(item, point_HC + known_item(self.tables, item), self.quantiles)


def _quantiles(errors_OHC: np.ndarray, levels: Sequence[float], *, pooled: bool) -> np.ndarray:
    """Quantiles [Q, H, C] over the origins, or over origins and steps."""
    origins, horizon, channels = errors_OHC.shape
    rows = errors_OHC.reshape(origins * horizon, 1, channels) if pooled else errors_OHC
    seen = np.isfinite(rows).any(0)
    table = np.nanquantile(np.where(seen, rows, 0.0), levels, axis=0)
    return np.ascontiguousarray(np.broadcast_to(table, (len(levels), horizon, channels)))
