"""How many rows a store has said that it holds: a few bytes beside it, so that a log which lost its end is noticed.

To SQLite a log that was cut off or deleted is one that never had more in it, and the file comes back as it was before.
The number is written behind each commit and not forced to the disk: it survives the death of the process, and after a
loss of power it may be behind, never ahead. So it can miss a loss, but never makes one up.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

_FORM: Final = struct.Struct("<8sq")
_MAGIC: Final = b"tsgdtail"


class Tail:
    """The number of the last row of one store; nothing of it is worth an error."""

    def __init__(self, path: Path) -> None:
        """path: of the store."""
        self.path = path.with_name(f"{path.name}.tail")
        self._file = -1

    def read(self) -> int:
        """What was put last; 0 where nothing was, or where it can not be read."""
        with suppress(OSError):
            found = self.path.read_bytes()
            if len(found) == _FORM.size and found.startswith(_MAGIC):
                return int(_FORM.unpack(found)[1])
        return 0

    def put(self, last: int) -> None:
        """The last row is this one."""
        with suppress(OSError):  # a full disk, say: the rows are there, and that is what counts
            if self._file < 0:
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._file, _FORM.pack(_MAGIC, last), 0)

    def close(self) -> None:
        """Free the file."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
