"""The gate: a registered version is pending, an audit passes or fails it, and only what passed is served."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.pipelines.tiny import predictor, written

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.events import PASSED
from tsgdn2.pipelines.jobs import Serve
from tsgdn2.pipelines.live import _opened
from tsgdn2.pipelines.registry import fetch, verdict
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.tracking import default_tracking_uri
from tsgdn2.pipelines.training import record_model

pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture
def folder(at_home: None) -> Path:
    """A predictor's folder."""
    return written(Path("predictor"))


def test_a_version_is_pending_until_an_audit_passes_it_and_then_it_may_be_served(
    folder: Path, empty_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("runs").mkdir()
    shutil.copy(empty_store, "runs/mlflow.db")
    entries = [{"start": pd.Period("2024-01-01", "h"), "target": np.random.default_rng(0).normal(size=(2, 200))}]
    with Run.start("service", "train", root=Path("runs")) as run:
        record_model(run, folder, predictor(), entries, name="tiny")
    uri = default_tracking_uri(Path("runs"))
    job = Serve(model="models:/tiny/1", require_audit=True)
    with pytest.raises(
        ConfigError, match=r"audit.status of models:/tiny/1 must be 'passed', it is 'pending' \(no audit"
    ):
        _opened(job, [])
    assert fetch("models:/tiny/1", Path("runs"), uri, require_audit=False).status == "pending"
    hours = pd.date_range("2024-01-01", periods=200, freq="h")
    target = entries[0]["target"]
    pd.DataFrame({"time": hours, "x": target[0], "y": target[1]}).to_csv("data.csv", index=False)  # type: ignore[index]
    capsys.readouterr()
    arguments = ["audit", "run", "--predictor", "models:/tiny/1", "--data", "data.csv", "--quiet"]
    assert main([*arguments, "--output", "audited", "--experiment", "service"]) == 0
    assert "writes followed, the books close" in capsys.readouterr().out
    opened = _opened(job, [])
    assert opened.version == ("tiny", "1")
    served = opened.servable.fresh().forecaster.state_dict()
    assert all(torch.equal(tensor, served[name]) for name, tensor in predictor().forecaster.state_dict().items())
    assert fetch("models:/tiny/1", Path("runs"), uri, require_audit=True).status == PASSED
    with pytest.raises(ConfigError, match="has no models:/tiny/7"):
        fetch("models:/tiny/7", Path("runs"), uri, require_audit=False)
    down = "http://127.0.0.1:9"
    assert fetch("models:/tiny/1", Path("runs"), down, require_audit=False).status == ""
    with pytest.raises(ValueError, match="no answer"):
        fetch("models:/tiny/1", Path("runs"), down, require_audit=True, timeout=0.2)


def test_an_audit_fails_where_its_books_do_not_close_or_it_followed_nothing() -> None:
    good = {"writes": 10.0, "state_residual/max": 1e-7, "ledger_residual/max": 1e-7}
    assert verdict(good, [], 3) == {"audit.status": "passed", "audit.reasons": "10 writes followed, the books close, "
                                    "3 warnings"}  # fmt: skip
    for found, errors in ((good | {"state_residual/max": np.nan}, []), (good, ["s/x: non_finite"]), ({}, [])):
        assert verdict(found, errors, 0)["audit.status"] == "failed"
