"""Files of events as jobs take them: what to count is told, types are those of training, mistakes are named."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tsgdn2.datasets import catalog
from tsgdn2.datasets.errors import DataError as FileError
from tsgdn2.datasets.events import TYPE
from tsgdn2.datasets.frame import TIME
from tsgdn2.errors import ConfigError, DataError
from tsgdn2.forecaster import ForecasterConfig
from tsgdn2.pipelines import event_source
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.event_source import EventSource, inside, open_data, vocabulary
from tsgdn2.pipelines.jobs import DataOptions, ModelOptions
from tsgdn2.pipelines.screen import Phase
from tsgdn2.pipelines.training import estimator

pytestmark = pytest.mark.usefixtures("at_home")
HOUR = 3_600_000_000_000
SMALL = ["--model.epochs=1", "--model.batches=2", "--quiet"]
TOLD = DataOptions(stream="site", type="kind", period="1h", targets=("count", "mean(ms)"))


def table(days: int = 7) -> pl.DataFrame:
    """Two sites, five events an hour each; types and marks are missing here and there, some moments are equal."""
    rng, begin = np.random.default_rng(0), datetime.datetime(2024, 1, 1)
    minutes = np.sort(rng.integers(0, days * 24 * 60, (2, days * 120)), axis=1)
    rows = [
        ((begin + datetime.timedelta(minutes=int(minute))).isoformat(), site,
         ("x", "y", "z", None)[rng.choice(4, p=(0.5, 0.3, 0.15, 0.05))],
         None if rng.random() < 0.1 else float(np.round(rng.normal(5, 2), 3)), float(rng.integers(1, 99)), "note")
        for site, own in zip(("a", "b"), minutes, strict=True) for minute in own
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=["time", "site", "kind", "ms", "size", "note"], orient="row")


def test_a_file_is_read_with_missing_types_and_marks_and_the_order_of_equal_moments() -> None:
    table().write_csv("log.csv")
    source = open_data("log.csv", TOLD)
    assert isinstance(source, EventSource)
    assert source.marks == ("ms", "size")
    assert source.period == HOUR
    assert source.season == 24
    assert source.frame[TYPE].null_count() == table()["kind"].null_count() > 0
    assert source.frame["ms"].null_count() == table()["ms"].null_count() > 0
    assert source.frame.filter(stream="a")["size"].to_list() == table().filter(site="a")["size"].to_list()
    assert open_data("log.csv", DataOptions(**{**vars(TOLD), "marks": ("size",)})).marks == ("size", "ms")  # type: ignore[attr-defined]
    assert source.select(["mean(ms)"]).channels == ["mean(ms)"]
    with pytest.raises(ConfigError, match=r"columns\.targets: the predictor's \['max\(ms\)'\]"):
        source.select(["max(ms)"])
    entry = source.entries()[0]
    assert entry["target"].shape[0] == 2
    shorter = {**entry, "target": entry["target"][:, :30]}
    assert entry["event_time"][inside(shorter) - 1] < (entry["start"].start_time.value // HOUR + 30) * HOUR
    assert entry["event_time"][inside(shorter)] >= (entry["start"].start_time.value // HOUR + 30) * HOUR
    plain = table().with_columns(pl.col("time").str.to_datetime().dt.timestamp("ms"))
    plain.write_parquet("log.parquet")
    again = open_data("log.parquet", DataOptions(**{**vars(TOLD), "unit": "ms"}))
    assert again.frame.height == source.frame.height


def test_events_of_one_kind_need_no_column_of_types() -> None:
    table().drop("kind").write_csv("log.csv")
    told = {**vars(TOLD), "type": "", "targets": ("count", "sum(size)")}
    source = open_data("log.csv", DataOptions(**told))
    assert vocabulary(source.entries(), unknown="raise") == ("event",)
    with pytest.raises(DataError, match=r"columns\.type: log\.csv has no column 'type', only .*columns\.type=''"):
        open_data("log.csv", DataOptions(**{**told, "type": None}))


def test_the_vocabulary_is_that_of_the_training_part_and_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    late = pl.DataFrame({"time": ["2024-01-07T22:00:00"], "site": ["a"], "kind": ["rare"], "ms": [1.0], "size": [1.0],
                         "note": ["n"]})  # fmt: skip
    pl.concat([table(), late]).write_csv("log.csv")
    entries = open_data("log.csv", TOLD).entries()
    assert vocabulary(entries, unknown="raise") == ("rare", "x", "y", "z")
    cut = [{**entry, "target": entry["target"][:, :-24]} for entry in entries]
    assert vocabulary(cut, unknown="raise") == ("x", "y", "z")
    monkeypatch.setattr(event_source, "MOST_TYPES", 2)
    with pytest.raises(ConfigError, match=r"has 3 types, at most 2 are.*model\.event_unknown=other"):
        vocabulary(cut, unknown="raise")
    assert vocabulary(cut, unknown="other") == ("x", "y")
    with pytest.raises(DataError, match="no event of the training part has a type"):
        vocabulary([{**entry, "event_type": np.full(len(entry["event_time"]), None)} for entry in cut], unknown="raise")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["log.csv"], "columns.targets: log.csv has a column of words called 'type'"),
        (["log.csv", "--columns.marks", '["ms"]'], "columns.targets: is needed where columns.marks says"),
        (["log.csv", "--columns.targets", '["count"]'], "columns.period: log.csv is read as events"),
        (["log.csv", "--columns.targets", '["mean(zz)"]', "--columns.period", "1h"],
         "columns.targets: 'mean(zz)' names the mark 'zz', log.csv has the marks ['ms', 'size']"),
        (["log.csv", "--columns.targets", '["many"]', "--columns.period", "1h"], "a target must be count"),
        (["log.csv", "--columns.targets", '["count[q]"]', "--columns.period", "1h"], "names the type 'q'"),
        (["log.csv", "--columns.targets", '["count"]', "--columns.period", "1h", "--columns.marks", '["note"]'],
         "columns.marks: log.csv has no numeric column 'note'"),
        (["log.csv", "--columns.targets", '["count"]', "--columns.period", "1h", "--columns.channels", '["ms"]'],
         "columns.channels: is for tables of sensors"),
        (["log.csv", "--columns.targets", '["count"]', "--columns.period", "1h", "--columns.name", "n"],
         "columns.name: is for a file of one stream"),
        (["wide.csv", "--columns.targets", '["count"]', "--columns.period", "1h"],
         "columns.type: wide.csv has no column 'type'"),
        (["nyc", "--columns.targets", '["count"]'], "columns.targets: is for events, nyc is a set of sensors"),
        (["nowhere", "--columns.targets", '["count"]'], "data: must be a file or one of nyc"),
        (["flights", "--columns.targets", '["mean(zz)"]'], "flights has the marks ['dep_delay'"),
    ],
)  # fmt: skip
def test_a_likely_mistake_is_named(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    table(3).rename({"site": "stream", "kind": "type"}).write_csv("log.csv")
    table(3).select("time", "ms", "size").write_csv("wide.csv")
    assert main(["train", *SMALL, "--output", "t", "--data", *given]) == 2
    assert said in capsys.readouterr().err


def test_named_sets_know_what_to_ask_and_only_marks_that_are_known_when_an_event_happens() -> None:
    source = open_data("flights", DataOptions())
    assert isinstance(source, EventSource)
    assert source.channels == ["count", "mean(dep_delay)"]
    assert source.frame.columns == ["stream", TIME, TYPE, "dep_delay", "distance"]
    assert source.freq == "h"
    other = open_data("flights", DataOptions(targets=("sum(air_time)",), marks=("distance",), period="1D"))
    assert isinstance(other, EventSource)
    assert other.marks == ("distance", "air_time"), "the model aims at what it sees"
    assert other.freq == "D"
    assert set(event_source.ASKED) == set(catalog.EVENT_SETS)


def test_options_reach_the_estimator() -> None:
    table().write_csv("log.csv")
    source = open_data("log.csv", TOLD)
    model = ModelOptions(event_window=20, event_mark_low=(-50.0, 0.0), event_mark_high=(50.0, 9.0), patch_length=4)
    kinds = event_source.events_of(source, source.entries(), model)
    config = estimator(model, "h", 6, Phase("x"), events=kinds).config
    assert isinstance(config, ForecasterConfig)
    assert (config.event_window, config.event_mark_high, config.event_types) == (20, (50.0, 9.0), ("x", "y", "z"))
    assert event_source.events_of(open_data("nyc", DataOptions()), [], model) is None


def test_dates_of_events_are_not_guessed_either() -> None:
    Path("us.csv").write_text("time,type\n01/02/2024,x\n")
    with pytest.raises(FileError, match="is not ISO 8601"):
        open_data("us.csv", DataOptions(targets=("count",), period="1h"))
    told = open_data("us.csv", DataOptions(targets=("count",), period="1h", time_format="%m/%d/%Y"))
    assert told.frame[TIME].dt.day().to_list() == [2]
