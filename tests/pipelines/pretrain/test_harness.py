"""The adapter to lm-evaluation-harness: likelihoods are the model's, answers are those of generate()."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.language.needle import Needle
from tsgdn2.evaluation.language.perplexity import score
from tsgdn2.evaluation.language.retrieval import ask
from tsgdn2.language import archive
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.generation import generate
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.harness import HarnessModel
from tsgdn2.pipelines.pretrain.tokenizer import ByteTokenizer

PAIRS = [("def main", "(self):"), ("", "abc"), ("a", "b"), ("the quick brown fox", " jumps"), ("xy", "z" * 30)]


class Whole:
    """A document of bytes."""

    def __init__(self, text: str) -> None:
        self.tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        self.text_bytes = len(self.tokens)


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(2)
    config = LanguageConfig(vocabulary=257, width=24, layers=2, heads=2, key_dim=8, value_dim=8, mlp=32)
    return LanguageModel(config).double().eval()


def asked(kind: str, *arguments: tuple[object, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=n) for n, one in enumerate(arguments)]


@pytest.mark.parametrize("window", [5, 40, 10_000])
def test_likelihoods_are_those_of_one_forward_over_each_text(model: LanguageModel, window: int) -> None:
    harness = HarnessModel(model=model, tokenizer=ByteTokenizer(), window=window)
    found = harness.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
    for (context, continuation), (likelihood, _) in zip(PAIRS, found, strict=True):
        ids = torch.tensor(list((context + continuation).encode()))
        with torch.no_grad():
            p = torch.log_softmax(model(ids, model.documents([len(ids)]))[0], -1)
        expected = sum(float(p[n - 1, ids[n]]) for n in range(max(1, len(context)), len(ids)))
        assert likelihood == pytest.approx(expected - (0 if context else math.log(257)), abs=1e-9)


def test_a_continuation_is_greedy_when_it_is_what_the_model_would_say(model: LanguageModel) -> None:
    harness = HarnessModel(model=model, tokenizer=ByteTokenizer())
    context = list(b"hello")
    (own,) = generate(model, [torch.tensor(context)], tokens=6)
    other = [*own[:-1], (own[-1] + 1) % 256]
    found = harness._loglikelihood_tokens(
        [(("", ""), context, own), (("", ""), context, other), (("", ""), context, [])]
    )
    assert [greedy for _, greedy in found] == [True, False, True]


def test_rolling_likelihood_is_the_length_of_the_code(model: LanguageModel) -> None:
    harness = HarnessModel(model=model, tokenizer=ByteTokenizer(), window=16)
    texts = ["a short text", "b", "a longer text " * 5]
    found = harness.loglikelihood_rolling(asked("loglikelihood_rolling", *((text,) for text in texts)))
    for text, likelihood in zip(texts, found, strict=True):
        assert -likelihood == pytest.approx(score(model, [Whole(text)]).nats, abs=1e-9)


def test_answers_end_at_their_stops(model: LanguageModel) -> None:
    harness = HarnessModel(model=model, tokenizer=ByteTokenizer(), batch_size=2, max_gen_toks=9)
    tokenizer = ByteTokenizer()
    whole = [tokenizer.decode(generate(model, [torch.tensor(list(text))], tokens=20, stop=(256,))[0])
             for text in (b"one", b"two", b"three")]  # fmt: skip
    stop = whole[1][4]
    made = harness.generate_until(asked(
        "generate_until", ("one", {"until": [], "max_gen_toks": 20}), ("two", {"until": stop, "max_gen_toks": 20}),
        ("three", {}),
    ))  # fmt: skip
    assert made[0] == whole[0]
    assert made[1] == whole[1].split(stop)[0]
    assert made[2] == tokenizer.decode(generate(model, [torch.tensor(list(b"three"))], tokens=9, stop=(256,))[0])


def test_options_of_a_task_are_followed_or_refused(model: LanguageModel) -> None:
    harness = HarnessModel(model=model, tokenizer=ByteTokenizer(), batch_size=8)

    def made(**options: object) -> str:
        (text,) = harness.generate_until(asked("generate_until", ("one", {"max_gen_toks": 30, **options})))
        return text

    greedy, hot = made(), {"do_sample": True, "temperature": 1.5}
    assert made(temperature=1.5) == made(do_sample=True, temperature=0.0) == greedy
    assert made(**hot, top_k=1) == made(**hot, top_p=1e-9) == greedy
    assert made(**hot, seed=3) == made(**hot, seed=3) != made(**hot, seed=4)
    assert made(num_beams=1, repetition_penalty=1.0) == greedy
    with pytest.raises(ConfigError, match=r"gen_kwargs: must be of until, .* got {'num_beams': 4}"):
        made(num_beams=4)


def test_a_model_with_more_ids_than_its_tokenizer_says_none_of_them() -> None:
    torch.manual_seed(2)
    config = LanguageConfig(vocabulary=320, width=24, layers=2, heads=2, key_dim=8, value_dim=8, mlp=32)
    model = LanguageModel(config).eval()
    with torch.no_grad():  # a head that likes the ids at its end
        model.embedding.weight.mul_(20)
        model.head.weight[257:] = model.head.weight[257:] * 20
    ids = torch.arange(97, 107)
    with torch.no_grad():
        assert int(model(ids, model.documents([10]))[0].argmax(-1).max()) > 256
    harness = HarnessModel(model=model, tokenizer=ByteTokenizer(), max_gen_toks=20)
    sampled = {"do_sample": True, "temperature": 2.0, "seed": 0}
    assert len(harness.generate_until(asked("generate_until", ("abcdefghij", {}), ("abcdefghij", sampled)))) == 2
    needle = Needle(task="s-niah-1", length=40, number=0, prompt="abcdefghij", tokens=ids.numpy(), answer="7", room=20,
                    key="key", depth=0.5)  # fmt: skip
    assert len(list(ask(model, [needle], ByteTokenizer()))) == 1


def test_the_harness_finds_the_model_by_its_name_and_opens_a_checkpoint(model: LanguageModel, tmp_path: Path) -> None:
    archive.save(model, tmp_path / "model.safetensors", tokenizer_digest=ByteTokenizer().digest)
    ByteTokenizer().save(tmp_path)
    made = get_model("tsgdn2").create_from_arg_string(f"checkpoint={tmp_path},data={tmp_path}", {"device": "cpu"})
    assert isinstance(made, HarnessModel)
    assert made.eot_token_id == 256
    assert made.loglikelihood(asked("loglikelihood", ("a", "b")), disable_tqdm=True)[0][0] < 0
    with pytest.raises(ConfigError, match="data: no tokenizer"):
        HarnessModel(checkpoint=None)
