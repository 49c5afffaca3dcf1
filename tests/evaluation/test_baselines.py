from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gluonts.model.predictor import Predictor
from gluonts.model.seasonal_naive import SeasonalNaivePredictor
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.baselines import Climatology, SeasonalNaive, filled, slot_of
from tsgdn2.evaluation.metrics import LEVELS

START = pd.Period("2024-03-01 05:00", freq="h")


def entry(target: np.ndarray, name: str = "a") -> dict[str, object]:
    return {"item_id": name, "start": START, "target": target}


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 40),
    season=st.integers(1, 12),
    horizon=st.integers(1, 30),
    missing=st.floats(0, 0.9),
)
def test_the_point_forecast_is_that_of_gluonts(
    seed: int, length: int, season: int, horizon: int, missing: float
) -> None:
    rng = np.random.default_rng(seed)
    target = rng.normal(size=length).astype(np.float32)
    target[1:][rng.random(length - 1) < missing] = np.nan
    ours = SeasonalNaive(horizon, season).predict_item(entry(target))
    theirs = SeasonalNaivePredictor(horizon, season).predict_item(entry(target))
    assert ours.start_date == theirs.start_date
    for level in ("0.1", "0.5", "0.9"):
        np.testing.assert_allclose(ours.quantile(level), theirs.quantile(level), rtol=1e-5, atol=1e-6)


def test_the_normal_spread_grows_with_the_season() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=50)
    forecast = SeasonalNaive(9, 4, spread="normal").predict_item(entry(target))
    sigma = np.sqrt(sum((target[t] - target[t - 4]) ** 2 for t in range(4, 50)) / 46)
    for h in range(1, 10):
        spread = sigma * np.sqrt((h - 1) // 4 + 1)
        expected = target[50 - 4 + (h - 1) % 4] + spread * 1.2815515655446004
        assert forecast.quantile(0.9)[h - 1] == pytest.approx(expected, rel=1e-12)


def test_climatology_gives_the_quantiles_of_the_hour() -> None:
    rng = np.random.default_rng(1)
    target = rng.normal(size=24 * 30 + 7)
    target[rng.random(len(target)) < 0.2] = np.nan
    forecast = Climatology.train([entry(target)], 30).predict_item(entry(target[:100]))
    hours = (5 + np.arange(len(target))) % 24
    for step in range(30):
        cells = target[(hours == (5 + 100 + step) % 24) & np.isfinite(target)]
        np.testing.assert_allclose(forecast.forecast_array[:, step], np.quantile(cells, LEVELS), rtol=1e-12)


def test_climatology_of_an_hour_never_seen_borrows_the_whole_series_and_an_empty_channel_is_zero() -> None:
    target = np.stack([np.arange(48.0), np.full(48, np.nan)])
    target[0, 3::24] = np.nan
    forecast = Climatology.train([entry(target)], 24).predict_item(entry(target))
    np.testing.assert_allclose(forecast.forecast_array[:, 3, 0], np.nanquantile(target[0], LEVELS))
    assert not forecast.forecast_array[:, :, 1].any()


@pytest.mark.parametrize("model", ["point", "normal", "climate"])
def test_channels_are_forecast_as_if_each_were_alone(model: str) -> None:
    rng = np.random.default_rng(2)
    target = rng.normal(size=(3, 100))
    target[1, 20:90] = np.nan

    def forecast(target: np.ndarray) -> np.ndarray:
        trained = Climatology.train([entry(target)], 10) if model == "climate" else SeasonalNaive(10, 24, spread=model)
        return trained.predict_item(entry(target)).forecast_array

    together = forecast(target)
    assert together.shape == (9, 10, 3)
    for channel in range(3):
        np.testing.assert_array_equal(together[:, :, channel], forecast(target[channel]))


def test_gaps_hold_the_last_value_and_the_head_the_first() -> None:
    values, seen = filled([np.nan, 1.0, np.nan, np.nan, 2.0, np.nan])
    assert values.tolist() == [[1, 1, 1, 1, 2, 2]]
    assert seen.tolist() == [[False, True, False, False, True, False]]
    assert filled(np.full((1, 2), np.nan))[0].tolist() == [[0, 0]]


def test_slots_follow_the_calendar_whatever_the_step() -> None:
    assert slot_of(pd.Period("2024-03-01 05:00", freq="h"), np.arange(3), 24).tolist() == [5, 6, 7]
    assert slot_of(pd.Period("2024-03-01 23:45", freq="15min"), np.arange(3), 96).tolist() == [95, 0, 1]


def test_predictors_survive_serialization(tmp_path: Path) -> None:
    data = [entry(np.random.default_rng(3).normal(size=(2, 60)))]
    for predictor in (SeasonalNaive(5, 4, spread="normal"), Climatology.train(data, 5)):
        folder = tmp_path / type(predictor).__name__
        folder.mkdir()
        predictor.serialize(folder)
        again = Predictor.deserialize(folder)
        assert again == predictor
        np.testing.assert_array_equal(
            again.predict_item(data[0]).forecast_array, predictor.predict_item(data[0]).forecast_array
        )


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="season_length must be at least 1"):
        SeasonalNaive(1, 0)
    with pytest.raises(ConfigError, match="spread must be point or normal"):
        SeasonalNaive(1, 1, spread="wide")
    with pytest.raises(ConfigError, match="slots must be at least 1"):
        Climatology.train([], 1, slots=0)
    with pytest.raises(SchemaError, match="is empty"):
        SeasonalNaive(1, 1).predict_item(entry(np.zeros(0)))
    with pytest.raises(SchemaError, match="item_id must be one of the 1 trained series"):
        Climatology.train([entry(np.zeros(30))], 1).predict_item(entry(np.zeros(30), "b"))
    with pytest.raises(SchemaError, match="pandas Period"):
        slot_of("2024", np.arange(1), 24)
