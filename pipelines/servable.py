"""A saved model as a service takes it: a predictor without streams, and the streams that the file brings along.

What a service asks: late is never "raise", an audit of bounded cost, channels that are fixed before the first row. A
saved state keeps its own policy and audit, because its streams are of them; only "raise" becomes "tag".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from tsgdn2.audit import AuditConfig
from tsgdn2.conformal import PREFIX, Calibrated
from tsgdn2.datasets.errors import FrameError
from tsgdn2.datasets.grid import period_ns
from tsgdn2.errors import ConfigError
from tsgdn2.events.online import KIND as EVENTS
from tsgdn2.online import OnlinePredictor, Trained
from tsgdn2.pipelines.options import ArrivalOptions
from tsgdn2.pipelines.predictor_folder import read_trained

STATE: Final = ".safetensors"
AUDIT: Final = AuditConfig(ring=4, reservoir=12, pinned=0, events=4_096)
"""Of a lane: the newest four writes, which tell what is forgotten at once, and twelve of all that came before; so the
ledger hears of few writes of each stream, however long it is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Servable:
    """What a service is begun with."""

    fresh: Callable[[], OnlinePredictor]
    """Makes the predictor, without streams."""
    streams: Mapping[str, bytes]
    """States of streams that go on where the file ended."""
    digest: int
    """Of the file that brought them, in 63 bits; 0 for one that brought none."""


def open_servable(
    path: Path, *, channels: Sequence[str] | None = None, arrivals: ArrivalOptions | None = None, audit: bool = True,
    calibrate: bool | None = None,
) -> Servable:  # fmt: skip
    """Open a predictor's folder or a saved state. CheckpointError; ConfigError where it can not be served so."""
    if path.suffix == STATE:
        return _of_state(path, channels=channels, arrivals=arrivals, calibrate=calibrate)
    if not path.exists():
        raise ConfigError(
            f"model: there is no {path}; give the folder that `tsgdn2 train` or `tsgdn2 quickstart` wrote, a saved "
            "state (.safetensors) or models:/name/version"
        )
    return of_trained(read_trained(path), channels=channels, arrivals=arrivals, audit=audit, calibrate=calibrate)


def of_trained(
    trained: Trained, *, channels: Sequence[str] | None = None, arrivals: ArrivalOptions | None = None,
    audit: bool = True, calibrate: bool | None = None,
) -> Servable:  # fmt: skip
    """A trained model; an independent one serves any channels."""
    config = trained.forecaster.config
    if config.event_types:
        raise ConfigError("model: it reads events, and rows of the service are values of sensors; use `tsgdn2 replay`")
    kind, policy = Calibrated if calibrate else OnlinePredictor, policy_of(arrivals)
    watched = AUDIT if audit and config.audited else None

    def fresh() -> OnlinePredictor:
        return kind.from_predictor(trained, channels=channels, audit=watched, **policy)

    return Servable(fresh=fresh, streams={}, digest=0)


def policy_of(arrivals: ArrivalOptions | None) -> dict[str, Any]:
    """Arguments of a predictor about late rows; ConfigError names the option."""
    given = {} if arrivals is None else {name: value for name, value in asdict(arrivals).items() if value is not None}
    policy: dict[str, Any] = {"late": "tag"} | given
    if policy["late"] == "raise":
        raise ConfigError(
            'arrivals.late: must be drop, tag or replay, got "raise"; a row that is acknowledged is on the disk, so '
            "nobody could be told"
        )
    if "watermark" in given:
        try:
            policy["watermark"] = period_ns(given["watermark"])
        except FrameError as error:
            raise ConfigError(f"arrivals.watermark: {error}") from None
    return policy


def _of_state(
    path: Path, *, channels: Sequence[str] | None, arrivals: ArrivalOptions | None, calibrate: bool | None
) -> Servable:
    kind, learned = _facts(path)
    if kind == EVENTS:
        raise ConfigError(
            f"model: {path} is a state of events, and rows of the service are values of sensors; use `tsgdn2 replay`"
        )
    calibrated = learned if calibrate is None else calibrate
    held = (Calibrated if calibrated else OnlinePredictor).load(path)
    if channels is not None and tuple(channels) != held.channels:
        raise ConfigError(f"channels: {path} goes on with its own, {list(held.channels)}; leave it out")
    given = [name for name, value in vars(arrivals or ArrivalOptions()).items() if value is not None]
    if given:
        raise ConfigError(
            f"arrivals.{given[0]}: {path} goes on with its own policy, late={held.late!r}; leave it out, or begin "
            "again with the predictor's folder"
        )
    audit = held.audit.config if held.audit is not None else None

    def fresh() -> OnlinePredictor:
        policy = held.policy
        return type(held)(
            held.forecaster, held.standards, channels=held.channels, freq=held.freq, audit=audit,
            late="tag" if held.late == "raise" else held.late, watermark=policy.steps * held.config.period_ns,
            checkpoints=policy.checkpoints or None, checkpoint_every=policy.every or None,
        )  # fmt: skip

    twin = fresh()
    twin._resume(held._whole(), held.streams)
    digest = int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:8], "big") >> 1
    return Servable(fresh=fresh, streams=twin.take_out_many(held.streams), digest=digest if held.streams else 0)


def _facts(path: Path) -> tuple[str, bool]:
    """Kind of a saved state, "" where its reader will say what is wrong, and whether it holds a calibration."""
    if not path.is_file():
        return "", False
    try:
        with safe_open(str(path), framework="pt") as file:
            learned = any(name.startswith(PREFIX) for name in file.keys())  # noqa: SIM118
            return (file.metadata() or {}).get("kind", ""), learned
    except (SafetensorError, OSError, ValueError):
        return "", False
