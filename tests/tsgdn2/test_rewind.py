"""A replay leaves the stream in which the late value came in order, bit for bit; twice is once; memory is bounded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.engine import Engine
from tsgdn2.rows import Rows, rows_from_tensors, rows_to_tensors

MODES = ("independent", "joint", "attention")


def replaying(disorder, seed=0, checkpoints=6, every=2, options=None, **model):
    options = {"late": "replay", "checkpoints": checkpoints, "checkpoint_every": every, **(options or {})}
    return disorder.predictor(seed, options, **model)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6), mode=st.sampled_from(MODES), known=st.sampled_from([0, 2]),
    watermark=st.sampled_from([0, 3]), every=st.integers(1, 5), longest=st.sampled_from([3, 10, 25]),
)  # fmt: skip
def test_late_rows_within_reach_leave_the_state_of_the_ordered_ones(
    disorder, seed, mode, known, watermark, every, longest
):
    rng = np.random.default_rng(seed)
    options = {"watermark": watermark * disorder.hour, "audit": disorder.audit}
    model = {"mode": mode, "known": known, "past": known, "lag_skip": int(rng.choice([0, 13])), "norm_max": 0.5}
    late, ordered = (replaying(disorder, seed, 60, every, options, **model) for _ in range(2))
    plain = disorder.predictor(seed, {"audit": disorder.audit}, **model)
    rows = disorder.rows(rng, 40, known, known)
    statuses = disorder.feed(late, disorder.delayed(rng, rows, longest))
    disorder.feed(ordered, rows)
    disorder.feed(plain, rows)
    late.flush()
    ordered.flush()
    assert "late" not in statuses
    assert statuses.count("replayed") <= late.counters("s")["replays"]
    assert disorder.state(late) == disorder.state(plain) == disorder.state(ordered)
    held = [disorder.waiting(online) for online in (late, ordered)]
    assert held[0]["log"] == held[1]["log"]
    assert held[0]["track"] == held[1]["track"]


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6), mode=st.sampled_from(MODES), known=st.sampled_from([0, 2]),
    watermark=st.sampled_from([0, 3, 20]), every=st.sampled_from([2, 5]),
)  # fmt: skip
def test_rows_twice_change_nothing_and_the_last_correction_wins(disorder, seed, mode, known, watermark, every):
    rng = np.random.default_rng(seed)
    options = {"watermark": watermark * disorder.hour, "audit": disorder.audit}
    online = replaying(disorder, seed, 60, every, options, mode=mode, known=known, past=known)
    plain = disorder.predictor(seed, {"audit": disorder.audit}, mode=mode, known=known, past=known)
    sent = disorder.delayed(rng, disorder.rows(rng, 35, known, known), 12)
    for step, values, covariates in [row for row in sent if rng.random() < 0.15]:
        changed = step, values + 1.0, covariates if rng.random() < 0.5 else covariates - 1.0
        sent.insert(int(rng.integers(len(sent) // 2, len(sent) + 1)), changed)
    statuses = disorder.feed(online, sent)
    assert "late" not in statuses
    final = disorder.merged(sent)
    disorder.feed(plain, final)
    before = disorder.state(online), {**disorder.waiting(online), "counters": None}
    again = [final[i] for i in rng.permutation(len(final))[: len(final) // 2]]
    assert set(disorder.feed(online, again)) <= {"duplicate", "missing"}
    assert (disorder.state(online), {**disorder.waiting(online), "counters": None}) == before
    online.flush()
    assert disorder.state(online) == disorder.state(plain)


def test_beyond_the_ring_a_value_is_late_counted_and_listed(disorder):
    online = replaying(disorder, checkpoints=3, every=2)
    for step in range(0, 200, 2):
        online.observe("s", step * disorder.hour, [1.0, np.nan, float(step)])
    before = disorder.state(online)
    reach = [online.observe("s", step * disorder.hour, {"b": 1.0}).status for step in (191, 177, 160, 100)]
    assert reach == ["replayed", "replayed", "late", "late"]
    assert online.observe("s", 190 * disorder.hour, {"a": 2.0}).status == "replayed"
    assert online.counters("s") == {"observations": 105, "duplicates": 0, "replaced": 1, "late": 2, "replays": 3}
    assert [(row.channel, row.value) for row in online.late_arrivals()] == [("b", 1.0), ("b", 1.0)]
    assert before != disorder.state(online)


def test_the_surprise_of_a_replayed_value_is_the_one_it_had_in_order(disorder):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(40, 3))
    late, ordered = replaying(disorder), disorder.predictor()
    bits = [ordered.observe("s", step * disorder.hour, values[step]).surprise for step in range(40)]
    for step in range(40):
        if step != 22:
            late.observe("s", step * disorder.hour, values[step])
    seen = late.observe("s", 22 * disorder.hour, values[22])
    assert seen.status == "replayed"
    np.testing.assert_array_equal(seen.surprise, bits[22])
    assert np.isfinite(seen.surprise).all()


def test_covariates_of_a_gap_longer_than_the_reach_are_not_lost_in_a_later_replay(disorder):
    rng = np.random.default_rng(2)
    online, plain = replaying(disorder, checkpoints=2, every=1, known=1), disorder.predictor(known=1)
    known = rng.normal(size=(100, 1))
    nothing = np.full(3, np.nan)
    rows = [(step, nothing if 10 <= step < 60 else rng.normal(size=3), known[step]) for step in range(70)]
    first, gap, rest = rows[:60], (30, np.ones(3), known[30]), rows[60:]
    # 30 is behind both checkpoints, but its patch is open to it: it is taken as it comes, as without checkpoints.
    for one in (online, plain):
        assert disorder.feed(one, [*first, gap])[-1] == "new"
        disorder.feed(one, [row for row in rest if row[0] != 63])
    assert disorder.feed(online, rest[3:4]) == ["replayed"]
    sequel = disorder.predictor(known=1)
    disorder.feed(sequel, [*first, gap, *rest])
    assert disorder.state(online) == disorder.state(sequel)
    assert disorder.feed(online, rows[10:12]) == ["missing", "missing"], "covariates beyond the reach are left out"
    assert disorder.state(online) == disorder.state(sequel)


def test_the_log_is_trimmed_like_that_of_the_ordered_stream(disorder):
    late, ordered = (replaying(disorder, checkpoints=3, every=1) for _ in range(2))
    rows = [(step, np.full(3, float(step)), np.zeros(0)) for step in range(60)]
    patch = [row for row in rows if 52 <= row[0] < 56]
    disorder.feed(ordered, rows)
    assert set(disorder.feed(late, [row for row in rows if row not in patch])) == {"new"}
    assert set(disorder.feed(late, patch)) == {"replayed"}
    held = [{**disorder.waiting(online), "counters": None} for online in (late, ordered)]
    assert held[0] == held[1]
    assert disorder.state(late) == disorder.state(ordered)


def test_the_reference_forecast_does_not_depend_on_rows_without_a_value(disorder):
    rng = np.random.default_rng(8)
    rows = [(step, rng.normal(size=3), rng.normal(size=1)) for step in range(10)]
    gap = [(step, np.full(3, np.nan), rng.normal(size=1)) for step in range(10, 40)]
    closing = (41, rng.normal(size=3), rng.normal(size=1))
    told, silent, late = (replaying(disorder, known=1) for _ in range(3))
    disorder.feed(silent, rows)
    forecast = silent.forecast("s", future=np.full((6, 1), 0.5)).quantiles  # 0.5: the mean of training
    disorder.feed(silent, [closing])
    np.testing.assert_array_equal(silent._slab.reference[0], forecast)
    disorder.feed(told, [*rows, *gap, closing])
    disorder.feed(late, [*rows, closing, *gap])
    assert disorder.state(told)["stream.reference"] == disorder.state(silent)["stream.reference"]
    assert disorder.state(told) == disorder.state(late)


def test_evictions_that_wait_are_replaced_and_drained_ones_told_again(disorder):
    rng = np.random.default_rng(4)
    rows = [(step, rng.normal(size=3), np.zeros(0)) for step in range(120)]
    late, ordered = (replaying(disorder, 3, 20, 2, {"audit": disorder.audit}) for _ in range(2))
    disorder.feed(ordered, rows)
    disorder.feed(late, [*rows[:90], *rows[91:]])
    drained = late.audit.drain()
    disorder.feed(late, rows[90:91])  # step 90 is of patch 22; a checkpoint was made before it, with 83 committed
    assert ordered.audit._queue, "the model forgets"
    assert disorder.state(late)["events"] == [repr(e) for e in ordered.audit._queue if e.time > 83]
    assert late.counters("s")["replays"] == 1
    assert len(drained) + len(late.audit._queue) > len(ordered.audit._queue)


def test_pins_follow_their_writes_through_a_replay(disorder):
    rng = np.random.default_rng(5)
    rows = [(step, rng.normal(size=3), np.zeros(0)) for step in range(80) if not 40 <= step < 44]
    late, ordered = (replaying(disorder, 3, 20, 4, {"audit": disorder.audit}) for _ in range(2))
    missing = (41, np.array([1.0, np.nan, np.nan]), np.zeros(0))  # one commit more for the lane of one channel alone
    disorder.feed(late, rows)
    disorder.feed(ordered, sorted([*rows, missing], key=lambda row: row[0]))
    for lane, adds in ((0, 1), (1, 0)):
        for write in (2, 15):  # one before the late patch, one after it
            if write in late.audit._slab.ints[0, lane, 0, 0]:  # it is still tracked
                late.audit.pin(lane, write)
                ordered.audit.pin(lane, write + adds * (write > 9))
        late.audit.pin(lane, "next")
        ordered.audit.pin(lane, "next")
    disorder.feed(late, [missing])
    for online in (late, ordered):
        disorder.feed(online, [(step, np.ones(3) * step, np.zeros(0)) for step in range(80, 92)])
    for lane in (0, 1):
        assert late.audit._pinned(lane) == ordered.audit._pinned(lane)
        assert len(late.audit._pinned(lane)) >= 2


def test_an_error_in_a_replay_leaves_all_as_it_was(disorder, monkeypatch):
    online = replaying(disorder, options={"audit": disorder.audit})
    rows = [(step, np.ones(3) * step, np.zeros(0)) for step in range(60)]
    disorder.feed(online, [row for row in rows if row[0] != 20])
    before = disorder.state(online), disorder.waiting(online)
    close, calls = Engine.close, []

    def fails(engine, slots):
        calls.append(slots)
        if len(calls) == 5:
            raise MemoryError
        close(engine, slots)

    monkeypatch.setattr(Engine, "close", fails)
    with pytest.raises(MemoryError):
        disorder.feed(online, rows[20:21])
    assert (disorder.state(online), disorder.waiting(online)) == before
    assert disorder.feed(online, rows[20:21]) == ["replayed"]
    plain = disorder.predictor(options={"audit": disorder.audit})
    disorder.feed(plain, rows)
    assert disorder.state(online) == disorder.state(plain)


@pytest.mark.parametrize("known", [0, 1])
def test_memory_is_bounded_and_stated(disorder, known):
    online = replaying(disorder, 0, 3, 2, {"watermark": 5 * disorder.hour, "audit": disorder.audit}, known=known)
    bound, rng = None, np.random.default_rng(6)
    for turn in range(4):
        for step in range(turn * 400, turn * 400 + 400):
            values = np.full(3, np.nan) if step % 100 > 40 else rng.normal(size=3)
            disorder.feed(online, [(step - int(rng.integers(0, 9)), values, np.zeros(known))])
        online.forecast("s", future=np.zeros((6, known)) if known else None)
        route = online._route
        track = route.route.tracks[0]
        held = route.held[0].nbytes + track.log.nbytes + sum(r.nbytes for r in route._ahead._unseen.values())
        rows = route.route.ring.row_nbytes() * 3 + online._slab.row_nbytes() * 2
        assert held + rows <= online.state_nbytes
        assert len(track.places) <= 3
        bound = bound or online.state_nbytes
        assert online.state_nbytes == bound


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), channels=st.integers(1, 3), known=st.integers(0, 2))
def test_rows_are_a_sorted_map_of_steps(seed, channels, known):
    rng = np.random.default_rng(seed)
    empty, oracle = Rows(channels, known, 0, 64), {}
    rows = empty.copy()
    for _ in range(150):
        if len(oracle) < 60 and rng.random() < 0.8:
            step, covariates = int(rng.integers(-40, 40)), rng.normal(size=known)
            values = np.where(rng.random(channels) < 0.4, np.nan, rng.integers(0, 3, channels))
            old = oracle.get(step, (np.full(channels, np.nan),))[0]
            given, had = np.isfinite(values), np.isfinite(old)
            same, replaced = rows.put(step, values, covariates)
            assert same == (not (given & ~(had & (old == values))).any())
            assert replaced == bool((given & had & (old != values)).any())
            oracle[step] = np.where(given, values, old), covariates
        else:
            through = int(rng.integers(-45, 45))
            taken = rows.take(through)
            assert taken.steps.tolist() == sorted(step for step in oracle if step <= through)
            oracle = {step: row for step, row in oracle.items() if step > through}
        assert rows.all().steps.tolist() == sorted(oracle)
        assert rows.nbytes <= rows.most_nbytes
        for at, step in list(enumerate(sorted(oracle)))[::7]:
            np.testing.assert_array_equal(rows.all().values[at], oracle[step][0])
            np.testing.assert_array_equal(rows.all().known[at], oracle[step][1])
    saved = rows_to_tensors([empty, rows, rows.copy()], empty)
    assert torch.equal(saved["counts"], torch.tensor([0, len(rows), len(rows)]))
    for loaded in rows_from_tensors(saved, empty, 3)[1:]:
        for mine, theirs in zip(loaded.all(), rows.all(), strict=True):
            np.testing.assert_array_equal(mine, theirs)
