"""Channels that report when they like, appear and vanish: the stream equals the batch in every channel mode."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.forecaster import Forecaster, ForecasterConfig, with_channels
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
START = pd.Timestamp("2024-03-01 05:00")
HORIZON = 5
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
MODES = ("independent", "joint", "attention")


def model(channels, *, mode, dtype=torch.float64, seed=0, **changes):
    """A small forecaster in which attention, decay and head all matter."""
    torch.manual_seed(seed)
    config = {
        "prediction_length": HORIZON, "period_ns": HOUR, "channels": channels, "half_life": 40.0, "patch_length": 4,
        "width": 16, "layers": 2, "heads": 2, "key_dim": 4, "value_dim": 8, "mlp": 16, "mode": mode, **changes,
    }  # fmt: skip
    forecaster = Forecaster(ForecasterConfig(**config)).to(dtype)
    with torch.no_grad():
        for name, parameter in forecaster.named_parameters():
            if name.startswith("head") or "across.out" in name:
                parameter.normal_(std=0.3)
            if name.endswith("A_log"):
                parameter.uniform_(-4.0, 0.5)
    return forecaster


def names(channels):
    return [f"c{i}" for i in range(channels)]


def both(forecaster, **options):
    config = forecaster.config
    scales = Standards(default=(2.0,) * config.channels)
    predictor = GDN2Predictor(
        config_json=config.to_json(), standards_json=scales.to_json(), freq="h", channels=names(config.channels)
    )
    predictor.prediction_net.to(forecaster.dtype).load_state_dict(forecaster.state_dict())
    return OnlinePredictor(forecaster, scales, channels=names(config.channels), freq="h", **options), predictor


def asynchronous(rng, steps, channels):
    """Each channel has its own rate; some begin late, some fall silent for good, and for a while nothing comes."""
    values = np.cumsum(rng.normal(size=(steps, channels)), 0) + 10.0 ** rng.integers(-2, 5, channels)
    every = rng.choice([1, 1, 2, 3, 7], channels)
    seen = (np.arange(steps)[:, None] + rng.integers(0, 7, channels)) % every == 0
    seen &= rng.random(seen.shape) < rng.choice([0.5, 0.9, 1.0])
    for channel in range(channels):
        if rng.random() < 0.4:
            seen[: int(rng.integers(steps)), channel] = False
        if rng.random() < 0.4:
            seen[int(rng.integers(steps)) :, channel] = False
    begin = int(rng.integers(steps))
    seen[begin : begin + int(rng.integers(30))] = False
    seen[0, int(rng.integers(channels))] = True
    return np.where(seen, values, np.nan)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    channels=st.sampled_from([1, 2, 3, 17]),
    whole=st.booleans(),
    bridge=st.sampled_from([0.0, 5.0]),
)
def test_the_stream_equals_the_batch_after_every_partial_observation(mode, dtype, seed, channels, whole, bridge):
    rng = np.random.default_rng(seed)
    forecaster = model(channels, mode=mode, dtype=dtype, seed=seed % 100, bridge=bridge, lag_skip=9 if seed % 2 else 0)
    online, predictor = both(forecaster)
    values = asynchronous(rng, 60, channels)
    entries, streamed = [], []
    for t, row in enumerate(values):
        seen = np.flatnonzero(np.isfinite(row))
        if not len(seen):
            continue
        moment = START + pd.Timedelta(hours=t)
        parts = [seen] if whole else [seen[i : i + 1] for i in rng.permutation(len(seen))]
        given_ = np.full(channels, np.nan)
        for number, part in enumerate(parts):  # one observation may hold any subset of the channels
            online.observe("s", moment, {f"c{c}": row[c] for c in part})
            given_[part] = row[part]
            if number == len(parts) - 1 or rng.random() < 2 / len(seen):
                streamed.append(online.forecast("s").quantiles)
                target = np.vstack([values[:t], given_]).T
                entries.append({"start": pd.Period(START, freq="h"), "target": target, "item_id": "s"})
    batch = [f.forecast_array for f in predictor.predict(entries)]
    batch = np.stack([np.moveaxis(q if q.ndim == 3 else q[..., None], 0, -1) for q in batch])
    with np.errstate(all="ignore"):
        deviation = np.nan_to_num(np.nanmax(np.abs(np.nan_to_num(values)), 0), nan=0.0)[None, None, :, None] + 2.0
    assert (np.abs(np.stack(streamed) - batch) <= TOLERANCE[dtype] * deviation).all()


def test_attention_treats_channels_alike_whatever_their_order():
    forecaster = model(4, mode="attention")
    values = asynchronous(np.random.default_rng(5), 70, 4)
    order = [2, 0, 3, 1]
    straight, _ = both(forecaster)
    mixed, _ = both(forecaster)
    for t, row in enumerate(values):
        straight.observe("s", START + pd.Timedelta(hours=t), row)
        mixed.observe("s", START + pd.Timedelta(hours=t), row[order])
    np.testing.assert_allclose(
        mixed.forecast("s").quantiles, straight.forecast("s").quantiles[:, order], rtol=1e-9, atol=1e-9
    )


def test_a_channel_that_was_never_heard_of_changes_no_other_channel():
    values = asynchronous(np.random.default_rng(6), 70, 3)
    small, large = model(3, mode="attention"), None
    large = with_channels(small, 5)
    few, _ = both(small)
    many, _ = both(large)
    for t, row in enumerate(values):
        few.observe("s", START + pd.Timedelta(hours=t), row)
        many.observe("s", START + pd.Timedelta(hours=t), {f"c{i}": row[i] for i in range(3)})
    np.testing.assert_allclose(many.forecast("s").quantiles[:, :3], few.forecast("s").quantiles, rtol=1e-9, atol=1e-9)


def test_channels_do_look_at_each_other():
    forecaster = model(2, mode="attention")
    values = np.random.default_rng(7).normal(size=(40, 2))
    one, _ = both(forecaster)
    other, _ = both(forecaster)
    for t, row in enumerate(values):
        one.observe("s", START + pd.Timedelta(hours=t), row)
        other.observe("s", START + pd.Timedelta(hours=t), [row[0], row[1] if t < 30 else np.nan])
    assert np.abs(one.forecast("s").quantiles[:, 0] - other.forecast("s").quantiles[:, 0]).max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_computes_the_same_bits_whoever_else_is_in_the_call(mode):
    rng = np.random.default_rng(8)
    forecaster = model(3, mode=mode, dtype=torch.float32)
    together, _ = both(forecaster)
    alone, _ = both(forecaster)
    values = {f"s{i}": asynchronous(rng, 60, 3) for i in range(12)}
    for t in range(60):
        for stream, rows in values.items():
            together.observe(stream, START + pd.Timedelta(hours=t), rows[t])
        alone.observe("s7", START + pd.Timedelta(hours=t), values["s7"][t])
    found = together.forecast_many(list(values))
    mine = found.filter(found["stream"] == "s7").select([str(q) for q in forecaster.config.quantiles]).to_numpy()
    np.testing.assert_array_equal(mine.reshape(HORIZON, 3, 9), alone.forecast("s7").quantiles)
