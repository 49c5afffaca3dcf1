"""Sending a whole job to the real MLflow: to sqlite, and to a server that is killed and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties warn when they are imported
    import mlflow.pyfunc
    from gluonts.model.seasonal_naive import SeasonalNaivePredictor
    from mlflow import MlflowClient
    from mlflow.entities import Run as Entity

from tsgdn2.pipelines.drain import drain
from tsgdn2.pipelines.runs import Run, sync
from tsgdn2.pipelines.spool import TrackingError, spool_paths
from tsgdn2.pipelines.tracking import default_tracking_uri

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow in SQLAlchemy

SENDING = ["create_experiment", "create_run", "log_batch", "log_inputs", "log_artifact", "create_logged_model"]
SENDING += ["log_outputs", "log_model_artifact", "finalize_logged_model", "create_registered_model"]
SENDING += ["create_model_version", "set_terminated"]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predictor")
    SeasonalNaivePredictor(prediction_length=4, season_length=24).serialize(path)
    return path


def example() -> pd.DataFrame:
    times = pd.date_range("2024-01-01", periods=30, freq="h")
    return pd.DataFrame({"item_id": "a", "timestamp": times, "target": np.arange(30.0)})


def client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def runs(uri: str, experiment: str = "weather") -> dict[str, Entity]:
    """Every run of the experiment by name; a name twice is a failure."""
    found = client(uri).get_experiment_by_name(experiment)
    listed = [] if found is None else client(uri).search_runs([found.experiment_id])
    by_name = {run.info.run_name: run for run in listed}
    assert len(by_name) == len(listed)
    return by_name


def curve(uri: str, run: Entity, key: str = "loss") -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client(uri).get_metric_history(run.info.run_id, key))


def artifacts(uri: str, run: Entity, folder: str = "") -> list[str]:
    return [item.path for item in client(uri).list_artifacts(run.info.run_id, folder)]


def write_job(root: Path, uri: str | None, predictor: Path | None = None, points: int = 2300) -> Run:
    """Everything a run can hold, with a nested audit; nothing is sent, the outermost run is left open."""
    run = Run.start("weather", "train", root=root, tracking_uri=uri, tags={"city": "NYC"})
    run.params({f"p{number}": number for number in range(130)})
    for step in range(points):
        run.metrics({"loss": step * 0.5}, step=step)
    run.metrics({f"wide/{number}": float(number) for number in range(1100)})
    run.dataset("nyc", "ab" * 32, "https://example.org/weather.csv", {"temp": "double"})
    if predictor is not None:
        run.model(predictor, example(), registered_name="forecaster")
    with run.child("audit") as audit:
        audit.metrics({"retention[0.1]": 0.25})
        audit.text("<html></html>", "audit/summary.html")
        (root / "ledger").mkdir()
        (root / "ledger" / "evictions.parquet").write_bytes(b"PAR1")
        audit.artifact(root / "ledger", "audit")
    return run


def check_job(uri: str, *, points: int = 2300, model: bool = False) -> None:
    """All of `write_job` is in the store, and once."""
    found = runs(uri)
    assert set(found) == {"train", "audit"}
    train, audit = found["train"], found["audit"]
    assert (train.info.status, audit.info.status) == ("FINISHED", "FINISHED")
    assert audit.data.tags["mlflow.parentRunId"] == train.info.run_id
    assert train.data.tags["city"] == "NYC"
    assert train.data.params == {f"p{number}": str(number) for number in range(130)}
    assert curve(uri, train) == [(step, step * 0.5) for step in range(points)]
    assert sum(key.startswith("wide/") for key in train.data.metrics) == 1100
    (dataset,) = train.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("nyc", "ab" * 18)
    assert "https://example.org/weather.csv" in dataset.dataset.source
    assert audit.data.metrics == {"retention_0.1": 0.25}
    assert artifacts(uri, audit, "audit") == ["audit/ledger", "audit/summary.html"]
    assert artifacts(uri, audit, "audit/ledger") == ["audit/ledger/evictions.parquet"]
    if model:
        (output,) = train.outputs.model_outputs
        assert len(client(uri).search_logged_models([train.info.experiment_id])) == 1
        assert client(uri).get_logged_model(output.model_id).status == "READY"
        (version,) = client(uri).search_model_versions("name = 'forecaster'")
        assert (version.run_id, version.status) == (train.info.run_id, "READY")


@pytest.fixture
def global_uri(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Loading by models:/ has no argument for the store, so these tests set it, and it is put back."""

    def use(uri: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)

    return use


def test_a_job_is_whole_in_the_local_store_and_its_model_loads_and_forecasts(
    root: Path, predictor: Path, global_uri: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    uri = default_tracking_uri(root)
    with write_job(root, None, predictor):
        pass
    check_job(uri, model=True)
    assert list((root / "spool").iterdir()) == []
    assert sorted(path.name for path in root.iterdir() if path.suffix != ".lock") == [
        "artifacts",
        "ledger",
        "mlflow.db",
        "spool",
    ]
    assert capsys.readouterr().err == ""
    global_uri(uri)
    forecast = mlflow.pyfunc.load_model("models:/forecaster/1").predict(example())
    np.testing.assert_array_equal(forecast["0.5"], [6, 7, 8, 9])


class Killed(BaseException):
    """The process ends here: nothing catches it."""


def test_a_drain_killed_after_any_of_its_calls_is_finished_later_and_nothing_is_there_twice(
    root: Path, predictor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_job(root, None, predictor, points=1700)
    run._outermost = False
    run.close()
    uri, calls, wall = default_tracking_uri(root), 0, 0

    def wrapped(name: str) -> Callable[..., object]:
        original = getattr(MlflowClient, name)

        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            result = original(*args, **kwargs)
            calls += 1
            if calls == wall:  # the store has it, and we never hear of it
                raise Killed
            return result

        return call

    for name in SENDING:
        monkeypatch.setattr(MlflowClient, name, wrapped(name))
    died = 0
    while spool_paths(root):
        calls, wall = 0, died + 1  # a model is sent whole or again, so the walls move on
        try:
            assert sync(root).errors == ()
        except Killed:
            died += 1
    monkeypatch.undo()
    assert died >= 10
    check_job(uri, points=1700, model=True)


def test_a_used_up_budget_keeps_what_was_sent_and_the_rest_for_later(root: Path) -> None:
    uri = default_tracking_uri(root)
    run = write_job(root, None)
    with pytest.raises(TrackingError, match="used up"):
        drain(run.spool, uri, budget=0.0)
    run.close()
    check_job(uri)


class Server:
    """A real `mlflow server` on one port and one store, to be killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = f"sqlite:///{self.home / 'mlflow.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1"]
        command += ["--artifacts-destination", str(self.home / "kept"), "--port", str(self.port), "--workers", "1"]
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.home, stdout=log, stderr=log, start_new_session=True, env=self.environment()
            )
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.uri}/health"):
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.1)
                break
        raise AssertionError((self.home / "server.log").read_text())

    @staticmethod
    def environment() -> dict[str, str]:
        return os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, home / "mlflow.db")
    made = Server(home)
    try:
        yield made
    finally:
        made.kill()


def test_nothing_is_lost_or_doubled_when_the_server_is_down_and_dies_in_the_middle(
    server: Server,
    root: Path,
    predictor: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    global_uri: Callable[[str], None],
) -> None:
    with write_job(root, server.uri, predictor):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not answer" in line
    assert "tsgdn2 audit sync" in line
    summary = sync(root, timeout=1)
    assert (summary.complete, summary.left, summary.points, len(summary.errors)) == (0, 2, 0, 1)

    server.start()
    log_batch, batches = MlflowClient.log_batch, 0

    def log_batch_then_die(*args: object, **kwargs: object) -> None:
        nonlocal batches
        log_batch(*args, **kwargs)  # type: ignore[arg-type]
        batches += 1
        if batches == 4:  # two batches of settings, two of points
            server.kill()

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch_then_die)
    summary = sync(root, timeout=2)
    assert (summary.complete, summary.left, len(summary.errors)) == (0, 2, 1)
    assert "no answer" in summary.errors[0]
    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)

    server.start()
    summary = sync(root)
    assert (summary.complete, summary.left, summary.errors) == (2, 0, ())
    check_job(server.uri, model=True)
    summary = sync(root)
    assert (summary.complete, summary.left, summary.points) == (0, 0, 0)
    with Run.start("weather", "next", root=root, tracking_uri=server.uri) as run:
        run.metrics({"loss": float("nan")}, step=0)
        run.metrics({"loss": float("inf")}, step=1)
    assert runs(server.uri)["next"].info.status == "FINISHED"
    assert capsys.readouterr() == ("", "")
    global_uri(server.uri)
    forecast = mlflow.pyfunc.load_model("models:/forecaster/1").predict(example())
    np.testing.assert_array_equal(forecast["0.5"], [6, 7, 8, 9])
    assert not (server.home / "mlruns").exists()
