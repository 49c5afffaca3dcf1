"""Where training begins: with nothing to learn it is the last season, with a rule in the data it is the rule."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.estimator import GDN2Estimator
from tsgdn2.pipelines.linear_start import Pairs, fit, linear_start, naive, ridge

SMALL = {"patch_length": 2, "width": 16, "mlp": 16, "heads": 2, "batch_size": 4, "num_batches_per_epoch": 2}


def series(values: np.ndarray) -> list[dict[str, object]]:
    return [{"item_id": "s", "start": pd.Period("2024-01-01 00:00", freq="h"), "target": values}]


def estimator(channels: int, **changes: object) -> GDN2Estimator:
    options = {**SMALL, "lag_skip": 12, "half_life": 200.0, "trainer_kwargs": {"max_epochs": 1}, **changes}
    made: GDN2Estimator = GDN2Estimator("h", 6, target_channels=channels, **options)  # type: ignore[arg-type]
    return made


def origins(count: int, rule: np.ndarray, noise: float, seed: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, rule.shape[1]))
    y = x @ rule.T + noise * rng.normal(size=(count, len(rule)))
    return Pairs(np.arange(count), x, y, np.ones(y.shape, np.bool_))


def test_the_naive_map_repeats_the_mean_of_the_last_seasons() -> None:
    x = np.arange(12.0)
    np.testing.assert_allclose(naive(6, 12, 4, 1) @ x, [8, 9, 10, 11, 8, 9])
    np.testing.assert_allclose(naive(6, 12, 4, 3) @ x, [4, 5, 6, 7, 4, 5])


def test_a_penalty_leads_from_least_squares_to_the_naive_map() -> None:
    rule = np.random.default_rng(1).normal(size=(3, 5))
    found, base = origins(400, rule, 0.0), naive(3, 5, 1, 1)
    close, far = ridge(found, base, [1e-9, 1e9])
    np.testing.assert_allclose(close, rule, atol=1e-6)
    np.testing.assert_allclose(far, base, atol=1e-6)


def test_a_rule_with_many_origins_is_found_and_noise_with_few_is_not() -> None:
    rule = np.zeros((4, 6))
    rule[:, 1] = 1.0
    many = fit(origins(2_000, rule, 0.1), season=2)
    np.testing.assert_allclose(many.skip, rule, atol=0.02)
    few = fit(origins(25, 0 * rule, 1.0, seed=3), season=2)
    assert few.penalty >= 0.3
    assert np.abs(few.skip).max() <= 0.6
    none = fit(origins(1, rule, 1.0), season=2)
    np.testing.assert_array_equal(none.skip, naive(4, 6, 2, 1))


def test_missing_targets_weigh_nothing() -> None:
    rule = np.random.default_rng(1).normal(size=(3, 5))
    found = origins(500, rule, 0.0)
    hole = np.random.default_rng(2).random(found.y.shape) < 0.1
    spoiled = found._replace(y=np.where(hole, 1e6, found.y), seen=~hole)
    assert np.isfinite(ridge(spoiled, rule, [0.1])[0]).all()
    np.testing.assert_allclose(ridge(spoiled, rule, [0.1])[0], rule, atol=1e-9)


@pytest.mark.parametrize("identity", [False, True])
def test_the_first_forecast_is_the_line_with_the_spread_of_its_errors(identity: bool) -> None:
    rng = np.random.default_rng(0)
    values = 10 + np.sin(np.arange(300) * 2 * np.pi / 6) + 0.1 * rng.normal(size=(2, 300))
    values[0, 50:55] = np.nan
    made = estimator(2, channel_identity=identity)
    start, found = linear_start(made, series(values), season=6)
    assert len(found) == (2 if identity else 1)
    (forecast,) = start.predict(series(values))
    truth = 10 + np.sin(np.arange(300, 306) * 2 * np.pi / 6)
    median = np.asarray(forecast.quantile(0.5))
    np.testing.assert_allclose(median, np.repeat(truth[:, None], 2, 1), atol=0.3)
    spread = [np.asarray(forecast.quantile(high) - forecast.quantile(low)) for low, high in ((0.1, 0.9), (0.4, 0.6))]
    assert (spread[0] > spread[1]).all()
    assert (spread[1] > 0).all()
    again, _ = linear_start(made, series(values), season=6)
    assert again == start
    trained = made.train_from(start, series(values))
    assert trained != start


def test_what_can_not_begin_at_a_line_is_refused() -> None:
    values = np.random.default_rng(0).normal(size=100)
    with pytest.raises(ConfigError, match="lag_skip: must hold a season of 24 steps"):
        linear_start(estimator(1), series(values), season=24)
