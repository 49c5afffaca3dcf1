"""An online predictor as one file: model, streams, what their routes hold, audit; reading it goes on bit for bit.

    schema 1: states, audit      schema 2: + late policy, rows held back, checkpoints and logs, late list; covariates
                                             of two patches, where the first had those of one

The streams stand in the order of their names: a file has no empty slots, and what is read has none.
An older schema is read as what it was: no row held, no checkpoint, nothing listed. A newer one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tsgdn2 import checkpoint
from tsgdn2.audit import AuditConfig
from tsgdn2.errors import CheckpointError, TsgdnError
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.late import LateList, LatePolicy
from tsgdn2.slab import COUNTERS
from tsgdn2.standards import Standards

if TYPE_CHECKING:
    from tsgdn2.events.online import OnlineEvents
    from tsgdn2.online import OnlinePredictor

SCHEMA = 2
KIND = "tsgdn2-online-predictor"
OTHERS = {"tsgdn2-online-events": "this model reads events; use OnlineEvents"}
Online = TypeVar("Online", bound="OnlinePredictor")


def write(path: Path, online: OnlinePredictor) -> None:
    """Write atomically; nothing of the predictor changes."""
    tensors, facts = shared(online)
    facts["channels"] = json.dumps(online.channels)
    checkpoint.write(path, tensors, facts, kind=KIND, schema=SCHEMA)


def read(path: Path, kind: type[Online]) -> Online:
    """Read what `write` wrote. CheckpointError says what is wrong with it."""
    tensors, facts = checkpoint.read(path, kind=KIND, schema=SCHEMA, others=OTHERS)
    with fitting(path):
        config = ForecasterConfig.from_json(facts["config"])
        tensors, facts = _current(tensors, facts, config.patch_length)
        late = LatePolicy.from_json(facts["late"])
        online = kind(
            model_of(config, tensors),
            Standards.from_json(facts["standards"]),
            channels=json.loads(facts["channels"]),
            freq=facts["freq"],
            audit=audit_config(facts["audit"]),
            late=late.late,
            watermark=late.steps * config.period_ns,
            checkpoints=late.checkpoints or None,
            checkpoint_every=late.every or None,
        )
        online._resume(tensors, json.loads(facts["streams"]))
    return online


def shared(online: OnlinePredictor | OnlineEvents) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and facts that the files of both predictors hold: model, and the streams one after the other."""
    tensors = {f"model.{name}": t for name, t in online.forecaster.state_dict().items()}
    tensors |= online._whole()
    facts = {
        "config": online.config.to_json(),
        "standards": online.standards.to_json(),
        "freq": online.freq,
        "late": online.policy.to_json(),
        "streams": json.dumps(list(online.streams)),
        "fingerprint": online.config.fingerprint,
        "audit": "",
    }
    if online.audit is not None:
        facts["audit"] = json.dumps(asdict(online.audit.config))
    return tensors, facts


def model_of(config: ForecasterConfig, tensors: dict[str, Tensor]) -> Forecaster:
    """The model that `shared` wrote."""
    forecaster = Forecaster(config).to(tensors["model.norm.weight"].dtype)
    forecaster.load_state_dict(checkpoint.part(tensors, "model."))
    return forecaster


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """CheckpointError in the place of what goes wrong with a file that is whole but of another version."""
    try:
        yield
    except TsgdnError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"path: {path} does not fit this version ({error}); save it again") from error


def _current(tensors: dict[str, Tensor], facts: dict[str, str], patch: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file of an older schema as this one would have written it."""
    if int(facts["schema"]) >= SCHEMA:
        return tensors, facts
    counters = tensors["stream.counters"]
    fresh = counters.new_zeros(len(counters), len(COUNTERS))
    fresh[:, : counters.shape[1]] = counters
    known, clock, last = (tensors[f"stream.{name}"] for name in ("known", "clock", "last"))
    rows = torch.arange(len(known))[:, None]
    at = clock[:, None] + torch.arange(1 - patch, 1)
    ring = torch.cat([known, known], 1)
    ring[rows, at % (2 * patch)] = known[rows, at % patch]
    at = last[:, None] // patch * patch + torch.arange(-patch, 0)
    held = (at > clock[:, None] - patch) & (at <= clock[:, None])
    before = torch.where(held[..., None], known[rows, at % patch], 0.0)
    late = LatePolicy(late="drop" if facts["late"] == "drop" else "raise")
    added = {"stream.counters": fresh, "stream.known": ring, "stream.before_known": before}
    added |= {f"late.{name}": t for name, t in LateList(0).tensors(np.zeros(0, np.int64)).items()}
    return tensors | added, facts | {"late": late.to_json()}


def audit_config(text: str) -> AuditConfig | None:
    """What a file says of its audit; an empty text is none."""
    if not text:
        return None
    raw: dict[str, Any] = json.loads(text)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    return AuditConfig(**values)
