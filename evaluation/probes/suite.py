"""All probes and all mixers by name, and the sizes at which the mixers are compared.

The state is small on purpose: a matrix of six key channels is soon full. Memories are compared by the bytes of the
whole state, convolution caches included: every rival has at least those of gdn2. The delta family has its convolution
and so keeps its matrices; the others grow theirs, or their cells, or their window, to the first size that reaches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Final

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.probes.contract import Probe
from tsgdn2.evaluation.probes.recall import Overwrite, Recall, Topology
from tsgdn2.evaluation.probes.sensors import Lookup, Rare, Regime
from tsgdn2.evaluation.probes.systems import Effect, Stale
from tsgdn2.evaluation.probes.tracking import Parity, Permutations
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.mixers.gates import MEMBERS
from tsgdn2.mixers.registry import cost, matched

PROBES: Final[dict[str, type[Probe]]] = {
    probe.name: probe
    for probe in (Recall, Overwrite, Lookup, Rare, Regime, Effect, Stale, Topology, Parity, Permutations)
}
SMALL: Final[dict[str, int]] = {"recall": 8, "overwrite": 50, "rare": 4, "effect": 4, "parity": 50}
"""Probes of the small table, at one level each."""

BASE: Final = ForecasterConfig(
    prediction_length=1, period_ns=1, width=32, layers=2, heads=2, key_dim=6, value_dim=6, mlp=88
)
"""Blocks of every model; config_of() changes what a mixer needs to have as much state and as many weights."""
HYBRIDS: Final = {"gdn2+swa": "gdn2", "mamba2+swa": "mamba2"}
"""Every second layer is sliding-window attention."""
MIXERS: Final = (*MEMBERS, "mamba3", "mamba3-mimo", "rwkv7", "swa", *HYBRIDS, "lstm", "none")


def probe_of(name: str, level: int) -> Probe:
    """Make a probe by name; ConfigError names the levels that it has."""
    return PROBES[name](level)


def config_of(mixer: str) -> ForecasterConfig:
    """Sizes of a model with this mixer: its state has at least the bytes of BASE with gdn2, its weights are as many.

    The members of the delta family keep 72 floats a layer: they have gdn2's matrices and convolution, and lack at most
    its rates. An lstm of this state has five times the weights, so its SwiGLU keeps its width; none remembers nothing.
    """
    if mixer not in MIXERS:
        raise ConfigError(f"mixers: must be among {', '.join(MIXERS)}, got {mixer!r}")
    return _sized(mixer)


@cache
def _sized(mixer: str) -> ForecasterConfig:
    start = replace(BASE, mixer=HYBRIDS.get(mixer, mixer), attention_every=2 if mixer in HYBRIDS else 0)
    wanted = cost(BASE)
    if mixer in MEMBERS or mixer == "none":
        return matched(start, parameters=wanted.parameters)
    for config, floats in _grown(start, mixer):
        if cost(config).state_bytes >= wanted.state_bytes:
            sized = matched(config, floats, wanted.parameters)
            return replace(sized, mlp=BASE.mlp) if mixer == "lstm" else sized
    raise AssertionError(mixer)  # the sizes have no end


def _grown(start: ForecasterConfig, mixer: str) -> Iterator[tuple[ForecasterConfig, int]]:
    """Growing sizes and the floats of a layer's memory; matrices stay nearly square, so that no channel is wasted."""
    heads = start.heads
    if mixer == "lstm":
        for value_dim in count(start.value_dim):
            yield replace(start, value_dim=value_dim), 2 * heads * value_dim
    if mixer == "swa":
        for window in count(1):
            yield replace(start, attention_window=window), window * heads * (start.key_dim + start.value_dim)
    for area in count(start.key_dim * start.value_dim):
        for key_dim in range(start.key_dim, int(area**0.5) + 1):
            value_dim = area // key_dim
            odd = "mamba3" in mixer and key_dim % 2 == 1  # its keys turn in pairs
            ragged = mixer in HYBRIDS and area % (key_dim + value_dim) > 0  # of no whole window
            if key_dim * value_dim == area and value_dim <= key_dim + 2 and not odd and not ragged:
                window = max(1, area // (key_dim + value_dim))
                yield replace(start, key_dim=key_dim, value_dim=value_dim, attention_window=window), heads * area
