"""The robustness benchmark and the rival's training, on small real trainings of series that are made here."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.backtest import Protocol
from tsgdn2.evaluation.gru_d import GRUD, GRUDConfig, lane
from tsgdn2.evaluation.robustness import Setting
from tsgdn2.evaluation.rows import row
from tsgdn2.pipelines.gru_d_training import Sample, Windows, held_out, train
from tsgdn2.pipelines.jobs import Bench
from tsgdn2.pipelines.robustness import (
    FILLED,
    NAIVE,
    OURS,
    PLAIN,
    PLAIN_FILLED,
    PLAIN_RIVAL,
    QUICK,
    RIVAL,
    Plan,
    contenders,
    study,
)
from tsgdn2.pipelines.robustness_figures import Line, damage_curves, recovery_curves

HOUR = 3600 * 10**9
PNG = b"\x89PNG\r\n"
SMALL = {
    "patch_length": 4, "context_length": 32, "width": 8, "heads": 2, "key_dim": 4, "value_dim": 4, "mlp": 8,
    "batch_size": 4, "num_batches_per_epoch": 2, "lag_skip": 8,
}  # fmt: skip


def waves(rows_: int = 420) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    start = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    t = np.arange(rows_)
    time = pl.datetime_range(start, start + datetime.timedelta(hours=rows_ - 1), "1h", time_unit="ns", eager=True)
    columns = {
        name: pl.Series(5.0 + c + np.sin(2 * np.pi * t / 24 + c) + 0.1 * rng.normal(size=rows_))
        for c, name in enumerate(("low", "high"))
    }
    return pl.DataFrame({"stream": ["s"] * rows_, "time": time, **columns})


def setting(name: str) -> Setting:
    protocol = Protocol(name=name, prediction_length=6, season=24, windows=2, distance=6, train_end=320)
    return Setting(name=name, load=waves, period="1h", protocol=protocol)


PLAN = Plan(
    settings=(setting("one"), setting("two")), kinds=("at random", "jittered clock"), shares=(0.0, 0.5), epochs=1,
    hidden_shares=(0.5,), rival_width=4, lengths=(6,), after=(0, 2), history=60, outages=2,
)  # fmt: skip


def test_a_study_judges_every_model_and_the_further_seeds_repeat_the_first_claim(tmp_path: Path):
    made = list(study(PLAN, (3, 4), SMALL, tmp_path))
    models = (OURS, FILLED, RIVAL, NAIVE)
    whole = (*models, PLAIN, PLAIN_FILLED, PLAIN_RIVAL)
    first = [one.what for one in made if one.seed == 3]
    second = [one.what for one in made if one.seed == 4]
    assert set(first) == {
        *(f"one, at random: {name}" for name in whole),
        *(f"one, jittered clock: {name}" for name in models),
        *(f"two, {kind}: {name}" for kind in PLAN.kinds for name in models),
        *(f"one, outage of 6: {name}" for name in models),
    }
    assert set(second) == {f"one, at random: {name}" for name in (OURS, FILLED, NAIVE, PLAIN, PLAIN_FILLED)}
    assert len(first) == len(set(first))
    found = {one.what: one for one in made if one.seed == 3}
    ours, filled = found[f"one, at random: {OURS}"], found[f"one, at random: {FILLED}"]
    assert ours.values["CRPS 0"] == filled.values["CRPS 0"]
    assert ours.values["CRPS 0.5"] != filled.values["CRPS 0.5"]
    assert ours.values["lost 0.5"] == found[f"one, at random: {NAIVE}"].values["lost 0.5"]
    assert ours.cpu_seconds
    assert found[f"one, outage of 6: {OURS}"].values["ratio 0"] is not None
    pictures = {path.name for path in tmp_path.iterdir()}
    assert pictures == {"robustness-one.png", "robustness-two.png", "recovery-one.png"}
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in pictures)


def test_contenders_share_windows_scaler_and_hidden_cells_and_never_see_the_judged_rows():
    one = setting("one")
    frame = one.frame()
    ours, filled, rival, naive = contenders(PLAN, one, frame, 0, SMALL, rival=True)
    assert filled.predictor is ours.predictor
    assert filled.fill
    assert [one.fill for one in (ours, rival, naive)] == [False] * 3
    config, theirs = ours.predictor.config, rival.predictor.model.config
    assert (theirs.lag_skip, theirs.half_life) == (config.lag_skip, config.half_life)
    assert theirs.context_length == SMALL["context_length"]
    later = frame.with_columns(
        pl.when(pl.int_range(pl.len()) < 320).then(pl.col("low")).otherwise(pl.col("low") * 100).alias("low")
    )
    again = contenders(PLAN, one, later, 0, SMALL, rival=True)
    assert again[0].predictor == ours.predictor
    for mine, other in zip(rival.predictor.model.parameters(), again[2].predictor.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    plain, plain_filled = contenders(PLAN, one, frame, 0, SMALL, rival=False, complete=True)
    assert plain_filled.predictor is plain.predictor
    assert plain.predictor != ours.predictor


def sample(values: np.ndarray, cut: int, hidden: np.ndarray | None = None) -> Sample:
    return Sample(lane(values, 0, 1.0, 50.0, hidden), values, cut)


CONFIG = GRUDConfig(prediction_length=3, period_ns=HOUR, width=4, lag_skip=5, context_length=16)


def test_hidden_cells_are_asked_for_but_never_shown():
    values = np.arange(100.0)
    hidden = np.random.default_rng(0).random(100) < 0.6
    model = GRUD(CONFIG)
    windows = Windows(model, [sample(values, 80, hidden)], stride=4, batch_size=6, batches=5, seed=0)
    assert len(windows) == 5
    for batch in windows:
        assert batch.weight[:, 0].any()
        assert (batch.inputs.seen.double().mean() < 0.7).item()
        assert (batch.inputs.x[~batch.inputs.seen] == 0).all()
        assert batch.inputs.x.shape[1] == 16 + 4
        # a target is there although most inputs are hidden
        assert batch.weight.mean() > 0.9


def test_training_asks_for_nothing_behind_the_cut_and_validation_for_all_of_it_once():
    values = np.where(np.arange(100) < 80, np.sin(np.arange(100.0)), 1e6)
    one, model = sample(values, 80), GRUD(CONFIG)
    for batch in Windows(model, [one], stride=4, batch_size=8, batches=20, seed=1):
        assert np.abs(batch.target).max() < 1e3
        assert batch.weight.any()
    checks = held_out(model, [one, one], stride=1, batch_size=2)
    assert sum(int(batch.weight[:, :, 0].sum()) for batch in checks) == 2 * 20
    assert all((batch.inputs.x.shape[0], batch.inputs.x.shape[1]) <= (2, 20) for batch in checks)


def entry(name: str, values: np.ndarray) -> dict[str, object]:
    return {"item_id": name, "start": pd.Period("2024-01-01", freq="h"), "target": values}


def test_the_rival_learns_and_the_same_seed_gives_the_same_rival():
    t = np.arange(400)
    data = [entry(str(i), np.sin(2 * np.pi * t / 24 + i) * (i + 1)) for i in range(3)]
    options = {"batches": 10, "batch_size": 8, "hidden_shares": (0.5,), "seed": 1, "lr": 2e-2}
    config = GRUDConfig(prediction_length=6, period_ns=HOUR, width=16, lag_skip=0, context_length=48)

    def error(epochs: int) -> float:
        predictor = train(data, config, epochs=epochs, **options)
        found = [forecast.quantile(0.5) for forecast in predictor.predict(data)]
        truth = [np.sin(2 * np.pi * np.arange(400, 406) / 24 + i) * (i + 1) for i in range(3)]
        return float(np.mean(np.abs(np.array(found) - np.array(truth)) / np.arange(1, 4)[:, None]))

    assert error(10) < 0.5 * error(1)
    one, two = (train(data, config, epochs=1, **options).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_the_rival_can_not_train_on_is_named():
    with pytest.raises(SchemaError, match="training_data: empty"):
        train([], CONFIG, epochs=1, batches=1)
    with pytest.raises(SchemaError, match="univariate targets"):
        train([entry("a", np.zeros((2, 50)))], CONFIG, epochs=1, batches=1)


def test_figures_have_a_panel_per_kind_and_per_outage():
    lines = [Line(kind, name, x, 0.1 + x) for kind in ("a", "b", "c") for name in ("m", "n") for x in (0.0, 0.5)]
    assert damage_curves("set", lines, "CRPS").startswith(PNG)
    rows = [row("set, outage of 6: m", {}, **{"ratio 0": 2.0, "ratio 4": 1.0})]
    assert recovery_curves(rows, (0, 4)).startswith(PNG)


def test_the_quick_form_is_small_and_belongs_to_robustness_alone():
    assert len(QUICK.settings) == 1
    assert QUICK.epochs == 1
    assert Bench(what="robustness", quick=True).quick
    with pytest.raises(ConfigError, match="quick: only robustness"):
        Bench(what="etth1", quick=True)
    with pytest.raises(ConfigError, match="seeds: must hold at least one"):
        Bench(seeds=())
