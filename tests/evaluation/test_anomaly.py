"""Tail likelihoods in O(1): of noise what they say, of outliers much, of gaps nothing new; baselines by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.anomaly import LONG, MOST, Likelihood, likelihood, moving_z, seasonal_z


@pytest.mark.parametrize("recent", [1, 8])
def test_of_independent_noise_a_tail_of_k_bits_comes_once_in_two_to_the_k(recent: int) -> None:
    bits = likelihood(np.random.default_rng(0).normal(size=40_000) * 7 - 3, recent=recent)[LONG:]
    assert np.mean(bits > 1) == pytest.approx(0.5, abs=0.02)
    assert np.mean(bits > 4) == pytest.approx(2**-4, abs=0.01)
    assert (bits >= 0).all()


def test_an_outlier_is_odd_and_a_larger_one_odder_without_end() -> None:
    x = np.random.default_rng(1).normal(size=500)
    found = []
    for size in (5.0, 50.0, 5e5):
        odd = x.copy()
        odd[400] = size
        found.append(likelihood(odd)[400])
    assert found[0] > 10
    assert found[0] < found[1] < found[2]
    assert np.isfinite(found).all()


@given(seed=st.integers(0, 10**6), count=st.integers(1, 80))
def test_a_missing_number_repeats_the_last_score_and_changes_nothing(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    gone = rng.random(count) < 0.4
    holes = np.where(gone, np.nan, x)
    for score in (likelihood, moving_z, lambda own: seasonal_z(own, 1)):
        whole = score(holes)
        assert np.isfinite(whole).all()
        rows = np.flatnonzero(gone)
        rows = rows[rows > 0]
        if score is not likelihood:
            continue
        np.testing.assert_array_equal(whole[rows], whole[rows - 1])
        np.testing.assert_array_equal(whole[~gone], score(x[~gone]))


def test_the_moments_of_the_first_numbers_are_the_plain_ones() -> None:
    x = np.random.default_rng(2).normal(size=50) + 4
    state = Likelihood()
    for value in x:
        state.z(float(value))
    assert state.mean == pytest.approx(x.mean())
    assert state.variance == pytest.approx(x.var())
    expected = [abs(x[i] - x[:i].mean()) / x[:i].std() for i in range(2, 50)]
    np.testing.assert_allclose(moving_z(x)[2:], expected)
    residual = x[24:] - x[:-24]
    expected = [abs(residual[i]) / np.sqrt((residual[:i] ** 2).mean()) for i in range(2, 26)]
    np.testing.assert_allclose(seasonal_z(x, 24)[26:], expected)
    assert not seasonal_z(x, 24)[:25].any()


def test_what_leaves_a_plateau_is_odd_at_most_and_the_plateau_is_not() -> None:
    x = np.full(60, 3.0)
    assert not moving_z(x).any()
    x[50] = 3.0 + 1e-6
    assert moving_z(x)[50] == MOST
    assert np.isfinite(likelihood(x)).all()


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="recent, long: must be 1 <= recent < long"):
        Likelihood(recent=10, long=10)
    with pytest.raises(ConfigError, match="season: must be at least 1"):
        seasonal_z(np.zeros(3), 0)
