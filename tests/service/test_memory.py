"""The memory from outside: receipts, refusals, readings, order, a full queue, a predictor that fails."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from tests.service.predictors import CHANNELS, HOUR, batch, blobs, limits, memory, observed, predictor

from tsgdn2.errors import ConfigError, SchemaError, StreamError, UnknownStreamError
from tsgdn2.service.batch import Batch
from tsgdn2.service.errors import BusyError, ServiceError
from tsgdn2.service.limits import Limits
from tsgdn2.service.memory import Memory
from tsgdn2.service.sqlite_store import SqliteStore


def held(made: Memory) -> tuple[threading.Event, Future[bool]]:
    """The worker stands still until the event is set."""
    gate, entered = threading.Event(), threading.Event()

    def wait(_: object) -> bool:
        entered.set()
        return gate.wait(60)

    future = made.ask([], wait)
    assert entered.wait(60)
    return gate, future


@pytest.mark.parametrize("kind", ["tag", "replay"])
def test_receipts_and_states_are_those_of_the_predictor_row_by_row(tmp_path: Path, kind: str) -> None:
    made, twin = memory(tmp_path, kind=kind), predictor(kind)
    dice = np.random.default_rng(1)
    for part in range(20):
        names = [f"s{n}" for n in dice.integers(0, 6, 12)]
        rows = batch(names, (part * 2 + dice.integers(-6, 4, 12)).tolist())
        found = made.observe(rows).result()
        assert list(zip(found.status, [row.tobytes() for row in found.surprise], strict=True)) == observed(twin, rows)
        assert not found.reasons
    assert blobs(made, twin.streams) == {stream: twin.take_out(stream) for stream in twin.streams}
    spent = made.spent
    assert (spent.groups, spent.rows, sum(spent.statuses.values())) == (20, 240, 240)
    made.stop()


def test_one_bad_row_is_refused_with_its_reason_and_its_neighbours_go_on(tmp_path: Path) -> None:
    made, twin = memory(tmp_path), predictor()
    good = batch(["a", "b", "c", "d", "e", "f"], [1] * 6)
    values = good.values.copy()
    values[1, 0], values[2, 1], values[5, 0] = np.inf, 1e101, -np.inf
    times = good.times.copy()
    times[3] = np.iinfo(np.int64).max - 5
    names = [*good.streams[:4], "", "f"]
    found = made.observe(made.admission.columns(names, times, values)).result()
    assert found.status == ("new", *["refused"] * 5)
    assert sorted(found.reasons) == [1, 2, 3, 4, 5]
    assert "infinite" not in found.reasons[1]
    assert "'x' is inf" in found.reasons[1]
    assert "'y' is 1e+101" in found.reasons[2]
    assert "leaves no room" in found.reasons[3]
    assert "not empty" in found.reasons[4]
    observed(twin, good.take([0]))
    assert blobs(made, ["a"]) == {"a": twin.take_out("a")}
    assert made.names().result() == ["a"]
    assert made.status().last == 1
    made.stop()


def test_a_batch_of_refused_rows_and_one_without_rows_are_answered_at_once(tmp_path: Path) -> None:
    made = Memory(predictor(), SqliteStore(tmp_path / "store.db"))
    found = made.observe(Batch.of(["a"], [0], [[1e200, np.nan]])).result(0)
    assert found.status == ("refused",)
    assert made.observe(batch([], [])).result(0).status == ()
    with pytest.raises(SchemaError, match="channels"):
        made.observe(Batch.of(["a"], [0], [[1.0]]))


def test_rows_sent_again_are_seen_and_change_nothing(tmp_path: Path) -> None:
    made = memory(tmp_path)
    rows = batch(["a", "b", "a"], [1, 1, 2], [7, 7, 8])
    assert made.observe(rows).result().counts.keys() <= {"new", "missing"}
    before = blobs(made, ["a", "b"])
    assert made.observe(rows).result().status == ("seen", "seen", "seen")
    assert made.observe(Batch.concat([rows, rows])).result().counts == {"seen": 6}
    assert made.observe(batch(["a"], [3], [5000])).result().status[0] in ("new", "missing")
    assert made.observe(batch(["a"], [4], [9])).result().status == ("behind",)
    assert blobs(made, ["b"])["b"] == before["b"]
    assert made.status().last == 4
    made.stop()


def test_rows_of_one_caller_are_taken_in_their_order_and_gather_into_groups(tmp_path: Path) -> None:
    made, twin = memory(tmp_path), predictor()
    gate, waiting = held(made)
    parts = [batch(["a", "b"], [step, 2 * step]) for step in range(60)]
    futures = [made.observe(part) for part in parts]
    gate.set()
    assert waiting.result()
    for part, future in zip(parts, futures, strict=True):
        assert list(future.result().status) == [status for status, _ in observed(twin, part)]
    assert blobs(made, ["a", "b"]) == {stream: twin.take_out(stream) for stream in ("a", "b")}
    assert made.spent.groups == 1
    made.stop()


def test_many_threads_at_once_each_get_their_own_receipts(tmp_path: Path) -> None:
    made, twin = memory(tmp_path, limits(5)), predictor()
    expected, found = {}, {}

    def work(name: str, parts: list[Batch]) -> None:
        futures = [made.observe(part, tenant=name) for part in parts]
        found[name] = [future.result() for future in futures]

    threads = []
    for n in range(8):
        parts = [
            batch([f"s{n}"] * 3, [3 * k, 3 * k + 1, 3 * k - n % 3], [3 * k, 3 * k + 1, 3 * k + 2]) for k in range(8)
        ]
        expected[f"s{n}"] = [observed(twin, part) for part in parts]
        threads.append(threading.Thread(target=work, args=(f"s{n}", parts)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, receipts in found.items():
        told = [list(zip(one.status, [row.tobytes() for row in one.surprise], strict=True)) for one in receipts]
        assert told == expected[name]
    assert blobs(made, twin.streams) == {stream: twin.take_out(stream) for stream in twin.streams}
    made.stop()


def test_a_full_queue_says_when_to_come_again_and_takes_nothing(tmp_path: Path) -> None:
    bounds = limits(queue_rows=20, queue_reads=2, tenant_share=0.5)
    made = memory(tmp_path, bounds)
    made.observe(batch(["a"] * 10, range(10))).result()
    gate, waiting = held(made)
    for tenant in ("", "t"):
        made.observe(batch(["b"] * 8, range(8)), tenant=tenant)
    with pytest.raises(BusyError, match=r"share of 10 waiting rows is full \(8 wait\)") as busy:
        made.observe(batch(["b"] * 4, range(8, 12)), tenant="t")
    assert 0 < busy.value.retry_after <= 60
    assert made.status().queued_rows == 16
    made.observe(batch(["c"] * 4, range(4)), tenant="u")
    with pytest.raises(BusyError, match="20 rows wait, the limit is 20 rows"):
        made.observe(batch(["c"], [4]))
    with pytest.raises(ServiceError, match="may have 20 rows"):
        made.observe(batch(["c"] * 21, range(21)))
    readings = [made.ask(["b"], lambda online: online.counters("b")) for _ in range(2)]
    with pytest.raises(BusyError, match="2 readings wait"):
        made.ask([], len)
    gate.set()
    assert waiting.result()
    with pytest.raises(UnknownStreamError):  # readings go first, and b was not there yet
        readings[0].result()
    assert made.ask(["b"], lambda online: online.counters("b")["observations"]).result() == 16
    made.observe(batch(["c"], [4])).result()
    assert made.status().queued_rows == made.status().queued_bytes == 0
    made.stop()


def test_bytes_are_bounded_too(tmp_path: Path) -> None:
    made = memory(tmp_path, limits(queue_bytes=1000))
    with pytest.raises(ServiceError, match="1000 bytes at most"):
        made.observe(batch(["a"] * 40, range(40)))
    gate, _ = held(made)
    made.observe(batch(["a"] * 12, range(12)))
    with pytest.raises(BusyError, match="the limit is 65536 rows, 1000 bytes"):
        made.observe(batch(["a"] * 12, range(12, 24)))
    gate.set()
    made.stop()


def test_what_was_cancelled_before_its_turn_is_left_out(tmp_path: Path) -> None:
    made = memory(tmp_path)
    gate, _ = held(made)
    first, second = made.observe(batch(["a"], [1])), made.observe(batch(["a"], [2]))
    assert first.cancel()
    gate.set()
    second.result()
    assert made.ask(["a"], lambda online: online.counters("a")["observations"]).result() == 1
    assert made.status().queued_rows == 0
    made.stop()


def test_readings_are_the_predictors_own_and_their_errors_are_the_askers(tmp_path: Path) -> None:
    made, twin = memory(tmp_path), predictor()
    rows = batch(["a", "b"] * 10, np.repeat(np.arange(10), 2).tolist())
    made.observe(rows).result()
    observed(twin, rows)
    told = made.ask(["a"], lambda online: online.forecast("a").quantiles).result()
    assert told.tobytes() == twin.forecast("a").quantiles.tobytes()
    assert (
        made.ask(["a", "b"], lambda online: online.forecast_many(["a", "b"]))
        .result()
        .equals(twin.forecast_many(["a", "b"]))
    )
    with pytest.raises(UnknownStreamError, match="'nobody' has not been observed"):
        made.ask(["nobody"], len).result()
    with pytest.raises(ConfigError, match="horizon"):
        made.ask(["a"], lambda online: online.forecast("a", 99)).result()
    with pytest.raises(UnknownStreamError):
        made.remove("nobody").result()
    assert made.observe(batch(["a"], [30])).result().status
    made.stop()


def test_after_the_end_everything_is_refused_and_what_waited_was_done(tmp_path: Path) -> None:
    made = memory(tmp_path)
    gate, _ = held(made)
    last = made.observe(batch(["a"], [1]))
    asked = [made.ask([], lambda online: len(online.streams)) for _ in range(100)]
    stopper = threading.Thread(target=made.stop)
    stopper.start()
    gate.set()
    stopper.join()
    assert last.result().status
    assert {future.result() for future in asked} <= {0, 1}
    for call in (lambda: made.observe(batch(["a"], [2])), lambda: made.ask([], len), lambda: made.remove("a")):
        with pytest.raises(BusyError, match="stopping"):
            call()
    assert not made.status().ready
    made.stop()


def test_a_predictor_that_can_not_take_every_row_is_refused_at_once(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    with pytest.raises(ConfigError, match='late is "raise"'):
        Memory(predictor(late="raise"), store)
    used = predictor()
    observed(used, batch(["a"], [1]))
    with pytest.raises(ConfigError, match="must begin without streams"):
        Memory(used, store)
    with pytest.raises(ConfigError, match="at least two streams"):
        Memory(predictor(), store, Limits(memory_bytes=1000))
    with pytest.raises(ConfigError, match="group_rows"):
        Limits(group_rows=0)
    with pytest.raises(ConfigError, match="tenant_share"):
        Limits(tenant_share=1.5)


def test_a_store_of_another_model_or_policy_is_refused_at_the_start(tmp_path: Path) -> None:
    made = memory(tmp_path)
    made.observe(batch(["a"], [1])).result()
    made.stop()
    other = Memory(predictor("replay"), SqliteStore(tmp_path / "store.db"), limits(kind="replay"))
    with pytest.raises(ServiceError, match="the store holds states of the model"):
        other.start()
    assert "the store holds states" in other.status().reason
    with pytest.raises(ServiceError, match="it has ended"):
        other.observe(batch(["a"], [1]))


def test_rows_far_ahead_of_the_clock_can_be_refused(tmp_path: Path) -> None:
    made = memory(tmp_path, limits(most_ahead_s=3600))
    found = made.observe(Batch.of(["a", "a"], [0, 2**62], [[1.0, 2.0], [1.0, 2.0]])).result()
    assert found.status == ("new", "refused")
    assert "ahead of this machine's clock" in found.reasons[1]
    made.stop()


def test_times_are_in_nanoseconds_and_channels_have_names(tmp_path: Path) -> None:
    made = memory(tmp_path)
    assert made.channels == CHANNELS
    stamps = np.array(["2026-01-01T00:00", "NaT"], "datetime64[s]")
    found = made.observe(made.admission.columns(["a", "a"], stamps, [[1.0, 2.0]] * 2)).result()
    assert found.status == ("new", "refused")
    assert "no time" in found.reasons[1]
    clock = made.ask(["a"], lambda online: online.forecast("a").times[0]).result()
    assert clock == np.datetime64("2026-01-01T01:00") == np.datetime64(HOUR, "ns") + (stamps[0] - np.datetime64(0, "s"))
    with pytest.raises(SchemaError, match="must be of 1 rows"):
        made.admission.columns(["a"], [1], [[1.0]])
    with pytest.raises(StreamError, match="not empty"):
        made.put("", b"")
    made.stop()
