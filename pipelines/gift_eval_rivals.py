"""Rivals from GluonTS on a configuration of GIFT-Eval, at a budget of processor time instead of a number of epochs.

    budget spent -> the epoch is closed -> the weights of the lowest validation loss

Each takes the last horizon of the training part for its validation and trains on what comes before. Settings are
GluonTS's own but for the context, a patch, a batch of 32 and epochs of 50 batches; nothing was tuned here, for them or
against them. Lightning writes its checkpoints into a folder that is gone afterwards. GluonTS hides an error of the
training once a checkpoint exists, and takes callbacks out of the arguments: both are looked after.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import lightning.pytorch as pl
import numpy as np
from gluonts.dataset.common import ListDataset
from gluonts.model.seasonal_naive import SeasonalNaivePredictor
from gluonts.torch import (
    DeepAREstimator,
    DLinearEstimator,
    PatchTSTEstimator,
    TemporalFusionTransformerEstimator,
)
from gluonts.torch.model.estimator import PyTorchLightningEstimator
from gluonts.torch.model.i_transformer import ITransformerEstimator

from tsgdn2.errors import ConfigError, TsgdnError
from tsgdn2.evaluation.gift_eval import Configuration
from tsgdn2.evaluation.metrics import Predicts
from tsgdn2.pipelines.budget import CpuBudget
from tsgdn2.pipelines.gift_eval_recipes import RIVAL_BATCHES, RIVAL_CONTEXT
from tsgdn2.pipelines.together import Together, together

Entry: TypeAlias = Mapping[str, object]

PATCH: Final = {"15T": 16, "10T": 16, "H": 16, "D": 6, "W": 2}
"""Patch of PatchTST; its stride is half of it."""


def _deepar(one: Configuration, shared: Mapping[str, Any]) -> PyTorchLightningEstimator:
    return DeepAREstimator(one.pandas_freq, **shared)


def _patchtst(one: Configuration, shared: Mapping[str, Any]) -> PyTorchLightningEstimator:
    patch = PATCH[one.freq]
    return PatchTSTEstimator(patch_len=patch, stride=patch // 2, scaling="std", **shared)


def _tft(one: Configuration, shared: Mapping[str, Any]) -> PyTorchLightningEstimator:
    quantiles = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    return TemporalFusionTransformerEstimator(one.pandas_freq, quantiles=quantiles, **shared)


def _dlinear(one: Configuration, shared: Mapping[str, Any]) -> PyTorchLightningEstimator:  # noqa: ARG001
    return DLinearEstimator(**shared)


def _itransformer(one: Configuration, shared: Mapping[str, Any]) -> PyTorchLightningEstimator:  # noqa: ARG001
    return ITransformerEstimator(**shared)


MAKERS: Final[dict[str, Callable[[Configuration, Mapping[str, Any]], PyTorchLightningEstimator]]] = {
    "DeepAR": _deepar,
    "PatchTST": _patchtst,
    "TFT": _tft,
    "DLinear": _dlinear,
    "iTransformer": _itransformer,
}
MULTIVARIATE: Final = frozenset({"iTransformer"})
"""Models of targets [C, T]."""
POINT: Final = "SeasonalNaive"
"""GluonTS's own, all of whose quantiles are one point; `seasonal_naive` is the protocol's."""
RIVALS: Final = (*MAKERS, POINT)


def rival(
    name: str, one: Configuration, train: Sequence[Entry], *, seconds: float, seed: int
) -> tuple[Predicts, CpuBudget]:
    """Train one rival on the training part of a configuration; gives the predictor and what it took.

    seconds: processor time of the training. Errors: ConfigError for a name that is none of RIVALS; TsgdnError where the
    training did not come to its end.
    """
    budget = CpuBudget(seconds)
    if name == POINT:
        return SeasonalNaivePredictor(prediction_length=one.horizon, season_length=one.season), budget
    if name not in MAKERS:
        raise ConfigError(f"models: must be among {', '.join(RIVALS)}, got {name!r}")
    data = together(train) if name in MULTIVARIATE else list(train)
    shortest = min(np.shape(entry["target"])[-1] for entry in data)  # type: ignore[call-overload]
    held = one.horizon if shortest > 3 * one.horizon else 0
    context = max(1, min(RIVAL_CONTEXT[one.freq], shortest - held - one.horizon))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        trainer: dict[str, Any] = {
            "max_epochs": 100_000,  # the budget ends it
            "callbacks": [budget],
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": folder,
        }
        shared = {"prediction_length": one.horizon, "context_length": context, "trainer_kwargs": trainer}
        shared |= RIVAL_BATCHES  # fmt: skip
        pl.seed_everything(seed, verbose=False)
        estimator = MAKERS[name](one, shared)
        whole = _dataset(data, one, 0)
        predictor = estimator.train(_dataset(data, one, held), whole if held else None, cache_data=True)
    if budget.error is not None:
        raise TsgdnError(f"models: the training of {name} on {one.name} ended with {budget.error}") from budget.error
    return (Together(predictor) if name in MULTIVARIATE else predictor), budget


def _dataset(entries: Sequence[Entry], one: Configuration, held: int) -> list[dict[str, Any]]:
    """GluonTS's float32 entries without the last `held` steps."""
    flat = np.ndim(entries[0]["target"]) == 1  # type: ignore[arg-type]
    cut = [{**entry, "target": np.asarray(entry["target"])[..., : -held or None]} for entry in entries]
    made: list[dict[str, Any]] = ListDataset(cut, freq=one.pandas_freq, one_dim_target=flat)
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning and GluonTS say about choices that are made here on purpose."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "gluonts")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
