"""Language model: packed documents equal documents alone, steps equal windows, nothing leaks across a border."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsgdn2.errors import ConfigError
from tsgdn2.language.config import LANGUAGE_MIXERS, LanguageConfig
from tsgdn2.language.model import LanguageModel
from tsgdn2.mixers.delta import DeltaMixer
from tsgdn2.sequence import Sequences

TINY = LanguageConfig(
    vocabulary=19, width=12, layers=2, heads=2, key_dim=6, value_dim=4, mlp=16, attention_window=9, attention_heads=2
)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def model_of(mixer: str, dtype: torch.dtype = torch.float64, every: int = 0) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(replace(TINY, mixer=mixer, attention_every=every)).to(dtype)
    with torch.no_grad():  # weights of .02 hide mistakes behind small numbers
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return model


def tokens_of(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, TINY.vocabulary, (count,), generator=torch.Generator().manual_seed(seed))


def alone(model: LanguageModel, tokens: Tensor, lengths: list[int]) -> Tensor:
    return torch.cat([model(part, model.documents([len(part)]))[0] for part in tokens.split(lengths)])


@pytest.mark.parametrize("mixer", [*LANGUAGE_MIXERS, "gdn2+attention"])
def test_packed_documents_give_what_each_gives_alone_and_step_by_step(mixer: str) -> None:
    name, _, hybrid = mixer.partition("+")
    model, lengths = model_of(name, every=2 if hybrid else 0), [3, 70, 1, 12]
    tokens = tokens_of(sum(lengths))
    with torch.no_grad():
        packed, after = model(tokens, model.documents(lengths))
        torch.testing.assert_close(packed, alone(model, tokens, lengths), rtol=0, atol=1e-12)
        start = 0
        for row, length in enumerate(lengths):
            state, logits = model.initial_state(1), []
            for token in tokens[start : start + length]:
                made, state = model.step(token[None], state)
                logits.append(made)
            torch.testing.assert_close(torch.cat(logits), packed[start : start + length], rtol=0, atol=1e-12)
            for ours, theirs in zip(state.layers, after.rows(torch.tensor([row])).layers, strict=True):
                for tensor, other in zip(ours.values(), theirs.values(), strict=True):
                    torch.testing.assert_close(tensor, other, rtol=1e-10, atol=1e-12)
            start += length


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), dtype=st.sampled_from(list(TOLERANCE)))
def test_any_packing_gives_the_same_logits(lengths: list[int], dtype: torch.dtype) -> None:
    model, tokens = model_of("gdn2", dtype), tokens_of(sum(lengths))
    with torch.no_grad():
        packed = model(tokens, model.documents(lengths))[0]
        torch.testing.assert_close(packed, alone(model, tokens, lengths), rtol=0, atol=TOLERANCE[dtype])


def test_a_text_may_be_read_in_pieces() -> None:
    model, tokens = model_of("gdn2"), tokens_of(90)
    with torch.no_grad():
        whole = model(tokens, model.documents([90]))[0]
        first, state = model(tokens[:50], model.documents([50]))
        second, _ = model(tokens[50:], model.documents([40], state), state)
        torch.testing.assert_close(torch.cat([first, second]), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", ["memory", "convolution"])
def test_a_leak_across_documents_is_seen(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant one: the second document begins with the first one's memory, or with its last inputs."""
    model, lengths = model_of("gdn2"), [5, 7]
    tokens = tokens_of(12)
    if part == "memory":
        scanned = DeltaMixer._scan

        def carried(self: DeltaMixer, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
            tokens, m, memory, plan = args  # type: ignore[misc]
            plan = replace_offsets(plan)
            return scanned(self, tokens, m, memory, plan, **kwargs)  # type: ignore[arg-type]

        def replace_offsets(plan: object) -> object:
            (whole,) = plan.rounds  # type: ignore[attr-defined]
            joined = whole._replace(offsets=torch.tensor([0, 0, 12]))
            return plan._replace(rounds=[joined])  # type: ignore[attr-defined]

        monkeypatch.setattr(DeltaMixer, "_scan", carried)
    else:
        joined = Sequences(np.array([0, 12]), np.zeros(2, np.int64), bounded=False)
        monkeypatch.setattr(Sequences, "extended", lambda _, before, x: torch.cat([before.flatten(0, 1), x]))
        monkeypatch.setattr(Sequences, "each", lambda _, x: x[None])
        monkeypatch.setattr(Sequences, "convolved", lambda _, y: y[0][-12:])
        assert joined.commits == 12
    with torch.no_grad():
        leaking = model(tokens, model.documents(lengths))[0]
        monkeypatch.undo()
        honest = alone(model, tokens, lengths)
    assert float((leaking - honest)[:5].abs().max()) < 1e-12
    assert float((leaking - honest)[5:].abs().max()) > 1e-3


def test_the_loss_is_the_sum_over_counted_tokens_and_the_same_with_checkpoints() -> None:
    model, lengths, tokens = model_of("gdn2"), [9, 4], tokens_of(14)
    counted = torch.ones(13, dtype=torch.bool)
    counted[8] = False
    at = model.documents(lengths)
    loss = model.loss(tokens[:-1], tokens[1:], counted, at)
    loss.backward()
    gradient = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        logits = model(tokens[:-1], at)[0].log_softmax(-1)
    each = -logits.gather(1, tokens[1:, None])[:, 0]
    torch.testing.assert_close(loss.detach(), each[counted].sum(), rtol=1e-12, atol=0)
    model.zero_grad()
    model.checkpointing = True
    again = model.loss(tokens[:-1], tokens[1:], counted, at)
    again.backward()
    torch.testing.assert_close(again, loss, rtol=0, atol=0)
    for mine, theirs in zip(gradient, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_a_tied_head_is_the_embedding() -> None:
    model = LanguageModel(replace(TINY, tied=True))
    assert model.head.weight is model.embedding.weight


def test_wrong_tokens_and_states_are_refused_by_name() -> None:
    model = model_of("gdn2")
    with pytest.raises(ConfigError, match=r"tokens: must be \[5\]"):
        model(tokens_of(4), model.documents([5]))
    other = LanguageModel(replace(TINY, mlp=17))
    with pytest.raises(ConfigError, match="state: was made by config"):
        model.step(tokens_of(1), other.initial_state(1))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mixer": "swa"}, "mixer: must be one of"),
        ({"vocabulary": 0}, "vocabulary: must be at least 1"),
        ({"attention_every": 1}, "attention_every: must be 0, or from 2"),
        ({"mixer": "mamba3", "key_dim": 5}, "key_dim: must be even"),
        ({"mixer": "attention", "attention_heads": 5}, "attention_heads: must be a divisor of width 12"),
    ],
)
def test_a_config_that_can_not_be_names_its_field(wrong: dict[str, int | str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(TINY, **wrong)  # type: ignore[arg-type]


def test_a_config_survives_json_and_another_versions_field_does_not() -> None:
    assert LanguageConfig.from_json(TINY.to_json()) == TINY
    assert replace(TINY, mlp=17).fingerprint != TINY.fingerprint
    with pytest.raises(ConfigError, match=r"unknown fields \['later'\]"):
        LanguageConfig.from_json(TINY.to_json()[:-1] + ', "later": 1}')
