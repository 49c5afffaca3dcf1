"""A memory on a disk that is full for a while; run by test_recovery.

python -m tests.service.full_memory PLACE      says what was refused, and what was there afterwards
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import structlog
from tests.service.predictors import batch, blobs, limits, memory, observed, predictor

from tsgdn2.service.errors import StoreError
from tsgdn2.service.limits import Limits

NAMES = ("a", "b", "c")


def main(where: Path) -> None:
    """Observe until the disk is full, look, make room, and send the same again."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    bounds: Limits = limits(3)
    made, twin = memory(where, bounds), predictor()
    made.observe(batch(NAMES, [0] * 3, [0] * 3)).result()
    observed(twin, batch(NAMES, [0] * 3))
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    log = where / "store.db-wal"
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(log) + 60_000, most))
    number, said = 1, ""
    while not said:
        rows = batch(NAMES * 4, [number] * 12, [4 * number + n for n in range(4) for _ in NAMES])
        try:
            made.observe(rows).result()
            observed(twin, rows)
            number += 1
        except StoreError as error:
            said = str(error)
    same = blobs(made, NAMES) == {name: twin.take_out(name) for name in NAMES}
    told = made.status().reason
    refused = 0
    for name in ("d", NAMES[0]):
        try:
            made.observe(batch([name], [number + 1], [10_000])).result()
        except StoreError:
            refused += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    again = list(made.observe(rows).result().status) == [status for status, _ in observed(twin, rows)]
    made.stop()
    made = memory(where, bounds)
    after = blobs(made, NAMES) == {name: twin.take_out(name) for name in NAMES}
    known = made.names().result()
    made.stop()
    print(json.dumps({"said": said, "number": number, "same": same, "told": told, "refused": refused, "again": again,
                      "after": after, "known": known}))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
