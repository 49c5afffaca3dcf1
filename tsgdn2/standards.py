"""Units of the outside world as training found them: prior deviations, and mean and deviation of the covariates.

Training stores them, batch prediction and the stream read them; a lane that training never saw gets the default
prior, which four pseudo-values carry and the data soon outvote.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np

from tsgdn2.errors import SchemaError
from tsgdn2.scale import Floats


@dataclass(frozen=True, kw_only=True)
class Standards:
    """Prior deviation per item or channel, and standardisation of known covariates and real static features."""

    default: tuple[float, ...] = (1.0,)
    """Prior deviation of each channel where no name is known, > 0; one value serves every channel."""
    prior: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """(name, deviation per channel) of items, channels, or "item/channel"."""
    known_mean: tuple[float, ...] = ()
    """Mean of each known covariate, in its own units; empty without covariates."""
    known_scale: tuple[float, ...] = ()
    """Deviation of each known covariate, > 0."""
    past_mean: tuple[float, ...] = ()
    """Mean of each covariate that is known up to the clock only."""
    past_scale: tuple[float, ...] = ()
    """Deviation of each of them, > 0."""
    static_mean: tuple[float, ...] = ()
    """Mean of each real static feature; empty without them."""
    static_scale: tuple[float, ...] = ()
    """Deviation of each real static feature, > 0."""
    mark_mean: tuple[float, ...] = ()
    """Mean of each mark of an event, in its own units; empty without marks."""
    mark_scale: tuple[float, ...] = ()
    """Deviation of each mark, > 0."""

    def __post_init__(self) -> None:
        """Index the names; not part of the value."""
        object.__setattr__(self, "_index", dict(self.prior))

    def prior_scale(self, item: str, channels: tuple[str, ...]) -> Floats:
        """Prior deviation [C]: by item, else per channel by "item/channel", channel, default."""
        index: dict[str, tuple[float, ...]] = self.__dict__["_index"]
        whole = index.get(item)
        if whole is not None and len(whole) == len(channels):
            return np.array(whole, np.float64)
        default = self.default if len(self.default) == len(channels) else self.default[:1] * len(channels)
        return np.array(
            [(index.get(f"{item}/{c}") or index.get(c) or (d,))[0] for c, d in zip(channels, default, strict=True)]
        )

    def known(self, raw: Floats, argument: str = "known") -> Floats:
        """Standardise covariates [.., F]; SchemaError names the argument when the shape or a value does not fit."""
        width = len(self.known_mean)
        if raw.ndim == 0 or raw.shape[-1] != width:
            raise SchemaError(f"{argument}: the model was trained with {width} known covariates, got shape {raw.shape}")
        if not np.isfinite(raw).all():
            raise SchemaError(f"{argument}: must be finite; a known covariate is known, fill it or train without it")
        return (raw - np.array(self.known_mean, np.float64)) / np.array(self.known_scale, np.float64)

    def past(self, raw: Floats) -> Floats:
        """Standardise past covariates [.., P], NaN where missing; the caller has checked the shape."""
        return np.asarray((raw - np.array(self.past_mean, np.float64)) / np.array(self.past_scale, np.float64))

    def static(self, raw: Floats) -> Floats:
        """Standardise real static features [R]; SchemaError when the shape or a value does not fit."""
        width = len(self.static_mean)
        if raw.shape != (width,) or not np.isfinite(raw).all():
            raise SchemaError(f"static: the model was trained with {width} finite real static features, got {raw}")
        return (raw - np.array(self.static_mean, np.float64)) / np.array(self.static_scale, np.float64)

    def to_json(self) -> str:
        """JSON text; `from_json` is its inverse, floats to the bit."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Standards:
        """Read what `to_json` wrote."""
        raw = json.loads(text)
        prior = tuple((name, tuple(scale)) for name, scale in raw.pop("prior"))
        return cls(prior=prior, **{name: tuple(value) for name, value in raw.items()})
