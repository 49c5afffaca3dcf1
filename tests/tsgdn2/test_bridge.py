"""What a missing cell is taken for: the mean of a first-order process between its neighbours, and nothing later."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.bridge import bridged


def conditional_mean(z, seen, span):
    """The same from the covariance rho^|i-j| of the process, cell by cell, in its nearest neighbours."""
    out = z.copy()
    places = np.flatnonzero(seen)
    for i in np.flatnonzero(~seen):
        near = [
            p for p in (places[places < i].max(initial=-1), places[places > i].min(initial=len(z))) if 0 <= p < len(z)
        ]
        if not near:
            out[i] = 0.0
            continue
        cov = np.exp(-np.abs(np.subtract.outer(near, near)) / span)
        out[i] = np.exp(-np.abs(np.array(near) - i) / span) @ np.linalg.solve(cov, z[near])
    return out


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 40), span=st.floats(0.5, 30.0))
def test_it_is_the_conditional_mean_of_a_first_order_process(seed, steps, span):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(steps, 3))
    seen = rng.random(z.shape) < rng.choice([0.0, 0.2, 0.7, 1.0])
    mean, scale = rng.normal(size=3), rng.uniform(0.5, 3.0, 3)
    found = bridged(np.where(seen, mean + scale * z, 0.0), seen, mean, scale, span)
    for channel in range(3):
        expected = conditional_mean(np.where(seen, z, 0.0)[:, channel], seen[:, channel], span)
        np.testing.assert_allclose((found[:, channel] - mean[channel]) / scale[channel], expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), windows=st.integers(1, 5))
def test_windows_are_filled_one_by_one_and_what_was_seen_stays(seed, windows):
    rng = np.random.default_rng(seed)
    values, seen = rng.normal(size=(windows, 9, 2)), rng.random((windows, 9, 2)) < 0.5
    mean, scale = rng.normal(size=(windows, 2)), rng.uniform(0.5, 2.0, (windows, 2))
    together = bridged(values, seen, mean, scale, 4.0)
    assert np.array_equal(together[seen], values[seen])
    for n in range(windows):
        one = bridged(values[n : n + 1], seen[n : n + 1], mean[n : n + 1], scale[n : n + 1], 4.0)
        np.testing.assert_array_equal(one[0], together[n])


def test_without_a_span_a_missing_cell_is_the_mean():
    values, seen = np.array([[1.0], [0.0], [3.0]]), np.array([[True], [False], [True]])
    found = bridged(values, seen, np.array([7.0]), np.array([2.0]), 0.0)
    np.testing.assert_array_equal(found[:, 0], [1.0, 7.0, 3.0])
