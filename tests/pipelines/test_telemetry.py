"""Anomaly scores and calibration of telemetry in small: files of the benchmark's form in, rows that add up out."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pytest

from tsgdn2.datasets.nab import NAB_STREAMS, nab
from tsgdn2.evaluation.rows import read
from tsgdn2.pipelines import calibration, nab_bench, telemetry
from tsgdn2.pipelines.calibration import WANTED, Given, figures, interval_score, rolling, split_factor
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.telemetry import QUICK, Budget

ROWS = 260
WINDOW = (140, 160)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The streams of the quick form, small: a rounded wave, a burst inside the one window, one row out of order."""
    home = tmp_path / "nab"
    (home / "labels").mkdir(parents=True)
    labels: dict[str, list[list[str]]] = {f"{name}.csv": [] for name in NAB_STREAMS}
    begin = datetime.datetime(2014, 2, 14, 14, 27)
    for seed, name in enumerate(QUICK):
        rng = np.random.default_rng(seed)
        values = np.round(10 + np.sin(np.arange(ROWS) / 9) + 0.2 * rng.normal(size=ROWS), 1)
        values[WINDOW[0] + 5 : WINDOW[0] + 8] += 40
        minutes = 5 * np.arange(ROWS)
        minutes[100] -= 60
        stamps = [str(begin + datetime.timedelta(minutes=int(m))) for m in minutes]
        path = home / "data" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("timestamp,value\n" + "".join(f"{s},{v}\n" for s, v in zip(stamps, values, strict=True)))
        labels[f"{name}.csv"] = [[f"{stamps[row]}.000000" for row in WINDOW]]
    (home / "labels" / "combined_windows.json").write_text(json.dumps(labels))
    monkeypatch.setenv("TSGDN2_DATA", str(tmp_path))


@pytest.mark.usefixtures("at_home", "files")
def test_every_detector_has_its_rows_and_the_published_ones_are_marked() -> None:
    assert main(["bench", "--what", "nab", "--quick", "true", "--seeds", "[5]", "--output", "out"]) == 0
    rows = read(Path("out/nab-quick.jsonl"))
    names = [row.what for row in rows]
    assert names[:2] == ["null detector, by definition", "random"]
    assert names[2:11] == [
        f"{what}{form}"
        for what in ("moving z-score", "seasonal-naive z-score", "tsgdn2, surprise")
        for form in nab_bench.FORMS
    ]
    assert all("not comparable" in name for name in names[11:])
    assert len(names) == 11 + len(nab_bench.PUBLISHED)
    assert rows[0].values["standard"] == 0
    by_name = {row.what: row for row in rows}
    assert by_name["moving z-score"].values["windows_found"] == 2
    assert by_name["moving z-score"].values["standard"] > 60
    ours = by_name["tsgdn2, surprise, tail likelihood"]
    assert (ours.seed, ours.shape["windows"], ours.shape["rows"]) == (5, 2, 2 * ROWS)
    assert ours.cpu_seconds > 0
    assert all(0 <= row.values["standard"] <= 100 for row in rows)
    page = Path("out/nab-quick.md").read_text()
    assert page.startswith("# Anomalies in telemetry")
    assert "**standard**: moving z-score is first" in page


@pytest.mark.usefixtures("at_home", "files")
def test_coverage_of_every_stream_and_of_all_of_them_is_in_the_rows() -> None:
    assert main(["bench", "--what", "calibration", "--quick", "true", "--seeds", "[5]", "--output", "out"]) == 0
    rows = read(Path("out/calibration-quick.jsonl"))
    assert [row.what for row in rows] == [*QUICK, "all 2 streams"]
    every = rows[-1].values
    assert every["values"] == sum(row.values["values"] for row in rows[:-1])
    assert every["coverage"] == pytest.approx(np.mean([row.values["coverage"] for row in rows[:-1]]))
    assert every["worst off"] == pytest.approx(max(abs(row.values["coverage"] - WANTED) for row in rows[:-1]))
    assert every["streams within 2 points"] <= 2
    assert "of 2 passes of a stream" in Path("out/calibration-quick.md").read_text()
    for row in rows[:-1]:
        assert 0.6 < row.values["coverage"] < 0.95
        assert row.values["rolling low"] == pytest.approx(row.values["coverage"]), "shorter than one rolling window"
        assert row.values["width ratio"] > 0
        assert row.values["coverage block 3"] > 0.5
        assert row.values["values"] == ROWS - int(0.15 * ROWS) - 1, "the row out of order is judged by nobody"


@pytest.mark.usefixtures("at_home", "files")
def test_labels_are_read_by_the_score_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forecasts and surprises of a corpus without windows are the same to the bit."""
    budget = Budget(horizon=8, epochs=1, names=QUICK[:1])

    def found() -> np.ndarray:
        (group,) = telemetry.groups(budget, 0)
        online = nab_bench.OnlinePredictor.from_predictor(group.predictor, channels=("value",), late="drop")
        return nab_bench.surprises(online, group.streams)[QUICK[0]]

    first = found()
    path = Path("nab/labels/combined_windows.json")
    path.write_text(json.dumps({f"{name}.csv": [] for name in NAB_STREAMS}))
    assert nab(QUICK[0]).windows == ()
    np.testing.assert_array_equal(found(), first)
    assert np.isfinite(first).sum() > ROWS - 20


@pytest.mark.usefixtures("files")
def test_every_row_is_streamed_once_and_in_its_order() -> None:
    streams = [nab(name) for name in QUICK]
    seen = {name: [] for name in QUICK}
    for turn in telemetry.by_patch(streams, streams[0].step, 8):
        for one, own in turn:
            steps = one.stamps[own] // one.step // 8
            assert len(set(steps.tolist())) == 1
            seen[one.name] += range(own.start, own.stop)
    assert all(rows == list(range(ROWS)) for rows in seen.values())


def test_figures_are_those_of_the_judged_rows_by_hand() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=400)
    model = np.stack([np.full(400, -1.0), np.zeros(400), np.full(400, 2.0)], 1)
    adaptive = model * 1.5
    found = figures(Given(np.arange(400), y, model, adaptive), 200, 150)
    factor = split_factor(Given(np.arange(400), y, model, adaptive), (np.arange(400) >= 150) & (np.arange(400) < 200))
    held = np.sort(np.where(y > 0, y / 2, -y)[150:200])
    assert factor == held[int(np.ceil(0.8 * 51)) - 1]
    assert found["coverage"] == np.mean((y[200:] >= -1.5) & (y[200:] <= 3))
    assert found["split coverage"] == np.mean((y[200:] >= -factor) & (y[200:] <= 2 * factor))
    assert found["width ratio"] == pytest.approx(1.5 / factor)
    assert found["values"] == 200
    outside = np.maximum(-1.5 - y[200:], 0) + np.maximum(y[200:] - 3, 0)
    assert interval_score(y[200:], adaptive[200:]) == pytest.approx(4.5 + 10 * outside.mean())
    assert rolling(np.array([True] * 300 + [False] * 300))[0] < 0.05
    assert rolling(np.array([True, False])) == (0.5, 0.5)
    assert calibration.ROLLING == 288
