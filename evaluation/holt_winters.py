"""Holt-Winters, additive, as statsmodels fits it: level, trend and season smoothed one value at a time.

Every forecast fits smoothing and beginnings anew to the whole history of its series, by least squares: tenths of a
second for a few hundred steps. It has no quantiles beside its point; `residuals.ResidualQuantiles` gives it some.

    l_t = alpha (y_t - s_{t-m}) + (1 - alpha) (l_{t-1} + phi b_{t-1})              m = 1: no s
    b_t = beta (l_t - l_{t-1}) + (1 - beta) phi b_{t-1}                            trend=False: no b
    s_t = gamma (y_t - l_{t-1} - phi b_{t-1}) + (1 - gamma) s_{t-m}
    y_{t+h} = l_t + (phi + .. + phi^h) b_t + s_{t+h-m ceil(h/m)}

| symbol | meaning | range |
|---|---|---|
| y | values, gaps hold the last one seen (baselines.filled) | the data's |
| alpha, beta, gamma | smoothing of level, trend, season | [0, 1] |
| phi | damping of the trend, 1 where it is not damped | (0, 1] |
| m | steps of a season | >= 1 |

Source: Holt 1957, Winters 1960; statsmodels.tsa.holtwinters.ExponentialSmoothing.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from gluonts.core.component import validated
from gluonts.model.forecast import QuantileForecast
from gluonts.model.predictor import RepresentablePredictor

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.baselines import filled, quantile_forecast
from tsgdn2.evaluation.metrics import LEVELS

Entry = Mapping[str, object]


class HoltWinters(RepresentablePredictor):
    """Additive exponential smoothing of every channel; all quantiles are the point."""

    @validated()
    def __init__(
        self,
        prediction_length: int,
        season_length: int = 1,
        trend: bool = True,
        damped: bool = False,
        quantiles: Sequence[float] = LEVELS,
    ) -> None:
        """season_length: steps of a season, 1 for none. damped: the trend fades. Errors: ConfigError."""
        super().__init__(prediction_length=prediction_length)
        if season_length < 1:
            raise ConfigError(f"season_length must be at least 1 step (1: no season), got {season_length}")
        if damped and not trend:
            raise ConfigError("damped must be False where trend is: there is nothing to damp")
        self.season_length = season_length
        self.trend = trend
        self.damped = damped
        self.quantiles = list(quantiles)

    def predict_item(self, item: Entry) -> QuantileForecast:
        """Fit and forecast one entry; a channel of fewer than two seasons, or ten values, goes on with its mean."""
        values_CT, _ = filled(item["target"])
        point_CH = np.stack([self._point(values_T) for values_T in values_CT])
        return quantile_forecast(item, np.repeat(point_CH.T[None], len(self.quantiles), 0), self.quantiles)

    def _point(self, values_T: np.ndarray) -> np.ndarray:
        length, horizon = len(values_T), self.prediction_length
        if length < max(10, 2 * self.season_length):
            return np.full(horizon, values_T.mean() if length else 0.0)
        seasonal = self.season_length > 1
        with warnings.catch_warnings():  # a search that stops early is what it is: its forecast is judged all the same
            warnings.simplefilter("ignore")
            model = _smoothing()(
                values_T,
                trend="add" if self.trend else None,
                damped_trend=self.damped,
                seasonal="add" if seasonal else None,
                seasonal_periods=self.season_length if seasonal else None,
                initialization_method="estimated",
            )
            return np.asarray(model.fit().forecast(horizon), np.float64)


def _smoothing() -> type:
    """The library's model; imported where it is used, for nothing else of ours needs it."""
    try:
        from statsmodels.tsa.holtwinters import ExponentialSmoothing
    except ImportError as error:
        raise ConfigError(f"HoltWinters needs statsmodels ({error}); install it: pip install 'tsgdn2[bench]'") from None
    found: type = ExponentialSmoothing
    return found
