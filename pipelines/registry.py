"""Registered versions: what their tag `audit.status` says, and the predictor of one as a local folder.

    pending   registered, and no audit has been run on it
    passed    `tsgdn2 audit run --predictor models:/name/3` found both identities closed and nothing that needs a human
    failed    it found something, or a service that runs the version did; `audit.reasons` says what

A version is kept under `runs` once it is fetched, so that a service starts while MLflow is down; only what needs the
tag does not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.events import AUDIT_REASONS, AUDIT_STATUS, FAILED, PASSED
from tsgdn2.pipelines.predictor_folder import ARGUMENTS
from tsgdn2.pipelines.service_jobs import REGISTERED
from tsgdn2.pipelines.spool import ServerDownError, TrackingError
from tsgdn2.pipelines.tracking import bounded, connect, probe, settings, shown

LONGEST: Final = 2_000
"""Characters of the reasons."""
LIMIT: Final = 1e-3
"""Residual of an identity, relative to what it is of, as for the audit's alerts."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a registered model, and where its predictor lies here."""

    name: str
    version: str
    folder: Path
    status: str
    """The tag; "" where MLflow does not answer or the version has none."""


def version_of(address: str) -> tuple[str, str]:
    """Name and version of models:/name/3. ConfigError for anything else, an alias or a stage for instance."""
    name, _, version = address.removeprefix(REGISTERED).rpartition("/")
    if not address.startswith(REGISTERED) or not name or not version.isascii() or not version.isdigit():
        raise ConfigError(f"model: a registered version is written models:/name/3, got {address!r}")
    return name, version


def verdict(found: Mapping[str, float], errors: Sequence[str], warnings: int) -> dict[str, str]:
    """The tags for what an audit found.

    found: figures of `audit_report.write_audit`; errors: its alerts that say that something is wrong; warnings: how
    many others there were, which fail nothing.
    """
    reasons = [
        f"{name} is {found[name]:.1e}, above {LIMIT:.0e}"
        for name in ("state_residual/max", "ledger_residual/max")
        if not found.get(name, 0.0) <= LIMIT
    ]
    if "writes" not in found:
        reasons.append("no write was followed: run the audit over data")
    reasons += errors[:10]
    said = "; ".join(reasons) or f"{found['writes']:,.0f} writes followed, the books close, {warnings} warnings"
    return {AUDIT_STATUS: FAILED if reasons else PASSED, AUDIT_REASONS: said[:LONGEST]}


def fetch(address: str, runs: Path, tracking_uri: str, *, require_audit: bool, timeout: float = 10.0) -> Version:
    """A registered version, fetched unless it is here.

    ConfigError: there is none, or its audit is not passed and has to be. ServerDownError: MLflow does not answer, and
    the tag or the files are needed.
    """
    name, number = version_of(address)
    home = runs / "models" / name / number
    folder = home / "predictor"
    try:
        probe(tracking_uri, timeout)
    except ServerDownError:
        if require_audit or not (folder / ARGUMENTS).is_file():
            raise
        return Version(name=name, version=number, folder=folder, status="")
    from mlflow.exceptions import MlflowException

    try:
        with bounded(timeout):
            client = connect(tracking_uri)
            registered = client.get_model_version(name, number)
            status = str(registered.tags.get(AUDIT_STATUS, ""))
            if require_audit and status != PASSED:
                why = (
                    registered.tags.get(AUDIT_REASONS, "")
                    or f"`tsgdn2 audit run --predictor {address} --data ..` decides it"
                )
                raise ConfigError(
                    f"require_audit: {AUDIT_STATUS} of {address} must be {PASSED!r}, "
                    f"it is {status or 'not set'!r} ({why})"
                )
            home.mkdir(parents=True, exist_ok=True)
            with FileLock(home / ".lock"):
                if not (folder / ARGUMENTS).is_file():
                    _download(str(registered.source), home, tracking_uri)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ConfigError(f"model: {shown(tracking_uri)} has no {address}; `mlflow ui` shows what it has") from None
        raise TrackingError(f"tracking_uri: {shown(tracking_uri)} did not give {address} ({error})") from error
    return Version(name=name, version=number, folder=folder, status=status)


def _download(source: str, home: Path, tracking_uri: str) -> None:
    """Fetch a model's files, and keep its predictor's folder; whole or not at all."""
    import mlflow.artifacts

    draft = home / ".draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    # MLflow looks addresses such as models:/m-.. up in the process's own store.
    own = {"MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    with settings(own):
        mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(draft))
    found = sorted(draft.rglob(ARGUMENTS))
    if not found:
        raise ConfigError(f"model: {source} holds no predictor of tsgdn2; register one with `tsgdn2 train`")
    found[0].parent.rename(home / "predictor")
    (home / "note.json").write_text(json.dumps({"source": source}) + "\n", encoding="utf-8")
    shutil.rmtree(draft, ignore_errors=True)
