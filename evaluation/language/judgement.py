"""What an answer to a needle is worth: whether there is one, whether it is right, and both by depth.

    answer        the first thing of the value's form, a number or a uuid, in the first line that is not empty
    answered      there is one, and the room of the answer did not end in the middle of it
    correct       it is the value

RULER asks whether the value is anywhere in the text; here the first thing of its form must be it, because whoever lists
numbers has not answered. So accuracy here is never above RULER's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.language.needle import TASKS, Needle

_FORMS: Final = {
    "number": re.compile(r"[0-9]+"),
    "uuid": re.compile(r"[0-9a-f]{4,}(?:-[0-9a-f]+){4}", re.IGNORECASE),
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one sample."""

    needle: Needle
    text: str
    answered: bool
    """It holds something of the value's form at all: a number, a uuid."""
    correct: bool
    """The first such thing is the value."""


def judge(needle: Needle, text: str, *, cut: bool = False) -> Answer:
    """Judge a model's text. cut: its room was spent, so a value at the end of it is none."""
    found = finished(needle, text) if cut else _FORMS[TASKS[needle.task].value].search(_line(text))
    return Answer(needle=needle, text=_line(text), answered=found is not None,
                  correct=found is not None and found[0].lower() == needle.answer)  # fmt: skip


def finished(needle: Needle, text: str) -> re.Match[str] | None:
    """The answer in a text, if more text can not change it: something stands behind it, or the end of its line."""
    line = _line(text)
    found = _FORMS[TASKS[needle.task].value].search(line)
    whole = len(line) < len(text.lstrip())
    return found if found is not None and (whole or found.end() < len(line)) else None


def line_ended(text: str) -> bool:
    """Whether the first line that is not empty is over."""
    return "\n" in text.lstrip()


def _line(text: str) -> str:
    return text.lstrip().split("\n")[0]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Answers of one task at one length."""

    task: str
    length: int
    samples: int
    answered: int
    correct: int
    by_depth: tuple[tuple[float, int, int], ...]
    """(upper edge of depth, samples, correct) for the four quarters."""

    @property
    def answer_rate(self) -> float:
        """Share of samples with an answer."""
        return self.answered / self.samples

    @property
    def accuracy(self) -> float:
        """Share of samples with the right answer."""
        return self.correct / self.samples

    @property
    def accuracy_given_answer(self) -> float | None:
        """Share of answers that are right; None where there is none."""
        return self.correct / self.answered if self.answered else None


def tally(answers: Sequence[Answer]) -> Tally:
    """Sum up the answers of one task and length."""
    if not answers:
        raise ConfigError("answers: must hold at least one, got none")
    first = answers[0].needle
    quarter = [min(3, int(4 * one.needle.depth)) for one in answers]
    by_depth = tuple(
        ((n + 1) / 4, quarter.count(n), sum(one.correct for one, q in zip(answers, quarter, strict=True) if q == n))
        for n in range(4)
    )
    answered, correct = sum(one.answered for one in answers), sum(one.correct for one in answers)
    return Tally(task=first.task, length=first.length, samples=len(answers), by_depth=by_depth, answered=answered,
                 correct=correct)  # fmt: skip
