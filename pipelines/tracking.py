"""The tracking store: where it is, whether it answers, and how long it may take.

MLflow waits 120 s a request and retries 7 times; here a short probe comes first, and every request is bounded.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from tsgdn2.pipelines.spool import ServerDownError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_IN_PROCESS = threading.RLock()  # the limits below are environment variables, so one drain at a time in a process


def default_tracking_uri(root: Path) -> str:
    """The local store: a sqlite file under `root`, with its artifacts in a folder beside it."""
    return f"sqlite:///{(root / 'mlflow.db').resolve().as_posix()}"


def shown(tracking_uri: str) -> str:
    """The URI without a password, fit for a message."""
    parts = urllib.parse.urlsplit(tracking_uri)
    return (
        tracking_uri.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1) if "@" in parts.netloc else tracking_uri
    )


def probe(tracking_uri: str, timeout: float) -> None:
    """Ask an HTTP server whether it is well, for at most about `timeout` seconds; other stores are not asked.

    Raises:
        ServerDownError: Nobody answers, or a gateway says that nobody is behind it.
    """
    if not tracking_uri.startswith(("http://", "https://")):
        return
    parts = urllib.parse.urlsplit(tracking_uri)
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/") + "/health").geturl()
    try:
        with urllib.request.urlopen(plain, timeout=timeout):
            return
    except urllib.error.HTTPError as error:
        code = error.code
        error.close()
        if code < 500:  # somebody is there; MLflow will say what it wants
            return
        reason: object = f"HTTP {code}"
    except OSError as error:
        reason = getattr(error, "reason", error)
    raise ServerDownError(
        f"tracking_uri: no answer from {shown(tracking_uri)} within {timeout:g} s ({reason}); "
        "nothing was sent and nothing is lost: start the server, then run `tsgdn2 audit sync`"
    )


@contextmanager
def settings(wanted: dict[str, str]) -> Iterator[None]:
    """Environment variables and a quiet MLflow log for a while: MLflow reads its limits from nowhere else."""
    log = logging.getLogger("mlflow")
    with _IN_PROCESS, warnings.catch_warnings():
        # MLflow's own use of SQLAlchemy; nothing that a reader of our output could mend
        warnings.filterwarnings("ignore", message="The ``noload`` loader strategy is deprecated")
        before, level = {name: os.environ.get(name) for name in wanted}, log.level
        os.environ.update(wanted)
        log.setLevel(logging.WARNING)
        try:
            yield
        finally:
            log.setLevel(level)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def bounded(timeout: float) -> AbstractContextManager[None]:
    """Bound each HTTP request of MLflow to `timeout` seconds and one retry (its own: 120 s, and 7 retries)."""
    return settings(
        {
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, math.ceil(timeout))),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
            "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
            "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
        }
    )


def silent() -> AbstractContextManager[None]:
    """Keep MLflow's progress bars and notices off the screen."""
    return settings({"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"})


def artifact_home(tracking_uri: str) -> str | None:
    """Where artifacts go when no server decides: a folder beside the sqlite file (MLflow's own default is the cwd)."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return (Path(tracking_uri.removeprefix("sqlite:///")).resolve().parent / "artifacts").as_uri()


def connect(tracking_uri: str) -> MlflowClient:
    """An MLflow client of this store and no other, whatever the process has set; makes a new sqlite store first."""
    import mlflow
    from mlflow.store.db import utils as store

    if hasattr(store, "MAX_RETRY_COUNT"):  # ten tries with doubling waits would hold a job's end for minutes
        store.MAX_RETRY_COUNT = 2
    if not tracking_uri.startswith("sqlite:///"):
        return mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    database = Path(tracking_uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(f"{database.name}.lock")):  # two first drains would both create the tables
        return mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
