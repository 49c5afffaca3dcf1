"""A small predictor of random weights, the same each time, for the tests that serve one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tsgdn2.forecaster import ForecasterConfig
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
SHAPE: dict[str, Any] = {
    "prediction_length": 6, "period_ns": HOUR, "patch_length": 4, "width": 16, "heads": 2, "key_dim": 4, "value_dim": 4,
    "mlp": 16,
}  # fmt: skip


def predictor(channels: tuple[str, ...] = ("x", "y"), **more: Any) -> GDN2Predictor:
    """Random weights, the same each time."""
    torch.manual_seed(0)
    config = ForecasterConfig(**SHAPE, channels=len(channels), **more)
    made = GDN2Predictor(
        config_json=config.to_json(), standards_json=Standards().to_json(), freq="h", channels=list(channels)
    )
    with torch.no_grad():
        made.forecaster.head.linear.weight.normal_(std=0.3)
    return made


def written(path: Path, *arguments: Any, **more: Any) -> Path:
    """The folder of a predictor."""
    path.mkdir()
    predictor(*arguments, **more).serialize(path)
    return path
