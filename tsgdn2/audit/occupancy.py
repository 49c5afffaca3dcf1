"""How full the state is, how old, and how much of what is read is somebody else's write.

None of this needs a tracked write: it comes from K x K aggregates, so it describes a head, not an observation.

    C     = sum_i r_i r_i^T            tr C: retained writes, effectively;  (tr C)^2 / tr C^2 <= K: key directions
    age   = sum_i (t - i) |r_i|^2 / tr C
    C_z   = sum_i |z_i|^2 r_i r_i^T    signal tr C_z
    crosstalk = |S - P..P S_0|^2 - tr C_z = sum_{i != j} (r_i.r_j)(z_i.z_j)
    S^T k_i = (r_i.k_i) z_i + crosstalk_i                                          read-back, math.md 3

Cohorts are a partition of the writes; each has its shadow state, and with what is left of S_0 they sum to S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tsgdn2.audit.retention import check_shapes, check_times, heads_first, retained_keys, segments
from tsgdn2.errors import SchemaError


class Occupancy(NamedTuple):
    """[B,H,len(times)] each: retained (writes), directions (of K), mean_age (tokens), signal, crosstalk (energies)."""

    retained: Tensor
    directions: Tensor
    mean_age: Tensor
    signal: Tensor
    crosstalk: Tensor


class ReadBack(NamedTuple):
    """signal and crosstalk [B,T,H,V]; their sum is what the state answers to each key of the window."""

    signal: Tensor
    crosstalk: Tensor


@torch.no_grad()
def occupancy(k: Tensor, e: Tensor, z: Tensor, g: Tensor, *, times: Sequence[int] | None = None) -> Occupancy:
    """Measure a window just after each token of `times` (increasing; default: the last token only).

    k, e, g [B,T,H,K], z [B,T,H,V]. Only writes of the window count; a state carried in is neither signal nor
    crosstalk. Raises SchemaError. Source: math.md 3.
    """
    check_shapes(k, e, g, z)
    k_, e_, z_, g_ = (heads_first(t) for t in (k, e, z, g))
    chosen = check_times([k.shape[1] - 1] if times is None else times, k.shape[1])
    C = k_.new_zeros(*k_.shape[:2], k_.shape[3], k_.shape[3])
    aged, weighted = C, C
    S = k_.new_zeros(*k_.shape[:2], k_.shape[3], z_.shape[3])
    rows = []
    for begin, end, r, P in segments(k_, e_, g_, chosen):
        z_part = z_[:, :, begin : end + 1]
        age = torch.arange(end - begin, -1, -1, dtype=r.dtype, device=r.device)[:, None]
        aged = P @ (aged + (end - begin + 1) * C) @ P.mT + r.mT @ (age * r)
        weighted = P @ weighted @ P.mT + r.mT @ (z_part.square().sum(-1, keepdim=True) * r)
        C = P @ C @ P.mT + r.mT @ r
        S = P @ S + r.mT @ z_part
        kept, signal = _trace(C), _trace(weighted)
        some = kept > 0
        square = C.square().sum((-2, -1))
        rows.append(
            (
                kept,
                torch.where(some, kept.square() / square.clamp_min(1e-300), 0.0),
                torch.where(some, _trace(aged) / kept.clamp_min(1e-300), 0.0),
                signal,
                S.square().sum((-2, -1)) - signal,
            )
        )
    return Occupancy(*(torch.stack(column, -1).to(k.dtype) for column in zip(*rows, strict=True)))


@torch.no_grad()
def read_back(state: Tensor, k: Tensor, r: Tensor, z: Tensor) -> ReadBack:
    """Split the state's answer to each key of a window into its own value and the rest.

    state [B,H,K,V] at the end of the window; k, r [B,T,H,K]; z [B,T,H,V]. A state carried into the window counts as
    crosstalk. Raises SchemaError.
    """
    check_shapes(k, r, r, z, state)
    read = torch.einsum("bhkv,bthk->bthv", state.double(), k.double())
    signal = (r.double() * k.double()).sum(-1, keepdim=True) * z.double()
    return ReadBack(signal.to(state.dtype), (read - signal).to(state.dtype))


@torch.no_grad()
def cohort_states(k: Tensor, e: Tensor, z: Tensor, g: Tensor, group: Tensor, groups: int) -> Tensor:
    """Return one shadow state per group, [B,groups,H,K,V]; with `carried_state` they sum to the state.

    group [B,T] int64 in 0..groups-1 says which cohort each token belongs to. Raises SchemaError.
    """
    check_shapes(k, e, g, z)
    if group.shape != k.shape[:2] or group.is_floating_point() or bool(((group < 0) | (group >= groups)).any()):
        raise SchemaError(
            f"group must be integers in 0..{groups - 1} of shape {tuple(k.shape[:2])}, got {group.dtype} "
            f"{tuple(group.shape)}; number the cohorts from 0"
        )
    member = torch.nn.functional.one_hot(group.long(), groups).double()
    r = retained_keys(k.double(), e, g)
    return torch.einsum("bthk,bthv,btg->bghkv", r, z.double(), member).to(z.dtype)


def _trace(square: Tensor) -> Tensor:
    return square.diagonal(dim1=-2, dim2=-1).sum(-1)
