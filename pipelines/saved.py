"""Opens what an earlier job saved: a predictor folder, or the state of an online predictor.

A path decides by what it is: a folder is a predictor, a .safetensors file a state that carries its own model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tsgdn2.audit import AuditConfig
from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.predictor import GDN2Predictor

STATE = ".safetensors"


def open_predictor(path: Path) -> GDN2Predictor:
    """Read a predictor folder, or the output folder of `train` that holds one. Errors: CheckpointError."""
    folder = path / "predictor" if (path / "predictor" / "predictor.json").is_file() else path
    if not (folder / "predictor.json").is_file():
        raise CheckpointError(f"predictor: {path} is no folder that `tsgdn2 train` wrote (no predictor.json in it)")
    found: GDN2Predictor = GDN2Predictor.deserialize(folder)
    return found


def open_online(path: Path, channels: Sequence[str], *, audit: bool) -> OnlinePredictor:
    """Go on from a saved state, or begin with a predictor folder; late rows are counted and left out.

    channels: of the data; an independent model that was trained on one takes them all, others have their own.
    Errors: CheckpointError; ConfigError when a saved state has an audit that is to be left out.
    """
    if path.suffix != STATE:
        predictor = open_predictor(path)
        config = AuditConfig() if audit and predictor.config.mixer == "gdn2" else None
        names = channels if not predictor.config.bound and predictor.config.channels == 1 else None
        return OnlinePredictor.from_predictor(predictor, channels=names, late="drop", audit=config)
    online = OnlinePredictor.load(path)
    if online.audit is not None and not audit:
        raise ConfigError(f"audit: {path} carries an audit that goes on with it, got false; leave audit true, or begin "
                          "again with the predictor's folder")  # fmt: skip
    return online
