"""A file that grows: CSV with a header, or JSON lines, read line by line as they are finished.

A line's sequence is the byte where it begins, under the name of the file and of its beginning, so that after a crash
the file is read from the start and what was taken is known. A line counts once its end is there. A file that is put in
the place of the old one (rotation), or made shorter, is another one and read from its start, once the old one is read
to its end. Rows come in the order of the file. One bad line costs a search for it, and itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from tsgdn2.datasets.frame import STREAM, TIME
from tsgdn2.datasets.readers import Layout, table_frame
from tsgdn2.errors import ConfigError, TsgdnError
from tsgdn2.service.batch import Batch
from tsgdn2.service.connectors.connector import Connector, Lane
from tsgdn2.service.connectors.decoded import Decoded, Refusal, Rejections, clip
from tsgdn2.service.connectors.delivery import Backoff, Sink
from tsgdn2.service.connectors.files import JSON_LINES, named, source_of, values_of
from tsgdn2.service.connectors.router import Router

_LINE = "\0line"
_CHUNK = 1 << 20


class Line(NamedTuple):
    """One finished line without its end: the byte where it begins, the file it is of, the header of that file."""

    start: int
    source: str
    header: bytes
    text: bytes


class Open:
    """An open file, read forward to its last finished line."""

    def __init__(self, path: Path, file: BinaryIO, *, header: bool, longest: int) -> None:
        self.file, self.inode = file, os.fstat(file.fileno()).st_ino
        self._path, self._longest = path, longest
        self._wants_header, self.header, self.source = header, b"", ""
        self._rest, self._at, self._skipping = b"", 0, False
        self.oversize = 0

    def lines(self, most: int) -> list[Line]:
        """Up to `most` lines that are finished by now; empty at the end of the file as it is."""
        found: list[Line] = []
        while len(found) < most:
            end = self._rest.find(b"\n")
            if end >= 0:
                line, start = self._rest[:end].rstrip(b"\r"), self._at
                self._rest, self._at = self._rest[end + 1 :], start + end + 1
                self._take(line, start, found)
                continue
            if len(self._rest) > self._longest:
                self._at, self._rest, self._skipping = self._at + len(self._rest), b"", True
            chunk = self.file.read(_CHUNK)
            if not chunk:
                break
            self._rest += chunk
        return found

    def shorter(self) -> bool:
        """Whether the file was cut below what was read of it."""
        return os.fstat(self.file.fileno()).st_size < self._at + len(self._rest)

    def _take(self, line: bytes, start: int, found: list[Line]) -> None:
        if self._skipping or len(line) > self._longest:
            self._skipping = False
            self.oversize += 1
            return
        if not line.strip():
            return
        if self._wants_header and not self.header:
            self.header = line
            return
        if not self.source:  # the first line of data tells one file from the next of the same name
            digest = hashlib.blake2b(self.header + b"\n" + line, digest_size=8).hexdigest()
            self.source = source_of("tail", self._path, f"{self.inode}:{digest}")
        found.append(Line(start, self.source, self.header, line))


class TailConnector(Connector):
    """Follows one file for ever."""

    def __init__(
        self,
        path: str | Path,
        router: Router,
        *,
        layout: Layout | None = None,
        poll: float = 0.2,
        name: str = "tail",
        in_flight: int = 2,
        group: int = 256,
        backoff: Backoff | None = None,
        patience: float = 30.0,
    ) -> None:
        """poll: seconds between two looks at a file that did not grow."""
        super().__init__(name, in_flight=in_flight, group=group, backoff=backoff, patience=patience)
        self.path, self.router, self.poll = Path(path), router, poll
        self._json = self.path.suffix.lower() in JSON_LINES
        if not poll > 0 or not (self._json or self.path.suffix.lower() == ".csv"):
            raise ConfigError(f"path, poll: a tail reads .csv, .jsonl or .ndjson every few seconds, got {path}, {poll}")
        layout = layout or Layout()
        if isinstance(layout.time, tuple):
            raise ConfigError("layout.time: a tail reads the time from one column")
        keep = None if layout.channels is None else (*layout.channels, _LINE)
        self._layout = replace(layout, channels=keep, duplicates="last")

    async def session(self, sink: Sink) -> None:
        """See Connector. A file that is not there is a peer that is away."""

        async def acknowledge(_: Sequence[Line]) -> None:
            """The file stays as it is; its start byte makes a repeat harmless."""

        opened = self._open()
        self.connected()
        try:
            async with Lane(self, sink, self._rows, acknowledge) as lane:
                while not self.stopping:
                    await lane.check()
                    lines = await asyncio.to_thread(opened.lines, self.group)
                    if opened.oversize:
                        self.counts.rejected.add(
                            "oversize", str(self.path), "a line is too long", count=opened.oversize
                        )
                        opened.oversize = 0
                    if lines:
                        await lane.put(lines)
                    elif self._replaced(opened):
                        opened.file.close()
                        opened = self._open()
                    else:
                        await self.pause(self.poll)
        finally:
            opened.file.close()

    def _open(self) -> Open:
        return Open(self.path, self.path.open("rb"), header=not self._json, longest=self.router.limits.payload_bytes)

    def _replaced(self, opened: Open) -> bool:
        try:
            return self.path.stat().st_ino != opened.inode or opened.shorter()
        except FileNotFoundError:
            return False  # moved away; its successor is not there yet, and it may still grow

    def _rows(self, lines: Sequence[Line]) -> Decoded:
        rejected = Rejections()
        batches = [part for part in self._parts(list(lines), rejected) if len(part)]
        return Decoded(Batch.concat(batches) if batches else None, rejected)

    def _parts(self, lines: list[Line], rejected: Rejections) -> list[Batch]:
        """All lines at once; where that fails, each half by itself, down to the line that is to blame."""
        if lines[0].source != lines[-1].source:
            cut = next(n for n, line in enumerate(lines) if line.source != lines[0].source)
            return self._parts(lines[:cut], rejected) + self._parts(lines[cut:], rejected)
        try:
            return [self._batch(lines)]
        except (TsgdnError, ValueError, Refusal) as error:
            if len(lines) == 1:
                reason = error.reason if isinstance(error, Refusal) else "malformed"
                rejected.add(reason, f"{self.path.name}, byte {lines[0].start}", clip(str(error)))
                return []
            half = len(lines) // 2
            return self._parts(lines[:half], rejected) + self._parts(lines[half:], rejected)

    def _batch(self, lines: list[Line]) -> Batch:
        table = self._table(lines)
        frame = table_frame(table, named(self._layout, table.columns, self.path), origin=self.path.name)
        frame = frame.sort(_LINE)
        at = frame[_LINE].cast(pl.Int64).to_list()
        streams = tuple(self.router.admit(stream) for stream in frame[STREAM].to_list())
        return Batch(
            streams=streams,
            times=frame[TIME].to_physical().to_numpy(),
            values=values_of(frame.drop(_LINE), self.router, self.path.name),
            sources=(lines[0].source,) * len(at),
            sequences=np.array([lines[n].start for n in at], np.int64),
        )

    def _table(self, lines: list[Line]) -> pl.DataFrame:
        """The lines as a table of text and numbers, with the place of each in the list."""
        layout = self._layout
        content = io.BytesIO(b"\n".join([line.text for line in lines]) + b"\n")
        try:
            if self._json:
                table = pl.read_ndjson(content, infer_schema_length=None)
            else:
                content = io.BytesIO(lines[0].header + b"\n" + content.getvalue())
                table = pl.read_csv(content, infer_schema_length=0, null_values=layout.words() or None)
        except PolarsError as error:
            raise ValueError(str(error)) from None
        if table.height != len(lines):
            raise ValueError(f"{len(lines)} lines make {table.height} rows")
        renamed = dict(layout.rename)
        texts = {layout.time, layout.stream}
        numbers = [
            name for name, kind in table.schema.items()
            if renamed.get(name, name) in self.router.channels and name not in texts and kind == pl.String
        ]  # fmt: skip
        wanted = [name for name in table.columns if renamed.get(name, name) in (*self.router.channels, *texts)]
        table = table.select(wanted)
        try:
            table = table.with_columns(pl.col(numbers).str.strip_chars().replace("", None).cast(pl.Float64))
        except PolarsError as error:
            raise ValueError(str(error)) from None
        return table.with_columns(pl.int_range(pl.len()).cast(pl.Float64).alias(_LINE))
