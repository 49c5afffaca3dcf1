"""`tsgdn2 backtest --protocol prequential`: rows shown after they are scored, late values, leaks, rows and a page."""

from __future__ import annotations

import datetime
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pytest

from tsgdn2.evaluation.metrics import Score, pooled
from tsgdn2.evaluation.prequential import Learner, Recall, Recalled
from tsgdn2.evaluation.rows import read
from tsgdn2.pipelines import prequential
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.comparison import NAIVE, OURS
from tsgdn2.pipelines.estimator import GDN2Estimator
from tsgdn2.pipelines.jobs import Backtest
from tsgdn2.pipelines.source import Source

pytestmark = pytest.mark.usefixtures("at_home")
HOURS, HORIZON = 260, 6
JOB = ["backtest", "--predictor", "p", "--data", "tiny.csv", "--columns.stream", "site", "--columns.season", "24",
       "--windows", "5", "--distance", "3", "--quiet"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame]:
    """A predictor of two channels, trained for a moment, and its table: missing rows and cells, streams of two ages."""
    rng, rows = np.random.default_rng(0), []
    for station, hours in (("a", HOURS), ("b", HOURS - 37)):
        for hour in range(hours):
            if rng.random() < 0.04 and 0 < hour < hours - 1:
                continue
            phase = 2 * np.pi * hour / 24
            when = datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=hour)
            heat = None if rng.random() < 0.1 else 10 + 3 * np.sin(phase) + 0.4 * rng.normal()
            rows.append((when.isoformat(), station, heat, 5 + 2 * np.cos(phase) + 0.3 * rng.normal()))
    table = pl.DataFrame(rows, schema=["time", "site", "heat", "flow"], orient="row")
    frame = table.select(
        pl.col("site").alias("stream"), pl.col("time").str.to_datetime(time_unit="ns", time_zone="UTC"), "heat", "flow"
    )
    source = Source(name="tiny", origin="here", frame=frame, period=3_600_000_000_000, season=24)
    estimator: GDN2Estimator = GDN2Estimator(
        "1h", HORIZON, patch_length=4, width=16, heads=2, key_dim=8, value_dim=8, mlp=16, batch_size=8,
        num_batches_per_epoch=3, target_channels=2, channel_names=["heat", "flow"], trainer_kwargs={"max_epochs": 1},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("trained")
    estimator.train(source.entries("multivariate")).serialize(folder)
    return folder, table


@pytest.fixture
def here(at_home: None, trained: tuple[Path, pl.DataFrame]) -> None:
    """The predictor as `p` and the table as `tiny.csv`, in the empty folder that is worked in."""
    assert at_home is None
    Path("p").symlink_to(trained[0])
    trained[1].write_csv("tiny.csv")


@pytest.mark.usefixtures("here")
def test_without_delay_the_scores_are_those_of_rolling_windows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*JOB, "--protocol", "rolling", "--output", "r"]) == 0
    assert main([*JOB, "--protocol", "prequential", "--output", "o"]) == 0
    keys = ["model", "channel", "stream", "window"]
    found = [_windows(f"{name}/windows.parquet").sort(keys) for name in ("r", "o")]
    assert found[0].height == 4 * 2 * 2 * 5
    assert found[0].select(keys).equals(found[1].select(keys))
    for figure in ("CRPS", "MASE", "coverage"):
        np.testing.assert_allclose(*(one[figure].to_numpy() for one in found), rtol=2e-4, atol=1e-9)
    (ours,) = [row for row in read(Path("o/rows.jsonl")) if row.what == OURS]
    assert ours.values["leaks"] == 0
    assert (ours.shape["delay"], ours.shape["horizon"], ours.shape["streams"]) == (0, HORIZON, 2)
    said = capsys.readouterr().out
    assert "No leak found: the forecasts of a at its first, middle and last origin" in said
    page = Path("o/report.md").read_text()
    assert page.startswith("# Score, then observe: tiny")
    assert "figures/running.png" in page
    assert "data:image/png;base64" in Path("o/report.html").read_text()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{Path('runs/mlflow.db').resolve()}")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = [one for one in client.search_runs(ids) if one.info.run_name == "backtest prequential tiny"]
    assert run.data.params["protocol"] == "prequential"
    assert run.data.metrics[f"crps_relative/{NAIVE}"] == 1.0
    assert run.data.metrics["leaks"] == 0
    assert {Path(one.path).name for one in client.list_artifacts(run.info.run_id, "backtest")} == {
        "report.html", "report.md", "rows.jsonl", "windows.parquet"}  # fmt: skip


@pytest.mark.usefixtures("here")
def test_late_values_are_looked_over_and_judged_behind() -> None:
    late = [*JOB, "--protocol", "prequential", "--delay", "2", "--leaks", "false"]
    assert main([*late, "--output", "o"]) == 0
    found = {row.what: row for row in read(Path("o/rows.jsonl"))}
    assert len(found) == 4
    assert all((row.shape["delay"], row.shape["horizon"]) == (2, HORIZON - 2) for row in found.values())
    assert "leaks" not in {name for row in found.values() for name, value in row.values.items() if value is not None}
    assert all(np.isfinite(row.values["crps"]) for row in found.values())
    ends = pl.read_parquet("o/windows.parquet").filter(pl.col("model") == NAIVE)["start"].max()
    assert ends == datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=HOURS - HORIZON + 2)
    assert main([*late, "--horizon", "1", "--baselines", "false", "--output", "h"]) == 0
    (ours,) = read(Path("h/rows.jsonl"))
    assert (ours.what, ours.shape["horizon"]) == (OURS, 1)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--protocol", "prequential", "--delay", "6"], "delay, horizon: must be at most the predictor's 6 steps"),
        (["--protocol", "prequential", "--horizon", "5", "--delay", "2"], "got 2 and 5"),
        (["--protocol", "prequential", "--delay", "-1"], "delay: must be at least 0 steps, got -1"),
        (["--protocol", "prequential", "--horizon", "0"], "horizon: must be at least 1"),
        (["--protocol", "prequential", "--windows", "90"], "do not fit into the 260 rows of a"),
        (["--delay", "1"], "delay, horizon: are of --protocol prequential alone"),
    ],
)
def test_what_does_not_fit_is_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*JOB, *options, "--output", "o"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("o").exists()


def test_a_command_without_a_predictor_names_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backtest", "--protocol", "prequential", "--data", "nyc"]) == 2
    assert "predictor: is needed by prequential windows" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_forecasts_that_move_with_what_has_not_arrived_are_named_on_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Restless:
        """Forecasts another number every time, as a model that looks ahead does when the future was changed."""

        def observe(self, stream: str, time: int, values: np.ndarray) -> None:
            """Remember nothing."""

        def forecast(self, stream: str, horizon: int) -> Recalled:
            calls.append(horizon)
            return Recalled(np.full((horizon, 2, 9), float(len(calls))))

    calls: list[int] = []
    monkeypatch.setattr(prequential, "learner", lambda *_: Restless())
    assert main([*JOB, "--protocol", "prequential", "--baselines", "false", "--output", "o"]) == 0
    assert "Leak: forecasts of a at the origins" in capsys.readouterr().out
    assert "Leak: forecasts of a at the origins" in Path("o/report.md").read_text()
    (row,) = read(Path("o/rows.jsonl"))
    assert row.values["leaks"] == 3


def test_the_running_score_ends_with_the_score_of_all_windows() -> None:
    source = _walk()
    job = Backtest(predictor=Path("p"), data="d", protocol="prequential", windows=7, distance=2, delay=1)
    streams = prequential.streams_of(source, job, 3)
    assert [one.plan.first for one in streams] == [59 - 3 - 12, 44 - 3 - 12]
    naive = prequential.baselines(source, job, 3, (0.1, 0.5, 0.9))[NAIVE]
    made: Learner = naive("a")
    assert isinstance(made, Recall)
    parts = [
        prequential.prequential(naive(one.name), one.values, one.plan, channels=["x"], season=5,
                                levels=(0.1, 0.5, 0.9), stream=one.name)
        for one in streams
    ]  # fmt: skip
    when, score = prequential.running(parts)
    whole: Score = pooled(prequential.together([one.judged for one in parts]))
    assert len(when) == 14
    assert (np.diff(when) >= np.timedelta64(0)).all()
    assert score[-1] == pytest.approx(whole.crps, rel=1e-12)
    last = pd.Timestamp("2024-01-01") + pd.Timedelta(hours=60 + 1)
    assert when[-1] == last.to_datetime64(), "the newest value has arrived one step after the end of its own"


def _walk() -> Source:
    rng = np.random.default_rng(3)
    parts = []
    for name, length in (("a", 60), ("b", 45)):
        when = [datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=hour) for hour in range(length)]
        parts.append(pl.DataFrame({"stream": name, "time": when, "x": 10 + rng.normal(size=length).cumsum()}))
    frame = pl.concat(parts).with_columns(pl.col("time").dt.cast_time_unit("ns").dt.replace_time_zone("UTC"))
    return Source(name="walk", origin="here", frame=frame, period=3_600_000_000_000, season=5)


def _windows(path: str) -> pl.DataFrame:
    """Windows of series called stream/channel and of streams with channels, in one form."""
    found = pl.read_parquet(path)
    return found.with_columns(
        pl.when(pl.col("channel") == "target").then(pl.col("item_id").str.split("/").list.last())
        .otherwise(pl.col("channel")).alias("channel"),
        pl.col("item_id").str.split("/").list.first().alias("stream"),
    ).drop("item_id")  # fmt: skip
