"""The GIFT-Eval protocol: its 23 configurations, its windows, GluonTS's own metrics, and the published naive rows."""

from __future__ import annotations

import math
import os

import numpy as np
import pandas as pd
import pytest
from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
from gluonts.model import evaluate_model

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.gift_eval import (
    CONFIGURATIONS,
    Configuration,
    configuration,
    geometric_mean,
    judge,
    matching,
    naive,
    seasonal_naive,
    series,
)
from tsgdn2.evaluation.leaderboard import published
from tsgdn2.evaluation.metrics import LEVELS

DATA = os.environ.get("TSGDN2_DATA")
WINDOWS = {
    ("15T", 69_680): (20, 15, 10), ("H", 17_420): (20, 4, 3), ("D", 725): (3,), ("W", 103): (2,),
    ("10T", 52_704): (20, 11, 8), ("H", 8_784): (19, 2, 2), ("D", 366): (2,),
}  # fmt: skip
TOLERANCE = 1e-4
"""Relative, of the published figures."""


def entries(length: int, seed: int = 0) -> list[dict[str, object]]:
    """Two series of an hourly set with holes in history and horizon."""
    rng = np.random.default_rng(seed)
    made = []
    for name in ("HUFL", "OT"):
        target = 5 + np.sin(np.arange(length) * 2 * np.pi / 24) + 0.3 * rng.normal(size=length)
        target[rng.random(length) < 0.05] = np.nan
        made.append({"item_id": f"ett1/{name}", "start": pd.Period("2016-07-01 00:00", freq="h"), "target": target})
    return made


def test_there_are_twenty_three_configurations_eight_eight_and_seven() -> None:
    families = [one.dataset for one in CONFIGURATIONS]
    assert [families.count(name) for name in ("ett1", "ett2", "jena_weather")] == [8, 8, 7]
    assert len({one.name for one in CONFIGURATIONS}) == 23
    assert {one.horizon for one in CONFIGURATIONS} == {8, 30, 48, 480, 720}
    assert configuration("ett1/15T/long") == Configuration("ett1", "15T", "long")
    with pytest.raises(ConfigError, match="must be one of ett1/15T/short"):
        configuration("ett1/W/long")


@pytest.mark.parametrize(("freq", "length"), WINDOWS)
def test_windows_and_training_follow_from_the_length(freq: str, length: int) -> None:
    dataset = "jena_weather" if length in (52_704, 8_784, 366) else "ett1"
    own = [one for one in CONFIGURATIONS if (one.dataset, one.freq) == (dataset, freq)]
    assert tuple(one.windows(length) for one in own) == WINDOWS[freq, length]
    for one in own:
        protocol = one.protocol(length)
        assert protocol.train_end == length - one.horizon * (one.windows(length) + 1)
        assert protocol.distance == protocol.prediction_length == one.horizon


def test_a_series_too_short_to_train_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be above 96 rows, got 96"):
        configuration("ett1/H/short").protocol(96)


def test_configurations_are_found_by_how_their_names_begin() -> None:
    assert matching(()) == CONFIGURATIONS
    assert [one.name for one in matching(["ett2/W", "jena_weather/H/l"])] == ["ett2/W/short", "jena_weather/H/long"]
    with pytest.raises(ConfigError, match="no name begins with 'etth1'"):
        matching(["ett1", "etth1"])


@pytest.mark.parametrize("maker", [seasonal_naive, naive])
def test_the_figures_are_those_of_gluonts(maker: object) -> None:
    one, data = configuration("ett1/H/short"), entries(1_100)
    predictor = maker(one)  # type: ignore[operator]
    found = judge(one, predictor, data)
    protocol = one.protocol(1_100)
    assert len(found.judged) == 2 * protocol.windows == 6
    theirs = evaluate_model(
        predictor,
        test_data=protocol.test(data),
        metrics=[MASE(), MeanWeightedSumQuantileLoss(quantile_levels=LEVELS)],
        axis=None,
        mask_invalid_label=True,
        allow_nan_forecast=False,
        seasonality=one.season,
    )
    assert found.overall.mase == pytest.approx(theirs["MASE[0.5]"].iloc[0], rel=1e-12)
    assert found.overall.crps == pytest.approx(theirs["mean_weighted_sum_quantile_loss"].iloc[0], rel=1e-12)


def test_a_geometric_mean_wants_positive_numbers() -> None:
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert all(math.isnan(geometric_mean(bad)) for bad in ([], [1.0, 0.0], [1.0, math.nan]))


if DATA:

    @pytest.mark.parametrize("one", CONFIGURATIONS, ids=lambda one: one.name)
    def test_both_naive_rows_equal_the_published_ones(one: Configuration) -> None:
        data, board = series(one), published()
        for name, maker in (("seasonal_naive", seasonal_naive), ("naive", naive)):
            found = judge(one, maker(one), data).overall
            assert found.mase == pytest.approx(board[name].figures["MASE"][one.name], rel=TOLERANCE)
            assert found.crps == pytest.approx(board[name].figures["CRPS"][one.name], rel=TOLERANCE)
