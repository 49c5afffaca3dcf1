"""The anomaly benchmark's files: their form in small always, the real ones where TSGDN2_DATA is set."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tsgdn2.datasets import nab as module
from tsgdn2.datasets.errors import ChecksumError, DataError, FrameError
from tsgdn2.datasets.fetch import locate
from tsgdn2.datasets.frame import channels, validate
from tsgdn2.datasets.nab import NAB_SOURCES, NAB_STREAMS, NAB_WINDOWS, nab, nab_frame, nab_windows

DATA = os.environ.get("TSGDN2_DATA")
HERE = bool(DATA) and (Path(str(DATA)) / "nab").is_dir()
ODD = {
    "realKnownCause/machine_temperature_system_failure": (22_695, 22_683, 4),
    "realAWSCloudwatch/ec2_disk_write_bytes_1ef3de": (4_730, 4_719, 1),
    "realKnownCause/nyc_taxi": (10_320, 10_320, 5),
    "realAWSCloudwatch/ec2_cpu_utilization_c6585a": (4_032, 4_032, 0),
}
NAME = "realKnownCause/rogue_agent_key_hold"
SECOND = 10**9
FIRST = 1_404_677_400 * SECOND  # 2014-07-06 20:10
ROWS = (
    "timestamp,value\r\n2014-07-06 20:10:00,0.5\r\n2014-07-06 20:15:00,1\r\n2014-07-06 20:15:00,2.25\r\n"
    "2014-07-06 20:12:00,-3e2\r\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder with one stream of four odd rows and labels of all."""
    home = tmp_path / "nab"
    (home / "data" / "realKnownCause").mkdir(parents=True)
    (home / "labels").mkdir()
    write(home, ROWS)
    label(home, [["2014-07-06 20:10:00.000000", "2014-07-06 20:12:30.500000"]])
    monkeypatch.setenv("TSGDN2_DATA", str(tmp_path))
    return home


def write(home: Path, text: str, *, packed: bool = True) -> None:
    path = home / "data" / f"{NAME}.csv{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())


def label(home: Path, windows: object) -> None:
    given = {f"{name}.csv": [] for name in NAB_STREAMS} | {f"{NAME}.csv": windows, "realAds/another.csv": []}
    (home / "labels" / "combined_windows.json").write_text(json.dumps(given))


def test_every_real_file_is_the_one_of_its_digest() -> None:
    if HERE:
        for source in NAB_SOURCES.values():
            assert locate(source, sha256=source.sha256).is_file()


@pytest.mark.parametrize("name", ODD if HERE else ())
def test_a_real_file_has_its_odd_stamps_and_its_windows_after_the_probationary_part(name: str) -> None:
    found = nab(name)
    assert found.stamps.dtype == np.int64
    assert found.step in (300 * SECOND, 1800 * SECOND)
    frame = validate(nab_frame(name))
    assert channels(frame) == ["value"]
    assert (len(found.values), frame.height, len(found.windows)) == ODD[name]
    for begin, end in found.windows:
        inside = np.flatnonzero((found.stamps >= begin) & (found.stamps <= end))
        assert inside[0] >= min(0.15 * len(found.stamps), 750)
        assert len(inside) > 60


def test_the_real_labels_hold_49_windows_of_23_streams() -> None:
    if HERE:
        windows = nab_windows()
        assert (sum(map(len, windows.values())), sum(1 for own in windows.values() if own)) == (49, 23)


def test_rows_are_read_as_they_stand_and_a_frame_is_tidy(folder: Path) -> None:
    found = nab(NAME)
    assert (found.stamps - FIRST).tolist() == [0, 300 * SECOND, 300 * SECOND, 120 * SECOND]
    assert found.values.tolist() == [0.5, 1.0, 2.25, -300.0]
    assert found.windows == ((FIRST, FIRST + 150 * SECOND + SECOND // 2),)
    frame = nab_frame(NAME)
    assert frame["stream"].unique().to_list() == [NAME]
    assert frame["value"].to_list() == [0.5, -300.0, 2.25]
    write(folder, ROWS.replace("\r", ""), packed=False)
    (folder / "data" / f"{NAME}.csv.gz").unlink()
    assert nab_frame(NAME).equals(frame)
    assert set(nab_windows()) == set(NAB_STREAMS)
    assert isinstance(frame, pl.DataFrame)


def test_every_file_has_a_public_home_and_a_digest_and_the_labels_a_home() -> None:
    assert len({source.sha256 for source in NAB_SOURCES.values()}) == len(NAB_STREAMS) == 24
    for name, source in NAB_SOURCES.items():
        assert source.urls == (f"{module.HOME}/data/{name}.csv",)
        assert source.name == f"nab/data/{name}.csv"
    assert NAB_WINDOWS.urls == (f"{module.HOME}/labels/combined_windows.json",)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("time,value\n2014-07-06 20:10:00,1\n", FrameError, "must have the columns timestamp and value"),
        ("timestamp,value\n2014-07-06 20:10:00,1\n", FrameError, "at least two rows"),
        ("timestamp,value\n2014-07-06 20:10:00,1\n2014-07-06 20:15:00,\n", FrameError, "each with a number"),
        ("timestamp,value\n06/07/2014,1\n07/07/2014,2\n", FrameError, "is not ISO 8601"),
        ("timestamp,value\n2014-07-06 20:10:00,hot\n2014-07-06 20:15:00,cold\n", FrameError, "each with a number"),
    ],
)
def test_a_file_of_another_form_is_refused(folder: Path, text: str, error: type[DataError], said: str) -> None:
    write(folder, text)
    with pytest.raises(error, match=said):
        nab(NAME)


@pytest.mark.parametrize("windows", [[["2014-07-06", "2014-07-05"]], [["2014-07-06"]], 7, None])
def test_labels_of_another_form_are_refused(folder: Path, windows: object) -> None:
    label(folder, windows)
    with pytest.raises(DataError, match=r"combined_windows\.json"):
        nab(NAME)


def test_an_unknown_name_and_a_wrong_digest_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"name must be one of realAWSCloudwatch/.* got 'nyc'"):
        nab("nyc")
    with pytest.raises(ChecksumError, match="expected 47b110ba"):
        nab(NAME, sha256=NAB_SOURCES[NAME].sha256)
    (folder / "labels" / "combined_windows.json").write_text('{"a": [')
    with pytest.raises(DataError, match="must map each file to pairs of stamps"):
        nab_windows()
