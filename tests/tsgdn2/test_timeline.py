"""Timelines: what a window holds, against a loop over the raw history."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.errors import SchemaError
from tsgdn2.patch import NEVER_SEEN
from tsgdn2.scale import Moments, forgetting, scale_of, update
from tsgdn2.timeline import Series, Timelines


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 90), start=st.integers(-50, 10**6), patch=st.integers(1, 9),
       share=st.floats(0, 1))  # fmt: skip
def test_commit_clocks_and_windows_equal_a_loop(seed, steps, start, patch, share):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(steps, 2))
    values[rng.random(values.shape) < share] = np.nan
    other = rng.normal(size=(7, 2))
    prior = np.ones(2)
    lines = Timelines(
        [Series(values=other, start=3, prior_scale=prior), Series(values=values, start=start, prior_scale=prior)],
        window=9, horizon=4, half_life=10.0,
    )  # fmt: skip
    for shift in range(patch):
        expected = []
        for j in range((start - shift) // patch, (start + steps - shift) // patch):
            cells = range(j * patch + shift, (j + 1) * patch + shift)
            if any(start <= s < start + steps and np.isfinite(values[s - start]).any() for s in cells):
                expected.append((j + 1) * patch + shift - 1)
        assert lines.commit_clocks(1, patch, shift).tolist() == [e for e in expected if e < start + steps]
    clock = np.array([start + int(rng.integers(steps))])
    got = lines.windows(np.array([1]), clock, patch)
    moments, last = Moments.zeros((2,)), np.full(2, -1)
    for t in range(clock[0] - start + 1):
        seen = np.isfinite(values[t])
        moments = update(moments, np.where(seen, values[t], 0.0), seen, forgetting(10.0))
        last = np.where(seen, t, last)
    np.testing.assert_allclose(got.mean[0], moments.mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.scale[0], scale_of(moments, prior), rtol=1e-9)
    now = clock[0] - start
    np.testing.assert_array_equal(got.since[0], np.where(last < 0, NEVER_SEEN, now - last))
    for i, s in enumerate(range(now - patch + 1, now + 1)):
        inside = values[s] if 0 <= s < steps else np.full(2, np.nan)
        np.testing.assert_array_equal(got.seen[0, i], np.isfinite(inside))
        np.testing.assert_array_equal(got.values[0, i], np.where(np.isfinite(inside), inside, got.mean[0]))
    target, weight = lines.targets(np.array([1]), clock)
    for h in range(4):
        later = values[now + 1 + h] if now + 1 + h < steps else np.full(2, np.nan)
        np.testing.assert_array_equal(weight[0, h], np.isfinite(later))
        ok = weight[0, h]
        np.testing.assert_allclose(target[0, h][ok], ((later - got.mean[0]) / got.scale[0])[ok], rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "prior", "word"),
    [
        (np.zeros((0, 1)), [1.0], "values"),
        (np.array([[np.inf]]), [1.0], "infinite"),
        (np.zeros((3, 1)), [0.0], "prior"),
    ],
)
def test_a_history_that_can_not_be_scaled_is_refused(values, prior, word):
    with pytest.raises(SchemaError, match=word):
        Series(values=values, start=0, prior_scale=np.array(prior))
