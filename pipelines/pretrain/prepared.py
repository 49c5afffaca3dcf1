"""What prepare.json says of a prepared folder: its settings, and whether its tokens lost text.

    text_lost     true: a document is not what its tokens decode to; false: all were looked at; null: not known yet

Every document of a loaded tokenizer is decoded again until one is found that differs by more than a space put before
it: an unknown word, letters made small. A code of such tokens is no code of the text, so no bits per byte are stated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tsgdn2.datasets.tokens import write_whole
from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.pretrain.tokenizer import Ids, Tokenizer

SETTINGS: Final = "prepare.json"
TEXT_LOST: Final = "text_lost"


class Loss:
    """Looks for lost text; a loss is written before the tokens of its document, so that no restart forgets it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # A folder from before this question was asked stays without an answer.
        self.known: bool | None = read_settings(path).get(TEXT_LOST, False)

    def look(self, tokenizer: Tokenizer, texts: Sequence[str], made: Sequence[Ids]) -> None:
        """Compare documents with what their tokens decode to, unless the answer is known."""
        if self.known is not None:
            return
        for text, tokens in zip(texts, made, strict=True):
            back = tokenizer.decode(tokens.tolist())
            if back not in (text, f" {text}"):
                self._write(True)
                return

    def finish(self) -> None:
        """All text was looked at."""
        if self.known is None:
            self._write(False)

    def _write(self, lost: bool) -> None:
        self.known = lost
        write_settings(self.path, read_settings(self.path) | {TEXT_LOST: lost})


def loses_text(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether text of a prepared folder was lost on its way to tokens; where nothing says it, what a probe says."""
    known = read_settings(folder / SETTINGS).get(TEXT_LOST)
    return not tokenizer.exact if known is None else bool(known)


def read_settings(path: Path) -> dict[str, Any]:
    """Read prepare.json; empty where there is none, or no whole one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Replace prepare.json; ConfigError where it can not be written."""
    try:
        write_whole(path, (json.dumps(settings, indent=1) + "\n").encode())
    except OSError as error:
        reason = f"{path} can not be written ({error.strerror})"
        raise ConfigError(f"output: {reason}; make room and run the same command again") from error
