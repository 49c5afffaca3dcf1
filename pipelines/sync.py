"""Sends everything that waits under a folder: the job of `tsgdn2 audit sync`.

It may run while other jobs write or send; what they hold is left to them or to the next time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tsgdn2.errors import DataError
from tsgdn2.pipelines.drain import drain
from tsgdn2.pipelines.events import End, Tags
from tsgdn2.pipelines.spool import ServerDownError, Spool, TrackingError, spool_paths
from tsgdn2.pipelines.tracking import probe


@dataclass(frozen=True, kw_only=True)
class SyncSummary:
    """What `sync` did: runs now whole in their stores, runs still (partly) here, metric points sent, and why."""

    complete: int
    left: int
    points: int
    errors: tuple[str, ...]


def sync(root: Path, tracking_uri: str | None = None, *, timeout: float = 10.0) -> SyncSummary:
    """Send every spool under `root`, oldest first, to `tracking_uri` or to the store that each run was meant for.

    A run whose process died without ending it is closed as KILLED at its last event. A run that is still being
    written is sent as far as it goes. A dead server is asked once, not once a run.
    """
    complete = left = points = 0
    errors: list[str] = []
    down: dict[str, str] = {}
    for path in spool_paths(root):
        uri = tracking_uri or ""
        try:
            spool = Spool(path)
            uri = tracking_uri or spool.header.tracking_uri
            if uri in down:
                raise ServerDownError(down[uri])
            probe(uri, timeout)
            close_if_dead(spool)
            sent = drain(spool, uri, timeout=timeout)
        except ServerDownError as error:
            left += 1
            if uri not in down:
                errors.append(str(error))
            down[uri] = str(error)
        except (TrackingError, DataError) as error:
            if not path.exists():  # another process has just sent it
                continue
            left += 1
            errors.append(str(error))
        else:
            complete, left, points = complete + sent.complete, left + (not sent.complete), points + sent.points
    return SyncSummary(complete=complete, left=left, points=points, errors=tuple(errors))


def close_if_dead(spool: Spool) -> None:
    """End a run as KILLED when it has no end and no living writer."""
    if not spool.take():
        return
    try:
        last = spool.header.started_ms
        for event in spool.events():
            if isinstance(event.payload, End):
                return
            last = event.time_ms
        spool.append(Tags(values={"tsgdn2.exception": "the process died without ending the run"}), time_ms=last)
        spool.append(End(status="KILLED"), time_ms=last)
    finally:
        spool.release()
