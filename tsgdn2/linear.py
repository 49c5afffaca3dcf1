"""Linear layers of which a row's bits do not depend on where it lies in a tile.

    y = x W^T + bias,    x and W filled up with zeros to a multiple of ALIGNED columns where no gradient is asked for

A matrix product takes other instructions for a row that does not begin on 16 bytes. Measured in tiles of 16 rows (MKL
2024.2): float32 with 2 to 8 outputs and a number of inputs that 4 does not divide, float64 with any outputs and
an odd number of inputs, differ in their last bits from one place in the tile to another. Filled up, all rows begin
alike, and `observe` equals `observe_many` for every size of model. It costs a copy of x and W for such sizes alone.

Weights of half precision take an x of full precision and round it, as autocast does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

ALIGNED = 4
_HALVES = (torch.bfloat16, torch.float16)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [.., I], weight [O, I], bias [O] -> [.., O]."""
    if weight.dtype in _HALVES and x.dtype == torch.float32:
        x = x.to(weight.dtype)
    return F.linear(filled(x), filled(weight), bias)


def filled(x: Tensor, dim: int = -1) -> Tensor:
    """Zeros behind the last entry of `dim`, up to a multiple of ALIGNED; nothing where gradients are asked for."""
    missing = -x.shape[dim] % ALIGNED
    if not missing or torch.is_grad_enabled():
        return x
    return F.pad(x, (0, 0) * (-1 - dim) + (0, missing))


class Linear(nn.Linear):
    """nn.Linear through `product`; the same parameters under the same names."""

    def forward(self, input: Tensor) -> Tensor:
        """Input [.., I] -> [.., O]."""
        return product(input, self.weight, self.bias)
