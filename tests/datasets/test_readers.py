"""Files of every kind give the same frame; a damaged file gives a DataError that names it."""

import gzip

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tsgdn2.datasets.errors import DataError, FrameError
from tsgdn2.datasets.frame import STREAM, TIME, normalise
from tsgdn2.datasets.readers import Layout, read, read_arrow, read_csv, read_parquet

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


@pytest.mark.parametrize("options", [{"duplicates": "mean"}, {"unit": "h"}, {"time": ()}])
def test_a_layout_out_of_bounds_is_refused(options):
    with pytest.raises(DataError, match="must"):
        Layout(**options)
