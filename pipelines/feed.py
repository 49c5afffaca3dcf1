"""Sends rows of a table to a running service, as Arrow: what to try it with, and how a history gets into its states.

    rows by time -> requests of some thousand -> POST /v1/observe/batch?wait=disk -> the next one

Each row has a source, the name of the data, and its step in time as sequence: what was taken before is left out by the
service, so a feed that was stopped is simply started again, and a file that has grown sends what is new. A service that
is busy or away is waited for.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Final

import polars as pl

from tsgdn2.datasets.frame import STREAM, TIME
from tsgdn2.errors import TsgdnError
from tsgdn2.pipelines.event_source import open_data
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.service_jobs import Feed

KEY: Final = "TSGDN2_KEY"
_PAUSE: Final = 0.5
_AWAY: Final = (429, 502, 503, 504)


class FeedError(TsgdnError):
    """The service refused what was sent, or could not be reached."""


def run(job: Feed) -> None:
    """Run the job. Errors: those of the data; FeedError."""
    screen = Screen(job.quiet)
    with screen.phase("reading"):
        source = open_data(job.data, job.columns)
        frame = source.frame.sort(TIME, STREAM, maintain_order=True)
    step = pl.col(TIME).to_physical() // source.period
    frame = frame.with_columns(  # steps before 1970 have no number: such rows are not known again
        pl.lit(f"feed {source.name}").alias("source"), pl.max_horizontal(step, pl.lit(-1)).alias("sequence")
    )
    counts = Counter[str]()
    with screen.phase("sending", total=frame.height) as phase:
        for part in _paced(frame, job):
            counts.update(_sent(part, job))
            phase.advance(part.height)
    print(f"{frame.height} rows of {frame[STREAM].n_unique()} streams: " + ", ".join(
        f"{count} {status}" for status, count in sorted(counts.items())
    ))  # fmt: skip
    if left := counts["refused"] + counts["elsewhere"]:
        raise FeedError(f"service: it did not take {left} of {frame.height} rows; its log and its metrics say why")


def _paced(frame: pl.DataFrame, job: Feed) -> Iterator[pl.DataFrame]:
    """Parts of the frame, when it is time for them."""
    if job.speed is None:
        yield from frame.iter_slices(job.batch)
        return
    began, first = time.monotonic(), None
    for _, moment in frame.group_by(TIME, maintain_order=True):
        at = moment[TIME].to_physical()[0]
        first = at if first is None else first
        time.sleep(max(0.0, began + (at - first) / 1e9 / job.speed - time.monotonic()))
        yield from moment.iter_slices(job.batch)


def _sent(rows: pl.DataFrame, job: Feed) -> dict[str, int]:
    """What became of some rows, by status."""
    body = io.BytesIO()
    rows.write_ipc_stream(body, compat_level=pl.CompatLevel.oldest())
    headers = {"Content-Type": "application/vnd.apache.arrow.stream"}
    if key := job.key or os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    url, end = f"{job.url.rstrip('/')}/v1/observe/batch?results=counts&wait=disk", time.monotonic() + job.timeout
    request = urllib.request.Request(url, data=body.getvalue(), headers=headers)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=job.timeout) as answer:
                counts: dict[str, int] = json.load(answer)["counts"]
                return counts
        except urllib.error.HTTPError as error:
            said = error.read(10_000).decode(errors="replace")
            if error.code not in _AWAY or time.monotonic() > end:
                raise FeedError(f"service: {job.url} answered {error.code}: {_told(said)}") from None
            told = error.headers.get("Retry-After") or ""
            wait = float(told) if told.isdecimal() else _PAUSE
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > end:
                raise FeedError(
                    f"url: {job.url} can not be reached ({error}); start a service there, or name the right url"
                ) from None
            wait = _PAUSE
        time.sleep(min(wait, max(0.0, end - time.monotonic()) + 0.01))


def _told(body: str) -> str:
    """What an answer that is no success says, in one line."""
    try:
        found = json.loads(body)
        return f"{found['detail']}; {found['what_to_do']}"
    except (ValueError, KeyError, TypeError):
        return " ".join(body.split())[:300]
