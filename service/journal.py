"""Journal blocks: the rows of one append as two blobs, small enough for a queue of one and quick for ten thousand.

    streams   flag, number of each row's stream int32 [N], (place of each row behind the first seq uint32 [N]), crc32
    body      version, channels, N, names;  times int64 [N], values float64 [N, C], (sequences int64 [N]),
              (codes of sources uint32 [N], names of the sources of this block), crc32

What is in brackets is there only where it says something. An index by stream would touch a page for every stream of
every append; instead a reader looks through the first blobs, a million rows in some milliseconds. The price is that a
block stays whole until most of its rows are covered: `thinned` then writes it anew.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from tsgdn2.service.batch import UNNUMBERED, Batch, Floats, Ints
from tsgdn2.service.errors import CorruptError

MOST_ROWS: Final = 65_536
"""Rows of one block; a longer batch becomes several, in one transaction."""
REMEDY: Final = "restore a backup, or copy the store and give these rows up with its `repair`"
Numbers: TypeAlias = NDArray[np.int32]
Found = TypeVar("Found")

_VERSION = 1
_DENSE, _SPARSE = 0, 1
_SEQUENCES, _SOURCES = 1, 2
_HEAD = struct.Struct("<BBHII")
_SPAN = struct.Struct("<qq")


class Block(NamedTuple):
    """Rows of the journal whose numbers are from `first` to `last`."""

    first: int
    last: int
    streams: bytes
    body: bytes


class Columns(NamedTuple):
    """The body of a block in columns; codes [N] count in names, which begins with ""."""

    times: Ints
    values: Floats
    sequences: Ints
    codes: NDArray[np.uint32]
    names: tuple[str, ...]

    def take(self, rows: NDArray[np.int64]) -> Columns:
        """Some of the rows."""
        return Columns(self.times[rows], self.values[rows], self.sequences[rows], self.codes[rows], self.names)

    def batch(self, streams: tuple[str, ...]) -> Batch:
        """The rows as they were appended."""
        sources = tuple([self.names[code] for code in self.codes.tolist()])
        return Batch(streams=streams, times=self.times, values=self.values, sources=sources, sequences=self.sequences)


def columns_of(batch: Batch) -> Columns:
    """The columns of a batch."""
    codes = {"": 0}
    coded = [codes.setdefault(name, len(codes)) for name in batch.sources] if any(batch.sources) else [0] * len(batch)
    return Columns(batch.times, batch.values, batch.sequences, np.array(coded, np.uint32), tuple(codes))


def block_of(seqs: Ints, numbers: Numbers, columns: Columns, span: tuple[int, int]) -> Block:
    """A block of rows with the numbers seqs [N], growing and within the span (first, last)."""
    first, last = span
    seal = _SPAN.pack(first, last)
    parts = [numbers.astype("<i4").tobytes()]
    dense = len(seqs) == last - first + 1
    if not dense:
        parts.append((seqs - first).astype("<u4").tobytes())
    streams = bytes([_DENSE if dense else _SPARSE]) + b"".join(parts)
    numbered = bool((columns.sequences != UNNUMBERED).any())
    named = bool(columns.codes.any())
    flags = _SEQUENCES * numbered | _SOURCES * named
    names = columns.names if named else ()
    rows, channels = columns.values.shape
    parts = [_HEAD.pack(_VERSION, flags, channels, rows, len(names))]
    parts += [columns.times.astype("<i8").tobytes(), columns.values.astype("<f8").tobytes()]
    if numbered:
        parts.append(columns.sequences.astype("<i8").tobytes())
    if named:
        parts.append(columns.codes.astype("<u4").tobytes())
        parts += [len(text).to_bytes(2, "little") + text for name in names for text in (name.encode(),)]
    return Block(first, last, _sealed(streams, seal), _sealed(b"".join(parts), seal))


def heads_of(first: int, last: int, streams: bytes) -> tuple[Ints, Numbers]:
    """seqs [N] and numbers of the streams [N] of a block. CorruptError where it is not what was written."""

    def read() -> tuple[Ints, Numbers]:
        data = _opened(streams, _SPAN.pack(first, last))
        rows = (len(data) - 1) // (8 if data[0] == _SPARSE else 4)
        numbers = np.frombuffer(data, "<i4", rows, 1)
        if data[0] == _DENSE:
            if rows != last - first + 1:
                raise ValueError("its rows do not fit its span")
            return np.arange(first, last + 1), numbers
        return first + np.frombuffer(data, "<u4", rows, 1 + 4 * rows).astype(np.int64), numbers

    return _guarded(first, last, read)


def columns_in(block: Block) -> Columns:
    """The body of a block. CorruptError where it is not what was written."""

    def read() -> Columns:
        data = _opened(block.body, _SPAN.pack(block.first, block.last))
        version, flags, channels, rows, names = _HEAD.unpack_from(data)
        if version != _VERSION:
            raise ValueError(f"version {version} is not known")
        at = _HEAD.size

        def column(kind: str, count: int) -> NDArray[np.generic]:
            nonlocal at
            found = np.frombuffer(data, kind, count, at)
            at += found.nbytes
            return found

        times = column("<i8", rows).astype(np.int64)
        values = column("<f8", rows * channels).astype(np.float64).reshape(rows, channels)
        whole = np.full(rows, UNNUMBERED, np.int64)
        sequences = column("<i8", rows).astype(np.int64) if flags & _SEQUENCES else whole
        if not flags & _SOURCES:
            return Columns(times, values, sequences, np.zeros(rows, np.uint32), ("",))
        codes = column("<u4", rows).astype(np.uint32)
        texts = []
        for _ in range(names):
            size = int.from_bytes(data[at : at + 2], "little")
            texts.append(str(data[at + 2 : at + 2 + size], "utf-8"))
            at += 2 + size
        return Columns(times, values, sequences, codes, tuple(texts))

    return _guarded(block.first, block.last, read)


def thinned(block: Block, kept: NDArray[np.bool_]) -> Block:
    """The block with only the rows of the mask [N]; numbers and span stay."""
    seqs, numbers = heads_of(block.first, block.last, block.streams)
    rows = np.flatnonzero(kept)
    columns = columns_in(block).take(rows)
    used = sorted({0, *columns.codes.tolist()})
    codes = np.searchsorted(used, columns.codes).astype(np.uint32)
    columns = columns._replace(codes=codes, names=tuple(columns.names[code] for code in used))
    return block_of(seqs[rows], numbers[rows], columns, (block.first, block.last))


def _sealed(data: bytes, seal: bytes) -> bytes:
    return data + zlib.crc32(data, zlib.crc32(seal)).to_bytes(4, "little")


def _opened(data: bytes, seal: bytes) -> memoryview:
    content = memoryview(data)[:-4]
    if len(data) < 5 or zlib.crc32(content, zlib.crc32(seal)) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its checksum does not match")
    return content


def _guarded(first: int, last: int, read: Callable[[], Found]) -> Found:
    try:
        return read()
    except (ValueError, IndexError, struct.error) as error:
        raise CorruptError(f"journal: rows {first} to {last} are not what was written ({error}); {REMEDY}") from None
