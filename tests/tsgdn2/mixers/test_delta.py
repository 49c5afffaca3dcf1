"""Each member of the delta family is its paper's recurrence, token by token in float64, in windows, steps and reads."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from tsgdn2.mixers.contract import Commits, Queries, TracedMixer
from tsgdn2.mixers.delta import DeltaMixer
from tsgdn2.mixers.gates import MEMBERS
from tsgdn2.sequence import Sequences

D, H, K, V = 7, 2, 3, 5
BOUND, NORM_MAX = 64, 0.4
EXACT = {"rtol": 1e-9, "atol": 1e-10}
EYE = torch.eye(K, dtype=torch.float64)


def fresh(name, **options):
    torch.manual_seed(0)
    gates = MEMBERS[name]
    return DeltaMixer(D, gates=gates, heads=H, key_dim=K, value_dim=V, norm_max=NORM_MAX, **options).double()


def member(name, **options):
    mixer = fresh(name, **options)
    with torch.no_grad():  # as after a training: no gate sits in the middle of its range
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


class Recurrence:
    """One sequence of one member, written from its row of the table; it shares the weights and nothing else."""

    def __init__(self, name, mixer, state):
        self.name, self.mixer = name, mixer
        self.S = state["memory"][0]
        self.inputs = list(state["inputs"][0])
        self.rate = state["rate"][0] if "rate" in state else None

    def token(self, x):
        """What a token brings: input of the convolution, q, k [H,K], v [H,V], rate, dt, gates b and w, output gate."""
        keys, values, name, mixer = H * K, H * V, self.name, self.mixer
        q, gate, low, k, v, b, w = mixer.in_proj(x).split(mixer.sizes)
        inputs = torch.cat([q, k, v])
        mixed = F.silu(sum(mixer.conv[i] * tap for i, tap in enumerate([*self.inputs, inputs])))
        q, k, v = mixed[:keys].view(H, K), mixed[keys : 2 * keys].view(H, K), mixed[2 * keys :].view(H, V)
        if name != "mamba2":
            q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
        dt = rate = None
        if name in ("gdn", "mamba2"):
            dt = F.softplus(low + mixer.dt_bias).view(H, 1)
            rate = (-mixer.A_log.exp()[:, None] * dt).expand(H, K)
        elif name == "kda-sigmoid":
            x = (mixer.rate_up(low) + mixer.dt_bias).view(H, K)
            rate = -5.0 / (1.0 + torch.exp(-mixer.A_log.exp()[:, None] * x))
        elif name != "deltanet":
            rate = -mixer.A_log.exp()[:, None] * F.softplus(mixer.rate_up(low) + mixer.dt_bias).view(H, K)
        gate = F.silu(mixer.gate_up(gate)).view(H, values // H)
        return inputs, q, k, v, rate, dt, b.sigmoid(), w.sigmoid(), gate

    def commit(self, x, m, elapsed, count):
        inputs, q, k, v, rate, dt, b, w, gate = self.token(x)
        held = rate if self.mixer.decay_from == "own" else self.rate
        new = []
        for h in range(H):
            a = torch.ones(K, dtype=x.dtype) if rate is None else torch.exp(elapsed * held[h])
            S, kh, vh = self.S[h], k[h], v[h]
            kk, kv = torch.outer(kh, kh), torch.outer(kh, vh)
            if self.name in ("kda", "kda-sigmoid"):
                S = (EYE - m * b[h] * kk) @ torch.diag(a) @ S + m * b[h] * kv
            elif self.name == "gdn":
                S = a[0] * (EYE - m * b[h] * kk) @ S + m * b[h] * kv
            elif self.name == "deltanet":
                S = (EYE - m * b[h] * kk) @ S + m * b[h] * kv
            elif self.name == "mamba2":
                S = a[0] * S + m * torch.outer(kh, dt[h] * vh)
            else:
                scalar_erase = self.name in ("gdn2-scalar-erase", "gdn2-scalar-both")
                scalar_write = self.name in ("gdn2-scalar-write", "gdn2-scalar-both")
                erase = b[h] if scalar_erase else b.view(H, K)[h]
                erase = 2 * erase if self.name == "gdn2-erase-2" else erase
                write = w[h] if scalar_write else w.view(H, V)[h]
                S = (EYE - m * torch.outer(kh, erase * kh)) @ torch.diag(a) @ S + m * torch.outer(kh, write * vh)
            new.append(S)
        self.S = torch.stack(new)
        y = self.output(self.S, q, v, gate)
        if (count + 1) % BOUND == 0:
            self.S = self.S * (NORM_MAX / self.S.norm(dim=(1, 2))).clamp_max(1.0)[:, None, None]
        self.inputs = [*self.inputs[1:], inputs]
        self.rate = rate
        return y

    def read(self, x, elapsed):
        _, q, _, v, rate, _, _, _, gate = self.token(x)
        held = rate if self.mixer.decay_from == "own" else self.rate
        S = self.S if rate is None else torch.exp(elapsed * held)[..., None] * self.S
        return self.output(S, q, v, gate)

    def output(self, S, q, v, gate):
        o = torch.stack([S[h].T @ q[h] for h in range(H)])
        o = o + self.mixer.D[:, None] * v if self.name == "mamba2" else K**-0.5 * o
        o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.mixer.norm
        return self.mixer.out_proj((o * gate).flatten())

    def state(self):
        numbers = 1 if self.name in ("gdn", "mamba2") else K  # one number per head is held once
        rate = {} if self.rate is None else {"rate": self.rate[:, :numbers]}
        return {"memory": self.S, "inputs": torch.stack(self.inputs), **rate}


def stream(rng, lengths, counts, every_commit):
    """Packed commits with gaps and partly or wholly missing tokens; queries before, between and after, or one each."""
    after, owner, offset = [], [], 0
    for row, length in enumerate(lengths):
        for place in range(-1, length):
            times = int(place >= 0) if every_commit else int(rng.integers(0, 3))
            after += [offset + place] * times
            owner += [row] * times
        offset += length
    order = np.arange(len(after)) if every_commit else rng.permutation(len(after))
    at = Sequences(lengths, counts, np.array(after, np.int64)[order], np.array(owner, np.int64)[order])
    commits = Commits(
        x=torch.from_numpy(rng.normal(size=(offset, D))),
        observed=torch.from_numpy(rng.choice([0.0, 0.25, 1.0], size=offset)),
        elapsed=torch.from_numpy(rng.choice([1.0, 1.0, 3.5, 40.0], size=offset)),
        at=at,
    )
    queries = Queries(torch.from_numpy(rng.normal(size=(len(after), D))), torch.from_numpy(3 * rng.random(len(after))))
    return commits, queries


def carried(mixer, rng, batch):
    """A state as a window may find it."""
    fresh = mixer.initial_state(batch)
    state = {name: torch.from_numpy(rng.normal(size=tuple(t.shape))) for name, t in fresh.items()}
    return state | ({"rate": -state["rate"].abs()} if "rate" in state else {})


def one_by_one(name, mixer, commits, queries, state):
    """The recurrence over every sequence: commit outputs, query outputs, states."""
    at, y, answers = commits.at, [None] * len(commits.x), [None] * len(queries.x)
    ends = []
    for row, length in enumerate(at.length.tolist()):
        told = Recurrence(name, mixer, {n: t[row : row + 1] for n, t in state.items()})
        begin = int(at.offsets[row])
        for n in range(begin - 1, begin + length):
            if n >= begin:
                done = int(at.count[row]) + n - begin
                y[n] = told.commit(commits.x[n], commits.observed[n], commits.elapsed[n], done)
            for i in np.flatnonzero((at.owner == row) & (at.after == n)):
                answers[i] = told.read(queries.x[i], queries.elapsed[i])
        ends.append(told.state())
    states = {key: torch.stack([end[key] for end in ends]) for key in ends[0]}
    empty = torch.zeros(0, D, dtype=torch.float64)
    return torch.stack(y) if y else empty, torch.stack(answers) if answers else empty, states


@pytest.mark.parametrize("decay_from", ["previous", "own"])
@pytest.mark.parametrize("name", MEMBERS)
@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.sampled_from([(3, 0, 21), (6, 6, 6), (1,), (0, 0), (17, 2, 5)]),
    commit_output=st.booleans(),
    every_commit=st.booleans(),
)
def test_a_member_is_its_recurrence(name, decay_from, seed, lengths, commit_output, every_commit):
    rng = np.random.default_rng(seed)
    mixer = member(name, decay_from=decay_from)
    counts = rng.choice([0, 1, 60, 63, 127], size=len(lengths))
    commits, queries = stream(rng, lengths, counts, every_commit)
    start = carried(mixer, rng, len(lengths))
    with torch.no_grad():
        y, answers, after = mixer(commits, queries, start, commit_output=commit_output)
        true_y, true_answers, true_after = one_by_one(name, mixer, commits, queries, start)
    assert (y is not None) == commit_output
    if y is not None:
        torch.testing.assert_close(y, true_y, **EXACT)
    torch.testing.assert_close(answers, true_answers, **EXACT)
    assert after.keys() == true_after.keys() == mixer.initial_state(1).keys()
    for key, tensor in after.items():
        torch.testing.assert_close(tensor, true_after[key], **EXACT)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_stream_equals_its_window_and_its_trace_is_its_edit(name):
    rng = np.random.default_rng(3)
    mixer = member(name)
    commits, queries = stream(rng, [70], [60], every_commit=True)
    start = carried(mixer, rng, 1)
    y, answers, after = mixer(commits, queries, start, commit_output=True)
    state = start
    for n in range(70):
        token = commits.x[n : n + 1], commits.observed[n : n + 1], commits.elapsed[n : n + 1], torch.tensor([60 + n])
        out, new, traced = mixer.trace(*token, state)
        again, same = mixer.step(*token, state)
        assert torch.equal(out, again)
        assert all(torch.equal(new[key], same[key]) for key in new)
        torch.testing.assert_close(out[0], y[n], **EXACT)
        k, e, z, g = (traced[key][0] for key in "kezg")
        decayed = g.exp()[..., None] * state["memory"][0]
        edited = decayed + k[..., None] * (z - (e[..., None] * decayed).sum(1))[:, None]
        torch.testing.assert_close(new["memory"][0], traced["factor"][0, :, None, None] * edited, **EXACT)
        if not commits.observed[n]:
            assert not e.any()
            assert not z.any()
        state = new
        torch.testing.assert_close(
            mixer.read(queries.x[n : n + 1], queries.elapsed[n : n + 1], state)[0], answers[n], **EXACT
        )
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, after[key], **EXACT)
        assert tensor.shape == mixer.initial_state(1)[key].shape, "as large as before the first commit"
    assert isinstance(mixer, TracedMixer)


@pytest.mark.parametrize("name", MEMBERS)
def test_gradients_are_those_of_the_recurrence(name):
    rng = np.random.default_rng(5)
    mixer = member(name)
    commits, queries = stream(rng, [5, 9], [3, 58], every_commit=False)
    start = carried(mixer, rng, 2)

    def loss(y, answers, after):
        return sum((t * torch.linspace(0.5, 1.5, t.shape[-1])).square().sum() for t in (y, answers, *after.values()))

    weights = dict(mixer.named_parameters())
    ours = torch.autograd.grad(loss(*mixer(commits, queries, start, commit_output=True)), list(weights.values()))
    truth = torch.autograd.grad(loss(*one_by_one(name, mixer, commits, queries, start)), list(weights.values()))
    for key, a, b in zip(weights, ours, truth, strict=True):
        assert torch.isfinite(a).all(), key
        assert a.abs().max() > 0, key
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


def test_a_bounded_decay_starts_as_the_softplus_one_and_stays_inside_its_bound():
    kda, bounded = (fresh(name).requires_grad_(requires_grad=False) for name in ("kda", "kda-sigmoid"))
    nothing = torch.zeros(1, V, dtype=torch.float64)
    torch.testing.assert_close(kda._rate(nothing), bounded._rate(nothing), rtol=1e-4, atol=1e-7)
    far = bounded._rate(1e4 * torch.randn(1000, V, dtype=torch.float64))
    assert -5.0 <= float(far.min()) < -4.9
    assert -0.1 < float(far.max()) <= 0.0


def test_a_bounded_decay_has_a_slope_per_head_and_acts_as_long_as_time_passes():
    mixer = fresh("kda-sigmoid").requires_grad_(requires_grad=False)
    mixer.rate_up.weight.zero_()
    bias, slope = torch.linspace(-2.0, 1.0, H * K, dtype=torch.float64), torch.tensor([[0.5], [2.0]]).double()
    mixer.dt_bias.copy_(bias)
    mixer.A_log.copy_(slope[:, 0].log())
    rate = -5.0 * torch.sigmoid(slope * bias.view(H, K))
    x, one = torch.randn(1, D, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    start = carried(mixer, np.random.default_rng(0), 1)
    _, after = mixer.step(x, 0 * one, one, torch.zeros(1, dtype=torch.int64), start)
    torch.testing.assert_close(after["rate"][0], rate, **EXACT)
    for waits in ([3.5], [1.0, 2.5]):
        state = after
        for wait in waits:  # nothing is seen, so time alone acts; the rate is kept as it is by the same input
            _, state = mixer.step(x, 0 * one, wait * one, torch.ones(1, dtype=torch.int64), state)
        torch.testing.assert_close(state["memory"][0], (3.5 * rate).exp()[..., None] * after["memory"][0], **EXACT)


def test_an_erase_of_up_to_two_expands_by_no_more_than_the_root_of_two_a_token():
    rng = torch.Generator().manual_seed(0)
    k = F.normalize(torch.randn(20_000, K, generator=rng, dtype=torch.float64), dim=-1)
    b = torch.randint(0, 2, k.shape, generator=rng) * MEMBERS["gdn2-erase-2"].erase_range  # the norm is convex in b
    largest = torch.linalg.matrix_norm(EYE - k[:, :, None] * (b * k)[:, None], ord=2).max()
    assert 1.4 < float(largest) <= math.sqrt(2) + 1e-9
