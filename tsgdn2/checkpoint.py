"""Tensors and a few strings as one safetensors file or blob, written whole or not at all, and checked on the way back.

The checksum is over the content (names, dtypes, shapes, bytes and strings), so that a changed digit anywhere is an
error and not a forecast; it is no signature. No pickle. A newer schema is refused with the version that wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from tsgdn2.errors import CheckpointError

_DTYPES: Final = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip
"""What may be in one, and what safetensors calls it."""


class Source(NamedTuple):
    """How an error speaks of what is read: what it is, what wrote it, what to do when it is broken."""

    what: str
    writer: str = "its own `save`"
    mend: str = "restore a backup"


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str], *, kind: str, schema: int) -> None:
    """Write atomically: a crash or a full disk leaves the old file as it was. OSError goes to the caller."""
    payload = encode(tensors, facts, kind=kind, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.part")
    try:
        with part.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read(
    path: Path, *, kind: str, schema: int, others: Mapping[str, str] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read and verify. CheckpointError: missing, truncated, altered, of another kind, or from a newer schema.

    others: what to do with a file of another kind, by kind.
    """
    if not path.is_file():
        raise CheckpointError(f"path: no file {path}; give the file that `save` or `serialize` wrote")
    source = Source(f"path: {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{source.what} is truncated or no safetensors file ({error}); {source.mend}") from None
    return _verified(tensors, meta, source, kind=kind, schema=schema, others=others)


def encode(tensors: Mapping[str, Tensor], facts: Mapping[str, str], *, kind: str, schema: int) -> bytes:
    """The bytes that `decode` reads, and `read` from a file; the same bytes for the same content.

    Written by hand: safetensors puts the strings in any order, and takes longer for the many small tensors of a stream
    than all the rest. Its own reader checks what is written here.
    """
    content = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    meta = {**facts, "kind": kind, "schema": str(schema)}
    meta["sha256"] = digest(content, meta)
    header: dict[str, object] = {"__metadata__": dict(sorted(meta.items()))}
    parts, end = [b"", b""], 0
    for name, tensor in sorted(content.items(), key=lambda item: (-item[1].itemsize, item[0])):  # aligned that way
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        parts.append(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts[:2] = len(text).to_bytes(8, "little"), text
    return b"".join(parts)


def decode(blob: bytes, source: Source, *, kind: str, schema: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Undo `encode` and verify; CheckpointError as `read` has it."""
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise CheckpointError(f"{source.what} must be bytes, got {type(blob).__name__}; give what {source.writer} gave")
    blob = bytes(blob)
    try:
        tensors = load(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{source.what} is truncated or no safetensors blob ({error}); {source.mend}") from None
    return _verified(tensors, dict(header.get("__metadata__", {})), source, kind=kind, schema=schema)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """SHA-256 in hex over names, dtypes, shapes and bytes of the tensors and over the strings."""
    found = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _verified(
    tensors: dict[str, Tensor], meta: dict[str, str], source: Source, *, kind: str, schema: int,
    others: Mapping[str, str] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:  # fmt: skip
    """What was read, without its checksum; CheckpointError where it is not what was written, or not for this reader."""
    found, number = meta.get("kind"), meta.get("schema", "0")
    if found != kind:
        remedy = (others or {}).get(found or "", f"give what {source.writer} wrote")
        raise CheckpointError(f"{source.what} holds {found or 'something else'!r}, expected {kind!r}; {remedy}")
    if not (number.isascii() and number.isdigit() and len(number) < 9):
        raise CheckpointError(f"{source.what} has the schema {number[:20]!r}, which is no number; {source.mend}")
    if int(number) > schema:
        raise CheckpointError(f"{source.what} has schema {number}, this version reads up to {schema}; upgrade")
    expected = meta.pop("sha256", "")
    if any(t.dtype not in _DTYPES for t in tensors.values()) or digest(tensors, meta) != expected:
        raise CheckpointError(f"{source.what} was altered, its checksum does not match; {source.mend}")
    return tensors, meta
