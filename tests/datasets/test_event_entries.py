"""Events as GluonTS entries: windows as target, every event beside them, and both through GluonTS's own splitting."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from gluonts.dataset.split import DateSplitter, OffsetSplitter
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tsgdn2.datasets.errors import FrameError
from tsgdn2.datasets.event_sets import flights
from tsgdn2.datasets.events import TYPE, normalise_events, windows
from tsgdn2.datasets.frame import STREAM, TIME
from tsgdn2.datasets.gluon import event_entries, from_gluonts, to_file_dataset, to_list_dataset

HOUR = 3600 * 10**9
RAW = {STREAM: pl.String, TIME: pl.Int64, TYPE: pl.String, "x": pl.Float64, "y": pl.Float64}
TARGETS = {"n": "count", "mean": "mean(x)", "ups": "sum(y)[up]"}
VALUES = st.none() | st.floats(-1e100, 1e100)
EVENTS = ("event_time", "event_type", "event_marks")


def framed(rows: list[tuple]) -> pl.DataFrame:
    return normalise_events(pl.DataFrame(rows, schema=RAW, orient="row"), unit="ns")


def again(dataset: list[dict], names: list[str]) -> pl.DataFrame:
    """The events of entries as a frame."""
    parts = []
    for entry in dataset:
        keys = {STREAM: [entry["item_id"]] * len(entry["event_time"]), TIME: entry["event_time"]}
        keys |= {TYPE: entry["event_type"].tolist()}
        columns = dict(zip(names, entry["event_marks"].T, strict=True))
        parts.append(pl.DataFrame(keys | columns, schema={STREAM: pl.String, TIME: pl.Int64, TYPE: pl.String}
                                  | dict.fromkeys(names, pl.Float64)))  # fmt: skip
    return normalise_events(pl.concat(parts), unit="ns")


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(-50, 50), st.none() | st.sampled_from(["up", ""]), VALUES, VALUES),
        min_size=1,
        max_size=25,
    ),
    st.sampled_from([1, 7, 10**9, HOUR]),
)
def test_windows_and_events_come_back_exactly(rows, every):
    events = framed([(stream, at * max(every // 7, 1), *rest) for stream, at, *rest in rows])
    made = event_entries(events, every, targets=TARGETS)
    assert_frame_equal(again(made, ["x", "y"]), events)
    wide = windows(events, every, targets=TARGETS)
    assert_frame_equal(from_gluonts(made, every, names=list(TARGETS)), wide)
    for entry in made:
        first = entry["start"].start_time.value
        assert entry["target"].shape == (3, (wide[STREAM] == entry["item_id"]).sum())
        assert entry["target"].dtype == entry["event_marks"].dtype == np.float64
        assert entry["event_time"].dtype == np.int64
        assert entry["event_type"].dtype == object
        inside = (entry["event_time"] >= first) & (entry["event_time"] < first + entry["target"].shape[1] * every)
        assert inside.all()
        assert all(array.flags.writeable and array.flags.c_contiguous for array in map(entry.get, EVENTS))


SMALL = framed([
    ("a", HOUR, "up", 1.0, None), ("a", HOUR, "up", 1.0, None), ("a", 4 * HOUR - 1, None, None, 2.5),
    ("b", 9 * HOUR, "dn", 0.1, 1e300),
])  # fmt: skip


def test_an_entry_holds_what_its_description_says():
    entry, other = event_entries(SMALL, "1h", targets=TARGETS)
    assert (entry["item_id"], entry["start"]) == ("a", pd.Period("1970-01-01 01:00", freq="h"))
    np.testing.assert_array_equal(entry["target"], [[2, 0, 1], [1, np.nan, np.nan], [0, 0, 0]])
    np.testing.assert_array_equal(entry["event_time"], [HOUR, HOUR, 4 * HOUR - 1])
    assert entry["event_type"].tolist() == ["up", "up", None]
    np.testing.assert_array_equal(entry["event_marks"], [[1, np.nan], [1, np.nan], [np.nan, 2.5]])
    assert other["target"].shape == (3, 1)
    single = event_entries(SMALL, "1h", targets={"n": "count"})
    assert [e["target"].ndim for e in single] == [2, 2]


def test_a_range_cuts_the_events_and_keeps_the_silent():
    made = event_entries(SMALL, "1h", targets={"n": "count"}, start=2 * HOUR, stop=9 * HOUR, streams=["z"], marks=["y"])
    assert [e["item_id"] for e in made] == ["a", "b", "z"]
    assert [e["target"].tolist() for e in made] == [[[0, 1, 0, 0, 0, 0, 0]], [[0] * 7], [[0] * 7]]
    assert [e["event_time"].tolist() for e in made] == [[4 * HOUR - 1], [], []]
    assert [e["event_marks"].shape for e in made] == [(1, 1), (0, 1), (0, 1)]
    assert event_entries(SMALL, "1h", targets={"n": "count"}, marks=[])[0]["event_marks"].shape == (3, 0)
    assert event_entries(SMALL, "1h", targets={"n": "count"}, marks=["y", "x"])[0]["event_marks"][2].tolist()[0] == 2.5
    assert event_entries(SMALL.clear(), "1h", targets=TARGETS) == []
    with pytest.raises(FrameError, match=r"marks names 'z', which is no mark of \['x', 'y'\]"):
        event_entries(SMALL, "1h", targets=TARGETS, marks=["z"])


@pytest.mark.parametrize(
    "splitter", [OffsetSplitter(-72), OffsetSplitter(500), DateSplitter(pd.Period("2013-06-30 23:00", "h"))]
)
def test_gluonts_cuts_the_target_and_keeps_every_event_in_every_piece(splitter):
    events = flights(time="actual")
    whole = event_entries(events, "1h", targets={"n": "count", "delay": "mean(dep_delay)"}, marks=["dep_delay"])
    training, template = splitter.split(whole)
    pieces = list(training)
    tests = list(template.generate_instances(24, windows=3, distance=24))
    assert (len(pieces), len(tests)) == (3, 9)
    for number, (past, label) in enumerate(tests):
        source, train, window = whole[number // 3], pieces[number // 3], number % 3
        length = train["target"].shape[1] + 24 * window
        assert past["target"].shape == (2, length)
        assert label["target"].shape == (2, 24)
        assert label["start"] == source["start"] + length
        for field in EVENTS:
            assert past[field] is label[field] is train[field] is source[field]
        # What a model may use of them are those before the end of the target, and they make up that target.
        border = (past["start"] + length).start_time.value
        known = past["event_time"] < border
        assert 0 < known.sum() < len(known)
        assert known.sum() == past["target"][0].sum()
        assert (past["event_time"] < border + 24 * HOUR).sum() - known.sum() == label["target"][0].sum()


def test_lists_and_arrow_files_of_gluonts_keep_the_events_too(tmp_path):
    made = event_entries(SMALL, "1h", targets=TARGETS)
    for dataset in (to_list_dataset(made, "1h"), list(to_file_dataset(made, tmp_path / "set", "1h", kind="arrow"))):
        for was, entry in zip(made, dataset, strict=True):
            np.testing.assert_array_equal(entry["event_time"], was["event_time"])
            np.testing.assert_array_equal(entry["event_marks"], was["event_marks"])
            assert entry["event_type"].tolist() == was["event_type"].tolist()
            assert entry["target"].shape == was["target"].shape
