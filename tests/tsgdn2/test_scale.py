"""The scaler: streaming equals scanning, forgetting is exact, missing values change nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.scale import Moments, forgetting, scale_of, scan, update


def streamed(x, observed, lam):
    moments, out = Moments.zeros(x.shape[1:]), []
    for t in range(len(x)):
        moments = update(moments, x[t], observed[t], lam)
        out.append(moments)
    return Moments(*[np.stack(parts) for parts in zip(*out, strict=True)])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 700),
    half_life=st.sampled_from([1.0, 3.0, 40.0, 336.0, np.inf]),
    share=st.floats(0, 1),
    level=st.sampled_from([0.0, 1e6, -3e9]),
)
def test_the_scan_equals_the_recurrence(seed, steps, half_life, share, level):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, 3)) + level
    observed = rng.random(x.shape) < share
    whole, one = scan(x, observed, forgetting(half_life)), streamed(x, observed, forgetting(half_life))
    np.testing.assert_allclose(whole.count, one.count, rtol=1e-12)
    np.testing.assert_allclose(whole.mean, one.mean, rtol=1e-12, atol=1e-12)
    rounding = 10 * np.finfo(np.float64).eps * abs(level)  # what float64 leaves of a deviation of 1 at this level
    np.testing.assert_allclose(whole.m2, one.m2, rtol=1e-6, atol=1e-9 + rounding)


def test_moments_are_the_weighted_mean_and_variance():
    rng = np.random.default_rng(1)
    x, lam = rng.normal(size=(200, 1)) * 3 + 7, forgetting(20.0)
    got = scan(x, np.ones_like(x, bool), lam)
    weights = lam ** np.arange(199, -1, -1.0)
    mean = (weights * x[:, 0]).sum() / weights.sum()
    assert got.mean[-1, 0] == pytest.approx(mean, rel=1e-12)
    assert got.m2[-1, 0] == pytest.approx((weights * (x[:, 0] - mean) ** 2).sum(), rel=1e-10)


def test_half_the_weight_is_gone_after_a_half_life():
    assert forgetting(24.0) ** 24 == pytest.approx(0.5)
    assert forgetting(np.inf) == 1.0


def test_a_constant_channel_keeps_a_positive_scale():
    x = np.full((5000, 1), 42.0)
    got = scan(x, np.ones_like(x, bool), forgetting(10.0))
    assert (scale_of(got, np.array([1e-3])) > 0).all()


def test_one_absurd_value_costs_no_digits_of_what_follows():
    rng = np.random.default_rng(0)
    for first in (1e9, 1e15, 1e20):
        x = np.concatenate([[[first]], rng.normal(size=(3000, 1))])
        seen = np.ones_like(x, bool)
        whole, one = scan(x, seen, forgetting(20.0)), streamed(x, seen, forgetting(20.0))
        np.testing.assert_allclose(whole.mean[-1], one.mean[-1], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(whole.m2[-1], one.m2[-1], rtol=1e-9)


def test_missing_values_change_nothing_even_when_they_are_nan():
    moments = update(Moments.zeros((2,)), np.array([1.0, 2.0]), np.array([True, True]), 0.9)
    after = update(moments, np.array([np.nan, np.nan]), np.array([False, False]), 0.9)
    for a, b in zip(moments, after, strict=True):
        np.testing.assert_array_equal(a, b)
