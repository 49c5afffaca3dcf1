"""Frames to GluonTS and back: exact values, gaps as NaN on the grid and as gaps again."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from gluonts.dataset.arrow import File
from gluonts.dataset.common import ListDataset
from gluonts.dataset.jsonl import JsonLinesFile
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tsgdn2.datasets.errors import DataError, FrameError
from tsgdn2.datasets.frame import STREAM, TIME, normalise
from tsgdn2.datasets.gluon import entries, from_gluonts, to_file_dataset, to_list_dataset, to_pandas_dataset

HOUR = 3600 * 10**9
BOTH = ["univariate", "multivariate"]


def framed(rows: list[tuple]) -> pl.DataFrame:
    schema = {STREAM: pl.String, TIME: pl.Int64, "x": pl.Float64, "y": pl.Float64}
    return normalise(pl.DataFrame(rows, schema=schema, orient="row"), unit="ns")


GAPPY = framed(
    [("a", HOUR, 1.0, 0.1), ("a", 2 * HOUR, None, 0.2), ("a", 5 * HOUR, 3.0, None), ("b/c", -HOUR, 1 / 3, 1e300)]
)


@pytest.mark.parametrize("targets", BOTH)
def test_gaps_are_nan_on_the_grid(targets):
    made = entries(GAPPY, "1h", targets=targets)
    x, y = [1.0, np.nan, np.nan, np.nan, 3.0], [0.1, 0.2, np.nan, np.nan, np.nan]
    if targets == "univariate":
        assert [e["item_id"] for e in made] == ["a/x", "a/y", "b/c/x", "b/c/y"]
        np.testing.assert_array_equal(made[0]["target"], x)
        np.testing.assert_array_equal(made[1]["target"], y)
    else:
        assert [e["item_id"] for e in made] == ["a", "b/c"]
        np.testing.assert_array_equal(made[0]["target"], [x, y])
    assert made[0]["start"] == pd.Period("1970-01-01 01:00", freq="h")
    assert made[-1]["start"] == pd.Period("1969-12-31 23:00", freq="h")


SERIES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b/1", "c d"]),
        st.integers(-60, 60),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
    ).filter(lambda r: r[2] is not None or r[3] is not None),
    unique_by=lambda r: (r[0], r[1]),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(SERIES, st.sampled_from(BOTH), st.sampled_from([1, 250, 10**9, 90 * 60 * 10**9, HOUR, 24 * HOUR, 7 * 24 * HOUR]))
def test_a_frame_on_the_grid_comes_back_exactly(rows, targets, period):
    frame = framed([(stream, step * period, x, y) for stream, step, x, y in rows])
    names = ["x", "y"]
    assert_frame_equal(from_gluonts(entries(frame, period, targets=targets), period, names=names), frame)
    assert_frame_equal(from_gluonts(to_pandas_dataset(frame, period, targets=targets), period, names=names), frame)


@pytest.mark.parametrize("targets", BOTH)
@pytest.mark.parametrize(("kind", "loader"), [("jsonl", JsonLinesFile), ("arrow", File.infer)])
def test_a_file_keeps_float64_and_gluonts_reads_it_as_float32(tmp_path, kind, loader, targets):
    small = GAPPY.with_columns(pl.when(pl.col("y") < 1e30).then("y").alias("y"))
    made = entries(small, "1h", targets=targets)
    dataset = to_file_dataset(made, tmp_path / "set", "1h", kind=kind)
    (path,) = (tmp_path / "set").iterdir()
    assert_frame_equal(from_gluonts(loader(path), "1h", names=["x", "y"]), small)
    single = small.with_columns(pl.col("x", "y").cast(pl.Float32).cast(pl.Float64))
    for again in (dataset, to_list_dataset(made, "1h")):
        assert [e["start"] for e in again] == [e["start"] for e in made]
        assert [e["item_id"] for e in again] == [e["item_id"] for e in made]
        assert_frame_equal(from_gluonts(again, "1h", names=["x", "y"]), single)
    with pytest.raises(DataError, match="new or empty folder"):
        to_file_dataset(made, tmp_path / "set", "1h", kind=kind)


def test_covariates_of_the_future_outlast_the_target():
    rows = [("a", step * HOUR, float(step) if step < 4 else None, step / 10) for step in range(6)]
    made = entries(framed(rows), "1h", dynamic=["y"], future=2, static_real={"a": [1, 2.5]}, static_cat={"a": [3]})
    assert [e["item_id"] for e in made] == ["a/x"]
    np.testing.assert_array_equal(made[0]["target"], [0, 1, 2, 3])
    np.testing.assert_array_equal(made[0]["feat_dynamic_real"], [np.arange(6) / 10])
    np.testing.assert_array_equal(made[0]["feat_static_real"], [1, 2.5])
    assert made[0]["feat_static_cat"].dtype == np.int64
    assert_frame_equal(from_gluonts(made, "1h", dynamic=["y"]), framed(rows))
    listed = to_list_dataset(made, "1h")
    assert listed[0]["feat_dynamic_real"].shape == (1, 6)
    assert isinstance(made[0]["target"], np.ndarray)
    assert made[0]["target"].dtype == np.float64


def test_several_targets_share_one_covariate():
    rows = [("a", step * HOUR, float(step), step / 10) for step in range(3)]
    frame = framed(rows).with_columns(z=pl.col("x") * 2)
    made = entries(frame, "1h", dynamic=["y"])
    assert_frame_equal(from_gluonts(made, "1h", dynamic=["y"]), frame, check_column_order=False)


def test_a_gluonts_dataset_of_no_ones_making_becomes_a_frame():
    raw = [{"start": "2020-01-01 05:00", "target": [1.0, float("nan"), 3.0]}, {"start": "2020-01-02", "target": [4.0]}]
    frame = from_gluonts(ListDataset(raw, freq="h"), "1h")
    assert frame[STREAM].to_list() == ["0", "0", "1"]
    assert frame["target"].to_list() == [1.0, 3.0, 4.0]
    assert frame[TIME].dt.hour().to_list() == [5, 7, 0]
    assert from_gluonts(ListDataset(raw, freq="h"), "1h", keep_empty=True).height == 4
    wide = from_gluonts([{"start": pd.Period("2020-01-01", "D"), "target": [[1.0], [2.0]], "item_id": "w"}], "D")
    assert wide.columns == [STREAM, TIME, "0", "1"]


def test_stamps_between_steps_floor_and_a_crowded_cell_needs_a_policy():
    frame = framed([("a", HOUR + 5, 1.0, 1.0), ("a", HOUR + 9, 2.0, 1.0)])
    with pytest.raises(FrameError, match="1 values share a cell of h with another"):
        entries(frame, "1h")
    made = entries(frame, "1h", collisions="last")
    assert made[0]["target"].tolist() == [2.0]
    assert made[0]["start"].start_time.value == HOUR


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "both"}, "targets must be"),
        ({"dynamic": ["z"]}, "no channel"),
        ({"dynamic": ["x", "y"]}, "at least one target"),
        ({"future": 1}, "future must be 0, or positive together"),
        ({"dynamic": ["y"], "future": -1}, "future must be"),
        ({"dynamic": ["y"], "future": 1}, "future would drop them"),
        ({"dynamic": ["y"], "future": 5}, "leaves no target"),
        ({"static_real": {"a": [1.0]}}, "static_real must have one row .* 'b/c'"),
        ({"static_cat": {"a": [1], "b/c": [1, 2]}}, "static_cat must have one row"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(DataError, match=message):
        entries(GAPPY, "1h", **options)


def test_a_slash_in_a_channel_and_odd_datasets_are_refused(tmp_path):
    with pytest.raises(FrameError, match="holds a slash"):
        entries(GAPPY.rename({"x": "x/h"}), "1h")
    with pytest.raises(DataError, match="no entries"):
        from_gluonts([], "1h")
    with pytest.raises(DataError, match="no entries"):
        to_file_dataset([], tmp_path, "1h")
    with pytest.raises(DataError, match="kind must be"):
        to_file_dataset(entries(GAPPY, "1h"), tmp_path, "1h", kind="csv")
    with pytest.raises(DataError, match="must have start and target"):
        from_gluonts([{"target": [1.0]}], "1h")
    start = pd.Period("2020-01-01", "h")
    with pytest.raises(DataError, match="names has 1"):
        from_gluonts([{"start": start, "target": [[1.0], [2.0]]}], "1h", names=["x"])
    with pytest.raises(DataError, match=r"got shape \(1, 1, 1\)"):
        from_gluonts([{"start": start, "target": [[[1.0]]]}], "1h")
    with pytest.raises(DataError, match="rows of feat_dynamic_real"):
        from_gluonts([{"start": start, "target": [1.0]}], "1h", dynamic=["x", "y"])
    with pytest.raises(FrameError, match="two different series"):
        from_gluonts([{"start": start, "target": [v], "item_id": "a/x"} for v in (1.0, 2.0)], "1h")
