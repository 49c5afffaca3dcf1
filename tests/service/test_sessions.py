"""The pool: who goes, who comes back, slots that are used again, streams that are not finite, deletion, import, TTL."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.service.predictors import batch, blobs, feed, ledger, limits, memory, observed, poison, predictor

from tsgdn2.errors import CheckpointError, ConfigError, StreamError, UnknownStreamError
from tsgdn2.service.errors import ServiceError
from tsgdn2.service.memory import Memory
from tsgdn2.service.sessions import Sessions
from tsgdn2.service.sqlite_store import SqliteStore


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def settle(made: Memory) -> None:
    """Let the worker tend to what is due."""
    for _ in range(2):
        made.ask([], len).exception()


@pytest.mark.parametrize("kind", ["tag", "replay"])
def test_under_memory_pressure_streams_leave_and_come_back_as_they_were(tmp_path: Path, kind: str) -> None:
    made, twin = memory(tmp_path, limits(3, kind=kind), kind=kind), predictor(kind)
    names = [f"s{n}" for n in range(8)]
    for step in range(12):
        for pair in (names[:2], names[2:4], names[4:6], names[6:]):
            feed(made, twin, pair, range(step, step + 1))
            assert len(made._online.streams) <= 3
            assert made.status().hot <= 3
    assert blobs(made, names) == {name: twin.take_out(name) for name in names}
    counts = Counter(kind for kind, _ in ledger(made))
    assert counts["evicted"] >= 80
    assert counts["reloaded"] == counts["evicted"] - (8 - 3)
    made.stop()


def test_the_one_used_longest_ago_leaves_and_a_reading_is_a_use(tmp_path: Path) -> None:
    made = memory(tmp_path, limits(3))
    for name in "abc":
        made.observe(batch([name], [1])).result()
    made.ask(["a"], lambda online: online.forecast("a")).result()
    made.observe(batch(["d"], [1])).result()
    assert sorted(made._online.streams) == ["a", "c", "d"]
    assert ledger(made) == [("evicted", "b")]
    made.stop()


def test_a_stream_that_has_not_changed_leaves_without_a_snapshot(tmp_path: Path) -> None:
    made = memory(tmp_path, limits(2))
    for name in "abc":
        made.observe(batch([name], [1])).result()
    written = made._store._read("SELECT COUNT(*) FROM snapshots")[0][0]
    for name in "abcabc":
        blobs(made, [name])
    assert made._store._read("SELECT COUNT(*) FROM snapshots")[0][0] == 3
    assert written == 1
    made.stop()


def test_a_request_of_more_streams_than_fit_is_one_append_and_loses_nothing(tmp_path: Path) -> None:
    made, twin = memory(tmp_path, limits(3)), predictor()
    names = [f"s{n}" for n in range(10)]
    for step in range(8):
        rows = batch(names * 2, [2 * step] * 10 + [2 * step + 1] * 10, [2 * step] * 10 + [2 * step + 1] * 10)
        found = made.observe(rows).result()
        told = list(zip(found.status, [row.tobytes() for row in found.surprise], strict=True))
        assert told == observed(twin, rows)
        assert len(made._online.streams) <= 3
        assert made.observe(rows).result().counts == {"seen": 20}
    assert made.status().last == 160
    assert blobs(made, names) == {name: twin.take_out(name) for name in names}
    with pytest.raises(ServiceError, match="at most 3 at a time"):
        made.ask(names, len).result()
    made.stop()


def test_a_slot_that_is_used_again_shows_nothing_of_the_stream_before(tmp_path: Path) -> None:
    made = memory(tmp_path, limits(2))
    for step in range(9):
        made.observe(batch(["old", "other"], [step] * 2)).result()
    slot = made._online._slots["old"]
    made.remove("old").result()
    rows = batch(["new"], [3])
    made.observe(rows).result()
    assert made._online._slots["new"] == slot
    twin = predictor()
    observed(twin, rows)
    assert blobs(made, ["new"])["new"] == twin.take_out("new")
    forecast = made.ask(["new"], lambda online: online.forecast("new").quantiles).result()
    assert forecast.tobytes() == twin.forecast("new").quantiles.tobytes()
    made.stop()


def test_a_deleted_stream_is_gone_and_its_name_begins_anew(tmp_path: Path) -> None:
    made, twin = memory(tmp_path, limits(2)), predictor()
    feed(made, predictor(), ["a", "b", "c"][:2], range(5))
    feed(made, predictor(), ["c"], range(5))  # one of the others is cold now
    for name in "abc":
        made.remove(name).result()
        with pytest.raises(UnknownStreamError):
            blobs(made, [name])
    assert made.names().result() == []
    assert [row for row in ledger(made) if row[0] == "deleted"] == [("deleted", name) for name in "abc"]
    feed(made, twin, ["a"], range(3))  # the same sequences as before: its marks are gone as well
    assert blobs(made, ["a"]) == {"a": twin.take_out("a")}
    made.stop()


def test_an_imported_state_takes_the_place_of_all_there_was(tmp_path: Path) -> None:
    made, twin, other = memory(tmp_path, limits(2)), predictor(), predictor()
    feed(made, predictor(), ["a", "b"], range(7))
    observed(other, batch(["there"] * 9, range(20, 29)))
    for name in ("a", "new"):
        made.put(name, other.take_out("there")).result()
        twin.put_in(name, other.take_out("there"))
    feed(made, twin, ["a", "new"], range(29, 33))
    assert blobs(made, ["a", "new"]) == {name: twin.take_out(name) for name in ("a", "new")}
    made.stop()
    made = memory(tmp_path, limits(2))
    assert blobs(made, ["a", "new"]) == {name: twin.take_out(name) for name in ("a", "new")}
    assert {("imported", "a"), ("imported", "new")} <= set(ledger(made))
    made.stop()


def test_a_state_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    made, twin = memory(tmp_path), predictor()
    feed(made, twin, ["a"], range(7))
    blob = made.ask(["a"], lambda online: online.take_out("a")).result()
    foreign = predictor("replay")
    observed(foreign, batch(["a"], [1]))
    broken = predictor()
    observed(broken, batch(["a"] * 7, range(7)))
    poison("a")(broken)
    for error, wrong in (
        (CheckpointError, blob[:-9]),
        (CheckpointError, b"nothing"),
        (ConfigError, foreign.take_out("a")),
        (StreamError, broken.take_out("a")),
    ):
        for name in ("a", "b"):
            with pytest.raises(error):
                made.put(name, wrong).result()
    assert made.names().result() == ["a"]
    assert made._online.streams == ("a",)
    feed(made, twin, ["a"], range(7, 9))
    assert blobs(made, ["a"]) == {"a": twin.take_out("a")}
    made.stop()


def test_streams_that_nobody_uses_expire_hot_or_cold(tmp_path: Path) -> None:
    clock = Clock()
    made = memory(tmp_path, limits(2, ttl_s=100.0), clock=clock)
    for name in "abc":  # a is cold at the end
        made.observe(batch([name], [1])).result()
        clock.now += 10
    clock.now += 75
    settle(made)
    assert made.names().result() == ["b", "c"]
    made.ask(["b"], lambda online: online.forecast("b")).result()
    clock.now += 60
    settle(made)
    assert made.names().result() == ["b"]
    assert [row for row in ledger(made) if row[0] == "expired"] == [("expired", "a"), ("expired", "c")]
    made.stop()
    made = memory(tmp_path, limits(2, ttl_s=100.0), clock=clock)  # a restart begins the time anew
    clock.now += 99
    settle(made)
    assert made.names().result() == ["b"]
    clock.now += 2
    settle(made)
    assert made.names().result() == []
    made.stop()


def test_slots_grow_to_the_limit_and_not_beyond_it(tmp_path: Path) -> None:
    for streams in (2, 16, 64, 100, 1000):
        pool = Sessions(predictor(), SqliteStore(tmp_path / "store.db"), limits(streams))
        assert pool.most == streams
        for needed in range(1, streams + 1):
            pool._reserve(needed)
        assert streams <= pool.online.slots <= max(16, streams * 1.05)
