"""Jobs on events: files of one event per row from training to replay, and every likely mistake named."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tsgdn2.errors import SchemaError, StreamError
from tsgdn2.events.online import OnlineEvents
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.event_source import open_data
from tsgdn2.pipelines.event_table import event_example, event_frame_entries
from tsgdn2.pipelines.jobs import DataOptions
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.pyfunc import save_forecast_model
from tsgdn2.pipelines.saved import go_online, open_predictor
from tsgdn2.pipelines.streaming import stream_events

pytestmark = pytest.mark.usefixtures("at_home")
HOUR = 3_600_000_000_000
SMALL = ["--model.epochs=1", "--model.batches=2", "--model.width=16", "--model.mlp=16", "--model.batch_size=4",
         "--prediction_length=6", "--model.patch_length=4", "--model.context_length=64", "--quiet"]  # fmt: skip
TARGETS = '["count","mean(ms)","count[x]"]'
FILE = ["--data", "log.csv", "--columns.stream", "site", "--columns.type", "kind"]
TOLD = DataOptions(stream="site", type="kind", period="1h", targets=("count", "mean(ms)"))


def table(days: int = 7, *, sites: tuple[str, ...] = ("a", "b")) -> pl.DataFrame:
    """Requests of some sites with a daily cycle; types and marks are missing here and there, some moments are equal."""
    rng, rows = np.random.default_rng(0), []
    for site in sites:
        when, stop = datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 1) + datetime.timedelta(days=days)
        while when < stop:
            kind = ("x", "y", "z", None)[rng.choice(4, p=(0.5, 0.3, 0.15, 0.05))]
            mark = None if rng.random() < 0.1 else float(np.round(rng.normal(5, 2), 3))
            rows.append((when.isoformat(), site, kind, mark, float(rng.integers(1, 9)), "note"))
            pace = 1200 / (1.5 + np.sin(2 * np.pi * when.hour / 24))
            when += datetime.timedelta(seconds=0.0 if rng.random() < 0.05 else float(rng.exponential(pace)))
    return pl.DataFrame(rows, schema=["time", "site", "kind", "ms", "size", "note"], orient="row")


def runs_of(name: str) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{Path('runs/mlflow.db').resolve()}")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run for run in client.search_runs(ids) if run.info.run_name == name]


def train(output: str, *more: str) -> None:
    """A small predictor of the table in `log.csv`."""
    given = ["--columns.targets", TARGETS, "--columns.period", "1h", "--hold_out", "24"]
    assert main(["train", *FILE, *given, *SMALL, "--output", output, *more]) == 0


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the predictor of this file was trained once."""
    home = tmp_path_factory.mktemp("events")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(mlflow|sqlalchemy|gluonts|alembic|pydantic)\..*")
        patch.chdir(home)
        patch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")
        table().write_csv("log.csv")
        train("t")
    return home


@pytest.fixture
def trained(workshop: Path, at_home: None) -> GDN2Predictor:
    """That predictor in `t` beside its `log.csv`, and in `runs` the run that made it."""
    for name in ("t", "runs"):
        shutil.copytree(workshop / name, name)
    shutil.copy(workshop / "log.csv", "log.csv")
    return open_predictor(Path("t"))


def test_train_backtest_replay_and_audit_follow_each_other(
    trained: GDN2Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained.config.event_types == ("x", "y", "z")
    assert trained.config.event_marks == ("ms", "size")
    (run,) = runs_of("train log")
    assert run.data.params["columns.period"] == "1h"
    assert "val_loss" in run.data.metrics
    assert run.inputs.dataset_inputs[0].dataset.name == "log"

    assert main(["backtest", "--predictor", "t", *FILE, "--windows", "3", "--output", "b", "--quiet"]) == 0
    windows = pl.read_parquet("b/windows.parquet")
    assert windows.height == 4 * 2 * 3 * 3, "models, sites, targets, windows"
    assert set(windows["channel"]) == {"count", "mean(ms)", "count[x]"}
    assert "count[x]" in Path("b/report.md").read_text()
    said = capsys.readouterr().out
    assert "GDN-2 is beaten in" in said
    (judged,) = runs_of("backtest log")
    assert judged.data.metrics["crps_relative/SeasonalNaive"] == 1.0
    assert judged.data.metrics["crps/GDN-2"] > 0

    replay = ["replay", *FILE, "--forecast_every", "12", "--quiet"]
    assert main([*replay, "--predictor", "t", "--output", "r"]) == 0
    assert f"{table().height:,} events of 2 streams" in capsys.readouterr().out
    surprises = pl.read_parquet("r/surprises.parquet")
    assert surprises.height == table().height
    assert surprises["status"].unique().to_list() == ["new"]
    assert surprises["surprise.count[x]"].drop_nulls().len() > 30
    forecasts = pl.read_parquet("r/forecasts.parquet")
    assert forecasts.select("stream", "origin").unique().height == 2 * 14
    assert (np.diff(forecasts.select("0.1", "0.5", "0.9").to_numpy(), axis=1) >= 0).all()
    assert (forecasts["origin"].dt.hour() % 12 == 0).all()

    run_audit = ["audit", "run", "--quiet", "--output"]
    assert main([*run_audit, "a", "--predictor", "t", *FILE, "--audit.window", "24"]) == 0
    heads = pl.read_parquet("a/audit/heads.parquet")
    assert heads["state_residual"].max() < 1e-4
    assert heads["ledger_residual"].max() < 1e-4
    evicted = pl.read_parquet("a/audit/ledger.parquet")
    assert set(evicted["series"]) == {"a/count", "a/mean(ms)", "a/count[x]"}
    assert main([*run_audit, "s", "--predictor", "r/online.safetensors"]) == 0
    assert pl.read_parquet("s/audit/online_heads.parquet").height == 2 * 3


@pytest.mark.usefixtures("trained")
def test_a_replay_goes_on_in_a_new_process_as_if_it_had_not_stopped() -> None:
    whole = table()
    cut = whole["time"].str.to_datetime() < datetime.datetime(2024, 1, 4, 3)
    whole.filter(cut).write_csv("first.csv")
    whole.filter(~cut).write_csv("second.csv")
    again = ["--columns.stream", "site", "--columns.type", "kind", "--forecast_every", "4", "--quiet"]
    assert main(["replay", "--predictor", "t", "--data", "log.csv", *again, "--output", "once"]) == 0
    assert main(["replay", "--predictor", "t", "--data", "first.csv", *again, "--output", "one"]) == 0
    program = "import sys; from tsgdn2.pipelines.cli import main; sys.exit(main(sys.argv[1:]))"
    given = ["replay", "--predictor", "one/online.safetensors", "--data", "second.csv", *again, "--output", "two"]
    subprocess.run([sys.executable, "-c", program, *given], check=True, capture_output=True, timeout=300)
    parts = [pl.read_parquet(f"{name}/surprises.parquet") for name in ("one", "two")]
    assert_frame_equal(pl.concat(parts), pl.read_parquet("once/surprises.parquet"))
    late = pl.read_parquet("two/forecasts.parquet")
    same = pl.read_parquet("once/forecasts.parquet").join(late, on=["stream", "origin", "time", "channel"], how="semi")
    assert_frame_equal(late, same)
    ends = [OnlineEvents.load(f"{name}/online.safetensors") for name in ("once", "two")]
    for stream in ("a", "b"):
        np.testing.assert_array_equal(ends[0].forecast(stream).quantiles, ends[1].forecast(stream).quantiles)
    assert main(["replay", "--predictor", "two/online.safetensors", "--data", "first.csv", *again,
                 "--output", "old"]) == 0  # fmt: skip
    assert set(pl.read_parquet("old/surprises.parquet")["status"]) == {"late"}
    assert max(run.data.metrics["rows/late"] for run in runs_of("replay first")) == whole.filter(cut).height


def test_streamed_forecasts_are_the_batchs_at_every_origin(trained: GDN2Predictor) -> None:
    source = open_data("log.csv", DataOptions(stream="site", type="kind"), trained.config)
    online = go_online(trained, source.channels, Path("t"), audit=False)
    assert isinstance(online, OnlineEvents)
    (a, b) = source.entries()
    first = int(a["event_time"][0]) // HOUR
    origins = [first + 60, first + 95, first + 96]
    streamed = stream_events(online, source.frame, origins)
    for forecast in streamed.forecasts:
        entry = a if forecast.stream == "a" else b
        begun = int(entry["event_time"][0]) // HOUR
        steps = int(forecast.times[0].astype("datetime64[ns]").astype(np.int64)) // HOUR - begun
        (batch,) = trained.predict([{**entry, "target": entry["target"][:, :steps]}])
        np.testing.assert_allclose(np.moveaxis(batch.forecast_array, 0, -1), forecast.quantiles, rtol=1e-4, atol=1e-4)
    assert len(streamed.forecasts) == 6


def test_one_target_of_events_by_number_goes_from_file_to_forecast() -> None:
    table().drop("kind", "note", "site").rename({"time": "when"}).write_csv("log.csv")
    file = ["--data", "log.csv", "--columns.time", "when", "--columns.type", ""]
    told = ["--columns.targets", '["count"]', "--columns.period", "30min", "--columns.marks", "[]"]
    assert main(["train", *file, *told, *SMALL, "--model.event_window", "8", "--output", "t"]) == 0
    assert open_predictor(Path("t")).config.event_marks == ()
    assert main(["backtest", "--predictor", "t", *file, "--windows", "2", "--output", "b", "--quiet"]) == 0
    assert main(["replay", "--predictor", "t", *file, "--output", "r", "--quiet"]) == 0
    assert pl.read_parquet("r/forecasts.parquet")["channel"].unique().to_list() == ["count"]
    assert main(["audit", "run", "--predictor", "t", *file, "--output", "a", "--quiet"]) == 0


@pytest.mark.usefixtures("trained")
def test_a_type_that_training_never_saw_is_named_before_anything_is_observed_or_is_one_of_the_others() -> None:
    train("other", "--model.event_unknown", "other")
    table(2, sites=("a",)).with_columns(kind=pl.lit("new")).write_csv("new.csv")
    new = ["--data", "new.csv", *FILE[2:], "--quiet"]
    source = open_data("new.csv", TOLD)
    online = go_online(open_predictor(Path("t")), source.channels, Path("t"), audit=False)
    with pytest.raises(StreamError, match="'new' is not among the 3 types"):
        stream_events(online, source.frame, [])
    assert online.streams == ()
    assert main(["replay", "--predictor", "t", *new, "--output", "r"]) == 2
    assert main(["replay", "--predictor", "other", *new, "--output", "o"]) == 0
    (run,) = (run for run in runs_of("replay new") if run.info.status == "FINISHED")
    assert run.data.metrics["rows/unknown"] == table(2, sites=("a",)).height


@pytest.mark.usefixtures("trained")
def test_predictors_of_events_and_of_sensors_refuse_each_others_data(capsys: pytest.CaptureFixture[str]) -> None:
    hours = pl.datetime_range(datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 10), "1h", eager=True)
    pl.DataFrame({"time": hours, "y": np.arange(len(hours)) % 24.0}).write_csv("wide.csv")
    assert main(["train", "--data", "wide.csv", *SMALL, "--output", "w"]) == 0
    capsys.readouterr()
    refused = {
        ("t", "nyc"): "data: nyc is a set of sensors, this predictor reads events",
        ("t", "wide.csv"): "columns.type: wide.csv has no column 'type'",
        ("w", "flights"): "data: flights is a set of events, this predictor reads sensors",
        ("t", "log.csv", "--columns.type", "kind", "--columns.targets", '["count"]'): "must be the predictor's",
        ("t", "log.csv", "--columns.type", "kind", "--columns.period", "30min"): "its step is 30min, the predictor's h",
        ("w", "log.csv", "--columns.targets", '["count"]'): "columns.targets: is for events, this predictor reads",
    }  # fmt: skip
    for job in (["replay"], ["backtest", "--windows", "1"]):
        for (predictor, *data), said in refused.items():
            assert main([*job, "--predictor", predictor, "--data", *data, "--quiet", "--output", "r"]) == 2
            assert said in capsys.readouterr().err, (job, predictor, data)
    assert not Path("r").exists()
    assert main(["replay", "--predictor", "t", "--data", "nowhere", "--quiet"]) == 2
    Path("broken.safetensors").write_bytes(b"nothing")
    assert main(["replay", "--predictor", "broken.safetensors", *FILE, "--quiet"]) == 2
    assert "broken.safetensors is truncated" in capsys.readouterr().err


def test_the_mlflow_model_reads_events_and_gives_the_predictors_quantiles(
    trained: GDN2Predictor, tmp_path: Path
) -> None:
    (entry, _) = open_data("log.csv", TOLD).entries()
    marks = trained.config.event_marks
    example = event_example(entry, marks, 150)
    save_forecast_model(tmp_path / "model", Path("t/predictor"), example, freq="h")
    found = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(example)
    assert found["channel"].tolist() == [name for name in trained.channels for _ in range(6)]
    (data,) = event_frame_entries(example, trained.channels, marks, "h")
    (forecast,) = trained.predict([data])
    np.testing.assert_allclose(found["0.5"].to_numpy().reshape(3, 6).T, forecast.quantile(0.5), rtol=1e-6)
    shuffled = example.sample(frac=1, random_state=0).drop(columns="size")
    assert event_frame_entries(shuffled, ["count"], ["ms", "size"], "h")[0]["target"].sum() == 150
    with pytest.raises(SchemaError, match=r"columns item_id, timestamp, type and \['ms'\] are needed"):
        event_frame_entries(example, ["count"], ["ms"], "h")
    with pytest.raises(SchemaError, match="at least one event"):
        event_frame_entries(example[:0], ["count"], ["ms", "size"], "h")
    with pytest.raises(SchemaError, match="1 of 150 are missing"):
        event_frame_entries(example.assign(timestamp=[pd.NaT, *example["timestamp"][1:]]), ["count"], ["ms", "size"],
                            "h")  # fmt: skip
