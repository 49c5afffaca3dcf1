"""Holt-Winters against its own recurrence, and quantiles of training errors against a loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gluonts.model.predictor import Predictor
from statsmodels.tsa.holtwinters import ExponentialSmoothing

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.baselines import LastMean, SeasonalNaive
from tsgdn2.evaluation.holt_winters import HoltWinters
from tsgdn2.evaluation.metrics import LEVELS
from tsgdn2.evaluation.residuals import ResidualQuantiles

START = pd.Period("2024-03-01 05:00", freq="h")


def entry(target: np.ndarray, name: str = "a") -> dict[str, object]:
    return {"item_id": name, "start": START, "target": target}


def series(length: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    step = np.arange(length)
    return 20 + 0.05 * step + 3 * np.sin(2 * np.pi * step / 7) + rng.normal(size=length)


def smoothed(y: np.ndarray, m: int, horizon: int, fit: object) -> np.ndarray:
    """The recurrence of the module, value by value, with the parameters that the library found."""
    found = {name: fit.params[name] for name in fit.params}
    alpha, beta, gamma, phi = (
        0.0 if np.isnan(found[name]) else found[name]
        for name in ("smoothing_level", "smoothing_trend", "smoothing_seasonal", "damping_trend")
    )
    trend = not np.isnan(found["initial_trend"])
    phi = phi if phi else 1.0
    level, slope = found["initial_level"], found["initial_trend"] if trend else 0.0
    season = list(found["initial_seasons"]) if m > 1 else [0.0]
    for t, value in enumerate(y):
        own, before = season[t % m], level
        level = alpha * (value - own) + (1 - alpha) * (before + phi * slope)
        season[t % m] = gamma * (value - before - phi * slope) + (1 - gamma) * own
        slope = beta * (level - before) + (1 - beta) * phi * slope
    fades = np.cumsum(phi ** np.arange(1, horizon + 1))
    return np.array([level + fades[h] * slope + season[(len(y) + h) % m] for h in range(horizon)])


@pytest.mark.parametrize("season", [1, 7])
@pytest.mark.parametrize(("trend", "damped"), [(True, False), (True, True), (False, False)])
@pytest.mark.filterwarnings("ignore:Optimization failed to converge")
def test_the_forecast_is_the_librarys_and_the_recurrences(season: int, trend: bool, damped: bool) -> None:
    y = series(61)
    forecast = HoltWinters(9, season, trend=trend, damped=damped).predict_item(entry(y))
    fit = ExponentialSmoothing(
        y, trend="add" if trend else None, damped_trend=damped, seasonal="add" if season > 1 else None,
        seasonal_periods=season if season > 1 else None, initialization_method="estimated",
    ).fit()  # fmt: skip
    np.testing.assert_allclose(forecast.quantile(0.5), fit.forecast(9), rtol=1e-9)
    np.testing.assert_allclose(forecast.quantile(0.5), smoothed(y, season, 9, fit), rtol=1e-6)
    np.testing.assert_array_equal(forecast.quantile(0.1), forecast.quantile(0.9))


def test_channels_are_fitted_apart_and_a_short_or_empty_history_goes_on_with_its_mean() -> None:
    y = np.stack([series(40), series(40, seed=1)])
    y[1, 5:9] = np.nan
    both = HoltWinters(4, 7).predict_item(entry(y))
    assert both.quantile(0.5).shape == (4, 2)
    held = np.where(np.isnan(y[1]), y[1, 4], y[1])
    for channel, values in enumerate((y[0], held)):
        alone = HoltWinters(4, 7).predict_item(entry(values))
        np.testing.assert_allclose(both.quantile(0.5)[:, channel], alone.quantile(0.5), rtol=1e-9)
    short = HoltWinters(3, 7).predict_item(entry(np.arange(13.0)))
    np.testing.assert_array_equal(short.quantile(0.5), np.full(3, 6.0))
    np.testing.assert_array_equal(HoltWinters(3).predict_item(entry(np.zeros(0))).quantile(0.5), np.zeros(3))


def test_a_setting_out_of_bounds_is_named() -> None:
    with pytest.raises(ConfigError, match="season_length must be at least 1"):
        HoltWinters(3, 0)
    with pytest.raises(ConfigError, match="damped must be False where trend is"):
        HoltWinters(3, trend=False, damped=True)
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        LastMean(3, 0)
    with pytest.raises(ConfigError, match="first and every"):
        ResidualQuantiles.train(LastMean(3, 1), [], first=0)
    with pytest.raises(SchemaError, match="target of a has 10 steps"):
        ResidualQuantiles.train(LastMean(3, 1), [entry(np.zeros(10))], first=8)


def test_the_library_is_imported_where_it_is_used_and_nowhere_else() -> None:
    program = (
        "import sys; from tsgdn2.evaluation.holt_winters import HoltWinters; HoltWinters(3)\n"
        "print('statsmodels' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["False"]


def test_the_last_mean_is_that_of_the_last_steps_gaps_holding_the_last_value() -> None:
    y = np.array([[1.0, 2.0, np.nan, 6.0], [4.0, 4.0, 4.0, 8.0]])
    forecast = LastMean(2, 3).predict_item(entry(y))
    np.testing.assert_allclose(forecast.quantile(0.9), [[10 / 3, 16 / 3]] * 2)
    assert LastMean(2, 9).predict_item(entry(y[1])).quantile(0.1).tolist() == [5.0, 5.0]
    with pytest.raises(SchemaError, match="empty"):
        LastMean(2, 1).predict_item(entry(np.zeros(0)))


@pytest.mark.parametrize("pooled", [False, True])
def test_the_quantiles_are_those_of_the_errors_at_every_origin_of_the_training_range(pooled: bool) -> None:
    rng = np.random.default_rng(3)
    y = rng.normal(size=(2, 37))
    y[1, rng.random(37) < 0.3] = np.nan
    horizon, season = 5, 4
    point = SeasonalNaive(horizon, season)
    spread = ResidualQuantiles.train(point, [entry(y)], first=9, every=2, pooled=pooled)
    errors = []
    for origin in range(9, 37 - horizon + 1, 2):
        found = point.predict_item(entry(y[:, :origin])).quantile(0.5)
        errors.append([[y[c, origin + h] - found[h, c] for c in range(2)] for h in range(horizon)])
    later = rng.normal(size=(2, 50))
    forecast = spread.predict_item(entry(later))
    around = point.predict_item(entry(later)).quantile(0.5)
    for h in range(horizon):
        for c in range(2):
            own = [one[k][c] for one in errors for k in range(horizon) if pooled or k == h]
            expected = around[h, c] + np.nanquantile(own, LEVELS)
            np.testing.assert_allclose(forecast.forecast_array[:, h, c], expected, rtol=1e-12)
    with pytest.raises(SchemaError, match="item_id must be one of"):
        spread.predict_item(entry(later, "b"))


def test_a_series_of_one_channel_stays_flat_and_a_channel_never_seen_has_no_spread() -> None:
    spread = ResidualQuantiles.train(LastMean(3, 2), [entry(series(20))], first=4)
    assert spread.predict_item(entry(series(20))).forecast_array.shape == (len(LEVELS), 3)
    blind = ResidualQuantiles.train(LastMean(3, 2), [entry(np.full((1, 20), np.nan))], first=4)
    np.testing.assert_array_equal(blind.predict_item(entry(np.ones((1, 4)))).forecast_array, np.ones((9, 3, 1)))


def test_both_survive_a_folder(tmp_path: Path) -> None:
    y = series(40)
    for made in (
        HoltWinters(4, 7, damped=True),
        ResidualQuantiles.train(HoltWinters(4), [entry(y)], first=12, every=6),
    ):
        home = tmp_path / type(made).__name__
        home.mkdir()
        made.serialize(home)
        again = Predictor.deserialize(home)
        np.testing.assert_array_equal(
            again.predict_item(entry(y)).forecast_array, made.predict_item(entry(y)).forecast_array
        )
