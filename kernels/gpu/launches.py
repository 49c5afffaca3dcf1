"""How every Triton kernel is launched: one call for all of them, and the tables of tiles, warps and stages as data.

Nothing is tuned at run time: a first step costs one compilation per kernel and no search. The tables are chosen by
what `targets.py` compiles for (registers, spills, shared memory) and, where a row says so, by timings on a device.
The limit: tiles depend on K, V and the bytes of an element, never on the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """What a table chooses for one kernel."""

    tile: int
    """Channels of K or V that a program holds at a time; a power of two of 16 and more."""
    warps: int = 4
    stages: int = 2
    rows: int = 64
    """Tokens of a chunk, or keys of the state, that one product takes where the kernel cuts them."""


class Call(NamedTuple):
    """One launch: what `targets.py` compiles ahead of time is what runs."""

    kernel: Any
    programs: int
    arguments: dict[str, object]
    launch: Launch


_recorded: ContextVar[list[Call] | None] = ContextVar("recorded", default=None)


def run(kernel: Any, programs: int, launch: Launch, arguments: Mapping[str, object]) -> None:
    """Launch `programs` programs (all on grid axis 0, which alone holds 2^31 - 1) with the arguments by name."""
    calls = _recorded.get()
    if calls is not None:
        calls.append(Call(kernel, programs, dict(arguments), launch))
    elif programs:
        # Triton launches on the current device, which need not be the one that holds the tensors.
        device = next(x.device for x in arguments.values() if isinstance(x, Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[(programs,)](**arguments, num_warps=launch.warps, num_stages=launch.stages)


@contextmanager
def record() -> Iterator[list[Call]]:
    """Within the context nothing is launched; the calls that would have been are in the list."""
    calls: list[Call] = []
    token = _recorded.set(calls)
    try:
        yield calls
    finally:
        _recorded.reset(token)


def padded(size: int) -> int:
    """The power of two, 16 at least, that holds `size` channels: what a product and a range can be of."""
    return max(16, 1 << (size - 1).bit_length())


def choose(kernel: str, family: str, size: int, K: int, V: int) -> Launch:
    """The table's row for a kernel on a device family, `size` bytes per element; the first that matches.

    A row is (families or None for all, sizes or None, largest max(K, V) or None, launch).
    """
    widest = max(K, V)
    for families, sizes, largest, launch in LAUNCHES[kernel]:
        if (
            (families is None or family in families)
            and (sizes is None or size in sizes)
            and (largest is None or widest <= largest)
        ):
            return launch._replace(tile=min(launch.tile, padded(widest)))
    raise AssertionError(f"the launch table of {kernel} has no row for {family}")


AMPERE = ("sm_80", "sm_86")
Rows = tuple[tuple[tuple[str, ...] | None, tuple[int, ...] | None, int | None, Launch], ...]

LAUNCHES: dict[str, Rows] = {
    "blocks_forward": ((None, None, None, Launch(tile=32, warps=2, stages=1)),),
    "chunks_forward": (
        (AMPERE, (4,), None, Launch(tile=16, warps=4, stages=1)),
        (None, None, None, Launch(tile=32, warps=4, stages=1)),
    ),
    "states_forward": (
        (AMPERE, (4,), None, Launch(tile=16, warps=4, stages=1, rows=32)),
        (None, (4,), None, Launch(tile=16, warps=4, stages=1)),
        (("sm_80", "sm_90"), None, 128, Launch(tile=32, warps=4, stages=2)),
        (("sm_90",), None, None, Launch(tile=32, warps=4, stages=2)),
        (None, None, None, Launch(tile=32, warps=4, stages=1)),
    ),
    "outputs_forward": (
        ((*AMPERE, "gfx942"), (4,), None, Launch(tile=32, warps=4, stages=1)),
        (None, None, None, Launch(tile=64, warps=4, stages=2)),
    ),
    "states_backward": (
        (AMPERE, (4,), None, Launch(tile=16, warps=4, stages=1, rows=32)),
        (None, (4,), None, Launch(tile=16, warps=4, stages=1)),
        (("sm_80", "sm_86", "sm_90", "sm_100"), None, 128, Launch(tile=32, warps=4, stages=2)),
        (AMPERE, None, None, Launch(tile=16, warps=4, stages=1)),
        (None, None, None, Launch(tile=32, warps=4, stages=1)),
    ),
    "outputs_backward": (
        (("sm_90", "gfx942"), (4,), None, Launch(tile=16, warps=4, stages=1)),
        (None, (4,), None, Launch(tile=16, warps=8, stages=1)),
        (AMPERE, None, None, Launch(tile=32, warps=4, stages=1)),
        (None, None, None, Launch(tile=32, warps=4, stages=2)),
    ),
    "chunks_backward": (
        (AMPERE, (4,), None, Launch(tile=16, warps=8, stages=1, rows=16)),
        (AMPERE, None, None, Launch(tile=16, warps=4, stages=1, rows=32)),
        (None, (4,), None, Launch(tile=16, warps=4, stages=1, rows=32)),
        (None, None, None, Launch(tile=16, warps=4, stages=1)),
    ),
    "blocks_backward": (
        (None, (4,), None, Launch(tile=32, warps=4, stages=1)),
        (None, None, None, Launch(tile=64, warps=4, stages=1)),
    ),
}
"""Chosen so that nothing spills on any of the targets and everything fits their shared memory."""
