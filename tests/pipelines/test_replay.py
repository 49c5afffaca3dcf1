"""Replay of sensors and events whose stamps are wrong or late: a bound on silence, late policies, what is said."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tsgdn2.events.online import OnlineEvents
from tsgdn2.forecaster import ForecasterConfig
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.standards import Standards

pytestmark = pytest.mark.usefixtures("at_home")
HOUR = 3_600_000_000_000
BEGIN = datetime.datetime(2024, 1, 1)
SHAPE: dict[str, Any] = {
    "prediction_length": 6, "period_ns": HOUR, "patch_length": 4, "width": 16, "heads": 2, "key_dim": 4, "value_dim": 4,
    "mlp": 16,
}  # fmt: skip
OF_EVENTS: dict[str, Any] = {"event_types": ("x", "y"), "event_targets": ("count",)}
SAME = ["--model.epochs=1", "--model.batches=2", "--quiet"]
TOLD = ["--columns.targets", '["count"]', "--columns.period", "1h"]


@pytest.fixture(autouse=True)
def predictors(at_home: None, empty_store: Path) -> None:
    """Folders `sensors` and `events` with predictors of random weights: nothing here depends on what they learned."""
    Path("runs").mkdir()
    shutil.copy(empty_store, "runs/mlflow.db")
    for name, more, channels in (("sensors", {}, ["heat"]), ("events", OF_EVENTS, ["count"])):
        torch.manual_seed(0)
        config = ForecasterConfig(**SHAPE, **more)
        made = GDN2Predictor(
            config_json=config.to_json(), standards_json=Standards().to_json(), freq="h", channels=channels
        )
        Path(name).mkdir()
        made.serialize(Path(name))


def sensors(hours: range = range(96), stream: str = "a", begin: datetime.datetime = BEGIN) -> pl.DataFrame:
    """One row per hour."""
    rows = [(stream, begin + datetime.timedelta(hours=hour), float(hour % 24)) for hour in hours]
    return pl.DataFrame(rows, schema=["stream", "time", "heat"], orient="row")


def events(hours: range = range(96), stream: str = "a", begin: datetime.datetime = BEGIN) -> pl.DataFrame:
    """Three events per hour."""
    rows = [(stream, begin + datetime.timedelta(minutes=20 * at), "xy"[at % 2])
            for at in range(3 * hours.start, 3 * hours.stop, hours.step)]  # fmt: skip
    return pl.DataFrame(rows, schema=["stream", "time", "type"], orient="row")


TABLES = {"sensors": sensors, "events": events}


def replay(predictor: str, file: str, *more: str) -> int:
    """The job on a file, its output in `r`."""
    return main(["replay", "--predictor", predictor, "--data", file, "--output", "r", "--quiet", *more])


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("stray", ["2200-01-01", "1970-01-01", "1700-01-01"])
def test_one_stray_stamp_is_refused_with_its_stream_its_moment_and_the_option(
    kind: str, stray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make = TABLES[kind]
    odd = make(range(1), "b", datetime.datetime.fromisoformat(stray))[:1]
    pl.concat([make(), make(stream="b"), odd]).write_csv("log.csv")
    assert replay(kind, "log.csv") == 2
    said = capsys.readouterr().err
    assert "columns.longest_gap: stream 'b' of log.csv is silent from" in said
    assert f"{stray}T00:00:00" in said
    assert "longer than 731d" in said
    assert main(["train", "--data", "log.csv", *SAME, *(TOLD if kind == "events" else ())]) == 2
    assert "columns.longest_gap: stream 'b' of log.csv" in capsys.readouterr().err
    assert not Path("r").exists()


@pytest.mark.parametrize("kind", TABLES)
def test_the_bound_on_silence_is_that_of_the_caller(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    make = TABLES[kind]
    pl.concat([make(), make(range(200, 296))]).write_csv("log.csv")
    assert replay(kind, "log.csv", "--columns.longest_gap", "4d") == 2
    assert "is silent from 2024-01-04T23:" in capsys.readouterr().err
    assert replay(kind, "log.csv", "--columns.longest_gap", "5d") == 0
    assert replay(kind, "log.csv", "--columns.longest_gap", "2 months") == 2
    assert "columns.longest_gap: period must be" in capsys.readouterr().err


@pytest.mark.parametrize("kind", TABLES)
def test_a_stream_that_fell_silent_is_forecast_no_further_than_the_bound(kind: str) -> None:
    make = TABLES[kind]
    pl.concat([make(), make(stream="b", begin=datetime.datetime(2024, 6, 1))]).write_csv("log.csv")
    assert replay(kind, "log.csv", "--columns.longest_gap", "10d", "--forecast_every", "24") == 0
    origins = pl.read_parquet("r/forecasts.parquet").group_by("stream").agg(pl.col("origin").unique().sort())
    asked = dict(origins.iter_rows())
    last = BEGIN + datetime.timedelta(hours=96, days=10)
    # Events are asked at the end of an origin's step, which is 20 minutes more than ten days after the last one.
    assert len(asked["a"]) == (14 if kind == "sensors" else 13)
    assert max(asked["a"]) <= last
    assert len(asked["b"]) == 4
    whole = pl.concat([make(), make(stream="b", begin=datetime.datetime(2200, 1, 1))])
    whole.write_csv("log.csv")
    assert replay(kind, "log.csv", "--columns.longest_gap", "2d", "--forecast_every", "1") == 0
    assert pl.read_parquet("r/forecasts.parquet").select("stream", "origin").unique().height < 96 + 48 + 96 + 2


@pytest.mark.parametrize("kind", TABLES)
def test_a_saved_state_and_the_file_behind_it_may_not_lie_too_far_apart(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make = TABLES[kind]
    make().write_csv("first.csv")
    assert replay(kind, "first.csv", "--output", "one") == 0
    make(begin=datetime.datetime(2200, 1, 1)).write_csv("second.csv")
    assert replay("one/online.safetensors", "second.csv") == 2
    said = capsys.readouterr().err
    assert "columns.longest_gap: stream 'a' of second.csv is silent from 2024-01-04T23:" in said
    assert "2200-01-01T00:00:00" in said
    assert not Path("r").exists()
    pl.concat([make(), make(range(96, 120))]).write_csv("more.csv")
    assert replay("one/online.safetensors", "more.csv") == 0


@pytest.mark.parametrize("kind", TABLES)
def test_the_last_line_counts_what_became_of_the_rows(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    make = TABLES[kind]
    make().write_csv("first.csv")
    assert replay(kind, "first.csv", "--output", "one") == 0
    count = make().height
    assert f"{count} {'events' if kind == 'events' else 'observations'} of 1 streams ({count} new)," in (
        capsys.readouterr().out
    )
    make(range(48)).write_csv("older.csv")
    assert replay("one/online.safetensors", "older.csv") == 0
    old = make(range(48)).height
    assert f"of 1 streams ({old} late), 0 forecasts" in capsys.readouterr().out


def test_a_late_policy_of_sensors_makes_two_files_out_of_order_one_stream(capsys: pytest.CaptureFixture[str]) -> None:
    whole = sensors()
    gone = pl.col("time").is_between(BEGIN + datetime.timedelta(hours=70), BEGIN + datetime.timedelta(hours=75))
    whole.write_csv("whole.csv")
    whole.filter(~gone).write_csv("most.csv")
    whole.filter(gone).write_csv("rest.csv")
    assert replay("sensors", "whole.csv", "--output", "w") == 0
    assert replay("sensors", "most.csv", "--output", "m", "--arrivals.late", "replay",
                  "--arrivals.checkpoint_every", "2", "--arrivals.checkpoints", "6") == 0  # fmt: skip
    capsys.readouterr()
    assert replay("m/online.safetensors", "rest.csv", "--columns.period", "1h") == 0
    assert "(6 replayed)" in capsys.readouterr().out
    once, twice = (OnlinePredictor.load(f"{name}/online.safetensors") for name in ("w", "r"))
    np.testing.assert_array_equal(once.forecast("a").quantiles, twice.forecast("a").quantiles)
    assert once.late == "drop"
    assert (twice.policy.checkpoints, twice.policy.every) == (6, 2)
    assert replay("m/online.safetensors", "rest.csv", "--columns.period", "1h", "--arrivals.watermark", "2h") == 2
    assert "arrivals.watermark: m/online.safetensors goes on with its own" in capsys.readouterr().err


def test_a_watermark_of_sensors_holds_rows_and_late_raise_ends_a_replay(capsys: pytest.CaptureFixture[str]) -> None:
    sensors().write_csv("first.csv")
    sensors(range(40, 50)).write_csv("older.csv")
    assert replay("sensors", "first.csv", "--output", "h", "--arrivals.watermark", "5h") == 0
    assert "(96 held)" in capsys.readouterr().out
    assert OnlinePredictor.load("h/online.safetensors").policy.steps == 5
    assert replay("sensors", "first.csv", "--output", "s", "--arrivals.late", "raise") == 0
    assert replay("s/online.safetensors", "older.csv") == 2
    assert "time:" in capsys.readouterr().err
    assert replay("sensors", "first.csv", "--arrivals.watermark", "soon") == 2
    assert "arrivals.watermark: period must be" in capsys.readouterr().err
    assert replay("sensors", "first.csv", "--arrivals.checkpoints", "2") == 2
    assert "checkpoints: only late" in capsys.readouterr().err


def test_a_late_policy_of_events_is_what_their_predictor_takes(capsys: pytest.CaptureFixture[str]) -> None:
    events().write_csv("first.csv")
    assert replay("events", "first.csv", "--output", "e", "--arrivals.late", "raise") == 0
    assert OnlineEvents.load("e/online.safetensors").late == "raise"
    events(range(9)).write_csv("older.csv")
    capsys.readouterr()
    assert replay("e/online.safetensors", "older.csv") == 2
    assert "late" in capsys.readouterr().err
    assert replay("events", "first.csv", "--output", "h", "--arrivals.watermark", "5h") == 0
    assert f"({events().height} held)" in capsys.readouterr().out
    assert OnlineEvents.load("h/online.safetensors").counters("a")["late"] == 0
    assert replay("events", "first.csv", "--arrivals.checkpoints", "2") == 2
    assert "arrivals.checkpoints: a predictor of events does not take it" in capsys.readouterr().err


@pytest.mark.parametrize("kind", TABLES)
def test_a_file_without_rows_is_called_so(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    TABLES[kind]().clear().write_csv("none.csv")
    assert replay(kind, "none.csv") == 2
    assert "data: none.csv has no rows" in capsys.readouterr().err
    told = [*TOLD, "--columns.marks", '["ms"]'] if kind == "events" else ["--columns.channels", '["heat"]']
    assert main(["train", "--data", "none.csv", *SAME, *told]) == 2
    assert "data: none.csv has no rows" in capsys.readouterr().err


def test_a_target_that_can_not_be_read_names_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    events().write_csv("log.csv")
    for data in ("log.csv", "flights"):
        wrong = ["--columns.targets", '["median(ms)"]', "--columns.period", "1h"]
        assert main(["train", "--data", data, *wrong, *SAME]) == 2
        assert "columns.targets: a target must be count" in capsys.readouterr().err


def test_the_page_of_this_room_names_every_benchmark() -> None:
    from typing import get_args, get_type_hints

    from tsgdn2.pipelines.jobs import Bench

    page = (Path(__file__).parents[2] / "pipelines" / "README.md").read_text()
    (line,) = (line for line in page.splitlines() if "tsgdn2 bench --what W" in line)
    assert all(f"`{name}`" in line for name in get_args(get_type_hints(Bench)["what"]))
