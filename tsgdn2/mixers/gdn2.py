"""The GDN-2 mixer: a fixed-size matrix per head, edited by decay, erase and write (math.md 1; arXiv 2605.22791).

    q, k, v = SiLU(conv4(x W))           q, k <- L2-normalised per head
    rate = -exp(A_log[h]) softplus(low-rank(x) + dt_bias)        b = m sigmoid(x Wb)      w = m sigmoid(x Ww)
    g_t = rate_{t-1} elapsed_t                                   (decay_from "own": rate_t elapsed_t)
    S_t = (I - k_t (b_t*k_t)^T) Diag(exp g_t) S_{t-1} + k_t (w_t*v_t)^T
    y_t = RMSNorm_V(scale S_t^T q_t) * SiLU(low-rank gate(x)) Wo
    query after commit t:   o = scale S_t^T (exp(g) * q)         (decay acts on the key axis, so it can act on q)
    every 64 commits:       S <- S min(1, M / |S|_F)

What it does not do: know patches, time stamps or horizons. `elapsed` is in patch periods.

| symbol | shape | range |
|---|---|---|
| S `memory` | [B,H,K,V] | norm <= M at commit counts divisible by 64 |
| conv cache `inputs` | [B,3,2HK+HV] | last three inputs of q, k, v |
| `rate` | [B,H,K] | <= 0, per patch period; 0 before the first commit |
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tsgdn2.adjoints import rms_norm, short_conv, unit
from tsgdn2.kernels.ops import gdn2_scan, gdn2_step
from tsgdn2.mixers.contract import Commits, Mixer, MixerState, Queries
from tsgdn2.sequence import BOUND_EVERY, TAPS, Plan, Sequences, WholePlan

__all__ = ["BOUND_EVERY", "GDN2Mixer", "bound_factor"]

_EPS = 1e-6


class GDN2Mixer(Mixer):
    """Gated DeltaNet-2 with an explicit state; D width, H heads, K key and V value channels per head."""

    def __init__(
        self, width: int, *, heads: int, key_dim: int, value_dim: int, norm_max: float, decay_from: str = "previous"
    ) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.norm_max, self.decay_from = norm_max, decay_from
        keys, values, rank = heads * key_dim, heads * value_dim, value_dim
        # One matrix, query rows first: a query needs q and the two low-rank inputs and nothing else.
        self.sizes = (keys, rank, rank, keys, values, keys, values)
        self.in_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.conv = nn.Parameter(torch.empty(TAPS, 2 * keys + values).uniform_(-0.5, 0.5))
        self.gate_up = nn.Linear(rank, values)
        self.rate_up = nn.Linear(rank, keys, bias=False)
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1.0, 16.0).log())
        step = torch.empty(keys).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        self.norm = nn.Parameter(torch.ones(value_dim))
        self.out_proj = nn.Linear(values, width, bias=False)

    def initial_state(self, batch: int) -> MixerState:
        """memory [B,H,K,V], inputs [B,3,2HK+HV], rate [B,H,K], all zero."""
        new = self.out_proj.weight.new_zeros
        return {
            "memory": new(batch, self.heads, self.key_dim, self.value_dim),
            "inputs": new(batch, TAPS - 1, self.conv.shape[1]),
            "rate": new(batch, self.heads, self.key_dim),
        }

    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """A window of packed commits and the queries between them; see Mixer.forward.

        Queries are interleaved as tokens with m = 0 and g = 0. Where no commit output is asked for and every commit has
        its query, the commit's own read is replaced by the query's, and no token is added.
        """
        at = commits.at
        keys, values = self.sizes[0], self.sizes[4]
        sizes = (keys, *self.sizes[1:3], keys + values, keys, values)
        q_in, gate_low, rate_low, kv_in, b_in, w_in = self.in_proj(commits.x).split(sizes, -1)
        q_state, kv_state = state["inputs"].split([keys, keys + values], -1)
        q_inputs, kv_inputs = at.extended(q_state, q_in), at.extended(kv_state, kv_in)
        kv = at.convolved(short_conv(at.each(kv_inputs), self.conv[:, keys:]))
        k, v = F.silu(kv).split([keys, values], -1)
        k, v = self._unit(k), self._heads(v)
        rate = self._rate(rate_low)
        rates = torch.cat([state["rate"], rate])
        g = commits.elapsed[:, None, None] * (at.before.take(rates) if self.decay_from == "previous" else rate)
        b, w = self._heads(b_in).sigmoid(), self._heads(w_in).sigmoid()
        query_q = None
        if queries is not None:
            rows = sum(self.sizes[:3])
            own_q, query_gate, query_rate = F.linear(queries.x, self.in_proj.weight[:rows]).split(self.sizes[:3], -1)
            query_q = self._unit(F.silu(self._query_conv(at, q_inputs, own_q)))
            if self.decay_from == "own":
                held = self._rate(query_rate)
            else:
                held = rate if at.dense else rates.index_select(0, at.held)
            query_q = query_q * torch.exp(queries.elapsed[:, None, None] * held)
        q = k  # which nobody reads
        if commit_output:
            q = self._unit(F.silu(at.convolved(short_conv(at.each(q_inputs), self.conv[:, :keys]))))
        tokens, m, memory = (q, k, v, g, b, w), commits.observed, state["memory"]
        read, query_read = None, None
        if query_q is not None and at.dense and not commit_output:
            query_read, memory = self._scan((query_q, *tokens[1:]), m, memory, at.commit_plan, behind=True)
        elif query_q is not None:
            plan = at.whole_plan
            o, memory = self._scan(*_interleaved(plan, tokens, m, query_q), memory, Plan(plan.rounds))
            read, query_read = plan.commits.take(o), plan.queries.take(o)
        else:
            read, memory = self._scan(tokens, m, memory, at.commit_plan)
        after = {
            "memory": memory,
            "inputs": at.cached.take(torch.cat([q_inputs, kv_inputs], -1)).unflatten(0, (at.size, TAPS - 1)),
            "rate": at.last.take(rates),
        }
        commit_y = self._output(read, gate_low) if commit_output and read is not None else None
        query_y = None if query_read is None else self._output(query_read, query_gate)
        return commit_y, query_y, after

    def step(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """One commit per row through the recurrent step; see Mixer.step."""
        y, after, _ = self.trace(x, observed, elapsed, count, state)
        return y, after

    def trace(
        self, x: Tensor, observed: Tensor, elapsed: Tensor, count: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        """`step` that also hands out what the audit needs: k, e, g [B,H,K], z [B,H,V], factor [B,H]."""
        q_in, gate_low, rate_low, k_in, v_in, b_in, w_in = self.in_proj(x).split(self.sizes, -1)
        inputs = torch.cat([state["inputs"], torch.cat([q_in, k_in, v_in], -1)[:, None]], 1)
        q, k, v = self._activate((inputs * self.conv).sum(1))
        rate = self._rate(rate_low)
        g = elapsed[:, None, None] * (state["rate"] if self.decay_from == "previous" else rate)
        b, w = self._heads(b_in).sigmoid(), self._heads(w_in).sigmoid()
        memory = state["memory"].clone()
        slots = torch.arange(len(x), device=x.device)
        o = gdn2_step(memory, slots, q, k, v, g, b, w, mask=observed)
        factor = torch.ones(memory.shape[:2], dtype=memory.dtype, device=x.device)
        full = (count + 1) % BOUND_EVERY == 0
        if bool(full.any()):
            factor = torch.where(full[:, None], bound_factor(memory, self.norm_max), factor)
            memory = memory * factor[..., None, None]
        m = observed[:, None, None]
        traced = {"k": k, "e": m * b * k, "z": m * w * v, "g": g, "factor": factor}
        return self._output(o, gate_low), {"memory": memory, "inputs": inputs[:, 1:], "rate": rate}, traced

    def read(self, x: Tensor, elapsed: Tensor, state: MixerState) -> Tensor:
        """One query per row; see Mixer.read."""
        keys, rows = self.sizes[0], sum(self.sizes[:3])
        own_q, gate_low, rate_low = F.linear(x, self.in_proj.weight[:rows]).split(self.sizes[:3], -1)
        past = (state["inputs"][..., :keys] * self.conv[:-1, :keys]).sum(1)
        q = self._unit(F.silu(past + self.conv[-1, :keys] * own_q))
        rate = state["rate"] if self.decay_from == "previous" else self._rate(rate_low)
        q = q * torch.exp(elapsed[:, None, None] * rate)
        o = self.key_dim**-0.5 * (q[..., None] * state["memory"]).sum(-2)
        return self._output(o, gate_low)

    def _query_conv(self, at: Sequences, inputs: Tensor, own: Tensor) -> Tensor:
        """Convolution [M,HK] of every query's own input with the last three of the commits before it."""
        conv = self.conv[:, : self.sizes[0]]
        if at.dense and at.uniform is not None:
            return short_conv(at.each(inputs)[:, 1:], conv, own.unflatten(0, (at.size, at.uniform))).flatten(0, 1)
        past = short_conv(inputs[None], conv[:-1])[0]
        return past.index_select(0, at.query_taps) + conv[-1] * own

    def _scan(
        self, tokens: tuple[Tensor, ...], m: Tensor, memory: Tensor, plan: Plan, *, behind: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Scan q, k, v, g, b, w [N,H,*] in rounds that end where the norm is bounded: reads [N,H,V] and the memory.

        behind: the reads are of queries behind their commits, so those at a bound see the bounded state.
        """
        if plan.order is not None:
            tokens, m = tuple(plan.order.put(t) for t in tokens), plan.order.put(m)
        reads = []
        for part in plan.rounds:
            q, k, v, g, b, w = (t[None, part.tokens] for t in tokens)
            held = memory if part.rows is None else memory.index_select(0, part.rows)
            o, held = gdn2_scan(
                q, k, v, g, b, w, mask=m[None, part.tokens], initial_state=held, cu_seqlens=part.offsets
            )  # fmt: skip
            read = o[0]
            if part.bound is not None:
                factor = torch.where(part.bound.rows[:, None], bound_factor(held, self.norm_max), 1.0)
                if bool((factor < 1).any()):
                    held = held * factor[..., None, None]
                    if behind:
                        ends = torch.ones_like(read[..., 0]).index_copy(0, part.bound.last, factor[part.bound.rows])
                        read = read * ends[..., None]
            reads.append(read)
            memory = held if part.rows is None else memory.index_copy(0, part.rows, held)
        o = torch.cat(reads) if len(reads) > 1 else reads[0]
        return (o if plan.order is None else plan.order.take(o)), memory

    def _activate(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys = self.sizes[0]
        q, k, v = F.silu(mixed).split([keys, keys, self.sizes[4]], -1)
        return self._unit(q), self._unit(k), torch.unflatten(v, -1, (self.heads, self.value_dim))

    def _unit(self, x: Tensor) -> Tensor:
        return unit(torch.unflatten(x, -1, (self.heads, self.key_dim)), _EPS)

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1))

    def _rate(self, low: Tensor) -> Tensor:
        step = F.softplus(self.rate_up(low) + self.dt_bias)
        return -self.A_log.exp()[:, None] * self._heads(step)

    def _output(self, o: Tensor, gate_low: Tensor) -> Tensor:
        gated = rms_norm(o, self.norm, _EPS) * F.silu(self._heads(self.gate_up(gate_low)))
        return torch.as_tensor(self.out_proj(gated.flatten(-2)))


def _interleaved(
    plan: WholePlan, tokens: tuple[Tensor, ...], m: Tensor, query_q: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Commits and queries in the order of the scan; a query is a token with m = 0 and g = 0."""
    q, *others = tokens
    mixed = plan.commits.put(q) + plan.queries.put(query_q)
    return (mixed, *(plan.commits.put(t) for t in others)), plan.commits.put(m)


def bound_factor(memory: Tensor, norm_max: float) -> Tensor:
    """min(1, M / |S|_F) per head, [B,H] for memory [B,H,K,V]; what keeps an endless stream finite (math.md 4)."""
    square = memory.square().sum((-2, -1)).clamp_min(norm_max**2)  # clamped before the root: no gradient of sqrt at 0
    return norm_max * square.rsqrt()
