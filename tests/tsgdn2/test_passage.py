"""A stream that leaves and comes back is the stream that never left, to the bit; a slot says nothing of who had it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.conformal import Calibrated
from tsgdn2.errors import CheckpointError, ConfigError, StreamError, UnknownStreamError
from tsgdn2.online import OnlinePredictor

NAMES = ("s", "t", "u")
KINDS = ("plain", "joint, audited", "attention, watermark", "replay")


class Fleet:
    """Some predictors of one kind among which streams travel, and beside them one predictor per stream that stays."""

    def __init__(self, disorder, kind, cls=OnlinePredictor):
        self.make = lambda: disorder.made(kind, cls)
        self.disorder, self.cls, self.online, self.away = disorder, cls, [self.make(), self.make()], {}
        self.home, self.alone = dict.fromkeys(NAMES, 0), {name: self.make() for name in NAMES}

    def at(self, name):
        return self.online[self.home[name]]

    def observe(self, name, row):
        if name in self.away:
            self.back(name)
        assert self.disorder.seen(self.at(name), row, name) == self.disorder.seen(self.alone[name], row, "x")

    def leave(self, name):
        if name in self.at(name).streams:
            before = self.disorder.whole(self.at(name), name)
            self.away[name] = self.at(name).take_out(name)
            assert self.disorder.whole(self.at(name), name) == before
            unread = self.at(name).remove(name)
            assert len(unread.evictions) == len(before["evictions"])
            assert len(unread.late_arrivals) == len(before["late"])

    def back(self, name, other=False):
        if name in self.away:
            self.home[name] ^= other
            self.at(name).put_in(name, self.away.pop(name))

    def forget(self, name):
        self.away.pop(name, None)
        if name in self.at(name).streams:
            self.at(name).remove(name)
        self.alone[name] = self.make()

    def restart(self, name, path):
        self.at(name).save(path)
        self.online[self.home[name]] = self.cls.load(path)

    def compare(self, name):
        if name in self.at(name).streams:
            alone = self.alone[name]
            assert self.disorder.whole(self.at(name), name) == self.disorder.whole(alone, "x")
            assert self.disorder.asked(self.at(name), name) == self.disorder.asked(alone, "x")


@pytest.mark.parametrize(("kind", "cls"), [*((kind, OnlinePredictor) for kind in KINDS), ("plain", Calibrated)])
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_streams_that_travel_are_those_that_never_moved(disorder, tmp_path_factory, kind, cls, seed):
    rng, path = np.random.default_rng(seed), tmp_path_factory.mktemp("fleet") / "state"
    fleet, rows = Fleet(disorder, kind, cls), {name: disorder.some(rng, kind, 18) for name in NAMES}
    while any(rows.values()):
        name = NAMES[int(rng.integers(len(NAMES)))]
        action = rng.choice(["observe", "leave", "back", "other", "forget", "restart", "compare"],
                            p=[0.72, 0.06, 0.06, 0.06, 0.02, 0.02, 0.06])  # fmt: skip
        if action == "observe":
            for row in rows[name][:4]:
                fleet.observe(name, row)
            del rows[name][:4]
        elif action == "restart":
            fleet.restart(name, path)
        elif action in ("back", "other"):
            fleet.back(name, other=action == "other")
        else:
            getattr(fleet, action)(name)
    for name in NAMES:
        fleet.back(name)
        fleet.compare(name)
        if name in fleet.at(name).streams:
            fleet.at(name).flush(name)
            fleet.alone[name].flush("x")
        fleet.compare(name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slot_that_is_free_again_is_that_of_a_predictor_that_never_had_a_stream(disorder, kind):
    online, fresh = disorder.filled(kind, NAMES), disorder.made(kind)
    assert online.remove("t").evictions or online.audit is None
    own, first = np.array([1]), np.array([0])
    left, blank = online._tensors(own), fresh._tensors(first)
    left.pop("late.dropped"), blank.pop("late.dropped")
    assert left.keys() == blank.keys()
    for name, tensor in left.items():
        assert tensor.shape == blank[name].shape, name
        np.testing.assert_array_equal(tensor.numpy(), blank[name].numpy(), err_msg=name)
    ahead = getattr(online._route, "_ahead", None)
    if ahead is not None:
        place = np.array([ahead._place[1]])
        for name, tensor in ahead._copies.tensors(place).items():
            np.testing.assert_array_equal(tensor.numpy(), fresh._slab.tensors(first)[name].numpy(), err_msg=name)
    for row in disorder.some(np.random.default_rng(9), kind, 40):
        assert disorder.seen(online, row, "new") == disorder.seen(fresh, row, "new")
    assert online._slots["new"] == 1
    assert disorder.whole(online, "new") == disorder.whole(fresh, "new")
    assert disorder.asked(online, "new") == disorder.asked(fresh, "new")
    assert online.streams == ("s", "u", "new")


def test_many_at_once_are_one_by_one_and_all_or_none(disorder):
    online = disorder.filled("replay", NAMES)
    before, blobs = disorder.all(online), online.take_out_many([*NAMES, "s"])
    assert blobs == {name: online.take_out(name) for name in NAMES}
    assert len(blobs) == 3
    other = disorder.made("replay")
    with pytest.raises(CheckpointError):
        other.put_in_many({**blobs, "v": blobs["s"][:-1]})
    assert (other.streams, other._free, other._used) == ((), [], 0)
    other.put_in_many(blobs)
    assert disorder.all(other) == before
    with pytest.raises(UnknownStreamError):
        other.remove_many(["s", "nobody"])
    assert set(other.remove_many(["u", "s"])) == {"u", "s"}
    assert other.streams == ("t",)
    assert disorder.whole(other, "t") == before["t"]


def test_a_stream_comes_back_under_another_name_and_in_the_place_of_another(disorder):
    online = disorder.filled("attention, watermark", NAMES)
    before, blob = disorder.all(online), online.take_out("s")
    with pytest.raises(StreamError, match="is here already"):
        online.put_in("u", blob)
    assert disorder.all(online) == before
    online.put_in("u", blob, replace=True)
    online.put_in("v", blob)
    after = disorder.all(online)
    assert after["s"] == after["u"] == after["v"] == before["s"]
    assert after["t"] == before["t"]
    assert online.streams == ("s", "t", "u", "v")


def test_what_nobody_read_is_handed_out_when_a_stream_goes_and_never_as_anothers(disorder):
    online = disorder.filled("replay", NAMES, count=80)
    names = {e.stream for e in online.evictions()}
    assert names == set(NAMES)
    assert {e.channel for e in online.evictions()} <= set(online.channels)
    late = [row for row in online.late_arrivals() if row.stream == "t"]
    mine = [e for e in online.evictions() if e.stream == "t"]
    assert late
    assert mine
    others = [e for e in online.evictions() if e.stream != "t"]
    unread = online.remove("t")
    assert (unread.evictions, unread.late_arrivals) == (mine, late)
    online.observe("new", 0, np.ones(3), **disorder.told(online, np.zeros(2)))
    assert online._slots["new"] == 1
    assert online.evictions(drain=True) == others
    assert online.evictions() == []
    assert all(row.stream in ("s", "u") for row in online.late_arrivals())
    assert online.audit_slots("new") == (3, 4, 5)


def test_memory_is_that_of_the_slots_and_a_blob_that_of_its_stream(disorder):
    online = disorder.filled("replay", ("s",))
    assert online.slots == 16
    size = len(online.take_out("s"))
    online.reserve(40)
    assert online.slots == 40
    slab, lanes = online._slab, online.config.lanes
    assert slab.row_nbytes() * 40 <= online.slots * online.state_nbytes
    assert online.audit_nbytes * 40 == pytest.approx(online.audit.nbytes, rel=0.02)
    assert online.audit.slots == 40 * lanes
    blobs = {f"s{n}": online.take_out("s") for n in range(39)}
    online.put_in_many(blobs)
    assert online.slots == 40
    assert len(online.take_out("s38")) == pytest.approx(size, abs=64)
    for _ in range(2):
        online.remove_many(blobs)
        online.put_in_many(blobs)
    assert online.slots == 40
    with pytest.raises(ConfigError, match=r"^streams"):
        online.reserve(-1)


def test_what_waited_for_a_pin_travels_too(disorder):
    online, other = (disorder.filled("joint, audited", ("s",)) for _ in range(2))
    write = online.audit.pin(online.audit_slots("s")[0], "next")
    other.put_in("t", online.take_out("s"))
    for one, stream in ((online, "s"), (other, "t")):
        rng = np.random.default_rng(5)
        for row in disorder.rows(rng, 30, 2, 1):
            disorder.seen(one, (row[0] + 10_000, *row[1:]), stream)
    assert disorder.whole(online, "s") == disorder.whole(other, "t")
    other.audit.unpin(other.audit_slots("t")[0], write)


CONTINUE = """
import sys, numpy as np
from pathlib import Path
from tsgdn2 import OnlinePredictor
folder = Path(sys.argv[1])
online = OnlinePredictor.load(folder / "other")
online.put_in("back", (folder / "blob").read_bytes())
rng, bits = np.random.default_rng(4), []
for step in range(20_000, 20_060):
    known = {"known": rng.normal(size=1), "past": rng.normal(size=1)}
    step -= int(rng.integers(0, 12))
    bits.append(online.observe("back", step * 3_600_000_000_000, rng.normal(size=3), **known).surprise)
bits.append(online.forecast("back", future=np.ones((6, 1))).quantiles.reshape(-1))
np.savez(folder / "out.npz", *bits)
(folder / "again").write_bytes(online.take_out("back"))
"""


def test_a_blob_goes_on_in_a_new_process(disorder, tmp_path: Path):
    online = disorder.filled("replay", ("s", "t"), count=30)
    other = disorder.filled("replay", ("x", "y"), count=20, seed=7)
    (tmp_path / "blob").write_bytes(online.take_out("t"))
    other.remove("x")
    other.save(tmp_path / "other")
    subprocess.run([sys.executable, "-c", CONTINUE, tmp_path], check=True)
    rng, bits = np.random.default_rng(4), []
    for step in range(20_000, 20_060):
        known = {"known": rng.normal(size=1), "past": rng.normal(size=1)}
        step -= int(rng.integers(0, 12))
        bits.append(online.observe("t", step * disorder.hour, rng.normal(size=3), **known).surprise)
    bits.append(online.forecast("t", future=np.ones((6, 1))).quantiles.reshape(-1))
    with np.load(tmp_path / "out.npz") as got:
        for n, expected in enumerate(bits):
            np.testing.assert_array_equal(got[f"arr_{n}"], expected)
    online.put_in("again", (tmp_path / "again").read_bytes())
    assert disorder.whole(online, "again") == disorder.whole(online, "t")


def test_a_file_of_a_predictor_with_empty_slots_has_none(disorder, tmp_path: Path):
    online = disorder.filled("replay", (*NAMES, "v"))
    online.remove_many(["s", "u"])
    online.put_in("z", online.take_out("v"))
    before = disorder.all(online)
    online.save(tmp_path / "state")
    again = OnlinePredictor.load(tmp_path / "state")
    assert again.streams == ("t", "v", "z")
    assert list(again._slots.values()) == [0, 1, 2]
    assert disorder.all(again) == before
    assert [e[:2] for e in again.evictions()] == [e[:2] for e in online.evictions()]
    assert [row.stream for row in again.late_arrivals()] == [row.stream for row in online.late_arrivals()]
