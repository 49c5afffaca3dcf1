"""Needles in a haystack: the retrieval tasks S-NIAH-1, 2, 3 and MK-NIAH-1, made from local text at any length.

    prompt    introduction, haystack with needles in it, question, the answer's beginning
    needle    One of the special magic numbers for KEY is: VALUE.
    depth     share of the haystack's characters before the needle, 0 .. 1; aimed at evenly, then shuffled

| task | haystack | value | needles |
|---|---|---|---|
| s-niah-1 | one line of sentences again and again | number | 1 |
| s-niah-2 | running local text | number | 1 |
| s-niah-3 | running local text | uuid | 1 |
| mk-niah-1 | running local text | number | 4 keys, one is asked |

The form, the wording and the 128 tokens of an answer are those of RULER's public description (arXiv 2404.06654); its
essays are replaced by whatever text is given, so figures compare models on the same text and not with published tables.
The haystack is cut into pieces of at most 200 characters, and as many are taken as fit into `length` tokens together
with the answer's room: a prompt lacks less than one piece. A sample is a function of (task, length, seed, number) and
of the text. Keys are two words of the text; a key or value that the haystack holds already is drawn again.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tsgdn2.errors import ConfigError, DataError

Ints = NDArray[np.int64]

NOISE: Final = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ROOM: Final = 128
"""Tokens that an answer may take."""
_PIECE: Final = 200
_DRAWS: Final = 100
_INTRODUCTION = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
_NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
_QUESTION = (
    "\nWhat is the special magic {kind} for {key} mentioned in the provided text? "
    "The special magic {kind} for {key} mentioned in the provided text is"
)


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
    """Where the needle that is asked for stands, by the characters of the haystack itself."""


class Haystack:
    """Local text cut into sentences, long ones cut again, and its words: where haystacks and keys come from."""

    def __init__(self, text: str) -> None:
        """text: of any script; DataError for less than fifty different words."""
        parts = re.split(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n\s*\n", text)
        self.sentences = [piece for part in parts for piece in _cut(" ".join(part.split()))]
        self.words = sorted({word.lower() for word in re.findall(r"\b[^\W\d_]{4,10}\b", text)})
        if not self.sentences or len(self.words) < 50:
            raise DataError(f"text: must hold at least 50 different words of 4 to 10 letters, got {len(self.words)}")

    def running(self, first: int, count: int) -> list[str]:
        """`count` sentences from number `first` on, from the beginning again behind the last one."""
        return [self.sentences[(first + n) % len(self.sentences)] for n in range(count)]


def _cut(sentence: str) -> Iterator[str]:
    """Pieces of at most _PIECE characters, at a space where there is one."""
    while len(sentence) > _PIECE:
        space = sentence.rfind(" ", 1, _PIECE + 1)
        end = space if space > 0 else _PIECE
        yield sentence[:end]
        sentence = sentence[end:].lstrip()
    if sentence:
        yield sentence


def needles(
    task: str, length: int, haystack: Haystack, tokenizer: Tokenizer, *, samples: int, seed: int = 0
) -> list[Needle]:
    """Samples 0 .. samples - 1 of a task.

    Errors: ConfigError for an unknown task or a length too short for its question; DataError for a text that holds
    every key that is drawn.
    """
    if task not in TASKS:
        raise ConfigError(f"task: must be one of {', '.join(TASKS)}, got {task!r}")
    if samples < 1:
        raise ConfigError(f"samples: must be at least 1, got {samples}")
    name = zlib.crc32(task.encode())
    depths = np.random.default_rng([seed, length, name]).permutation(np.linspace(0.0, 1.0, samples))
    size = lru_cache(None)(lambda piece: len(tokenizer.encode(f" {piece}")))
    return [
        _sample(task, length, haystack, tokenizer, number, float(depths[number]), size,
                np.random.default_rng([seed, length, name, number]))
        for number in range(samples)
    ]  # fmt: skip


def _sample(
    task: str, length: int, haystack: Haystack, tokenizer: Tokenizer, number: int, depth: float,
    size: Callable[[str], int], rng: np.random.Generator,
) -> Needle:  # fmt: skip
    kind = TASKS[task]
    first = int(rng.integers(len(haystack.sentences)))
    depths = [depth, *rng.random(kind.needles - 1).tolist()]
    for _ in range(_DRAWS):
        keys, values = _pairs(kind, haystack, rng)
        places = [0.0] * len(keys)

        def pieces(start: int, stop: int) -> list[str]:
            return [NOISE] * (stop - start) if kind.noise else haystack.running(first + start, stop - start)

        def prompt(
            count: int, keys: Sequence[str] = keys, values: Sequence[str] = values, places: list[float] = places
        ) -> str:
            text, places[:] = _prompt(kind, pieces(0, count), keys, values, depths)
            return text

        count, tokens = _filled(prompt, pieces, size, tokenizer, length - ROOM)
        if len(tokens) + ROOM > length:
            needed = len(tokens) + ROOM
            raise ConfigError(f"length: {task} needs at least {needed} tokens of this tokenizer, got {length}")
        hay = "" if kind.noise else " ".join(pieces(0, count))
        if not any(part in hay for part in (*keys, *values)):
            text = prompt(count)
            return Needle(task=task, length=length, number=number, prompt=text, tokens=tokens, answer=values[0],
                          room=ROOM, key=keys[0], depth=places[0])  # fmt: skip
    raise DataError(f"text: holds all of {_DRAWS} keys that were drawn from its words; give longer or other text")


def _filled(
    prompt: Callable[[int], str], pieces: Callable[[int, int], Sequence[str]], size: Callable[[str], int],
    tokenizer: Tokenizer, most: int,
) -> tuple[int, Ints]:  # fmt: skip
    """The count of pieces that fills `most` tokens, and the ids; those of no piece where even they are too many.

    Tokens of pieces alone say about how many fit; the prompt as a whole is made into tokens only to make sure, as a
    rule twice.
    """
    low, high, scale = 0, None, 1.0
    kept = tokenizer.encode(prompt(0))
    while True:
        spare, guess = most - len(kept), low
        while high is None or guess + 1 < high:
            (piece,) = pieces(guess, guess + 1)
            spare -= max(1, round(scale * size(piece)))
            if spare < 0:
                break
            guess += 1
        if guess == low:
            return low, kept
        tokens = tokenizer.encode(prompt(guess))
        scale = (len(tokens) - len(kept)) / max(1, sum(map(size, pieces(low, guess))))
        if len(tokens) <= most:
            low, kept = guess, tokens
        else:
            high = guess


def _prompt(
    kind: Kind, hay: Sequence[str], keys: Sequence[str], values: Sequence[str], depths: Sequence[float]
) -> tuple[str, list[float]]:
    """A prompt, and the depth of each needle: that border of pieces which is nearest to the one that is wanted."""
    borders = np.concatenate(([0], np.cumsum([len(piece) + 1 for piece in hay], dtype=np.int64)))
    nearest = [int(np.abs(borders - depth * borders[-1]).argmin()) for depth in depths]
    parts: list[str] = []
    before = 0
    for place, n in sorted((place, n) for n, place in enumerate(nearest)):
        parts += [*hay[before:place], _NEEDLE.format(kind=kind.value, key=keys[n], value=values[n])]
        before = place
    parts += hay[before:]
    body = ("\n" if kind.noise else " ").join(parts)
    text = _INTRODUCTION.format(kind=kind.value) + body + _QUESTION.format(kind=kind.value, key=keys[0])
    return text, [float(borders[place] / max(1, borders[-1])) for place in nearest]


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
