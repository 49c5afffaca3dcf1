"""Recording runs, and sending them to a local MLflow store: ends, crashes, refusals."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties warn when they are imported
    from mlflow import MlflowClient
    from mlflow.entities import Run as Entity

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.pipelines import drain as drain_module
from tsgdn2.pipelines.drain import drain
from tsgdn2.pipelines.runs import Run, sync
from tsgdn2.pipelines.spool import ServerDownError, TrackingError
from tsgdn2.pipelines.tracking import bounded, default_tracking_uri, shown

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow in SQLAlchemy


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


def test_a_job_that_fails_is_failed_with_its_exception_and_the_exception_goes_on(root: Path) -> None:
    def job() -> None:
        with Run.start("weather", "train", root=root) as run:
            run.metrics({"loss": 1.0})
            run.metrics({"loss": 1 / 0})

    with pytest.raises(ZeroDivisionError):
        job()
    train = runs(default_tracking_uri(root))["train"]
    assert train.info.status == "FAILED"
    assert train.data.tags["tsgdn2.exception"] == "ZeroDivisionError: division by zero"
    assert train.data.metrics == {"loss": 1.0}
    assert artifacts(default_tracking_uri(root), train) == ["traceback.txt"]


def test_draining_a_run_that_is_still_written_sends_whole_events_and_goes_on_later(root: Path) -> None:
    with Run.start("weather", "train", root=root) as run:
        run.metrics({"loss": 0.0}, step=0)
        first = sync(root)
        assert (first.complete, first.left, first.points, first.errors) == (0, 1, 1, ())
        assert runs(default_tracking_uri(root))["train"].info.status == "RUNNING"
        run.metrics({"loss": 0.5}, step=1)
        assert drain(run.spool, default_tracking_uri(root)).points == 1
        assert drain(run.spool, default_tracking_uri(root)).events == 0
    assert curve(default_tracking_uri(root), runs(default_tracking_uri(root))["train"]) == [(0, 0.0), (1, 0.5)]


def test_a_run_whose_process_was_killed_is_sent_by_sync_as_killed(root: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from tsgdn2.pipelines.runs import Run\n"
        "run = Run.start('weather', 'train', root=Path(sys.argv[1]))\n"
        "for step in range(50): run.metrics({'loss': step * 0.5}, step=step)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], check=False)
    assert done.returncode == -signal.SIGKILL
    summary = sync(root)
    assert (summary.complete, summary.left, summary.points, summary.errors) == (1, 0, 50, ())
    train = runs(default_tracking_uri(root))["train"]
    assert train.info.status == "KILLED"
    assert curve(default_tracking_uri(root), train) == [(step, step * 0.5) for step in range(50)]


def test_a_spool_that_another_process_is_sending_is_left_to_it(root: Path) -> None:
    run = Run.start("weather", "train", root=root)
    with run.spool.sender_lock(), pytest.raises(TrackingError, match="another process"):
        drain(run.spool, default_tracking_uri(root), timeout=0.05)
    run.close()


def test_one_spoiled_spool_does_not_keep_the_others_back(root: Path) -> None:
    spoiled = Run.start("weather", "spoiled", root=root)
    spoiled.params({"a": 1})
    spoiled.spool.events_path.write_bytes(b"{}\n")
    spoiled.spool.release()
    with contextlib.closing(Run.start("weather", "good", root=root)) as good:
        good._outermost = False
    summary = sync(root)
    assert (summary.complete, summary.left) == (1, 1)
    assert "altered" in summary.errors[0]
    assert set(runs(default_tracking_uri(root))) == {"good"}


def silent_port() -> socket.socket:
    """Accepts connections and never answers: a server that hangs."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def test_a_server_that_is_down_or_hangs_is_found_out_before_mlflow_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("MLflow was called")

    monkeypatch.setattr(drain_module, "connect", never)
    run = Run.start("weather", "train", root=tmp_path, tracking_uri="http://127.0.0.1:9")
    run.metrics({"loss": 1.0})
    before = {path: path.read_bytes() for path in run.spool.path.rglob("*") if path.is_file()}
    with silent_port() as listener:
        for port in (9, listener.getsockname()[1]):
            with pytest.raises(ServerDownError, match=r"nothing is lost: .*tsgdn2 audit sync"):
                drain(run.spool, f"http://127.0.0.1:{port}", timeout=0.2)
    assert {path: path.read_bytes() for path in run.spool.path.rglob("*") if path.is_file()} == before
    run.spool.release()


def test_requests_are_bounded_while_draining_and_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with bounded(2.5):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_names_values_and_settings_that_mlflow_would_refuse_are_refused_when_recorded(tmp_path: Path) -> None:
    run = Run.start("weather", "train", root=tmp_path, tracking_uri="http://127.0.0.1:9")
    run.params({"lr": 1})
    run.params({"lr": 1})
    refused: list[tuple[Callable[[], None], str]] = [
        (lambda: run.params({"lr": 2}), "is '1' already"),
        (lambda: run.params({"long": "x" * 6001}), "log it as an artifact"),
        (lambda: run.metrics({"loss": "high"}), "values are numbers"),  # type: ignore[dict-item]
        (lambda: run.metrics({"a[1]": 1.0, "a(1)": 2.0}), "several names"),
        (lambda: run.artifact(tmp_path / "absent"), "write it first"),
        (lambda: run.text("x", "../up.txt"), "names are"),
        (lambda: run.dataset("d", "", "s"), "give both"),
        (lambda: run.dataset("d", "1", "s", {"a": "float128"}), "types are"),
    ]
    for call, message in refused:
        with pytest.raises(SchemaError, match=message):
            call()
    assert [event.number for event in run.spool.events()] == [0, 1]
    run.spool.release()
    with pytest.raises(ConfigError, match="experiment"):
        Run.start("Default", "train", root=tmp_path)


def test_a_password_in_the_address_is_not_shown() -> None:
    assert shown("https://me:secret@host:5000/x") == "https://host:5000/x"
    assert shown("sqlite:////tmp/a@b/mlflow.db") == "sqlite:////tmp/a@b/mlflow.db"


def test_a_folder_that_can_not_hold_a_spool_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"^runs: .*name another folder"):
        Run.start("e", "n", root=tmp_path / "file")
