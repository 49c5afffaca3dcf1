"""A language model's attention is softmax over the last W tokens, whatever the packing, in passes and in steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsgdn2.errors import ConfigError
from tsgdn2.mixers.attention import AttentionMixer
from tsgdn2.mixers.contract import Commits, MixerState, Queries
from tsgdn2.sequence import Sequences

WIDTH, HEADS = 10, 2


def mixer_of(window: int, dtype: torch.dtype = torch.float64) -> AttentionMixer:
    torch.manual_seed(0)
    return AttentionMixer(WIDTH, heads=HEADS, window=window).to(dtype)


def run(
    mixer: AttentionMixer, x: Tensor, lengths: list[int], counts: list[int], state: MixerState
) -> tuple[Tensor, MixerState]:
    at = Sequences(np.array(lengths, np.int64), np.array(counts, np.int64), bounded=False)
    ones = torch.ones(len(x), dtype=x.dtype)
    y, _, after = mixer(Commits(x, ones, ones, at), None, state, commit_output=True)
    return y, after


def oracle(mixer: AttentionMixer, x: Tensor) -> Tensor:
    """One document, token by token, from the equations in the module's docstring."""
    n, channels = len(x), WIDTH // HEADS
    q, k, v = (t.reshape(n, HEADS, channels) for t in (x @ mixer.in_proj.weight.T).split(WIDTH, -1))
    half = channels // 2

    def turned(t: Tensor) -> Tensor:
        out = t.clone()
        for place in range(n):
            for i in range(half):
                angle = torch.tensor(place * 10_000.0 ** (-i / half), dtype=t.dtype)
                a, b = t[place, :, i], t[place, :, i + half]
                out[place, :, i] = a * angle.cos() - b * angle.sin()
                out[place, :, i + half] = a * angle.sin() + b * angle.cos()
        return out

    q, k = turned(q), turned(k)
    rows = []
    for place in range(n):
        low = max(0, place - mixer.window + 1)
        logits = torch.einsum("hd,jhd->hj", q[place], k[low : place + 1]) / channels**0.5
        rows.append(torch.einsum("hj,jhd->hd", logits.softmax(-1), v[low : place + 1]).reshape(-1))
    return torch.stack(rows) @ mixer.out_proj.weight.T


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 11), min_size=1, max_size=4), window=st.integers(1, 6), cut=st.integers(0, 9),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_packed_documents_cut_anywhere_and_steps_are_the_softmax_over_the_window(
    lengths: list[int], window: int, cut: int, seed: int
) -> None:
    mixer = mixer_of(window)
    draw = torch.Generator().manual_seed(seed)
    documents = [torch.randn(n, WIDTH, dtype=torch.float64, generator=draw) for n in lengths]
    expected = [oracle(mixer, x) if len(x) else x for x in documents]
    x = torch.cat(documents)
    start = mixer.initial_state(len(lengths))
    whole, after = run(mixer, x, lengths, [0] * len(lengths), start)
    torch.testing.assert_close(whole, torch.cat(expected), rtol=1e-12, atol=1e-12)
    bare, nothing = run(mixer, x, lengths, [0] * len(lengths), {})
    assert torch.equal(bare, whole)
    assert nothing == {}
    # In two passes.
    cuts = [min(cut, n) for n in lengths]
    first = torch.cat([d[:c] for d, c in zip(documents, cuts, strict=True)])
    second = torch.cat([d[c:] for d, c in zip(documents, cuts, strict=True)])
    _, middle = run(mixer, first, cuts, [0] * len(lengths), start)
    rest, ended = run(mixer, second, [n - c for n, c in zip(lengths, cuts, strict=True)], cuts, middle)
    wanted = torch.cat([e[c:] for e, c in zip(expected, cuts, strict=True)])
    torch.testing.assert_close(rest, wanted, rtol=1e-12, atol=1e-12)
    for name in after:
        torch.testing.assert_close(ended[name], after[name], rtol=1e-12, atol=1e-12)
    # Token by token.
    state = mixer.initial_state(1)
    for place, token in enumerate(documents[0]):
        one = torch.ones(1, dtype=torch.float64)
        y, state = mixer.step(token[None], one, one, torch.tensor([place]), state)
        torch.testing.assert_close(y[0], expected[0][place], rtol=1e-12, atol=1e-12)


def test_a_far_position_is_turned_as_exactly_as_a_near_one() -> None:
    mixer = mixer_of(4, torch.float32)
    x, far = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(3)), 1_000_000
    near, _ = run(mixer, x, [6], [0], mixer.initial_state(1))
    state = mixer.initial_state(1)
    one = torch.ones(1)
    for place, token in enumerate(x):
        y, state = mixer.step(token[None], one, one, torch.tensor([far + place]), state)
        if place >= 3:  # the ring is full of tokens of its own by then
            torch.testing.assert_close(y[0], near[place], rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_long_document_is_that_of_its_oracle() -> None:
    mixer = mixer_of(3)
    x = torch.randn(8, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, expected = [], []
    for into, make in ((found, lambda t: run(mixer, t, [8], [0], {})[0]), (expected, lambda t: oracle(mixer, t))):
        own = x.clone().requires_grad_()
        weights = (own, mixer.in_proj.weight, mixer.out_proj.weight)
        into += torch.autograd.grad(make(own).square().sum(), weights)
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-11, atol=1e-11)


def test_an_overflow_is_not_hidden() -> None:
    mixer = mixer_of(4)
    with torch.no_grad():
        mixer.in_proj.weight[:WIDTH] = torch.inf
    y, _ = run(mixer, torch.ones(5, WIDTH, dtype=torch.float64), [5], [0], {})
    assert not torch.isfinite(y).all()


def test_it_is_asked_no_queries() -> None:
    mixer, one = mixer_of(4), torch.ones(1, dtype=torch.float64)
    x = torch.ones(1, WIDTH, dtype=torch.float64)
    at = Sequences(np.array([1]), np.array([0]), np.array([0]), np.array([0]), bounded=False)
    with pytest.raises(ConfigError, match="take the mixer swa"):
        mixer(Commits(x, one, one, at), Queries(x, one), {}, commit_output=True)
    with pytest.raises(ConfigError, match="take the mixer swa"):
        mixer.read(x, one, mixer.initial_state(1))
