"""What is left of every write at the end of a window, exactly and independent of the values written.

It costs O(T K^2) time and O(T K) memory; the retention of every write at every time is T times that, so heat maps take
chosen times.

    P_t = (I - k_t e_t^T) Diag(exp g_t)         r_i(i) = k_i         r_i(t) = P_t r_i(t-1)
    S_t = sum_i r_i(t) z_i^T + P_t .. P_1 S_0                         rho_i(t) = |r_i(t)| / |k_i|     (math.md 3)

The window is cut into about sqrt(T) chunks. One backward sweep goes through all chunks at once and applies the suffix
product M to each key (M <- M P_i is a rank-one change); a second, over the chunks, composes the products. That is
2 sqrt(T) sequential steps instead of T, of the recurrence itself: no exponent above 0 and no inverse is formed.

| symbol | shape | meaning |
|---|---|---|
| k, e, g | [B,T,H,K] | key, erase address, log decay (<= 0) |
| r | [B,T,H,K] | retained keys |
| product | [B,H,K,K] | P_T .. P_1 |

All arithmetic is float64 whatever the inputs are; results come back in the dtype of k. Nothing here is differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tsgdn2.errors import SchemaError


@torch.no_grad()
def retained_keys(k: Tensor, e: Tensor, g: Tensor) -> Tensor:
    """Return r [B,T,H,K]: r_i at the end of the window, so that sum_i r_i z_i^T is what the window left in the state.

    Raises SchemaError for shapes that differ. Source: math.md 3.
    """
    check_shapes(k, e, g)
    r, _ = sweep(heads_first(k), heads_first(e), heads_first(g))
    return r.transpose(1, 2).to(k.dtype)


@torch.no_grad()
def carried_state(k: Tensor, e: Tensor, g: Tensor, initial_state: Tensor) -> Tensor:
    """Return P_T .. P_1 S_0 [B,H,K,V]: what is left of the state [B,H,K,V] that the window began with."""
    check_shapes(k, e, g)
    _, product = sweep(heads_first(k), heads_first(e), heads_first(g))
    return (product @ initial_state.double()).to(initial_state.dtype)


@torch.no_grad()
def retention_matrix(k: Tensor, e: Tensor, g: Tensor, *, times: Sequence[int] | None = None) -> Tensor:
    """Return rho [B,H,len(times),T]: retention of write i (last axis) just after each token of `times`, 0 for i > t.

    `times` are strictly increasing token indices, all of them by default; O(len(times) T K^2). A write with a zero key
    has retention 0. Raises SchemaError for shapes or times that do not fit.
    """
    check_shapes(k, e, g)
    k_BHTK = heads_first(k)
    size_BHT = k_BHTK.norm(dim=-1)
    chosen = check_times(times, k.shape[1])
    rho = k_BHTK.new_zeros(*size_BHT.shape[:2], len(chosen), size_BHT.shape[2])
    kept_BHTK = k_BHTK[:, :, :0]
    for row, (_, end, r_BHTK, product_BHKK) in enumerate(segments(k_BHTK, heads_first(e), heads_first(g), chosen)):
        kept_BHTK = torch.cat([kept_BHTK @ product_BHKK.mT, r_BHTK], 2)
        size = size_BHT[:, :, : end + 1]
        rho[:, :, row, : end + 1] = torch.where(size > 0, kept_BHTK.norm(dim=-1) / size.clamp_min(1e-300), 0.0)
    return rho.to(k.dtype)


@torch.no_grad()
def largest_gain(k: Tensor, e: Tensor, g: Tensor) -> Tensor:
    """Return the largest singular value of every P_t, [B,T,H]; above 1 the token can expand a state. O(T K^3)."""
    check_shapes(k, e, g)
    alpha = g.double().exp()
    eye = torch.eye(k.shape[-1], dtype=torch.float64, device=k.device)
    P = (eye - k.double()[..., :, None] * e.double()[..., None, :]) * alpha[..., None, :]
    gain: Tensor = torch.linalg.svdvals(P)[..., 0]
    return gain.to(k.dtype)


def chunk_sweep(k: Tensor, e: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return the retained keys at the end of each chunk, [B,H,N,C,K], and each chunk's product, [B,H,N,K,K].

    Inputs [B,H,T,K] in float64; T is padded to N C with tokens that do nothing.
    """
    k, e, alpha = (in_chunks(t) for t in (k, e, g))
    alpha = alpha.exp()
    M = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device).expand(*k.shape[:3], -1, -1)
    r = torch.empty_like(k)
    for c in reversed(range(k.shape[3])):
        r[:, :, :, c] = (M @ k[:, :, :, c, :, None]).squeeze(-1)
        M = (M - r[:, :, :, c, :, None] * e[:, :, :, c, None, :]) * alpha[:, :, :, c, None, :]
    return r, M


def sweep(k: Tensor, e: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return r [B,H,T,K] at the end of the window and the window's product [B,H,K,K], for [B,H,T,K] in float64."""
    r, M = chunk_sweep(k, e, g)
    suffix = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
    for n in reversed(range(r.shape[2])):
        r[:, :, n] = r[:, :, n] @ suffix.mT
        suffix = suffix @ M[:, :, n]
    return r.flatten(2, 3)[:, :, : k.shape[2]], suffix


def segments(k: Tensor, e: Tensor, g: Tensor, times: Sequence[int]) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield (begin, end, r, product) for the tokens begin..end between chosen times; inputs [B,H,T,K] in float64."""
    begin = 0
    for end in times:
        part = slice(begin, end + 1)
        yield begin, end, *sweep(k[:, :, part], e[:, :, part], g[:, :, part])
        begin = end + 1


def in_chunks(t_BHTX: Tensor) -> Tensor:
    """[B,H,T,X] -> [B,H,N,C,X] with C about sqrt(T), padded at the end with zeros (a token that does nothing)."""
    B, H, tokens, X = t_BHTX.shape
    size = max(1, math.isqrt(tokens))
    return torch.nn.functional.pad(t_BHTX, (0, 0, 0, -tokens % size)).reshape(B, H, -1, size, X)


def heads_first(t_BTHX: Tensor) -> Tensor:
    """[B,T,H,X] -> [B,H,T,X] in float64."""
    return t_BTHX.double().transpose(1, 2)


def check_times(times: Sequence[int] | None, tokens: int) -> list[int]:
    """Return the chosen token indices, all by default."""
    chosen = list(range(tokens)) if times is None else [int(t) for t in times]
    if any(b <= a for a, b in zip([-1, *chosen], chosen, strict=False)) or (chosen and chosen[-1] >= tokens):
        raise SchemaError(
            f"times must be strictly increasing token indices in 0..{tokens - 1}, got {chosen}; sort them and drop "
            "duplicates"
        )
    return chosen


def check_shapes(k: Tensor, e: Tensor, g: Tensor, z: Tensor | None = None, state: Tensor | None = None) -> None:
    """Raise SchemaError unless k, e, g are [B,T,H,K], z [B,T,H,V] and the state [B,H,K,V], T >= 1, floating."""
    if k.ndim != 4 or 0 in k.shape:
        raise SchemaError(f"k must be [B,T,H,K] with no empty axis, got {tuple(k.shape)}; add the missing axes")
    for name, value in (("e", e), ("g", g)):
        if value.shape != k.shape:
            raise SchemaError(f"{name} must have k's shape {tuple(k.shape)}, got {tuple(value.shape)}; expand it")
    if z is not None and (z.ndim != 4 or z.shape[:3] != k.shape[:3]):
        raise SchemaError(f"z must be [B,T,H,V] with {tuple(k.shape[:3])} first, got {tuple(z.shape)}")
    if state is not None and z is not None:
        wanted = (k.shape[0], k.shape[2], k.shape[3], z.shape[3])
        if tuple(state.shape) != wanted:
            raise SchemaError(f"initial_state must be [B,H,K,V] = {wanted}, got {tuple(state.shape)}")
    for name, given in (("k", k), ("e", e), ("g", g), ("z", z), ("initial_state", state)):
        if given is not None and not given.is_floating_point():
            raise SchemaError(f"{name} must be floating point, got {given.dtype}; cast it")
