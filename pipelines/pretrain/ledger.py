"""Rows of a job that is done part by part: a part's rows are all in the file or none of them is.

The file is written anew beside itself and renamed for every part, so a kill or a full disk leaves the parts before. One
process writes a file at a time; a job appends a few hundred rows, so writing them again costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tsgdn2.datasets.tokens import write_whole
from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.rows import Row, Value, mend, read


class Ledger:
    """Rows that are there, and those that come."""

    def __init__(self, path: Path) -> None:
        """path: a .jsonl file; what a kill cut off behind its last whole line is removed."""
        self.path = path
        if path.exists():
            mend(path)
        self.rows = read(path) if path.exists() else []

    def part(self, name: str, shape: Mapping[str, Value], make: Callable[[], Sequence[Row]]) -> list[Row]:
        """The rows of a part that has exactly this shape among its own; made, and written together, if missing.

        Errors: those of `make`; ConfigError where the file can not be written.
        """
        known = [one for one in self.rows if one.what == name and shape.items() <= one.shape.items()]
        if known:
            return known
        made = list(make())
        if made:
            self._add(made)
        return made

    def _add(self, made: Sequence[Row]) -> None:
        before = self.path.read_bytes() if self.path.exists() else b""
        lines = "".join(json.dumps(asdict(one), sort_keys=True) + "\n" for one in made)
        try:
            write_whole(self.path, before + lines.encode())
        except OSError as error:
            reason = f"{self.path} can not be written ({error.strerror})"
            raise ConfigError(f"output: {reason}; make room and run the same command again") from error
        self.rows += made
