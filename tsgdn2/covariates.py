"""Known and past covariates and static features as a caller gives them, checked against those of the training.

    columns of a step = [known reals, known categories one-hot, past reals (0 where missing), 1 where one was given]
    columns of the horizon = the first two

Standardised here once, for batch and stream alike, so that neither the rings nor the model ever see raw units. Messages
name the argument. F known reals, G known categories, U past covariates, R static reals, K static categories, H horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from tsgdn2.errors import SchemaError
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.intake import numbers
from tsgdn2.scale import Bools, Floats
from tsgdn2.slab import Ints
from tsgdn2.standards import Standards

_NONE: Final = "the model was trained without known covariates; leave it out"


class Covariates:
    """Checks and standardises; holds no stream."""

    def __init__(self, config: ForecasterConfig, standards: Standards) -> None:
        self.config, self.standards = config, standards
        self._given = config.known + len(config.known_cardinalities)

    def static(self, stream: str, static: ArrayLike | None, *, opened: bool) -> tuple[Floats, Ints] | None:
        """Real features standardised and categories of a stream that is being opened; None where there are none."""
        reals, cardinalities = self.config.static_real, self.config.static_cardinalities
        if not reals and not cardinalities:
            if static is not None:
                raise SchemaError("static: the model was trained without static features; leave it out")
            return None
        if opened:
            return None
        needed = f"{reals} real features and {len(cardinalities)} categories in one array"
        if static is None:
            raise SchemaError(
                f"static: the first observation of {stream!r} needs {needed}, got none; send its first row through "
                "observe(static=...)"
            )
        raw = numbers(static, "static")
        if raw.shape != (reals + len(cardinalities),):
            raise SchemaError(f"static: the first observation of {stream!r} needs {needed}, got {static!r}")
        if wrong_categories(raw[reals:], cardinalities).any():
            raise SchemaError(f"static: categories must be integers below {cardinalities}, got {raw[reals:].tolist()}")
        return self.standards.static(raw[:reals]), raw[reals:].astype(np.int64)

    def known(self, known: ArrayLike | None, rows: int, past: ArrayLike | None = None) -> Floats:
        """Columns of N steps; known [N, F + G], past [N, U] with NaN where missing; one row may come flat."""
        if self.config.past == 0 and past is not None and np.size(past):
            raise SchemaError("past: the model was trained without past covariates; leave it out")
        if self._given == 0 and known is not None and np.size(known):
            raise SchemaError(f"known: {_NONE}")
        reals = _rows(known, rows, self._given, "known")
        if reals is None:
            raise SchemaError(
                f"known: the model was trained with {self.config.known} known covariates and "
                f"{len(self.config.known_cardinalities)} known categories; give them"
            )
        late = _rows(past, rows, self.config.past, "past")
        return self.columns(reals, np.full((rows, self.config.past), np.nan) if late is None else late)

    def columns(self, known: Floats, past: Floats, argument: str = "known") -> Floats:
        """Columns of steps from known [N, F + G] and past [N, U]; SchemaError names the argument."""
        if np.isinf(past).any():
            raise SchemaError("past: infinite; only finite numbers and NaN (missing) are allowed, clean the source")
        seen = np.isfinite(past)
        values = np.where(seen, self.standards.past(past), 0.0) if self.config.past else past
        return np.concatenate([self.horizon(known, argument), values, seen], axis=-1)

    def horizon(self, known: Floats, argument: str = "known") -> Floats:
        """Columns of the horizon from known [.., F + G]."""
        split = self.config.known
        parts = [self.standards.known(known[..., :split], argument)]
        for i, size in enumerate(self.config.known_cardinalities):
            codes = known[..., split + i]
            wrong = ~np.isin(codes, np.arange(size))
            if wrong.any():
                raise SchemaError(
                    f"{argument}: category {i} must be an integer from 0 to {size - 1}, got "
                    f"{float(codes[wrong][0]):g}; map what training did not know to a value that it did"
                )
            parts.append(np.eye(size)[codes.astype(np.int64)])
        return np.concatenate(parts, axis=-1)

    def future(self, future: ArrayLike | None, steps: int) -> Floats:
        """Covariates of the whole horizon, [1, H, columns], from [H, F + G]; rows beyond `steps` are their mean."""
        out = np.zeros((1, self.config.prediction_length, self.config.horizon_covariates))
        if not self._given and future is None:
            return out
        if future is None:
            raise SchemaError(f"future: the model needs {self._given} known covariates for each horizon step")
        raw = numbers(future, "future")
        if not self._given and raw.size:
            raise SchemaError(f"future: {_NONE}")
        if raw.ndim != 2 or len(raw) < steps or raw.shape[1] != self._given:
            raise SchemaError(f"future: must be [{steps}, {self._given}] or longer, got shape {raw.shape}")
        given = raw[: self.config.prediction_length]
        out[0, : len(given)] = self.horizon(given, "future")
        return out


def wrong_categories(codes: Floats, sizes: Sequence[int]) -> Bools:
    """Which of the codes [K] are no integer from 0 to below their size [K]."""
    return np.array([code not in range(size) for code, size in zip(codes.tolist(), sizes, strict=True)], bool)


def _rows(given: ArrayLike | None, rows: int, width: int, argument: str) -> Floats | None:
    """An argument as [N, width]; None where it is missing and something was expected."""
    if given is None:
        return None if width else np.zeros((rows, 0))
    raw = numbers(given, argument)
    raw = raw[None] if raw.ndim == 1 and rows == 1 else raw
    if raw.shape != (rows, width):
        raise SchemaError(f"{argument}: must have shape {(rows, width)}, got {raw.shape}")
    return raw
