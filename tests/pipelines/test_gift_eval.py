"""`tsgdn2 backtest --protocol gift-eval` on a small set: rows, resumption, ranks, streaming, rivals."""

from __future__ import annotations

import datetime
import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
import pytest

from tsgdn2.datasets.catalog import ETT_CHANNELS
from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.gift_eval import CONFIGURATIONS, configuration, series
from tsgdn2.evaluation.leaderboard import published
from tsgdn2.evaluation.rows import Row, read, row
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.gift_eval_recipes import FULL, RECIPES, recipe, rival_digest, seconds
from tsgdn2.pipelines.gift_eval_report import Standing, page
from tsgdn2.pipelines.gift_eval_rivals import rival
from tsgdn2.pipelines.gift_eval_task import Task, difference, measure, tasks
from tsgdn2.pipelines.jobs import Backtest

pytestmark = pytest.mark.usefixtures("at_home")
DAYS = 252
RUN = ["backtest", "--protocol", "gift-eval", "--configurations", '["ett1/D","ett1/W"]', "--budget", "0.5", "--quiet"]


@pytest.fixture
def small(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine months of quarter hours in place of ETTm1's two years, in a folder for TSGDN2_DATA; and an MLflow store."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    rng, count = np.random.default_rng(0), 96 * DAYS + 7
    day = np.arange(count) * 2 * np.pi / 96
    when = [datetime.datetime(2016, 7, 1) + datetime.timedelta(minutes=15 * step) for step in range(count)]
    level = np.cumsum(rng.normal(size=(7, count)), axis=1) * 0.02
    values = 10 + level + np.sin(day) + np.cos(day / 7) + 0.3 * rng.normal(size=(7, count))
    (tmp_path / "data" / "ett").mkdir(parents=True)
    pl.DataFrame({"date": when, **dict(zip(ETT_CHANNELS, values, strict=True))}).write_parquet(
        tmp_path / "data" / "ett" / "ETTm1.parquet"
    )
    monkeypatch.setenv("TSGDN2_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.usefixtures("small")
def test_a_run_makes_every_row_once_and_sets_it_beside_the_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--models", '["tsgdn2","DLinear"]', "--workers", "1"]) == 0
    said = capsys.readouterr().out
    rows = read(Path("runs/gift-eval/rows.jsonl"))
    assert [(one.what, one.shape["configuration"], one.seed) for one in rows] == [
        ("seasonal_naive", "ett1/D/short", None), ("seasonal_naive", "ett1/W/short", None),
        ("tsgdn2", "ett1/D/short", 0), ("tsgdn2", "ett1/W/short", 0),
        ("DLinear", "ett1/D/short", 0), ("DLinear", "ett1/W/short", 0),
    ]  # fmt: skip
    for one in rows[2:4]:
        assert one.values["streamed_minus_batch"] <= 1e-4  # one pass, a forecast at each origin
        assert one.values["steps"] >= 1
        assert one.shape["windows"] == 1
    assert all("error" not in one.values for one in rows)
    markdown = Path("runs/gift-eval/report.md").read_text()
    assert "| TempoPFN | zero-shot |" in markdown
    assert "ett1/W/short" in markdown
    assert "2 of 2 passes are within 0.0001" in markdown
    assert Path("runs/gift-eval/report.html").read_text().count("<table>") == 5
    assert {one.what for one in read(Path("runs/gift-eval/standing.jsonl"))} >= {"all: tsgdn2", "ett1/W/short"}
    assert "Geometric means over 2 of 23 configurations" in said
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{Path('runs/mlflow.db').resolve()}")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (found,) = client.search_runs(ids)
    assert found.data.metrics["CRPS_relative/seasonal_naive"] == pytest.approx(1.0)
    assert found.data.metrics["MASE/tsgdn2/ett1/D/short"] == rows[2].values["MASE"]

    # again, with another model and two processes, after a kill in the middle of a line: what is there stays as it is
    with Path("runs/gift-eval/rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"what": "tsgdn')
    assert main([*RUN, "--models", '["tsgdn2","DLinear","naive"]', "--workers", "2"]) == 0
    assert "6 of 8 rows are in" in capsys.readouterr().out
    again = read(Path("runs/gift-eval/rows.jsonl"))
    assert again[:6] == rows
    assert sorted(one.what for one in again[6:]) == ["naive", "naive"]


@pytest.mark.parametrize(
    ("model", "gap", "answered"), [("tsgdn2", None, False), ("tsgdn2", 1e-7, True), ("DLinear", None, True)]
)
def test_a_row_that_was_not_streamed_does_not_answer_a_task_that_streams(
    model: str, gap: float | None, answered: bool
) -> None:
    task = Task(model=model, configuration="ett1/W/short", seed=0, budget=20.0)
    found = row(model, {"configuration": "ett1/W/short"}, seed=0, streamed_minus_batch=gap)
    assert task.answered_by(found) == answered
    assert replace(task, streaming=False).answered_by(found)
    assert not task.answered_by(None)


def test_a_forecast_that_is_not_finite_is_no_agreement() -> None:
    batch = np.zeros((9, 2))
    assert difference(batch + 0.5, batch, 2.0, "s") == 0.25
    assert difference(batch + 0.5, batch, 0.0, "a constant channel") == 0.5
    for bad in (np.nan, np.inf):
        with pytest.raises(SchemaError, match="window 3 are not finite"):
            difference(np.where(np.eye(9, 2) > 0, bad, 0.0), batch, 2.0, "s, window 3")


@pytest.mark.usefixtures("small")
def test_a_model_that_fails_leaves_a_row_that_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = RECIPES["ett/W"]
    monkeypatch.setitem(RECIPES, "ett/W", replace(own, model={**own.model, "lag_skip": 0}))
    assert main([*RUN[:3], "--configurations", '["ett1/W"]', "--workers", "1", "--quiet"]) != 0
    said = capsys.readouterr()
    assert "lag_skip: must hold a season" in said.out
    assert "rows: 1 of 2 could not be made" in said.err
    failed = read(Path("runs/gift-eval/rows.jsonl"))[-1]
    assert "ConfigError" in str(failed.values["error"])
    assert "tsgdn2" not in Path("runs/gift-eval/report.md").read_text()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["DeepAR", "PatchTST", "TFT", "iTransformer", "SeasonalNaive"])
def test_every_rival_is_trained_and_judged_with_values_missing(name: str, tmp_path: Path) -> None:
    one = configuration("ett1/W/short")
    data = series(one)
    data[0]["target"][3:5] = np.nan  # type: ignore[index]
    train = one.protocol(len(data[0]["target"])).train(data)  # type: ignore[arg-type]
    predictor, budget = rival(name, one, train, seconds=0.05, seed=0)
    assert budget.steps >= (name != "SeasonalNaive")
    entries = [{**entry, "target": np.asarray(entry["target"], np.float32)} for entry in data]
    made = list(predictor.predict(entries))
    assert [forecast.item_id for forecast in made] == [entry["item_id"] for entry in data]
    assert all(np.isfinite(forecast.quantile(0.9)).all() for forecast in made)
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.usefixtures("small")
def test_a_seed_gives_the_same_row_again() -> None:
    (task,) = tasks(["tsgdn2"], ["ett1/W/short"], [3], 1.0, streaming=False)[1:]
    first, second = measure(task), measure(task)
    assert first.values["CRPS"] == second.values["CRPS"]
    assert "streamed_minus_batch" not in first.values


@pytest.mark.usefixtures("small")
def test_settings_can_be_judged_without_sight_of_the_test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = [*RUN[:3], "--configurations", '["ett1/D"]', "--budget", "0.5", "--quiet", "--workers", "1", "--inside"]
    assert main([*inner, "true"]) == 0
    seen = read(Path("runs/gift-eval-inside/rows.jsonl"))
    assert [(one.what, one.shape["inside"]) for one in seen] == [("seasonal_naive", True), ("tsgdn2", True)]
    assert "streamed_minus_batch" not in seen[1].values

    whole = len(series(configuration("ett1/D/short"))[0]["target"])  # type: ignore[arg-type]
    spoilt = configuration("ett1/D/short").protocol(whole).train_end

    def later_is_absurd(one: object) -> list[dict[str, object]]:
        data = series(one)  # type: ignore[arg-type]
        for entry in data:
            entry["target"][spoilt:] = 1e9  # type: ignore[index]
        return data

    monkeypatch.setattr("tsgdn2.pipelines.gift_eval_task.series", later_is_absurd)
    task = Task(model="tsgdn2", configuration="ett1/D/short", seed=0, budget=0.5, streaming=False, inside=True)
    assert measure(task).values["CRPS"] == seen[1].values["CRPS"]
    assert replace(task, inside=False).key != task.key


def rows_of(model: str, factor: float, seed: int | None) -> list[Row]:
    """Rows of a model whose figures are seasonal_naive's published ones times a factor."""
    naive = published()["seasonal_naive"].figures
    return [
        Row(what=model, shape={"configuration": one.name}, device="here", versions={}, commit="-", date="-", seed=seed,
            cpu_seconds=60.0, values={"coverage": 0.8, "MASE": factor * naive["MASE"][one.name],
                                      "CRPS": factor * naive["CRPS"][one.name]})
        for one in CONFIGURATIONS
    ]  # fmt: skip


def test_ranks_count_the_published_models_that_are_better() -> None:
    names = [one.name for one in CONFIGURATIONS]
    rows = [*rows_of("seasonal_naive", 1.0, None), *rows_of("tsgdn2", 0.48, 0), *rows_of("tsgdn2", 0.5, 1)]
    standing = Standing.of(rows, names, published())
    line = next(line for line in standing.aggregate()[2] if line["model"] == "tsgdn2")
    assert line["CRPS rel."] == "0.490 (0.480 - 0.500)"
    assert line["rank of CRPS"] == "73"
    assert line["rank"] == "1"
    assert line["CPU-min"] == "23.0"
    naive = next(line for line in standing.aggregate()[2] if line["model"] == "seasonal_naive")
    assert naive["rank of CRPS"] == "115"
    assert len(standing.aggregate()[2]) == 2 + 120
    assert standing.side_by_side("MASE")[2][-1]["xLSTM-Mixer *"] == "0.894"
    text = page(standing, Backtest(protocol="gift-eval", seeds=(0, 1)))
    assert "all 23 configurations" in json.dumps(text._markdown)


def test_the_lines_for_a_readme_are_the_means_and_every_configuration() -> None:
    names = [one.name for one in CONFIGURATIONS]
    rows = [*rows_of("seasonal_naive", 1.0, None), *rows_of("tsgdn2", 0.48, 0), *rows_of("tsgdn2", 0.5, 1)]
    found = {(one.what, one.seed): one for one in Standing.of(rows, names, published()).lines()}
    assert found["all: tsgdn2", 1].values["CRPS relative"] == pytest.approx(0.5)
    assert found["all: tsgdn2", 1].cpu_seconds == pytest.approx(60.0 * 23)
    assert found["all: seasonal_naive", None].values["MASE relative"] == pytest.approx(1.0)
    assert found["all: xLSTM-Mixer, published", None].values["MASE relative"] == pytest.approx(0.894, abs=1e-3)
    assert found["ett2/H/short", 0].values["CRPS relative"] == pytest.approx(0.48)
    assert found["ett2/H/short", 0].values["coverage"] == 0.8
    assert sum(one.what in names for one in found.values()) == 2 * 23


def test_a_model_without_all_configurations_has_no_geometric_mean() -> None:
    names = [one.name for one in CONFIGURATIONS]
    rows = [*rows_of("seasonal_naive", 1.0, None), *rows_of("tsgdn2", 0.5, 0)[:-1]]
    standing = Standing.of(rows, names, published())
    line = next(line for line in standing.aggregate()[2] if line["model"] == "tsgdn2")
    assert line["CRPS rel."] == line["rank of CRPS"] == "-"
    assert standing.details("tsgdn2")[2][-1]["MASE"] == "-"


def test_a_configuration_without_all_seeds_has_no_geometric_mean() -> None:
    names = [one.name for one in CONFIGURATIONS]
    rows = [*rows_of("seasonal_naive", 1.0, None), *rows_of("tsgdn2", 0.5, 0), *rows_of("tsgdn2", 0.6, 1)[:-1]]
    line = next(line for line in Standing.of(rows, names, published()).aggregate()[2] if line["model"] == "tsgdn2")
    assert line["CRPS rel."].startswith("-")


def test_the_budget_of_a_family_is_shared_by_its_configurations() -> None:
    for family in ("ett1", "ett2", "jena_weather"):
        own = [one for one in CONFIGURATIONS if one.dataset == family]
        assert sum(seconds(one, 20.0) for one in own) == pytest.approx(1_200)
    one = configuration("ett1/H/short")
    assert recipe(one).epochs_at(FULL) == recipe(one).epochs == recipe(one).epochs_at(1e6)
    assert recipe(one).epochs_at(1e-6) == 1
    assert rival_digest(one, 10.0) != rival_digest(one, 20.0)
    assert recipe(configuration("ett2/H/short")).digest == recipe(one).digest
    assert recipe(configuration("jena_weather/H/short")).digest != recipe(one).digest


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "predictor: is needed"),
        ({"protocol": "gift-eval", "models": ("Prophet",)}, "models: must be among tsgdn2"),
        ({"protocol": "gift-eval", "data": "nyc"}, "gift-eval trains on its own sets"),
        ({"protocol": "gift-eval", "budget": 0.0}, "budget: must be above 0"),
        ({"protocol": "gift-eval", "seeds": ()}, "seeds: must hold at least one"),
    ],
)
def test_what_a_protocol_lacks_or_can_not_use_is_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Backtest(**options)  # type: ignore[arg-type]
