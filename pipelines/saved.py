"""Opens what an earlier job saved: a predictor folder, or the state of an online predictor of sensors or events.

A path decides by what it is: a folder is a predictor, a .safetensors file a state that carries its own model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tsgdn2.audit import AuditConfig
from tsgdn2.errors import ConfigError
from tsgdn2.events import online as event_online
from tsgdn2.events.online import OnlineEvents
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.options import ArrivalOptions
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.predictor_folder import located
from tsgdn2.pipelines.source import span_ns

STATE = ".safetensors"

Online = OnlinePredictor | OnlineEvents


def open_predictor(path: Path) -> GDN2Predictor:
    """Read a predictor folder, or the output folder of `train` that holds one. Errors: CheckpointError."""
    found: GDN2Predictor = GDN2Predictor.deserialize(located(path))
    return found


def open_state(path: Path) -> Online:
    """Read a saved state, of sensors or of events by what the file says it is. Errors: CheckpointError."""
    kind = ""
    if path.is_file():
        try:
            with safe_open(str(path), framework="pt") as file:
                kind = (file.metadata() or {}).get("kind", "")
        except (SafetensorError, OSError, ValueError):
            kind = ""  # its reader says what is wrong with it
    return OnlineEvents.load(path) if kind == event_online.KIND else OnlinePredictor.load(path)


def open_saved(path: Path) -> GDN2Predictor | Online:
    """Read a state or a predictor; either has a `config`. Errors: CheckpointError."""
    return open_state(path) if path.suffix == STATE else open_predictor(path)


def go_online(
    saved: GDN2Predictor | Online, channels: Sequence[str], path: Path, *, audit: bool,
    arrivals: ArrivalOptions | None = None,
) -> Online:  # fmt: skip
    """Go on from a saved state, or begin with a predictor; late rows are counted and left out, or as `arrivals` says.

    path: what `saved` was opened from. channels: of the data; an independent model of sensors that was trained on one
    takes them all, others have their own. Errors: ConfigError when a saved state has an audit that is to be left out or
    another policy for rows out of order is asked for, or the predictor does not take it.
    """
    given = {} if arrivals is None else {name: value for name, value in asdict(arrivals).items() if value is not None}
    if given and not isinstance(saved, GDN2Predictor):
        raise ConfigError(f"arrivals.{next(iter(given))}: {path} goes on with its own policy, late={saved.late!r}; "
                          "leave it out, or begin again with the predictor's folder")  # fmt: skip
    policy: dict[str, Any] = {"late": "drop"} | given
    if "watermark" in given:
        policy["watermark"] = span_ns("arrivals.watermark", given["watermark"])
    if not isinstance(saved, GDN2Predictor):
        if saved.audit is not None and not audit:
            raise ConfigError(f"audit: {path} carries an audit that goes on with it, got false; leave audit true, or "
                              "begin again with the predictor's folder")  # fmt: skip
        return saved
    config = AuditConfig() if audit and saved.config.audited else None
    if saved.config.event_types:
        takes = signature(OnlineEvents.from_predictor).parameters
        other = next((name for name in policy if name not in takes), None)
        if other is not None:
            raise ConfigError(f"arrivals.{other}: a predictor of events does not take it; leave it out")
        return OnlineEvents.from_predictor(saved, audit=config, **policy)
    names = channels if not saved.config.bound and saved.config.channels == 1 else None
    return OnlinePredictor.from_predictor(saved, channels=names, audit=config, **policy)
