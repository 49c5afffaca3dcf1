"""`python -m tsgdn2.service.deploy.backup STORE TARGET`: a copy of an SQLite store while the service runs.

One reading transaction, so the copy is the store of one moment, whatever is written meanwhile, and everything that was
acknowledged before it began is in it. SQLite's own .backup begins anew with every commit and may never end under load.
The price is the log, which can not shrink until the copy is made: keep as much of the disk free as comes in meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from tsgdn2.errors import ConfigError, TsgdnError

_WAIT_S = 60.0


def backup(store: Path, target: Path) -> int:
    """Copy a store; gives the copy's bytes. The target is whole and on the disk once it has its name.

    Raises:
        ConfigError: store is no file, target is there already, or SQLite could not do it.
    """
    if not store.is_file():
        raise ConfigError(f"store: {store} is no file; give the path of an SQLite store")
    if target.exists():
        raise ConfigError(f"target: {target} is there already; give a new name, or move it away")
    draft = target.with_name(f"{target.name}.part")
    try:
        draft.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_CREAT | os.O_WRONLY, 0o600))  # it holds hashes of keys
        with closing(sqlite3.connect(store, timeout=_WAIT_S, isolation_level=None)) as connection:
            connection.execute("VACUUM INTO ?", (str(draft),))
        with closing(sqlite3.connect(draft)) as copy:
            found = copy.execute("PRAGMA quick_check(3)").fetchall()
        if found != [("ok",)]:
            raise ConfigError(f"store: the copy of {store} is damaged ({found[0][0]}); the disk may be failing")
        _on_disk(draft)
        draft.replace(target)
        _on_disk(target.parent)
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(f"store: {store} could not be copied to {target} ({error}); see disk and rights") from error
    finally:
        draft.unlink(missing_ok=True)
    return target.stat().st_size


def _on_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def main(arguments: list[str]) -> int:
    """Run it; gives the exit code."""
    if len(arguments) != 2:
        print("usage: python -m tsgdn2.service.deploy.backup STORE TARGET", file=sys.stderr)
        return 2
    try:
        size = backup(Path(arguments[0]), Path(arguments[1]))
    except TsgdnError as error:
        print(f"tsgdn2: {error}", file=sys.stderr)
        return 2
    print(f"{arguments[1]}: {size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
