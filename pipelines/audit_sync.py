"""The job `audit sync`: sends what MLflow has not got yet. It imports no model and no framework but MLflow."""

from __future__ import annotations

import sys
from pathlib import Path

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.jobs import AuditSync
from tsgdn2.pipelines.runs import sync
from tsgdn2.pipelines.spool import TrackingError
from tsgdn2.pipelines.tracking import default_tracking_uri


def run(job: AuditSync) -> None:
    """Send every waiting run. Errors: TrackingError when something had to stay, naming why; the store's."""
    if not job.runs.is_dir():
        raise ConfigError(f"runs: {job.runs} is no folder; name the one that was given to the jobs")
    if job.store is not None:
        _send_ledger(job, job.store)
    done = sync(job.runs, job.tracking_uri, timeout=job.timeout)
    print(f"{done.complete} runs are in MLflow now, {done.points:,} metric points were sent, {done.left} runs wait")
    if done.errors:
        for line in done.errors[1:]:
            print(f"tsgdn2: {line}", file=sys.stderr)
        raise TrackingError(done.errors[0])


def _send_ledger(job: AuditSync, place: str) -> None:
    """Send what waits in the ledger of a service that is not running."""
    from tsgdn2.pipelines.serve import check_packages

    check_packages("audit sync --store")
    from tsgdn2.pipelines.ledger_drain import LedgerDrain
    from tsgdn2.service.server import store_of

    if "://" not in place and not Path(place).is_file():
        raise ConfigError(f"store: {place} is no file; give the store of a service")
    store = store_of(place)
    store.open()
    try:
        drain = LedgerDrain(
            store, job.runs, job.tracking_uri or default_tracking_uri(job.runs), experiment=job.experiment,
            place=place, timeout=job.timeout,
        )  # fmt: skip
        drain.send()
        print(f"{drain.sent:,} rows of the ledger were sent")
    finally:
        store.close()
