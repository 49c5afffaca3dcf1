from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gluonts.model.predictor import Predictor

from tsgdn2.datasets.catalog import NYC_CHANNELS, nyc_weather
from tsgdn2.datasets.gluon import entries
from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.backtest import NYC_WEATHER, backtest
from tsgdn2.evaluation.baselines import Climatology, SeasonalNaive
from tsgdn2.evaluation.metrics import channel_key, geometric_mean_ratio, scores
from tsgdn2.evaluation.ridge import PENALTIES, RidgeLags, by_channel, by_series, by_suffix

START = pd.Period("2024-03-01 05:00", freq="h")


def entry(target: np.ndarray, name: str = "a") -> dict[str, object]:
    return {"item_id": name, "start": START, "target": target}


def autoregression(seed: int, length: int = 1500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = np.zeros(length)
    for t in range(2, length):
        values[t] = 1.6 * values[t - 1] - 0.8 * values[t - 2] + rng.normal()
    return 50 + 7 * values


def test_weights_and_residuals_are_those_of_the_normal_equations() -> None:
    target = autoregression(0, 400)
    model = RidgeLags.train([entry(target)], 3, lags=4, slots=24)
    mu, sd, low, high = model.scales["a"][0]
    z = np.clip((target - mu) / sd, low, high)
    rows, futures = [], []
    for origin in range(4, 398):
        angle = 2 * np.pi * ((5 + origin) % 24) / 24
        cycle = [np.sin(angle), np.sin(2 * angle), np.cos(angle), np.cos(2 * angle)]
        rows.append([1.0, *z[origin - 4 : origin][::-1], *[0.0] * 4, *cycle])
        futures.append(z[origin : origin + 3])
    x, future = np.array(rows), np.array(futures)
    ridge = model.penalties["a/0"] * len(x) * np.diag([1e-9, *[1.0] * 12])
    weights = np.linalg.solve(x.T @ x + ridge, x.T @ future)
    np.testing.assert_allclose(x @ model.weights["a/0"], x @ weights, atol=1e-9)
    residuals = np.quantile(future - x @ weights, model.quantiles, axis=0)
    np.testing.assert_allclose(model.residuals["a/0"], residuals, atol=1e-9)
    forecast = model.predict_item(entry(target[:395])).forecast_array
    np.testing.assert_allclose(forecast, mu + sd * (x[391] @ weights + residuals), rtol=1e-9)


def test_an_unobserved_target_cell_weighs_nothing() -> None:
    target = autoregression(1, 300)
    target[100:140] = np.nan
    target[rng_cells(300)] = np.nan
    model = RidgeLags.train([entry(target)], 2, lags=3)
    poisoned = np.where(np.isnan(target), np.inf, target)
    again = RidgeLags.train([entry(poisoned)], 2, lags=3)
    np.testing.assert_array_equal(model.weights["a/0"], again.weights["a/0"])
    np.testing.assert_array_equal(model.residuals["a/0"], again.residuals["a/0"])


def rng_cells(length: int) -> np.ndarray:
    return np.random.default_rng(9).random(length) < 0.5


def test_it_forecasts_an_autoregression_nearly_as_well_as_its_innovations_allow() -> None:
    target = autoregression(2, 3000)
    model = RidgeLags.train([entry(target[:2000])], 1, lags=6)
    errors, inside = [], []
    for origin in range(2000, 3000):
        forecast = model.predict_item(entry(target[:origin]))
        errors.append(target[origin] - forecast.quantile(0.5)[0])
        inside.append(forecast.quantile(0.1)[0] <= target[origin] <= forecast.quantile(0.9)[0])
    assert np.std(errors) < 1.05 * 7
    assert 0.76 < np.mean(inside) < 0.84


def test_groups_share_what_they_say() -> None:
    data = [entry(np.stack([autoregression(s), autoregression(s + 9)])[:, :200], f"{s}/x") for s in range(2)]
    assert set(RidgeLags.train(data, 2, lags=3, group=by_series).weights) == {"0/x/0", "0/x/1", "1/x/0", "1/x/1"}
    assert set(RidgeLags.train(data, 2, lags=3, group=by_channel).weights) == {"0", "1"}
    assert set(RidgeLags.train(data, 2, lags=3, group=by_suffix).weights) == {"x/0", "x/1"}


def test_short_constant_and_empty_histories_still_give_finite_ordered_quantiles() -> None:
    training = np.stack([autoregression(3, 100), np.full(100, 3.0), np.full(100, np.nan)])
    training[2, 50] = 1.0
    model = RidgeLags.train([entry(training)], 4, lags=6)
    for history in (training[:, :1], training[:, :50], np.full((3, 8), np.nan)):
        forecast = model.predict_item(entry(history)).forecast_array
        assert forecast.shape == (9, 4, 3)
        assert np.isfinite(forecast).all()
        assert (np.diff(forecast, axis=0) >= 0).all()
    np.testing.assert_allclose(model.predict_item(entry(training)).forecast_array[:, :, 1], 3.0)


def test_it_survives_serialization(tmp_path: Path) -> None:
    data = [entry(autoregression(4, 200))]
    model = RidgeLags.train(data, 5, lags=8)
    assert model.penalties["a/0"] in PENALTIES
    model.serialize(tmp_path)
    again = Predictor.deserialize(tmp_path)
    assert again == model
    np.testing.assert_array_equal(
        again.predict_item(data[0]).forecast_array, model.predict_item(data[0]).forecast_array
    )


def test_bad_arguments_are_named() -> None:
    data = [entry(autoregression(5, 50))]
    with pytest.raises(ConfigError, match="lags, slots and prediction_length must be at least 1"):
        RidgeLags.train(data, 5, lags=0)
    with pytest.raises(SchemaError, match="more than lags"):
        RidgeLags.train(data, 5, lags=48)
    model = RidgeLags.train(data, 5, lags=4)
    with pytest.raises(SchemaError, match="must have 1 channels"):
        model.predict_item(entry(np.zeros((2, 50))))
    with pytest.raises(SchemaError, match="item_id must be one of"):
        model.predict_item(entry(np.zeros(50), "b"))


@pytest.mark.parametrize("targets", ["univariate", "multivariate"])
def test_the_baselines_stand_on_new_york_weather_where_they_stood(targets: str) -> None:
    data = entries(nyc_weather(), "1h", targets=targets)
    train, test = NYC_WEATHER.train(data), NYC_WEATHER.test(data)
    found = {}
    for name, model in (
        ("naive", SeasonalNaive(24, 24)),
        ("climate", Climatology.train(train, 24)),
        ("ridge", RidgeLags.train(train, 24, group=by_suffix if targets == "univariate" else by_channel)),
    ):
        judged = backtest(model, test, season=24, channels=NYC_CHANNELS if targets == "multivariate" else None)
        found[name] = scores(judged.judged, channel_key)
    assert [name for (name,) in found["naive"]] == list(NYC_CHANNELS)
    assert sum(score.observed for score in found["naive"].values()) == 52_602
    assert geometric_mean_ratio(found["climate"], found["naive"]) == pytest.approx(0.762, abs=0.002)
    assert geometric_mean_ratio(found["ridge"], found["naive"]) == pytest.approx(0.540, abs=0.002)
