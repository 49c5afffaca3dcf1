"""Files that are not what was written: what comes back is whole, or an error says what to do; nothing in silence."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from tests.service.endtoend.conftest import Serving
from tests.service.endtoend.evidence import compare_states, twin_of
from tests.service.endtoend.flow import Sent, body_of, first_rows, name_of
from tests.service.endtoend.lives import Service

STREAMS = 5
ROWS = first_rows(900, seed=3, streams=STREAMS)


def send(made: Service, rows: list[Sent], size: int = 90) -> None:
    """Rows in requests of some; each is answered."""
    for start in range(0, len(rows), size):
        answer = made.client.post("/v1/observe/batch", json=body_of(rows[start : start + size]))
        assert answer.status_code == 200, answer.text
        assert "refused" not in answer.json()["counts"], answer.text


def flip(made: Service, stream: str, place: int) -> None:
    """Change one byte of a snapshot in the file; place 0 is the newest of the stream."""
    connection = sqlite3.connect(f"file:{made.store}?mode=ro", uri=True)
    found = connection.execute(
        "SELECT blob FROM snapshots JOIN streams ON id = stream WHERE name = ? ORDER BY seq DESC", (stream,)
    ).fetchall()
    connection.close()
    blob, content = found[place][0], made.store.read_bytes()
    pieces = (blob[start : start + 24] for start in range(0, len(blob), 24))
    piece = next(piece for piece in pieces if content.count(piece) == 1)
    with made.store.open("r+b") as file:
        file.seek(content.index(piece) + 11)
        file.write(bytes([piece[11] ^ 0x10]))


def test_a_flipped_byte_in_a_snapshot_costs_time_and_two_cost_their_stream_alone(serving: Serving) -> None:
    made, twin = serving(), twin_of(ROWS)
    for part in (ROWS[:400], ROWS[400:800]):
        made.start().ready()
        send(made, part)
        made.stop()
    one, two = name_of(1), name_of(2)
    flip(made, one, 0)
    flip(made, two, 0)
    flip(made, two, 1)
    made.start().ready()
    send(made, [row for row in ROWS[800:] if row.stream != 2])
    others = [name for name in twin.streams if name != two]
    twin.remove(two)
    compare_states(made.blobs(others), twin)
    told = {(row["stream"], row["facts"]["what"]) for row in made.ledger("corrupt")}
    assert told == {(one, "snapshot"), (two, "snapshot"), (two, "damage")}
    said = made.events("store.snapshot_corrupt")
    assert sorted(line["stream"] for line in said) == [one, two, two]
    assert all("takes its place" in line["remedy"] for line in said)
    (aside,) = made.events("memory.set_aside")
    assert aside["stream"] == two
    assert "restore a backup, or delete the stream" in aside["reason"]
    answer = made.client.post("/v1/observe/batch", json=body_of([row for row in ROWS[800:] if row.stream == 2]))
    assert set(answer.json()["counts"]) == {"refused"}
    assert "restore a backup" in answer.json()["reasons"]["0"]
    made.stop()


def test_a_file_that_was_cut_off_anywhere_is_a_clear_error_and_is_left_as_it_is(serving: Serving) -> None:
    made = serving()
    made.start().ready()
    send(made, ROWS[:600])
    made.stop()
    whole = made.store.read_bytes()
    for cut in (0, 7, 100, 8_192, len(whole) // 2 // 8_192 * 8_192, len(whole) // 2 + 77, len(whole) - 8_192):
        made.store.write_bytes(whole[:cut])
        made.start()
        assert made.ended() == 1, cut
        assert "CorruptError" in made.said
        assert "restore a backup" in made.said
        (line,) = made.events("service.not_opened")
        assert str(made.store) in line["error"]
        assert made.store.read_bytes() == whole[:cut]
    made.store.write_bytes(whole)
    made.start().ready()
    send(made, ROWS[600:])
    twin = twin_of(ROWS)
    compare_states(made.blobs(twin.streams), twin)
    made.stop()


def test_a_journal_whose_block_was_changed_is_a_clear_error(serving: Serving) -> None:
    made = serving()
    made.start().ready()
    send(made, ROWS[:600])
    made.kill()
    connection = sqlite3.connect(made.store)
    first = connection.execute("SELECT first FROM journal ORDER BY first LIMIT 1 OFFSET 2").fetchone()[0]
    with connection:
        connection.execute("UPDATE journal SET body = substr(body, 1, length(body) - 9) WHERE first = ?", (first,))
    connection.close()
    made.start()
    assert made.ended() == 1
    (line,) = made.events("service.not_opened")
    assert f"journal: rows {first} to" in line["error"]
    assert "restore a backup" in line["error"]


@pytest.mark.parametrize("how", ["cut", "cut at a frame", "gone", "changed"])
def test_a_log_that_lost_its_end_comes_back_as_it_was_then_and_the_service_says_what_is_missing(
    serving: Serving, tmp_path: Path, how: str
) -> None:
    made = serving(LIMITS__SNAPSHOT_AFTER_S="3600")
    made.start().ready()
    send(made, ROWS[:200])
    made.stop()
    made.start().ready()
    send(made, ROWS[200:650])
    made.kill()
    log = made.store.with_name("store.db-wal")
    content = log.read_bytes()
    frames = (len(content) - 32) // (24 + 8_192)
    if how == "gone":
        log.unlink()
    elif how == "changed":
        at = 32 + (24 + 8_192) * (frames // 2) + 100
        log.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    else:
        log.write_bytes(content[: 32 + (24 + 8_192) * (frames // 2) + (1_000 if how == "cut" else 0)])
    made.start().ready()
    (line,) = made.events("store.rows_missing")
    assert line["level"] == "error"
    last, missing = line["last"], line["missing"]
    assert "have the sources send them again" in line["remedy"]
    (row,) = made.ledger("corrupt")
    assert row["facts"]["what"] == "log"
    assert row["facts"]["missing"] == missing
    distinct = list(dict.fromkeys(ROWS[:650]))
    assert last + missing == len(distinct)
    assert missing > 0
    twin = twin_of(distinct[:last])
    compare_states(made.blobs(twin.streams), twin)
    send(made, ROWS)
    twin = twin_of(ROWS)
    compare_states(made.blobs(twin.streams), twin)
    made.stop()
    made.start().ready()
    assert not made.events("store.rows_missing")
    made.stop()


def test_a_new_file_in_the_place_of_one_that_was_moved_away_misses_nothing(serving: Serving) -> None:
    made = serving()
    made.start().ready()
    send(made, ROWS[:90])
    made.stop()
    made.store.rename(made.store.with_name("moved.db"))
    made.start().ready()
    send(made, ROWS[:20])
    made.kill()
    made.start().ready()
    assert not made.events("store.rows_missing")
    assert not made.ledger("corrupt")
    twin = twin_of(ROWS[:20])
    compare_states(made.blobs(twin.streams), twin)
    made.stop()
