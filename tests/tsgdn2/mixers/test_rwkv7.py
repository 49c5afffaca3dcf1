"""RWKV-7: the paper's recurrence is the oracle; a window equals its steps and reads; queries leave nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.mixers.rwkv7 import RWKV7Mixer

D = 12
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def rwkv(norm_max=0.3):
    torch.manual_seed(1)
    mixer = RWKV7Mixer(D, heads=2, key_dim=4, value_dim=6, norm_max=norm_max).double()
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.add_(0.3 * torch.randn_like(weight))  # nothing stays at its neutral start
    return mixer


def recurrence(mixer, x, observed, elapsed):
    """S token by token (Diag(w) - (a*kh) kh^T) S + kt v^T, after what time beyond one period has decayed."""
    heads, width = mixer.heads, mixer.key_dim
    memory = torch.zeros(heads, width, mixer.value_dim, dtype=torch.float64)
    before, rate = torch.zeros(D, dtype=torch.float64), torch.zeros(heads, width, dtype=torch.float64)
    outputs = []
    for x_t, m, dt in zip(x, observed, elapsed, strict=True):
        mixed = [x_t + mu * (before - x_t) for mu in mixer.mix]
        r, k = (
            (layer.weight @ mixed[c]).reshape(heads, width) for c, layer in ((0, mixer.read_proj), (2, mixer.key_proj))
        )
        gate, strength = mixer.gate(mixed[1]), mixer.erase(mixed[4]).reshape(heads, width).sigmoid()
        v = m * (mixer.value_proj.weight @ mixed[3]).reshape(heads, -1)
        kh = k * mixer.erase_key
        kh = kh / (kh.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        kt = k * (1 + (strength - 1) * mixer.write_key)
        w = torch.exp(rate)
        memory = torch.exp(rate * (dt - 1))[..., None] * memory
        for h in range(heads):
            edit = torch.diag(w[h]) - torch.outer(m * strength[h] * kh[h], kh[h])
            memory = memory.clone()
            memory[h] = edit @ memory[h] + torch.outer(kt[h], v[h])
        o = torch.einsum("hkv,hk->hv", memory, r)
        normed = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.norm
        normed = normed + (r * mixer.bonus * kt).sum(-1, keepdim=True) * v
        outputs.append(mixer.out_proj.weight @ (normed.flatten() * gate))
        decay = mixer.decay.up.weight @ torch.tanh(mixer.decay.down.weight @ mixed[5]) + mixer.decay.up.bias
        before, rate = x_t, -math.exp(-0.5) * decay.reshape(heads, width).sigmoid()
    return torch.stack(outputs)


def test_forward_and_step_are_the_recurrence_of_the_paper(window):
    mixer = rwkv(norm_max=1e9)
    commits, queries = window.streams(np.random.default_rng(1), [70], [0], "one")
    commits = commits._replace(elapsed=commits.elapsed.clamp_max(3.5))
    with torch.no_grad():
        expected = recurrence(mixer, commits.x, commits.observed, commits.elapsed)
        y, _, _ = mixer(commits, queries, mixer.initial_state(1), commit_output=True)
        steps, _, _ = window.stepped(mixer, commits, queries, mixer.initial_state(1), [0])
    assert torch.allclose(y, expected, **TIGHT)
    assert torch.allclose(steps, expected, **TIGHT)


@pytest.mark.parametrize("places", ["one", "any"])
@pytest.mark.parametrize("commit_output", [True, False])
@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 10**6), tokens=st.sampled_from([0, 1, 5, 63, 66]), count=st.sampled_from([0, 1, 63]),
    equal=st.booleans(),
)  # fmt: skip
def test_a_window_equals_its_steps_and_reads(window, places, commit_output, seed, tokens, count, equal):
    rng = np.random.default_rng(seed)
    mixer = rwkv()
    lengths = [tokens, *([tokens] * 2 if equal else rng.integers(0, tokens + 1, size=2).tolist())]
    counts = [count, *([count] * 2 if equal else rng.integers(0, 130, size=2).tolist())]
    commits, queries = window.streams(rng, lengths, counts, places)
    start = window.carried(mixer, 3)
    start["rate"] = -math.exp(-0.5) * start["rate"].sigmoid()
    with torch.no_grad():
        y, read, after = mixer(commits, queries, start, commit_output=commit_output)
        y_steps, read_steps, after_steps = window.stepped(mixer, commits, queries, start, counts)
    assert (y is None) != commit_output
    assert y is None or torch.allclose(y, y_steps, **TIGHT)
    assert torch.allclose(read, read_steps, **TIGHT)
    for name, expected in after_steps.items():
        assert torch.allclose(after[name], expected, **TIGHT), name


@pytest.mark.parametrize("places", ["one", "any"])
def test_gradients_are_those_of_the_steps(window, places):
    mixer = rwkv()
    commits, queries = window.streams(np.random.default_rng(5), [9, 3, 0], [60, 0, 9], places)
    start = window.carried(mixer, 3)
    gradients = []
    for run in (mixer, lambda *tokens, commit_output: window.stepped(mixer, *tokens, [60, 0, 9])):
        y, read, after = run(commits, queries, start, commit_output=places == "any")
        parts = [read, *after.values(), *([y] if y is not None and places == "any" else [])]
        loss = sum((p * torch.linspace(0.5, 1.5, p.shape[-1], dtype=p.dtype)).square().sum() for p in parts)
        gradients.append(torch.autograd.grad(loss, list(mixer.parameters()), allow_unused=True))
    for name, one, other in zip(dict(mixer.named_parameters()), *gradients, strict=True):
        if places == "one" and name == "bonus":  # it is for commit outputs, and here are none
            assert one is None or not one.any()
            continue
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-8), name
        assert one.abs().max() > 0, name


def test_queries_leave_nothing_behind_and_an_unseen_token_writes_and_erases_nothing(window):
    mixer = rwkv()
    commits, queries = window.streams(np.random.default_rng(0), [70, 41], [0, 3], "any")
    start = window.carried(mixer, 2)
    with torch.no_grad():
        _, _, with_queries = mixer(commits, queries, start, commit_output=True)
        _, _, without = mixer(commits, None, start, commit_output=False)
        token = torch.randn(2, D).double(), torch.zeros(2).double(), torch.full((2,), 2.0).double()
        _, after = mixer.step(*token, torch.tensor([4, 9]), start)
    for name in without:
        assert torch.allclose(with_queries[name], without[name], rtol=1e-12, atol=1e-12), name
    faded = torch.exp(2 * start["rate"])[..., None] * start["memory"]
    assert torch.allclose(after["memory"], faded, rtol=1e-14, atol=0)


def test_a_very_long_gap_leaves_no_state_and_no_nan(window):
    mixer = rwkv().float()
    token = torch.randn(1, D), torch.ones(1), torch.full((1,), 1e9)
    start = {name: t.float() for name, t in window.carried(mixer, 1).items()}
    with torch.no_grad():
        y, after = mixer.step(*token, torch.tensor([4]), start)
        fresh = mixer.step(*token, torch.tensor([4]), start | {"memory": torch.zeros_like(start["memory"])})[1]
    assert torch.isfinite(y).all()
    assert torch.equal(after["memory"], fresh["memory"])
