"""The serving benchmark in small: every contender answers at every age and number, and holds what it was fed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from gluonts.model.seasonal_naive import SeasonalNaivePredictor

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.rows import read
from tsgdn2.evaluation.serving import BEGIN, HOUR_NS, Online, Rerun, River, Stepped, values_of
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines import serving
from tsgdn2.pipelines.cli import main
from tsgdn2.standards import Standards


def online(period: int = HOUR_NS) -> OnlinePredictor:
    config = ForecasterConfig(prediction_length=6, period_ns=period, patch_length=4, width=8, heads=2, key_dim=4,
                              value_dim=4, mlp=8)  # fmt: skip
    return OnlinePredictor(Forecaster(config).eval(), Standards(default=(1.0,)), channels=["value"], freq="h")


@pytest.mark.usefixtures("at_home")
def test_every_contender_has_a_row_at_every_age_and_number_of_streams() -> None:
    assert main(["bench", "--what", "serving", "--quick", "true", "--seeds", "[3]", "--output", "out"]) == 0
    rows = read(Path("out/serving-quick.jsonl"))
    keys = [(row.what.rpartition(", ")[0], row.shape["streams"], row.shape["observations"]) for row in rows]
    names = list(dict.fromkeys(name for name, *_ in keys))
    assert len(names) == 9
    assert names[0].startswith(serving.OURS)
    plan = serving.QUICK
    wanted = [(name, 1, age) for age in plan.ages for name in names]
    wanted += [(name, count, plan.history) for count, _ in plan.streams for name in names]
    assert keys == wanted
    for row in rows:
        assert row.seed == 3
        assert all(row.values[name] > 0 for name in ("update_us", "update_patch_us", "forecast_us", "bytes"))
        rival = not row.what.startswith(serving.OURS)
        older = row.shape["streams"] == 1 and row.shape["observations"] != plan.ages[0]
        for over, wanted in (("ours", rival), ("youngest", older)):
            assert [f"{name}_over_{over}" in row.values for name in ("update", "forecast")] == [wanted, wanted]
    ours = [row.values["bytes"] for row in rows if row.what.startswith(serving.OURS)]
    assert len(set(ours)) == 1, "a stream has the same bytes however old it is"
    page = Path("out/serving-quick.md").read_text()
    assert "Our update there takes" in page
    assert all(f"| {name}, 1 stream, 400 observations |" in page for name in names)


def test_ratios_are_of_one_turn_and_of_whole_patches() -> None:
    steps = serving.PATCH
    one, other = (serving.Clocked(name, None, 0, [], [], [], []) for name in ("a", "b"))  # type: ignore[arg-type]
    for turn, slow in enumerate((1.0, 50.0, 2.0)):  # a busy machine slows both sides of a turn
        one.updates += [slow] * (steps - 1) + [slow * (1 + 2 * steps)]
        other.updates += [slow] * steps
        one.forecasts.append(slow * (4 + turn))
        other.forecasts.append(slow)
    assert serving._ratios(one, other, "ours") == {"update_over_ours": 3.0, "forecast_over_ours": 5.0}


def test_targets_of_variates_are_one_per_stream() -> None:
    class Seen:
        def predict(self, entries: list[dict[str, np.ndarray]]) -> list[tuple[int, ...]]:
            return [entry["target"].shape for entry in entries]

    again = Rerun(Seen(), 24, 3, variates=True)  # type: ignore[arg-type]
    again.feed(values_of(3, 0, 30, 1))
    assert again.forecast() == [(1, 24)] * 3


def test_values_do_not_depend_on_the_piece_that_is_asked_for() -> None:
    whole = values_of(3, 0, 3000, 7)
    assert whole.shape == (3, 3000)
    np.testing.assert_array_equal(values_of(3, 1000, 2500, 7), whole[:, 1000:2500])
    assert not np.array_equal(values_of(3, 0, 10, 8), whole[:, :10])


@pytest.mark.parametrize("streams", [1, 3])
def test_ours_and_the_lstm_hold_the_same_after_updates_as_after_a_feed(streams: int) -> None:
    values = values_of(streams, 0, 21, 0)
    predictor = online()
    fed, updated = (Online(one, streams) for one in (predictor, Online(predictor, streams).copy().online))
    fed.feed(values)
    for column in values.T:
        updated.update(column)
    assert fed.step == updated.step == 21
    for name in fed.names:
        left, right = (one.online.forecast(name) for one in (fed, updated))
        np.testing.assert_array_equal(left.quantiles, right.quantiles)
        assert left.times[0] == np.datetime64(BEGIN + 21 * HOUR_NS, "ns")
    assert fed.nbytes() == fed.online.state_nbytes
    lstm = Stepped(6, 9, 8, streams)
    twin = lstm.copy()
    lstm.feed(values)
    for column in values.T:
        twin.update(column)
    np.testing.assert_allclose(lstm.forecast(), twin.forecast(), atol=1e-5)
    assert np.shape(lstm.forecast()) == (streams, 6, 9)
    assert lstm.nbytes() == 2 * 8 * 4


def test_a_model_that_is_run_again_sees_its_last_values_in_their_order() -> None:
    values = values_of(2, 0, 40, 1)
    again = Rerun(SeasonalNaivePredictor(prediction_length=6, season_length=24), 24, 2)
    again.feed(values[:, :9])
    again.feed(values[:, 9:31])
    twin = again.copy()
    for column in values[:, 31:].T:
        again.update(column)
    for row, forecast in enumerate(again.forecast()):
        np.testing.assert_allclose(forecast.mean, values[row, 16:22], rtol=1e-6)
        assert forecast.start_date.start_time.value == BEGIN + 40 * HOUR_NS
    for row, forecast in enumerate(twin.forecast()):
        np.testing.assert_allclose(forecast.mean, values[row, 7:13], rtol=1e-6)
    assert again.nbytes() == 24 * 4


def test_river_learns_every_value_and_its_streams_are_copies() -> None:
    river = River(6, 3)
    river.feed(values_of(3, 0, 60, 2))
    river.update(np.array([1.0, 2.0, 3.0]))
    found = river.forecast()
    assert [len(one) for one in found] == [6, 6, 6]
    assert found[0] != found[1]
    assert river.nbytes() > 100


def test_what_does_not_fit_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="online: must have one channel and hourly steps"):
        Online(online(60 * 10**9), 1)
    monkeypatch.setitem(__import__("sys").modules, "river.time_series", None)
    with pytest.raises(ConfigError, match=r"river: is not installed; pip install 'tsgdn2\[bench\]'"):
        River(6, 1)
    assert importlib.util.find_spec("river") is not None
