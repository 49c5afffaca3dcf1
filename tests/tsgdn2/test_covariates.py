"""Covariates of every kind, in every channel mode: the stream equals the batch, and what is wrong is named."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.columns import merged
from tsgdn2.errors import SchemaError
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
START = pd.Timestamp("2024-03-01 05:00")
HORIZON, CHANNELS = 5, 2
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
STANDARDS = Standards(
    default=(2.0,) * CHANNELS, known_mean=(0.5,), known_scale=(2.0,), past_mean=(1.0, -1.0), past_scale=(3.0, 0.5),
    static_mean=(0.0,), static_scale=(2.0,),
)  # fmt: skip


def both(mode, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    config = ForecasterConfig(
        prediction_length=HORIZON, period_ns=HOUR, channels=CHANNELS, half_life=40.0, patch_length=4, width=16,
        layers=2, heads=2, key_dim=4, value_dim=8, mlp=16, mode=mode, known=1, known_cardinalities=(3, 2), past=2,
        static_real=1, static_cardinalities=(4,), lag_skip=6,
    )  # fmt: skip
    forecaster = Forecaster(config).to(dtype)
    with torch.no_grad():
        for name, parameter in forecaster.named_parameters():
            if name.startswith("head") or "across.out" in name:
                parameter.normal_(std=0.3)
    names = [f"c{i}" for i in range(CHANNELS)]
    predictor = GDN2Predictor(
        config_json=config.to_json(), standards_json=STANDARDS.to_json(), freq="h", channels=names
    )
    predictor.prediction_net.to(dtype).load_state_dict(forecaster.state_dict())
    return OnlinePredictor(forecaster, STANDARDS, channels=names, freq="h"), predictor


def history(rng, steps):
    known = np.column_stack([rng.normal(size=steps), rng.integers(0, 3, steps), rng.integers(0, 2, steps)])
    past = np.where(rng.random((steps, 2)) < 0.3, np.nan, rng.normal(size=(steps, 2)))
    values = np.where(rng.random((steps, CHANNELS)) < 0.3, np.nan, np.cumsum(rng.normal(size=(steps, CHANNELS)), 0))
    return values, known, past


def entry(values, known, past, t):
    """What GluonTS would hand over after step t."""
    return {
        "start": pd.Period(START, freq="h"), "target": values[: t + 1].T, "item_id": "s",
        "feat_dynamic_real": known[: t + 1 + HORIZON, :1].T, "feat_dynamic_cat": known[: t + 1 + HORIZON, 1:].T,
        "past_feat_dynamic_real": past[: t + 1].T, "feat_static_real": [0.7], "feat_static_cat": [2],
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", ["independent", "joint", "attention"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_stream_equals_the_batch_with_covariates_of_every_kind(mode, dtype, seed):
    rng = np.random.default_rng(seed)
    online, predictor = both(mode, dtype, seed % 100)
    values, known, past = history(rng, 50 + HORIZON)
    entries, streamed = [], []
    for t in range(50):
        # a step may come in two rows: the values first and what is known of the past later, or in parts
        now, first = START + pd.Timedelta(hours=t), rng.random(2) < 0.5
        told = {"known": known[t], "static": [0.7, 2]}
        online.observe("s", now, values[t], past=np.where(first, past[t], np.nan), **told)
        online.observe("s", now, None, past=np.where(first, np.nan, past[t]), **told)
        streamed.append(online.forecast("s", future=known[t + 1 : t + 1 + HORIZON]).quantiles)
        entries.append(entry(values, known, past, t))
    batch = np.stack([np.moveaxis(f.forecast_array, 0, -1) for f in predictor.predict(entries)])
    deviation = 2.0 + np.nanstd(values)
    assert np.abs(np.stack(streamed) - batch).max() <= TOLERANCE[dtype] * deviation


def test_each_kind_of_covariate_matters():
    rng = np.random.default_rng(1)
    _, predictor = both("attention")
    values, known, past = history(rng, 60)
    base = entry(values, known, past, 49)
    (before,) = predictor.predict([base])
    for name, change in {
        "feat_dynamic_real": 1.0, "feat_dynamic_cat": None, "past_feat_dynamic_real": 1.0, "feat_static_real": 1.0,
        "feat_static_cat": None,
    }.items():  # fmt: skip
        old = np.asarray(base[name], np.float64)
        new = old + change if change else (old + 1) % 2
        (after,) = predictor.predict([{**base, name: new}])
        assert np.abs(after.forecast_array - before.forecast_array).max() > 1e-6, name


BAD = {
    "a category of training that is not there": ("known", {"known": [0.1, 3, 0]}),
    "a category between two": ("known", {"known": [0.1, 0.5, 0]}),
    "known covariates that are missing": ("known", {"known": [np.nan, 0, 0]}),
    "no known covariates": ("known", {}),
    "too many of the past": ("past", {"known": [0, 0, 0], "past": [1, 2, 3]}),
    "an infinite one of the past": ("past", {"known": [0, 0, 0], "past": [1, np.inf]}),
    "an infinite category": ("known", {"known": [0.1, np.inf, 0]}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_covariate_that_does_not_fit_is_named_and_changes_nothing(name):
    argument, given_ = BAD[name]
    online, _ = both("attention")
    online.observe("s", START, [1.0, 2.0], known=[0.1, 1, 1], static=[0.7, 2])
    before = {n: t.clone() for n, t in online._slab.tensors(np.arange(1)).items()}
    with pytest.raises(SchemaError, match=f"^{argument}:") as caught:
        online.observe("s", START + pd.Timedelta(hours=1), [1.0, 2.0], **given_)
    assert "np." not in str(caught.value)
    after = online._slab.tensors(np.arange(1))
    assert all(torch.equal(t.nan_to_num(), before[n].nan_to_num()) for n, t in after.items())


def test_what_is_given_later_is_added_and_what_is_not_given_stays():
    old = np.array([[9.0, 1.0, 2.0, 1.0, 1.0], [9.0, 1.0, 0.0, 1.0, 0.0]])
    new = np.array([[5.0, 7.0, 0.0, 1.0, 0.0], [5.0, 0.0, 8.0, 0.0, 1.0]])
    expected = [[5.0, 7.0, 2.0, 1.0, 1.0], [5.0, 1.0, 8.0, 1.0, 1.0]]
    np.testing.assert_array_equal(merged(old, new, 2), expected)


def test_a_frame_of_a_new_stream_says_where_its_static_features_go():
    online, _ = both("attention")
    frame = pl.DataFrame({"stream": ["s"] * 2, "time": [START, START + pd.Timedelta(hours=1)], "c0": [1.0, 2.0]})
    known = [[0.1, 1, 1], [0.2, 2, 0]]
    with pytest.raises(SchemaError, match=r"^static: .*'s' .*send its first row through observe\(static=\.\.\.\)"):
        online.observe_many(frame, known=known)
    assert online.streams == ()
    assert "observe(static=...)" in OnlinePredictor.observe_many.__doc__
    online.observe("s", START, [1.0, None], known=known[0], static=[0.7, 2])
    assert online.observe_many(frame[1:], known=known[1:])["status"].to_list() == ["new"]


@pytest.mark.parametrize("static", [[0.7, 2.5], [0.7, np.nan], [np.inf, 2], [0.7, 4], [0.7], [0.7, 2, 1]])
def test_static_features_that_do_not_fit_open_no_stream(static):
    online, _ = both("attention")
    with pytest.raises(SchemaError, match=r"^static:"):
        online.observe("s", START, [1.0, 2.0], known=[0.1, 1, 1], static=static)
    assert online.streams == ()
