"""All probes and all mixers by name, and the sizes at which the mixers are compared.

The state is small on purpose: with 72 floats a layer an LSTM of the same state still has no more weights than the
others, so that both are equal, and a matrix of six key channels is soon full.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.probes.contract import Probe
from tsgdn2.evaluation.probes.recall import Overwrite, Recall, Topology
from tsgdn2.evaluation.probes.sensors import Lookup, Rare, Regime
from tsgdn2.evaluation.probes.systems import Effect, Stale
from tsgdn2.evaluation.probes.tracking import Parity, Permutations
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.mixers.gates import MEMBERS
from tsgdn2.mixers.registry import matched

PROBES: Final[dict[str, type[Probe]]] = {
    probe.name: probe
    for probe in (Recall, Overwrite, Lookup, Rare, Regime, Effect, Stale, Topology, Parity, Permutations)
}
SMALL: Final[dict[str, int]] = {"recall": 8, "overwrite": 50, "rare": 4, "effect": 4, "parity": 50}
"""Probes of the small table, at one level each."""

BASE: Final = ForecasterConfig(
    prediction_length=1, period_ns=1, width=32, layers=2, heads=2, key_dim=6, value_dim=6, mlp=88
)
"""Blocks of every model; matched() changes what a mixer needs to have the same memory and as many weights."""
HYBRIDS: Final = {"gdn2+swa": "gdn2", "mamba2+swa": "mamba2"}
"""Every second layer is sliding-window attention."""
MIXERS: Final = (*MEMBERS, "mamba3", "mamba3-mimo", "rwkv7", "swa", *HYBRIDS, "lstm", "none")


def probe_of(name: str, level: int) -> Probe:
    """Make a probe by name; ConfigError names the levels that it has."""
    return PROBES[name](level)


def config_of(mixer: str) -> ForecasterConfig:
    """Sizes of a model with this mixer, at the memory and the weights of BASE with gdn2."""
    if mixer not in MIXERS:
        raise ConfigError(f"mixers: must be among {', '.join(MIXERS)}, got {mixer!r}")
    every = 2 if mixer in HYBRIDS else 0
    return matched(replace(BASE, mixer=HYBRIDS.get(mixer, mixer), attention_every=every))
