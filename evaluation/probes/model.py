"""The model under test: tokens -> Linear -> the forecaster's blocks with any mixer -> a linear head at the questions.

Commits and questions share everything; what a model remembers is the state of its mixers and nothing else. It has no
scaler, no patches and no positions, so that a score is about the mixer.

N tokens, M questions of all streams, F features, D width, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsgdn2.block import Block
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.mixers.contract import Commits, Queries
from tsgdn2.mixers.registry import make_mixer
from tsgdn2.norm import RMSNorm


class ProbeModel(nn.Module):
    """A stack of blocks at the sizes of `config`."""

    def __init__(self, config: ForecasterConfig, features: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, config.width)
        mixers = [make_mixer(config, layer) for layer in range(config.layers)]
        self.blocks = nn.ModuleList(Block(config.width, config.mlp, mixer) for mixer in mixers)
        self.norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, outputs)

    def forward(self, commits: Commits, queries: Queries) -> Tensor:
        """Answers [M,O] to queries x [M,F] after commits x [N,F], from an empty state."""
        commits, queries = commits._replace(x=self.embed(commits.x)), queries._replace(x=self.embed(queries.x))
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            state = block.mixer.initial_state(commits.at.size)
            y, asked, _ = block(commits, queries, state, commit_output=number < last)
            commits, queries = commits if y is None else commits._replace(x=y), queries._replace(x=asked)
        return torch.as_tensor(self.head(self.norm(queries.x)))
