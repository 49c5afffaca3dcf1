"""One model for streams with different numbers of channels: trained, predicted, audited and streamed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tsgdn2 import GDN2Estimator
from tsgdn2.errors import SchemaError
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.traces import collect

START = pd.Period("2024-01-01", freq="h")
SMALL = {"width": 16, "heads": 2, "key_dim": 4, "value_dim": 4, "mlp": 16, "layers": 2, "patch_length": 4}


def entry(name, channels, steps=300, seed=0):
    rng = np.random.default_rng([seed, channels])
    phase = np.arange(steps) * 2 * np.pi / 24 + rng.uniform(0, 6, (channels, 1))
    values = np.sin(phase) + 0.2 * rng.normal(size=(channels, steps))
    values[rng.random(values.shape) < 0.1] = np.nan
    return {"item_id": name, "start": START, "target": values}


@pytest.fixture(scope="module")
def predictor() -> GDN2Predictor:
    torch.manual_seed(0)
    estimator = GDN2Estimator(
        "h", 6, channels="attention", target_channels=3, context_length=64, batch_size=8, num_batches_per_epoch=20,
        hidden_shares=(0.5,), trainer_kwargs={"max_epochs": 2}, **SMALL,
    )  # fmt: skip
    found: GDN2Predictor = estimator.train([entry("a", 3), entry("b", 2), entry("c", 5)])
    return found


def test_every_series_is_forecast_with_as_many_channels_as_it_has(predictor: GDN2Predictor) -> None:
    forecasts = list(predictor.predict([entry("a", 3), entry("x", 1), entry("y", 7)]))
    assert [f.forecast_array.shape for f in forecasts] == [(9, 6, 3), (9, 6, 1), (9, 6, 7)]
    assert all(np.isfinite(f.forecast_array).all() for f in forecasts)
    flat = {**entry("x", 1), "target": entry("x", 1)["target"][0]}
    (alone,) = predictor.predict([flat])
    np.testing.assert_allclose(alone.forecast_array, forecasts[1].forecast_array[..., 0], atol=1e-5)


def test_attention_was_trained_and_survives_a_round_trip(predictor: GDN2Predictor, tmp_path: Path) -> None:
    assert all(bool(block.across.out.weight.any()) for block in predictor.forecaster.blocks)
    predictor.serialize(tmp_path)
    assert GDN2Predictor.deserialize(tmp_path) == predictor


def test_a_stream_of_other_channels_equals_the_batch(predictor: GDN2Predictor) -> None:
    one = entry("s", 4, steps=120, seed=9)
    online = OnlinePredictor.from_predictor(predictor, channels=["p", "q", "r", "s"])
    for t, row in enumerate(one["target"].T):
        online.observe("s", START.to_timestamp() + pd.Timedelta(hours=t), row)
    (batch,) = predictor.predict([one])
    np.testing.assert_allclose(online.forecast("s").to_gluonts().forecast_array, batch.forecast_array, atol=1e-4)


def test_the_audit_of_several_channels_rebuilds_the_state(predictor: GDN2Predictor) -> None:
    (trace,) = collect(predictor, [entry("a", 3), entry("b", 2)], layers=(1,), window=1000)
    assert trace.lanes == ("a/c0", "a/c1", "a/c2", "b/c0", "b/c1")
    one = entry("a", 3)
    online = OnlinePredictor.from_predictor(predictor)
    for t, row in enumerate(one["target"].T):
        online.observe("a", START.to_timestamp() + pd.Timedelta(hours=t), row)
    online.observe("a", START.to_timestamp() + pd.Timedelta(hours=300), one["target"][:, 0])  # closes the last patch
    lanes = torch.arange(3)
    torch.testing.assert_close(trace.final[:3], online._slab.load(lanes.numpy()).layers[1]["memory"], rtol=0, atol=1e-4)


def test_a_model_bound_to_its_channels_says_so() -> None:
    estimator = GDN2Estimator("h", 6, channels="joint", target_channels=3, trainer_kwargs={"max_epochs": 1}, **SMALL)
    with pytest.raises(SchemaError, match="target_channels=3"):
        estimator.train([entry("a", 2)])
