"""The scan of mixers that write several times per token: every token is R sub-tokens of the one scan (math.md 1).

    S <- (I - k_r e_r^T) Diag(exp g_r) S + k_r z_r^T,   o_r = S^T q_r        r = 1 .. R, in this order, for every token
    every 64 commits:   S <- S min(1, M / |S|_F)

A round is scanned as one packed row. It costs R times the scan of a mixer that writes once. Scale is 1: the mixers that
use it scale their own reads.

N tokens, R sub-tokens, H heads, K key and V value channels, b sequences of a round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tsgdn2.kernels.ops import delta_scan
from tsgdn2.mixers.contract import rounded
from tsgdn2.mixers.delta import bound_factor
from tsgdn2.sequence import Plan, Round

Finish = Callable[[int, Round, Tensor], Tensor]


class SubTokens(NamedTuple):
    """What the scan takes: q, k, e, g [N,R,H,K] and z [N,R,H,V]."""

    q: Tensor
    k: Tensor
    e: Tensor
    z: Tensor
    g: Tensor


class Scanned(NamedTuple):
    """Reads [N,R,H,V], the memory after [B,H,K,V], and the factor [N,H] of the bound at each token, 1 where none is."""

    reads: Tensor
    memory: Tensor
    ends: Tensor | None


def scan(
    tokens: SubTokens, memory: Tensor, plan: Plan, norm_max: float, *, finish: Finish | None = None, ends: bool = False
) -> Scanned:
    """Scan tokens in the rounds of `plan`, bounding the norm at the end of each.

    finish: what is left to do before the bound, (number of the round, the round, its states [b,H,K,V]) -> states.
    ends: hand out the factors of the bound too; `Scanned.ends` is None without it.
    """
    if plan.order is not None:
        tokens = SubTokens._make(plan.order.put(t) for t in tokens)
    count, times, heads = tokens.q.shape[:3]
    factors = memory.new_ones(count, heads) if ends else None
    reads = []
    for number, part in enumerate(plan.rounds):
        q, k, e, z, g = (t[part.tokens].flatten(0, 1)[None] for t in tokens)
        held = memory if part.rows is None else memory.index_select(0, part.rows)
        q, k, e, z = map(rounded, (q, k, e, z))
        o, held = delta_scan(q, k, e, z, g, scale=1.0, initial_state=held, cu_seqlens=part.offsets * times)
        o = o.to(memory.dtype)
        reads.append(o[0].unflatten(0, (-1, times)) if o.shape[1] else o.new_zeros(0, times, heads, z.shape[-1]))
        held = held if finish is None else finish(number, part, held)
        if part.bound is not None:
            factor = torch.where(part.bound.rows[:, None], bound_factor(held, norm_max), 1.0)
            if bool((factor < 1).any()):
                held = held * factor[..., None, None]
                if factors is not None:
                    last = part.bound.last + part.tokens.start
                    factors = factors.index_copy(0, last, factor[part.bound.rows])
        memory = held if part.rows is None else memory.index_copy(0, part.rows, held)
    read = torch.cat(reads) if len(reads) > 1 else reads[0]
    if plan.order is not None:
        read = plan.order.take(read)
        factors = None if factors is None else plan.order.take(factors)
    return Scanned(read, memory, factors)
