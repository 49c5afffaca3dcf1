"""The delta family: one matrix per head, decayed, erased and written by the gates that a member has (gates.py).

    q, k, v = SiLU(conv4(x W))                       q, k <- L2-normalised per head where the member's keys are
    g_t = rate_{t-1} elapsed_t                       (decay_from "own": rate_t elapsed_t;  no decay: g = 0)
    S_t = (I - k_t (m b_t*k_t)^T) Diag(exp g_t) S_{t-1} + k_t (m w_t*v_t)^T
    y_t = RMSNorm_V(scale S_t^T q_t + D v_t) * SiLU(low-rank gate(x)) Wo                         D = 0 unless mamba2
    query after commit t:   o = scale S_t^T (exp(g) * q)         (decay acts on the key axis, so it can act on q)
    every 64 commits:       S <- S min(1, M / |S|_F)

The scan and its one-token step are those of the room kernels, whatever the gates; a gate that is one number per head is
spread over the channels for them, so a simpler member is not a faster one.

| symbol | shape | range |
|---|---|---|
| S `memory` | [B,H,K,V] | norm <= M at commit counts divisible by 64 |
| conv cache `inputs` | [B,3,2HK+HV] | last three inputs of q, k, v |
| `rate` | [B,H,K], [B,H,1] for one number | <= 0, per patch period; 0 before the first commit; absent without decay |
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tsgdn2.adjoints import rms_norm, short_conv, unit
from tsgdn2.kernels.ops import gdn2_scan, gdn2_step
from tsgdn2.linear import Linear, product
from tsgdn2.mixers.contract import Commits, MixerState, Queries, TracedMixer, exact, rounded
from tsgdn2.mixers.gates import DECAY_BOUND, Gates
from tsgdn2.sequence import BOUND_EVERY, TAPS, Plan, Sequences, WholePlan

_EPS = 1e-6


class DeltaMixer(TracedMixer):
    """A member of the family with an explicit state; D width, H heads, K key and V value channels per head."""

    def __init__(
        self, width: int, *, gates: Gates, heads: int, key_dim: int, value_dim: int, norm_max: float,
        decay_from: str = "previous",
    ) -> None:  # fmt: skip
        super().__init__()
        self.gates, self.heads, self.key_dim, self.value_dim = gates, heads, key_dim, value_dim
        self.norm_max, self.decay_from = norm_max, decay_from
        self.scale = key_dim**-0.5 if gates.unit_keys else 1.0
        keys, values, rank = heads * key_dim, heads * value_dim, value_dim
        low = {"none": 0, "scalar": heads}.get(gates.decay, rank)
        erase = {"none": 0, "scalar": heads, "channel": keys}[gates.erase]
        write = {"scalar": heads, "channel": values}.get(gates.write, 0)
        # One matrix, query rows first: a query needs q and the two low-rank inputs, with a skip k and v, no gates.
        self.sizes = (keys, rank, low, keys, values, erase, write)
        self.asked = self.sizes[: 5 if gates.skip else 3]
        self.in_proj = Linear(width, sum(self.sizes), bias=False)
        self.conv = nn.Parameter(torch.empty(TAPS, 2 * keys + values).uniform_(-0.5, 0.5))
        self.gate_up = Linear(rank, values)
        if gates.decay in ("channel", "bounded"):
            self.rate_up = Linear(rank, keys, bias=False)
        if gates.decay != "none":
            self._draw_decay(heads if gates.decay == "scalar" else keys)
        self.norm = nn.Parameter(torch.ones(value_dim))
        self.out_proj = Linear(values, width, bias=False)
        if gates.skip:
            self.D = nn.Parameter(torch.ones(heads))

    def _draw_decay(self, channels: int) -> None:
        """A from U(1, 16), steps log-uniform in [1e-3, 0.1]; the bounded decay begins with the same decays, A = 1.

        In a sigmoid A is a slope and no factor: at 1 a small decay answers its input as the softplus one does, at 16
        it would not leave its place.
        """
        A_log = torch.empty(self.heads).uniform_(1.0, 16.0).log()
        step = torch.empty(channels).uniform_(math.log(1e-3), math.log(0.1)).exp()
        if self.gates.decay == "bounded":
            rate = -A_log.exp().repeat_interleave(channels // self.heads) * step
            self.A_log = nn.Parameter(torch.zeros(self.heads))
            self.dt_bias = nn.Parameter(torch.logit(rate / DECAY_BOUND))
        else:
            self.A_log = nn.Parameter(A_log)
            self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def initial_state(self, batch: int) -> MixerState:
        """memory [B,H,K,V], inputs [B,3,2HK+HV] and, with a decay, rate [B,H,K] or [B,H,1]; all zero."""
        new = partial(self.out_proj.weight.new_zeros, dtype=exact(self.out_proj.weight.dtype))
        state = {
            "memory": new(batch, self.heads, self.key_dim, self.value_dim),
            "inputs": new(batch, TAPS - 1, self.conv.shape[1]),
        }
        if self.gates.decay != "none":
            state["rate"] = new(batch, self.heads, 1 if self.gates.decay == "scalar" else self.key_dim)
        return state

    def forward(
        self, commits: Commits, queries: Queries | None, state: MixerState, *, commit_output: bool
    ) -> tuple[Tensor | None, Tensor | None, MixerState]:
        """A window of packed commits and the queries between them; see Mixer.forward.

        Queries are interleaved as tokens with m = 0 and g = 0. Where no commit output is asked for and every commit has
        its query, the commit's own read is replaced by the query's, and no token is added.
        """
        at = commits.at
        keys, values = self.sizes[0], self.sizes[4]
        sizes = (keys, *self.sizes[1:3], keys + values, *self.sizes[5:])
        q_in, gate_low, rate_low, kv_in, b_in, w_in = self.in_proj(commits.x).split(sizes, -1)
        q_state, kv_state = state["inputs"].split([keys, keys + values], -1)
        q_inputs, kv_inputs = at.extended(q_state, q_in), at.extended(kv_state, kv_in)
        kv = at.convolved(short_conv(at.each(kv_inputs), self.conv[:, keys:]))
        k, v = F.silu(kv).split([keys, values], -1)
        k, v = self._keys(k), self._heads(v)
        rate = self._rate(rate_low)
        rates = None if rate is None else torch.cat([state["rate"], rate])
        if rate is None or rates is None:
            g = torch.zeros_like(k)
        else:
            g = commits.elapsed[:, None, None] * (at.before.take(rates) if self.decay_from == "previous" else rate)
            g = g.expand_as(k)
        b, w = self._gates(b_in, w_in, rate_low)
        query_q, query_v = None, None
        if queries is not None:
            own, query_gate, query_rate, own_kv = self._query_inputs(queries.x)
            inputs = q_inputs
            if own_kv is not None:
                own, inputs = torch.cat([own, own_kv], -1), torch.cat([q_inputs, kv_inputs], -1)
            mixed = F.silu(self._query_conv(at, inputs, own))
            query_q, query_v = self._keys(mixed[:, :keys]), self._skipped(mixed)
            if self.decay_from == "own" or rates is None:
                held = self._rate(query_rate)
            else:
                held = rate if at.dense else rates.index_select(0, at.held)
            if held is not None:
                query_q = query_q * torch.exp(queries.elapsed[:, None, None] * held)
        q = k  # which nobody reads
        if commit_output:
            q = self._keys(F.silu(at.convolved(short_conv(at.each(q_inputs), self.conv[:, :keys]))))
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
        }
        if rates is not None:
            after["rate"] = at.last.take(rates)
        commit_y = self._output(read, v, gate_low) if commit_output and read is not None else None
        query_y = None if query_read is None else self._output(query_read, query_v, query_gate)
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
        """`step` that also hands out what the audit needs; see TracedMixer.trace."""
        keys, values = self.sizes[0], self.sizes[4]
        q_in, gate_low, rate_low, k_in, v_in, b_in, w_in = self.in_proj(x).split(self.sizes, -1)
        inputs = torch.cat([state["inputs"], torch.cat([q_in, k_in, v_in], -1)[:, None]], 1)
        q, k, v = F.silu((inputs * self.conv).sum(1)).split([keys, keys, values], -1)
        q, k, v = self._keys(q), self._keys(k), self._heads(v)
        after, rate = {"inputs": inputs[:, 1:]}, self._rate(rate_low)
        g = torch.zeros_like(k)
        if rate is not None:
            after["rate"] = rate
            g = elapsed[:, None, None] * (state["rate"] if self.decay_from == "previous" else rate)
            g = g.expand_as(k)
        b, w = self._gates(b_in, w_in, rate_low)
        memory = state["memory"].clone()
        slots = torch.arange(len(x), device=x.device)
        o = gdn2_step(memory, slots, q, k, v, g, b, w, mask=observed, scale=self.scale)
        factor = torch.ones(memory.shape[:2], dtype=memory.dtype, device=x.device)
        full = (count + 1) % BOUND_EVERY == 0
        if bool(full.any()):
            factor = torch.where(full[:, None], bound_factor(memory, self.norm_max), factor)
            memory = memory * factor[..., None, None]
        m = observed[:, None, None]
        traced = {"k": k, "e": m * b * k, "z": m * w * v, "g": g, "factor": factor}
        return self._output(o, v, gate_low), {"memory": memory, **after}, traced

    def read(self, x: Tensor, elapsed: Tensor, state: MixerState) -> Tensor:
        """One query per row; see Mixer.read."""
        own, gate_low, rate_low, own_kv = self._query_inputs(x)
        own = own if own_kv is None else torch.cat([own, own_kv], -1)
        conv = self.conv[:, : own.shape[-1]]
        past = (state["inputs"][..., : own.shape[-1]] * conv[:-1]).sum(1)
        mixed = F.silu(past + conv[-1] * own)
        q = self._keys(mixed[:, : self.sizes[0]])
        rate = state.get("rate") if self.decay_from == "previous" else self._rate(rate_low)
        if rate is not None:
            q = q * torch.exp(elapsed[:, None, None] * rate)
        o = self.scale * (q[..., None] * state["memory"]).sum(-2)
        return self._output(o, self._skipped(mixed), gate_low)

    def _query_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Q, low-rank inputs of gate and decay and, with a skip, k and v of queries x [M,D], before convolution."""
        own, gate_low, rate_low, *own_kv = product(x, self.in_proj.weight[: sum(self.asked)]).split(self.asked, -1)
        return own, gate_low, rate_low, torch.cat(own_kv, -1) if own_kv else None

    def _query_conv(self, at: Sequences, inputs: Tensor, own: Tensor) -> Tensor:
        """Convolution [M,C] of every query's own input with the last three of the commits before it."""
        conv = self.conv[:, : own.shape[-1]]
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
            q, k, v, b, w = map(rounded, (q, k, v, b, w))
            held = memory if part.rows is None else memory.index_select(0, part.rows)
            o, held = gdn2_scan(
                q, k, v, g, b, w, mask=m[None, part.tokens], scale=self.scale, initial_state=held,
                cu_seqlens=part.offsets,
            )  # fmt: skip
            read = o[0].to(memory.dtype)
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

    def _gates(self, b_in: Tensor, w_in: Tensor, rate_low: Tensor) -> tuple[Tensor, Tensor]:
        """Erase gate [N,H,K] and write gate [N,H,V], those of one number spread over the channels."""
        to_keys, to_values = (-1, -1, self.key_dim), (-1, -1, self.value_dim)
        kept = self.conv.dtype  # under autocast the products come in bfloat16, gates go on in the weights' dtype
        b_in, w_in, rate_low = b_in.to(kept), w_in.to(kept), rate_low.to(kept)
        if self.gates.erase == "none":
            b = b_in.new_zeros(len(b_in), self.heads, self.key_dim)
        else:
            b = self._heads(b_in).sigmoid()
            b = b if self.gates.erase_range == 1 else self.gates.erase_range * b
        if self.gates.write == "tied":
            w = b
        else:
            w = self._heads(self._steps(rate_low)) if self.gates.write == "step" else self._heads(w_in).sigmoid()
        return b.expand(to_keys), w.expand(to_values)

    def _keys(self, x: Tensor) -> Tensor:
        x = torch.unflatten(x, -1, (self.heads, self.key_dim))
        return unit(x, _EPS) if self.gates.unit_keys else x

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1))

    def _skipped(self, mixed: Tensor) -> Tensor | None:
        """The values [M,H,V] of queries, which a member with a skip adds to their reads."""
        return self._heads(mixed[:, 2 * self.sizes[0] :]) if self.gates.skip else None

    def _steps(self, low: Tensor) -> Tensor:
        return F.softplus((low if self.gates.decay == "scalar" else self.rate_up(low)) + self.dt_bias)

    def _rate(self, low: Tensor) -> Tensor | None:
        """Log-decay per patch period [N,H,K] or [N,H,1]; None where nothing decays."""
        if self.gates.decay == "none":
            return None
        if self.gates.decay == "bounded":
            steepness = self.A_log.exp()[:, None]
            return DECAY_BOUND * torch.sigmoid(steepness * self._heads(self.rate_up(low) + self.dt_bias))
        return -self.A_log.exp()[:, None] * self._heads(self._steps(low))

    def _output(self, o: Tensor, v: Tensor | None, gate_low: Tensor) -> Tensor:
        if self.gates.skip and v is not None:
            o = o + self.D[:, None] * v
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
    if math.isinf(norm_max):
        return torch.ones_like(memory[..., 0, 0])
    square = memory.square().sum((-2, -1)).clamp_min(norm_max**2)  # clamped before the root: no gradient of sqrt at 0
    return norm_max * square.rsqrt()
