"""Sliding-window attention is softmax over the last W commits, in windows, steps and reads, from a fixed ring."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.mixers.contract import Commits, Queries
from tsgdn2.mixers.swa import SWAMixer
from tsgdn2.sequence import Sequences

D, H, V = 7, 2, 5
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def attention(window, key_dim=6):
    torch.manual_seed(window)
    mixer = SWAMixer(D, heads=H, key_dim=key_dim, value_dim=V, window=window).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def turned(x, time):
    """Pairs (i, i + K // 2) as complex numbers, times exp(i time 10000^(-i / (K // 2)))."""
    half = x.shape[-1] // 2
    speed = torch.tensor([10_000.0 ** (-i / half) for i in range(half)], dtype=torch.float64) if half else x[..., :0]
    pairs = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.exp(1j * time * speed)
    return torch.cat([pairs.real, pairs.imag, x[..., 2 * half :]], -1)


def normed(x, weight):
    x = x.view(H, -1)
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


class Attention:
    """One sequence with every commit it ever had, as (time, m, k, v); of them the last W are looked at."""

    def __init__(self, mixer, state, count):
        self.mixer, self.clock = mixer, 0.0
        order = [(count + i) % mixer.window for i in range(mixer.window)]
        names = ("age", "weight", "keys", "values")
        self.past = [(-state["age"][0, i], *(state[n][0, i] for n in names[1:])) for i in order]

    def commit(self, x, m, elapsed):
        self.clock = self.clock + elapsed
        q, k, v = self.mixer.in_proj(x).split(self.mixer.sizes)
        self.past.append((self.clock, m, normed(k, self.mixer.k_norm), v.view(H, V)))
        return self.look(q, self.clock)

    def read(self, x, elapsed):
        return self.look(self.mixer.in_proj(x).split(self.mixer.sizes)[0], self.clock + elapsed)

    def look(self, q, now):
        q, total, out = normed(q, self.mixer.q_norm), self.mixer.sink.exp(), torch.zeros(H, V, dtype=torch.float64)
        for time, m, k, v in self.past[-self.mixer.window :]:
            weight = m * torch.exp((turned(q, now - time) * k).sum(-1) / math.sqrt(k.shape[-1]))
            total, out = total + weight, out + weight[:, None] * v
        return self.mixer.out_proj((out / total[:, None]).flatten())

    def state(self, count):
        found = {}
        for name, place in (("age", 0), ("weight", 1), ("keys", 2), ("values", 3)):
            ring = [None] * self.mixer.window
            for i, token in enumerate(self.past[-self.mixer.window :]):
                ring[(count + i) % self.mixer.window] = self.clock - token[0] if name == "age" else token[place]
            found[name] = torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in ring])
        return found


def stream(rng, lengths, counts, every_commit):
    """Packed commits with gaps and partly or wholly missing tokens; queries before, between and after, or one each."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    after, owner = [], []
    for row, length in enumerate(lengths):
        for place in range(-1, length):
            times = int(place >= 0) if every_commit else int(rng.integers(0, 3))
            after += [int(offsets[row]) + place] * times
            owner += [row] * times
    order = np.arange(len(after)) if every_commit else rng.permutation(len(after))
    at = Sequences(lengths, counts, np.array(after, np.int64)[order], np.array(owner, np.int64)[order])
    total = int(offsets[-1])
    commits = Commits(
        x=torch.from_numpy(rng.normal(size=(total, D))),
        observed=torch.from_numpy(rng.choice([0.0, 0.25, 1.0], size=total)),
        elapsed=torch.from_numpy(rng.choice([1.0, 1.0, 3.5, 40.0], size=total)),
        at=at,
    )
    queries = Queries(torch.from_numpy(rng.normal(size=(len(after), D))), torch.from_numpy(3 * rng.random(len(after))))
    return commits, queries


def carried(mixer, rng, counts):
    """The ring as `counts` commits leave it."""
    state = {n: torch.from_numpy(rng.normal(size=tuple(t.shape))) for n, t in mixer.initial_state(len(counts)).items()}
    for row, count in enumerate(counts):
        ages = np.concatenate([np.zeros(1), np.cumsum(rng.choice([1.0, 7.0], size=mixer.window - 1))])
        slots = (count - 1 - np.arange(mixer.window)) % mixer.window  # newest first
        state["age"][row, slots] = torch.from_numpy(ages)
        state["weight"][row, slots] = torch.from_numpy(rng.random(mixer.window) * (np.arange(mixer.window) < count))
    return state


def one_by_one(mixer, commits, queries, state):
    at, y, answers, ends = commits.at, [None] * len(commits.x), [None] * len(queries.x), []
    for row, length in enumerate(at.length.tolist()):
        told = Attention(mixer, {n: t[row : row + 1] for n, t in state.items()}, int(at.count[row]))
        begin = int(at.offsets[row])
        for n in range(begin - 1, begin + length):
            if n >= begin:
                y[n] = told.commit(commits.x[n], commits.observed[n], commits.elapsed[n])
            for i in np.flatnonzero((at.owner == row) & (at.after == n)):
                answers[i] = told.read(queries.x[i], queries.elapsed[i])
        ends.append(told.state(int(at.count[row]) + length))
    empty = torch.zeros(0, D, dtype=torch.float64)
    states = {key: torch.stack([end[key] for end in ends]) for key in ends[0]}
    return torch.stack(y) if y else empty, torch.stack(answers) if answers else empty, states


@pytest.mark.parametrize(("window", "key_dim"), [(1, 6), (4, 1), (5, 3), (80, 6)])
@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.sampled_from([(3, 0, 21), (6, 6, 6), (1,), (0, 0), (17, 2, 5), (70,)]),
    commit_output=st.booleans(),
    every_commit=st.booleans(),
)
def test_a_window_is_softmax_over_the_last_commits(window, key_dim, seed, lengths, commit_output, every_commit):
    rng = np.random.default_rng(seed)
    mixer = attention(window, key_dim)
    counts = rng.choice([0, 1, 3, 100], size=len(lengths))
    commits, queries = stream(rng, lengths, counts, every_commit)
    start = carried(mixer, rng, counts)
    with torch.no_grad():
        y, answers, after = mixer(commits, queries, start, commit_output=commit_output)
        true_y, true_answers, true_after = one_by_one(mixer, commits, queries, start)
    assert (y is not None) == commit_output
    if y is not None:
        torch.testing.assert_close(y, true_y, **EXACT)
    torch.testing.assert_close(answers, true_answers, **EXACT)
    for key, tensor in after.items():
        torch.testing.assert_close(tensor, true_after[key], **EXACT)


@pytest.mark.parametrize("window", [1, 5])
def test_a_stream_equals_its_window_in_a_ring_of_fixed_size(window):
    rng = np.random.default_rng(3)
    mixer = attention(window).requires_grad_(requires_grad=False)
    commits, queries = stream(rng, [33], [2], every_commit=True)
    start = carried(mixer, rng, [2])
    y, answers, after = mixer(commits, queries, start, commit_output=True)
    state = start
    for n in range(33):
        one = slice(n, n + 1)
        out, state = mixer.step(
            commits.x[one], commits.observed[one], commits.elapsed[one], torch.tensor([2 + n]), state
        )
        torch.testing.assert_close(out[0], y[n], **EXACT)
        torch.testing.assert_close(mixer.read(queries.x[one], queries.elapsed[one], state)[0], answers[n], **EXACT)
        assert {key: t.shape for key, t in state.items()} == {key: t.shape for key, t in start.items()}
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, after[key], **EXACT)


def test_gradients_are_those_of_the_softmax():
    rng = np.random.default_rng(5)
    mixer = attention(4)
    commits, queries = stream(rng, [5, 9], [3, 0], every_commit=False)
    start = carried(mixer, rng, [3, 0])

    def loss(y, answers, after):
        return sum((t * torch.linspace(0.5, 1.5, t.shape[-1])).square().sum() for t in (y, answers, after["keys"]))

    weights = dict(mixer.named_parameters())
    ours = torch.autograd.grad(loss(*mixer(commits, queries, start, commit_output=True)), list(weights.values()))
    truth = torch.autograd.grad(loss(*one_by_one(mixer, commits, queries, start)), list(weights.values()))
    for key, a, b in zip(weights, ours, truth, strict=True):
        assert torch.isfinite(a).all(), key
        assert a.abs().max() > 0, key
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_nothing_seen_is_answered_with_nothing_and_a_missing_token_is_never_attended():
    mixer = attention(4).requires_grad_(requires_grad=False)
    x = torch.randn(2, D, dtype=torch.float64)
    fresh, one, zero = mixer.initial_state(2), torch.ones(2).double(), torch.zeros(2).double()
    assert torch.equal(mixer.read(x, one, fresh), torch.zeros(2, D).double())
    y, state = mixer.step(x, zero, one, torch.zeros(2, dtype=torch.int64), fresh)
    assert torch.equal(y, torch.zeros(2, D).double())
    assert torch.equal(mixer.read(x, one, state), torch.zeros(2, D).double())


def test_time_is_told_apart_and_only_what_has_passed_counts():
    mixer = attention(3).requires_grad_(requires_grad=False)
    x, one = torch.randn(4, 2, D, dtype=torch.float64), torch.ones(2).double()
    states = []
    for waits in ([5.0, 1.0, 2.5], [900.0, 1.0, 2.5]):
        state = mixer.initial_state(2)
        for n, wait in enumerate(waits):
            _, state = mixer.step(x[n], one, wait * one, torch.full((2,), n), state)
        states.append(state)
    near, far = (mixer.read(x[3], one, state) for state in states)
    torch.testing.assert_close(near, far, **EXACT)  # the first wait is before everything that is held
    assert (mixer.read(x[3], 9 * one, states[0]) - near).abs().max() > 1e-3
