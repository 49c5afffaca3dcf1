"""A clock that tests can set: libfaketime between a process and the time of day, and nothing else.

The monotone clock, sleeping and the times of files stay as they are, as they do when somebody sets a machine's clock.
"""

from __future__ import annotations

import os
import time
from email.utils import parsedate_to_datetime
from functools import partial
from glob import glob
from pathlib import Path
from typing import Final

from tests.service.endtoend.lives import Service, until
from tests.service.peers import installed

LIBRARY: Final = "/usr/lib/*/faketime/libfaketime.so.1"
YEAR: Final = 365 * 86_400


class Clock:
    """The time of day of all processes with this environment."""

    def __init__(self, file: Path) -> None:
        """Install the library where it is missing; AssertionError says why it could not be."""
        installed("faketime", LIBRARY)
        self.file = file
        self.set(0)
        self.environment = {
            "LD_PRELOAD": glob(LIBRARY)[0], "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
        }  # fmt: skip

    def set(self, seconds: int, *made: Service) -> None:
        """Be so many seconds ahead of the machine's clock, and wait until these services say so.

        The library looks at the file once a second: to look more often would slow everything down.
        """
        draft = self.file.with_suffix(".new")
        draft.write_text(f"{seconds:+d}\n")
        os.replace(draft, self.file)  # so that it is never read half

        def follows(one: Service) -> bool:
            said = one.client.get("/healthz").headers["Date"]
            return abs(parsedate_to_datetime(said).timestamp() - time.time() - seconds) < 600

        for one in made:
            until(partial(follows, one), "the process has the new time", look=0.05)
