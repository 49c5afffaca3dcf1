"""What the ledger is told of rows and states: alerts, late rows, forgotten writes, each once, also after a crash."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from tests.service.predictors import HOUR, batch, limits, memory, predictor

from tsgdn2.audit import AuditConfig
from tsgdn2.service import tidings
from tsgdn2.service.batch import Batch
from tsgdn2.service.memory import Memory
from tsgdn2.service.sqlite_store import SqliteStore

AUDIT = {"audit": AuditConfig(threshold=0.9)}


def audited(folder: Path, **more) -> Memory:
    """A memory whose predictor keeps books of its states."""
    made = Memory(predictor(**AUDIT), SqliteStore(folder / "store.db"), limits(), **more)
    made.start()
    return made


def surprising(step: int, value: float = 1e6) -> Batch:
    """A row of two streams whose first channel is far out in stream a."""
    rows = batch(["a", "b"], [step] * 2, [step] * 2)
    values = np.where(np.isnan(rows.values), 10.0, rows.values)
    values[0, 0] = value
    return Batch.of(rows.streams, rows.times, values, sources=rows.sources, sequences=rows.sequences)


def told(made: Memory, kind: str) -> list[tuple[str, dict]]:
    """Rows of the ledger of one kind, with what waits."""
    made.ask([], lambda _: (made._tidings.tell(now=True), made._sessions.flush())).result()
    return [(row.stream, dict(row.facts)) for row in made._store.read_ledger(0, 10_000) if row.kind == kind]


def copied(folder: Path, to: Path) -> Path:
    """The store as a machine without power leaves it."""
    to.mkdir()
    for path in folder.glob("store.db*"):
        if path.suffix != ".lock":
            shutil.copy(path, to / path.name)
    return to


def test_a_surprise_is_an_alert_with_its_channel_and_its_row(tmp_path: Path) -> None:
    made = memory(tmp_path, alert_bits=6.0)
    for step in range(8):
        made.observe(batch(["a", "b"], [step] * 2, [step] * 2)).result()
    found = made.observe(surprising(8)).result()
    alerts = [facts for stream, facts in told(made, "alert") if stream == "a" and facts["row"] == 17]
    assert alerts == [{"channel": "x", "bits": round(float(found.surprise[0, 0]), 3), "at": 8 * HOUR, "row": 17}]
    assert found.surprise[0, 0] >= 6.0
    made.stop()


def test_late_rows_are_counted_by_their_stream(tmp_path: Path) -> None:
    made = memory(tmp_path)
    for step in range(9):
        made.observe(batch(["a", "b"], [step] * 2)).result()
    found = made.observe(surprising(1)).result()
    assert found.status == ("late", "late")
    assert made.observe(surprising(2)).result().status[1] == "late"
    assert sorted(told(made, "late")) == [("a", {"rows": 2}), ("b", {"rows": 2})]
    made.stop()


def test_writes_that_the_state_forgets_are_told_with_their_cause(tmp_path: Path) -> None:
    made, twin = audited(tmp_path), predictor(**AUDIT)
    for step in range(60):
        rows = batch(["a", "b"], [step] * 2)
        made.observe(rows).result()
        for row in range(2):
            twin.observe(rows.streams[row], int(rows.times[row]), rows.values[row])
    expected = sorted(
        (one.stream, one.channel, one.eviction.cause, (one.eviction.birth + 1) * HOUR) for one in twin.evictions()
    )
    assert len(expected) > 5
    found = told(made, "forgotten")
    assert sorted((stream, f["channel"], f["cause"], f["written"]) for stream, f in found) == expected
    assert {f["cause"] for _, f in found} <= {"decay", "erase"}
    made.stop()


def test_what_a_replay_tells_again_stands_in_the_ledger_once(tmp_path: Path) -> None:
    made = audited(tmp_path, alert_bits=6.0)
    for step in range(40):
        made.observe(surprising(step, 1e6 if step % 7 == 0 else 10.0)).result()
        if step == 20:
            told(made, "alert")
    half = told(made, "alert"), told(made, "forgotten")
    for step in range(40, 50):
        made.observe(surprising(step, 1e6 if step % 7 == 0 else 10.0)).result()
    # What of these last rows is not in the ledger yet is lost with the process, and told by the replay.
    again = audited(copied(tmp_path, tmp_path / "crashed"), alert_bits=6.0)
    whole = told(made, "alert"), told(made, "forgotten")
    assert len(whole[0]) > len(half[0]) > 3
    assert len(whole[1]) > len(half[1]) > 3

    def ordered(rows: list) -> list:
        return sorted((stream, sorted((name, str(value)) for name, value in facts.items())) for stream, facts in rows)

    assert ordered(told(again, "alert")) == ordered(whole[0])
    assert ordered(told(again, "forgotten")) == ordered(whole[1])
    made.stop()
    again.stop()


def test_a_stream_that_leaves_and_comes_back_tells_nothing_again(tmp_path: Path) -> None:
    made = audited(tmp_path)
    for step in range(40):
        made.observe(batch(["a", "b"], [step] * 2)).result()
    made.ask([], lambda _: made._sessions.keep(["a", "b"])).result()
    first = told(made, "forgotten")
    assert len(first) > 5
    for _ in range(3):
        made.ask([], lambda _: (made._sessions.keep(["a", "b"]), made._sessions.drop(["a", "b"]))).result()
        made.ask(["a", "b"], lambda online: online.streams).result()
        assert told(made, "forgotten") == first
    made.stop()


def test_a_burst_is_told_by_its_number(tmp_path: Path) -> None:
    made = memory(tmp_path, alert_bits=6.0)
    names = [f"s{n:03d}" for n in range(tidings.MOST + 60)]
    for step in range(4):
        made.observe(batch(names, [step] * len(names))).result()
    told(made, "alert")
    rows = batch(names, [4] * len(names))
    values = np.full_like(rows.values, 1e6)
    made.observe(Batch.of(rows.streams, rows.times, values)).result()
    alerts = told(made, "alert")
    single = [facts for stream, facts in alerts if stream and facts["at"] == 4 * HOUR]
    more = [facts["more"] for stream, facts in alerts if not stream]
    assert len(single) + sum(more) == 2 * len(names)
    assert more
    assert len(single) >= tidings.MOST
    made.stop()
