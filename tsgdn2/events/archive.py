"""An online predictor of events as one file: model, streams, what waits, audit; reading it goes on bit for bit.

    schema 1: states, audit      schema 2: + policy, events held, identities, late list, where there are any

An older schema is read as what it was: no event held, nothing listed. A newer one is refused.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tsgdn2 import checkpoint
from tsgdn2.archive import audit_config, fitting, model_of, shared
from tsgdn2.events.late import EventPolicy
from tsgdn2.forecaster import ForecasterConfig
from tsgdn2.standards import Standards

if TYPE_CHECKING:
    from tsgdn2.events.online import OnlineEvents

SCHEMA = 2
KIND = "tsgdn2-online-events"
Online = TypeVar("Online", bound="OnlineEvents")


def write(path: Path, online: OnlineEvents) -> None:
    """Write atomically; nothing of the predictor changes."""
    tensors, facts = shared(online)
    facts["longest_gap"] = "" if online.longest_gap is None else str(online.longest_gap)
    checkpoint.write(path, tensors, facts, kind=KIND, schema=SCHEMA)


def read(path: Path, kind: type[Online]) -> Online:
    """Read what `write` wrote. CheckpointError says what is wrong with it."""
    tensors, facts = checkpoint.read(path, kind=KIND, schema=SCHEMA)
    with fitting(path):
        old = int(facts["schema"]) < SCHEMA
        policy = EventPolicy(late="drop" if facts["late"] == "drop" else "raise") if old else EventPolicy.from_json(
            facts["late"]
        )  # fmt: skip
        config = ForecasterConfig.from_json(facts["config"])
        online = kind(
            model_of(config, tensors),
            Standards.from_json(facts["standards"]),
            freq=facts["freq"],
            **asdict(policy),
            longest_gap=int(facts["longest_gap"]) if facts["longest_gap"] else None,
            audit=audit_config(facts["audit"]),
        )
        online._resume(tensors, json.loads(facts["streams"]))
    return online
