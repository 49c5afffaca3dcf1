"""What a language model costs before it is made: weights, state, and operations per token, layer by layer.

                                     forward                                        backward
    x [D] with W [O,D], head too     2 D O                                          4 D O
    scan, a head, with an erase      6 K V + C (3 K + 2 V) + C^2 / 3                twice it, but C^2 for the C^2 / 3
    scan, a head, without            4 K V + C (K + V)                              twice it
    attention, a head                2 w (K + V)                                    twice it

Per token of a chunk of C = 64 tokens, by the equations of math.md 2, a product with a triangle counted as half of the
square; what is done channel by channel is not counted. Forward: T, P and Y of K channels, U and P R of V, each C^2 of
them; Y S0, (exp(G) Q) S0 and Ktail^T R, each 2 C K V; the inverse A of a triangle, C^3 / 3. Without an erase P, P R and
the last two are left. Backward: two products for each of these, and A^T dA A^T, C^3, in place of the inverse's.

The count is of what the mathematics asks for, not of what a kernel remakes, so an MFU made of it is comparable between
mixers that share the scan.

D width, K and V channels of a head, C chunk, w the mean of the tokens that a token of a window sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.model import LanguageModel
from tsgdn2.mixers.gates import MEMBERS

CHUNK = 64
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
    mixing_backward: float
    """The same, backward."""

    @property
    def forward_operations(self) -> float:
        """Floating point operations per token, forward."""
        return 2 * self.products + self.mixing

    @property
    def operations(self) -> float:
        """Floating point operations per token of training, forward and backward; nothing is computed twice."""
        return 6 * self.products + self.mixing + self.mixing_backward


def footprint(config: LanguageConfig, *, context: int = 4096) -> Footprint:
    """Count, by making the model without its numbers; context: tokens of a training window, for attention."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = LanguageModel(config)
        state = model.initial_state(1)
    blocks = sum(p.numel() for p in model.blocks.parameters())
    products = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, torch.nn.Linear))
    own = {id(p): p.numel() for p in (model.embedding.weight, model.head.weight, model.norm.weight)}
    mixing = [_mixing(config, name, context) for name in config.layer_mixers]
    return Footprint(
        parameters=blocks,
        vocabulary_parameters=sum(own.values()),
        state_floats=tuple(
            sum(t.numel() for name, t in layer.items() if name in _REMEMBERED) for layer in state.layers
        ),
        state_bytes=sum(4 * t.numel() for layer in state.layers for t in layer.values()),
        products=products + model.head.weight.numel(),
        mixing=sum(forward for forward, _ in mixing),
        mixing_backward=sum(backward for _, backward in mixing),
    )


def _mixing(config: LanguageConfig, name: str, context: int) -> tuple[float, float]:
    """Operations of one layer's memory per token, forward and backward."""
    keys, values = config.key_dim, config.value_dim
    if name == "attention":
        each = config.width // config.attending_heads
        seen = min(config.attention_window, context)
        mean = seen * (1 - seen / (2 * context))  # the first tokens of a window see less
        products = 4.0 * mean * each * config.attending_heads
        return products, 2 * products
    if name in MEMBERS or name.startswith("mamba3") or name == "rwkv7":
        writes = {"mamba3-mimo": 4, "rwkv7": 2}.get(name, 1)
        erases = (MEMBERS[name].erase != "none") if name in MEMBERS else name == "rwkv7"
        scans = config.heads * writes
        if not erases:
            products = scans * (4.0 * keys * values + CHUNK * (keys + values))
            return products, 2 * products
        products = scans * (6.0 * keys * values + CHUNK * (3 * keys + 2 * values))
        square = scans * CHUNK**2
        return products + square / 3, 2 * products + square
    return 0.0, 0.0
