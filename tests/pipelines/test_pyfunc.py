"""The pyfunc flavour: the predictor's own forecasts, in a frame, from a model folder without a pickle."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties warn when they are imported
    import mlflow.pyfunc
    from gluonts.model.forecast import QuantileForecast
    from gluonts.model.seasonal_naive import SeasonalNaivePredictor
    from mlflow.exceptions import MlflowException

from tsgdn2.errors import SchemaError
from tsgdn2.pipelines.pyfunc import entries, inferred_freq, levels_of, quantile_frame, save_forecast_model


def history(items: tuple[str, ...] = ("a", "b"), rows: int = 30) -> pd.DataFrame:
    times = pd.date_range("2024-01-01", periods=rows, freq="h")
    return pd.concat(
        pd.DataFrame({"item_id": item, "timestamp": times, "target": np.arange(rows) + 100.0 * number})
        for number, item in enumerate(items)
    ).reset_index(drop=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pyfunc")
    (home / "predictor").mkdir()
    SeasonalNaivePredictor(prediction_length=4, season_length=24).serialize(home / "predictor")
    before = Path.cwd()
    os.chdir(home)
    try:
        save_forecast_model(home / "model", home / "predictor", history())
    finally:
        os.chdir(before)
    assert sorted(path.name for path in home.iterdir()) == ["model", "predictor"]
    return home / "model"


def test_the_loaded_model_gives_the_predictors_quantiles(saved: Path) -> None:
    model = mlflow.pyfunc.load_model(str(saved))
    forecast = model.predict(history())
    assert list(forecast.columns) == ["item_id", "timestamp", *(f"0.{digit}" for digit in range(1, 10))]
    assert list(forecast["item_id"]) == ["a"] * 4 + ["b"] * 4
    assert forecast["timestamp"].iloc[0] == pd.Timestamp("2024-01-02 06:00")
    np.testing.assert_array_equal(forecast["0.5"], [6, 7, 8, 9, 106, 107, 108, 109])


def test_signature_and_input_example_are_stored_and_fit_each_other(saved: Path) -> None:
    model = mlflow.pyfunc.load_model(str(saved))
    assert model.metadata.signature.inputs.input_names() == ["item_id", "timestamp", "target"]
    example = model.metadata.load_input_example(str(saved))
    assert len(model.predict(example)) == 8
    with pytest.raises(MlflowException, match="target"):
        model.predict(history().drop(columns="target"))


def test_the_model_folder_holds_no_pickle_and_pins_its_requirements(saved: Path) -> None:
    assert not [path for path in saved.rglob("*") if path.suffix in (".pkl", ".pickle")]
    assert "python_model" not in (saved / "MLmodel").read_text().replace("python_model.pkl", "")
    assert any(line.startswith("tsgdn2==") for line in (saved / "requirements.txt").read_text().splitlines())


def test_the_model_loads_in_a_new_process(saved: Path, tmp_path: Path) -> None:
    history().to_csv(tmp_path / "in.csv", index=False)
    code = (
        "import mlflow.pyfunc, pandas as pd, sys; "
        "frame = pd.read_csv(sys.argv[2], parse_dates=['timestamp']); "
        "print(mlflow.pyfunc.load_model(sys.argv[1]).predict(frame)['0.5'].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(saved), str(tmp_path / "in.csv")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
        check=True,
    )
    assert done.stdout.strip() == "[6.0, 7.0, 8.0, 9.0, 106.0, 107.0, 108.0, 109.0]"
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_holes_become_nan_order_does_not_matter_and_the_last_value_of_a_step_wins() -> None:
    frame = history(("a",), 6).drop(index=[2, 3]).sample(frac=1, random_state=0)
    late = pd.DataFrame({"item_id": ["a"], "timestamp": [pd.Timestamp("2024-01-01 01:59")], "target": [7.0]})
    (entry,) = entries(pd.concat([frame, late]), ["target"], "h")
    np.testing.assert_array_equal(entry["target"], np.array([0, 7, np.nan, np.nan, 4, 5], dtype=np.float32))
    assert entry["start"] == pd.Period("2024-01-01 00:00", freq="h")


def test_periods_of_several_units_stay_on_their_grid() -> None:
    times = pd.to_datetime(["2024-01-01 00:07", "2024-01-01 00:16", "2024-01-01 00:50"])
    (entry,) = entries(pd.DataFrame({"item_id": "a", "timestamp": times, "x": [1.0, 2.0, 3.0]}), ["x"], "15min")
    assert entry["start"].start_time == pd.Timestamp("2024-01-01 00:00")
    np.testing.assert_array_equal(entry["target"], np.array([1, 2, np.nan, 3], dtype=np.float32))


def test_zones_are_taken_to_utc() -> None:
    times = pd.date_range("2024-01-01 01:00", periods=3, freq="h", tz="Europe/Berlin")
    (entry,) = entries(pd.DataFrame({"item_id": "a", "timestamp": times, "x": 1.0}), ["x"], "h")
    assert entry["start"] == pd.Period("2024-01-01 00:00", freq="h")


def test_several_channels_are_one_target_and_come_back_by_name() -> None:
    frame = history(("a",), 5).assign(other=2.0)
    (entry,) = entries(frame, ["target", "other"], "h")
    assert entry["target"].shape == (2, 5)
    values_QHC = np.arange(12.0).reshape(2, 3, 2)
    forecast = QuantileForecast(values_QHC, pd.Period("2024-01-02", freq="h"), ["0.9", "0.1"], item_id="a")
    assert levels_of(forecast) == ["0.1", "0.9"]
    rows = quantile_frame([forecast], ["target", "other"], ["0.1", "0.9"])
    assert list(rows["channel"]) == ["target"] * 3 + ["other"] * 3
    np.testing.assert_array_equal(rows["0.9"], [0, 2, 4, 1, 3, 5])
    np.testing.assert_array_equal(rows["0.1"], [6, 8, 10, 7, 9, 11])


def test_the_frequency_is_taken_from_an_item_without_holes() -> None:
    holes = history(("a",), 9).drop(index=[4])
    assert inferred_freq(pd.concat([holes, history(("b",), 5)])) == "h"
    with pytest.raises(SchemaError, match="give freq"):
        inferred_freq(holes)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (history().iloc[:0], "at least one row"),
        (history().rename(columns={"item_id": "id"}), "item_id, timestamp and at least one channel"),
        (history().rename(columns={"target": "value"}), r"channels \['target'\] are needed"),
        (history().assign(target="many"), "hold numbers"),
        (history().assign(target=np.inf), "infinite"),
        (history().assign(timestamp=pd.NaT), "missing"),
        (history().assign(timestamp="yesterday-ish"), "dates and times"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_with_the_remedy(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        entries(frame, ["target"], "h")
