"""Killed at any step and in the middle of any write, a training ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import random
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.checkpoints import CHECKPOINTS, Checkpoints, Saved
from tsgdn2.pipelines.pretrain.jobs import Pretrain
from tsgdn2.pipelines.pretrain.run import run
from tsgdn2.pipelines.pretrain.telemetry import read_curve
from tsgdn2.pipelines.pretrain.training import groups

PROGRAM = Path(__file__).with_name("attempts.py")


def attempts(home: Path, output: str, *moments: str) -> list[str]:
    """Exit signals of processes that train into one output, one after the other."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(home), output, *moments],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return [line.removeprefix("attempt ") for line in done.stdout.splitlines() if line.startswith("attempt ")]


def same_bits(one: Path, other: Path) -> None:
    for name in ("model", "optimizer-exp_avg", "optimizer-exp_avg_sq", "optimizer-step"):
        left, right = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name


def test_a_training_killed_again_and_again_ends_with_the_same_bits(home: Path, finished: Pretrain) -> None:
    draw = random.Random(11)
    moments = [
        f"open:{draw.randrange(1, 12)}",  # while a file of a draft is written
        f"os.rename:{draw.randrange(1, 12)}",
        "os.rename:6",  # all files are there, the folder has not got its name
        f"os.mkdir:{draw.randrange(1, 4)}",
        f"shutil.rmtree:{draw.randrange(1, 3)}",  # while an older one is removed
        "open@result.json:1",  # behind the last checkpoint, before the figures are written
    ]
    said = attempts(home, "killed", *moments, "never")
    assert said == [*(f"{moment} 9" for moment in moments), "never 0"]
    assert finished.output is not None
    killed, whole = (Checkpoints(output / CHECKPOINTS) for output in (home / "killed", finished.output))
    assert killed.steps() == whole.steps() == [5, 6]
    for step in (5, 6):
        same_bits(killed.path(step), whole.path(step))
    left, right = (json.loads((output / "result.json").read_text()) for output in (home / "killed", finished.output))
    assert left["loss"] is not None
    assert left["validation"] is not None
    assert {k: v for k, v in left.items() if k != "seconds"} == {k: v for k, v in right.items() if k != "seconds"}
    assert read_curve(home / "killed") == read_curve(finished.output)
    assert not list((home / "killed" / CHECKPOINTS).glob(".*"))


@pytest.fixture
def job(finished: Pretrain, tmp_path: Path) -> Pretrain:
    """The job of a training that has ended, in a copy of its home."""
    home = tmp_path / "home"
    shutil.copytree(finished.runs.parent, home)
    return replace(finished, data=home / "data", runs=home / "runs", output=home / "out")


@pytest.fixture
def trained(job: Pretrain) -> Checkpoints:
    assert job.output is not None
    return Checkpoints(job.output / CHECKPOINTS)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer-exp_avg.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(
    trained: Checkpoints, file: str, damage: str
) -> None:
    path = trained.path(6) / file
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            content[:middle] + (b"" if damage == "cut" else bytes([content[middle] ^ 1]) + content[middle + 1 :])
        )
    identity = json.loads((trained.path(5) / "progress.json").read_text())["identity"]
    said: list[str] = []
    found = Checkpoints(trained.folder, say=said.append).read(identity)
    assert found is not None
    assert found.saved.progress.step == 5
    assert len(said) == 1
    assert "step 6" in said[0]


def test_going_on_with_other_settings_is_refused_and_with_other_micro_batches_is_not(
    trained: Checkpoints, job: Pretrain
) -> None:
    with pytest.raises(ConfigError, match=r"training.peak was 0.01, is 0.02"):
        run(replace(job, training=replace(job.training, peak=2e-2)))
    with pytest.raises(ConfigError, match="fresh: "):
        run(replace(job, fresh=True))
    run(replace(job, training=replace(job.training, micro_windows=4)))
    assert trained.steps() == [5, 6]


def test_a_later_checkpoint_that_is_damaged_is_not_counted_among_those_that_are_kept(
    trained: Checkpoints, job: Pretrain
) -> None:
    shutil.copytree(trained.path(6), trained.path(10))
    for step in (6, 10):
        (trained.path(step) / "model.safetensors").write_bytes(b"")
    run(replace(job, training=replace(job.training, keep=1)))
    assert trained.steps() == [6]
    assert trained.read(json.loads((trained.path(6) / "progress.json").read_text())["identity"]) is not None


def test_rarer_checkpoints_and_points_change_no_bit_and_lose_no_more_than_is_between_two(
    trained: Checkpoints, job: Pretrain
) -> None:
    rarer = replace(job, output=job.runs / "rarer", training=replace(job.training, checkpoint_every=4, log_every=5))
    run(rarer)
    own = Checkpoints(job.runs / "rarer" / CHECKPOINTS)
    assert own.steps() == [4, 6]
    same_bits(own.path(6), trained.path(6))
    shutil.rmtree(own.path(6))
    run(replace(rarer, training=replace(job.training, log_every=1)))
    assert own.steps() == [5, 6]
    same_bits(own.path(6), trained.path(6))


def test_a_full_disk_leaves_the_older_checkpoints_whole(trained: Checkpoints, job: Pretrain) -> None:
    text = (trained.path(6) / "progress.json").read_text()
    saved = Saved.from_json(text, trained.path(6))
    later = replace(saved, progress=replace(saved.progress, step=7))
    model = LanguageModel(job.model)
    optimizer = torch.optim.AdamW(groups(model, job.training))
    before, limits = trained.steps(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_192, limits[1]))  # a file of a checkpoint is larger
    try:
        with pytest.raises(CheckpointError, match=r"step 7 could not be written .* make room"):
            trained.write(model, optimizer, later)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert trained.steps() == before
    assert not list(trained.folder.glob(".*"))
    assert trained.read(saved.identity) is not None
    trained.write(model, optimizer, later)
    assert trained.steps() == [5, 6, 7]


def test_all_checkpoints_damaged_is_an_error(trained: Checkpoints) -> None:
    for step in trained.steps():
        (trained.path(step) / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="all 2 checkpoints"):
        trained.read({})


def test_two_trainings_can_not_share_an_output(job: Pretrain) -> None:
    assert job.output is not None
    with FileLock(job.output / ".lock"), pytest.raises(ConfigError, match="another training writes"):
        run(job)
