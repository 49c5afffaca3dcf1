"""A predictor's folder read without GluonTS: the model that goes online, and nothing of training and batch.

`GDN2Predictor` reads the same folder for those. A process that only streams is some 300 MB smaller without it, and is
back five seconds earlier after a crash.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tsgdn2 import checkpoint
from tsgdn2.errors import CheckpointError
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.standards import Standards

KIND: Final = "tsgdn2-predictor-weights"
SCHEMA: Final = 1
WEIGHTS: Final = "weights.safetensors"
ARGUMENTS: Final = "predictor.json"


@dataclass(eq=False)
class TrainedModel:
    """What `OnlinePredictor.from_predictor` needs of a predictor."""

    forecaster: Forecaster
    standards: Standards
    channels: tuple[str, ...]
    freq: str

    @property
    def config(self) -> ForecasterConfig:
        """The model's."""
        return self.forecaster.config


def digest_of(folder: Path) -> str:
    """SHA-256 of the arguments of a predictor, which its weights carry; "" where there are none."""
    file = folder / ARGUMENTS
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def located(path: Path) -> Path:
    """The predictor's folder: the path, or that in the output folder of `train` or `quickstart`. CheckpointError."""
    folder = path / "predictor" if (path / "predictor" / ARGUMENTS).is_file() else path
    if not (folder / ARGUMENTS).is_file():
        raise CheckpointError(f"predictor: {path} is no folder that `tsgdn2 train` wrote (no {ARGUMENTS} in it)")
    return folder


def read_trained(path: Path) -> TrainedModel:
    """Read what `GDN2Predictor.serialize` wrote. CheckpointError says what is wrong with it."""
    folder = located(path)
    weights, kept = checkpoint.read(folder / WEIGHTS, kind=KIND, schema=SCHEMA)
    if kept.get("predictor") != digest_of(folder):
        raise CheckpointError(f"path: {folder}/{ARGUMENTS} was altered; restore the whole folder")
    given = json.loads((folder / ARGUMENTS).read_text())["kwargs"]
    forecaster = Forecaster(ForecasterConfig.from_json(given["config_json"])).to(weights["norm.weight"].dtype)
    forecaster.load_state_dict(weights)
    standards = Standards.from_json(given["standards_json"])
    return TrainedModel(forecaster, standards, tuple(given["channels"]), str(given["freq"]))
