"""Which weights decay in training: matrices do; norms, biases, convolutions and the decay rates of memories do not.

Pulling these to zero would not make a model simpler: a norm of zero is silent and a rate of zero is a choice of memory.
"""

from __future__ import annotations

from typing import Final

from torch import nn
from torch.nn import Parameter

NO_DECAY: Final = ("A_log", "dt_bias", "norm", "bias", "conv")
"""Parts of the last name of a weight that does not decay; one with fewer than two axes never does."""


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, list[Parameter] | float]]:
    """Two groups for an optimiser, what decays and what does not, in the order of the module."""
    plain: list[Parameter] = []
    decayed: list[Parameter] = []
    for name, parameter in module.named_parameters():
        is_plain = parameter.ndim < 2 or any(part in name.split(".")[-1] for part in NO_DECAY)
        (plain if is_plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
