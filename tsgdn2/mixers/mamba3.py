"""The Mamba-3 mixer: a decayed sum of writes, trapezoidal in time, with keys and reads turned by accumulated angles.

    q, k = turn(norm(x W) + bias, phi)/K^1/2   (R of each)   u = x Wv, v = m u  step = softplus(x Ws + bias)
    rate = -A step, A = softplus(x Wa + bias)  phi_t = phi_{t-1} + m step theta(x)                       mod 2 pi
    zeta = lambda step      eta = m (1 - lambda) step a      lambda = sigmoid(x Wl)      a_t = exp(rate_{t-1} elapsed_t)
    S_t = a_t S_{t-1} + eta_t sum_r k_{t-1,r} (c_r*v_{t-1})^T + zeta_t sum_r k_{t,r} (c_r*v_t)^T     c = 1 if R = 1
    y_t = RMSNorm_V(sum_r d_r * S_t^T q_{t,r} + D u_t) * SiLU(gate(x)) Wo                                d = 1 if R = 1
    query after commit t:   o = S_t^T (exp(rate_t elapsed) q), q turned by phi_t, and u its own
    every 64 commits:       S <- S min(1, M / |S|_F)

R = 1 is SISO, R > 1 is MIMO: R sub-tokens of the one scan. The scan holds H_t = S_t - zeta_t sum_r k_{t,r} (c_r*v_t)^T,
so that a token is one write: H_t = a_t H_{t-1} + (a_t zeta_{t-1} + eta_t) sum_r k_{t-1,r} (c_r*v_{t-1})^T (math.md 1);
a round starts from S, that is with zeta_{t-1} = 0. There is no erase: it forgets by decay alone. Turns count tokens and
decay counts time, so a gap fades the state and turns nothing.

Source: Mamba-3 (arXiv 2603.15569). In: the trapezoid with a learned share, A of each token, turned and normalised keys
with biases, no convolution, the skip D, MIMO. Ours: the bias of A and the draws (those of the family, delta.py), the
factor K^-1/2, m and elapsed, the output norm, one gate and one skip for all R, a rate that comes before its interval.
Out: a floor under A, turns for a part of the key only, and keys shared by groups of heads.

| symbol | shape | range |
|---|---|---|
| S `memory` | [B,H,K,V] | norm <= M at commit counts divisible by 64 |
| `key`, `value` | [B,R,H,K], [B,H,V] | k turned and v of the last commit |
| phi `angle` | [B,H,K/2] | [-pi, pi) |
| `rate` | [B,H] | <= 0, per patch period; 0 before the first commit |
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tsgdn2.adjoints import rms_norm
from tsgdn2.errors import ConfigError
from tsgdn2.linear import Linear, product
from tsgdn2.mixers.contract import Commits, Mixer, MixerState, Queries, exact
from tsgdn2.mixers.delta import bound_factor
from tsgdn2.mixers.subtokens import Finish, SubTokens, scan
from tsgdn2.sequence import BOUND_EVERY, Ints, Plan, Round, Sequences

_EPS = 1e-6


class Mamba3Mixer(Mixer):
    """Mamba-3 with an explicit state; D width, H heads, K key (even) and V value channels per head, R = rank."""

    def __init__(
        self, width: int, *, heads: int, key_dim: int, value_dim: int, rank: int = 1, norm_max: float,
        decay_from: str = "previous",
    ) -> None:  # fmt: skip
        super().__init__()
        if key_dim % 2:
            raise ConfigError(f"key_dim: an even number is needed, because keys turn in pairs, got {key_dim}")
        if rank < 1:
            raise ConfigError(f"rank: must be at least 1, got {rank}")
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.rank, self.norm_max, self.decay_from = rank, norm_max, decay_from
        keys, values, turns = rank * heads * key_dim, heads * value_dim, heads * key_dim // 2
        # Query rows first: a query needs q, its gate and the value of its skip and nothing else.
        self.sizes = (keys, values, values, keys, turns, heads, heads, heads)
        self.asked = self.sizes[:3]
        self.in_proj = Linear(width, sum(self.sizes), bias=False)
        self.norms = nn.Parameter(torch.ones(2, key_dim))
        self.biases = nn.Parameter(torch.ones(2, rank, heads, key_dim))
        self.A_bias = nn.Parameter(_unsoftplus(torch.empty(heads).uniform_(1.0, 16.0)))
        self.dt_bias = nn.Parameter(_unsoftplus(torch.empty(heads).uniform_(math.log(1e-3), math.log(0.1)).exp()))
        self.D = nn.Parameter(torch.ones(heads))
        several = rank > 1
        self.up = nn.Parameter(torch.empty(rank, heads, value_dim).uniform_(0.5, 1.5)) if several else None
        self.down = nn.Parameter(torch.empty(rank, heads, value_dim).uniform_(0.5, 1.5) / rank) if several else None
        self.norm = nn.Parameter(torch.ones(value_dim))
        self.out_proj = Linear(values, width, bias=False)

    def initial_state(self, batch: int) -> MixerState:
        """memory [B,H,K,V], key [B,R,H,K], value [B,H,V], angle [B,H,K/2], rate [B,H], all zero."""
        new = partial(self.out_proj.weight.new_zeros, dtype=exact(self.out_proj.weight.dtype))
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
        q_in, gate, v_in, k_in, turn, step_in, trap_in, A_in = self.in_proj(commits.x).split(self.sizes, -1)
        step, rate, angle_step, v = self._stepped(step_in, A_in, turn, v_in, commits.observed)
        angle = _accumulated(angle_step, state["angle"], at)
        k = self._turned(k_in, 1, angle)
        trap = trap_in.sigmoid()
        zeta = trap * step
        rates, keys = torch.cat([state["rate"], rate]), torch.cat([state["key"], k])
        angles, values = torch.cat([state["angle"], angle]), torch.cat([state["value"], v])
        zetas = torch.cat([torch.zeros_like(state["rate"]), zeta])
        g = commits.elapsed[:, None] * (at.before.take(rates) if self.decay_from == "previous" else rate)
        inside = _inside_round(at, at.own, np.arange(at.commits) - at.offsets[at.own], zeta)
        a = torch.exp(g)
        weight = a * (at.before.take(zetas) * inside + commits.observed[:, None] * (1 - trap) * step)
        k_before = at.before.take(keys)
        late = weight[..., None] * at.before.take(values)
        tokens = SubTokens(
            q=torch.zeros_like(k),
            k=k_before,
            e=torch.zeros_like(k),
            z=self._up(late),
            g=torch.cat([g[:, None, :, None].expand_as(k[:, :1]), torch.zeros_like(k[:, 1:])], 1),
        )
        if commit_output:
            tokens = tokens._replace(q=self._turned(q_in, 0, angle))
        finish = self._finish(at, zeta, k, v)
        memory, read, query_read, query_gate, query_v = state["memory"], None, None, None, None
        if queries is not None:
            query_in, query_gate, query_v = self._asked(queries.x)
            query_q = self._turned(query_in, 0, angles.index_select(0, at.held))
            passed = torch.exp(queries.elapsed[:, None] * rates.index_select(0, at.held))
            query_q = query_q * passed[:, None, :, None]
            if at.dense and not commit_output:
                tokens = tokens._replace(q=query_q)
                done = scan(tokens, memory, at.commit_plan, self.norm_max, finish=finish, ends=True)
                assert done.ends is not None
                query_read = self._read_of(done.reads, tokens, late) + self._met(query_q, k, zeta[..., None] * v)
                query_read, memory = query_read * done.ends[..., None], done.memory
            else:
                plan = at.whole_plan
                mixed = SubTokens._make(plan.commits.put(t) for t in tokens)
                mixed = mixed._replace(q=mixed.q + plan.queries.put(query_q))
                done = scan(mixed, memory, Plan(plan.rounds), self.norm_max, finish=finish)
                behind = at.after + 1 - at.offsets[at.owner]
                held_zeta = zetas.index_select(0, at.held) * _inside_round(at, at.owner, behind, zeta)
                held_k, held_v = (t.index_select(0, at.held) for t in (keys, values))
                pending = self._met(query_q, held_k, held_zeta[..., None] * held_v)
                query_read = self._down(plan.queries.take(done.reads)) + pending
                read, memory = plan.commits.take(done.reads), done.memory
        else:
            done = scan(tokens, memory, at.commit_plan, self.norm_max, finish=finish)
            read, memory = done.reads, done.memory
        after = {"memory": memory, "key": at.last.take(keys), "value": at.last.take(values)}
        after |= {"angle": at.last.take(angles), "rate": at.last.take(rates)}
        commit_y = None
        if commit_output and read is not None:
            read = self._read_of(read, tokens, late) + self._met(tokens.q, k, zeta[..., None] * v)
            commit_y = self._output(read, v_in, gate)
        query_y = None
        if query_read is not None and query_v is not None and query_gate is not None:
            query_y = self._output(query_read, query_v, query_gate)
        return commit_y, query_y, after

    def step(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """One commit per row; see Mixer.step."""
        q_in, gate, v_in, k_in, turn, step_in, trap_in, A_in = self.in_proj(x).split(self.sizes, -1)
        step, rate, angle_step, v = self._stepped(step_in, A_in, turn, v_in, observed)
        angle = _wrapped(state["angle"] + angle_step)
        q, k, trap = self._turned(q_in, 0, angle), self._turned(k_in, 1, angle), trap_in.sigmoid()
        a = torch.exp(elapsed[:, None] * (state["rate"] if self.decay_from == "previous" else rate))
        eta = observed[:, None] * (1 - trap) * step * a
        memory = a[..., None, None] * state["memory"] + self._written(eta, state["key"], state["value"])
        memory = memory + self._written(trap * step, k, v)
        o = self._down((q[..., None] * memory[:, None]).sum(-2))
        full = (count + 1) % BOUND_EVERY == 0
        if bool(full.any()):
            factor = torch.where(full[:, None], bound_factor(memory, self.norm_max), 1.0)
            memory = memory * factor[..., None, None]
        after = {"memory": memory, "key": k, "value": v, "angle": angle, "rate": rate}
        return self._output(o, v_in, gate), after

    def read(self, x: Tensor, elapsed: Tensor, state: MixerState) -> Tensor:
        """One query per row; see Mixer.read."""
        query_in, gate, v_in = self._asked(x)
        q = self._turned(query_in, 0, state["angle"])
        q = q * torch.exp(elapsed[:, None] * state["rate"])[:, None, :, None]
        return self._output(self._down((q[..., None] * state["memory"][:, None]).sum(-2)), v_in, gate)

    def _asked(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [M,R*H*K], gate and value [M,H*V] of queries x [M,D]."""
        q, gate, v = product(x, self.in_proj.weight[: sum(self.asked)]).split(self.asked, -1)
        return q, gate, v

    def _stepped(
        self, step_in: Tensor, A_in: Tensor, turn: Tensor, v_in: Tensor, observed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The step and the rate [N,H], the change of the angles [N,H,K/2] and the observed value [N,H,V] of a token."""
        step = F.softplus(step_in + self.dt_bias)
        m = observed[:, None, None]
        v = m * torch.unflatten(v_in, -1, (self.heads, self.value_dim))
        theta = torch.unflatten(turn, -1, (self.heads, self.key_dim // 2))
        return step, -F.softplus(A_in + self.A_bias) * step, m * step[..., None] * theta, v

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
        """weight sum_r k_r (c_r*v)^T: weight [N,H], k [N,R,H,K], v [N,H,V] -> [N,H,K,V]."""
        return ((weight[:, None, :, None] * k)[..., None] * self._up(v)[..., None, :]).sum(1)

    def _met(self, q: Tensor, k: Tensor, v: Tensor, *, behind: bool = False) -> Tensor:
        """What q [N,R,H,K] reads of writes k [N,R,H,K] of v [N,H,V] that its scan has not made yet: [N,H,V].

        sum_rs d_r*c_s*v (q_r.k_s), all s or with `behind` those > r: the weights of the pairs are one matrix per head.
        """
        if self.up is None or self.down is None:
            return (q[:, 0] * k[:, 0]).sum(-1, keepdim=True) * v
        pairs_NHRR = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)
        weights_RRHV = self.down[:, None] * self.up
        if behind:
            weights_RRHV = weights_RRHV * torch.ones_like(weights_RRHV[..., 0, 0]).triu(1)[..., None, None]
        summed_HNV = pairs_NHRR.flatten(2).transpose(0, 1) @ weights_RRHV.flatten(0, 1).transpose(0, 1)
        return summed_HNV.transpose(0, 1) * v

    def _read_of(self, reads: Tensor, tokens: SubTokens, v: Tensor) -> Tensor:
        """Reads [N,R,H,V] of commits as one, each with the writes of v [N,H,V] by the sub-tokens behind its own."""
        read = self._down(reads)
        return read if self.rank == 1 else read + self._met(tokens.q, tokens.k, v, behind=True)

    def _finish(self, at: Sequences, zeta: Tensor, k: Tensor, v: Tensor) -> Finish:
        """Turn H into S at the end of a round: add the pending write of each sequence's last commit in it."""
        phase = at.count % BOUND_EVERY

        def finish(number: int, part: Round, held: Tensor) -> Tensor:
            first = np.clip(number * BOUND_EVERY - phase, 0, at.length)
            end = np.clip((number + 1) * BOUND_EVERY - phase, 0, at.length) if at.bounded else at.length
            rows = np.arange(at.size) if part.rows is None else part.rows.cpu().numpy()
            wrote = (end > first)[rows]
            if not wrote.any():
                return held
            last = at.tensor((at.offsets[:-1] + end - 1)[rows][wrote])
            made = self._written(*(t.index_select(0, last) for t in (zeta, k, v)))
            return held.index_add(0, at.tensor(np.flatnonzero(wrote)), made)

        return finish

    def _output(self, o: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        """The skip, the norm and the gate: o [N,H,V], v and gate [N,H*V] -> [N,D]."""
        o = o + self.D[:, None] * torch.unflatten(v, -1, (self.heads, self.value_dim))
        gated = rms_norm(o, self.norm, _EPS) * F.silu(torch.unflatten(gate, -1, (self.heads, self.value_dim)))
        return torch.as_tensor(self.out_proj(gated.flatten(-2)))


def _inside_round(at: Sequences, owner: Ints, done: Ints, like: Tensor) -> Tensor:
    """1 where no bound stands before a token with `done` [N] commits of its `owner` [N] before it in the window: [N,1].

    At a bound S holds the whole write.
    """
    inside = (at.count[owner] + done) % BOUND_EVERY != 0 if at.bounded else np.ones(len(owner), np.bool_)
    return at.tensor(inside)[:, None].to(like.dtype)


def _accumulated(angle_step: Tensor, carried: Tensor, at: Sequences) -> Tensor:
    """Angles [N,H,K/2] after each commit; summed in float64, so that a long window equals its steps."""
    sums = torch.cat([angle_step.new_zeros(1, *angle_step.shape[1:], dtype=torch.float64), angle_step.double()])
    sums = sums.cumsum(0)
    before = carried.double() - sums.index_select(0, at.tensor(at.offsets[:-1]))
    return _wrapped(before.index_select(0, at.commit_owner) + sums[1:]).to(carried.dtype)


def _wrapped(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi): small ones stay far from the cut."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _unsoftplus(y: Tensor) -> Tensor:
    """x of y = softplus(x) > 0, exact for small y and for large ones."""
    return y + torch.log(-torch.expm1(-y))
