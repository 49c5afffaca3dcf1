"""The estimator and its predictor by GluonTS's conventions, on small real trainings."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.dataset.common import ListDataset
from gluonts.model.predictor import Predictor
from gluonts.torch.distributions import StudentTOutput
from gluonts.torch.model.predictor import PyTorchPredictor

from tsgdn2 import GDN2Estimator, OnlinePredictor
from tsgdn2.errors import CheckpointError, ConfigError, SchemaError
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.predictor_folder import WEIGHTS

SMALL = {
    "width": 16,
    "layers": 1,
    "heads": 2,
    "key_dim": 4,
    "value_dim": 4,
    "mlp": 16,
    "context_length": 64,
    "batch_size": 8,
    "num_batches_per_epoch": 4,
}


def waves(items=3, steps=400, channels=1, seed=0, freq="h", missing=0.1):
    rng = np.random.default_rng(seed)
    out = []
    for i in range(items):
        t = np.arange(steps)[None]
        target = (
            np.sin(2 * np.pi * (t / 24 + rng.random((channels, 1)))) * 3
            + 10 * i
            + 0.3 * rng.normal(size=(channels, steps))
        )
        target[rng.random(target.shape) < missing] = np.nan
        out.append(
            {
                "item_id": f"item{i}",
                "start": pd.Period("2024-01-01", freq=freq),
                "target": target[0] if channels == 1 else target,
            }
        )
    return out


def train(data, horizon=12, epochs=2, **options):
    settings = {**SMALL, **options}
    return GDN2Estimator("h", horizon, trainer_kwargs={"max_epochs": epochs}, **settings).train(data)


@pytest.fixture(scope="module")
def predictor():
    return train(waves())


def test_training_learns_and_predicts_in_the_order_of_the_data(predictor):
    data = waves(5, seed=1)
    data[0]["target"] = data[0]["target"][:33]
    forecasts = list(predictor.predict(data))
    assert [f.item_id for f in forecasts] == [f"item{i}" for i in range(5)]
    assert all(f.start_date == e["start"] + len(e["target"]) for f, e in zip(forecasts, data, strict=True))
    assert forecasts[0].forecast_array.shape == (9, 12)
    assert (np.diff(forecasts[1].forecast_array, axis=0) >= 0).all(), "quantiles do not cross"
    losses = [h["val_loss"] for h in train(waves(), epochs=12).history]
    assert min(losses) < 0.8 * losses[0]


def test_a_round_trip_is_equal_and_predicts_the_same_bits(predictor, tmp_path: Path):
    predictor.serialize(tmp_path)
    again = Predictor.deserialize(tmp_path)
    assert again == predictor
    assert isinstance(again, PyTorchPredictor)
    for a, b in zip(predictor.predict(waves()), again.predict(waves()), strict=True):
        np.testing.assert_array_equal(a.forecast_array, b.forecast_array)
    again.forecaster.norm.weight.data[0] += 1e-6
    assert again != predictor
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".pt", ".pkl", ".ckpt")]


def test_an_altered_weight_file_is_refused(predictor, tmp_path: Path):
    predictor.serialize(tmp_path)
    whole = bytearray((tmp_path / WEIGHTS).read_bytes())
    whole[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(whole)
    with pytest.raises(CheckpointError, match="altered"):
        Predictor.deserialize(tmp_path)


def test_training_is_reproducible_and_writes_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(waves(), seed=3) == train(waves(), seed=3)
    assert train(waves(), seed=4) != train(waves(), seed=3)
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_does_not_depend_on_who_else_is_in_the_batch(predictor):
    data = waves(7, seed=2)
    alone = next(iter(predictor.predict(data[3:4]))).forecast_array
    together = list(predictor.predict(data))[3].forecast_array
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-4)


def test_a_warm_start_goes_on_and_refuses_another_shape(predictor):
    estimator = GDN2Estimator("h", 12, trainer_kwargs={"max_epochs": 1}, lr=1e-5, **SMALL)
    warm = estimator.train_from(predictor, waves())
    cold = estimator.train(waves())
    assert warm.history[0]["val_loss"] < cold.history[0]["val_loss"]
    other = GDN2Estimator("h", 12, **{**SMALL, "width": 32})
    with pytest.raises(ConfigError, match=r"width.*differ"):
        other.train_from(predictor, waves())


def test_validation_data_picks_the_weights():
    data = waves()
    longer = waves(steps=460)
    estimator = GDN2Estimator("h", 12, trainer_kwargs={"max_epochs": 3}, **SMALL)
    fitted = estimator.fit(data, longer)
    losses = [h["val_loss"] for h in fitted.history]
    assert fitted.best_loss == min(losses)


def test_a_distribution_head_gives_samples_and_survives_the_round_trip(tmp_path: Path):
    predictor = train(waves(), distr_output=StudentTOutput())
    forecast = next(iter(predictor.predict(waves(), num_samples=37)))
    assert forecast.samples.shape == (37, 12)
    predictor.serialize(tmp_path)
    assert Predictor.deserialize(tmp_path) == predictor
    with pytest.raises(ConfigError, match="distr_output"):
        OnlinePredictor.from_predictor(predictor)


def test_covariates_and_statics_are_used_and_demanded():
    rng = np.random.default_rng(0)
    data = []
    for i in range(4):
        known = rng.normal(size=(1, 500)) * 5 + 3
        data.append(
            {
                "item_id": f"i{i}",
                "start": pd.Period("2024-01-01", freq="h"),
                "target": known[0, :480] * 2.0 + i,
                "feat_dynamic_real": known,
                "feat_static_cat": [i % 2],
                "feat_static_real": [float(i)],
            }
        )
    predictor = train(
        data,
        epochs=25,
        num_feat_dynamic_real=1,
        cardinality=[2],
        num_feat_static_real=1,
        lr=1e-2,
        num_batches_per_epoch=10,
    )
    forecasts = list(predictor.predict(data))
    error = np.mean(
        [
            np.abs(f.quantile(0.5) - (e["feat_dynamic_real"][0, 480:492] * 2.0 + i)).mean()
            for i, (f, e) in enumerate(zip(forecasts, data, strict=True))
        ]
    )
    assert error < 5.0, "the target's deviation is 10; only the covariate explains it"
    cut = {**data[0], "feat_dynamic_real": data[0]["feat_dynamic_real"][:, :480]}
    with pytest.raises(SchemaError, match=r"feat_dynamic_real.*horizon"):
        list(predictor.predict([cut]))
    with pytest.raises(SchemaError, match="feat_static_cat"):
        list(predictor.predict([{**data[0], "feat_static_cat": [7]}]))
    online = OnlinePredictor.from_predictor(predictor)
    stamp = pd.Timestamp("2024-01-01")
    online.observe("i0", stamp, [1.0], known=[2.0], static=[0.0, 0])
    with pytest.raises(SchemaError, match=r"^known"):
        online.observe("i0", stamp + pd.Timedelta(hours=1), [1.0])
    with pytest.raises(SchemaError, match=r"^static"):
        online.observe("i1", stamp, [1.0], known=[2.0])
    with pytest.raises(SchemaError, match=r"^future"):
        online.forecast("i0")
    assert online.forecast("i0", future=np.zeros((12, 1))).quantiles.shape == (12, 1, 9)


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_multivariate_targets_and_online_from_the_predictor(mode):
    data = waves(2, channels=3)
    predictor = train(data, target_channels=3, channels=mode, channel_names=["x", "y", "z"])
    forecast = next(iter(predictor.predict(data)))
    assert forecast.forecast_array.shape == (9, 12, 3)
    online = OnlinePredictor.from_predictor(predictor)
    for t in range(400):
        online.observe("item0", pd.Timestamp("2024-01-01") + pd.Timedelta(hours=t), data[0]["target"][:, t])
    streamed = online.forecast("item0").to_gluonts()
    np.testing.assert_allclose(streamed.forecast_array, forecast.forecast_array, rtol=1e-3, atol=1e-3)
    assert streamed.start_date == forecast.start_date
    assert streamed.item_id == "item0"


def test_one_univariate_model_streams_any_number_of_channels(predictor):
    online = OnlinePredictor.from_predictor(predictor, channels=["a", "b", "c", "d"])
    for t in range(40):
        online.observe("s", pd.Timestamp("2024-01-01") + pd.Timedelta(hours=t), [t, 2 * t, None, 1.0])
    assert online.forecast("s").quantiles.shape == (12, 4, 9)


def test_gluonts_containers_are_read(predictor):
    data = ListDataset(waves(), freq="h")
    assert len(list(predictor.predict(data))) == 3


def test_empty_missing_and_short_series_do_not_break_anything(predictor):
    start = pd.Period("2024-01-01", freq="h")
    odd = [
        {"start": start, "target": np.full(50, np.nan), "item_id": "nothing"},
        {"start": start, "target": np.array([5.0]), "item_id": "one"},
        {"start": start, "target": np.full(500, 7.0), "item_id": "constant"},
    ]
    for forecast in predictor.predict(odd):
        assert np.isfinite(forecast.forecast_array).all()
    with pytest.raises(SchemaError, match="empty"):
        train([])
    with pytest.raises(SchemaError, match="observed patch"):
        train([odd[0]])
    with pytest.raises(SchemaError, match="infinite"):
        list(predictor.predict([{**odd[2], "target": np.array([1.0, np.inf])}]))
    assert next(iter(predictor.predict(waves(1, channels=2)))).forecast_array.shape[-1] == 2  # weights are shared
    bound = train(waves(2, channels=2), target_channels=2, channels="joint")
    for count in (1, 3):
        with pytest.raises(SchemaError, match=r"target.*target_channels=2"):
            list(bound.predict(waves(1, channels=count)))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"freq": "no"}, "freq"),
        ({"prediction_length": 0}, "prediction_length"),
        ({"context_length": 3}, "context_length"),
        ({"quantiles": [0.9, 0.1]}, "quantiles"),
        ({"channels": "all"}, "mode"),
        ({"lr": 0.0}, "lr"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"channel_names": ["a", "b"]}, "channel_names"),
        ({"context_length": 64, "carry_windows": 2}, "carry_windows"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_a_wrong_argument_names_itself(options, name):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        GDN2Estimator(**{"freq": "h", "prediction_length": 12, **options})


def test_carried_state_trains():
    data = waves(2, steps=2400)
    predictor = train(data, context_length=512, carry_windows=3, batch_size=2, num_batches_per_epoch=6)
    assert np.isfinite(predictor.history[-1]["val_loss"])


def test_monthly_series_train_in_batch_and_are_refused_online():
    data = waves(3, steps=200, freq="M")
    predictor = GDN2Estimator("M", 6, trainer_kwargs={"max_epochs": 1}, **{**SMALL, "patch_length": 4}).train(data)
    assert next(iter(predictor.predict(data))).start_date == data[0]["start"] + 200
    with pytest.raises(ConfigError, match=r"^freq"):
        OnlinePredictor.from_predictor(predictor)


def test_standards_survive_json_to_the_bit(predictor):
    again = type(predictor.standards).from_json(predictor.standards.to_json())
    assert again == predictor.standards
    assert json.loads(predictor.standards.to_json())["prior"]
    scale = again.prior_scale("item1", ("value",))
    assert scale.shape == (1,)
    assert again.prior_scale("unheard", ("value",)) == pytest.approx(again.default[0])


def test_double_precision_predictors_keep_their_dtype(predictor, tmp_path: Path):
    twin = GDN2Predictor(
        config_json=predictor.config.to_json(),
        standards_json=predictor.standards.to_json(),
        freq="h",
        channels=["value"],
    )
    twin.prediction_net.double().load_state_dict(predictor.forecaster.state_dict())
    twin.serialize(tmp_path)
    assert Predictor.deserialize(tmp_path).forecaster.dtype == torch.float64


def test_an_altered_or_missing_json_is_refused(predictor, tmp_path: Path):
    predictor.serialize(tmp_path)
    file = tmp_path / "predictor.json"
    text = file.read_text()
    for broken in (text.replace("0.1", "0.2", 1), text[: len(text) // 2]):
        file.write_text(broken)
        with pytest.raises(CheckpointError, match=r"predictor\.json is missing or was altered"):
            Predictor.deserialize(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        Predictor.deserialize(tmp_path)


def test_an_entry_of_another_frequency_or_without_a_target_is_refused(predictor):
    daily = [{"start": pd.Period("2024-01-01", freq="D"), "target": np.ones(50), "item_id": "d"}]
    with pytest.raises(SchemaError, match=r"^start: .*'D'"):
        list(predictor.predict(daily))
    with pytest.raises(SchemaError, match=r"^entry: .*lacks"):
        list(predictor.predict([{"start": pd.Period("2024-01-01", freq="h")}]))
