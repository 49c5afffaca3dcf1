"""A backup made while rows come in is the store of one moment; what is restored from it is bit-identical."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.service.predictors import batch, blobs, memory, observed, predictor

from tsgdn2.errors import ConfigError
from tsgdn2.service.batch import Batch
from tsgdn2.service.deploy.backup import backup
from tsgdn2.service.sqlite_store import SqliteStore
from tsgdn2.service.store import LedgerRow

ROOT = Path(__file__).resolve().parents[2]
STREAMS = ["a", "b", "c", "d", "e"]


def rows(step: int) -> Batch:
    return batch(STREAMS, [step] * len(STREAMS), [step] * len(STREAMS))


def test_a_backup_under_load_restores_every_state_of_one_moment_bit_for_bit(tmp_path: Path) -> None:
    made, ended = memory(tmp_path), threading.Event()
    acknowledged = [0]

    def load() -> None:
        while not ended.is_set():
            made.observe(rows(acknowledged[0])).result()
            acknowledged[0] += 1

    thread = threading.Thread(target=load)
    thread.start()
    copies = tmp_path / "copies"
    copies.mkdir()
    try:
        for turn in range(3):
            before = acknowledged[0]
            done = subprocess.run(
                [sys.executable, "-m", "tsgdn2.service.deploy.backup", str(tmp_path / "store.db"),
                 str(copies / f"{turn}.db")],
                cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
                timeout=60,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert acknowledged[0] > before, "nothing came in while the copy was made"
            moment = restored(copies / f"{turn}.db", tmp_path / f"restored-{turn}")
            assert before <= moment <= acknowledged[0] + 1
    finally:
        ended.set()
        thread.join()
        made.stop()
    assert sorted(path.name for path in copies.iterdir()) == ["0.db", "1.db", "2.db"]
    assert (copies / "0.db").stat().st_mode & 0o77 == 0


def restored(copy: Path, folder: Path) -> int:
    """Serve a copy; gives how many steps it holds, once all of them are what they were without an interruption."""
    folder.mkdir()
    shutil.copyfile(copy, folder / "store.db")
    again, twin = memory(folder), predictor()
    try:
        steps, rest = divmod(again.status().last, len(STREAMS))
        assert rest == 0
        for step in range(steps):
            observed(twin, rows(step))
        if steps:
            assert blobs(again, STREAMS) == {stream: twin.take_out(stream) for stream in STREAMS}
            assert set(again.observe(rows(steps - 1)).result().status) == {"seen"}  # the marks are there, too
        after = again.observe(rows(steps)).result()
        assert list(zip(after.status, map(bytes, after.surprise), strict=True)) == observed(twin, rows(steps))
    finally:
        again.stop()
    return steps


def test_a_backup_that_can_not_be_made_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no file"):
        backup(tmp_path / "none.db", tmp_path / "copy.db")
    store = SqliteStore(tmp_path / "store.db")
    store.open()
    store.close()
    (tmp_path / "copy.db").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        backup(tmp_path / "store.db", tmp_path / "copy.db")
    (tmp_path / "junk.db").write_text("no database at all" * 1000)
    with pytest.raises(ConfigError, match="could not be copied"):
        backup(tmp_path / "junk.db", tmp_path / "other.db")
    with pytest.raises(ConfigError, match="could not be copied"):
        backup(tmp_path / "store.db", tmp_path / "no" / "folder.db")
    assert (tmp_path / "copy.db").read_text() == "mine"
    assert not list(tmp_path.glob("*.part"))


def test_a_reader_that_stays_holds_no_commit_up_however_long_the_log_gets(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db", most_log=100_000)
    store.open()
    reader = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM ledger").fetchall()
    waits: list[int] = []
    assert store._file is not None
    store._file._write.set_trace_callback(
        lambda sql: waits.append(int(sql.split("=")[1])) if "busy_timeout" in sql else None
    )
    for _ in range(20):
        store.record([LedgerRow(kind="evicted", facts={"text": "x" * 500})] * 50)
    log = tmp_path / "store.db-wal"
    grown = log.stat().st_size
    assert grown > 200_000
    reader.execute("COMMIT")
    reader.close()
    store.record([LedgerRow(kind="evicted")])
    assert log.stat().st_size < grown  # and begun anew as soon as nobody reads
    assert waits[0] == 0
    assert waits[-1] > 0
    store.close()
