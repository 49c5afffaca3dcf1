"""Asking a model: answers are what generate() gives, whatever the window, side by side or alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.language.needle import Haystack, needles
from tsgdn2.evaluation.language.retrieval import answers, ask
from tsgdn2.language.generation import generate
from tsgdn2.language.model import LanguageModel

Tiny = Callable[..., LanguageModel]
WORDS = [f"{a}{b}word" for a in "bcdfgh" for b in ("ab", "el", "ip", "on", "ut", "ar", "es", "il", "og", "um")]


class Bytes:
    """A byte is a token."""

    end_of_document = 256

    def encode(self, text: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(one for one in ids if one < 256).decode(errors="replace")


@pytest.mark.parametrize("window", [3, 1000])
def test_answers_are_those_of_generate(tiny: Tiny, window: int) -> None:
    model = tiny(attention_every=2, attention_window=6, attention_heads=2)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 256, size) for size in (9, 1, 14)]
    rooms = [12, 5, 8]
    made = answers(model, prompts, rooms=rooms, end=256, window=window)
    for prompt, room, own in zip(prompts, rooms, made, strict=True):
        (expected,) = generate(model, [torch.from_numpy(prompt)], tokens=room, stop=(256,))
        assert own == [one for one in expected if one != 256]


def test_an_answer_ends_where_it_is_told_to(tiny: Tiny) -> None:
    model, prompts = tiny(), [np.array([3, 4]), np.array([7])]
    (first, second) = answers(model, prompts, rooms=[9, 0], end=256, halted=lambda row, ids: len(ids) == 4)
    assert (len(first), second) == (4, [])
    with pytest.raises(ConfigError, match="a prompt must hold at least one token"):
        answers(model, [np.zeros(0, np.int64)], rooms=[1], end=256)


def test_a_model_that_counts_is_judged_sample_by_sample(tiny: Tiny) -> None:
    model = tiny()
    haystack = Haystack(" ".join(f"The {word} is here." for word in WORDS))
    made = needles("s-niah-2", 700, haystack, Bytes(), samples=3)
    told: list[int] = []
    found = list(ask(model, made, Bytes(), window=100, tick=told.append))
    assert [one.needle.number for one in found] == [0, 1, 2]
    assert sum(told) == 3
    assert not any(one.correct for one in found)
