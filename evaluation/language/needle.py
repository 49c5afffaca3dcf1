"""Needles in a haystack: the retrieval tasks S-NIAH-1, 2, 3 and MK-NIAH-1, made from local text at any length.

    prompt    introduction, haystack with needles in it, question, the answer's beginning
    needle    One of the special magic numbers for KEY is: VALUE.
    depth     share of the haystack that stands before the needle, 0 .. 1; even over the samples, then shuffled

| task | haystack | value | needles |
|---|---|---|---|
| s-niah-1 | one sentence group again and again | number | 1 |
| s-niah-2 | running local text | number | 1 |
| s-niah-3 | running local text | uuid | 1 |
| mk-niah-1 | running local text | number | 4 keys, one is asked |

The form is that of RULER's public description (arXiv 2404.06654); its essays are replaced by whatever text is given, so
figures compare models on the same text and not with published tables. The longest haystack is chosen for which the
prompt and the answer fit into `length` tokens of the tokenizer. A sample is a function of (task, length, seed, number)
and of the text. Keys are two words of the text; a key or value that the haystack holds already is drawn again.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tsgdn2.errors import ConfigError, DataError

Ints = NDArray[np.int64]

NOISE: Final = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_INTRODUCTION = (
    "Some special magic {plural} are hidden within the following text. Make sure to memorize them. "
    "I will quiz you about the {plural} afterwards.\n"
)
_NEEDLE = "One of the special magic {plural} for {key} is: {value}."
_QUESTION = (
    "\nWhat is the special magic {kind} for {key} mentioned in the provided text? "
    "The special magic {kind} for {key} mentioned in the provided text is"
)
_FORMS: Final = {
    "number": re.compile(r"\d+"),
    "uuid": re.compile(r"[0-9a-f]{4,}(?:-[0-9a-f]+){4}", re.IGNORECASE),
}


class Tokenizer(Protocol):
    """What the tasks need of a tokenizer."""

    def encode(self, text: str) -> Ints:
        """Text -> ids [n]."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One task of the table."""

    value: str
    """number or uuid."""
    noise: bool
    """The haystack is NOISE again and again."""
    needles: int


TASKS: Final = {
    "s-niah-1": Kind(value="number", noise=True, needles=1),
    "s-niah-2": Kind(value="number", noise=False, needles=1),
    "s-niah-3": Kind(value="uuid", noise=False, needles=1),
    "mk-niah-1": Kind(value="number", noise=False, needles=4),
}


@dataclass(frozen=True, kw_only=True)
class Needle:
    """One sample."""

    task: str
    length: int
    """Tokens that the prompt and the answer may take together."""
    number: int
    prompt: str
    tokens: Ints
    """The prompt's ids [n]."""
    answer: str
    room: int
    """Tokens that an answer may take."""
    key: str
    depth: float
    """Where the needle that is asked for stands."""


class Haystack:
    """Local text cut into sentences, and its words: where haystacks and keys come from."""

    def __init__(self, text: str) -> None:
        """text: a hundred words or more; DataError for less."""
        self.sentences = [" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", text) if part.strip()]
        self.words = sorted({word.lower() for word in re.findall(r"\b[A-Za-z]{4,10}\b", text)})
        if not self.sentences or len(self.words) < 50:
            raise DataError(f"text: must hold at least 50 different words of 4 to 10 letters, got {len(self.words)}")

    def running(self, first: int, count: int) -> list[str]:
        """`count` sentences from number `first` on, from the beginning again behind the last one."""
        return [self.sentences[(first + n) % len(self.sentences)] for n in range(count)]


def needles(
    task: str, length: int, haystack: Haystack, tokenizer: Tokenizer, *, samples: int, seed: int = 0
) -> list[Needle]:
    """Samples 0 .. samples - 1 of a task; ConfigError for an unknown task or a length too short for its question."""
    if task not in TASKS:
        raise ConfigError(f"task: must be one of {', '.join(TASKS)}, got {task!r}")
    if samples < 1:
        raise ConfigError(f"samples: must be at least 1, got {samples}")
    name = zlib.crc32(task.encode())
    depths = np.random.default_rng([seed, length, name]).permutation(np.linspace(0.0, 1.0, samples))
    return [
        _sample(task, length, haystack, tokenizer, number, float(depths[number]),
                np.random.default_rng([seed, length, name, number]))
        for number in range(samples)
    ]  # fmt: skip


def _sample(
    task: str, length: int, haystack: Haystack, tokenizer: Tokenizer, number: int, depth: float,
    rng: np.random.Generator,
) -> Needle:  # fmt: skip
    kind = TASKS[task]
    first = int(rng.integers(len(haystack.sentences)))
    depths = [depth, *rng.random(kind.needles - 1).tolist()]
    keys, values = _pairs(kind, haystack, rng)
    room = max(len(tokenizer.encode(f" {values[0]}.")) + 4, 12)

    def prompt(count: int) -> str:
        hay = [NOISE] * count if kind.noise else haystack.running(first, count)
        return _prompt(kind, hay, keys, values, depths)

    def fits(count: int) -> bool:
        return len(tokenizer.encode(prompt(count))) + room <= length

    if not fits(0):
        short = len(tokenizer.encode(prompt(0))) + room
        raise ConfigError(f"length: {task} needs at least {short} tokens of this tokenizer, got {length}")
    count = _largest(fits)
    hay = "" if kind.noise else " ".join(haystack.running(first, count))
    while any(part in hay for part in (*keys, *values)):
        keys, values = _pairs(kind, haystack, rng)
        while not fits(count):  # other words may take more tokens
            count -= 1
    text = prompt(count)
    return Needle(task=task, length=length, number=number, prompt=text, tokens=tokenizer.encode(text),
                  answer=values[0], room=room, key=keys[0], depth=depth)  # fmt: skip


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest count that fits, by doubling and halving; a count is monotone but for a token or two."""
    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _prompt(kind: Kind, hay: Sequence[str], keys: Sequence[str], values: Sequence[str], depths: Sequence[float]) -> str:
    plural = f"{kind.value}s"
    placed = sorted((round(depth * len(hay)), n) for n, depth in enumerate(depths))
    parts: list[str] = []
    before = 0
    for place, n in placed:
        parts += [*hay[before:place], _NEEDLE.format(plural=plural, key=keys[n], value=values[n])]
        before = place
    parts += hay[before:]
    question = _QUESTION.format(kind=kind.value, key=keys[0])
    return _INTRODUCTION.format(plural=plural) + " ".join(parts) + question


def _pairs(kind: Kind, haystack: Haystack, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Different keys, and different values."""
    keys: list[str] = []
    values: list[str] = []
    while len(keys) < kind.needles:
        key = "-".join(haystack.words[n] for n in rng.choice(len(haystack.words), 2, replace=False))
        value = str(rng.integers(1_000_000, 10_000_000)) if kind.value == "number" else _uuid(rng)
        if key not in keys and value not in values:
            keys.append(key)
            values.append(value)
    return keys, values


def _uuid(rng: np.random.Generator) -> str:
    """A random one, version 4."""
    digits = rng.bytes(16).hex()
    variant = "89ab"[int(digits[16], 16) % 4]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one sample."""

    needle: Needle
    text: str
    answered: bool
    """It holds something of the value's form at all: a number, a uuid."""
    correct: bool
    """The first such thing is the value."""


def judge(needle: Needle, text: str) -> Answer:
    """Judge a model's text."""
    found = _FORMS[TASKS[needle.task].value].search(text)
    return Answer(needle=needle, text=text, answered=found is not None,
                  correct=found is not None and found[0].lower() == needle.answer)  # fmt: skip


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
