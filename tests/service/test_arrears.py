"""Rows between the disk and the states: told as kept, applied in slices, never missed by whoever reads or leaves."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.service.predictors import batch, blobs, limits, memory, observed, predictor

from tsgdn2.service.effort import Effort
from tsgdn2.service.errors import StoreError

NAMES = ["a", "b", "c", "d", "e"]
ALONE = {"slice_s": 1e-9}
"""Every row is a slice of its own."""


def test_a_receipt_that_waits_for_the_disk_alone_says_kept_and_the_rows_are_applied_all_the_same(
    tmp_path: Path,
) -> None:
    made, twin = memory(tmp_path, limits(**ALONE)), predictor()
    first = batch(NAMES, [1] * 5, [1] * 5)
    assert made.observe(first, soon=True).result().counts == {"kept": 5}
    second = batch(NAMES, [2] * 5, [1, 2, 2, 2, 2])
    assert made.observe(second, soon=True).result().status == ("seen", *["kept"] * 4)
    observed(twin, first)
    observed(twin, second.take([1, 2, 3, 4]))
    told = made.ask(["e"], lambda online: online.forecast("e").quantiles.tobytes()).result()
    assert told == twin.forecast("e").quantiles.tobytes()
    assert blobs(made, NAMES) == {name: twin.take_out(name) for name in NAMES}
    assert "kept" not in made.spent.statuses
    assert made.spent.statuses["seen"] == 1
    made.stop()


def test_whoever_waits_for_the_disk_does_not_wait_for_the_rows_before_it(tmp_path: Path) -> None:
    made = memory(tmp_path, limits(**ALONE))
    rows = batch(NAMES * 40, np.repeat(np.arange(40), 5).tolist())
    slow, entered = threading.Event(), threading.Event()
    whole = type(made._online).observe_many

    def held(online, frame, **more):
        entered.set()
        assert slow.wait(60)
        return whole(online, frame, **more)

    made._online.observe_many = lambda frame, **more: held(made._online, frame, **more)
    early = made.observe(rows)
    assert entered.wait(60)
    made._online.observe_many = lambda frame, **more: whole(made._online, frame, **more)
    soon = made.observe(batch(["z"], [1]), soon=True)
    slow.set()
    soon.result()
    assert not early.done()  # 199 slices are still to come, and three times the commit's time is not enough for them
    assert len(early.result().status) == 200
    made.stop()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["tag", "replay"]), hot=st.integers(2, 7))
def test_rows_readings_evictions_and_deletions_in_any_order_are_those_of_the_predictor(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str, hot: int
) -> None:
    dice = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("arrears")
    made, twin = memory(folder, limits(hot, kind=kind, **ALONE), kind=kind), predictor(kind)
    waiting, expected, sequence, kept = [], [], 0, 0
    for turn in range(8):
        what = dice.integers(0, 4)
        name = NAMES[dice.integers(5)]
        if what == 0 and name in twin.streams:
            for future in waiting:
                future.result()  # a reading knows what was acknowledged, and goes before what still waits
            asked = made.ask([name], lambda online, one=name: online.forecast(one).quantiles.tobytes())
            assert asked.result() == twin.forecast(name).quantiles.tobytes()
        elif what == 1 and name in twin.streams:
            made.remove(name).result()
            twin.remove(name)
        else:
            count = int(dice.integers(1, 12))
            names = [NAMES[n] for n in dice.integers(0, 5, count)]
            rows = batch(names, (turn + dice.integers(-3, 6, count)).tolist(), list(range(sequence, sequence + count)))
            sequence += count
            expected.append((soon := bool(dice.integers(2)), observed(twin, rows)))
            waiting.append(made.observe(rows, soon=soon))
    for future, (soon, told) in zip(waiting, expected, strict=True):
        receipt = future.result()
        if soon and set(receipt.status) == {"kept"}:
            kept += 1
        else:
            found = [row.tobytes() for row in receipt.surprise]
            assert list(zip(receipt.status, found, strict=True)) == told
    # A request of more streams than may be hot is applied with its commit, and says so.
    assert kept == sum(soon for soon, _ in expected) or hot < len(NAMES)
    for name in twin.streams:
        assert blobs(made, [name]) == {name: twin.take_out(name)}
    made.stop()
    shutil.rmtree(folder)


def test_a_slice_that_fails_is_read_back_with_what_comes_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, twin = memory(tmp_path, limits(**ALONE)), predictor()
    rows = batch(["a", "b"] * 6, np.repeat(np.arange(6), 2).tolist(), list(range(12)))
    whole, calls = type(made._online).observe_many, []

    def torn(online, frame, **more):
        calls.append(frame.height)
        if len(calls) == 4:
            raise MemoryError("no memory for this")
        return whole(online, frame, **more)

    monkeypatch.setattr(type(made._online), "observe_many", torn)
    found = made.observe(rows).result()
    told = list(zip(found.status, [row.tobytes() for row in found.surprise], strict=True))
    assert told == observed(twin, rows)
    assert blobs(made, ["a", "b"]) == {stream: twin.take_out(stream) for stream in ("a", "b")}
    assert calls[:4] == [1, 1, 1, 1]
    made.stop()


def test_a_store_that_fails_while_a_slice_is_read_back_costs_no_row_and_no_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, twin = memory(tmp_path, limits(**ALONE)), predictor()
    rows = batch(["a", "b"] * 6, np.repeat(np.arange(6), 2).tolist(), list(range(12)))
    whole, calls = type(made._online).observe_many, []

    def torn(online, frame, **more):
        calls.append(frame.height)
        if len(calls) == 4:
            monkeypatch.setattr(type(made._store), "restore", unreadable)
            raise MemoryError("no memory for this")
        return whole(online, frame, **more)

    restore = type(made._store).restore

    def unreadable(store, stream):
        monkeypatch.setattr(type(made._store), "restore", restore)
        raise StoreError("store: the disk does not answer; wait until it does")

    monkeypatch.setattr(type(made._online), "observe_many", torn)
    found = made.observe(rows).result()
    told = observed(twin, rows)
    assert found.status[3] == "kept"
    same = [status == expected for status, (expected, _) in zip(found.status, told, strict=True)]
    assert sum(same) >= 11 - 4  # rows of b that its reading back has caught up with are known by their number alone
    assert blobs(made, ["a", "b"]) == {stream: twin.take_out(stream) for stream in ("a", "b")}
    assert made.observe(rows).result().counts == {"seen": 12}
    assert made.status().ready
    made.stop()


def test_a_fault_right_behind_the_append_loses_no_row(tmp_path: Path) -> None:
    made, twin = memory(tmp_path, limits(**ALONE)), predictor()
    first, second = batch(NAMES, [1] * 5, [1] * 5), batch(NAMES, [2] * 5, [2] * 5)
    made.observe(first).result()
    effort = made._arrears._effort
    seconds = effort.seconds

    def torn(rows):
        effort.seconds = seconds
        raise MemoryError("no memory for this")

    effort.seconds = torn
    assert made.observe(second).result().counts == {"kept": 5}
    assert made.observe(second).result().counts == {"seen": 5}
    observed(twin, first)
    observed(twin, second)
    assert blobs(made, NAMES) == {name: twin.take_out(name) for name in NAMES}
    made.stop()


def test_a_fault_while_others_make_room_costs_a_stream_of_the_group_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, twin = memory(tmp_path, limits(3, **ALONE)), predictor()
    rows = batch(["a", "b", "c"] * 4, np.repeat(np.arange(4), 3).tolist(), list(range(12)))
    made.observe(rows).result()
    observed(twin, rows)
    owed = batch(["a", "b", "c"], [5] * 3, [20] * 3)
    check, calls = type(made._arrears)._check, []

    def torn(arrears, streams, *about):
        calls.append(streams)
        if len(calls) == 2:
            raise MemoryError("no memory for this")
        return check(arrears, streams, *about)

    monkeypatch.setattr(type(made._arrears), "_check", torn)
    made.observe(owed, soon=True).result()
    observed(twin, owed)
    late = batch(["d", "b"], [6, 6], [1, 21])
    made.observe(late).result()
    observed(twin, late)
    assert made.observe(owed).result().counts == {"seen": 3}
    for name in twin.streams:
        assert blobs(made, [name]) == {name: twin.take_out(name)}
    made.stop()


def test_what_is_owed_at_the_end_is_applied_and_snapshotted(tmp_path: Path) -> None:
    made, twin = memory(tmp_path, limits(**ALONE)), predictor()
    rows = batch(NAMES * 20, np.repeat(np.arange(20), 5).tolist())
    future = made.observe(rows, soon=True)
    made.stop()
    assert future.result().counts == {"kept": 100}
    observed(twin, rows)
    made = memory(tmp_path)
    assert blobs(made, NAMES) == {name: twin.take_out(name) for name in NAMES}
    made.stop()


def test_effort_is_that_of_the_patches_that_close_and_learns_from_what_it_took() -> None:
    online = predictor()
    effort = Effort(online)
    calm = effort.seconds(batch(NAMES, [0] * 5))
    assert np.ptp(calm) == 0  # streams that are new close nothing
    observed(online, batch(NAMES, [0] * 5))
    closing = effort.seconds(batch(["a", "a", "b", "new"], [3, 6, 1, 9]))
    assert closing[0] > 5 * closing[2] == 5 * closing[3] == 5 * calm[0]
    assert closing[1] >= closing[0]
    many = batch(["a"] * 9 + ["b"], [3, 6, 9, 12, 15, 18, 21, 24, 27, 3])
    assert (effort.seconds(many) > 5 * calm[0]).all()
    assert (effort.seconds(batch(["a", "a", "a"], [3, 4, 1])) > 5 * calm[0]).tolist() == [True, False, False]
    assert (effort.seconds(batch(["new", "new"], [3, 6])) > 5 * calm[0]).tolist() == [False, True]
    assert not len(effort.seconds(batch([], [])))
    for turn in range(300):  # a machine of three times the pace, whose calls cost ten milliseconds
        rows = effort.seconds(batch(["a"] * (turn % 5 + 1), [3 * n + 3 for n in range(turn % 5 + 1)])).sum()
        effort.learn(rows, 10e-3 + rows / effort.factor / 3)
    assert effort.call == pytest.approx(10e-3, rel=0.05)
    assert effort.factor == pytest.approx(1 / 3, rel=0.05)
    effort.learn(1e-3, 60.0)
    assert effort.factor == pytest.approx(1 / 3, rel=0.5)
