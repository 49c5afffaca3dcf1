"""Files of every kind give the same frame; a damaged file gives a DataError that names it."""

import gzip

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tsgdn2.datasets.errors import DataError, FrameError
from tsgdn2.datasets.events import TYPE, normalise_events
from tsgdn2.datasets.frame import STREAM, TIME, normalise
from tsgdn2.datasets.readers import EventLayout, Layout, csv_table, read, read_arrow, read_csv, read_parquet

TABLE = pl.DataFrame(
    {
        STREAM: ["a", "a", "b"],
        TIME: ["2020-01-01T00:00:00.000000001", "2020-01-01T01:00:00", "2020-01-01T00:30:00"],
        "x": [1.5, -9999.0, 0.1],
        "y": [1, 2, None],
    }
)
LAYOUT = Layout(missing=(-9999.0,))
FRAME = normalise(TABLE, missing=(-9999.0,))


def write(path, kind):
    if kind == "csv":
        TABLE.write_csv(path)
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(TABLE.write_csv().encode()))
    elif kind == "parquet":
        TABLE.write_parquet(path)
    elif kind == "stream.arrow":
        TABLE.write_ipc_stream(path)
    else:
        TABLE.write_ipc(path)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "arrow", "feather", "stream.arrow"])
def test_every_kind_of_file_gives_the_same_frame(tmp_path, kind):
    path = tmp_path / f"table.{kind}"
    write(path, kind)
    assert_frame_equal(read(path, LAYOUT), FRAME)


def test_a_csv_of_another_culture_is_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("Tag;Uhr;Wärme;Weg\n3.1.2020;05.00;1,5;x\n3.1.2020;06.00;-200;y\n".encode("latin-1"))
    layout = Layout(
        time=("Tag", "Uhr"),
        time_format="%d.%m.%Y %H.%M",
        name="haus",
        rename=(("Wärme", "warmth"),),
        channels=("warmth",),
        missing=(-200,),
    )
    frame = read_csv(path, layout, separator=";", decimal_comma=True, encoding="latin-1")
    assert frame["warmth"].to_list() == [1.5, None]
    assert frame[TIME].dt.hour().to_list() == [5, 6]
    assert frame[STREAM].unique().to_list() == ["haus"]


def test_words_for_missing_values_and_late_fractions_do_not_spoil_a_column(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("time,x\n" + "".join(f"{i},{i}\n" for i in range(500)) + "500,NA\n501,0.5\n")
    frame = read_csv(path, Layout(name="a", unit="s", missing=("NA",)))
    assert frame["x"].to_list()[-3:] == [499.0, None, 0.5]
    with pytest.raises(FrameError, match=r"t\.csv: channel 'x' must hold numbers"):
        read_csv(path, Layout(name="a", unit="s"))


def test_a_column_without_a_single_value_is_a_channel_that_is_missing_throughout(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("time,x,y\n1,,1\n2,,\n")
    frame = read_csv(path, Layout(name="a", unit="s"))
    assert frame.rows() == [("a", frame[TIME][0], None, 1.0), ("a", frame[TIME][1], None, None)]


def test_repeated_stamps_follow_the_layout(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("time,x\n1,1\n1,2\n")
    with pytest.raises(FrameError, match="more than once"):
        read_csv(path, Layout(name="a", unit="s"))
    assert read_csv(path, Layout(name="a", unit="s", duplicates="last"))["x"].to_list() == [2.0]


@pytest.mark.parametrize(("reader", "kind"), [(read_csv, "csv.gz"), (read_parquet, "parquet"), (read_arrow, "arrow")])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, reader, kind):
    path = tmp_path / f"table.{kind}"
    write(path, kind)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=f"table.{kind}"):
        reader(path, LAYOUT)


def test_what_is_not_there_is_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv can not be opened: No such file"):
        read(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"must end in \.csv"):
        read(tmp_path / "none.xlsx")
    path = tmp_path / "t.csv"
    TABLE.write_csv(path)
    with pytest.raises(FrameError, match="has no column 'when'"):
        read(path, Layout(time="when"))


REQUESTS = pl.DataFrame(
    {
        "at": ["1700158623.9799601", "1700158623.9799602", "1700158623.9799601"],
        "verb": ["GET", None, "PUT"],
        "ms": [1.5, -1.0, None],
        "note": ["a", "b", "c"],
    }
)
EVENTS = normalise_events(REQUESTS, time="at", type="verb", name="web", marks=("ms",), unit="s", missing=(-1,))


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "arrow"])
def test_events_are_read_from_every_kind_of_file_to_the_nanosecond(tmp_path, kind):
    path = tmp_path / f"requests.{kind}"
    if kind == "csv.gz":
        path.write_bytes(gzip.compress(REQUESTS.write_csv().encode()))
    else:
        {"csv": REQUESTS.write_csv, "parquet": REQUESTS.write_parquet, "arrow": REQUESTS.write_ipc}[kind](path)
    layout = EventLayout(
        time="at", unit="s", name="web", type="kind", marks=("ms",), rename=(("verb", "kind"),), missing=(-1, "?")
    )
    events = read(path, layout)
    first = 1_700_158_623_979_960_100
    assert events[TIME].to_physical().to_list() == [first, first, first + 100]
    assert events[TYPE].to_list() == ["GET", "PUT", None]
    assert_frame_equal(events, EVENTS)
    bare = read(path, EventLayout(time="at", unit="s", name="web", type=None, marks=()))
    assert bare.columns == [STREAM, TIME, TYPE]


def test_a_numeric_clock_of_a_csv_is_never_a_float(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("time,x\n1700158623,1\n1700158623.9799601,2\n-0.5,3\n")
    exact = [-500_000_000, 1_700_158_623 * 10**9, 1_700_158_623_979_960_100]
    assert read_csv(path, Layout(name="a", unit="s"))[TIME].to_physical().to_list() == exact
    assert read(path, Layout(name="a", unit="s"))[TIME].to_physical().to_list() == exact
    path.write_text("time;x\n1700158623979,9601;1,5\n")
    frame = read_csv(path, Layout(name="a", unit="ms"), separator=";", decimal_comma=True)
    assert frame[TIME].to_physical().to_list() == [1_700_158_623_979_960_100]
    assert frame["x"].to_list() == [1.5]


def test_events_of_a_bad_file_are_refused_with_its_name(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("time,x\n2020-01-01,1\n")
    with pytest.raises(FrameError, match=r"t\.csv: frame has no column 'type' of types"):
        read(path, EventLayout(name="a"))
    with pytest.raises(FrameError, match=r"t\.csv: time column 'time', row 0: '2020-01-01' is no finite number of s"):
        read(path, EventLayout(name="a", type=None, unit="s"))


def test_a_table_is_read_by_its_schema_alone_or_refused():
    content = b"a,b,c\n1,2,x\n3,NA,y\n"
    table = csv_table(content, schema={"b": pl.Int64, "a": pl.String}, words=("NA",))
    assert table.select("a", "b").rows() == [("1", 2), ("3", None)]
    assert "c" not in table.columns
    for schema in ({"c": pl.Int64}, {"d": pl.Int64}):
        with pytest.raises(DataError, match="content can not be read as CSV"):
            csv_table(content, schema=schema, words=("NA",))


@pytest.mark.parametrize("layout", [Layout, EventLayout])
@pytest.mark.parametrize("options", [{"unit": "h"}, {"time": ""}])
def test_both_layouts_refuse_what_no_file_can_have(layout, options):
    with pytest.raises(DataError, match="must"):
        layout(**options)


@pytest.mark.parametrize("options", [{"duplicates": "mean"}, {"unit": "h"}, {"time": ()}])
def test_a_layout_out_of_bounds_is_refused(options):
    with pytest.raises(DataError, match="must"):
        Layout(**options)
