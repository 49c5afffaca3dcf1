"""Mixers by name."""

from __future__ import annotations

from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.mixers.contract import Mixer
from tsgdn2.mixers.gdn2 import GDN2Mixer
from tsgdn2.mixers.lstm import LSTMMixer
from tsgdn2.mixers.none import NoMixer


def make_mixer(config: ForecasterConfig) -> Mixer:
    """The mixer that `config.mixer` names, at its sizes."""
    if config.mixer == "gdn2":
        return GDN2Mixer(
            config.width,
            heads=config.heads,
            key_dim=config.key_dim,
            value_dim=config.value_dim,
            norm_max=config.norm_max,
            decay_from=config.decay_from,
        )
    if config.mixer == "lstm":
        return LSTMMixer(config.width, config.heads * config.value_dim)
    return NoMixer(config.width)
