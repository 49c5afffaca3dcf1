"""The language model: tokens -> embedding -> blocks -> RMSNorm -> logits of the next token. Knows no files or runs.

    x_0 = E[token]      x_l = block_l(x_{l-1})      logits = RMSNorm(x_L) W^T            W = E where they are tied
    loss = mean over counted tokens of  -log softmax(logits_t)[token_{t+1}]

`forward` reads packed documents in one pass, `step` one token per row on the state; a test holds them equal. Every
document has its own state and its own convolution: `documents` says where each begins, and nothing crosses.

N tokens of B documents end to end, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from tsgdn2.block import Block
from tsgdn2.errors import ConfigError
from tsgdn2.language.config import LanguageConfig
from tsgdn2.linear import Linear
from tsgdn2.mixers.contract import Commits, Mixer, MixerState
from tsgdn2.mixers.registry import make_mixer
from tsgdn2.mixers.swa import SWAMixer
from tsgdn2.norm import RMSNorm
from tsgdn2.sequence import Ints, Sequences
from tsgdn2.state import ForecasterState

LanguageState = ForecasterState
"""State of B documents: per layer the mixer's tensors [B, ..], tokens read so far [B], schema, fingerprint."""

LOSS_TOKENS = 2_048
"""Tokens whose logits are held at a time by `loss`."""
_SPREAD = 0.02


class LanguageModel(nn.Module):
    """Embedding, blocks and head; see the module."""

    def __init__(self, config: LanguageConfig) -> None:
        """config: the shape. Weights are drawn by torch's generator: matrices N(0, .02), those that end a branch
        divided by sqrt(2 layers); gates, decays and convolutions as their mixer draws them."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.mlp, language_mixer(config, layer)) for layer in range(config.layers)
        )
        self.norm = RMSNorm(config.width)
        self.head = Linear(config.width, config.vocabulary, bias=False)
        self.checkpointing = False
        """Keep the inputs of blocks alone for the backward, and compute them again there."""
        self._draw()
        if config.tied:
            self.head.weight = self.embedding.weight

    def _draw(self) -> None:
        nn.init.normal_(self.embedding.weight, std=_SPREAD)
        nn.init.normal_(self.head.weight, std=_SPREAD)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                ends = name.endswith(("out_proj", "mlp.down"))
                nn.init.normal_(module.weight, std=_SPREAD / (math.sqrt(2 * self.config.layers) if ends else 1.0))

    @property
    def dtype(self) -> torch.dtype:
        """Parameter dtype; states are in it too."""
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def initial_state(self, batch: int) -> LanguageState:
        """State of `batch` documents of which nothing was read."""
        return ForecasterState(
            layers=tuple(block.mixer.initial_state(batch) for block in self._blocks()),
            count=torch.zeros(batch, dtype=torch.int64),
            fingerprint=self.config.fingerprint,
        )

    def documents(self, lengths: Sequence[int] | Ints, state: LanguageState | None = None) -> Sequences:
        """Where each of B documents lies in N packed tokens: lengths [B]; state: what was read of them before."""
        length = np.asarray(lengths, np.int64)
        count = np.zeros_like(length) if state is None else state.count.numpy()
        return Sequences(length, count, bounded=False, device=self.device)

    def hidden(self, tokens: Tensor, at: Sequences, state: LanguageState | None = None) -> tuple[Tensor, LanguageState]:
        """Read packed documents: tokens [N] int64 -> normalised outputs [N,D] and the state after each document."""
        if tokens.shape != (at.commits,):
            raise ConfigError(f"tokens: must be [{at.commits}] for these documents, got {tuple(tokens.shape)}")
        state = self.initial_state(at.size) if state is None else state
        x = self.embedding(tokens)
        whole = torch.ones(at.commits, dtype=torch.float32 if x.dtype != torch.float64 else x.dtype, device=x.device)
        layers: list[MixerState] = []
        for block, layer in zip(self._blocks(), state.layers, strict=True):
            if self.checkpointing and torch.is_grad_enabled():
                x, after = checkpoint(_read, block, x, whole, at, layer, use_reentrant=False)
            else:
                x, after = _read(block, x, whole, at, layer)
            layers.append(after)
        return self.norm(x), state.after(layers, torch.from_numpy(at.length))

    def forward(
        self, tokens: Tensor, at: Sequences, state: LanguageState | None = None
    ) -> tuple[Tensor, LanguageState]:
        """Logits [N,V] of the token after each, and the state; arguments as `hidden`."""
        h, after = self.hidden(tokens, at, state)
        return torch.as_tensor(self.head(h)), after

    def loss(self, tokens: Tensor, targets: Tensor, counted: Tensor, at: Sequences) -> Tensor:
        """Sum of -log p(targets [N]) in nats over tokens with counted [N] true; logits are made in pieces.

        A sum and not a mean: micro-batches and ranks divide by what they counted together.
        """
        h, _ = self.hidden(tokens, at)
        total = h.new_zeros((), dtype=torch.float32 if h.dtype != torch.float64 else h.dtype)
        for part in range(0, len(h), LOSS_TOKENS):
            piece = slice(part, part + LOSS_TOKENS)
            if torch.is_grad_enabled():
                total = total + checkpoint(self._piece, h[piece], targets[piece], counted[piece], use_reentrant=False)
            else:
                total = total + self._piece(h[piece], targets[piece], counted[piece])
        return total

    def _piece(self, h: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
        logits = self.head(h)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, targets.masked_fill(~counted, -100), ignore_index=-100, reduction="sum")

    def step(self, token: Tensor, state: LanguageState) -> tuple[Tensor, LanguageState]:
        """Read one token per row: token [B] int64 -> logits [B,V] and the state; O(1) in what was read before."""
        logits, after, _ = self.trace(token, state)
        return logits, after

    def trace(self, token: Tensor, state: LanguageState) -> tuple[Tensor, LanguageState, list[dict[str, Tensor]]]:
        """`step` that also hands out, per layer, what the audit needs (empty for a mixer that has no trace)."""
        if state.fingerprint != self.config.fingerprint:
            raise ConfigError(f"state: was made by config {state.fingerprint}, the model has {self.config.fingerprint}")
        x = self.embedding(token)
        one = torch.ones(len(token), dtype=x.dtype, device=x.device)
        count = state.count.to(x.device)
        layers, traces = [], []
        for block, layer in zip(self._blocks(), state.layers, strict=True):
            x, after, traced = block.step(x, one, one, count, layer)
            layers.append(after)
            traces.append(traced)
        return torch.as_tensor(self.head(self.norm(x))), state.after(layers, torch.ones_like(state.count)), traces

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]


def language_mixer(config: LanguageConfig, layer: int = 0) -> Mixer:
    """The mixer of one layer: attention is plain, without the norms and the sink that the forecaster's has."""
    if config.layer_mixers[layer] != "attention":
        return make_mixer(config, layer)
    heads, window = config.attending_heads, config.attention_window
    each = config.width // heads
    return SWAMixer(config.width, heads=heads, key_dim=each, value_dim=each, window=window, plain=True)


def _read(block: Block, x: Tensor, whole: Tensor, at: Sequences, layer: MixerState) -> tuple[Tensor, MixerState]:
    y, _, after = block(Commits(x, whole, whole, at), None, layer, commit_output=True)
    return y, after
