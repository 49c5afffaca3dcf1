"""A GluonTS distribution as the head's output, behind the two verbs that the pipelines need: loss and sample.

    raw outputs [.., n] -> domain map -> parameters -> distribution;  loss = -log p(y) in standardised units

Quantile heads need none of this; a distribution costs samples at prediction time and can not score a stream.
"""

from __future__ import annotations

from typing import cast

import torch
from gluonts.torch.distributions import Output
from torch import Tensor


class Distribution:
    """Wraps a univariate gluonts.torch DistributionOutput (StudentTOutput, NormalOutput, ...)."""

    def __init__(self, output: Output) -> None:
        self.output = output

    @property
    def size(self) -> int:
        """Raw outputs per step."""
        return sum(self.output.args_dim.values())

    def loss(self, parameters: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood [..] of target [..] under raw outputs [.., n]."""
        return -self._distribution(parameters).log_prob(target)

    def sample(self, parameters: Tensor, count: int) -> Tensor:
        """Samples [.., count]; uses torch's global generator, as GluonTS does."""
        return self._distribution(parameters).sample((count,)).movedim(0, -1)

    def _distribution(self, parameters: Tensor) -> torch.distributions.Distribution:
        raw = parameters.split(list(self.output.args_dim.values()), -1)
        mapped = self.output.domain_map(*raw)
        return cast(torch.distributions.Distribution, self.output.distribution(mapped))
