"""Frequencies become periods, and starts become absolute steps that follow each other."""

import numpy as np
import pandas as pd
import pytest

from tsgdn2.pipelines.entries import absolute_step, period_ns


@pytest.mark.parametrize(
    ("freq", "period"), [("h", 3600e9), ("15min", 900e9), ("D", 86400e9), ("W-THU", 604800e9), ("M", 0), ("Q", 0)]
)
def test_periods_of_frequencies(freq, period):
    assert period_ns(freq) == period
    start = pd.Period("2024-05-16", freq=freq)
    steps = [absolute_step(start + i, period_ns(freq)) for i in range(5)]
    assert np.diff(steps).tolist() == [1, 1, 1, 1]
