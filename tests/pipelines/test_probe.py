"""The job `probe` on tiny budgets: all of it end to end, stopped in the middle and gone on with in a new process."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.probes.suite import MIXERS, PROBES, SMALL
from tsgdn2.evaluation.probes.trial import Budget, Trial, run
from tsgdn2.evaluation.rows import Row, append, read, row
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.folder_lock import alone
from tsgdn2.pipelines.jobs import Probe
from tsgdn2.pipelines.probe import finished, made_with, trials
from tsgdn2.pipelines.probe_report import page

pytestmark = pytest.mark.usefixtures("at_home")
OPTIONS = ["probe", "--probes=[s5]", "--seeds=[0,1]", "--steps=2", "--output=out", "--quiet"]
COMMAND = [sys.executable, "-c", "import sys; from tsgdn2.pipelines.cli import main; sys.exit(main())"]


def keys_of(one: Row) -> tuple[object, ...]:
    """Mixer and seed of a row."""
    return one.shape["mixer"], one.seed


def test_a_job_that_was_killed_goes_on_in_a_new_process_and_ends_with_a_page_and_a_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = Path("out/probe.jsonl")
    command = [*COMMAND, *OPTIONS, "--mixers=[none,deltanet]", "--workers=1"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    line = running.stdout.readline()
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    running.stdout.close()
    assert line.startswith("s5 5, none, seed 0: ")
    written = path.read_bytes()
    before = written[: written.rfind(b"\n") + 1]
    done = before.count(b"\n")
    assert 1 <= done <= 4
    path.write_bytes(before + b'{"what": "s5: del')  # as if it had died in the middle of a line
    assert main([*OPTIONS, "--mixers=[none,deltanet]", "--workers=2"]) == 0
    said = capsys.readouterr().out
    assert f"{done} of 4 runs have their row already" in said
    assert path.read_bytes().startswith(before)
    assert sorted(map(keys_of, read(path))) == [("deltanet", 0), ("deltanet", 1), ("none", 0), ("none", 1)]
    text = Path("out/report.md").read_text(encoding="utf-8")
    assert "## s5 5: which of five things stands at this place" in text
    assert "| none | " in text
    assert "| deltanet | " in text
    assert Path("out/figures/probe-s5-5.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64" in Path("out/report.html").read_text(encoding="utf-8")
    assert json.loads(Path("out/settings.json").read_text())["steps"] == 2
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{Path('runs/mlflow.db').resolve()}")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (record,) = [one for one in client.search_runs(ids) if one.info.status == "FINISHED"]
    assert record.info.run_name == "probe small"
    points = client.get_metric_history(record.info.run_id, "s5 5/deltanet/x1")
    assert [point.step for point in points] == [0, 1]
    assert {file.path for file in client.list_artifacts(record.info.run_id, "report")} == {
        "report/probe.jsonl", "report/report.html", "report/report.md", "report/figures",
    }  # fmt: skip
    (of_worker,) = [one for one in read(path) if keys_of(one) == ("none", 1)]
    again = run(Trial("s5", 5, "none", 1), Budget(steps=2))
    untimed = {"train_seconds": 0, "step_seconds": 0}
    assert of_worker.values | untimed == again.values | untimed


def test_a_second_job_on_the_same_output_is_refused_until_the_first_one_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = (
        "import sys; from pathlib import Path; from tsgdn2.pipelines.folder_lock import alone\n"
        "Path('out').mkdir()\n"
        "with alone(Path('out'), 'probe job works in'): print('held', flush=True); sys.stdin.read()"
    )
    command = [*OPTIONS, "--mixers=[none]", "--workers=1"]
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        assert main(command) == 2
        assert "output: another probe job works in out; wait for its end" in capsys.readouterr().err
        assert not Path("out/probe.jsonl").exists()
        first.kill()
    with alone(Path("out"), "probe job works in"):
        pass


def test_the_page_names_every_commit_and_device_of_its_rows() -> None:
    shape = {"probe": "parity", "level": 10, "mixer": "none", "seconds": None, "steps": 2}
    rows = [dataclasses.replace(row("parity: none", shape, seed=seed), commit=f"c{seed}", device=f"d{seed}")
            for seed in (0, 1, 1)]  # fmt: skip
    said = made_with(Probe(), Budget(steps=2), rows)
    assert "3 runs: seeds 0, 1, 2 steps of training each" in said
    assert "d0; d1; " in said
    assert "commit c0, commit c1; " in said


def test_the_tables_hold_what_they_promise() -> None:
    small, full = trials(Probe()), trials(Probe(table="full"))
    assert len(small) == len(set(small)) == 5 * len(MIXERS) * 3
    assert small[0] == Trial("recall", SMALL["recall"], "gdn2", 0)
    assert len(full) == sum(len(probe.levels) for probe in PROBES.values()) * len(MIXERS) * 5
    assert (Probe().steps, Probe().seconds) == (Budget().steps, Budget().seconds)
    assert {trial.level for trial in trials(Probe(probes=("s5",)))} == {5}
    assert {trial.level for trial in trials(Probe(table="full", probes=("s5",)))} == {2, 3, 5}


def test_rows_of_another_budget_do_not_count_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "probe.jsonl"
    shape = {"probe": "parity", "level": 10, "mixer": "none", "seconds": 33.0, "steps": None}
    append(
        path, row("parity: none", shape, seed=0), row("parity: none", {**shape, "seconds": None, "steps": 2}, seed=1)
    )
    assert list(finished(path, Budget(seconds=33.0))) == [Trial("parity", 10, "none", 0)]
    assert finished(path, Budget()) == {}
    assert list(finished(path, Budget(steps=2))) == [Trial("parity", 10, "none", 1)]
    assert len(read(path)) == 2
    assert finished(tmp_path / "nothing.jsonl", Budget()) == {}


def test_a_page_shows_losers_and_marks_ours(tmp_path: Path) -> None:
    points = ("x1", "x2", "x4", "x8", "x16", "gap 0.1", "gap 0.3", "missing 0.3", "missing 0.6")
    facts = {"parameters": 10, "memory_floats": 4, "state_bytes": 16, "steps": 3, "step_seconds": 0.5}
    rows = []
    for mixer, score in (("gdn2", 0.9), ("gdn2+swa", 0.5), ("none", 0.0)):
        for probe, level in (("recall", 4), ("rare", 2)):
            made = row(f"{probe}: {mixer}", {"probe": probe, "level": level, "mixer": mixer}, seed=0, cpu_seconds=1.0)
            rows.append(dataclasses.replace(made, values=dict.fromkeys(points, score) | facts))
    written = page("Probes", rows, "made here").write(tmp_path)
    text = written.with_suffix(".md").read_text(encoding="utf-8")
    assert text.index("| gdn2 | 0.90, 0.90") < text.index("| gdn2+swa | 0.50, 0.50") < text.index("| none | 0.00")
    assert "**gdn2** is best with 0.90, alone." in text
    assert '<tr class="ours"><td>gdn2</td>' in written.read_text(encoding="utf-8")


def test_mistakes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, said in (
        ({"probes": ("memory",)}, "probes: must be among recall, overwrite"),
        ({"mixers": ("gru",)}, "mixers: must be among gdn2, kda"),
    ):
        with pytest.raises(ConfigError, match=said):
            trials(Probe(**wrong))
    for wrong, said in (({"seeds": ()}, "seeds: must hold"), ({"seconds": 0.0}, "seconds: must be"),
                        ({"steps": 0}, "steps: must be"), ({"workers": 0}, "workers: must be")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            Probe(**wrong)
    assert main(["probe", "--mixers=[gru]", "--output=out"]) == 2
    assert "mixers: must be among" in capsys.readouterr().err
    assert not Path("out").exists()
