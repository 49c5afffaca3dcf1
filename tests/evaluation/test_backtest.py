from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tsgdn2.datasets.catalog import ett
from tsgdn2.datasets.gluon import entries
from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.backtest import ETTH1_A, ETTH1_B, Protocol, backtest, summary, training, windows
from tsgdn2.evaluation.baselines import SeasonalNaive

START = pd.Period("2024-03-01 05:00", freq="h")
ETTH1 = Path(os.environ.get("TSGDN2_DATA", "")) / "ett" / "ETTh1.parquet"


def ramp(length: int, name: str = "a", start: pd.Period = START) -> dict[str, object]:
    return {"item_id": name, "start": start, "target": np.arange(float(length))}


def origins(test_data: object) -> list[int]:
    return [len(entry["target"]) for entry in test_data.input]


def test_windows_end_with_the_series_and_hold_the_whole_history() -> None:
    test_data = windows([ramp(50), ramp(60, "b")], 6, 3, distance=5)
    assert origins(test_data) == [34, 39, 44, 44, 49, 54]
    for entry, label in test_data:
        assert entry["target"][0] == 0
        assert label["target"].tolist() == list(range(len(entry["target"]), len(entry["target"]) + 6))
        assert label["start"] == START + len(entry["target"])


def test_windows_end_where_they_are_told_to() -> None:
    assert origins(windows([ramp(50)], 6, 3, end=40)) == [22, 28, 34]
    late = ramp(50, "b", START + 2)
    assert origins(windows([ramp(50), late], 6, 2, end=START + 39)) == [28, 34, 26, 32]
    assert origins(windows([ramp(50)], 6, 1, end=50)) == [44]


@pytest.mark.parametrize("end", [51, 12, START + 50, START + 11])
def test_windows_outside_the_data_are_an_error(end: int | pd.Period) -> None:
    with pytest.raises(ConfigError, match="ask for fewer"):
        windows([ramp(50)], 6, 2, end=end)


def test_bounds_are_named() -> None:
    with pytest.raises(ConfigError, match="distance=0"):
        windows([ramp(50)], 6, 2, distance=0)
    with pytest.raises(ConfigError, match="season of x"):
        Protocol(name="x", prediction_length=1, season=0, windows=1, distance=1, train_end=5)
    with pytest.raises(ConfigError, match="by must be one of"):
        summary({}, by="month")
    with pytest.raises(SchemaError, match="at least one model"):
        summary({})


def test_training_stops_before_the_end_given() -> None:
    assert [len(entry["target"]) for entry in training([ramp(50)], 40)] == [40]
    assert training([ramp(50)], START + 9)[0]["target"].tolist() == list(range(10))


def test_etth1_protocols_are_those_of_the_published_windows() -> None:
    dataset = [ramp(17_420)]
    for protocol, first, last in ((ETTH1_A, 13_920, 14_376), (ETTH1_B, 16_940, 17_396)):
        assert len(protocol.train(dataset)[0]["target"]) == 11_520
        assert origins(protocol.test(dataset)) == list(range(first, last + 1, 24))


def test_a_backtest_has_one_row_per_window_and_channel() -> None:
    rng = np.random.default_rng(0)
    dataset = [{"item_id": name, "start": START, "target": rng.normal(size=(2, 80))} for name in "ab"]
    dataset[0]["target"][1, 70:75] = np.nan
    test_data = windows(dataset, 5, 3)
    found = backtest(SeasonalNaive(5, 7), test_data, season=7, channels=["x", "y"])
    assert found.rows.shape == (12, 8)
    assert found.rows.columns == ["item_id", "window", "start", "channel", "CRPS", "MASE", "coverage", "observed"]
    assert found.rows.filter(item_id="a", channel="y")["observed"].to_list() == [5, 0, 5]
    assert found.rows.filter(item_id="a", channel="y")["CRPS"].null_count() == 1
    assert found.rows["start"][0] == (START + 65).to_timestamp()
    assert found.overall.observed == 55 == found.rows["observed"].sum()
    for by, groups in (("all", ["all"]), ("item", ["a", "b"]), ("channel", ["x", "y"])):
        table = summary({"naive": found.judged, "again": found.judged}, by=by)
        assert table[by].to_list() == groups * 2
        assert table["model"].to_list() == ["naive"] * len(groups) + ["again"] * len(groups)
    assert summary({"naive": found.judged})["CRPS"][0] == found.overall.crps


if ETTH1.is_file():

    @pytest.mark.parametrize(("protocol", "crps", "mase"), [(ETTH1_A, 0.301, 0.790), (ETTH1_B, 0.253, 0.927)])
    def test_seasonal_naive_reproduces_the_published_figures_on_etth1(
        protocol: Protocol, crps: float, mase: float
    ) -> None:
        dataset = entries(ett("ETTh1"), "1h")
        found = backtest(SeasonalNaive(24, 24), protocol.test(dataset), season=protocol.season).overall
        assert round(found.crps, 3) == crps
        assert round(found.mase, 3) == mase
        assert found.observed == 7 * 20 * 24
