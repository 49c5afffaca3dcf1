"""The memory beside a predictor that is never interrupted: restarts, kill -9, a full disk, any order of what comes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.service.predictors import batch, blobs, limits, memory, observed, predictor
from tests.service.rememberer import STREAMS, row
from tests.service.shelves import execute, place, store_at

from tsgdn2.errors import StreamError
from tsgdn2.service.errors import StoreError
from tsgdn2.service.memory import Memory

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("a", "b", "c", "d", "ü")
TTL = 100.0
LIVES = 10


class MemoryBesideTwin(RuleBasedStateMachine):
    """The twin: a predictor that sees each row that was not seen before, and knows of no store, pool or restart."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.now = 0.0
        self.twin = predictor(self.kind)
        self.seen: dict[str, set[int]] = {}
        self.steps: dict[str, int] = {}
        self.used: dict[str, float] = {}
        self.next = 0
        self.begin()

    def begin(self) -> None:
        bounds = limits(3, kind=self.kind, ttl_s=TTL, journal_rows=60, snapshot_after_s=0.0, group_rows=16)
        self.memory = memory(self.folder, bounds, kind=self.kind, clock=lambda: self.now)

    def teardown(self) -> None:
        try:
            self.compare()
        finally:
            self.memory.stop()
            self.stack.close()

    @rule(data=st.data())
    def observe(self, data: st.DataObject) -> None:
        futures, expected = [], []
        for _ in range(data.draw(st.integers(1, 3))):
            names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=9))
            steps, numbers, fresh = [], [], []
            for at, name in enumerate(names):
                known = sorted(self.seen.get(name, ()))
                again = bool(known) and data.draw(st.integers(0, 4)) == 0
                numbers.append(data.draw(st.sampled_from(known)) if again else self.next)
                self.next += not again
                here = self.steps.get(name, 0)
                steps.append(here + data.draw(st.sampled_from((1, 1, 1, 2, 5, 0, -1, -4))))
                self.steps[name] = max(here, steps[-1])
                if not again:
                    fresh.append(at)
                    self.seen.setdefault(name, set()).add(numbers[-1])
            rows = batch(names, steps, numbers)
            told = iter(observed(self.twin, rows.take(fresh)))
            expected.append([next(told) if at in fresh else ("seen", None) for at in range(len(names))])
            futures.append(self.memory.observe(rows))
            self.used |= dict.fromkeys(names, self.now)
        for future, told_all in zip(futures, expected, strict=True):
            found = future.result()
            assert list(found.status) == [status for status, _ in told_all]
            for cells, (status, surprise) in zip(found.surprise, told_all, strict=True):
                assert status == "seen" or cells.tobytes() == surprise

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.seen)))
        self.memory.remove(name).result()
        self.forget([name])

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def put(self, data: st.DataObject, name: str) -> None:
        blob = self.twin.take_out(data.draw(st.sampled_from(sorted(self.seen))))
        self.memory.put(name, blob).result()
        self.twin.put_in(name, blob, replace=True)
        self.seen[name], self.used[name] = set(), self.now

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def forecast(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.seen)))
        found = self.memory.ask([name], lambda online: online.forecast(name).quantiles).result()
        assert found.tobytes() == self.twin.forecast(name).quantiles.tobytes()
        self.used[name] = self.now

    @rule(seconds=st.sampled_from((30.0, 60.0, 110.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(2):
            self.memory.ask([], len).exception()
        self.forget([name for name, used in self.used.items() if used <= self.now - TTL])

    @rule()
    def restart(self) -> None:
        self.memory.stop()
        self.begin()
        self.used = dict.fromkeys(self.used, self.now)

    @rule()
    def compare(self) -> None:
        assert blobs(self.memory, sorted(self.seen)) == {name: self.twin.take_out(name) for name in self.seen}
        self.used = dict.fromkeys(self.used, self.now)

    @invariant()
    def the_pool_keeps_its_limit_and_the_store_knows_every_stream(self) -> None:
        assert self.memory.names().result() == sorted(self.seen, key=str.encode)
        assert self.memory.status().hot <= 3
        assert not self.memory.aside

    def forget(self, names: list[str]) -> None:
        for name in names:
            self.twin.remove(name)
            for known in (self.seen, self.steps, self.used):
                known.pop(name, None)


class TaggingMemory(MemoryBesideTwin):
    kind = "tag"


class ReplayingMemory(MemoryBesideTwin):
    kind = "replay"


TestTagging = TaggingMemory.TestCase
TestTagging.settings = settings(max_examples=8, stateful_step_count=14, deadline=None)
TestReplaying = ReplayingMemory.TestCase
TestReplaying.settings = settings(max_examples=6, stateful_step_count=14, deadline=None)


def life(nursery: subprocess.Popen[str], seed: int, lines: int) -> tuple[dict[str, int], dict[str, int]]:
    """One process that is killed while it works behind its `lines`th answer; what it found, and last acknowledged."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(f"{seed}\n")
    nursery.stdin.flush()
    pid, said, found = 0, 0, dict[str, int]()
    kept: dict[str, int] = {}
    for line in nursery.stdout:
        word, _, facts = line.partition(" ")
        if word == "dead\n":
            break
        if word == "pid":
            pid = json.loads(facts)["pid"]
        elif word in ("found", "kept"):
            kept = json.loads(facts)
            found = found or kept
            said += 1
            if said == lines + 1:
                os.kill(pid, signal.SIGKILL)
    assert said > lines, "the life ended by itself"
    return found, kept


@pytest.mark.parametrize("kind", ["tag", "replay"])
def test_kill_9_at_any_moment_loses_nothing_and_applies_nothing_twice(tmp_path: Path, kind: str) -> None:
    dice = random.Random(kind)
    acknowledged = dict.fromkeys(STREAMS, 0)
    with (tmp_path / "said").open("w") as said:
        nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.service.rememberer", str(tmp_path), kind],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        for seed in range(LIVES):
            found, kept = life(nursery, seed, dice.choice([0, 1, 2, 5, 12]))
            assert all(found[name] >= acknowledged[name] for name in STREAMS), (found, acknowledged)
            acknowledged = kept
    finally:
        nursery.kill()
        nursery.communicate()
    made, twin = memory(tmp_path, limits(4, kind=kind), kind=kind), predictor(kind)
    names = made.names().result()
    counted = {name: made.ask([name], lambda online, one=name: online.counters(one)).result() for name in names}
    rows = {name: counted[name]["observations"] for name in names}
    assert all(rows.get(name, 0) >= acknowledged[name] for name in STREAMS), (rows, acknowledged)
    for name in names:
        observed(twin, row(name, list(range(rows[name]))))
    assert blobs(made, names) == {name: twin.take_out(name) for name in names}
    for name in names:
        assert set(made.observe(row(name, list(range(rows[name])))).result().status) <= {"seen", "behind"}
    assert not made.aside
    assert sum(rows.values()) > 100
    made.stop()


def test_a_full_disk_fails_what_it_refuses_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.service.full_memory", str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert not done.returncode, done.stderr
    said = json.loads(done.stdout)
    assert "make room and send it again" in said["said"]
    assert "make room" in said["told"]
    assert said["number"] > 1
    assert said["refused"] == 2
    assert said["same"], "what was refused changed a state"
    assert said["again"], "what was refused had left its marks"
    assert said["after"]
    assert said["known"] == ["a", "b", "c"]


def test_a_recovery_with_fewer_places_than_streams_leaves_the_others_in_the_store(tmp_path: Path) -> None:
    made, twin = memory(tmp_path, limits(50)), predictor()
    names = [f"s{n:02d}" for n in range(20)]
    for step in range(6):
        rows = batch(names, [step] * 20, [step] * 20)
        made.observe(rows).result()
        observed(twin, rows)
    made.stop()
    made = memory(tmp_path, limits(4))
    assert made.status().hot == 4
    assert blobs(made, names) == {name: twin.take_out(name) for name in names}
    made.ask([], lambda _: made._sessions.flush()).result()
    (row_of_start,) = [one for one in made._store.read_ledger() if one.kind == "recovered"]
    assert row_of_start.facts == {"streams": 4, "rows": 0, "aside": 0}
    made.stop()


def test_snapshots_and_prunings_keep_the_journal_short_while_rows_come(tmp_path: Path) -> None:
    made, twin = memory(tmp_path, limits(10, journal_rows=200, snapshot_after_s=1e6)), predictor()
    names = [f"s{n}" for n in range(10)]
    for step in range(120):
        rows = batch(names, [step] * 10, [step] * 10)
        made.observe(rows).result()
        observed(twin, rows)
    made.ask([], len).exception()
    held = sum(len(part.seqs) for name in names for part in made.ask([], lambda _, one=name: list(
        made._store.rows_after(one, 0))).result())  # fmt: skip
    assert held <= 400
    assert blobs(made, names) == {name: twin.take_out(name) for name in names}
    made.stop()


def test_a_lost_lease_costs_a_refusal_and_no_row(tmp_path: Path) -> None:
    where, now = place("postgres", tmp_path), [0.0]
    made, twin = Memory(predictor(), store_at("postgres", where), limits(3), clock=lambda: now[0]), predictor()
    made.start()
    names = [f"s{n}" for n in range(6)]
    for step in range(6):
        rows = batch(names, [step] * 6, [step] * 6)
        assert list(made.observe(rows).result().status) == [status for status, _ in observed(twin, rows)]
    execute("postgres", where, "UPDATE owners SET dead = TRUE")
    rows = batch(names, [6] * 6, [6] * 6)
    with pytest.raises(StoreError, match="silent"):
        made.observe(rows).result()
    assert "silent" in made.status().reason
    for _ in range(2):
        made.ask([], len).exception()
    assert not made.status().reason
    assert list(made.observe(rows).result().status) == [status for status, _ in observed(twin, rows)]
    assert blobs(made, names) == {name: twin.take_out(name) for name in names}
    other = Memory(predictor(), store_at("postgres", where), limits(3))
    other.start()
    found = other.observe(batch(["s1", "mine"], [9, 9])).result()
    assert found.status[0] == "elsewhere"
    assert "held by me:1" in found.reasons[0]
    assert found.status[1] != "refused"
    with pytest.raises(StreamError, match="held by me:1"):
        blobs(other, ["s1"])
    made.stop()
    assert blobs(other, names) == {name: twin.take_out(name) for name in names}
    other.stop()
