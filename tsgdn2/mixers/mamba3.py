"""The Mamba-3 mixer: a decayed sum of writes, trapezoidal in time, with keys and reads turned by accumulated angles.

    q, k = turn(norm(x W) + bias, phi)/K^1/2   (R of each)   v = m x Wv         step = softplus(x Ws + bias)
    rate = -exp(A_log) step                    phi_t = phi_{t-1} + m step theta(x)                       mod 2 pi
    zeta = lambda step      eta = m (1 - lambda) step a      lambda = sigmoid(x Wl)      a_t = exp(rate_{t-1} elapsed_t)
    S_t = a_t S_{t-1} + eta_t sum_r k_{t-1,r} (u_r*v_{t-1})^T + zeta_t sum_r k_{t,r} (u_r*v_t)^T     u = 1 if R = 1
    y_t = RMSNorm_V(sum_r d_r * S_t^T q_{t,r}) * SiLU(gate(x)) Wo
    query after commit t:   o = S_t^T (exp(rate_t elapsed) q), q turned by phi_t
    every 64 commits:       S <- S min(1, M / |S|_F)

R = 1 is SISO, R > 1 is MIMO: R sub-tokens of the one scan. The scan holds H_t = S_t - zeta_t sum_r k_{t,r} (u_r*v_t)^T,
so that a token is one write: H_t = a_t H_{t-1} + (a_t zeta_{t-1} + eta_t) sum_r k_{t-1,r} (u_r*v_{t-1})^T (math.md 1);
a round starts from S, that is with zeta_{t-1} = 0. There is no erase: it forgets by decay alone. Turns count tokens and
decay counts time, so a gap fades the state and turns nothing. Source: Mamba-3 (ICLR 2026); its skip D v is left to the
residual stream, because a query has no v.

| symbol | shape | range |
|---|---|---|
| S `memory` | [B,H,K,V] | norm <= M at commit counts divisible by 64 |
| `key`, `value` | [B,R,H,K], [B,H,V] | k turned and v of the last commit |
| phi `angle` | [B,H,K/2] | [-pi, pi) |
| `rate` | [B,H] | <= 0, per patch period; 0 before the first commit |
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tsgdn2.adjoints import rms_norm
from tsgdn2.errors import ConfigError
from tsgdn2.linear import Linear, product
from tsgdn2.mixers.contract import Commits, Mixer, MixerState, Queries
from tsgdn2.mixers.delta import bound_factor
from tsgdn2.mixers.subtokens import Finish, SubTokens, scan
from tsgdn2.sequence import BOUND_EVERY, Ints, Plan, Round, Sequences

_EPS = 1e-6


class Mamba3Mixer(Mixer):
    """Mamba-3 with an explicit state; D width, H heads, K key (even) and V value channels per head, R = rank."""

    def __init__(self, width: int, *, heads: int, key_dim: int, value_dim: int, rank: int = 1, norm_max: float) -> None:
        super().__init__()
        if key_dim % 2:
            raise ConfigError(f"key_dim: an even number is needed, because keys turn in pairs, got {key_dim}")
        if rank < 1:
            raise ConfigError(f"rank: must be at least 1, got {rank}")
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.rank, self.norm_max = rank, norm_max
        keys, values, turns = rank * heads * key_dim, heads * value_dim, heads * key_dim // 2
        # Query rows first: a query needs q and its gate and nothing else.
        self.sizes = (keys, values, keys, values, turns, heads, heads)
        self.in_proj = Linear(width, sum(self.sizes), bias=False)
        self.norms = nn.Parameter(torch.ones(2, key_dim))
        self.biases = nn.Parameter(torch.ones(2, rank, heads, key_dim))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1.0, 16.0).log())
        step = torch.empty(heads).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        several = rank > 1
        self.up = nn.Parameter(torch.empty(rank, heads, value_dim).uniform_(0.5, 1.5)) if several else None
        self.down = nn.Parameter(torch.empty(rank, heads, value_dim).uniform_(0.5, 1.5) / rank) if several else None
        self.norm = nn.Parameter(torch.ones(value_dim))
        self.out_proj = Linear(values, width, bias=False)

    def initial_state(self, batch: int) -> MixerState:
        """memory [B,H,K,V], key [B,R,H,K], value [B,H,V], angle [B,H,K/2], rate [B,H], all zero."""
        new = self.out_proj.weight.new_zeros
        return {
            "memory": new(batch, self.heads, self.key_dim, self.value_dim),
            "key": new(batch, self.rank, self.heads, self.key_dim),
            "value": new(batch, self.heads, self.value_dim),
            "angle": new(batch, self.heads, self.key_dim // 2),
            "rate": new(batch, self.heads),
        }

    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """A window of packed commits and the queries between them; see Mixer.forward."""
        at = commits.at
        q_in, gate, k_in, v_in, turn, step_in, trap_in = self.in_proj(commits.x).split(self.sizes, -1)
        step, rate, angle_step, v = self._stepped(step_in, turn, v_in, commits.observed)
        angle = _accumulated(angle_step, state["angle"], at)
        k = self._turned(k_in, 1, angle)
        trap = trap_in.sigmoid()
        zeta = trap * step
        rates, keys = torch.cat([state["rate"], rate]), torch.cat([state["key"], k])
        angles, values = torch.cat([state["angle"], angle]), torch.cat([state["value"], v])
        zetas = torch.cat([torch.zeros_like(state["rate"]), zeta])
        g = commits.elapsed[:, None] * at.before.take(rates)
        inside = _inside_round(at.count[at.own] + np.arange(at.commits) - at.offsets[at.own], zeta)
        a = torch.exp(g)
        weight = a * (at.before.take(zetas) * inside + commits.observed[:, None] * (1 - trap) * step)
        k_before = at.before.take(keys)
        tokens = SubTokens(
            q=torch.zeros_like(k),
            k=k_before,
            e=torch.zeros_like(k),
            z=weight[:, None, :, None] * self._up(at.before.take(values)),
            g=torch.cat([g[:, None, :, None].expand_as(k[:, :1]), torch.zeros_like(k[:, 1:])], 1),
        )
        if commit_output:
            tokens = tokens._replace(q=self._turned(q_in, 0, angle))
        finish = self._finish(at, zeta, k, v)
        memory, read, query_read, query_gate = state["memory"], None, None, None
        if queries is not None:
            rows = sum(self.sizes[:2])
            query_in, query_gate = product(queries.x, self.in_proj.weight[:rows]).split(self.sizes[:2], -1)
            query_q = self._turned(query_in, 0, angles.index_select(0, at.held))
            passed = torch.exp(queries.elapsed[:, None] * rates.index_select(0, at.held))
            query_q = query_q * passed[:, None, :, None]
            if at.dense and not commit_output:
                tokens = tokens._replace(q=query_q)
                done = scan(tokens, memory, at.commit_plan, self.norm_max, finish=finish, ends=True)
                assert done.ends is not None
                query_read = self._read_of(done.reads, tokens) + self._pending(query_q, zeta, k, v)
                query_read, memory = query_read * done.ends[..., None], done.memory
            else:
                plan = at.whole_plan
                mixed = SubTokens._make(plan.commits.put(t) for t in tokens)
                mixed = mixed._replace(q=mixed.q + plan.queries.put(query_q))
                done = scan(mixed, memory, Plan(plan.rounds), self.norm_max, finish=finish)
                behind = at.after + 1 - at.offsets[at.owner]
                held_zeta = zetas.index_select(0, at.held) * _inside_round(at.count[at.owner] + behind, zeta)
                pending = [t.index_select(0, at.held) for t in (keys, values)]
                query_read = self._down(plan.queries.take(done.reads)) + self._pending(query_q, held_zeta, *pending)
                read, memory = plan.commits.take(done.reads), done.memory
        else:
            done = scan(tokens, memory, at.commit_plan, self.norm_max, finish=finish)
            read, memory = done.reads, done.memory
        after = {"memory": memory, "key": at.last.take(keys), "value": at.last.take(values)}
        after |= {"angle": at.last.take(angles), "rate": at.last.take(rates)}
        commit_y = None
        if commit_output and read is not None:
            commit_y = self._output(self._read_of(read, tokens) + self._pending(tokens.q, zeta, k, v), gate)
        query_y = None if query_read is None or query_gate is None else self._output(query_read, query_gate)
        return commit_y, query_y, after

    def step(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """One commit per row; see Mixer.step."""
        q_in, gate, k_in, v_in, turn, step_in, trap_in = self.in_proj(x).split(self.sizes, -1)
        step, rate, angle_step, v = self._stepped(step_in, turn, v_in, observed)
        angle = _wrapped(state["angle"] + angle_step)
        q, k, trap = self._turned(q_in, 0, angle), self._turned(k_in, 1, angle), trap_in.sigmoid()
        a = torch.exp(elapsed[:, None] * state["rate"])
        eta = observed[:, None] * (1 - trap) * step * a
        memory = a[..., None, None] * state["memory"] + self._written(eta, state["key"], state["value"])
        memory = memory + self._written(trap * step, k, v)
        o = self._down((q[..., None] * memory[:, None]).sum(-2))
        full = (count + 1) % BOUND_EVERY == 0
        if bool(full.any()):
            factor = torch.where(full[:, None], bound_factor(memory, self.norm_max), 1.0)
            memory = memory * factor[..., None, None]
        after = {"memory": memory, "key": k, "value": v, "angle": angle, "rate": rate}
        return self._output(o, gate), after

    def read(self, x: Tensor, elapsed: Tensor, state: MixerState) -> Tensor:
        """One query per row; see Mixer.read."""
        query_in, gate = product(x, self.in_proj.weight[: sum(self.sizes[:2])]).split(self.sizes[:2], -1)
        q = self._turned(query_in, 0, state["angle"])
        q = q * torch.exp(elapsed[:, None] * state["rate"])[:, None, :, None]
        return self._output(self._down((q[..., None] * state["memory"][:, None]).sum(-2)), gate)

    def _stepped(
        self, step_in: Tensor, turn: Tensor, v_in: Tensor, observed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The step and the rate [N,H], the change of the angles [N,H,K/2] and the observed value [N,H,V] of a token."""
        step = F.softplus(step_in + self.dt_bias)
        m = observed[:, None, None]
        v = m * torch.unflatten(v_in, -1, (self.heads, self.value_dim))
        theta = torch.unflatten(turn, -1, (self.heads, self.key_dim // 2))
        return step, -self.A_log.exp() * step, m * step[..., None] * theta, v

    def _turned(self, x: Tensor, which: int, angle: Tensor) -> Tensor:
        """Normalise, add the bias and turn: x [N,R*H*K], which: 0 for q, 1 for k, angle [N,H,K/2] -> [N,R,H,K]."""
        heads = torch.unflatten(x, -1, (self.rank, self.heads, self.key_dim))
        normed = self.key_dim**-0.5 * (rms_norm(heads, self.norms[which], _EPS) + self.biases[which])
        one, other = normed.chunk(2, -1)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat([one * cos - other * sin, one * sin + other * cos], -1)

    def _up(self, v: Tensor) -> Tensor:
        """Values of the R writes: v [N,H,V] -> [N,R,H,V]."""
        return v[:, None] if self.up is None else v[:, None] * self.up

    def _down(self, o: Tensor) -> Tensor:
        """One read of R: [N,R,H,V] -> [N,H,V]."""
        return o[:, 0] if self.down is None else (o * self.down).sum(1)

    def _written(self, weight: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """weight sum_r k_r (u_r*v)^T: weight [N,H], k [N,R,H,K], v [N,H,V] -> [N,H,K,V]."""
        return ((weight[:, None, :, None] * k)[..., None] * self._up(v)[..., None, :]).sum(1)

    def _pending(self, q: Tensor, weight: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What q [N,R,H,K] reads of the write that the scan has not made yet, already one of R: [N,H,V]."""
        values = weight[:, None, :, None] * self._up(v)
        along = (q[:, :, None] * k[:, None]).sum(-1)  # [N, reads, writes, H]
        return self._down((along[..., None] * values[:, None]).sum(2))

    def _read_of(self, reads: Tensor, tokens: SubTokens) -> Tensor:
        """Reads [N,R,H,V] of commits as one, each with the writes of the sub-tokens behind its own."""
        for r in range(self.rank - 1):
            along = (tokens.q[:, r, None] * tokens.k[:, r + 1 :]).sum(-1, keepdim=True)
            late = (along * tokens.z[:, r + 1 :]).sum(1)
            reads = torch.cat([reads[:, :r], (reads[:, r] + late)[:, None], reads[:, r + 1 :]], 1)
        return self._down(reads)

    def _finish(self, at: Sequences, zeta: Tensor, k: Tensor, v: Tensor) -> Finish:
        """Turn H into S at the end of a round: add the pending write of each sequence's last commit in it."""
        phase = at.count % BOUND_EVERY

        def finish(number: int, part: Round, held: Tensor) -> Tensor:
            first = np.clip(number * BOUND_EVERY - phase, 0, at.length)
            end = np.clip((number + 1) * BOUND_EVERY - phase, 0, at.length)
            rows = np.arange(at.size) if part.rows is None else part.rows.numpy()
            wrote = (end > first)[rows]
            if not wrote.any():
                return held
            last = torch.from_numpy((at.offsets[:-1] + end - 1)[rows][wrote])
            made = self._written(*(t.index_select(0, last) for t in (zeta, k, v)))
            return held.index_add(0, torch.from_numpy(np.flatnonzero(wrote)), made)

        return finish

    def _output(self, o: Tensor, gate: Tensor) -> Tensor:
        gated = rms_norm(o, self.norm, _EPS) * F.silu(torch.unflatten(gate, -1, (self.heads, self.value_dim)))
        return torch.as_tensor(self.out_proj(gated.flatten(-2)))


def _inside_round(count: Ints, like: Tensor) -> Tensor:
    """1 where `count` [N] commits before do not end at a bound, else 0: [N,1]. At a bound S holds the whole write."""
    return torch.from_numpy(count % BOUND_EVERY != 0)[:, None].to(like.dtype)


def _accumulated(angle_step: Tensor, carried: Tensor, at: Sequences) -> Tensor:
    """Angles [N,H,K/2] after each commit; summed in float64, so that a long window equals its steps."""
    sums = torch.cat([angle_step.new_zeros(1, *angle_step.shape[1:], dtype=torch.float64), angle_step.double()])
    sums = sums.cumsum(0)
    before = carried.double() - sums.index_select(0, torch.from_numpy(at.offsets[:-1]))
    return _wrapped(before.index_select(0, at.commit_owner) + sums[1:]).to(carried.dtype)


def _wrapped(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi): small ones stay far from the cut."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
