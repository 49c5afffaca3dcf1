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
from tsgdn2.mixer import Commits, Mixer, MixerState, Queries

BOUND_EVERY = 64
_CONV = 4
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
        self.conv = nn.Parameter(torch.empty(_CONV, 2 * keys + values).uniform_(-0.5, 0.5))
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
            "inputs": new(batch, _CONV - 1, self.conv.shape[1]),
            "rate": new(batch, self.heads, self.key_dim),
        }

    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """A window of commits, each followed by at most one query; see Mixer.forward.

        Queries are interleaved as tokens with m = 0 and g = 0. Where no commit output is asked for, the commit's own
        read is replaced by the query's, and no token is added.
        """
        keys, values = self.sizes[0], self.sizes[4]
        sizes = (keys, *self.sizes[1:3], keys + values, keys, values)
        q_in, gate_low, rate_low, kv_in, b_in, w_in = self.in_proj(commits.x).split(sizes, -1)
        q_state, kv_state = state["inputs"].split([keys, keys + values], -1)
        q_inputs, kv_inputs = torch.cat([q_state, q_in], 1), torch.cat([kv_state, kv_in], 1)
        k, v = F.silu(short_conv(kv_inputs, self.conv[:, keys:])).split([keys, values], -1)
        k, v = self._unit(k), self._heads(v)
        q = self._unit(F.silu(short_conv(q_inputs, self.conv[:, :keys]))) if commit_output else k  # k: nobody reads
        rate = self._rate(rate_low)
        before = torch.cat([state["rate"][:, None], rate[:, :-1]], 1) if self.decay_from == "previous" else rate
        valid = torch.arange(commits.x.shape[1], device=q.device) < commits.length[:, None]
        g = torch.where(valid, commits.elapsed, 0.0)[..., None, None] * before
        m = torch.where(valid, commits.observed, 0.0)
        b, w = self._heads(b_in).sigmoid(), self._heads(w_in).sigmoid()

        query_q = None
        if queries is not None:
            rows = sum(self.sizes[:3])
            own_q, query_gate, query_rate = F.linear(queries.x, self.in_proj.weight[:rows]).split(self.sizes[:3], -1)
            query_q = self._unit(F.silu(short_conv(q_inputs[:, 1:], self.conv[:, :keys], own_q)))
            held = rate if self.decay_from == "previous" else self._rate(query_rate)
            query_q = query_q * torch.exp(queries.elapsed[..., None, None] * held)

        memory, o, query_o = self._scan(q, k, v, g, b, w, m, query_q, commit_output, state["memory"], commits)
        last, row = commits.length, torch.arange(len(commits.length), device=q.device)
        cached = row[:, None], last[:, None] + torch.arange(_CONV - 1, device=q.device)
        after = {
            "memory": memory,
            "inputs": torch.cat([q_inputs[cached], kv_inputs[cached]], -1),
            "rate": torch.cat([state["rate"][:, None], rate], 1)[row, last],
        }
        commit_y = self._output(o, gate_low) if o is not None else None
        query_y = self._output(query_o, query_gate) if query_o is not None else None
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

    def _scan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        b: Tensor,
        w: Tensor,
        m: Tensor,
        query_q: Tensor | None,
        commit_output: bool,
        memory: Tensor,
        commits: Commits,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scan in segments that end where the norm is bounded. Returns (memory, commit reads, query reads)."""
        both = query_q is not None and commit_output
        if query_q is not None:
            q = torch.stack([q, query_q], 2).flatten(1, 2) if both else query_q
        if both:
            k, v, g, b, w = (F.pad(t[:, :, None], (0, 0, 0, 0, 0, 1)).flatten(1, 2) for t in (k, v, g, b, w))
            m = F.pad(m[:, :, None], (0, 1)).flatten(1, 2)
        stride = 2 if both else 1
        alive = commits.count[commits.length > 0] % BOUND_EVERY  # a row that has ended is at no boundary
        phase = int(alive[0]) if len(alive) else 0
        assert bool((alive == phase).all()), "rows of a window must share the commit phase"
        outputs, begin, tokens = [], 0, k.shape[1]
        while begin < tokens:
            end = min(tokens, begin + stride * (BOUND_EVERY - phase))
            part = slice(begin, end)
            o, memory = gdn2_scan(
                q[:, part],
                k[:, part],
                v[:, part],
                g[:, part],
                b[:, part],
                w[:, part],
                mask=m[:, part],
                initial_state=memory,
            )
            if (phase + (end - begin) // stride) == BOUND_EVERY:
                reached = (commits.length * stride >= end)[:, None]
                factor = torch.where(reached, bound_factor(memory, self.norm_max), 1.0)
                memory = memory * factor[..., None, None]
                if query_q is not None:  # the query after this commit reads the bounded state
                    o = torch.cat([o[:, :-1], o[:, -1:] * factor[:, None, :, None]], 1)
            outputs.append(o)
            begin, phase = end, 0
        o = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
        if both:
            return memory, o[:, 0::2], o[:, 1::2]
        return (memory, None, o) if query_q is not None else (memory, o if commit_output else None, None)

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


def bound_factor(memory: Tensor, norm_max: float) -> Tensor:
    """min(1, M / |S|_F) per head, [B,H] for memory [B,H,K,V]; what keeps an endless stream finite (math.md 4)."""
    square = memory.square().sum((-2, -1)).clamp_min(norm_max**2)  # clamped before the root: no gradient of sqrt at 0
    return norm_max * square.rsqrt()
