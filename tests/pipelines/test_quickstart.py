"""The quickstart from end to end, in its small form: every file, the run, and nothing where it should not be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import polars as pl
import pytest

PROGRAM = "import sys; from tsgdn2.pipelines.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small quickstart has run; its standard output is in out.txt outside of it."""
    outer = tmp_path_factory.mktemp("quickstart")
    folder = outer / "cwd"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "quickstart", "--budget", "small", "--quiet", "--model.width", "16"],
        cwd=folder, capture_output=True, text=True, timeout=180, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "quiet means quiet"
    (outer / "out.txt").write_text(done.stdout)
    return folder


def test_nothing_is_written_but_the_runs_folder(home: Path) -> None:
    assert [path.name for path in home.iterdir()] == ["runs"]
    assert {path.name for path in (home / "runs").iterdir()} - {"mlflow.db.lock"} == {
        "mlflow.db",
        "artifacts",
        "spool",
        "quickstart",
    }
    assert [path for path in (home / "runs" / "spool").iterdir() if path.is_dir()] == []


def test_one_table_is_printed_with_every_model(home: Path) -> None:
    printed = (home.parent / "out.txt").read_text()
    assert all(name in printed for name in ("SeasonalNaive", "climatology", "ridge on lags", "GDN-2"))
    assert printed.count("┏") == 1
    assert "beaten in" in printed


def test_the_output_folder_holds_the_report_the_predictor_the_state_and_the_audit(home: Path) -> None:
    folder = home / "runs" / "quickstart"
    for name in ("report.html", "report.md", "predictor/weights.safetensors", "online.safetensors", "settings.json",
                 "audit/summary.html", "audit/ledger.parquet", "audit/evictions.parquet"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    for name in ("bands", "calibration", "retention", "heat_map", "channels", "losses"):
        assert (folder / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4


def test_the_page_stands_alone(home: Path) -> None:
    page = (home / "runs" / "quickstart" / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<img") == page.count("data:image/png;base64,")


def test_every_window_of_every_model_is_kept(home: Path) -> None:
    windows = pl.read_parquet(home / "runs" / "quickstart" / "windows.parquet")
    assert windows.group_by("model").len()["len"].unique().to_list() == [3 * 5]


# MLflow's own use of SQLAlchemy.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_the_run_holds_metrics_params_data_model_report_and_the_nested_audit(home: Path) -> None:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home / 'runs' / 'mlflow.db'}")
    (experiment,) = (found for found in client.search_experiments() if found.name == "quickstart")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"quickstart", "audit"}
    run, audit = runs["quickstart"], runs["audit"]
    assert run.info.status == "FINISHED"
    assert run.data.params["model.width"] == "16"
    assert run.data.metrics["streamed_against_batch"] < 1e-4, "streaming equals batch"
    assert {"crps_relative/GDN-2", "coverage/GDN-2", "microseconds_per_observation/GDN-2"} <= set(run.data.metrics)
    assert len(client.get_metric_history(run.info.run_id, "val_loss")) >= 1
    assert run.inputs.dataset_inputs[0].dataset.name == "nyc_weather"
    assert run.outputs.model_outputs
    assert "report/report.html" in {found.path for found in client.list_artifacts(run.info.run_id, "report")}
    assert audit.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert audit.data.metrics["state_residual/max"] < 1e-4
    kept = {found.path for found in client.list_artifacts(audit.info.run_id, "audit")}
    assert {"audit/summary.html", "audit/evictions.parquet", "audit/ledger.parquet"} <= kept
