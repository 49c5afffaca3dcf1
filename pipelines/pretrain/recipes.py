"""The package's own configurations by their names, for `--config NAME` and for jobs that start from one.

A name counts where no file of that name is there; what a YAML file may say is what the job's dataclass has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.pretrain.jobs import Pretrain

FOLDER: Final = Path(__file__).resolve().parent / "configs"


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
    """The job of a configuration, read as the command reads it; changes: fields of Pretrain in place of the file's.

    Raises:
        ConfigError: There is no such configuration, or it has an unknown field, a wrong value, or lacks one.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    path = located(name)
    own = ArgumentParser(exit_on_error=False)
    own.add_argument("--config", action="config")
    own.add_class_arguments(Pretrain)
    try:
        made = own.instantiate(own.parse_args([f"--config={path}", f"--data={data}"]))
    except (ArgumentError, TypeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"config: {path} must map `model` and other options of a training to their fields ({error}); mend it, "
            "`tsgdn2 pretrain run --help` lists them"
        ) from error
    values = {field.name: made[field.name] for field in fields(Pretrain)}
    return Pretrain(**(values | changes))
