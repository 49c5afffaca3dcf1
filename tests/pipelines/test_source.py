"""Files as jobs take them: what does not fit is refused by name; nothing is dropped, swapped or guessed silently."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tsgdn2.datasets.errors import DataError as FileError
from tsgdn2.datasets.errors import FrameError
from tsgdn2.datasets.frame import TIME
from tsgdn2.errors import ConfigError, DataError
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.jobs import DataOptions
from tsgdn2.pipelines.source import open_source

pytestmark = pytest.mark.usefixtures("at_home")
SMALL = ["--model.epochs=1", "--model.batches=2", "--model.width=16", "--model.mlp=16", "--model.batch_size=4",
         "--prediction_length=8", "--model.context_length=64", "--quiet"]  # fmt: skip


def table(hours: int = 300) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    phase = 2 * np.pi * np.arange(hours) / 24
    first = datetime.datetime(2024, 1, 1)
    return pl.DataFrame(
        {
            "time": [(first + datetime.timedelta(hours=hour)).isoformat() for hour in range(hours)],
            "y": 10 + 3 * np.sin(phase) + 0.3 * rng.normal(size=hours),
            "x": 1000 + 50 * np.cos(phase) + 5 * rng.normal(size=hours),
        }
    )


def csv(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def test_a_source_keeps_named_channels_in_their_order_or_names_the_absent() -> None:
    table().write_csv("t.csv")
    source = open_source("t.csv", DataOptions())
    assert source.select(["x", "y"]).channels == ["x", "y"]
    with pytest.raises(ConfigError, match=r"\['zz'\] are not in t, which has \['y', 'x'\]"):
        source.select(["x", "zz"])


def test_days_and_months_are_not_guessed_but_told() -> None:
    name = csv("us.csv", "time,x\n01/02/2024,1\n01/03/2024,2\n01/04/2024,3\n")
    with pytest.raises(FrameError, match=r"'01/02/2024' is not ISO 8601.*pass time_format"):
        open_source(name, DataOptions())
    told = open_source(name, DataOptions(time_format="%m/%d/%Y"))
    assert told.frame[TIME].dt.day().to_list() == [2, 3, 4]
    number = csv("unix.csv", "time,x\n0,1\n3600,2\n7200,3\n")
    assert open_source(number, DataOptions(unit="s")).frame[TIME].dt.hour().to_list() == [0, 1, 2]


def test_a_word_in_a_column_of_numbers_is_an_error_and_a_column_of_words_is_not() -> None:
    rows = "".join(f"2024-01-01T{h:02}:00,{h},{h if h != 3 else 'broken'},mild\n" for h in range(10))
    name = csv("t.csv", "time,x,y,sky\n" + rows)
    with pytest.raises(DataError, match=r"'broken' in row 3 of 'y'"):
        open_source(name, DataOptions())
    with pytest.raises(DataError, match=r"'broken' in row 3 of 'y'"):
        open_source(name, DataOptions(channels=("y",)))
    assert open_source(name, DataOptions(channels=("x",))).channels == ["x"]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather", "ipc"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_file_is_an_error_that_names_it(kind: str, damage: str) -> None:
    path = Path(f"t.{kind}")
    (table().write_parquet if kind == "parquet" else table().write_ipc)(path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-40], "garbage": b"no table at all, " * 9, "empty": b""}[damage])
    with pytest.raises(FileError, match=rf"t\.{kind} can not be read"):
        open_source(str(path), DataOptions())


def test_the_options_of_the_columns_hold_for_every_kind_of_file() -> None:
    own = table(50).rename({"time": "Timestamp"}).with_columns(site=pl.lit("a"), sky=pl.lit("mild"))
    own.write_csv("t.csv")
    own.write_parquet("t.parquet")
    for kind in ("arrow", "feather", "ipc"):
        own.write_ipc(f"t.{kind}")
    for options in (DataOptions(stream="site"), DataOptions(time="Timestamp", channels=("x",)), DataOptions(name="n")):
        expected = open_source("t.csv", options)
        for kind in ("parquet", "arrow", "feather", "ipc"):
            found = open_source(f"t.{kind}", options)
            assert_frame_equal(found.frame, expected.frame)
    assert expected.streams == ["n"]
    with pytest.raises(ConfigError, match=r"columns\.name.*'site'"):
        open_source("t.csv", DataOptions(stream="site", name="n"))


def test_several_channels_are_met_by_name_in_every_job(capsys: pytest.CaptureFixture[str]) -> None:
    table().write_csv("yx.csv")
    table().select("time", "x", "y").write_csv("xy.csv")
    table().rename({"x": "zz"}).write_csv("renamed.csv")
    train = ["train", "--data", "yx.csv", "--targets", "multivariate", "--model.channels", "joint", "--output", "t"]
    assert main([*train, *SMALL]) == 0
    figures = {}
    for name in ("yx", "xy"):
        job = ["backtest", "--predictor", "t", "--data", f"{name}.csv", "--windows", "2", "--quiet"]
        assert main([*job, "--output", name]) == 0, capsys.readouterr().err
        figures[name] = pl.read_parquet(f"{name}/windows.parquet")
        assert set(figures[name]["channel"]) == {"x", "y"}
    ours = [frame.filter(model="GDN-2").select("channel", "window", "CRPS").sort("channel", "window")
            for frame in figures.values()]  # fmt: skip
    assert_frame_equal(ours[0], ours[1])
    for job in (["backtest", "--windows", "2"], ["audit", "run"], ["replay"]):
        assert main([*job, "--predictor", "t", "--data", "renamed.csv", "--quiet", "--output", "r"]) == 2
        assert "['x'] are not in renamed, which has ['y', 'zz']" in capsys.readouterr().err


def test_a_saved_state_goes_on_with_its_own_streams_channels_and_audit_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table(200).write_csv("first.csv")
    table().tail(100).write_csv("second.csv")
    table().tail(100).rename({"x": "zz"}).write_csv("renamed.csv")
    assert main(["train", "--data", "first.csv", "--output", "t", *SMALL]) == 0
    assert main(["replay", "--predictor", "t", "--data", "first.csv", "--output", "a", "--quiet"]) == 0
    again = ["replay", "--predictor", "a/online.safetensors", "--quiet", "--output", "b", "--data"]
    refused = {
        ("second.csv",): "['second'] are none of the saved state's ['first']; name the only stream of a file with "
                         "--columns.name",
        ("renamed.csv", "--columns.name", "first"): "['x'] are not in renamed",
        ("second.csv", "--columns.name", "first", "--audit", "false"): "audit: a/online.safetensors carries an audit",
    }  # fmt: skip
    for given, said in refused.items():
        assert main([*again, *given]) == 2
        assert said in capsys.readouterr().err
    assert not Path("b").exists()
    assert main([*again, "second.csv", "--columns.name", "first"]) == 0
    assert pl.read_parquet("b/surprises.parquet")["status"].unique().to_list() == ["new"]
