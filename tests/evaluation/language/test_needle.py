"""Needles: prompts fit their length whatever the tokenizer, hold what the task says, and are judged without mercy."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tsgdn2.errors import ConfigError, DataError
from tsgdn2.evaluation.language.judgement import judge, tally
from tsgdn2.evaluation.language.needle import NOISE, TASKS, Haystack, needles

Ints = NDArray[np.int64]
ANSWER = re.compile(r"magic (?:numbers|uuids) for (\S+) is: (\S+)\.(?=\s|$)")


class Bytes:
    """A byte is a token."""

    end_of_document = 256

    def encode(self, text: str) -> Ints:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)


class Words:
    """A word, a run of spaces or a sign is a token."""

    end_of_document = 0

    def encode(self, text: str) -> Ints:
        return np.array([1 + hash(word) % 999 for word in re.findall(r"\w+|\s+|.", text)], np.int64)


@pytest.fixture(scope="module")
def haystack() -> Haystack:
    """Sources of the standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return Haystack("\n\n".join((folder / name).read_text(encoding="utf-8") for name in ("argparse.py", "ast.py")))


@pytest.mark.parametrize("tokenizer", [Bytes(), Words()], ids=["bytes", "words"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [1024, 4096])
def test_a_prompt_fills_its_length_and_holds_its_needles(
    haystack: Haystack, tokenizer: Bytes | Words, task: str, length: int
) -> None:
    made = needles(task, length, haystack, tokenizer, samples=4, seed=3)
    longest = max(len(tokenizer.encode(f" {one}")) for one in [NOISE, *haystack.sentences])
    assert longest <= 205
    for one in made:
        assert one.room == 128
        assert len(one.tokens) + one.room <= length
        assert len(one.tokens) + one.room + longest > length
        assert one.tokens.tolist() == tokenizer.encode(one.prompt).tolist()
        found = dict(ANSWER.findall(one.prompt))
        assert len(found) == TASKS[task].needles
        assert found[one.key] == one.answer
        assert len(set(found.values())) == len(found)
        assert one.prompt.count(one.answer) == 1
        assert one.prompt.count(one.key) == 3  # the needle and the question, which names it twice
        kind = TASKS[task].value
        assert one.prompt.startswith(f"A special magic {kind} is hidden within the following text.")
        assert one.prompt.endswith(f"for {one.key} mentioned in the provided text is")
        assert (f"{NOISE}\n{NOISE}" in one.prompt) == TASKS[task].noise
        form = r"\d{7}" if TASKS[task].value == "number" else r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-"
        assert re.match(form, one.answer)
        haystacks = [NOISE] if TASKS[task].noise else haystack.sentences
        held = sum(piece in one.prompt for piece in haystacks)
        assert held > 1 or TASKS[task].noise


@pytest.mark.parametrize("text", ["one line of code, " * 800, "\u8a9e" * 9_000], ids=["code", "no spaces"])
def test_long_sentences_are_cut_so_that_prompts_are_full_and_depths_true(haystack: Haystack, text: str) -> None:
    mixed = Haystack(f"{text}\n\n{' '.join(haystack.words)}\n\n{text}")
    made = needles("mk-niah-1", 4096, mixed, Bytes(), samples=9)
    assert all(len(one.tokens) + one.room > 4096 - 3 * 201 for one in made)  # a letter may be three bytes
    assert sorted(one.depth for one in made) == pytest.approx(np.linspace(0, 1, 9), abs=0.1)
    for one in made:
        body = one.prompt.split("\n", 1)[1].rsplit("\n", 1)[0]
        before, after = body.split(re.search(rf"One of the special magic numbers for {one.key} is: \d+\.", body)[0])  # type: ignore[index]
        sizes = [
            len(re.sub(r"One of the special magic numbers for \S+ is: \d+\. ?", "", part)) for part in (before, after)
        ]
        assert one.depth == pytest.approx(sizes[0] / sum(sizes), abs=0.01)


def test_a_key_that_the_text_holds_is_drawn_again_and_a_text_of_all_keys_is_an_error() -> None:
    words = [f"{a}{b}{c}{d}" for a in "bdfg" for b in "aeio" for c in "kl" for d in "ou"][:50]
    held = [f"{one}-{other}" for one in words for other in words if one != other]
    some = Haystack(" ".join(words) + ". " + ". ".join(held[: len(held) // 8]))
    for one in needles("mk-niah-1", 60_000, some, Bytes(), samples=2):
        assert one.prompt.count(one.key) == 3
    every = Haystack(". ".join([" ".join(words), *held]))
    with pytest.raises(DataError, match="holds all of 100 keys"):
        needles("s-niah-2", 60_000, every, Bytes(), samples=1)


def test_words_of_any_script_are_keys() -> None:
    letters = [chr(0x4E00 + n) for n in range(60)]
    haystack = Haystack("\u3002".join("".join(letters[n : n + 5]) for n in range(55)))
    (one,) = needles("s-niah-2", 1024, haystack, Bytes(), samples=1)
    assert set(one.key.replace("-", "")) <= set(letters)


def test_samples_are_a_function_of_their_seed(haystack: Haystack) -> None:
    first, again, other = (needles("mk-niah-1", 1500, haystack, Bytes(), samples=3, seed=seed) for seed in (1, 1, 2))
    assert [one.prompt for one in first] == [one.prompt for one in again]
    assert [one.depth for one in first] == [one.depth for one in again]
    assert not {one.answer for one in first} & {one.answer for one in other}
    assert len({one.answer for one in first}) == 3


def test_depths_are_even_and_are_where_the_needle_stands(haystack: Haystack) -> None:
    for task in ("s-niah-1", "s-niah-2"):
        made = needles(task, 8192, haystack, Bytes(), samples=11)
        assert sorted(one.depth for one in made) == pytest.approx(np.linspace(0, 1, 11), abs=0.02)
        for one in made:
            assert one.prompt.index(one.answer) / len(one.prompt) == pytest.approx(one.depth, abs=0.05)


def test_an_oracle_that_copies_scores_one_and_guesses_score_nothing(haystack: Haystack) -> None:
    rng = np.random.default_rng(0)
    for task, kind in TASKS.items():
        made = needles(task, 2048, haystack, Bytes(), samples=25)
        copied = tally([judge(one, f" {dict(ANSWER.findall(one.prompt))[one.key]}.") for one in made])
        assert (copied.answer_rate, copied.accuracy, copied.accuracy_given_answer) == (1, 1, 1)
        assert sum(count for _, count, _ in copied.by_depth) == sum(right for _, _, right in copied.by_depth) == 25
        guess = str(rng.integers(10**6, 10**7)) if kind.value == "number" else "01234567-89ab-4cde-8f01-23456789abcd"
        guessed = tally([judge(one, f"It is {guess}") for one in made])
        assert (guessed.answer_rate, guessed.accuracy, guessed.accuracy_given_answer) == (1, 0, 0)
        silent = tally([judge(one, "the grass is green") for one in made])
        assert (silent.answer_rate, silent.accuracy, silent.accuracy_given_answer) == (0, 0, None)


def test_the_first_answer_counts_and_a_longer_number_is_another(haystack: Haystack) -> None:
    (one,) = needles("s-niah-2", 2048, haystack, Bytes(), samples=1)
    assert judge(one, f": {one.answer}, not 12").correct
    assert not judge(one, f"12, or {one.answer}").correct
    assert not judge(one, f"{one.answer}0").correct
    (uuid,) = needles("s-niah-3", 2048, haystack, Bytes(), samples=1)
    assert judge(uuid, uuid.answer.upper()).correct
    assert not judge(uuid, uuid.answer[:-1]).correct


def test_a_value_that_the_end_of_the_room_cuts_is_no_answer(haystack: Haystack) -> None:
    (one,) = needles("s-niah-2", 2048, haystack, Bytes(), samples=1)
    assert not judge(one, f" the number {one.answer[0]}", cut=True).answered
    assert not judge(one, f" the number {one.answer}", cut=True).answered
    assert judge(one, f" the number {one.answer}").correct
    assert judge(one, f" the number {one.answer}.", cut=True).correct
    assert judge(one, f"\n the number {one.answer}\n1", cut=True).correct
    assert not judge(one, f"the number\n{one.answer}", cut=False).answered


def test_what_can_not_be_made_is_said(haystack: Haystack) -> None:
    with pytest.raises(ConfigError, match=r"length: s-niah-1 needs at least \d+ tokens of this tokenizer, got 100"):
        needles("s-niah-1", 100, haystack, Bytes(), samples=1)
    with pytest.raises(ConfigError, match=r"task: must be one of s-niah-1, .*, got 's-niah-9'"):
        needles("s-niah-9", 1000, haystack, Bytes(), samples=1)
    with pytest.raises(ConfigError, match="samples"):
        needles("s-niah-1", 1000, haystack, Bytes(), samples=0)
    with pytest.raises(DataError, match="text: must hold at least 50 different words"):
        Haystack("Too short. Much too short.")
    with pytest.raises(ConfigError, match="answers"):
        tally([])
