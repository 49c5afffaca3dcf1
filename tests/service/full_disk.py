"""A process whose files may not grow beyond a limit, as on a full disk; run by test_store_sqlite.

python full_disk.py PLACE      appends until the disk is "full", says what it could keep, makes room, goes on
"""

from __future__ import annotations

import json
import resource
import sys

from tests.service.shelves import MODEL, all_of, rows, snapshot, store_at

from tsgdn2.service.errors import StoreError

LIMIT = 3 << 20


def main(where: str) -> None:
    """Meet the limit with appends, ledger rows and snapshots; then again with room."""
    store = store_at("sqlite", where)
    store.open(MODEL)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, most))
    kept, said = 0, ""
    while not said:
        try:
            store.append(rows(["a"] * 5000, list(range(kept, kept + 5000))))
            kept += 5000
        except StoreError as error:
            said = str(error)
    refused = 0
    for _ in range(3):
        try:
            store.snapshot([snapshot("a", store.last, bytes(LIMIT))])
        except StoreError:
            refused += 1
    while_full = list(all_of(store))
    store.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    store.open(MODEL)
    store.append(rows(["a"] * 5000, list(range(kept, kept + 5000))))
    store.snapshot([snapshot("a", 5, bytes(LIMIT))])
    (found,) = all_of(store)
    print(json.dumps({"said": said, "kept": kept, "refused": refused, "while_full": [len(x[2]) for x in while_full],
                      "after": found[2] == list(range(5, kept + 5000)), "last": store.last}))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
