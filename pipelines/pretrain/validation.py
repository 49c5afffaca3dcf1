"""The held-out part while a training runs: the same windows every time, whatever the ranks.

    nats a token = sum of nats / C        bits a byte = sum of nats / (ln 2 bytes),   bytes = C text bytes / tokens

Bytes are those of the counted tokens at the held-out part's mean, for windows cut documents; the job `evaluate` scores
whole documents and is exact. C counted tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from tsgdn2.datasets.tokens import TokenShards
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.loader import TokenBatch, TokenLoader
from tsgdn2.pipelines.pretrain.strategy import World, summed


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model makes of the held-out windows."""

    nats: float
    """Mean per counted token."""
    bits_per_byte: float
    counted: int
    """Tokens."""


class Validation:
    """Held-out windows, chosen once by a fixed seed and split over ranks."""

    def __init__(self, shards: TokenShards, *, length: int, windows: int, micro: int, world: World) -> None:
        """windows: in all, at most; micro: read at a time on a rank."""
        self.loader = TokenLoader(shards, length=length, windows=micro, seed=0, epochs=1)
        count = min(windows, self.loader.epoch_windows)
        numbers = [int(w) for w in self.loader.window_at(0, np.arange(count, dtype=np.int64))]
        own = numbers[world.rank :: world.ranks]
        # Every rank makes the same number of passes, or a sharded model would wait for ever.
        rounds = math.ceil(math.ceil(count / world.ranks) / micro)
        self._parts = [own[micro * n : micro * (n + 1)] for n in range(rounds)]
        self._spare = numbers[:1]
        self._bytes_per_token = shards.text_bytes / max(1, shards.tokens)

    def score(self, model: LanguageModel, *, precision: str) -> Score:
        """Read all windows without gradients; every rank calls it and gets the same."""
        total = torch.zeros(2, dtype=torch.float64 if model.device.type == "cpu" else torch.float32).to(model.device)
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            for part in self._parts:
                batch = self._read(part)
                tokens, targets, counted = (x.to(model.device) for x in (batch.tokens, batch.targets, batch.counted))
                loss = model.loss(tokens, targets, counted, model.documents(batch.lengths))
                total += torch.stack([loss.detach().to(total.dtype), batch.counted.sum().to(total)])
        nats, counted = summed(total).tolist()
        mean = nats / counted if counted else math.nan
        size = counted * self._bytes_per_token
        return Score(nats=mean, bits_per_byte=nats / math.log(2) / size if size else math.nan, counted=int(counted))

    def _read(self, part: list[int]) -> TokenBatch:
        if part:
            return self.loader.batch(part)
        batch = self.loader.batch(self._spare)
        return batch._replace(counted=torch.zeros_like(batch.counted))
