"""One process at a time in an output folder: the second one is told so, and nothing waits.

The system lets go of the lock when its process ends, in any way; the file stays and means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tsgdn2.errors import ConfigError


@contextmanager
def alone(folder: Path, other: str) -> Iterator[None]:
    """Hold the folder's lock. Raises ConfigError where another process has it; other: what that one does, in words."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(f"output: another {other} {folder}; wait for its end or give another --output") from error
    try:
        yield
    finally:
        lock.release()
