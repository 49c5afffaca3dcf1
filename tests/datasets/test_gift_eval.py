"""GIFT-Eval's cuts of ETT and Jena: sums, means, borders and markers in small, and the real shapes where they are."""

from __future__ import annotations

import datetime
import os

import numpy as np
import polars as pl
import pytest

from tsgdn2.datasets.errors import DataError
from tsgdn2.datasets.frame import STREAM, TIME, normalise
from tsgdn2.datasets.gift_eval import (
    FREQUENCIES,
    ett_frame,
    frame_without_markers,
    gift_eval_entries,
    gift_eval_frame,
    jena_frame,
    without_markers,
)

DATA = os.environ.get("TSGDN2_DATA")
ROWS = {
    "ett1/15T": 69_680, "ett1/H": 17_420, "ett1/D": 725, "ett1/W": 103,
    "jena_weather/10T": 52_704, "jena_weather/H": 8_784, "jena_weather/D": 366,
}  # fmt: skip


def ticks(start: datetime.datetime, minutes: int, count: int, **columns: np.ndarray) -> pl.DataFrame:
    """A frame of one stream with a row every so many minutes."""
    when = [start + datetime.timedelta(minutes=minutes * row) for row in range(count)]
    return normalise(pl.DataFrame({TIME: when, **columns}), name="raw")


def test_quarter_hours_are_summed_and_the_last_day_and_week_left_out() -> None:
    count = 96 * 24 + 5  # Friday 1 July 2016 and 24 whole days; the fourth week is not whole, nor is the last day
    raw = ticks(datetime.datetime(2016, 7, 1), 15, count, a=np.arange(count, dtype=float))
    assert ett_frame(raw, "15T").equals(raw)
    hours, days, weeks = (ett_frame(raw, freq) for freq in ("H", "D", "W"))
    assert hours["a"][:2].to_list() == [0 + 1 + 2 + 3, 4 + 5 + 6 + 7]
    assert hours.height == 24 * 24 + 2
    assert days["a"].to_list() == np.arange(96.0 * 24).reshape(24, 96).sum(1).tolist()
    assert weeks["a"].to_list() == np.arange(96.0 * 21).reshape(3, 96 * 7).sum(1).tolist()
    assert [when.strftime("%a") for when in weeks[TIME]] == ["Fri"] * 3
    assert hours.columns == raw.columns


def test_ten_minutes_are_averaged_over_what_is_there_without_the_last_bin() -> None:
    count = 6 * 49 + 1  # 00:10 to 01:10 two days later
    values = np.arange(count, dtype=float)
    values[7] = -9999.0
    raw = ticks(datetime.datetime(2020, 1, 1, 0, 10), 10, count, CO2=values)
    gap = raw.filter(~pl.int_range(pl.len()).is_between(20, 24))
    grid = jena_frame(gap, "10T")
    assert grid.height == count
    assert grid["CO2"].null_count() == 5
    assert grid[STREAM].unique().to_list() == ["jena_weather"]
    hours = jena_frame(gap, "H")
    assert hours["CO2"][0] == np.mean([0, 1, 2, 3, 4])  # the first hour has five rows: 00:00 is not there
    assert hours["CO2"][1] == np.mean([5, 6, -9999, 8, 9, 10])  # a marker is kept, as published
    assert hours[TIME][-1].hour == 0
    assert jena_frame(gap, "D").height == 2


def test_markers_are_missing_to_a_model_and_nothing_else_is() -> None:
    target = np.array([400.0, -9999.0, 410.0, -1300.0, np.nan])
    made = without_markers([
        {"item_id": "jena_weather/CO2", "target": target}, {"item_id": "jena_weather/T", "target": target},
        {"item_id": "ett1/CO2", "target": target},
    ])  # fmt: skip
    np.testing.assert_array_equal(made[0]["target"], [400.0, np.nan, 410.0, np.nan, np.nan])
    np.testing.assert_array_equal(made[1]["target"], target)
    np.testing.assert_array_equal(made[2]["target"], target)
    assert target[1] == -9999.0
    frame = pl.DataFrame({"CO2": [400.0, -9999.0, None], "T": [-9999.0, 1.0, 2.0]})
    assert frame_without_markers(frame)["CO2"].to_list() == [400.0, None, None]
    assert frame_without_markers(frame)["T"].to_list() == [-9999.0, 1.0, 2.0]


def test_a_set_that_the_benchmark_has_not_is_refused_with_those_it_has() -> None:
    with pytest.raises(DataError, match=r"ett1/15T.*got jena_weather/W"):
        gift_eval_frame("jena_weather", "W")


if DATA:

    @pytest.mark.parametrize("name", ROWS)
    def test_the_real_sets_have_the_published_shapes(name: str) -> None:
        dataset, _, freq = name.partition("/")
        made = gift_eval_entries(dataset, freq)
        assert freq in FREQUENCIES[dataset]
        assert {len(entry["target"]) for entry in made} == {ROWS[name]}
        assert len(made) == (7 if dataset == "ett1" else 21)
        assert sum(int(np.isnan(entry["target"]).sum()) for entry in made) == {
            "jena_weather/10T": 189,
            "jena_weather/H": 21,
        }.get(name, 0)
        if freq == "W":
            assert str(made[0]["start"]) == "2016-07-01/2016-07-07"
