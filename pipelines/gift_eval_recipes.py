"""Our model's settings on GIFT-Eval: one recipe per frequency and term, the same for both meters and all seeds.

    seconds(configuration) = 60 budget * share / sum of the shares of its family

A recipe fixes the number of training steps, so that a seed gives the same weights on any machine; the budget is the
guard that ends a training which would take longer, and a budget below FULL minutes gets proportionally fewer epochs.
What was tried, on which windows, and what lost is in LOG.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

from tsgdn2.datasets.gift_eval import Freq
from tsgdn2.evaluation.gift_eval import CONFIGURATIONS, Configuration

FULL: Final = 20.0
"""Processor minutes of one family (ett1, ett2, jena_weather) that the recipes are made for."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a configuration is trained."""

    share: float
    """Weight of the configuration in its family's budget."""
    epochs: int
    """Epochs at the full budget."""
    model: Mapping[str, object] = field(default_factory=dict)
    """Arguments of GDN2Estimator."""

    def epochs_at(self, budget: float) -> int:
        """Epochs at a budget of so many minutes."""
        return max(1, round(self.epochs * min(1.0, budget / FULL)))

    @property
    def digest(self) -> str:
        """Eight hex digits that change with the recipe: rows of another one are not taken for this one's."""
        return _digest(asdict(self))


def recipe(one: Configuration) -> Recipe:
    """Give the recipe of a configuration."""
    term = "" if one.freq in ("D", "W") else f"/{one.term}"
    return RECIPES[f"{'jena' if one.dataset == 'jena_weather' else 'ett'}/{one.freq}{term}"]


def seconds(one: Configuration, budget: float) -> float:
    """Processor seconds of a configuration's training, where its family has `budget` minutes."""
    family = sum(recipe(other).share for other in CONFIGURATIONS if other.dataset == one.dataset)
    return 60 * budget * recipe(one).share / family


def rival_digest(one: Configuration, budget: float) -> str:
    """Eight hex digits that change with a rival's context, batches or share of the budget."""
    return _digest(RIVAL_BATCHES | {"context": RIVAL_CONTEXT[one.freq], "seconds": seconds(one, budget)})


def _digest(settings: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]


RIVAL_CONTEXT: Final[dict[Freq, int]] = {"15T": 384, "10T": 432, "H": 336, "D": 90, "W": 26}
"""Steps that a rival looks back, less where series are short: four, three and fourteen days, three and six months."""
RIVAL_BATCHES: Final[dict[str, object]] = {"batch_size": 32, "num_batches_per_epoch": 50}

_SMALL: Final[dict[str, object]] = {
    "patch_length": 1, "context_length": 32, "width": 32, "mlp": 32, "heads": 2, "dropout": 0.3, "lr": 5e-4,
    "num_batches_per_epoch": 10,
}  # fmt: skip
_SHORT: Final[dict[str, object]] = {"num_batches_per_epoch": 30, "dropout": 0.1, "lr": 2e-3}
_LONG: Final[dict[str, object]] = {"batch_size": 12, "num_batches_per_epoch": 20, "dropout": 0.2, "lr": 1e-3}
_QUARTER: Final[dict[str, object]] = {"patch_length": 12, "context_length": 768, "lag_skip": 384, "half_life": 1344.0}
_HOUR: Final[dict[str, object]] = {"patch_length": 8, "context_length": 512, "lag_skip": 168, "half_life": 336.0}
_JENA: Final[dict[str, object]] = {"channel_identity": True}
_TENTH: Final[dict[str, object]] = {
    **_JENA, "patch_length": 12, "context_length": 576, "lag_skip": 144, "half_life": 2016.0,
}  # fmt: skip
_WEATHER: Final[dict[str, object]] = {
    **_JENA, "patch_length": 6, "context_length": 384, "lag_skip": 72, "half_life": 336.0,
}  # fmt: skip

RECIPES: Final[dict[str, Recipe]] = {
    "ett/15T/short": Recipe(share=4, epochs=12, model={
        **_SHORT, "patch_length": 8, "context_length": 512, "lag_skip": 288, "half_life": 1344.0,
    }),
    "ett/15T/medium": Recipe(share=4, epochs=8, model=_QUARTER | _LONG),
    "ett/15T/long": Recipe(share=4, epochs=8, model=_QUARTER | _LONG),
    "ett/H/short": Recipe(share=3, epochs=12, model={
        **_SHORT, "patch_length": 4, "context_length": 256, "lag_skip": 168, "half_life": 336.0,
    }),
    "ett/H/medium": Recipe(share=3, epochs=8, model=_HOUR | _LONG),
    "ett/H/long": Recipe(share=3, epochs=8, model=_HOUR | _LONG),
    "ett/D": Recipe(share=0.5, epochs=8, model=_SMALL | {"lag_skip": 7, "half_life": 60.0}),
    "ett/W": Recipe(share=0.5, epochs=4, model=_SMALL | {"lag_skip": 4, "half_life": 26.0}),
    "jena/10T/short": Recipe(share=4, epochs=20, model={
        **_JENA, **_SHORT, "patch_length": 6, "context_length": 384, "lag_skip": 144, "half_life": 1008.0,
    }),
    "jena/10T/medium": Recipe(share=4, epochs=12, model=_TENTH | _LONG),
    "jena/10T/long": Recipe(share=4, epochs=12, model=_TENTH | _LONG),
    "jena/H/short": Recipe(share=3, epochs=24, model=_WEATHER | _SHORT),
    "jena/H/medium": Recipe(share=3, epochs=12, model=_WEATHER | _LONG),
    "jena/H/long": Recipe(share=3, epochs=12, model=_WEATHER | _LONG),
    "jena/D": Recipe(share=0.5, epochs=12, model={
        **_SMALL, **_JENA, "lag_skip": 7, "half_life": 20.0, "lr": 3e-3, "num_batches_per_epoch": 20,
    }),
}  # fmt: skip
"""By family, frequency and term; D and W have one term. The weather's 21 sensors are told apart, the meters are not."""
