"""A forecast's distribution function and what it hands to GluonTS."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgdn2.forecast import Forecast, probability, surprise_bits, to_polars

LEVELS = np.array([0.1, 0.3, 0.5, 0.7, 0.9])


@given(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=5), st.lists(st.floats(-1e7, 1e7), min_size=2, max_size=9))
def test_the_distribution_function_rises_from_0_to_1(knots, points):
    quantiles = np.sort(np.array(knots))
    y = np.sort(np.array(points))
    u = probability(y, np.repeat(quantiles[None], len(y), 0), LEVELS)
    assert ((u >= 0) & (u <= 1)).all()
    assert (np.diff(u) >= -1e-12).all()


def test_the_quantiles_themselves_have_their_levels():
    quantiles = np.array([-3.0, -1.0, 0.0, 2.0, 7.0])
    u = probability(quantiles, np.repeat(quantiles[None], 5, 0), LEVELS)
    np.testing.assert_allclose(u, LEVELS, atol=1e-12)
    tail = probability(np.array([-1e9, 1e9, np.nan]), np.repeat(quantiles[None], 3, 0), LEVELS)
    assert tail[0] == pytest.approx(0.0)
    assert tail[1] == pytest.approx(1.0)
    assert np.isnan(tail[2])


def test_surprise_counts_bits():
    np.testing.assert_allclose(surprise_bits(np.array([0.5, 0.25, 0.75, 0.0005])), [0.0, 1.0, 1.0, np.log2(1000)])
    assert np.isfinite(surprise_bits(np.array([0.0, 1.0]))).all()


def test_a_forecast_becomes_a_frame_and_a_gluonts_forecast():
    quantiles = np.arange(2 * 3 * 5, dtype=float).reshape(2, 3, 5)
    times = np.array(["2024-01-01T00", "2024-01-01T01"], "datetime64[ns]")
    one = Forecast("s", quantiles, tuple(LEVELS), ("a", "b", "c"), times, "h")
    frame = to_polars([one])
    assert frame.shape == (6, 8)
    assert frame["0.5"].to_list() == quantiles[..., 2].reshape(-1).tolist()
    made = one.to_gluonts()
    np.testing.assert_array_equal(made.quantile(0.5), quantiles[..., 2])
    assert made.start_date.start_time == times[0]
    np.testing.assert_array_equal(one.median, quantiles[..., 2])
    assert to_polars([]).is_empty()
