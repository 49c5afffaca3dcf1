"""The job `audit sync`: sends what MLflow has not got yet. It imports no model and no framework but MLflow."""

from __future__ import annotations

import sys

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.jobs import AuditSync
from tsgdn2.pipelines.runs import sync
from tsgdn2.pipelines.spool import TrackingError


def run(job: AuditSync) -> None:
    """Send every waiting run. Errors: TrackingError when something had to stay, naming why."""
    if not job.runs.is_dir():
        raise ConfigError(f"runs: {job.runs} is no folder; name the one that was given to the jobs")
    done = sync(job.runs, job.tracking_uri, timeout=job.timeout)
    print(f"{done.complete} runs are in MLflow now, {done.points:,} metric points were sent, {done.left} runs wait")
    if done.errors:
        for line in done.errors[1:]:
            print(f"tsgdn2: {line}", file=sys.stderr)
        raise TrackingError(done.errors[0])
