"""A fresh MLflow store for every test of this room, and a working folder that must stay empty."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tsgdn2.pipelines.tracking import bounded, connect, default_tracking_uri


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite store with its tables and nothing else: making them takes seconds."""
    home = tmp_path_factory.mktemp("empty")
    with bounded(5):
        connect(default_tracking_uri(home))
    return home / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A root with a fresh store; afterwards the working folder and the home store of MLflow must be untouched."""
    place, elsewhere = tmp_path / "root", tmp_path / "cwd"
    place.mkdir()
    elsewhere.mkdir()
    shutil.copy(empty_store, place / "mlflow.db")
    monkeypatch.chdir(elsewhere)
    yield place
    assert list(elsewhere.iterdir()) == []


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder; the command sets warning filters for its own process, which a test must not keep."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")
    with warnings.catch_warnings():
        # MLflow's own use of SQLAlchemy and pydantic, and GluonTS's of pandas.
        warnings.filterwarnings("ignore", module=r"(mlflow|sqlalchemy|gluonts|alembic|pydantic)\..*")
        yield
