"""Every mixer: a window equals its steps, whatever the lengths, the gaps and the state it starts from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.gdn2 import BOUND_EVERY, GDN2Mixer, bound_factor
from tsgdn2.mixer import Commits, LSTMMixer, NoMixer, Queries

D = 12
MIXERS = {
    "gdn2": lambda: GDN2Mixer(D, heads=2, key_dim=4, value_dim=6, norm_max=5.0),
    "gdn2 own": lambda: GDN2Mixer(D, heads=2, key_dim=4, value_dim=6, norm_max=5.0, decay_from="own"),
    "lstm": lambda: LSTMMixer(D, 10),
    "none": lambda: NoMixer(D),
}


def windows(rng, batch, tokens, lengths, count):
    commits = Commits(
        x=torch.from_numpy(rng.normal(size=(batch, tokens, D))),
        observed=torch.from_numpy(rng.choice([0.25, 1.0], size=(batch, tokens))),
        elapsed=torch.from_numpy(rng.choice([1.0, 1.0, 3.5, 40.0], size=(batch, tokens))),
        length=torch.tensor(lengths),
        count=torch.full((batch,), count),
    )
    queries = Queries(
        torch.from_numpy(rng.normal(size=(batch, tokens, D))), torch.from_numpy(rng.random((batch, tokens)))
    )
    return commits, queries


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("commit_output", [True, False])
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6), tokens=st.sampled_from([1, 2, 5, 63, 64, 65, 130]), count=st.sampled_from([0, 1, 63])
)
def test_a_window_equals_its_steps(name, commit_output, seed, tokens, count):
    torch.manual_seed(seed % 1000)
    rng = np.random.default_rng(seed)
    mixer = MIXERS[name]().double()
    lengths = [tokens, int(rng.integers(0, tokens + 1)), int(rng.integers(0, tokens + 1))]
    commits, queries = windows(rng, 3, tokens, lengths, count)
    start = {n: torch.randn_like(t) * (0.0 if n == "rate" else 1.0) for n, t in mixer.initial_state(3).items()}
    y, y_query, after = mixer(commits, queries, start, commit_output=commit_output)
    assert (y is None) != commit_output
    for row, length in enumerate(lengths):
        state = {n: t[row : row + 1] for n, t in start.items()}
        for n in range(length):
            one, state = mixer.step(
                commits.x[row : row + 1, n],
                commits.observed[row : row + 1, n],
                commits.elapsed[row : row + 1, n],
                torch.tensor([count + n]),
                state,
            )
            if y is not None:
                assert torch.allclose(one[0], y[row, n], rtol=1e-8, atol=1e-9)
            read = mixer.read(queries.x[row : row + 1, n], queries.elapsed[row : row + 1, n], state)
            assert torch.allclose(read[0], y_query[row, n], rtol=1e-8, atol=1e-9)
        for key, tensor in state.items():
            assert torch.allclose(tensor[0], after[key][row], rtol=1e-8, atol=1e-9), key


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_reach_every_weight_and_are_finite(name):
    torch.manual_seed(0)
    mixer = MIXERS[name]().double()
    commits, queries = windows(np.random.default_rng(0), 2, 70, [70, 41], 0)
    x = commits.x.requires_grad_()
    y, y_query, _ = mixer(commits._replace(x=x), queries, mixer.initial_state(2), commit_output=True)
    (y.square().sum() + y_query.square().sum() + 0 * x.sum()).backward()
    for key, parameter in mixer.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


def test_queries_leave_nothing_behind():
    torch.manual_seed(0)
    mixer = MIXERS["gdn2"]().double()
    commits, queries = windows(np.random.default_rng(0), 2, 70, [70, 41], 0)
    _, _, with_queries = mixer(commits, queries, mixer.initial_state(2), commit_output=True)
    _, _, without = mixer(commits, None, mixer.initial_state(2), commit_output=True)
    for name in without:
        assert torch.allclose(with_queries[name], without[name], rtol=1e-12, atol=1e-12), name


def test_an_adversarial_erase_stream_stays_bounded_over_a_million_tokens_without_decay():
    # two keys and two one-sided gates whose product has spectral radius 1.25, so 1.118 per token (math.md 2)
    angles = torch.deg2rad(torch.tensor([66.0, 24.0], dtype=torch.float64))
    keys = torch.stack([angles.cos(), angles.sin()], -1)
    gates = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    product = torch.linalg.multi_dot([eye - torch.outer(k, b * k) for k, b in zip(keys, gates, strict=True)])
    assert torch.linalg.eigvals(product).abs().max() > 1.249
    mixer = GDN2Mixer(D, heads=1, key_dim=2, value_dim=2, norm_max=100.0)
    tokens = 64 * 125
    k = keys.float().repeat(tokens // 2, 1).reshape(1, tokens, 1, 2)
    b = gates.float().repeat(tokens // 2, 1).reshape(1, tokens, 1, 2)
    ones = torch.ones(1, tokens)
    commits = Commits(
        x=ones[..., None], observed=ones, elapsed=ones, length=torch.tensor([tokens]), count=torch.tensor([0])
    )
    memory, largest = torch.eye(2).reshape(1, 1, 2, 2), 0.0
    for _ in range(125):
        memory, reads, _ = mixer._scan(k, k, k, 0 * k, b, 0.01 * torch.ones_like(k), ones, None, True, memory, commits)
        largest = max(largest, float(reads.abs().max()))
        assert float(memory.norm()) <= 100.0 * (1 + 1e-5)
    assert 100.0 / 8 < largest < 100.0 * 1.118**BOUND_EVERY, "it does expand between two bounds, and no further"


def test_the_bound_leaves_a_small_state_alone_to_the_bit():
    memory = torch.randn(2, 3, 4, 5)
    assert torch.equal(bound_factor(memory, 1e3), torch.ones(2, 3))
    assert torch.equal(memory * bound_factor(memory, 1e3)[..., None, None], memory)
