"""The package's own configurations by their names, for `--config NAME` and for jobs that start from one.

A name counts where no file of that name is there; what a YAML file may say is what the job's dataclass has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from tsgdn2.errors import ConfigError
from tsgdn2.language.config import LanguageConfig
from tsgdn2.pipelines.pretrain.jobs import Pretrain
from tsgdn2.pipelines.pretrain.options import ClusterOptions, TrainingOptions

FOLDER: Final = Path(__file__).resolve().parent / "configs"
_PARTS: Final = {"model": LanguageConfig, "training": TrainingOptions, "cluster": ClusterOptions}


def names() -> list[str]:
    """Every configuration of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def located(name: str) -> Path:
    """The YAML file of a name or a path; ConfigError lists the names."""
    for path in (Path(name), FOLDER / f"{name}.yaml"):
        if path.is_file():
            return path
    raise ConfigError(f"config: must be a YAML file or one of {', '.join(names())}, got {name!r}")


def named(arguments: Sequence[str]) -> list[str]:
    """Arguments of `tsgdn2 pretrain ..` with the name of a configuration replaced by its file."""
    given = list(arguments)
    if given[:1] != ["pretrain"]:
        return given
    for place, item in enumerate(given):
        if item.startswith("--config="):
            given[place] = f"--config={located(item.removeprefix('--config='))}"
        elif item == "--config" and place + 1 < len(given):
            given[place + 1] = str(located(given[place + 1]))
    return given


def recipe(name: str, data: Path, **changes: object) -> Pretrain:
    """The job of a configuration; changes: fields of Pretrain in place of the file's.

    Raises:
        ConfigError: There is no such configuration, or it has a field that this version does not know.
    """
    import yaml  # type: ignore[import-untyped]

    path = located(name)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {path} is no YAML file ({error}); mend it") from error
    if not isinstance(raw, Mapping) or "model" not in raw:
        raise ConfigError(f"config: {path} must map `model` to the fields of a network, got {type(raw).__name__}")
    _known(path, "", raw, Pretrain)
    values: dict[str, Any] = {"data": data}
    for field, value in raw.items():
        if field not in _PARTS:
            values[field] = Path(value) if field in ("data", "runs", "output") and value is not None else value
            continue
        _known(path, f"{field}.", value, _PARTS[field])
        values[field] = _PARTS[field](**value)
    return Pretrain(**(values | changes))


def _known(path: Path, prefix: str, raw: Mapping[str, object], kind: type) -> None:
    unknown = sorted(set(raw) - {field.name for field in fields(kind)})
    if unknown:
        raise ConfigError(f"config: {path} has unknown fields {[prefix + name for name in unknown]}; "
                          f"allowed are {', '.join(field.name for field in fields(kind))}")  # fmt: skip
