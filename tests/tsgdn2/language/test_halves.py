"""A model of half precision: it reads, steps and decodes; what decays and what is remembered stays in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tsgdn2.language import archive
from tsgdn2.language.config import LANGUAGE_MIXERS, LanguageConfig
from tsgdn2.language.generation import generate
from tsgdn2.language.model import LanguageModel
from tsgdn2.mixers import delta, subtokens
from tsgdn2.mixers.gates import MEMBERS

TINY = LanguageConfig(
    vocabulary=23, width=16, layers=2, heads=2, key_dim=8, value_dim=8, mlp=24, attention_window=9, attention_heads=2
)
TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.02}
"""Of the logits, in units of their standard deviation."""
LENGTHS = [3, 70, 1, 12]
KEPT = ("A_log", "dt_bias", "A_bias", "conv", "mix", "decay.up.bias", "cell.weight_hh", "mixer.norm")


def models_of(mixer: str, dtype: torch.dtype) -> tuple[LanguageModel, LanguageModel]:
    """The same weights, which the dtype can hold, in float32 and in it."""
    torch.manual_seed(0)
    name, _, hybrid = mixer.partition("+")
    model = LanguageModel(replace(TINY, mixer=name, attention_every=2 if hybrid else 0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
            parameter.copy_(parameter.to(dtype))
    other = LanguageModel(model.config).eval()
    other.load_state_dict(model.state_dict())
    return model, other.to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mixer", [*LANGUAGE_MIXERS, "gdn2+attention"])
@torch.no_grad()
def test_every_mixer_reads_and_steps_as_in_float32(mixer: str, dtype: torch.dtype) -> None:
    model, half = models_of(mixer, dtype)
    tokens = torch.randint(0, 23, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    exact, _ = model(tokens, model.documents(LENGTHS))
    read, after = half(tokens, half.documents(LENGTHS))
    assert read.dtype == dtype
    allowed = TOLERANCE[dtype] * float(exact.std())
    assert float((read.float() - exact).abs().max()) < allowed
    start = half.initial_state(1)
    state, logits = start, []
    for token in tokens[3:73]:
        made, state = half.step(token[None], state)
        logits.append(made)
    assert float((torch.cat(logits).float() - exact[3:73]).abs().max()) < allowed
    more, _ = half(tokens[:5], half.documents([5], state), state)
    assert torch.isfinite(more).all()
    for first, stepped, whole in zip(start.layers, state.layers, after.layers, strict=True):
        for name in first:
            expected = dtype if name in ("keys", "values") else torch.float32
            assert [layer[name].dtype for layer in (first, stepped, whole)] == [expected] * 3, name
    assert [len(tail) for tail in generate(half, [tokens[:4], tokens[:1]], tokens=6)] == [6, 6]


@pytest.mark.parametrize("mixer", LANGUAGE_MIXERS)
def test_a_cast_rounds_matrices_and_leaves_decays_to_the_bit(mixer: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(replace(TINY, mixer=mixer))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    held = [name for name in before if name.endswith(KEPT)]
    model.bfloat16()
    after = dict(model.named_parameters())
    assert model.dtype == torch.bfloat16
    assert after["blocks.0.mlp.down.weight"].dtype == torch.bfloat16
    for name in held:
        assert after[name].dtype == torch.float32
        assert torch.equal(after[name].detach(), before[name])
    model.to(torch.float32).double()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_gradients_reach_every_weight_of_half_precision() -> None:
    _, half = models_of("gdn2", torch.bfloat16)
    tokens = torch.arange(12)
    loss = half.loss(tokens[:-1], tokens[1:], torch.ones(11, dtype=torch.bool), half.documents([11]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in half.parameters())


def test_an_archive_keeps_both_dtypes(tmp_path: Path) -> None:
    _, half = models_of("gdn2", torch.bfloat16)
    path = tmp_path / "model.safetensors"
    archive.save(half, path)
    back = archive.load(path).state_dict()
    assert {name: t.dtype for name, t in back.items()} == {name: t.dtype for name, t in half.state_dict().items()}


@pytest.mark.parametrize("mixer", [*LANGUAGE_MIXERS, "gdn2+attention"])
def test_under_autocast_the_scan_is_given_rounded_tokens_and_decays_in_float32(
    mixer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[torch.dtype, ...]] = []

    def watched(scan: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
        def run(*tokens: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
            given.append((*(t.dtype for t in tokens), settings["initial_state"].dtype))
            return scan(*tokens, **settings)

        return run

    monkeypatch.setattr(delta, "gdn2_scan", watched(delta.gdn2_scan))
    monkeypatch.setattr(subtokens, "delta_scan", watched(subtokens.delta_scan))
    name, _, hybrid = mixer.partition("+")
    torch.manual_seed(0)
    model = LanguageModel(replace(TINY, mixer=name, attention_every=2 if hybrid else 0))
    tokens = torch.randint(0, 23, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    counted, at = torch.ones(len(tokens), dtype=torch.bool), model.documents(LENGTHS)
    exact = model.loss(tokens, tokens.flip(0), counted, at)
    given.clear()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.loss(tokens, tokens.flip(0), counted, at)
        _, state = model.hidden(tokens, at)
    rounded.backward()
    half, full = torch.bfloat16, torch.float32
    if name in MEMBERS:
        assert set(given) == {(half, half, half, full, half, half, full)}  # q, k, v, g, b, w, state
    elif name.startswith("mamba3") or name == "rwkv7":
        assert set(given) == {(half, half, half, half, full, full)}  # q, k, e, z, g, state
    else:
        assert not given
    assert rounded.item() == pytest.approx(exact.item(), rel=5e-3)
    assert rounded.item() != exact.item()
    grads = [p.grad for p in model.parameters()]
    assert name == "none" or all(grad is not None for grad in grads)
    assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)
    assert all(t.dtype == full for layer in state.layers for t in layer.values())
