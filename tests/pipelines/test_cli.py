"""The command line: help is fast and light, options come from flags and files, mistakes are one line."""

from __future__ import annotations

import datetime
import inspect
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
import pytest

from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.jobs import JOBS, ModelOptions, runner

pytestmark = pytest.mark.usefixtures("at_home")
SMALL = ["--model.epochs=1", "--model.batches=3", "--model.width=16", "--model.mlp=16", "--model.batch_size=8"]
HEAVY = ("torch", "gluonts", "mlflow", "lightning", "polars", "matplotlib")


def table(hours: int = 400) -> pl.DataFrame:
    """Two stations, two sensors, a daily cycle, missing rows and missing cells."""
    rng, rows = np.random.default_rng(0), []
    for station in ("a", "b"):
        for hour in range(hours):
            if rng.random() < 0.03:
                continue
            phase = 2 * np.pi * hour / 24
            heat, flow = 10 + 3 * np.sin(phase) + 0.4 * rng.normal(), 5 + 2 * np.cos(phase) + 0.3 * rng.normal()
            when = datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=hour)
            rows.append((when.isoformat(), station, heat, None if rng.random() < 0.1 else flow))
    return pl.DataFrame(rows, schema=["time", "site", "heat", "flow"], orient="row")


def runs_of(name: str) -> list[mlflow.entities.Run]:
    """Runs of one job, from the store in the working folder."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{Path('runs/mlflow.db').resolve()}")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run for run in client.search_runs(ids) if run.info.run_name == name]


def test_help_starts_without_any_heavy_import() -> None:
    program = (
        "import sys, tsgdn2.pipelines.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name.split()[0] in done.stdout for name in JOBS)


def test_a_mistake_is_one_line_on_stderr_and_exit_code_2() -> None:
    command = [sys.executable, "-c", "import sys; from tsgdn2.pipelines.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "audit", "sync", "--runs", "nothing"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("tsgdn2: runs: nothing is no folder")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--data", "x.csv", "--model.epochs", "0"], "epochs: must be at least 1"),
        (["train", "--data", "x.csv", "--hold_out", "-1"], "hold_out: must be at least 0"),
        (["replay", "--predictor", "p", "--data", "x.csv", "--speed", "0"], "speed: must be above 0"),
        (["backtest", "--predictor", "nothing", "--data", "nyc"], "predictor: nothing is no folder"),
        (["train", "--data", "nowhere.csv", "--quiet"], "data: must be a file or one of nyc"),
    ],
)
def test_a_value_out_of_bounds_names_its_option(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_debug_shows_where_a_mistake_was_found() -> None:
    with pytest.raises(ValueError, match="nothing is no folder"):
        main(["--debug", "audit", "sync", "--runs", "nothing"])


@pytest.mark.parametrize("arguments", [["train", "--model.width", "wide", "--data", "x"], ["train"], ["fly"]])
def test_what_is_no_option_is_refused_with_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2


def test_every_job_has_a_runner() -> None:
    assert all(callable(runner(name)) for name in JOBS)


def test_the_options_of_a_model_are_those_of_the_estimator() -> None:
    from tsgdn2 import GDN2Estimator

    theirs = inspect.signature(GDN2Estimator.__init__).parameters
    ours = {name: value for name, value in vars(ModelOptions()).items() if name not in ("epochs", "batches", "seconds")}
    assert ours == {name: theirs[name].default for name in ours}


def test_a_file_without_time_or_numbers_is_refused_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    Path("when.csv").write_text("moment,heat\n2024-01-01,1\n")
    assert main(["train", "--data", "when.csv", "--quiet"]) == 2
    assert "columns.time: when.csv has none of time" in capsys.readouterr().err
    Path("words.csv").write_text("time,heat\n2024-01-01,hot\n")
    assert main(["train", "--data", "words.csv", "--quiet"]) == 2
    assert "columns.channels" in capsys.readouterr().err


def test_train_backtest_replay_and_audit_follow_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    table().write_csv("tiny.csv")
    Path("tiny.yaml").write_text("data: tiny.csv\ncolumns:\n  stream: site\nhold_out: 48\nmodel:\n  width: 32\n")
    assert main(["train", "--config", "tiny.yaml", *SMALL, "--output", "out/t", "--quiet"]) == 0
    (trained,) = runs_of("train tiny")
    assert trained.data.params["model.width"] == "16", "a flag wins over the file"
    assert trained.data.params["hold_out"] == "48"
    assert "val_loss" in trained.data.metrics
    assert trained.inputs.dataset_inputs[0].dataset.name == "tiny"

    data = ["--data", "tiny.csv", "--columns.stream", "site", "--quiet"]
    assert main(["backtest", "--predictor", "out/t", *data, "--windows", "2", "--output", "out/b"]) == 0
    windows = pl.read_parquet("out/b/windows.parquet")
    assert windows.height == 4 * 4 * 2
    (judged,) = runs_of("backtest tiny")
    assert judged.data.metrics["crps_relative/SeasonalNaive"] == 1.0
    assert judged.data.metrics["crps/GDN-2"] > 0

    assert main(["replay", "--predictor", "out/t", *data, "--output", "out/r"]) == 0
    surprises = pl.read_parquet("out/r/surprises.parquet")
    assert surprises.height == table().height
    assert surprises["status"].unique().to_list() == ["new"]
    levels = pl.read_parquet("out/r/forecasts.parquet").select("0.1", "0.5", "0.9").to_numpy()
    assert (np.diff(levels, axis=1) >= 0).all()

    run = ["audit", "run", "--quiet", "--output"]
    assert main([*run, "out/a", "--predictor", "out/t", "--audit.window", "24", *data[:-1]]) == 0
    heads = pl.read_parquet("out/a/audit/heads.parquet")
    assert heads["state_residual"].max() < 1e-4
    assert heads["ledger_residual"].max() < 1e-4
    ledger = pl.read_parquet("out/a/audit/ledger.parquet")
    closed = ledger["before"] - ledger["decay"] - ledger["erase"] + ledger["write"] + ledger["interaction"]
    np.testing.assert_allclose(closed, ledger["after"], atol=1e-4)
    assert (Path("out/a/audit/figures/heat_map.png").read_bytes())[:4] == b"\x89PNG"
    assert main([*run, "out/s", "--predictor", "out/r/online.safetensors"]) == 0
    assert pl.read_parquet("out/s/audit/online_heads.parquet").height == 4
    (whole,) = (run for run in runs_of("audit tiny"))
    nested = [run for run in runs_of("audit") if run.data.tags.get("mlflow.parentRunId") == whole.info.run_id]
    assert nested[0].data.metrics["state_residual/max"] < 1e-4

    assert main(["replay", "--predictor", "out/r/online.safetensors", *data, "--output", "out/again"]) == 0
    assert pl.read_parquet("out/again/surprises.parquet")["status"].is_in(["late", "duplicate"]).all()
    assert main(["audit", "sync"]) == 0
    assert "0 runs wait" in capsys.readouterr().out
    assert {path.name for path in Path().iterdir()} == {"tiny.csv", "tiny.yaml", "out", "runs"}


def test_a_dead_server_does_not_fail_a_job_and_sync_says_that_it_waits(capsys: pytest.CaptureFixture[str]) -> None:
    table(200).write_parquet("tiny.parquet")
    dead = ["--tracking_uri", "http://127.0.0.1:9"]
    given = ["train", "--data", "tiny.parquet", "--columns.stream", "site", *SMALL, *dead, "--quiet", "--output", "t"]
    assert main(given) == 0
    assert "tsgdn2 audit sync" in capsys.readouterr().err
    assert main(["audit", "sync", "--timeout", "1"]) == 2
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err
    assert main(["audit", "sync", "--tracking_uri", f"sqlite:///{Path('runs/mlflow.db').resolve()}"]) == 0
    assert len(runs_of("train tiny")) == 1
