"""Tensors and a few strings in one safetensors file, written whole or not at all, and checked on the way back.

The checksum is over the content (names, dtypes, shapes, bytes and strings), so that a changed digit anywhere is an
error and not a forecast. No pickle. A newer schema is refused with the version that wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tsgdn2.errors import CheckpointError


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str], *, kind: str, schema: int) -> None:
    """Write atomically: a crash or a full disk leaves the old file as it was. OSError goes to the caller."""
    content = dict(tensors)
    meta = {**facts, "kind": kind, "schema": str(schema)}
    meta["sha256"] = _digest(content, meta)
    payload = save({name: t.contiguous() for name, t in content.items()}, metadata=meta)
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
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"path: {path} is truncated or no safetensors file ({error}); restore a backup") from None
    if meta.get("kind") != kind:
        found = meta.get("kind", "something else")
        remedy = (others or {}).get(found, "give the file that its own `save` wrote")
        raise CheckpointError(f"path: {path} holds {found!r}, expected {kind!r}; {remedy}")
    if int(meta.get("schema", "0")) > schema:
        raise CheckpointError(f"path: {path} has schema {meta['schema']}, this version reads up to {schema}; upgrade")
    expected = meta.pop("sha256", "")
    if _digest(tensors, meta) != expected:
        raise CheckpointError(f"path: {path} was altered, its checksum does not match; restore a backup")
    return tensors, meta


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
