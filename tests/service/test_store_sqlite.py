"""The file of the SQLite store: full disks, damage of every kind, a second process, the length of the log, upgrades."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.service.shelves import MODEL, all_of, rows, snapshot

from tsgdn2.service.errors import CorruptError, StoreError
from tsgdn2.service.schema import SQLITE, UPGRADES, bring_up
from tsgdn2.service.sqlite_file import SqliteTransaction
from tsgdn2.service.sqlite_store import SqliteStore
from tsgdn2.service.store import LedgerRow

ROOT = Path(__file__).resolve().parents[2]


def filled(path: Path, *, closed: bool = True) -> SqliteStore:
    """A store with 40 appends of 50 rows, and snapshots; not closed, it is as kill -9 leaves it."""
    store = SqliteStore(path)
    store.open(MODEL)
    for start in range(0, 2000, 50):
        store.append(rows(["a", "b"] * 25, list(range(start, start + 50))))
        if start % 500 == 0:
            store.snapshot([snapshot("a", store.last, os.urandom(20_000))])
    if closed:
        store.close()
    return store


def copied(path: Path, folder: Path) -> Path:
    """The store's files as they are on the disk at this moment."""
    folder.mkdir(exist_ok=True)
    for file in path.parent.glob(f"{path.name}*"):
        if not file.name.endswith((".lock", "-shm")):
            shutil.copy(file, folder / file.name)
    return folder / path.name


def sequences(path: Path) -> list[int]:
    """Every row of the stream b, after opening the store."""
    store = SqliteStore(path)
    store.open(MODEL)
    try:
        return {name: numbers for name, _, numbers in all_of(store)}.get("b", [])
    finally:
        store.close()


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_full_disk_refuses_whole_appends_and_the_store_goes_on_when_there_is_room(tmp_path: Path) -> None:
    done = run("tests.service.full_disk", str(tmp_path / "store.db"))
    assert not done.returncode, done.stderr
    said = json.loads(done.stdout)
    assert "make room and send it again" in said["said"]
    assert said["kept"] > 0
    assert said["refused"] == 3
    assert said["while_full"] == [said["kept"]]
    assert said["after"]
    assert said["last"] == said["kept"] + 5000
    assert sequences(tmp_path / "store.db") == []


def test_a_store_that_was_not_closed_says_so_and_holds_everything(tmp_path: Path) -> None:
    store = filled(tmp_path / "store.db", closed=False)
    place = copied(tmp_path / "store.db", tmp_path / "copy")
    store.close()
    again = SqliteStore(place)
    again.open(MODEL)
    assert [row.facts["last"] for row in again.read_ledger() if row.kind == "reopened"] == [2000]
    again.close()
    again.open(MODEL)
    assert len([row for row in again.read_ledger() if row.kind == "reopened"]) == 1
    again.close()
    assert sequences(place) == list(range(1, 2000, 2))


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1), noise=st.binary(max_size=40))
def test_a_log_that_was_cut_off_anywhere_leaves_whole_appends(
    share: float, noise: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("log")
    store = filled(folder / "store.db", closed=False)
    place = copied(folder / "store.db", folder / "copy")
    store.close()
    log = place.with_name("store.db-wal")
    content = log.read_bytes()
    log.write_bytes(content[: int(share * len(content))] + noise)
    found = sequences(place)
    assert found == list(range(1, 2 * len(found), 2))
    assert len(found) % 25 == 0


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_file_that_was_cut_off_or_overwritten_is_whole_or_an_error_that_says_what_to_do(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("file")
    path = folder / "store.db"
    if not (saved := tmp_path_factory.getbasetemp() / "whole.db").exists():
        filled(path)
        shutil.copy(path, saved)
    content = bytearray(saved.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        noise = np.random.default_rng(at).bytes(data.draw(st.sampled_from([1, 100, 8192, 50_000])))
        content[at : at + len(noise)] = noise
    path.write_bytes(content)
    store = SqliteStore(path)
    try:
        store.open(MODEL)
        found = {name: numbers for name, _, numbers in all_of(store)}
        said = ""
    except StoreError as error:
        found, said = {}, str(error)
    finally:
        store.close()
    if said:
        assert any(word in said for word in ("restore a backup", "another program", "with the model")), said
    else:
        assert found["b"] == list(range(1, 2000, 2))
    assert (not content[:16].startswith(b"SQLite format 3\x00")) <= (path.read_bytes()[:16] == bytes(content[:16]))


@pytest.mark.parametrize(
    "content", [b"", b"not a database at all", bytes(100_000), b"SQLite format 3\x00" + bytes(5000)]
)
def test_what_is_no_store_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)
    with pytest.raises(CorruptError, match="restore a backup"):
        SqliteStore(path).open(MODEL)
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="another program"):
        SqliteStore(path).open(MODEL)
    other = sqlite3.connect(path)
    assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    other.close()


def test_a_log_without_its_file_is_an_error(tmp_path: Path) -> None:
    store = filled(tmp_path / "store.db", closed=False)
    place = copied(tmp_path / "store.db", tmp_path / "copy")
    store.close()
    place.unlink()
    with pytest.raises(CorruptError, match="bring the file back"):
        SqliteStore(place).open(MODEL)


def test_a_store_that_was_being_made_when_its_process_died_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "store.db.new").write_bytes(b"half")
    (tmp_path / "store.db.new-wal").write_bytes(b"half")
    filled(tmp_path / "store.db")
    assert sorted(file.name for file in tmp_path.iterdir() if not file.name.endswith((".lock", ".tail"))) == [
        "store.db"
    ]


OTHER = """
import sys
from pathlib import Path
from tsgdn2.service.errors import StoreError
from tsgdn2.service.sqlite_store import SqliteStore
try:
    SqliteStore(Path(sys.argv[1])).open()
except StoreError as error:
    print(error)
"""


def test_a_second_process_and_a_second_store_are_told_that_the_file_is_in_use(tmp_path: Path) -> None:
    store = filled(tmp_path / "store.db", closed=False)
    other = subprocess.run(
        [sys.executable, "-c", OTHER, str(tmp_path / "store.db")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "in use by another process; stop that one" in other.stdout
    with pytest.raises(StoreError, match="in use"):
        SqliteStore(tmp_path / "store.db").open(MODEL)
    store.close()
    assert sequences(tmp_path / "store.db") == list(range(1, 2000, 2))


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another folder"):
        SqliteStore(tmp_path / "file" / "store.db").open(MODEL)


def test_the_file_may_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    store = filled(tmp_path / "store.db", closed=False)
    assert {oct(file.stat().st_mode)[-3:] for file in tmp_path.glob("store.db*") if file.suffix != ".lock"} == {"600"}
    store.close()


def test_the_log_stays_within_its_bound_and_pruned_room_is_used_again(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db", most_log=1 << 20)
    store.open(MODEL)
    log = tmp_path / "store.db-wal"
    longest, sizes = 0, []
    for start in range(60):
        store.append(rows(["a"] * 5000, list(range(start * 5000, (start + 1) * 5000))))
        longest = max(longest, log.stat().st_size)
        store.snapshot([snapshot("a", store.last, os.urandom(200_000))])
        store.prune()
        sizes.append((tmp_path / "store.db").stat().st_size)
    store.close()
    assert longest < 3 << 20
    assert sizes[-1] <= 2 * max(sizes[:20])
    assert not log.exists() or not log.stat().st_size


def test_an_append_costs_little_more_than_its_bytes(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    store.open(MODEL)
    before = (tmp_path / "store.db-wal").stat().st_size
    names = [f"sensor {number}" for number in range(10_000)]
    store.append(rows(names, list(range(10_000))))
    first = (tmp_path / "store.db-wal").stat().st_size
    store.append(rows(names, list(range(10_000, 20_000))))
    assert (tmp_path / "store.db-wal").stat().st_size - first < 10_000 * 48
    assert first - before < 10_000 * 160
    store.close()


def test_an_upgrade_is_done_whole_or_not_at_all(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.db", isolation_level=None)

    def upgraded(*more: tuple[str, ...]) -> tuple[int, int]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            done = bring_up(SqliteTransaction(connection), SQLITE, place="x.db", upgrades=(*UPGRADES, *more))
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        return done

    good, bad = ("ALTER TABLE keys ADD COLUMN note {text}",), ("CREATE TABLE more (x {text})", "no statement")
    assert upgraded() == (0, 1)
    connection.execute("INSERT INTO cursors VALUES ('c', 5)")
    with pytest.raises(sqlite3.OperationalError):
        upgraded(good, bad)
    assert upgraded() == (1, 1)
    assert upgraded(good) == (1, 2)
    assert connection.execute("SELECT position FROM cursors").fetchall() == [(5,)]
    assert connection.execute("SELECT note FROM keys").fetchall() == []
    with pytest.raises(StoreError, match=r"x\.db has schema 2, this version reads up to 1"):
        upgraded()
    connection.close()


def test_the_ledger_of_a_store_with_a_damaged_journal_can_still_be_read(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    filled(path)
    other = sqlite3.connect(path)
    with other:
        other.execute("UPDATE journal SET streams = x'00' WHERE first = 51")
    other.close()
    store = SqliteStore(path)
    with pytest.raises(CorruptError, match=r"rows 51 to 100 .*repair"):
        store.open(MODEL)
    store.open()
    store.record([LedgerRow(kind="looked at")])
    assert len(store.repair()) == 1
    store.close()
    assert sequences(path) == [number for number in range(1, 2000, 2) if not 50 <= number < 100]


def test_an_append_that_is_committed_is_no_error_because_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path / "store.db")
    store.open(MODEL)

    def gone(path: str) -> os.stat_result:
        raise OSError("the log can not be looked at")

    with monkeypatch.context() as broken:
        broken.setattr("tsgdn2.service.sqlite_file.os.stat", gone)
        store.append(rows(["b"], [0]))
    store.close()
    assert sequences(tmp_path / "store.db") == [0]
