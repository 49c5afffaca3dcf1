"""What a run can record, and which names and lengths MLflow takes.

Everything is checked here when it is recorded: a server that refuses an event later would stop all that come after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tsgdn2.errors import SchemaError

COLUMN_TYPES = ("boolean", "integer", "long", "float", "double", "string", "binary", "datetime")
NOT_IN_NAMES = re.compile(r"[^/\w.\- :]+", re.ASCII)
LONGEST = {"param": 6000, "tag": 8000}
AUDIT_STATUS = "audit.status"
AUDIT_REASONS = "audit.reasons"
PASSED, FAILED, PENDING = "passed", "failed", "pending"
"""Tag of a registered version that says what its audit found, the tag that says why, and the first one's values."""


@dataclass(frozen=True, kw_only=True)
class Params:
    """Settings of the run, each set once."""

    values: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Labels of the run; a later value replaces an earlier one."""

    values: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Points of several curves at one step."""

    values: Mapping[str, float]
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set that the run read: what it is called, its fingerprint, where it came from."""

    name: str
    digest: str
    source: str
    context: str = "training"
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file or folder under files/<n>/, to be shown in `folder` of the run."""

    file: str
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A saved MLflow model under files/<n>/; registered under `registered_name` when that is given."""

    file: str
    name: str
    registered_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class VersionTags:
    """Labels of a version of a registered model; a later value replaces an earlier one."""

    name: str
    version: str
    values: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class End:
    """The last event: FINISHED, FAILED or KILLED; RUNNING where more will come under the same id."""

    status: str


Payload = Params | Tags | Metrics | Dataset | Artifact | ModelFolder | VersionTags | End
KINDS: dict[str, type[Payload]] = {
    "params": Params,
    "tags": Tags,
    "metrics": Metrics,
    "dataset": Dataset,
    "artifact": Artifact,
    "model": ModelFolder,
    "version": VersionTags,
    "end": End,
}
KIND_NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True, kw_only=True)
class Event:
    """One recorded call: its number, its time in milliseconds since 1970 UTC, and the byte at which its line ends."""

    number: int
    time_ms: int
    payload: Payload
    end_byte: int


def clean_name(argument: str, name: str) -> str:
    """The name as MLflow takes it: what it refuses becomes "_", so Coverage[0.1] is Coverage_0.1.

    Raises:
        SchemaError: Nothing is left of it, or it is longer than 250 characters, or it is a path that leads elsewhere.
    """
    clean = NOT_IN_NAMES.sub("_", name).strip("_/ ")
    if not clean or len(clean) > 250 or any(part in ("", ".", "..") for part in clean.split("/")):
        raise SchemaError(
            f"{argument}: names are 1 to 250 letters, digits or _ - . : / and spaces, got {name!r}; rename it"
        )
    return clean


def clean_keys(argument: str, names: Sequence[str]) -> list[str]:
    """Clean names, still as many as before.

    Raises:
        SchemaError: Two names become the same one.
    """
    clean = [clean_name(argument, str(name)) for name in names]
    if len(set(clean)) < len(clean):
        twice = sorted({name for name in clean if clean.count(name) > 1})
        raise SchemaError(f"{argument}: several names become {twice} once MLflow can take them; rename them")
    return clean


def texts(argument: str, values: Mapping[str, object]) -> dict[str, str]:
    """Values as text under clean names.

    Raises:
        SchemaError: A name or the length of a value is not what MLflow takes.
    """
    longest = LONGEST[argument]
    for name, value in values.items():
        if len(str(value)) > longest:
            raise SchemaError(
                f"{argument}: values have at most {longest} characters, {name!r} has {len(str(value))}; "
                "log it as an artifact"
            )
    return dict(zip(clean_keys(argument, list(values)), map(str, values.values()), strict=True))
