"""The RWKV-7 mixer: one address is erased, another one is written, and each token is mixed with the one before it.

    x_c = x + mu_c (x_{t-1} - x)                        c = r, k, v, a, d, g; for a query x_{t-1} is the last commit's
    r = x_r Wr     k = x_k Wk     v = m x_v Wv          a = m sigmoid(a0 + low-rank(x_a))
    kh = unit(k * xi)     kt = k * (1 + (a - 1) * ka)   rate = -e^-1/2 sigmoid(d0 + low-rank(tanh))
    S <- Diag(exp(rate_{t-1} elapsed_t)) S_{t-1}
    S_t = (I - (a*kh) (kh/w)^T) S + kt v^T              w = exp rate_{t-1}, the decay of one patch period
    commit:  y = (norm(S_t^T r) + (r . rho*kt) v) * gate Wo          query:  y = norm(S_t^T (exp(g)*r)) * gate Wo
    every 64 commits:       S <- S min(1, M / |S|_F)

At elapsed = 1 the edit is the paper's (Diag(w) - (a*kh) kh^T) S + kt v^T; time beyond one period passes before it, so a
long gap leaves nothing that could be erased twice. Two sub-tokens of the one scan: erase with the decay, then write
(math.md 1; arXiv 2503.14456). The paper's residual of the first layer's values is left out: a mixer knows no layers.

| symbol | shape | range |
|---|---|---|
| S `memory` | [B,H,K,V] | norm <= M at commit counts divisible by 64 |
| `previous` | [B,D] | input of the last commit |
| `rate` | [B,H,K] | in [-e^-1/2, 0], per patch period; 0 before the first commit |
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from tsgdn2.adjoints import rms_norm, unit
from tsgdn2.linear import Linear
from tsgdn2.mixers.contract import Commits, Exact, Mixer, MixerState, Queries, exact
from tsgdn2.mixers.delta import bound_factor
from tsgdn2.mixers.subtokens import SubTokens, scan
from tsgdn2.sequence import BOUND_EVERY, Plan

_EPS = 1e-6
_FASTEST = math.exp(-0.5)
_READ, _GATE, _KEY, _VALUE, _ERASE, _DECAY = range(6)


class _Up(Exact, Linear):
    """A layer that stays in float32 in half precision: its bias is a decay's dt_bias."""


class _LowRank(nn.Module):
    """bias + f(x A) B, with A [D,rank] and B [rank, out]; B starts at zero, so the bias speaks first."""

    def __init__(self, width: int, rank: int, bias: Tensor, *, squash: bool = False) -> None:
        super().__init__()
        self.down = Linear(width, rank, bias=False)
        self.up = _Up(rank, len(bias))
        nn.init.zeros_(self.up.weight)
        self.up.bias = nn.Parameter(bias)
        self.squash = squash

    def forward(self, x: Tensor) -> Tensor:
        """x [.., D] -> [.., out]."""
        low = self.down(x).to(self.up.weight.dtype)
        return torch.as_tensor(self.up(torch.tanh(low) if self.squash else low))


class RWKV7Mixer(Mixer):
    """RWKV-7 with an explicit state; D width, H heads, K key and V value channels per head."""

    def __init__(
        self, width: int, *, heads: int, key_dim: int, value_dim: int, norm_max: float, decay_from: str = "previous"
    ) -> None:
        super().__init__()
        self.decay_from = decay_from
        self.heads, self.key_dim, self.value_dim, self.norm_max = heads, key_dim, value_dim, norm_max
        keys, values, rank = heads * key_dim, heads * value_dim, value_dim
        self.mix = nn.Parameter(torch.rand(6, width))
        self.read_proj = Linear(width, keys, bias=False)
        self.key_proj = Linear(width, keys, bias=False)
        self.value_proj = Linear(width, values, bias=False)
        self.erase = _LowRank(width, rank, torch.zeros(keys))
        # from slow to fast channels in every head: rates of -0.001 to -0.3 a period
        slow = torch.linspace(math.log(1e-3), math.log(0.3), key_dim).exp() / _FASTEST
        self.decay = _LowRank(width, rank, torch.logit(slow).repeat(heads), squash=True)
        self.gate = nn.Sequential(Linear(width, rank, bias=False), nn.Sigmoid(), Linear(rank, values))
        self.erase_key = nn.Parameter(torch.ones(heads, key_dim))
        self.write_key = nn.Parameter(torch.ones(heads, key_dim))
        self.bonus = nn.Parameter(torch.zeros(heads, key_dim))
        self.norm = nn.Parameter(torch.ones(value_dim))
        self.out_proj = Linear(values, width, bias=False)

    def initial_state(self, batch: int) -> MixerState:
        """memory [B,H,K,V], previous [B,D], rate [B,H,K], all zero."""
        new = partial(self.out_proj.weight.new_zeros, dtype=exact(self.out_proj.weight.dtype))
        return {
            "memory": new(batch, self.heads, self.key_dim, self.value_dim),
            "previous": new(batch, self.mix.shape[1]),
            "rate": new(batch, self.heads, self.key_dim),
        }

    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """A window of packed commits and the queries between them; see Mixer.forward."""
        at = commits.at
        inputs = torch.cat([state["previous"], commits.x])
        x = self._mixed(commits.x, at.before.take(inputs))
        k, a, erased, v, rate = self._written(x, commits.observed)
        rates = torch.cat([state["rate"], rate])
        held = at.before.take(rates) if self.decay_from == "previous" else rate
        nothing = torch.zeros_like(k)
        r = self._heads(self.read_proj(x[_READ])) if commit_output else nothing
        tokens = SubTokens(
            q=torch.stack([nothing, r], 1),
            k=torch.stack([a * erased, k], 1),
            e=torch.stack([erased * torch.exp(-held), nothing], 1),
            z=torch.stack([torch.zeros_like(v), v], 1),
            g=torch.stack([commits.elapsed[:, None, None] * held, nothing], 1),
        )
        memory, read, query_read, query_gate = state["memory"], None, None, None
        if queries is not None:
            asked = self._mixed(queries.x, inputs.index_select(0, at.held))
            query_gate = self.gate(asked[_GATE])
            passed = torch.exp(queries.elapsed[:, None, None] * rates.index_select(0, at.held))
            query_r = torch.stack([torch.zeros_like(passed), self._heads(self.read_proj(asked[_READ])) * passed], 1)
            if at.dense and not commit_output:
                done = scan(tokens._replace(q=query_r), memory, at.commit_plan, self.norm_max, ends=True)
                assert done.ends is not None
                query_read, memory = done.reads[:, 1] * done.ends[..., None], done.memory
            else:
                plan = at.whole_plan
                mixed = SubTokens._make(plan.commits.put(t) for t in tokens)
                mixed = mixed._replace(q=mixed.q + plan.queries.put(query_r))
                done = scan(mixed, memory, Plan(plan.rounds), self.norm_max)
                read, query_read = plan.commits.take(done.reads)[:, 1], plan.queries.take(done.reads)[:, 1]
                memory = done.memory
        else:
            done = scan(tokens, memory, at.commit_plan, self.norm_max)
            read, memory = done.reads[:, 1], done.memory
        after = {"memory": memory, "previous": at.last.take(inputs), "rate": at.last.take(rates)}
        commit_y = None
        if commit_output and read is not None:
            commit_y = self._output(read, self.gate(x[_GATE]), self._bonus(r, k, v))
        query_y = None if query_read is None or query_gate is None else self._output(query_read, query_gate)
        return commit_y, query_y, after

    def step(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """One commit per row; see Mixer.step."""
        mixed = self._mixed(x, state["previous"])
        k, a, erased, v, rate = self._written(mixed, observed)
        r = self._heads(self.read_proj(mixed[_READ]))
        held = state["rate"] if self.decay_from == "previous" else rate
        memory = torch.exp(elapsed[:, None, None] * held)[..., None] * state["memory"]
        out = ((erased * torch.exp(-held))[..., None] * memory).sum(-2)
        memory = memory - (a * erased)[..., None] * out[..., None, :] + k[..., None] * v[..., None, :]
        read = (r[..., None] * memory).sum(-2)
        full = (count + 1) % BOUND_EVERY == 0
        if bool(full.any()):
            factor = torch.where(full[:, None], bound_factor(memory, self.norm_max), 1.0)
            memory = memory * factor[..., None, None]
        y = self._output(read, self.gate(mixed[_GATE]), self._bonus(r, k, v))
        return y, {"memory": memory, "previous": x.to(state["previous"].dtype), "rate": rate}

    def read(self, x: Tensor, elapsed: Tensor, state: MixerState) -> Tensor:
        """One query per row; see Mixer.read."""
        mixed = self._mixed(x, state["previous"])
        r = self._heads(self.read_proj(mixed[_READ])) * torch.exp(elapsed[:, None, None] * state["rate"])
        return self._output((r[..., None] * state["memory"]).sum(-2), self.gate(mixed[_GATE]))

    def _mixed(self, x: Tensor, before: Tensor) -> Tensor:
        """x and what stood before it, once for each use: [6, N, D]."""
        return x + self.mix[:, None] * (before - x)

    def _written(self, x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Key kt, strength a and address kh of the erase, value v, and the rate that the token leaves behind."""
        m = observed[:, None, None]
        k = self._heads(self.key_proj(x[_KEY]))
        learning = self._heads(self.erase(x[_ERASE])).sigmoid()
        erased = unit(k * self.erase_key, _EPS)
        v = m * torch.unflatten(self.value_proj(x[_VALUE]), -1, (self.heads, self.value_dim))
        rate = -_FASTEST * self._heads(self.decay(x[_DECAY])).sigmoid()
        return k * (1 + (learning - 1) * self.write_key), m * learning, erased, v, rate

    def _bonus(self, r: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (r * self.bonus * k).sum(-1, keepdim=True) * v

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, self.key_dim))

    def _output(self, o: Tensor, gate: Tensor, bonus: Tensor | None = None) -> Tensor:
        normed = rms_norm(o, self.norm, _EPS)
        normed = normed if bonus is None else normed + bonus
        return torch.as_tensor(self.out_proj(normed.flatten(-2) * gate))
