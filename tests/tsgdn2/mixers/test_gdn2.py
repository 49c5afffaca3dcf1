"""Every mixer: packed windows equal their steps, whatever the lengths, the gaps, the queries and the state before."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.mixers.contract import Commits, Queries
from tsgdn2.mixers.gdn2 import BOUND_EVERY, GDN2Mixer, bound_factor
from tsgdn2.mixers.lstm import LSTMMixer
from tsgdn2.mixers.none import NoMixer
from tsgdn2.sequence import Sequences

D = 12
MIXERS = {
    "gdn2": lambda: GDN2Mixer(D, heads=2, key_dim=4, value_dim=6, norm_max=0.3),
    "gdn2 own": lambda: GDN2Mixer(D, heads=2, key_dim=4, value_dim=6, norm_max=5.0, decay_from="own"),
    "lstm": lambda: LSTMMixer(D, 10),
    "none": lambda: NoMixer(D),
}


def windows(rng, lengths, counts, queries_per_commit):
    """Commits of packed sequences, and queries before, between and after them: a number drawn for every place."""
    after, owner, offset = [], [], 0
    for row, length in enumerate(lengths):
        for place in range(-1, length):
            times = 1 if queries_per_commit == "one" else int(rng.integers(0, 3))
            times = 0 if queries_per_commit == "one" and place < 0 else times
            after += [offset + place] * times
            owner += [row] * times
        offset += length
    order = np.arange(len(after)) if queries_per_commit == "one" else rng.permutation(len(after))
    at = Sequences(lengths, counts, np.array(after, np.int64)[order], np.array(owner, np.int64)[order])
    commits = Commits(
        x=torch.from_numpy(rng.normal(size=(offset, D))),
        observed=torch.from_numpy(rng.choice([0.25, 1.0], size=offset)),
        elapsed=torch.from_numpy(rng.choice([1.0, 1.0, 3.5, 40.0], size=offset)),
        at=at,
    )
    return commits, Queries(
        torch.from_numpy(rng.normal(size=(len(after), D))), torch.from_numpy(rng.random(len(after)))
    )


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("commit_output", [True, False])
@pytest.mark.parametrize("queries_per_commit", ["one", "any"])
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.sampled_from([0, 1, 2, 5, 63, 64, 65, 130]),
    count=st.sampled_from([0, 1, 63]),
    equal=st.booleans(),
)
def test_a_window_equals_its_steps(name, commit_output, queries_per_commit, seed, tokens, count, equal):
    torch.manual_seed(seed % 1000)
    rng = np.random.default_rng(seed)
    mixer = MIXERS[name]().double()
    lengths = [tokens, *([tokens] * 2 if equal else rng.integers(0, tokens + 1, size=2).tolist())]
    counts = [count, *([count] * 2 if equal else rng.integers(0, 130, size=2).tolist())]
    commits, queries = windows(rng, lengths, counts, queries_per_commit)
    start = {n: torch.randn_like(t) * (0.0 if n == "rate" else 1.0) for n, t in mixer.initial_state(3).items()}
    y, y_query, after = mixer(commits, queries, start, commit_output=commit_output)
    assert (y is None) != commit_output
    at = commits.at
    for row, length in enumerate(lengths):
        state = {n: t[row : row + 1] for n, t in start.items()}
        for n in range(-1, length):
            one = slice(int(at.offsets[row]) + n, int(at.offsets[row]) + n + 1)
            if n >= 0:
                done = torch.tensor([counts[row] + n])
                out, state = mixer.step(commits.x[one], commits.observed[one], commits.elapsed[one], done, state)
                if y is not None:
                    assert torch.allclose(out, y[one], rtol=1e-8, atol=1e-9)
            for m in np.flatnonzero((at.owner == row) & (at.after == one.start)):
                read = mixer.read(queries.x[m : m + 1], queries.elapsed[m : m + 1], state)
                assert torch.allclose(read[0], y_query[m], rtol=1e-8, atol=1e-9)
        for key, tensor in state.items():
            assert torch.allclose(tensor[0], after[key][row], rtol=1e-8, atol=1e-9), key


@pytest.mark.parametrize("queries_per_commit", ["one", "any"])
@pytest.mark.parametrize("name", MIXERS)
def test_gradients_reach_every_weight_and_are_finite(name, queries_per_commit):
    torch.manual_seed(0)
    mixer = MIXERS[name]().double()
    commits, queries = windows(np.random.default_rng(0), [70, 41], [0, 0], queries_per_commit)
    x = commits.x.requires_grad_()
    y, y_query, _ = mixer(commits._replace(x=x), queries, mixer.initial_state(2), commit_output=True)
    (y.square().sum() + y_query.square().sum() + 0 * x.sum()).backward()
    for key, parameter in mixer.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("commit_output", [True, False])
@pytest.mark.parametrize("queries_per_commit", ["one", "any"])
def test_packing_changes_no_gradient(name, commit_output, queries_per_commit):
    torch.manual_seed(0)
    mixer = MIXERS[name]().double()
    lengths, counts = [70, 1, 0, 129, 41], [0, 63, 5, 64, 30]
    commits, queries = windows(np.random.default_rng(1), lengths, counts, queries_per_commit)
    start = {n: torch.randn_like(t) for n, t in mixer.initial_state(len(lengths)).items()}
    if "rate" in start:
        start["rate"] = -start["rate"].abs()

    def loss(commits, queries, state):
        y, y_query, after = mixer(commits, queries, state, commit_output=commit_output)
        parts = [y_query, *after.values(), *([y] if y is not None else [])]
        return sum((p * torch.linspace(0.5, 1.5, p.shape[-1], dtype=p.dtype)).square().sum() for p in parts)

    weights = [p for p in mixer.parameters() if p.requires_grad]
    packed = torch.autograd.grad(loss(commits, queries, start), weights, allow_unused=True) if weights else ()
    one_by_one = []
    for row, length in enumerate(lengths):
        own, at = slice(int(commits.at.offsets[row]), int(commits.at.offsets[row + 1])), commits.at
        mine = np.flatnonzero(at.owner == row)
        alone = Sequences([length], [counts[row]], at.after[mine] - own.start, 0 * at.owner[mine])
        part = Commits(commits.x[own], commits.observed[own], commits.elapsed[own], alone)
        asked = Queries(queries.x[mine], queries.elapsed[mine])
        one_by_one.append(loss(part, asked, {n: t[row : row + 1] for n, t in start.items()}))
    alone = torch.autograd.grad(sum(one_by_one), weights, allow_unused=True) if weights else ()
    for a, b in zip(packed, alone, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MIXERS)
def test_a_query_of_a_carried_state_is_not_behind_the_commit_of_another_sequence(name):
    torch.manual_seed(0)
    mixer = MIXERS[name]().double()
    at = Sequences([1, 1], [5, 5], np.array([0, 1]), np.array([1, 1]))
    start = {n: torch.randn_like(t) * (0.0 if n == "rate" else 1.0) for n, t in mixer.initial_state(2).items()}
    x = torch.randn(2, D, dtype=torch.float64)
    commits = Commits(x=x, observed=torch.ones(2).double(), elapsed=torch.ones(2).double(), at=at)
    queries = Queries(torch.randn(2, D).double(), torch.rand(2).double())
    _, answers, _ = mixer(commits, queries, start, commit_output=False)
    own = {n: t[1:] for n, t in start.items()}
    carried = mixer.read(queries.x[:1], queries.elapsed[:1], own)
    torch.testing.assert_close(answers[:1], carried, rtol=1e-9, atol=1e-9)


def test_queries_leave_nothing_behind():
    torch.manual_seed(0)
    mixer = MIXERS["gdn2"]().double()
    commits, queries = windows(np.random.default_rng(0), [70, 41], [0, 0], "any")
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
    k = keys.float().repeat(tokens // 2, 1).reshape(tokens, 1, 2)
    b = gates.float().repeat(tokens // 2, 1).reshape(tokens, 1, 2)
    stream = k, k, k, 0 * k, b, 0.01 * torch.ones_like(k)
    memory, largest, plan = torch.eye(2).reshape(1, 1, 2, 2), 0.0, Sequences([tokens], [0]).commit_plan
    for _ in range(125):
        reads, memory = mixer._scan(stream, torch.ones(tokens), memory, plan)
        largest = max(largest, float(reads.abs().max()))
        assert float(memory.norm()) <= 100.0 * (1 + 1e-5)
    assert 100.0 / 8 < largest < 100.0 * 1.118**BOUND_EVERY, "it does expand between two bounds, and no further"


def test_the_bound_leaves_a_small_state_alone_to_the_bit():
    memory = torch.randn(2, 3, 4, 5)
    assert torch.equal(bound_factor(memory, 1e3), torch.ones(2, 3))
    assert torch.equal(memory * bound_factor(memory, 1e3)[..., None, None], memory)
