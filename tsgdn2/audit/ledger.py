"""The energy ledger: what each token's decay, erase and write did to |S|^2, exactly.

It needs every state of the window once, O(T K V) time; states are not kept. With Sb = Diag(alpha) S, y = Sb^T e,
p = Sb^T k and c = |k|^2 (math.md 3):

    |S'|^2 = |S|^2 - sum_j (1 - alpha_j^2) |S[j]|^2      decay
                   - (2 p.y - c |y|^2)                   erase, signed: an erase can expand
                   + c |z|^2                             write
                   + 2 z.(p - c y)                       interaction of the write with what was there

`before` and `after` are measured from the states, not derived from the terms, so the residual is a real check.
States at the chunk borders come from the chunk products; inside, all chunks step side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tsgdn2.audit.retention import check_shapes, chunk_sweep, heads_first, in_chunks


class EnergyLedger(NamedTuple):
    """One row per token and head, [B,T,H] each: before - decay - erase + write + interaction = after."""

    before: Tensor
    decay: Tensor
    erase: Tensor
    write: Tensor
    interaction: Tensor
    after: Tensor

    @property
    def residual(self) -> Tensor:
        """What the terms do not explain, relative to |S|^2 + the energy written, [B,T,H]; rounding only, if right."""
        explained = self.before - self.decay - self.erase + self.write + self.interaction
        scale = torch.maximum(self.before, self.after) + self.write
        return torch.where(scale > 0, (self.after - explained).abs() / scale.clamp_min(1e-30), explained.abs())

    @property
    def transition_gain(self) -> Tensor:
        """|P_t S| / |S| [B,T,H], 1 for an empty state; above 1 the largest singular value of P_t is above 1 too."""
        left = (self.before - self.decay - self.erase).clamp_min(0)
        return torch.where(self.before > 0, (left / self.before.clamp_min(1e-30)).sqrt(), torch.ones_like(left))


@torch.no_grad()
def energy_ledger(k: Tensor, e: Tensor, z: Tensor, g: Tensor, *, initial_state: Tensor | None = None) -> EnergyLedger:
    """Book every token of a window: k, e, g [B,T,H,K], z [B,T,H,V], initial_state [B,H,K,V] or None for zero.

    Returns [B,T,H] tensors in k's dtype, computed in float64. Raises SchemaError for shapes that do not fit.
    Source: math.md 3.
    """
    check_shapes(k, e, g, z, initial_state)
    tokens = k.shape[1]
    k_, e_, z_, g_ = (heads_first(t) for t in (k, e, z, g))
    r, M = chunk_sweep(k_, e_, g_)
    k_, e_, z_, g_ = (in_chunks(t) for t in (k_, e_, z_, g_))
    S = k_.new_zeros(*k_.shape[:2], k_.shape[-1], z_.shape[-1]) if initial_state is None else initial_state.double()
    borders = []
    for n in range(k_.shape[2]):
        borders.append(S)
        S = M[:, :, n] @ S + r[:, :, n].mT @ z_[:, :, n]
    S = torch.stack(borders, 2)  # [B,H,N,K,V]: the state before each chunk

    columns = []
    for c in range(k_.shape[3]):
        kc, ec, zc, gc = (t[:, :, :, c] for t in (k_, e_, z_, g_))
        rows = S.square().sum(-1)
        before, decay = rows.sum(-1), (-torch.expm1(2 * gc) * rows).sum(-1)
        S = gc.exp()[..., None] * S
        y, p = (S * ec[..., None]).sum(-2), (S * kc[..., None]).sum(-2)
        size = kc.square().sum(-1, keepdim=True)
        erase = ((2 * p - size * y) * y).sum(-1)
        write = (size * zc.square()).sum(-1)
        interaction = 2 * (zc * (p - size * y)).sum(-1)
        S = S + kc[..., None] * (zc - y)[..., None, :]
        columns.append(torch.stack([before, decay, erase, write, interaction, S.square().sum((-2, -1))]))
    table = torch.stack(columns, -1).flatten(3, 4)[..., :tokens]  # [6,B,H,T]
    return EnergyLedger(*table.transpose(2, 3).to(k.dtype).unbind(0))
