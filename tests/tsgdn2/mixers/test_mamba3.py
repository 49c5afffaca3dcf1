"""Mamba-3: the complex recurrence of the paper is the oracle; a window equals its steps; queries leave nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu, softplus

from tsgdn2.errors import ConfigError
from tsgdn2.mixers.contract import Commits, Queries
from tsgdn2.mixers.mamba3 import Mamba3Mixer

D = 12
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def mamba(rank, norm_max=0.3):
    torch.manual_seed(rank)
    mixer = Mamba3Mixer(D, heads=2, key_dim=4, value_dim=6, rank=rank, norm_max=norm_max).double()
    with torch.no_grad():
        for weight in (mixer.norms, mixer.biases, mixer.norm, mixer.D):
            weight.add_(0.3 * torch.randn_like(weight))
        mixer.dt_bias.add_(3.0)  # steps near 1, so that a few tokens decay, turn and write something
        mixer.A_bias.uniform_(-3.0, 1.0)  # and some of it stays
    return mixer


def recurrence(mixer, x, observed, elapsed, asked, waited):
    """Outputs of commits, and of the query behind each; nothing of it is our scan.

    S holds complex numbers, one pair of key channels each, turned at every token:

    S_t = a_t R_t S_{t-1} + eta_t R_t k_{t-1} v_{t-1}^T + zeta_t k_t v_t^T, R_t = exp(-i step theta), o = Re S^T conj(q)
    """
    heads, half, rank = mixer.heads, mixer.key_dim // 2, mixer.rank
    memory = torch.zeros(heads, half, mixer.value_dim, dtype=torch.complex128)
    k_before = torch.zeros(rank, heads, half, dtype=torch.complex128)
    v_before, rate = torch.zeros(rank, heads, mixer.value_dim, dtype=torch.float64), torch.zeros(heads)
    ones = torch.ones(1, heads, mixer.value_dim, dtype=torch.float64)
    up, down = (ones if w is None else w for w in (mixer.up, mixer.down))
    outputs, answers = [], []

    def look(q, gate, own):
        o = sum(down[r] * (q[r].conj()[..., None] * memory).real.sum(-2) for r in range(rank)) + mixer.D[:, None] * own
        normed = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.norm
        return mixer.out_proj.weight @ (normed * silu(gate)).flatten()

    def split(x):
        parts = (mixer.in_proj.weight @ x).split(mixer.sizes)
        pair = []
        for which, part in ((0, parts[0]), (1, parts[3])):
            heads_of = part.reshape(rank, heads, 2 * half)
            normed = heads_of / (heads_of.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.norms[which]
            normed = (normed + mixer.biases[which]) / math.sqrt(2 * half)
            pair.append(torch.complex(normed[..., :half], normed[..., half:]))
        return parts, pair, parts[1].reshape(heads, -1), parts[2].reshape(heads, -1)

    for x_t, m, dt, asked_t, wait in zip(x, observed, elapsed, asked, waited, strict=True):
        parts, (q, k), gate, own = split(x_t)
        v = m * own * up
        step, share = softplus(parts[5] + mixer.dt_bias), parts[6].sigmoid()
        turn = torch.exp(-1j * m * step[:, None] * parts[4].reshape(heads, half))
        a = torch.exp(rate * dt)
        memory = (a[:, None] * turn)[..., None] * memory
        for r in range(rank):
            weight = (m * (1 - share) * step * a)[:, None] * turn * k_before[r]
            memory = memory + weight[..., None] * v_before[r][:, None]
            memory = memory + ((share * step)[:, None] * k[r])[..., None] * v[r][:, None]
        outputs.append(look(q, gate, own))
        k_before, v_before, rate = k, v, -softplus(parts[7] + mixer.A_bias) * step
        _, (q, _), gate, own = split(asked_t)
        answers.append(look(torch.exp(rate * wait)[None, :, None] * q, gate, own))
    return torch.stack(outputs), torch.stack(answers)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_forward_and_step_are_the_complex_recurrence_of_the_paper(window, rank):
    mixer = mamba(rank, norm_max=1e9)
    commits, queries = window.streams(np.random.default_rng(rank), [70], [0], "one")
    commits = commits._replace(elapsed=commits.elapsed.clamp_max(3.5))
    with torch.no_grad():
        expected = recurrence(mixer, *commits[:3], *queries[:2])
        batch = mixer(commits, queries, mixer.initial_state(1), commit_output=True)[:2]
        steps = window.stepped(mixer, commits, queries, mixer.initial_state(1), [0])[:2]
    for found in (batch, steps):
        assert torch.allclose(found[0], expected[0], **TIGHT)
        assert torch.allclose(found[1], expected[1], **TIGHT)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("places", ["one", "any"])
@pytest.mark.parametrize("commit_output", [True, False])
@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 10**6), tokens=st.sampled_from([0, 1, 5, 63, 66]), count=st.sampled_from([0, 1, 63]),
    equal=st.booleans(),
)  # fmt: skip
def test_a_window_equals_its_steps_and_reads(window, rank, places, commit_output, seed, tokens, count, equal):
    rng = np.random.default_rng(seed)
    mixer = mamba(rank)
    lengths = [tokens, *([tokens] * 2 if equal else rng.integers(0, tokens + 1, size=2).tolist())]
    counts = [count, *([count] * 2 if equal else rng.integers(0, 130, size=2).tolist())]
    commits, queries = window.streams(rng, lengths, counts, places)
    start = window.carried(mixer, 3)
    with torch.no_grad():
        y, read, after = mixer(commits, queries, start, commit_output=commit_output)
        y_steps, read_steps, after_steps = window.stepped(mixer, commits, queries, start, counts)
    assert (y is None) != commit_output
    assert y is None or torch.allclose(y, y_steps, **TIGHT)
    assert torch.allclose(read, read_steps, **TIGHT)
    for name, expected in after_steps.items():
        assert torch.allclose(after[name], expected, **TIGHT), name


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("places", ["one", "any"])
def test_gradients_are_those_of_the_steps(window, rank, places):
    mixer = mamba(rank)
    commits, queries = window.streams(np.random.default_rng(5), [9, 3, 0], [60, 0, 9], places)
    start = window.carried(mixer, 3)
    gradients = []
    for run in (mixer, lambda *tokens, commit_output: window.stepped(mixer, *tokens, [60, 0, 9])):
        y, read, after = run(commits, queries, start, commit_output=places == "any")
        parts = [read, *after.values(), *([y] if y is not None and places == "any" else [])]
        loss = sum((p * torch.linspace(0.5, 1.5, p.shape[-1], dtype=p.dtype)).square().sum() for p in parts)
        gradients.append(torch.autograd.grad(loss, list(mixer.parameters())))
    for name, one, other in zip(dict(mixer.named_parameters()), *gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-8), name
        assert one.abs().max() > 0, name


@pytest.mark.parametrize("rank", [1, 2])
def test_queries_leave_nothing_behind_and_an_unseen_token_writes_nothing(window, rank):
    mixer = mamba(rank)
    commits, queries = window.streams(np.random.default_rng(0), [70, 41], [0, 3], "any")
    start = window.carried(mixer, 2)
    with torch.no_grad():
        _, _, with_queries = mixer(commits, queries, start, commit_output=True)
        _, _, without = mixer(commits, None, start, commit_output=False)
        token = torch.randn(2, D).double(), torch.zeros(2).double(), torch.full((2,), 2.0).double()
        _, after = mixer.step(*token, torch.tensor([4, 9]), start)
    for name in without:
        assert torch.allclose(with_queries[name], without[name], rtol=1e-12, atol=1e-12), name
    faded = torch.exp(2 * start["rate"])[..., None, None] * start["memory"]
    assert torch.allclose(after["memory"], faded, rtol=1e-14, atol=0)


def test_the_angle_stays_in_one_turn_and_a_long_window_of_floats_equals_its_steps(window):
    mixer = mamba(1).float()
    with torch.no_grad():
        mixer.in_proj.weight.mul_(20.0)  # many turns a token
    commits, queries = window.streams(np.random.default_rng(1), [400], [0], "one")
    commits = Commits(*(t.float() for t in commits[:3]), commits.at)
    queries = Queries(queries.x.float(), queries.elapsed.float())
    with torch.no_grad():
        _, _, after = mixer(commits, None, mixer.initial_state(1), commit_output=False)
        _, _, steps = window.stepped(mixer, commits, queries, mixer.initial_state(1), [0])
    assert after["angle"].abs().max() <= math.pi
    apart = torch.remainder(after["angle"] - steps["angle"] + math.pi, 2 * math.pi) - math.pi
    assert apart.abs().max() < 2e-3


def test_bad_sizes_are_named():
    with pytest.raises(ConfigError, match="key_dim: an even number"):
        Mamba3Mixer(D, heads=1, key_dim=3, value_dim=2, norm_max=1.0)
    with pytest.raises(ConfigError, match="rank: must be at least 1, got 0"):
        Mamba3Mixer(D, heads=1, key_dim=4, value_dim=2, rank=0, norm_max=1.0)
