"""How the place of the store stands, for the metrics: room on its disk, its size, ledger rows that wait to be fetched.

Read when somebody asks for the metrics: two looks at the file system and one at the ledger. What can not be read then,
a store that is closing or a folder that is gone, is left out, and the page is whole without it.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from tsgdn2.errors import TsgdnError
from tsgdn2.service.store import Store

READER: Final = "ledger.mlflow"
"""The cursor of what sends the ledger to MLflow."""


def stock(store: Store, place: str) -> dict[str, float]:
    """Numbers by the name of their gauge. place: path of an SQLite file, or postgresql://.., of which no disk is known.

    store_free_bytes: what a process without privileges may still write. store_bytes: the file and its log.
    ledger_unsent_seconds: age of the oldest row that MLflow has not got; only where something was sent before.
    """
    found: dict[str, float] = {}
    if "://" not in place:
        path = Path(place)
        with suppress(OSError):
            found["store_free_bytes"] = shutil.disk_usage(path.parent).free
        sizes = []
        for one in (path, Path(f"{path}-wal")):
            with suppress(OSError):
                sizes.append(one.stat().st_size)
        found["store_bytes"] = sum(sizes)
    with suppress(TsgdnError):
        at = store.cursor(READER)
        if at:
            waiting = store.read_ledger(at, 1)
            found["ledger_unsent_seconds"] = max(time.time_ns() - waiting[0].time, 0) / 1e9 if waiting else 0.0
    return found
