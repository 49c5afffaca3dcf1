"""Out of order within the watermark leaves no trace; what comes too late is counted, listed, or refused unchanged."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2 import checkpoint
from tsgdn2.archive import KIND
from tsgdn2.errors import LateDataError, UnknownStreamError
from tsgdn2.late import LISTED, LateArrival
from tsgdn2.online import OnlinePredictor

MODES = ("independent", "joint", "attention")
POLICIES = ("raise", "drop", "tag", "replay")
NOW = pd.Timestamp("2024-03-02")


def at(hours):
    return NOW + pd.Timedelta(hours=hours)


def horizon(rng, known, *lead):
    return rng.normal(size=(*lead, 6, known)) if known else None


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6), mode=st.sampled_from(MODES), known=st.sampled_from([0, 2]),
    watermark=st.sampled_from([1, 2, 5, 12, 40]), late=st.sampled_from(POLICIES),
)  # fmt: skip
def test_rows_permuted_within_the_watermark_leave_the_state_of_the_ordered_ones(
    disorder, seed, mode, known, watermark, late
):
    rng = np.random.default_rng(seed)
    model = {"mode": mode, "known": known, "past": min(known, 1), "lag_skip": int(rng.choice([0, 13]))}
    sorting = {"late": late, "watermark": timedelta(hours=watermark), "audit": disorder.audit}
    rows = disorder.rows(rng, 40, known, model["past"])
    shuffled = disorder.permuted(rng, rows, watermark)
    some, ordered = (disorder.predictor(seed, sorting, **model) for _ in range(2))
    plain, heard = (disorder.predictor(seed, {"audit": disorder.audit}, **model) for _ in range(2))

    cut = int(rng.integers(5, len(rows)))
    future = horizon(rng, known)
    statuses = disorder.feed(some, shuffled[:cut])
    disorder.feed(heard, sorted(shuffled[:cut], key=lambda row: row[0]))
    before = disorder.state(some), disorder.waiting(some)
    quantiles = some.forecast("s", future=future).quantiles
    np.testing.assert_array_equal(quantiles, heard.forecast("s", future=future).quantiles)
    assert (disorder.state(some), disorder.waiting(some)) == before, "a forecast leaves nothing behind"

    for row in shuffled[cut:]:
        statuses += disorder.feed(some, [row])
        if rng.random() < 0.15:  # a copy that is read again and again is the copy that is made anew
            kept = some.forecast("s", future=future).quantiles
            some._route._ahead._unseen.clear()
            np.testing.assert_array_equal(some.forecast("s", future=future).quantiles, kept)
    disorder.feed(ordered, rows)
    disorder.feed(plain, rows)
    assert set(statuses) <= {"held", "missing"}
    assert disorder.state(some) == disorder.state(ordered)
    assert disorder.waiting(some) == disorder.waiting(ordered)
    some.flush()
    assert disorder.state(some) == disorder.state(plain)
    assert some.counters("s") == plain.counters("s")


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6), mode=st.sampled_from(MODES), known=st.sampled_from([0, 2]),
    watermark=st.sampled_from([0, 1, 5, 30]), late=st.sampled_from(POLICIES),
)  # fmt: skip
def test_observe_many_equals_observe_under_every_policy(disorder, seed, mode, known, watermark, late):
    rng = np.random.default_rng(seed)
    options = {"late": late, "watermark": watermark * disorder.hour, "audit": disorder.audit}
    options |= {"checkpoints": 3, "checkpoint_every": 2} if late == "replay" else {}
    one, many = (disorder.predictor(seed, options, mode=mode, known=known, past=known) for _ in range(2))
    names = [f"s{i}" for i in range(int(rng.integers(1, 6)))]
    queues = {name: disorder.delayed(rng, disorder.rows(rng, 25, known, known), 12) for name in names}
    queues = {name: [row for row in rows for _ in range(1 + (rng.random() < 0.1))] for name, rows in queues.items()}
    turns = rng.permutation([name for name, rows in queues.items() for _ in rows]).tolist()
    sent = [(name, *queues[name].pop(0)) for name in turns]
    for part in (sent[begin : begin + 37] for begin in range(0, len(sent), 37)):
        frame = pl.DataFrame({"stream": [row[0] for row in part], "time": [row[1] * disorder.hour for row in part]})
        frame = frame.with_columns(pl.Series(name, [row[2][i] for row in part]) for i, name in enumerate("abc"))
        before = {name: (disorder.state(many, name), disorder.waiting(many, name)) for name in many.streams}
        seen = []
        try:
            for name, step, values, covariates in part:
                seen.append(one.observe(name, step * disorder.hour, values, **disorder.told(one, covariates)))
        except LateDataError:
            with pytest.raises(LateDataError, match=r"^time: step .* lies in a closed patch"):
                many.observe_many(frame, **disorder.told(many, np.stack([row[3] for row in part])))
            assert before == {name: (disorder.state(many, name), disorder.waiting(many, name)) for name in many.streams}
            return
        out = many.observe_many(frame, **disorder.told(many, np.stack([row[3] for row in part])))
        assert out["status"].to_list() == [row.status for row in seen]
        np.testing.assert_array_equal(out.select(pl.col("^surprise.*$")).to_numpy(), [row.surprise for row in seen])
    for name in one.streams:
        assert disorder.state(one, name) == disorder.state(many, name)
        assert disorder.waiting(one, name) == disorder.waiting(many, name)
    assert repr(one.late_arrivals()) == repr(many.late_arrivals())
    future = horizon(rng, known, len(one.streams))
    together = many.forecast_many(one.streams, future=future).select(pl.exclude("stream", "time", "channel")).to_numpy()
    alone = [one.forecast(s, future=None if future is None else future[i]) for i, s in enumerate(one.streams)]
    np.testing.assert_array_equal(together.reshape(-1, 6, 3, 9), [forecast.quantiles for forecast in alone])


def test_cells_of_one_moment_merge_and_the_last_value_of_a_cell_wins(disorder):
    online = disorder.predictor(options={"watermark": timedelta(hours=6)})
    plain = disorder.predictor()
    hours = (8, 9, 8, 8, 8, 4, 3)
    values = ({"a": 1.0}, {"b": 5.0}, {"b": 2.0}, {"a": 1.0}, {"a": 3.0}, None, {"c": 7})
    statuses = [online.observe("s", at(h), row).status for h, row in zip(hours, values, strict=True)]
    assert statuses == ["held", "held", "held", "duplicate", "replaced", "missing", "held"]
    assert online.counters("s") == {"observations": 7, "duplicates": 1, "replaced": 1, "late": 0, "replays": 0}
    for hours, values in [(3, [np.nan, np.nan, 7]), (4, None), (8, [3, 2, np.nan]), (9, [np.nan, 5, np.nan])]:
        plain.observe("s", at(hours), values)
    np.testing.assert_array_equal(online.forecast("s").quantiles, plain.forecast("s").quantiles)
    online.flush("s")
    assert disorder.state(online) == disorder.state(plain)
    with pytest.raises(UnknownStreamError, match=r"^stream:"):
        online.flush("nobody")


def test_a_row_without_a_value_releases_what_its_time_has_passed(disorder):
    online = disorder.predictor(options={"watermark": timedelta(hours=3)})
    for hours in (0, 1, 2):
        assert online.observe("s", at(hours), [hours] * 3).status == "held"
    start = int(online._slab.clock[0])
    assert online.observe("s", at(4), None).status == "missing"
    assert int(online._slab.last[0]) == NOW.value // disorder.hour
    assert start < int(online._slab.clock[0])
    assert online.observe("s", at(5), None).status == "missing"
    assert int(online._slab.last[0]) == at(1).value // disorder.hour
    assert online.forecast("s").times[0] == at(6).to_datetime64()


def test_a_forecast_knows_of_a_row_that_was_applied_at_once(disorder):
    sorting = disorder.predictor(options={"watermark": timedelta(hours=6), "late": "replay"})
    plain = disorder.predictor()
    rng = np.random.default_rng(3)
    rows = {hours: rng.normal(size=3) for hours in range(30)}
    last = [22, 10]  # one for the open patch of the slab, one for a closed one; both are behind the watermark
    for hours in [hours for hours in rows if hours not in last] + last:
        status = sorting.observe("s", at(hours), rows[hours]).status
        sorting.forecast("s")
    assert status == "replayed"
    for hours, values in rows.items():
        plain.observe("s", at(hours), values)
    np.testing.assert_array_equal(sorting.forecast("s").quantiles, plain.forecast("s").quantiles)


def test_statics_and_covariates_of_a_held_row_travel_with_it(disorder):
    rng = np.random.default_rng(0)
    rows = disorder.rows(rng, 40, 2)
    sorting, plain = (
        disorder.predictor(options=options, known=2, static_real=1, static_cardinalities=(3,))
        for options in ({"watermark": timedelta(hours=50)}, {})
    )
    for online, sent in ((sorting, disorder.permuted(rng, rows, 50)), (plain, rows)):
        disorder.feed(online, sent[:1], static=[0.7, 2])
        disorder.feed(online, sent[1:])
    future = horizon(rng, 2)
    np.testing.assert_array_equal(
        sorting.forecast("s", future=future).quantiles, plain.forecast("s", future=future).quantiles
    )


@pytest.mark.parametrize("options", [{}, {"watermark": timedelta(hours=12)}, {"late": "replay"}])
def test_a_stamp_in_the_far_future_is_one_row_and_later_ones_are_documented(disorder, options):
    online = disorder.predictor(options={"late": "drop", **options})
    for hours in range(20):
        online.observe("s", at(hours), [1, 2, hours])
    held, far = online.state_nbytes, 2**63 - 1 - 100 * online.config.period_ns
    assert online.observe("s", far, [1, 2, 3]).status == ("held" if "watermark" in options else "new")
    after = online.observe("s", at(20), [4, 5, 6]).status
    assert after == {"drop": "late", "replay": "replayed"}[online.late] if "watermark" not in options else "new"
    assert online.forecast("s", at=far).quantiles.shape == (6, 3, 9)
    assert online.state_nbytes == held
    if "watermark" in options:  # its row waits behind all others, which pass at once
        assert len(online._route.held[0]) == 1
        assert online.observe("s", at(21), [4, 5, 6]).status == "new"


def test_what_comes_too_late_is_listed_until_it_is_drained(disorder):
    online = disorder.predictor(options={"late": "tag"})
    for hours in range(0, 40, 2):
        online.observe("s", at(hours), [hours] * 3)
    before = disorder.state(online)
    assert online.observe("s", at(1), {"a": 9.0, "c": 8.0}).status == "late"
    assert disorder.state(online) == before
    lag, time = np.timedelta64(37, "h").astype("timedelta64[ns]"), at(1).to_datetime64()
    wanted = [LateArrival("s", time, "a", 9.0, lag), LateArrival("s", time, "c", 8.0, lag)]
    assert online.late_arrivals() == wanted
    assert online.late_arrivals(drain=True) == wanted
    assert online.late_arrivals() == []
    assert online.counters("s")["late"] == 1
    for turn in range(LISTED // 2 + 5):
        online.observe("s", at(2), {"a": float(turn), "b": 0.0})
    kept = online.late_arrivals()
    assert len(kept) == LISTED
    assert kept[0].value == 5.0, "the oldest go"
    assert online._late.dropped == 10


def test_a_refused_row_leaves_what_is_held_as_it_was(disorder):
    online = disorder.predictor(options={"watermark": timedelta(hours=3)})
    for hours in (0, 9, 10, 12):
        online.observe("s", at(hours), [1, 2, 3])
    before = disorder.state(online), disorder.waiting(online)
    with pytest.raises(LateDataError, match=r'^time: .*watermark.*"replay"'):
        online.observe("s", at(-1), [1, 2, 3])
    frames = [
        pl.DataFrame({"stream": "s", "time": [at(h).value for h in hours], "a": [1.0, 2.0, 3.0]})
        for hours in ((30, 40, 27), (30, 40, 28))  # the second row releases the first, whose patch begins at 28
    ]
    with pytest.raises(LateDataError, match=r"^time: step"):
        online.observe_many(frames[0])
    assert (disorder.state(online), disorder.waiting(online)) == before
    assert online.observe_many(frames[1])["status"].to_list() == ["held", "held", "filled"]


CONTINUE = """
import sys, numpy as np
from tsgdn2 import OnlinePredictor
online = OnlinePredictor.load(sys.argv[1])
sent = np.load(sys.argv[2])
seen = [online.observe("s", int(t), v) for t, v in zip(sent["times"], sent["values"])]
before = [str(row) for row in online.late_arrivals()]
np.savez(
    sys.argv[3], surprise=[row.surprise for row in seen], status=[row.status for row in seen], late=before,
    forecast=online.forecast("s").quantiles, counters=list(online.counters("s").values()),
)
online.flush()
online.save(sys.argv[1])
"""


def test_a_new_process_goes_on_in_the_middle_of_anything(disorder, tmp_path: Path):
    rng = np.random.default_rng(7)
    options = {"late": "replay", "checkpoints": 2, "checkpoint_every": 1, "watermark": timedelta(hours=5)}
    online = disorder.predictor(options=options | {"audit": disorder.audit})
    rows = disorder.delayed(rng, disorder.rows(rng, 80), 30)
    statuses = disorder.feed(online, rows[:70])
    assert set(statuses) >= {"held", "late", "replayed"}
    assert online.late_arrivals()
    path, sent, out = (tmp_path / name for name in ("state.safetensors", "sent.npz", "out.npz"))
    online.save(path)
    before = disorder.state(online), disorder.waiting(online)
    twin = OnlinePredictor.load(path)
    assert (disorder.state(twin), disorder.waiting(twin), twin.policy) == (*before, online.policy)
    np.savez(sent, times=[row[0] * disorder.hour for row in rows[70:]], values=[row[1] for row in rows[70:]])
    subprocess.run([sys.executable, "-c", CONTINUE, path, sent, out], check=True)
    seen = [online.observe("s", step * disorder.hour, values) for step, values, _ in rows[70:]]
    with np.load(out) as got:
        assert got["status"].tolist() == [row.status for row in seen]
        np.testing.assert_array_equal(got["surprise"], [row.surprise for row in seen])
        np.testing.assert_array_equal(got["forecast"], online.forecast("s").quantiles)
        assert got["late"].tolist() == [str(row) for row in online.late_arrivals()]
        assert got["counters"].tolist() == list(online.counters("s").values())
    online.flush()
    loaded = OnlinePredictor.load(path)
    assert disorder.state(loaded) == disorder.state(online)
    assert disorder.waiting(loaded) == disorder.waiting(online)


def test_a_file_of_the_first_schema_is_read_as_what_it_was(disorder, tmp_path: Path):
    rng = np.random.default_rng(0)
    online = disorder.predictor(options={"late": "drop", "audit": disorder.audit}, known=1)
    disorder.feed(online, disorder.rows(rng, 40, 1))
    online.observe("s", -(10**17), [1, 2, 3], known=[0.0])
    online.save(tmp_path / "new")
    tensors, facts = checkpoint.read(tmp_path / "new", kind=KIND, schema=2)
    old = {name: t for name, t in tensors.items() if not name.startswith("late.") and name != "stream.before_known"}
    old["stream.counters"] = old["stream.counters"][:, :4]
    patch = online.config.patch_length
    steps = online._slab.clock[0] + np.arange(1 - patch, 1)
    old["stream.known"] = torch.zeros(1, patch, 1, dtype=torch.float64)
    old["stream.known"][0, steps % patch] = tensors["stream.known"][0, steps % (2 * patch)]
    checkpoint.write(tmp_path / "old", old, facts | {"late": "drop"}, kind=KIND, schema=1)
    loaded = OnlinePredictor.load(tmp_path / "old")
    was, now = ({n: b for n, b in disorder.state(one).items() if "known" not in n} for one in (online, loaded))
    assert was == now
    assert loaded.counters("s") == online.counters("s")
    assert loaded.policy == online.policy
    assert loaded.observe("s", -(10**17), [1, 2, 3], known=[0.0]).status == "late"
    after = [(int(steps[-1]) + lead, rng.normal(size=3), rng.normal(size=1)) for lead in range(1, 20)]
    for one in (online, loaded):
        disorder.feed(one, after)
    assert disorder.state(online) == disorder.state(loaded), "after two patches nothing is left of what was not saved"


def test_the_policy_comes_through_from_predictor(disorder):
    made = disorder.predictor()
    made.channels, made.standards = disorder.channels, made.standards
    online = OnlinePredictor.from_predictor(
        made, late="replay", watermark=np.timedelta64(90, "m"), checkpoints=3, checkpoint_every=5
    )
    assert (online.late, online.policy.steps, online.policy.checkpoints, online.policy.every) == ("replay", 2, 3, 5)
    assert online.state_nbytes > made.state_nbytes
