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
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from tsgdn2.block import Block
from tsgdn2.errors import ConfigError
from tsgdn2.language.config import LanguageConfig
from tsgdn2.linear import Linear
from tsgdn2.mixers.attention import AttentionMixer
from tsgdn2.mixers.contract import Commits, Mixer, MixerState, exact
from tsgdn2.mixers.registry import make_mixer
from tsgdn2.norm import RMSNorm
from tsgdn2.sequence import Ints, Sequences
from tsgdn2.state import ForecasterState

LanguageState = ForecasterState
"""State of B documents: per layer the mixer's tensors [B, ..], tokens read so far [B], schema, fingerprint."""

LOSS_TOKENS = 2_048
"""Tokens whose logits are held at a time by `loss`."""
_SPREAD = 0.02
_RECOMPUTED: Final[dict[str, Any]] = {"use_reentrant": False, "preserve_rng_state": False}  # nothing here is drawn


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
        """Of embedding, matrices and residual; beside half precision decays and memories are float32 (contract.py)."""
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def initial_state(self, batch: int, *, kept: bool = True) -> LanguageState:
        """State of `batch` documents of which nothing was read; kept: False leaves out the rings of attention, for a
        pass whose state nobody wants."""
        mixers = [block.mixer for block in self._blocks()]
        return ForecasterState(
            layers=tuple(
                mixer.initial_state(batch) if kept or not isinstance(mixer, AttentionMixer) else {} for mixer in mixers
            ),
            count=torch.zeros(batch, dtype=torch.int64),
            fingerprint=self.config.fingerprint,
        )

    def documents(self, lengths: Sequence[int] | Ints, state: LanguageState | None = None) -> Sequences:
        """Where each of B documents lies in N packed tokens: lengths [B]; state: what was read of them before."""
        length = np.asarray(lengths, np.int64)
        count = np.zeros_like(length) if state is None else state.count.cpu().numpy()
        return Sequences(length, count, bounded=False, device=self.device)

    def hidden(
        self, tokens: Tensor, at: Sequences, state: LanguageState | None = None, *, keep: bool = True
    ) -> tuple[Tensor, LanguageState]:
        """Read packed documents: tokens [N] int64 -> normalised outputs [N,D] and the state after each document.

        keep: False where nobody wants the state after; rings of attention are then not made.
        """
        if tokens.shape != (at.commits,):
            raise ConfigError(f"tokens: must be [{at.commits}] for these documents, got {tuple(tokens.shape)}")
        if state is None:
            state = self.initial_state(at.size, kept=keep)
        self._check(state, at.size)
        x = self.embedding(tokens)
        whole = torch.ones(at.commits, dtype=exact(x.dtype), device=x.device)
        layers: list[MixerState] = []
        for block, layer in zip(self._blocks(), state.layers, strict=True):
            if self.checkpointing and torch.is_grad_enabled():
                x, after = checkpoint(_read, block, x, whole, at, layer, **_RECOMPUTED)
            else:
                x, after = _read(block, x, whole, at, layer)
            layers.append(after)
        return self.norm(x), state.after(layers, torch.from_numpy(at.length).to(state.count.device))

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
        h, _ = self.hidden(tokens, at, keep=False)
        total = h.new_zeros((), dtype=exact(h.dtype))
        for part in range(0, len(h), LOSS_TOKENS):
            piece = slice(part, part + LOSS_TOKENS)
            if torch.is_grad_enabled():
                total = total + checkpoint(self._piece, h[piece], targets[piece], counted[piece], **_RECOMPUTED)
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
        self._check(state, len(token))
        x = self.embedding(token)
        one = torch.ones(len(token), dtype=exact(x.dtype), device=x.device)
        count = state.count.to(x.device)
        layers, traces = [], []
        for block, layer in zip(self._blocks(), state.layers, strict=True):
            x, after, traced = block.step(x, one, one, count, layer)
            layers.append(after)
            traces.append(traced)
        return torch.as_tensor(self.head(self.norm(x))), state.after(layers, torch.ones_like(state.count)), traces

    def _check(self, state: LanguageState, batch: int) -> None:
        if state.fingerprint != self.config.fingerprint:
            raise ConfigError(f"state: was made by config {state.fingerprint}, the model has {self.config.fingerprint}")
        if len(state.count) != batch:
            raise ConfigError(f"state: must hold {batch} documents, as many as are read, got {len(state.count)}")

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]


def language_mixer(config: LanguageConfig, layer: int = 0) -> Mixer:
    """The mixer of one layer."""
    if config.layer_mixers[layer] != "attention":
        return make_mixer(config, layer)
    return AttentionMixer(config.width, heads=config.attending_heads, window=config.attention_window)


def _read(block: Block, x: Tensor, whole: Tensor, at: Sequences, layer: MixerState) -> tuple[Tensor, MixerState]:
    y, _, after = block(Commits(x, whole, whole, at), None, layer, commit_output=True)
    return y, after
