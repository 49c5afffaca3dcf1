"""The pages of the benchmarks: what they say is what the rows say, and every file of record makes one."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from tsgdn2.evaluation.rows import RESULTS, Row, append, read, row
from tsgdn2.pipelines.bench_report import SUITES, metrics, newest, page
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.events import clean_keys

RECORDS = sorted(path.stem for path in RESULTS.glob("*.jsonl") if path.stem in SUITES)


def serving() -> list[Row]:
    """Rows as serving_rows makes them: ours and two rivals, at two ages and two numbers of streams."""
    made = []
    for count, age, first in ((1, 1000, 1000), (1, 10_000, 1000), (10, 128, 128), (100, 128, 128)):
        for name, update, forecast in (("tsgdn2, observe and forecast", 400.0, 2000.0), ("River, learn", 60.0, 400.0),
                                       ("GluonTS DeepAR, run again", 3.0, 30_000.0)):  # fmt: skip
            values: dict[str, float] = {"update_us": update, "update_patch_us": update, "update_cpu_us": update}
            values |= {"forecast_us": forecast, "forecast_cpu_us": forecast, "bytes": 8576}
            if not name.startswith("tsgdn2"):
                values |= {"update_over_ours": update / 400, "forecast_over_ours": forecast / 2000}
            if (count, age) not in ((1, first), (10, 128), (100, 128)):
                values |= {"update_over_youngest": 1.04, "forecast_over_youngest": 0.99}
            shape = {"streams": count, "observations": age, "horizon": 24, "turns": 3}
            made.append(row(f"{name}, {count} stream{'s' if count > 1 else ''}", shape, seed=0, **values))
    return made


@pytest.mark.parametrize("what", RECORDS)
def test_rows_of_record_make_a_page_and_metrics(what: str, tmp_path: Path) -> None:
    rows = read(RESULTS / f"{what}.jsonl")
    written = page(what, newest(rows)).write(tmp_path, what)
    text = written.with_suffix(".md").read_text(encoding="utf-8")
    assert text.startswith(f"# {SUITES[what].title}\n")
    assert all(one.what.replace("|", "\\|") in text for one in rows), "every row is on the page, losing ones too"
    assert all(clean_keys("metrics", list(metrics(one))) is not None for one in rows)
    assert "http" not in written.read_text(encoding="utf-8").replace("http://www.w3.org", "")


def test_the_record_holds_what_has_a_figure() -> None:
    assert {"nab", "calibration"} <= set(RECORDS)


def test_the_sentences_of_serving_name_who_is_faster(tmp_path: Path) -> None:
    written = page("serving", serving()).write(tmp_path, "serving")
    text = written.with_suffix(".md").read_text(encoding="utf-8")
    assert ("1 stream with 10,000 observations behind: a forecast takes less than ours with River (x 0.2); more with "
            "GluonTS DeepAR (x 15).") in text  # fmt: skip
    assert "100 streams with 128 observations behind: an update takes less than ours with GluonTS DeepAR" in text
    assert "Our update there takes 1.04 times what it takes at 1,000 observations, a forecast 0.99 times" in text
    assert (tmp_path / "figures" / "serving.png").read_bytes()[:4] == b"\x89PNG"
    assert text.count("| tsgdn2, observe and forecast,") == 4


def test_calibration_counts_its_passes_and_names_the_seed_that_misses() -> None:
    def stream(name: str, seed: int, off: float) -> Row:
        values = {"off": off, "coverage": 0.8 + off, "split coverage": 0.7, "width ratio": 1.1}
        return row(f"real/{name}", {"patch": 8}, seed=seed, **values)

    def every(seed: int, width: float) -> Row:
        values = {"coverage": 0.8, "off": 0.01, "worst off": 0.03, "width ratio": width}
        return row("all 2 streams", {"patch": 8}, seed=seed, **values)

    rows = [stream("a", 0, 0.01), stream("b", 0, 0.03), every(0, 1.1), stream("a", 1, 0.0), every(1, 1.3)]
    said = SUITES["calibration"].says(rows)
    assert said[0].startswith("Adaptive intervals are within 2 points of 80 % on 2 of 3 passes of a stream, split")
    assert said[0].endswith("on 0.")
    assert "Seed 0: mean width 1.100 times split-conformal's, which keeps the bar of 1.2" in said[1]
    assert "Seed 1" in said[2]
    assert "misses the bar" in said[2]


def test_nab_says_who_is_first_and_what_chance_scores() -> None:
    def detector(name: str, score: float, seed: int | None = None) -> Row:
        values = {"standard": score, "reward low FP": score, "reward low FN": score, "windows_found": 3}
        return row(name, {"streams": 2}, seed=seed, **values)

    rows = [detector("random", 10.0, 0), detector("random", 12.0, 1), detector("moving z-score", 27.8),
            detector("tsgdn2, surprise", 16.0, 0), detector("tsgdn2, surprise", 20.0, 1),
            row("HTM (published)", {"streams": 58}, standard=70.0)]  # fmt: skip
    assert SUITES["nab"].says(rows)[0] == (
        "**standard**: moving z-score is first with 27.8; ours at best 18.0 (16.0 - 20.0) (tsgdn2, surprise, place 2 "
        "of 3); random numbers score 11.0 (10.0 - 12.0)."
    )


def test_of_rows_of_one_name_size_and_seed_the_newest_is_shown() -> None:
    rows = [row("a", {"n": 1, "turns": 3}, seed=0, x=1.0), row("b", {"n": 1}, x=5.0),
            row("a", {"n": 2}, seed=0, x=2.0), row("a", {"n": 1, "turns": 9}, seed=0, x=3.0)]  # fmt: skip
    assert [(one.what, one.values["x"]) for one in newest(rows)] == [("a", 3.0), ("b", 5.0), ("a", 2.0)]


@pytest.mark.usefixtures("at_home")
def test_a_page_is_made_of_rows_that_are_there_and_logged_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--what", "serving", "--page_only", "true", "--output", "out", "--quiet"]
    assert main(command) == 2
    assert "page_only: out/serving.jsonl has no rows yet" in capsys.readouterr().err
    append(Path("out/serving.jsonl"), *serving())
    assert main(command) == 0
    assert "page: out/serving.html" in capsys.readouterr().out
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{Path('runs/mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name("bench")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "bench serving"
    assert run.data.params["what"] == "serving"
    named = {Path(one.path).name for one in client.list_artifacts(run.info.run_id, "bench")}
    assert named == {"serving.jsonl", "serving.html", "serving.md", "figures"}
    assert [Path(one.path).name for one in client.list_artifacts(run.info.run_id, "bench/figures")] == ["serving.png"]
    assert len(read(Path("out/serving.jsonl"))) == 12, "nothing was measured"
