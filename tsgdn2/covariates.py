"""Known covariates and static features as a stream's caller gives them, checked against those of the training.

Standardised here once, so that neither the rings nor the model ever see raw units. Messages name the argument.
F known covariates, R real static features, K categories, H horizon.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tsgdn2.errors import SchemaError
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.intake import numbers
from tsgdn2.scale import Floats
from tsgdn2.slab import Ints
from tsgdn2.standards import Standards


class Covariates:
    """Checks and standardises; holds no stream."""

    def __init__(self, config: ForecasterConfig, standards: Standards) -> None:
        self.config, self.standards = config, standards

    def static(self, stream: str, static: ArrayLike | None, *, opened: bool) -> tuple[Floats, Ints] | None:
        """Real features standardised and categories of a stream that is being opened; None where there are none."""
        reals, cardinalities = self.config.static_real, self.config.static_cardinalities
        if not reals and not cardinalities:
            if static is not None:
                raise SchemaError("static: the model was trained without static features; leave it out")
            return None
        if opened:
            return None
        raw = np.zeros(0) if static is None else numbers(static, "static")
        if raw.shape != (reals + len(cardinalities),):
            raise SchemaError(
                f"static: the first observation of {stream!r} needs {reals} real features and {len(cardinalities)} "
                f"categories in one array, got {static!r}"
            )
        categories = raw[reals:].astype(np.int64)
        if (categories != raw[reals:]).any() or (categories < 0).any() or (categories >= np.array(cardinalities)).any():
            raise SchemaError(f"static: categories must be integers below {cardinalities}, got {raw[reals:]}")
        return self.standards.static(raw[:reals]), categories

    def known(self, known: ArrayLike | None, rows: int) -> Floats:
        """Covariates of N rows, standardised, [N, F]; one row may come as [F]."""
        shape = (rows, self.config.known)
        if not self.config.known and known is None:
            return np.zeros(shape)
        if known is None:
            raise SchemaError(f"known: the model was trained with {self.config.known} known covariates; give them")
        raw = numbers(known, "known")
        raw = raw[None] if raw.ndim == 1 and rows == 1 else raw
        if raw.shape != shape:
            raise SchemaError(f"known: must have shape {shape}, got {raw.shape}")
        return self.standards.known(raw)

    def future(self, future: ArrayLike | None, steps: int) -> Floats:
        """Covariates of the whole horizon, standardised, [1, H, F]; rows beyond `steps` are their mean."""
        out = np.zeros((1, self.config.prediction_length, self.config.known))
        if not self.config.known and future is None:
            return out
        if future is None:
            raise SchemaError(f"future: the model needs {self.config.known} known covariates for each horizon step")
        raw = numbers(future, "future")
        if raw.ndim != 2 or len(raw) < steps:
            raise SchemaError(f"future: must be [{steps}, {self.config.known}] or longer, got shape {raw.shape}")
        given = raw[: self.config.prediction_length]
        out[0, : len(given)] = self.standards.known(given, "future")
        return out
