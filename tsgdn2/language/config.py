"""Everything that fixes the shape of a language model, checked where it is made.

The blocks are the forecaster's (block.py); what differs is said here once: every interval is one token long, it
decays by the rate of the token at its end (`decay_from` "own", the paper's form), and the norm of the state is not
bounded, because a text ends. Source of the paper's sizes: arXiv 2605.22791.

    layers 1 .. n     `mixer`, but every `attention_every`-th is attention with rotary positions over a window
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from tsgdn2.errors import ConfigError, require
from tsgdn2.forecaster_config import MIXERS

LANGUAGE_MIXERS: Final = (*(name for name in MIXERS if name != "swa"), "attention")
"""Memories of a language model; "attention" is the transformer's, over the last `attention_window` tokens."""


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Shape of a language model; its fingerprint is stored in every state and checkpoint."""

    vocabulary: int
    """Number of tokens, the end of a document among them."""
    width: int
    """Residual width D."""
    layers: int
    """Blocks."""
    heads: int
    """Heads H of the mixer."""
    key_dim: int = 128
    """Key channels K of a head."""
    value_dim: int = 128
    """Value channels V of a head."""
    mlp: int
    """Hidden width of the SwiGLU."""
    mixer: str = "gdn2"
    """Memory of the layers, one of LANGUAGE_MIXERS."""
    attention_every: int = 0
    """A hybrid: every n-th layer is attention; 0 for none."""
    attention_window: int = 2048
    """Tokens that a layer of attention sees; its state grows with it."""
    attention_heads: int = 0
    """Heads of attention; 0: as many heads of 128 as fill the width, at least one."""
    tied: bool = False
    """The head is the embedding, transposed."""

    def __post_init__(self) -> None:
        """Check every bound; ConfigError names the field."""
        for name in ("vocabulary", "width", "layers", "heads", "key_dim", "value_dim", "mlp", "attention_window"):
            require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        require("mixer", self.mixer, f"one of {', '.join(LANGUAGE_MIXERS)}", self.mixer in LANGUAGE_MIXERS)
        every = self.attention_every
        allowed = "0, or from 2 to the number of layers"
        require("attention_every", every, allowed, every == 0 or 2 <= every <= self.layers)
        require("attention_heads", self.attention_heads, "at least 0", self.attention_heads >= 0)
        require("key_dim", self.key_dim, "even for mamba3", self.key_dim % 2 == 0 or "mamba3" not in self.mixer)
        if "attention" in self.layer_mixers:
            heads = self.attending_heads
            require("attention_heads", heads, f"a divisor of width {self.width}", self.width % heads == 0)

    @property
    def layer_mixers(self) -> tuple[str, ...]:
        """The mixer of each layer."""
        every = self.attention_every
        return tuple("attention" if every and n % every == 0 else self.mixer for n in range(1, self.layers + 1))

    @property
    def attending_heads(self) -> int:
        """Heads of a layer of attention; each has width / heads channels."""
        return self.attention_heads or max(1, self.width // 128)

    @property
    def decay_from(self) -> str:
        """An interval decays by the rate of the token at its end."""
        return "own"

    @property
    def norm_max(self) -> float:
        """No bound on the norm of a state."""
        return math.inf

    def to_json(self) -> str:
        """Canonical JSON; `from_json` is its inverse."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LanguageConfig:
        """Read what `to_json` wrote; ConfigError: no JSON, or a field is missing, of a wrong type, or not known."""
        try:
            raw: dict[str, Any] = json.loads(text)
            unknown = sorted(set(raw) - {f.name for f in fields(cls)})
            if unknown:
                raise ConfigError(f"config: unknown fields {unknown}; it was written by another version, upgrade")
            return cls(**raw)
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config: is not what `to_json` writes ({error}); take it from a model") from error

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]
