"""Which machine the kernels run on, which compilers are known to be wrong there, and what products may cost.

The limit: families, not models; an NVIDIA architecture without a table of its own takes the one with the least shared
memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch

FAMILIES = ("sm_80", "sm_86", "sm_90", "sm_100", "gfx942")
OLDEST = (3, 6)  # releases before it are wrong on Hopper in more ways than these kernels avoid (README, On GPUs)


def interpreted() -> bool:
    """Whether Triton runs in its interpreter (TRITON_INTERPRET=1 before the first import), on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def refusal(device: torch.device) -> str | None:
    """Why the Triton path cannot run on tensors of this device; None where it can."""
    if not torch.compiler.is_compiling():  # a graph that is traced cannot import; what it was traced from could
        version = _version()
        if version is None:
            return "the package triton is not installed; pip install triton"
        if version < OLDEST:
            came, wanted = (".".join(map(str, numbers)) for numbers in (version, OLDEST))
            return f"triton {came} gives wrong gradients on some devices; install {wanted} or later"
    if device.type == "cpu" and interpreted():
        return None
    if device.type != "cuda":
        return f"it needs tensors on a GPU, these are on {device}; move them with .to('cuda')"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0; use backend='chunked'"
    return None


_assumed: ContextVar[str | None] = ContextVar("assumed", default=None)


@contextmanager
def assume(name: str) -> Iterator[None]:
    """Within the context every device counts as one of this family: what is recorded is what would run there."""
    token = _assumed.set(name)
    try:
        yield
    finally:
        _assumed.reset(token)


def family(device: torch.device) -> str:
    """The row of the launch tables for this device."""
    return _assumed.get() or _family(device)


@lru_cache(maxsize=16)
def _family(device: torch.device) -> str:
    if device.type != "cuda":
        return "sm_90"  # the interpreter takes any; this is the one that is checked most
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) == (8, 0):
        return "sm_80"
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_86")


def precision(name: str) -> str:
    """How a product of float32 operands is made: whole on AMD's matrix units, three products of TF32 on NVIDIA's."""
    return "ieee" if interpreted() or name.startswith("gfx") else "tf32x3"


@lru_cache(maxsize=1)
def _version() -> tuple[int, int] | None:
    """The installed triton; imported here, where a GPU is about to be used, because that takes a third of a second."""
    try:
        import triton
    except ImportError:
        return None
    found = re.match(r"(\d+)\.(\d+)", triton.__version__)
    return (int(found[1]), int(found[2])) if found else (0, 0)
