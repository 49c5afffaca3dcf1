"""A recorded file as if it came now: CSV, Parquet, Arrow or JSON lines, at any speed against its own clock.

The file is read whole and put in the order of time (tail.py is for one that grows). A row's sequence is its place in
that order under the name of the file and its content, so that a replay which is begun again after a crash applies
nothing twice, and another file of the same name is another source.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from tsgdn2.datasets.errors import DataError
from tsgdn2.datasets.frame import STREAM, TIME, channels
from tsgdn2.datasets.readers import Layout, file_table, table_frame
from tsgdn2.errors import ConfigError
from tsgdn2.service.batch import LONGEST_NAME, Batch, Floats, Ints
from tsgdn2.service.connectors.connector import Connector, Lane, log
from tsgdn2.service.connectors.decoded import Decoded, Refusal, Rejections
from tsgdn2.service.connectors.delivery import Backoff, Sink
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.mapping import MappingError

JSON_LINES = (".jsonl", ".ndjson")
_TICK_SECONDS = 0.02


@dataclass(frozen=True)
class Recording:
    """Rows in the order of time: streams [N], times int64 ns [N], values [N, C] in the model's channels."""

    source: str
    streams: list[str]
    times: Ints
    values: Floats

    def __len__(self) -> int:
        return len(self.streams)


def read_recording(path: str | Path, layout: Layout, router: Router) -> Recording:
    """Read a whole file. DataError, FrameError for one that can not be read; MappingError where no channel fits."""
    path = Path(path)
    if path.suffix.lower() in JSON_LINES:
        try:
            table = pl.read_ndjson(path, infer_schema_length=None)
        except (PolarsError, OSError) as error:
            raise DataError(f"{path} can not be read as JSON lines: {error}") from None
    else:
        table = file_table(path, words=layout.words(), text=layout.text())
    frame = table_frame(table, named(layout, table.columns, path), origin=str(path))
    frame = frame.sort(TIME, maintain_order=True)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()[:16]
    values = values_of(frame, router, str(path))
    return Recording(
        source_of("file", path, digest), frame[STREAM].to_list(), frame[TIME].to_physical().to_numpy(), values
    )


def values_of(frame: pl.DataFrame, router: Router, origin: str) -> Floats:
    """The model's channels of a frame [N, C], NaN where it has none. MappingError where it has none of them."""
    found = channels(frame)
    if not set(found) & set(router.channels):
        raise MappingError(
            f"layout: {origin} has the channels {found[:20]}, the model {list(router.channels)[:20]}; rename them"
        )
    if extra := sorted(set(found) - set(router.channels)):
        log.info("%s: columns that are no channel of the model are left out: %s", origin, extra[:20])
    values = np.full((frame.height, len(router.channels)), np.nan)
    for at, name in enumerate(router.channels):
        if name in found:
            values[:, at] = frame[name].fill_null(np.nan).to_numpy()
    return values


def named(layout: Layout, columns: Sequence[str], path: Path) -> Layout:
    """The layout, with the file's name for the only stream of a table that names none."""
    renamed = dict(layout.rename)
    if layout.name is not None or layout.stream in [renamed.get(name, name) for name in columns]:
        return layout
    return replace(layout, name=path.stem)


def source_of(kind: str, path: Path, identity: str) -> str:
    """A name for a file's rows that fits into a store, whatever the file is called."""
    return f"{kind}:{path.name.encode(errors='replace')[: LONGEST_NAME - 64].decode(errors='ignore')}:{identity}"


class FileConnector(Connector):
    """Replays one file and ends."""

    def __init__(
        self,
        path: str | Path,
        router: Router,
        *,
        layout: Layout | None = None,
        speed: float | None = 1.0,
        name: str = "file",
        in_flight: int = 2,
        group: int = 4_096,
        backoff: Backoff | None = None,
        patience: float = 30.0,
    ) -> None:
        """speed: seconds of the file's clock per second of ours; None: as fast as it goes."""
        super().__init__(name, in_flight=in_flight, group=group, backoff=backoff, patience=patience)
        if speed is not None and not 0 < speed < float("inf"):
            raise ConfigError(f"speed: must be above 0, or null for as fast as it goes, got {speed}")
        self.path, self.router, self.speed = Path(path), router, speed
        self.layout = layout or Layout()

    async def session(self, sink: Sink) -> None:
        """See Connector."""
        recording = await asyncio.to_thread(read_recording, self.path, self.layout, self.router)
        self.connected()

        async def acknowledge(_: Sequence[int]) -> None:
            """The file stays as it is."""

        def rows(places: Sequence[int]) -> Decoded:
            return self._rows(recording, np.asarray(places))

        async with Lane(self, sink, rows, acknowledge) as lane:
            at, began = 0, time.monotonic()
            while at < len(recording) and not self.stopping:
                end = min(at + self.group, len(recording))
                if self.speed is not None:
                    since = (recording.times[at:end] - recording.times[0]) / 1e9 / self.speed
                    ahead = float(since[0]) - (time.monotonic() - began)
                    if ahead > 0:
                        await self.pause(ahead)
                        continue
                    due = time.monotonic() - began + _TICK_SECONDS
                    end = at + max(int(np.searchsorted(since, due, side="right")), 1)
                await lane.put(range(at, end))
                at = end

    def _rows(self, recording: Recording, places: Ints) -> Decoded:
        rejected, kept = Rejections(), []
        for place in places.tolist():
            try:
                self.router.admit(recording.streams[place])
                kept.append(place)
            except Refusal as refusal:
                rejected.add(refusal.reason, f"row {place}", refusal.detail)
        if not kept:
            return Decoded(None, rejected)
        at = np.array(kept)
        return Decoded(
            Batch(
                streams=tuple(recording.streams[place] for place in kept),
                times=recording.times[at],
                values=recording.values[at],
                sources=(recording.source,) * len(kept),
                sequences=at,
            ),
            rejected,
        )
