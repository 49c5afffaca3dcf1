"""What a language model costs before it is made: weights, state, and operations per token, layer by layer.

    a product of x [D] with W [O,D]          2 D O operations forward, 4 D O backward
    delta family, chunk of C tokens          per head: T, P 2 C K each, A (C^2)/3, Y and U 2 C (K + V), R and O 4 K V +
                                             2 C V, state 2 K V per token; a state of one scalar decay costs the same
    attention over W tokens                  2 W (K + V) per head, of min(W, context)
    vocabulary                               2 D V

The count is of what the mathematics asks for (math.md 2) with C = 64, not of what a kernel remakes; an MFU made of it
is comparable between mixers that share the scan. The backward is twice the forward for products, 22 / 7 for the scan.

D width, K and V channels of H heads, C chunk, W window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.model import LanguageModel
from tsgdn2.mixers.gates import MEMBERS

CHUNK = 64
SCAN_BACKWARD = 22 / 7
"""Operations of the scan's backward in units of its forward (math.md 2, remade states not counted)."""
_REMEMBERED = ("memory", "hidden", "cell", "keys", "values")


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one config costs; the embedding, the head and the final norm are not among `parameters`."""

    parameters: int
    """Weights of the blocks."""
    vocabulary_parameters: int
    """Embedding, head (once where they are tied) and final norm."""
    state_floats: tuple[int, ...]
    """What each layer remembers of any past: matrices, cells, rings of keys and values."""
    state_bytes: int
    """Every tensor of one document's state in float32, all layers."""
    products: int
    """Weights that a token is multiplied with, head included: 2 operations each forward."""
    mixing: float
    """Operations of the mixers beside their products, forward, per token."""

    @property
    def forward_operations(self) -> float:
        """Floating point operations per token, forward."""
        return 2 * self.products + self.mixing

    @property
    def operations(self) -> float:
        """Floating point operations per token of training, forward and backward; nothing is computed twice."""
        return 6 * self.products + self.mixing * (1 + SCAN_BACKWARD)


def footprint(config: LanguageConfig, *, context: int = 4096) -> Footprint:
    """Count, by making the model without its numbers; context: tokens of a training window, for attention."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = LanguageModel(config)
        state = model.initial_state(1)
    blocks = sum(p.numel() for p in model.blocks.parameters())
    products = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, torch.nn.Linear))
    own = {id(p): p.numel() for p in (model.embedding.weight, model.head.weight, model.norm.weight)}
    return Footprint(
        parameters=blocks,
        vocabulary_parameters=sum(own.values()),
        state_floats=tuple(
            sum(t.numel() for name, t in layer.items() if name in _REMEMBERED) for layer in state.layers
        ),
        state_bytes=sum(4 * t.numel() for layer in state.layers for t in layer.values()),
        products=products + model.head.weight.numel(),
        mixing=sum(_mixing(config, name, context) for name in config.layer_mixers),
    )


def _mixing(config: LanguageConfig, name: str, context: int) -> float:
    """Operations of one layer's memory per token, forward."""
    keys, values = config.key_dim, config.value_dim
    if name == "attention":
        each = config.width // config.attending_heads
        seen = min(config.attention_window, context)
        mean = seen * (1 - seen / (2 * context))  # the first tokens of a window see less
        return 4.0 * mean * each * config.attending_heads
    if name in MEMBERS or name.startswith("mamba3") or name == "rwkv7":
        writes = {"mamba3-mimo": 4, "rwkv7": 2}.get(name, 1)
        erases = (MEMBERS[name].erase != "none") if name in MEMBERS else name == "rwkv7"
        scores = 2 * CHUNK * (keys * (2 if erases else 1) + values)
        solve = CHUNK**2 / 3 + 2 * CHUNK * (keys + values) if erases else 0.0
        moved = 2 * keys * values * (3 if erases else 2)
        return config.heads * writes * (scores / 2 + solve / 2 + moved)
    return 0.0
