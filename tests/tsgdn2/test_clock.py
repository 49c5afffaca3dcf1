"""Moments become nanoseconds exactly, whatever type they come in."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgdn2.clock import DAY_NS, calendar, calendar_cycles, to_ns
from tsgdn2.errors import StreamError


@given(st.integers(-(10**18), 10**18))
def test_numpy_and_pandas_stamps_keep_every_nanosecond(ns):
    assert to_ns(ns) == ns
    assert to_ns(np.int64(ns)) == ns
    assert to_ns(np.datetime64(ns, "ns")) == ns
    assert to_ns(pd.Timestamp(ns)) == ns
    assert to_ns(pd.Timestamp(ns, tz="UTC").tz_convert("Asia/Tokyo")) == ns


def test_a_naive_time_is_utc_and_an_aware_one_is_converted():
    assert to_ns(datetime(1970, 1, 2)) == DAY_NS
    assert to_ns(datetime(1970, 1, 2, tzinfo=UTC)) == DAY_NS
    assert to_ns(datetime(1970, 1, 2, 5, tzinfo=timezone(timedelta(hours=5)))) == DAY_NS
    assert to_ns(pd.Timestamp("1970-01-02").as_unit("s")) == DAY_NS
    assert to_ns(np.datetime64("1970-01-02", "D")) == DAY_NS


@pytest.mark.parametrize(
    "bad",
    [
        None,
        True,
        1.5,
        float("nan"),
        "2024-01-01",
        pd.NaT,
        np.datetime64("NaT"),
        2**64,
        datetime(9999, 12, 31),
        datetime(1600, 1, 1),
        np.datetime64("9999-12-31"),
        pd.Timestamp("9999-12-31").as_unit("s"),
    ],
)
def test_what_is_no_moment_is_refused(bad):
    with pytest.raises(StreamError, match=r"^time:"):
        to_ns(bad)


def test_the_calendar_knows_the_phase_of_the_day_and_the_week():
    hours = np.arange(24 * 14)
    got = calendar(hours, DAY_NS // 24, ("day", "week"))
    assert got.shape == (len(hours), 4)
    np.testing.assert_allclose(got[:24], np.concatenate([got[24 * 7 : 24 * 8]]), atol=1e-12)
    np.testing.assert_allclose(got[:, 0], np.sin(2 * np.pi * hours / 24), atol=1e-9)
    assert calendar_cycles(DAY_NS // 24) == ("day", "week")
    assert calendar_cycles(DAY_NS) == ("week",)
    assert calendar_cycles(30 * DAY_NS) == ()
    assert calendar_cycles(0) == ()
