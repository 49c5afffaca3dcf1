from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.split import split
from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
from gluonts.ev.ts_stats import seasonal_error
from gluonts.model.evaluation import evaluate_forecasts
from gluonts.model.forecast import QuantileForecast
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.metrics import (
    LEVELS,
    calibration,
    evaluate,
    geometric_mean_ratio,
    judge,
    pooled,
    scores,
    seasonal_scale,
)

START = pd.Period("2024-03-01 05:00", freq="h")


def windows(seed: int, count: int, channels: int, steps: int, past: int, missing: float) -> tuple[list, list, list]:
    """Make forecasts, labels and inputs; channels = 0 makes univariate ones."""
    rng = np.random.default_rng(seed)
    shape = (channels,) if channels else ()
    forecasts, labels, inputs = [], [], []
    for row in range(count):
        label, history = rng.normal(size=(*shape, steps)), rng.normal(size=(*shape, past))
        label[rng.random(label.shape) < missing] = np.nan
        history[rng.random(history.shape) < missing] = np.nan
        name, start = f"series {row % 3}", START + row
        labels.append({"item_id": name, "start": start, "target": label})
        inputs.append({"item_id": name, "start": start - past, "target": history})
        quantiles = np.sort(rng.normal(size=(len(LEVELS), steps, *shape)), axis=0)
        forecasts.append(QuantileForecast(quantiles, start, [str(level) for level in LEVELS], item_id=name))
    return forecasts, labels, inputs


def formula(forecasts: list, labels: list, inputs: list, season: int) -> tuple[float, float, float]:
    """The definitions, cell by cell, in plain Python."""
    loss = dict.fromkeys(LEVELS, 0.0)
    volume, scaled, inside, seen = 0.0, [], 0, 0
    for forecast, label, past in zip(forecasts, labels, inputs, strict=True):
        truth, history = np.atleast_2d(label["target"]), np.atleast_2d(past["target"])
        for channel in range(len(truth)):
            values = history[channel]
            lag = season if season < len(values) else 1
            changes = [abs(a - b) for a, b in zip(values[lag:], values[:-lag], strict=True)]
            changes = [change for change in changes if not np.isnan(change)]
            scale = sum(changes) / len(changes) if changes else 0.0
            for step in range(truth.shape[1]):
                y = truth[channel, step]
                if np.isnan(y):
                    continue
                at = {q: np.atleast_2d(np.asarray(forecast.quantile(q)).T)[channel, step] for q in LEVELS}
                for q in LEVELS:
                    loss[q] += 2 * abs((y - at[q]) * ((1.0 if y <= at[q] else 0.0) - q))
                volume += abs(y)
                seen += 1
                inside += at[0.1] <= y <= at[0.9]
                if scale > 0:
                    scaled.append(abs(y - at[0.5]) / scale)
    return np.mean([loss[q] / volume for q in LEVELS]), np.mean(scaled), inside / seen


@pytest.mark.parametrize("channels", [0, 1, 3])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_pooled_figures_match_the_definitions_written_out(channels: int, missing: float) -> None:
    parts = windows(0, 7, channels, 5, 19, missing)
    found = pooled(judge(*parts, season=4))
    np.testing.assert_allclose([found.crps, found.mase, found.coverage], formula(*parts, season=4), rtol=1e-12)


def test_pooled_figures_match_gluonts_on_univariate_targets_with_gaps() -> None:
    rng = np.random.default_rng(1)
    dataset = []
    for name in "abc":
        target = rng.normal(size=90)
        target[rng.random(90) < 0.2] = np.nan
        dataset.append({"item_id": name, "start": START, "target": target})
    test_data = split(dataset, offset=-30)[1].generate_instances(prediction_length=6, windows=5)
    forecasts = [
        QuantileForecast(
            np.sort(rng.normal(size=(9, 6)), axis=0), label["start"], [str(q) for q in LEVELS], label["item_id"]
        )
        for label in test_data.label
    ]
    theirs = evaluate_forecasts(
        forecasts, test_data=test_data, metrics=[MeanWeightedSumQuantileLoss(list(LEVELS)), MASE()], seasonality=7
    )
    ours = pooled(evaluate(forecasts, test_data, season=7))
    np.testing.assert_allclose([ours.crps, ours.mase], theirs.to_numpy()[0], rtol=1e-12)


def test_grouping_by_channel_equals_judging_each_channel_alone() -> None:
    forecasts, labels, inputs = windows(2, 6, 3, 4, 12, 0.3)
    found = scores(
        judge(forecasts, labels, inputs, season=3, channels=["x", "y", "z"]), lambda _item, channel, _window: (channel,)
    )
    assert list(found) == [("x",), ("y",), ("z",)]
    for channel, name in enumerate("xyz"):
        alone = [
            [forecast.copy_dim(channel) for forecast in forecasts],
            [{**label, "target": label["target"][channel]} for label in labels],
            [{**past, "target": past["target"][channel]} for past in inputs],
        ]
        score = found[name,]
        np.testing.assert_allclose([score.crps, score.mase, score.coverage], formula(*alone, season=3), rtol=1e-12)


def test_a_window_without_any_observation_counts_nowhere_and_scores_nan_alone() -> None:
    forecasts, labels, inputs = windows(3, 4, 0, 5, 11, 0.0)
    labels[2] = {**labels[2], "target": np.full(5, np.nan)}
    judged = judge(forecasts, labels, inputs, season=2)
    by_window = list(scores(judged, lambda item, _channel, window: (item, str(window))).values())
    assert by_window[2].observed == 0
    assert np.isnan([by_window[2].crps, by_window[2].mase, by_window[2].coverage]).all()
    rest = [[rows[row] for row in (0, 1, 3)] for rows in (forecasts, labels, inputs)]
    assert pooled(judged) == pooled(judge(*rest, season=2))


def test_a_constant_past_has_no_mase_but_keeps_its_other_figures() -> None:
    forecasts, labels, inputs = windows(4, 2, 0, 5, 11, 0.0)
    inputs = [{**past, "target": np.ones(11)} for past in inputs]
    score = pooled(judge(forecasts, labels, inputs, season=2))
    assert np.isnan(score.mase)
    assert score.crps > 0


def test_a_label_on_the_edge_of_the_interval_is_covered() -> None:
    forecast = QuantileForecast(np.zeros((9, 3)), START, [str(q) for q in LEVELS])
    entry = {"start": START, "target": np.zeros(3)}
    assert pooled(judge([forecast], [entry], [{"start": START - 9, "target": np.arange(9.0)}], season=1)).coverage == 1


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), length=st.integers(2, 40), season=st.integers(1, 50), missing=st.floats(0, 1))
def test_the_seasonal_scale_is_gluonts_seasonal_error(seed: int, length: int, season: int, missing: float) -> None:
    rng = np.random.default_rng(seed)
    past = rng.normal(size=(2, length))
    past[rng.random(past.shape) < missing] = np.nan
    lag = season if season < length else 1
    theirs = np.ma.filled(seasonal_error(np.ma.masked_invalid(past), lag, time_axis=-1), np.nan)[:, 0]
    np.testing.assert_allclose(seasonal_scale(past, season), theirs, rtol=1e-12)


def test_calibration_of_the_true_quantiles_is_the_level_itself() -> None:
    labels = np.arange(1000) / 1000 + 0.0005
    forecast = QuantileForecast(np.repeat(np.array(LEVELS)[:, None], 1000, 1), START, [str(q) for q in LEVELS])
    entry = {"start": START, "target": labels}
    found = calibration(judge([forecast], [entry], [{"start": START - 9, "target": np.arange(9.0)}], season=1))
    np.testing.assert_allclose(list(found.values()), list(found), atol=1e-12)


def test_the_geometric_mean_of_halves_and_doubles_is_one() -> None:
    forecasts, labels, inputs = windows(5, 4, 2, 5, 11, 0.0)
    found = scores(judge(forecasts, labels, inputs, season=2), lambda _item, channel, _window: (channel,))
    assert geometric_mean_ratio(found, found) == pytest.approx(1.0)
    with pytest.raises(SchemaError, match="same groups"):
        geometric_mean_ratio(found, {("0",): found["0",]})


def test_bad_arguments_are_named() -> None:
    forecasts, labels, inputs = windows(6, 3, 0, 5, 11, 0.0)
    with pytest.raises(ConfigError, match="season must be at least 1"):
        judge(forecasts, labels, inputs, season=0)
    with pytest.raises(ConfigError, match="levels must ascend"):
        judge(forecasts, labels, inputs, season=1, levels=[0.9, 0.1])
    with pytest.raises(ConfigError, match="channels must name"):
        judge(forecasts, labels, inputs, season=1, channels=["a", "b"])
    with pytest.raises(SchemaError, match="equally many"):
        judge(forecasts[:2], labels, inputs, season=1)
    with pytest.raises(SchemaError, match="no window"):
        judge([], [], [], season=1)
    with pytest.raises(SchemaError, match="order of labels"):
        judge(forecasts[::-1], labels, inputs, season=1)
    with pytest.raises(SchemaError, match="labels' shape"):
        judge(forecasts, [{**label, "target": label["target"][:4]} for label in labels], inputs, season=1)
    forecasts[1].forecast_array[0, 0] = np.nan
    with pytest.raises(SchemaError, match="finite"):
        judge(forecasts, labels, inputs, season=1)
