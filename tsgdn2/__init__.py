"""State models for streams that never end: the public names, handed on lazily (PEP 562).

`import tsgdn2` does not import torch; a name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tsgdn2.audit import AuditConfig
    from tsgdn2.conformal import Calibrated
    from tsgdn2.errors import TsgdnError
    from tsgdn2.events.online import NextEvent, OnlineEvents
    from tsgdn2.forecast import Forecast
    from tsgdn2.forecaster import Forecaster, ForecasterConfig
    from tsgdn2.online import Observation, OnlinePredictor
    from tsgdn2.pipelines.estimator import GDN2Estimator
    from tsgdn2.pipelines.predictor import GDN2Predictor

_HOME = {
    "AuditConfig": "tsgdn2.audit",
    "Calibrated": "tsgdn2.conformal",
    "Forecast": "tsgdn2.forecast",
    "Forecaster": "tsgdn2.forecaster",
    "ForecasterConfig": "tsgdn2.forecaster",
    "GDN2Estimator": "tsgdn2.pipelines.estimator",
    "GDN2Predictor": "tsgdn2.pipelines.predictor",
    "NextEvent": "tsgdn2.events.online",
    "Observation": "tsgdn2.online",
    "OnlineEvents": "tsgdn2.events.online",
    "OnlinePredictor": "tsgdn2.online",
    "TsgdnError": "tsgdn2.errors",
}

__all__ = [
    "AuditConfig",
    "Calibrated",
    "Forecast",
    "Forecaster",
    "ForecasterConfig",
    "GDN2Estimator",
    "GDN2Predictor",
    "NextEvent",
    "Observation",
    "OnlineEvents",
    "OnlinePredictor",
    "TsgdnError",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'tsgdn2' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
