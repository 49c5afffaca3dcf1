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
from tsgdn2.archive import audit_config
from tsgdn2.errors import CheckpointError, TsgdnError
from tsgdn2.events.late import EventPolicy
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.standards import Standards

if TYPE_CHECKING:
    from tsgdn2.events.online import OnlineEvents

SCHEMA = 2
KIND = "tsgdn2-online-events"
Online = TypeVar("Online", bound="OnlineEvents")


def write(path: Path, online: OnlineEvents) -> None:
    """Write atomically; nothing of the predictor changes."""
    rows = len(online.streams)
    tensors = {f"model.{name}": t for name, t in online.forecaster.state_dict().items()} | online._slab.tensors(rows)
    tensors |= {f"waiting.{name}": t for name, t in online._reorder.tensors(rows).items()}
    tensors |= {f"late.{name}": t for name, t in online._late.tensors().items()}
    facts = {
        "config": online.config.to_json(),
        "standards": online.standards.to_json(),
        "freq": online.freq,
        "late": online.policy.to_json(),
        "longest_gap": "" if online.longest_gap is None else str(online.longest_gap),
        "streams": json.dumps(list(online.streams)),
        "fingerprint": online.config.fingerprint,
        "audit": "",
    }
    if online.audit is not None:
        tensors |= {f"audit.{name}": t for name, t in online.audit.state_tensors().items()}
        facts["audit"] = json.dumps(asdict(online.audit.config))
    checkpoint.write(path, tensors, facts, kind=KIND, schema=SCHEMA)


def read(path: Path, kind: type[Online]) -> Online:
    """Read what `write` wrote. CheckpointError says what is wrong with it."""
    tensors, facts = checkpoint.read(path, kind=KIND, schema=SCHEMA)
    try:
        old = int(facts["schema"]) < SCHEMA
        policy = EventPolicy(late="drop" if facts["late"] == "drop" else "raise") if old else EventPolicy.from_json(
            facts["late"]
        )  # fmt: skip
        config = ForecasterConfig.from_json(facts["config"])
        forecaster = Forecaster(config).to(tensors["model.norm.weight"].dtype)
        forecaster.load_state_dict(checkpoint.part(tensors, "model."))
        online = kind(
            forecaster,
            Standards.from_json(facts["standards"]),
            freq=facts["freq"],
            **asdict(policy),
            longest_gap=int(facts["longest_gap"]) if facts["longest_gap"] else None,
            audit=audit_config(facts["audit"]),
        )
        names = json.loads(facts["streams"])
        online._slab.restore(tensors, len(names))
        online._reorder.restore(checkpoint.part(tensors, "waiting."))
        online._late.restore(checkpoint.part(tensors, "late."))
        if online.audit is not None:
            online.audit.load_state_tensors(checkpoint.part(tensors, "audit."))
    except TsgdnError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"path: {path} does not fit this version ({error}); save it again") from error
    online._slots = {name: slot for slot, name in enumerate(names)}
    return online
