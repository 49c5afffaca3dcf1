"""Root-mean-square normalisation as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsgdn2.adjoints import rms_norm


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [.., D]."""
        return rms_norm(x, self.weight, self.eps)
