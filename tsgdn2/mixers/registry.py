"""Mixers by name, what one costs, and sizes at which two of them can be compared.

Equal memory comes first: a comparison of memories at unequal bytes says nothing. Equal parameters come second, and the
hidden width of the SwiGLU makes up what the mixers leave. An LSTM can not have both: its weights grow with the square
of its state.

    memory of a layer, floats    H K V of a matrix state;  2 hidden of the LSTM;  window H (K + V) of swa

H heads, K key and V value channels of a head.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol

import torch

from tsgdn2.block import Block
from tsgdn2.errors import ConfigError
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.mixers.contract import Mixer
from tsgdn2.mixers.delta import DeltaMixer
from tsgdn2.mixers.gates import MEMBERS
from tsgdn2.mixers.gdn2 import GDN2Mixer
from tsgdn2.mixers.lstm import LSTMMixer
from tsgdn2.mixers.mamba3 import Mamba3Mixer
from tsgdn2.mixers.none import NoMixer
from tsgdn2.mixers.rwkv7 import RWKV7Mixer
from tsgdn2.mixers.swa import SWAMixer

MIMO_RANK = 4
"""Writes and reads a token of mamba3-mimo, as in its paper."""


class Sizes(Protocol):
    """What a mixer needs to know of a config: the forecaster's and the language model's have it."""

    @property
    def layer_mixers(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def heads(self) -> int: ...  # noqa: D102
    @property
    def key_dim(self) -> int: ...  # noqa: D102
    @property
    def value_dim(self) -> int: ...  # noqa: D102
    @property
    def norm_max(self) -> float: ...  # noqa: D102
    @property
    def decay_from(self) -> str: ...  # noqa: D102
    @property
    def attention_window(self) -> int: ...  # noqa: D102


def make_mixer(config: Sizes, layer: int = 0) -> Mixer:
    """The mixer of one layer, at the config's sizes; its name is `config.layer_mixers[layer]`."""
    name, width = config.layer_mixers[layer], config.width
    heads, key_dim, value_dim, norm_max = config.heads, config.key_dim, config.value_dim, config.norm_max
    sizes = {"heads": heads, "key_dim": key_dim, "value_dim": value_dim}
    if name == "gdn2":
        return GDN2Mixer(width, **sizes, norm_max=norm_max, decay_from=config.decay_from)
    if name in MEMBERS:
        return DeltaMixer(width, gates=MEMBERS[name], **sizes, norm_max=norm_max, decay_from=config.decay_from)
    if name in ("mamba3", "mamba3-mimo"):
        rank = 1 if name == "mamba3" else MIMO_RANK
        return Mamba3Mixer(width, **sizes, rank=rank, norm_max=norm_max, decay_from=config.decay_from)
    if name == "rwkv7":
        return RWKV7Mixer(width, **sizes, norm_max=norm_max, decay_from=config.decay_from)
    if name == "swa":
        return SWAMixer(width, heads=heads, key_dim=key_dim, value_dim=value_dim, window=config.attention_window)
    if name == "lstm":
        return LSTMMixer(width, heads * value_dim)
    return NoMixer(width)


class Cost(NamedTuple):
    """What the blocks of a model cost: one lane's memory and whole state, and their weights."""

    memory_floats: int
    """What is remembered of the past at any length, all layers: matrices, cells, rings of keys and values."""
    state_bytes: int
    """Every tensor of one sequence's state in float32, all layers; also convolution caches, rates, ages."""
    mixer_parameters: int
    """Weights of the mixers of all layers."""
    parameters: int
    """Weights of all blocks: mixers, norms and SwiGLUs, and attention across channels where there is one. What stands
    before and behind the blocks is the same for all mixers, and left out."""


def cost(config: ForecasterConfig) -> Cost:
    """Count, by making the blocks without their numbers; the random numbers of the caller stay as they are."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        mixers = [make_mixer(config, layer) for layer in range(config.layers)]
        blocks = [Block(config.width, config.mlp, mixer, across=config.across) for mixer in mixers]
        states = [mixer.initial_state(1) for mixer in mixers]
    remembered = sum(t.numel() for state in states for name, t in state.items() if name in _MEMORY)
    return Cost(
        remembered,
        sum(t.numel() * 4 for state in states for t in state.values()),
        sum(p.numel() for mixer in mixers for p in mixer.parameters()),
        sum(p.numel() for block in blocks for p in block.parameters()),
    )


_MEMORY = ("memory", "hidden", "cell", "keys", "values")


def matched(
    config: ForecasterConfig, state_floats: int | None = None, parameters: int | None = None, *,
    lstm_by: Literal["state", "parameters"] = "state",
) -> ForecasterConfig:  # fmt: skip
    """The config at sizes that make its mixer comparable: equal memory, and parameters as near as can be.

    config: a mixer (or hybrid) and the sizes to start from; only key_dim, value_dim, attention_window and mlp change,
    heads, width and layers stay. state_floats: memory of one layer in floats, by default heads * key_dim * value_dim of
    this config; each layer of a hybrid gets as much. parameters: weights of all blocks (`Cost.parameters`), by default
    those of gdn2 in the place of the mixer, at this config's sizes. So `matched(replace(base, mixer=name))` for every
    name gives models that can stand in one table; take the figures to print from `cost`.

    Rules, in this order:
    - matrix states: key_dim and value_dim stay if they fit; else both are the root of state_floats / heads, or, where
      that is no whole number, its two divisors that are nearest to each other, the smaller one as key_dim;
    - lstm: heads * value_dim = hidden = state_floats / 2;  swa, alone or in a hybrid: attention_window = state_floats /
      (heads (key_dim + value_dim)), with key_dim and value_dim as they are, or in a hybrid as the matrices have them;
    - mlp, at least 1, is the width at which the weights of the blocks come nearest to `parameters`.
    none remembers nothing and gets the parameters alone. An LSTM of a large state has more weights than any SwiGLU can
    make up: its mlp is then 1, and `cost` says by how much it is above (22 times at the default sizes). lstm_by
    "parameters" instead gives it the largest hidden, a multiple of heads, that keeps the config's mlp within
    `parameters`, and so less memory than the others (a tenth). A table needs both rows, or to say which one it shows.
    Raises ConfigError where a mixer can not have exactly `state_floats`, and names the sizes that it can have.
    """
    wanted = config.heads * config.key_dim * config.value_dim if state_floats is None else state_floats
    if parameters is None:
        like = _sized(replace(config, mixer="gdn2", attention_every=0), wanted)
        parameters = cost(like).parameters
    sized = _sized(config, wanted)
    if config.mixer == "lstm" and lstm_by == "parameters":
        sizes = range(1, sized.value_dim + 1)
        most = bisect_right(sizes, parameters, key=lambda each: cost(replace(sized, value_dim=each)).parameters)
        sized = replace(sized, value_dim=max(1, most))
    per_unit = cost(replace(sized, mlp=2)).parameters - cost(replace(sized, mlp=1)).parameters
    spare = parameters - cost(replace(sized, mlp=1)).parameters
    return replace(sized, mlp=1 + max(0, round(spare / per_unit)))


def _sized(config: ForecasterConfig, wanted: int) -> ForecasterConfig:
    """The config with `wanted` floats of memory in each layer."""
    heads, names = config.heads, set(config.layer_mixers)
    if wanted < 1:
        raise ConfigError(f"state_floats: must be at least 1, got {wanted}")
    if "lstm" in names:
        if wanted % (2 * heads):
            raise _unfit(wanted, 2 * heads, "an lstm, hidden and cell", config)
        config = replace(config, value_dim=wanted // (2 * heads))
    elif names - {"swa", "none"} and heads * config.key_dim * config.value_dim != wanted:
        if wanted % heads:
            raise _unfit(wanted, heads, "matrices of heads x key_dim x value_dim", config)
        each = wanted // heads
        even = 2 if "mamba3" in config.mixer else 1  # its keys turn in pairs
        keys = [k for k in range(even, math.isqrt(each) + 1, even) if each % k == 0]
        if not keys:
            raise _unfit(wanted, even * heads, "matrices with an even key_dim", config)
        config = replace(config, key_dim=keys[-1], value_dim=each // keys[-1])
    if "swa" in names:
        each = heads * (config.key_dim + config.value_dim)
        if wanted % each:
            raise _unfit(wanted, each, "swa, window x heads x (key_dim + value_dim)", config)
        config = replace(config, attention_window=wanted // each)
    return config


def _unfit(wanted: int, unit: int, what: str, config: ForecasterConfig) -> ConfigError:
    return ConfigError(
        f"state_floats: must be a multiple of {unit} for {what}, with {config.heads} heads and mixer {config.mixer!r}, "
        f"got {wanted}; ask for {max(1, round(wanted / unit)) * unit}"
    )
