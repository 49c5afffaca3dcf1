"""Faults inside: states that are not finite, snapshots that are not what was written, a predictor that fails midway."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.service.predictors import batch, blobs, feed, ledger, limits, memory, observed, poison, predictor

from tsgdn2.errors import StreamError


def test_a_stream_that_is_not_finite_is_set_aside_and_the_others_of_its_group_go_on(tmp_path: Path) -> None:
    made, twin = memory(tmp_path), predictor()
    names = ["a", "bad", "c"]
    feed(made, twin, names, range(5))
    made.ask(["bad"], poison("bad")).result()
    rows = batch(names, [8] * 3, [8] * 3)
    found, told = made.observe(rows).result(), observed(twin, rows)
    assert [found.status[n] for n in (0, 2)] == [told[n][0] for n in (0, 2)]
    assert found.status[1] == "refused"
    assert "'bad' is set aside, the reference forecast is not finite" in found.reasons[1]
    assert np.isnan(found.surprise[1]).all()
    again = made.observe(batch(names, [9] * 3, [9] * 3)).result()
    assert again.status[1] == "refused"
    assert "refused" not in (again.status[0], again.status[2])
    assert made.status().aside == 1
    assert list(made.aside) == ["bad"]
    with pytest.raises(StreamError, match="delete the stream or import a sound state"):
        made.ask(["bad"], len).result()
    assert ledger(made, "bad") == [("poisoned", "bad")]
    observed(twin, batch(["a", "c"], [9, 9]))
    assert blobs(made, ["a", "c"]) == {name: twin.take_out(name) for name in ("a", "c")}
    made.remove("bad").result()
    assert made.observe(batch(["bad"], [1], [1])).result().status[0] in ("new", "missing")
    made.stop()


def test_a_fault_that_was_not_in_the_data_is_gone_after_a_restart(tmp_path: Path) -> None:
    made, twin = memory(tmp_path), predictor()
    feed(made, twin, ["bad"], range(5))
    made.ask(["bad"], poison("bad")).result()
    rows = batch(["bad"], [8], [8])
    assert made.observe(rows).result().status == ("refused",)
    observed(twin, rows)  # it was on the disk when the fault was found
    made.stop()
    made = memory(tmp_path)
    assert blobs(made, ["bad"]) == {"bad": twin.take_out("bad")}
    made.stop()


def test_a_fault_that_no_row_has_met_yet_never_gets_into_a_snapshot(tmp_path: Path) -> None:
    made, twin = memory(tmp_path, limits(2)), predictor()
    feed(made, twin, ["bad"], range(8))
    made.ask(["bad"], poison("bad")).result()
    feed(made, twin, ["a", "b"], range(8))  # the stream would leave now
    assert list(made.aside) == ["bad"]
    made.stop()
    made = memory(tmp_path)
    assert blobs(made, ["bad"]) == {"bad": twin.take_out("bad")}
    made.stop()


def test_huge_and_tiny_values_leave_every_stream_finite(tmp_path: Path) -> None:
    made, twin = memory(tmp_path), predictor()
    for step, value in enumerate([1e100, -1e100, 0.0, 1e-300, 1e100, 1.0] * 4):
        rows = batch(["huge", "calm"], [step] * 2)
        values = rows.values.copy()
        values[0] = value
        rows = type(rows).of(rows.streams, rows.times, values)
        assert list(made.observe(rows).result().status) == [status for status, _ in observed(twin, rows)]
    assert made.status().aside == 0
    made.stop()


def test_a_corrupt_snapshot_costs_time_and_a_lost_one_its_stream_alone(tmp_path: Path) -> None:
    made, twin = memory(tmp_path, limits(4, journal_rows=10)), predictor()
    for step in range(0, 40, 2):
        feed(made, twin, ["a", "b"], range(step, step + 2))
    made.stop()
    damage = sqlite3.connect(tmp_path / "store.db")
    with damage:
        damage.execute(
            "UPDATE snapshots SET blob = zeroblob(length(blob)) WHERE stream = 1 AND seq = "
            "(SELECT MAX(seq) FROM snapshots WHERE stream = 1)"
        )
        damage.execute("UPDATE snapshots SET blob = zeroblob(length(blob)) WHERE stream = 2")
    damage.close()
    made = memory(tmp_path, limits(4))
    assert blobs(made, ["a"]) == {"a": twin.take_out("a")}
    with pytest.raises(StreamError, match="no snapshot of 'b' is what was written"):
        blobs(made, ["b"])
    found = made.observe(batch(["a", "b"], [50] * 2, [50] * 2)).result()
    assert found.status[1] == "refused"
    assert found.status[0] != "refused"
    assert Counter(ledger(made))[("corrupt", "b")] == 3  # two snapshots, and what that means
    made.stop()


def test_the_predictor_failing_in_a_group_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, twin = memory(tmp_path), predictor()
    rows = batch(["a", "b"] * 6, np.repeat(np.arange(6), 2).tolist(), list(range(12)))
    made.observe(rows.take(range(6))).result()
    observed(twin, rows.take(range(6)))
    whole = type(made._online).observe_many

    def torn(online, frame, **more):  # half of the rows, and then no memory
        monkeypatch.undo()
        whole(online, frame[:3], **more)
        raise MemoryError("no memory for this")

    monkeypatch.setattr(type(made._online), "observe_many", torn)
    found = made.observe(rows.take(range(6, 12))).result()
    told = list(zip(found.status, [row.tobytes() for row in found.surprise], strict=True))
    assert told == observed(twin, rows.take(range(6, 12)))
    assert blobs(made, ["a", "b"]) == {stream: twin.take_out(stream) for stream in ("a", "b")}
    assert made.observe(rows).result().counts == {"seen": 12}
    made.stop()
