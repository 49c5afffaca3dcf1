"""Rows from Arrow's IPC format, stream or file: columns stream, time, the channels, and source and sequence if given.

    stream    text, or a dictionary of it          time      timestamp of any unit, or int64 nanoseconds
    channels  numbers or booleans; null: missing   source    text          sequence    integers, null: none

Nothing is believed: types are looked at before any data is read, buffers that are compressed inside are refused before
they unpack (send Content-Encoding: gzip), a file's footer may not point twice to the same bytes, and every batch is
validated to the last offset.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tsgdn2.errors import SchemaError, TsgdnError
from tsgdn2.service.batch import LONGEST_NAME, UNNUMBERED, Ints
from tsgdn2.service.columns import Raw, check_channels, check_rows
from tsgdn2.service.connectors.decoded import DecodeError

STREAM_TYPE: Final = "application/vnd.apache.arrow.stream"
FILE_TYPE: Final = "application/vnd.apache.arrow.file"
_MAGIC: Final = b"ARROW1\x00\x00"
_END: Final = b"ARROW1"
_GOES_ON: Final = b"\xff\xff\xff\xff"
_BLOCK: Final = struct.Struct("<qi4xq")
_OWN: Final = ("stream", "time", "source", "sequence")
_MOST_COLUMNS: Final = 10_000
_LONGEST: Final = 4 * LONGEST_NAME
_MOST_MESSAGES: Final = 100_000
_DICTIONARY, _RECORDS = 2, 3


def from_arrow(body: bytes, channels: tuple[str, ...], most: int) -> Raw:
    """Rows [N] of a body. DecodeError: it is no Arrow; SchemaError: its columns do not fit; TooLargeError."""
    content, is_file = pa.py_buffer(body), body.startswith(_MAGIC)
    try:
        for metadata in _of_file(body) if is_file else _of_stream(content):
            _check_plain(metadata)
        with (pa.ipc.open_file if is_file else pa.ipc.open_stream)(content) as reader:
            _check_schema(reader.schema, channels)
            batches, rows = [], 0
            for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
                rows += batch.num_rows
                check_rows(rows, most)
                batch.validate(full=True)
                batches.append(batch)
            return _raw(pa.Table.from_batches(batches, reader.schema), channels)
    except TsgdnError:
        raise
    except (pa.ArrowException, ValueError, struct.error, IndexError, OverflowError, OSError, EOFError) as error:
        raise DecodeError(f"body: no stream of Arrow IPC ({_line(error)}); write one with your Arrow library") from None


def _raw(table: Any, channels: tuple[str, ...]) -> Raw:
    rows = table.num_rows
    streams = _texts(table.column("stream"), "stream")
    times, missing = _moments(table.column("time"))
    refused = {row: "time: is missing; drop the row or give it one" for row in np.flatnonzero(missing).tolist()}
    refused |= {row: "stream: is missing; name it" for row, name in enumerate(streams) if name is None}
    values = np.full((rows, len(channels)), np.nan)
    for column, name in enumerate(channels):
        if name in table.column_names:
            cells = table.column(name).cast(pa.float64(), safe=False)
            values[:, column] = pc.fill_null(cells, float("nan")).to_numpy(zero_copy_only=False)
    sources = sequences = None
    if "source" in table.column_names:
        sources = [name or "" for name in _texts(table.column("source"), "source")]
    if "sequence" in table.column_names:
        column = table.column("sequence").cast(pa.int64())
        sequences = np.asarray(pc.fill_null(column, UNNUMBERED).to_numpy(zero_copy_only=False), np.int64)
    raw = Raw(
        [name or "" for name in streams], times, values, sources, sequences, np.arange(rows), rows, refused
    )  # fmt: skip
    return raw.taken([row for row in range(rows) if row not in refused]) if refused else raw


def _texts(column: Any, name: str) -> list[str | None]:
    """Names [N]; SchemaError for one so long that a few bytes of the body would make many of it."""
    longest = 0
    for chunk in column.chunks:
        texts = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        if pa.types.is_string_view(texts.type):
            views = np.frombuffer(texts.buffers()[1] or b"", np.int32).reshape(-1, 4)
            lengths = views[texts.offset : texts.offset + len(texts), 0]
            longest = max(longest, int(lengths.max(initial=0)))
        else:
            longest = max(longest, pc.max(pc.binary_length(texts)).as_py() or 0)
    if longest > _LONGEST:
        raise SchemaError(f"columns: {name} holds a text of {longest} bytes; names may have {LONGEST_NAME}")
    return [text for chunk in column.chunks for text in _text_of(chunk)]


def _text_of(chunk: Any) -> list[str | None]:
    if not pa.types.is_dictionary(chunk.type):
        found: list[str | None] = chunk.to_pylist()
        return found
    texts = chunk.dictionary.to_pylist()
    return [None if at is None else texts[at] for at in chunk.indices.to_pylist()]


def _moments(column: Any) -> tuple[Ints, Any]:
    """Nanoseconds [N], and which of them are missing."""
    missing = np.asarray(column.is_null().to_numpy(zero_copy_only=False), bool)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ns", column.type.tz))
    return np.asarray(pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False), np.int64), missing


def _check_schema(schema: Any, channels: tuple[str, ...]) -> None:
    """SchemaError unless every column is one of ours, once, and of a type that costs its rows no more than it sent."""
    names = schema.names
    if len(names) > _MOST_COLUMNS or len(set(names)) != len(names):
        raise SchemaError(f"columns: each name may stand once, {_MOST_COLUMNS} at most; got {len(names)}")
    for name in ("stream", "time"):
        if name not in names:
            raise SchemaError(f"columns: {name} is missing; send stream, time and channels")
    check_channels([name for name in names if name not in _OWN], channels)
    for field in schema:
        kind, fits = field.type, False
        if field.name in ("stream", "source"):
            fits = _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind)
        elif field.name == "time":
            fits = pa.types.is_timestamp(kind) or pa.types.is_int64(kind)
        elif field.name == "sequence":
            fits = pa.types.is_integer(kind)
        else:
            fits = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if not fits:
            raise SchemaError(f"columns: {field.name} can not be of type {str(kind)[:80]}; see the documentation")


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _of_stream(content: Any) -> Iterator[memoryview]:
    """The metadata of each message of a stream."""
    reader = pa.ipc.MessageReader.open_stream(content)
    for _ in range(_MOST_MESSAGES):
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        yield memoryview(message.metadata)
    raise DecodeError(f"body: more than {_MOST_MESSAGES} messages; write larger batches")


def _of_file(body: bytes) -> Iterator[memoryview]:
    """The metadata of each message of a file; its footer (version, schema, dictionaries, recordBatches) lists them.

    DecodeError where they overlap: a few bytes could then be many dictionaries.
    """
    data, tail = memoryview(body), len(_END) + 4
    start = len(body) - tail - int.from_bytes(body[-tail : -len(_END)], "little")
    if not body.endswith(_END) or start < len(_MAGIC):
        raise DecodeError("body: a file of Arrow IPC that was cut off; write it to its end")
    footer = data[start : len(body) - tail]
    root, held, count = _uint(footer, 0), 0, 0
    for number in (2, 3):
        if not (at := _field(footer, root, number)):
            continue
        vector = at + _uint(footer, at)
        blocks = _uint(footer, vector)
        count += blocks
        if count > _MOST_MESSAGES:
            raise DecodeError(f"body: more than {_MOST_MESSAGES} messages; write larger batches")
        for block in range(blocks):
            offset, length, size = _BLOCK.unpack_from(footer, vector + 4 + _BLOCK.size * block)
            held += length + size
            if offset < 0 or length < 8 or size < 0 or held > len(body):
                raise DecodeError("body: the blocks of its footer overlap, or lie outside; write it anew")
            metadata = data[offset + (8 if data[offset : offset + 4].tobytes() == _GOES_ON else 4) : offset + length]
            body_at = _field(metadata, _uint(metadata, 0), 3)
            if body_at and struct.unpack_from("<q", metadata, body_at)[0] > size:
                raise DecodeError("body: a message is larger than its block; write it anew")
            yield metadata


def _check_plain(data: memoryview) -> None:
    """DecodeError for a message whose buffers are compressed.

    Flatbuffers: a root offset; a table begins with its distance to a vtable of uint16: own size, table's size, and then
    for each field where it is in the table, 0 for one that is not there. Message: version, header_type, header, ..;
    DictionaryBatch: id, data, ..; RecordBatch: length, nodes, buffers, compression, ..
    """
    root = _uint(data, 0)
    kind_at, header_at = _field(data, root, 1), _field(data, root, 2)
    if not kind_at or not header_at or data[kind_at] not in (_DICTIONARY, _RECORDS):
        return
    table = header_at + _uint(data, header_at)
    if data[kind_at] == _DICTIONARY:
        inner = _field(data, table, 1)
        table = inner + _uint(data, inner)
    if _field(data, table, 3):
        raise DecodeError("body: its buffers are compressed inside; write them plain, and send Content-Encoding: gzip")


def _field(data: memoryview, table: int, number: int) -> int:
    """Where a field of a table is; 0 where it is absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0:
        raise IndexError("a table points before its begin")
    size = struct.unpack_from("<H", data, vtable)[0]
    at = 4 + 2 * number
    offset: int = struct.unpack_from("<H", data, vtable + at)[0] if at + 2 <= size else 0
    return table + offset if offset else 0


def _uint(data: memoryview, at: int) -> int:
    found: int = struct.unpack_from("<I", data, at)[0]
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
