"""The process of `tsgdn2 serve`: opens the model, joins sources and settings, runs the service with its ledger drain.

A saved state's streams are put into the store before the service listens, once: the store remembers which file it was,
so a stream that is deleted later does not come back with the next start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import torch

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.events import PASSED
from tsgdn2.pipelines.host_model import host_model, online
from tsgdn2.pipelines.ledger_drain import LedgerDrain, Trimmer
from tsgdn2.pipelines.registry import fetch
from tsgdn2.pipelines.servable import AUDIT, Servable, open_servable, policy_of
from tsgdn2.pipelines.service_jobs import REGISTERED, Serve
from tsgdn2.pipelines.service_sources import Source, connectors_of, source_of
from tsgdn2.pipelines.tracking import default_tracking_uri
from tsgdn2.service.logs import set_up_logs
from tsgdn2.service.memory import Memory
from tsgdn2.service.server import serve, store_of
from tsgdn2.service.settings import Settings, read_settings
from tsgdn2.service.store import Store

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tsgdn2.serve")
HOST_STEP_S: Final = 5.0
_SOME: Final = 64


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that can be served, and what it is called in MLflow."""

    servable: Servable
    subject: str
    version: tuple[str, str] | None = None
    """Name and version of a registered one."""


def live(job: Serve) -> None:
    """Serve until a signal comes."""
    settings = read_settings(
        job.settings, host=job.host, port=job.port, store=job.store, keys=job.keys, mapping=job.mapping
    )
    set_up_logs(settings.log_format, settings.log_level)
    sources = [source_of(text) for text in job.source]
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # a stream's passes are too small to share, and the service has threads of its own
    opened = _opened(job, sources)
    servable = opened.servable
    step_s = servable.fresh().config.period_ns / 1e9
    _bring_in(servable, settings)
    log.info("serve.sources", sources=[source.text for source in sources])
    serve(
        settings, servable.fresh, connectors=lambda router: connectors_of(sources, router, step_s),
        beside=lambda store: _beside(job, opened, store, settings.store),
    )  # fmt: skip


def _opened(job: Serve, sources: list[Source]) -> Opened:
    if job.model is None:
        return _of_host(job, sources)
    version, path, uri = None, Path(job.model), job.tracking_uri or default_tracking_uri(job.runs)
    if job.model.startswith(REGISTERED):
        found = fetch(job.model, job.runs, uri, require_audit=job.require_audit)
        version, path = (found.name, found.version), found.folder
        if found.status != PASSED:
            log.warning("serve.audit_not_passed", model=job.model, status=found.status or "unknown")
    servable = open_servable(
        path, channels=job.channels, arrivals=job.arrivals, audit=job.audit, calibrate=job.calibrate
    )
    return Opened(servable=servable, subject=job.model if version else path.name, version=version)


def _of_host(job: Serve, sources: list[Source]) -> Opened:
    if not sources or any(source.kind != "host" for source in sources):
        raise ConfigError(
            "model: is needed; give --model with a folder that `tsgdn2 train` or `tsgdn2 quickstart` wrote, or nothing "
            "but --source host to watch this machine"
        )
    if job.channels is not None:
        raise ConfigError("channels: without a model they are those of the host; leave channels out")
    made = host_model(job.runs, step_s=sources[0].every or HOST_STEP_S, seconds=job.training_seconds)
    log.info("serve.host_model", **made.note)
    policy, audit = policy_of(job.arrivals), AUDIT if job.audit else None
    if job.calibrate is False:
        raise ConfigError("calibrate: a model that was trained on weather is not served uncalibrated; give a --model")
    servable = Servable(fresh=lambda: online(made, audit=audit, **policy), streams={}, digest=0)
    return Opened(servable=servable, subject="this host")


def _bring_in(servable: Servable, settings: Settings) -> None:
    """Put the streams of a saved state into the store, unless it got them before."""
    if not servable.streams:
        return
    cursor, store = f"import.{servable.digest:x}", store_of(settings.store)
    store.open()
    try:
        done = store.cursor(cursor)
    finally:
        store.close()
    if done:
        return
    store = store_of(settings.store)
    memory = Memory(servable.fresh(), store, settings.limits)
    memory.start()
    try:
        known, names = set[str](), [""]
        while names := memory.names(names[-1], 1_000).result():
            known.update(names)
        for stream, blob in servable.streams.items():
            if stream not in known:
                memory.put(stream, blob).result()
        store.move({cursor: 1})
    finally:
        memory.stop()
    log.info("serve.streams_imported", streams=len(servable.streams), known=len(known & set(servable.streams)))


@contextmanager
def _beside(job: Serve, opened: Opened, store: Store, place: str) -> Iterator[None]:
    """What runs while the store is open: the drain, or the trimming alone."""
    beside: AbstractContextManager[object]
    if job.ledger == "off":
        beside = Trimmer(store, keep=job.ledger_keep, every_s=job.ledger_every)
    else:
        beside = LedgerDrain(
            store, job.runs, job.tracking_uri or default_tracking_uri(job.runs), experiment=job.experiment,
            every_s=job.ledger_every, keep=job.ledger_keep, subject=opened.subject, version=opened.version,
            place=place,
        )  # fmt: skip
    with beside:
        yield
