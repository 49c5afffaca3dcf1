"""Versions of registered models, as a drain makes and labels them: each once, however often it is tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tsgdn2.pipelines.events import AUDIT_REASONS, AUDIT_STATUS, PENDING, VersionTags

if TYPE_CHECKING:
    from mlflow import MlflowClient


def register(
    client: MlflowClient, run_id: str, model_id: str, source: str, name: str, tags: Mapping[str, str], *, same: str
) -> None:
    """Make a version of a registered model, unless the run has one whose tag `same` is that of `tags`.

    It begins with audit.status "pending".
    """
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'")
    if not any(version.tags.get(same) == tags[same] for version in versions):
        told = {AUDIT_STATUS: PENDING, AUDIT_REASONS: "no audit has been run on it"}
        client.create_model_version(
            name, source, run_id, {**tags, **told}, await_creation_for=0, model_id=model_id
        )  # fmt: skip


def tag_version(client: MlflowClient, payload: VersionTags) -> None:
    """Label a version; one that is gone is left alone, for nobody is left to be told, and the rest shall not wait."""
    from mlflow.exceptions import MlflowException

    for key, value in payload.values.items():
        try:
            client.set_model_version_tag(payload.name, payload.version, key, value)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return
