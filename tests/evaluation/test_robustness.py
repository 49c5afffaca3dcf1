"""Damaged histories: what goes, what never does, and how long a recovery takes; all on series that are made here."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tsgdn2.datasets.gluon import entries
from tsgdn2.datasets.grid import period_ns
from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.backtest import Protocol
from tsgdn2.evaluation.baselines import SeasonalNaive
from tsgdn2.evaluation.metrics import Score, evaluate, pooled
from tsgdn2.evaluation.recovery import positions, recovered, recovery
from tsgdn2.evaluation.robustness import (
    JITTER,
    KINDS,
    SETTINGS,
    SHARES,
    Contender,
    Setting,
    curves,
    forward_filled,
    histories,
    lost,
    relative_crps,
    rows,
)
from tsgdn2.evaluation.rows import Row, append, row
from tsgdn2.evaluation.tables import render

PROTOCOL = Protocol(name="waves", prediction_length=6, season=24, windows=3, distance=10, train_end=300)


def waves(rows_: int = 400, streams: int = 2, gaps: float = 0.05) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    start = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    parts = []
    for stream in range(streams):
        t = np.arange(rows_)
        columns = {
            name: pl.Series(20.0 * (c + 1) + 3 * np.sin(2 * np.pi * t / 24 + c) + 0.1 * rng.normal(size=rows_))
            for c, name in enumerate(("low", "high"))
        }
        time = pl.datetime_range(start, start + datetime.timedelta(hours=rows_ - 1), "1h", time_unit="ns", eager=True)
        parts.append(pl.DataFrame({"stream": [f"s{stream}"] * rows_, "time": time, **columns}))
    frame = pl.concat(parts)
    hole = pl.Series(rng.random(frame.height) < gaps)
    return frame.with_columns(pl.when(~hole).then(pl.col("low")).alias("low"))


SETTING = Setting(name="waves", load=waves, period="1h", protocol=PROTOCOL)


def complete(frame: pl.DataFrame) -> list[dict[str, object]]:
    return list(PROTOCOL.test(entries(frame, "1h")).input)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_histories_lose_their_share_and_nothing_is_made_up(kind, share):
    frame = SETTING.frame()
    whole, hurt = complete(frame), histories(frame, SETTING, kind, share, seed=4)
    assert [e["item_id"] for e in hurt] == [e["item_id"] for e in whole]
    assert [len(e["target"]) for e in hurt] == [len(e["target"]) for e in whole]
    assert [e["start"] for e in hurt] == [e["start"] for e in whole]
    gone = lost(hurt, whole)
    if kind == "jittered clock":
        assert share < gone < share + 0.35 * (1 - share)
    else:
        assert gone == pytest.approx(share, abs=0.12)
    for mine, theirs in zip(hurt, whole, strict=True):
        values = mine["target"][np.isfinite(mine["target"])]
        assert set(values) <= set(theirs["target"])
        if kind != "jittered clock":
            seen = np.isfinite(mine["target"])
            np.testing.assert_array_equal(mine["target"][seen], theirs["target"][seen])
    again = histories(frame, SETTING, kind, share, seed=4)
    assert all(np.array_equal(a["target"], b["target"], equal_nan=True) for a, b in zip(hurt, again, strict=True))
    other = histories(frame, SETTING, kind, share, seed=5)
    assert not all(np.array_equal(a["target"], b["target"], equal_nan=True) for a, b in zip(hurt, other, strict=True))


def test_windows_of_one_series_share_their_damage():
    frame = SETTING.frame()
    for kind in ("at random", "in blocks", "outages"):
        first, second = histories(frame, SETTING, kind, 0.5, seed=0)[:2]
        assert first["item_id"] == second["item_id"]
        np.testing.assert_array_equal(first["target"], second["target"][: len(first["target"])])


def test_a_jittered_clock_lets_no_label_into_the_history_and_moves_values_by_a_few_steps():
    frame = SETTING.frame()
    for whole, hurt in zip(complete(frame), histories(frame, SETTING, "jittered clock", 0.0, seed=1), strict=True):
        place = {value: step for step, value in enumerate(whole["target"]) if np.isfinite(value)}
        steps = [(at, place[value]) for at, value in enumerate(hurt["target"]) if np.isfinite(value)]
        assert steps, "a label's value would be no key of its own history"
        moved = np.array([at - was for at, was in steps])
        assert np.abs(moved).max() <= JITTER
        assert (moved < 0).any()
        assert (moved > 0).any()


def test_forward_filling_holds_the_last_value_and_leaves_the_entry_alone():
    target = np.array([np.nan, 2.0, np.nan, np.nan, 5.0, np.nan])
    entry = {"item_id": "a", "start": pd.Period("2024-01-01", freq="h"), "target": target}
    (made,) = forward_filled([entry])
    assert made["target"].tolist() == [2.0, 2.0, 2.0, 2.0, 5.0, 5.0]
    assert np.isnan(target).sum() == 4
    assert forward_filled([{**entry, "target": target[None]}])[0]["target"].shape == (1, 6)


class Recorder:
    """A contender's predictor that keeps what it was asked."""

    def __init__(self, inner: SeasonalNaive) -> None:
        self.inner, self.asked = inner, []

    def predict(self, dataset):
        self.asked.append(list(dataset))
        return self.inner.predict(self.asked[-1])


def test_curves_judge_every_model_on_the_same_histories_against_the_original_labels():
    frame = SETTING.frame()
    naive = SeasonalNaive(6, 24)
    first, second = Recorder(naive), Recorder(naive)
    models = [Contender(name="gaps", predictor=first), Contender(name="filled", predictor=second, fill=True)]
    points = curves(models, SETTING, frame, kinds=("at random", "jittered clock"), shares=(0.0, 0.5), seed=2)
    assert [(p.contender.name, p.kind, p.share) for p in points] == [
        (name, kind, share)
        for kind in ("at random", "jittered clock")
        for share in (0.0, 0.5)
        for name in ("gaps", "filled")
    ]
    found = {(p.contender.name, p.kind, p.share): p for p in points}
    # this baseline fills by the last value itself
    for kind in ("at random", "jittered clock"):
        assert found["gaps", kind, 0.5].score == found["filled", kind, 0.5].score
    score = pooled(evaluate(naive, PROTOCOL.test(entries(frame, "1h")), season=24))
    assert found["gaps", "at random", 0.0].score == score
    assert found["gaps", "at random", 0.0].rise == 0
    assert found["gaps", "at random", 0.0].lost == 0
    assert found["gaps", "jittered clock", 0.0].lost > 0.2
    assert found["gaps", "at random", 0.5].rise == pytest.approx(
        found["gaps", "at random", 0.5].score.crps / score.crps - 1
    )
    # MASE's unit is that of the original past, so it grows with the error alone
    assert found["gaps", "at random", 0.5].score.mase > score.mase
    assert len(first.asked) == len(second.asked) == 4
    for gaps, filled in zip(first.asked, second.asked, strict=True):
        for mine, theirs in zip(gaps, filled, strict=True):
            seen = np.isfinite(mine["target"])
            np.testing.assert_array_equal(mine["target"][seen], theirs["target"][seen])
            assert np.isfinite(theirs["target"]).all()


def test_rows_name_the_figures_of_every_share():
    frame = SETTING.frame()
    naive = Contender(name="naive", predictor=SeasonalNaive(6, 24), cpu_seconds=1.5)
    made = rows(curves([naive], SETTING, frame, kinds=("outages",), shares=(0.0, 0.5), seed=0), SETTING, seed=0)
    assert [one.what for one in made] == ["waves, outages: naive"]
    (one,) = made
    assert one.seed == 0
    assert one.cpu_seconds == 1.5
    assert {f"{name} {share}" for name in ("CRPS", "MASE", "relative", "coverage", "lost", "rise") for share in
            ("0", "0.5")} == set(one.values)  # fmt: skip
    assert one.shape["kind"] == "outages"


def test_the_tables_of_curves_and_of_recovery_come_from_one_file_of_rows(tmp_path: Path):
    def one(what: str, recovery: int | None, **values: float) -> Row:
        return row(what, {}, seed=0, recovery=recovery, **values)

    append(
        tmp_path / "robustness.jsonl",
        one("set, at random: a", None, **{"CRPS 0": 0.25, "MASE 0": 0.75, "relative 0": 0.5}),
        one("set, outage of 6: a", 6, **{"ratio 0": 2.0}),
        one("set, outage of 6: b", None, **{"ratio 0": 3.0}),
    )
    names = ("robustness", "robustness_mase", "robustness_relative")
    text = render("".join(f"<!-- table: {name} of set, at -->\n<!-- end -->\n" for name in names), tmp_path)
    for figure in ("0.250", "0.750", "0.500"):
        assert f"| set, at random: a | {figure} | 0 |" in text
    text = render("<!-- table: recovery of set, outage -->\n<!-- end -->", tmp_path)
    assert "| set, outage of 6: a | 6 | 2.000 |" in text
    assert "| set, outage of 6: b | - | 3.000 |" in text


def test_relative_leaves_silent_channels_out():
    def score(crps: float) -> Score:
        return Score(crps=crps, mase=1.0, coverage=0.8, observed=10)

    ours = {("a",): score(0.1), ("b",): score(0.4), ("c",): score(0.0), ("d",): score(float("nan"))}
    theirs = {("a",): score(0.2), ("b",): score(0.2), ("c",): score(0.1), ("d",): score(float("nan"))}
    assert relative_crps(ours, theirs) == pytest.approx(1.0)
    with pytest.raises(SchemaError, match="same groups"):
        relative_crps(ours, {("a",): score(0.2)})


def test_the_settings_of_record_are_hourly_days_ahead():
    assert list(SETTINGS) == ["ETTh1", "Beijing", "UCI", "Jena"]
    for setting in SETTINGS.values():
        assert period_ns(setting.period) == 3600 * 10**9
        assert (setting.protocol.prediction_length, setting.protocol.season) == (24, 24)
    assert SHARES[0] == 0


def test_an_unknown_kind_is_named():
    with pytest.raises(ConfigError, match="kind: must be one of at random"):
        histories(SETTING.frame(), SETTING, "by moths", 0.5, seed=0)


def test_recovery_is_the_first_step_after_which_nothing_is_out_of_bounds():
    assert recovered((0, 1, 2, 4), (1.0, 1.05, 1.09, 0.9)) == 0
    assert recovered((0, 1, 2, 4), (3.0, 1.05, 1.2, 1.1)) == 4
    assert recovered((0, 1, 2, 4), (3.0, 1.0, 1.0, 1.2)) is None
    assert recovered((0, 1), (float("nan"), 1.0)) == 1


def test_the_naive_forecast_has_recovered_when_a_season_was_seen_again():
    dataset = entries(waves(gaps=0.0, streams=1), "1h")
    naive = Contender(name="naive", predictor=SeasonalNaive(6, 24))
    ends = positions(120, 400, 4, horizon=6, after=48)
    assert ends[0] == 120
    assert ends[-1] == 400 - 6 - 48
    made = recovery([naive], dataset, name="waves", horizon=6, ends=ends, lengths=(1, 24, 30),
                    after=(0, 6, 12, 18, 24, 48), history=100, seed=3)  # fmt: skip
    found = {one.shape["outage"]: one.values for one in made}
    assert [one.what for one in made] == [f"waves, outage of {n}: naive" for n in (1, 24, 30)]
    assert found[30]["recovery"] == 24
    assert found[24]["ratio 0"] > 5
    assert found[24]["ratio 24"] == 1
    assert found[24]["ratio 0"] >= found[24]["ratio 18"] > 1.1


def test_recovery_reads_equal_histories_that_differ_in_the_outage_alone():
    dataset = entries(waves(gaps=0.0, streams=1), "1h")
    seen = Recorder(SeasonalNaive(6, 24))
    recovery([Contender(name="n", predictor=seen)], dataset, name="w", horizon=6, ends=(120, 200), lengths=(5,),
             after=(0, 3), history=100)  # fmt: skip
    whole, hurt = seen.asked
    for mine, theirs in zip(hurt, whole, strict=True):
        assert mine["start"] == theirs["start"]
        missing = np.flatnonzero(np.isnan(mine["target"]))
        assert len(mine["target"]) == 100
        assert len(missing) == 5
        assert 100 - missing[-1] - 1 in (0, 3)
        assert not np.isnan(theirs["target"]).any()


def test_what_a_study_of_recovery_can_not_do_is_named():
    with pytest.raises(ConfigError, match="count: 3 outages do not fit"):
        positions(350, 400, 3, horizon=24, after=48)
    with pytest.raises(ConfigError, match="after: must ascend from 0"):
        recovery([], [], name="w", horizon=6, ends=(120,), after=(1, 0))
    with pytest.raises(ConfigError, match="history: 100 steps must lie before"):
        recovery([], [], name="w", horizon=6, ends=(50,), lengths=(5,), after=(0,), history=100)
