"""What a service is doing at each moment, in a file that outlives it: so a kill can be aimed, and named afterwards.

    byte i     how often phase i has been entered and not left, in the life that runs
    aim        the phase that somebody waits for, and how many more times it has to be entered until the bell rings
    number j   counts that go on over all lives, until the file is deleted

The bell is a pipe, so whoever waits for it costs nothing, and misses nothing.

`watch` wraps the methods that the phases are named after; it changes nothing of what they do.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final

PHASES: Final = (
    "starting", "recovering", "opening", "appending", "applying", "snapshotting", "pruning", "acknowledging",
)  # fmt: skip
"""The later one of two that are entered says more; "starting" is entered by whoever starts the process."""
COUNTS: Final = ("received", "seen", "behind", "refused")
_COUNT: Final = struct.Struct("<q")
_SIZE: Final = 16 + 8 * len(COUNTS)
_AIM, _LEFT = len(PHASES), len(PHASES) + 1


class Board:
    """One side writes, the other reads; neither waits for the other."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_SIZE))
            os.mkfifo(path.with_suffix(".bell"))
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), _SIZE)
        # Opened for both, so that neither side has to wait for the other to open it.
        self._bell = os.open(path.with_suffix(".bell"), os.O_RDWR | os.O_NONBLOCK)

    def clear(self, aim: str = "", times: int = 1) -> None:
        """A new life begins; the bell rings when it enters a phase for the so manieth time."""
        while select.select([self._bell], [], [], 0)[0]:
            os.read(self._bell, 64)
        aimed = PHASES.index(aim) + 1 if aim in PHASES else 0
        self._bytes[: len(PHASES) + 2] = bytes([1]) + bytes(len(PHASES) - 1) + bytes([aimed, times])

    def wait(self, seconds: float) -> bool:
        """Wait for the bell; whether it rang."""
        return bool(select.select([self._bell], [], [], seconds)[0])

    def enter(self, phase: str, by: int = 1) -> None:
        """A phase begins, or ends with by = -1."""
        at = PHASES.index(phase)
        self._bytes[at] += by
        if by > 0 and self._bytes[_AIM] == at + 1 and self._bytes[_LEFT]:
            self._bytes[_LEFT] -= 1
            if not self._bytes[_LEFT]:
                os.write(self._bell, b"!")

    def is_in(self, phase: str) -> bool:
        """Whether a phase is on now."""
        return self._bytes[PHASES.index(phase)] > 0

    @property
    def phase(self) -> str:
        """The one that says most; "between" when it is none."""
        return next((phase for phase in reversed(PHASES) if self.is_in(phase)), "between")

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """A phase is on while the block runs."""
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(phase, -1)

    def count(self, name: str, by: int) -> None:
        """Add to a count."""
        at = 16 + 8 * COUNTS.index(name)
        _COUNT.pack_into(self._bytes, at, _COUNT.unpack_from(self._bytes, at)[0] + by)

    @property
    def counts(self) -> dict[str, int]:
        """All counts."""
        return dict(zip(COUNTS, struct.unpack_from(f"<{len(COUNTS)}q", self._bytes, 16), strict=True))


def watch(board: Board) -> None:
    """Tell the board what this process does from now on."""
    from tsgdn2.online import OnlinePredictor
    from tsgdn2.service.connectors.mqtt import Client
    from tsgdn2.service.memory import Memory
    from tsgdn2.service.receipts import Receipt
    from tsgdn2.service.sqlite_store import SqliteStore

    def wrap(owner: type, method: str, phase: str, *, ends: str | None = None) -> None:
        inner: Callable[..., Any] = getattr(owner, method)

        @wraps(inner)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if ends is not None and board.is_in(ends):
                board.enter(ends, -1)
            with board.during(phase):
                return inner(*args, **kwargs)

        setattr(owner, method, watched)

    wrap(Memory, "start", "recovering", ends="starting")
    wrap(SqliteStore, "open", "opening")
    wrap(SqliteStore, "append", "appending")
    wrap(SqliteStore, "snapshot", "snapshotting")
    wrap(SqliteStore, "prune", "pruning")
    wrap(OnlinePredictor, "observe_many", "applying")
    wrap(Client, "acknowledge", "acknowledging")
    observe, group = Memory.observe, Client.group

    def told(future: Future[Receipt]) -> None:
        if not future.cancelled() and future.exception() is None:
            for status, count in future.result().counts.items():
                if status in COUNTS:
                    board.count(status, count)

    @wraps(observe)
    def observed(*args: Any, **kwargs: Any) -> Future[Receipt]:
        future = observe(*args, **kwargs)
        future.add_done_callback(told)
        return future

    @wraps(group)
    async def grouped(*args: Any, **kwargs: Any) -> Any:
        found = await group(*args, **kwargs)
        board.count("received", len(found))
        return found

    Memory.observe, Client.group = observed, grouped  # type: ignore[method-assign]
