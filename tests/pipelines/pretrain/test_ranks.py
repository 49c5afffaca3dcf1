"""Two ranks by torchrun on gloo, DDP and FSDP2, against one process that accumulates the same windows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tsgdn2.pipelines.pretrain.checkpoints import CHECKPOINTS
from tsgdn2.pipelines.pretrain.jobs import Pretrain
from tsgdn2.pipelines.pretrain.run import run
from tsgdn2.pipelines.pretrain.telemetry import read_curve

PROGRAM = Path(__file__).with_name("ranks.py")
TOLERANCE = {"float32": 1e-6, "bfloat16": 2e-2}
"""Of loss and gradient norm, relative."""
WEIGHTS = {"float32": 2e-5, "bfloat16": 2e-2}
"""Of weights, absolute: steps are up to 1e-2, and AdamW makes a whole one of a gradient that rounding turns."""


def newest(output: Path, step: int = 6) -> Path:
    return output / CHECKPOINTS / f"step-{step:08d}"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, finished: Pretrain) -> Path:
    """A home in which two ranks have done all of ranks.py."""
    home = tmp_path_factory.mktemp("ranks")
    assert finished.output is not None
    shutil.copytree(finished.data, home / "data")
    (home / "runs").mkdir()
    shutil.copy(empty_store, home / "runs" / "mlflow.db")
    for output in ("resumed", "damaged"):
        shutil.copytree(newest(finished.output, 5), newest(home / output, 5))
    (newest(home / "damaged", 5) / "model.safetensors").write_bytes(b"")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, str(PROGRAM), str(home)], capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return home


def same(output: Path, whole: Path, step: int, precision: str = "float32", rows: slice = slice(None)) -> None:
    """Hold curve, weights, progress and loader of one training to those of another."""
    expected = read_curve(whole)[rows]
    got = read_curve(output)
    assert [row["step"] for row in got] == [row["step"] for row in expected]
    for one, other in zip(got, expected, strict=True):
        assert one == pytest.approx(other, rel=TOLERANCE[precision], abs=TOLERANCE[precision])
    weights, right = (load_file(newest(folder, step) / "model.safetensors") for folder in (output, whole))
    assert weights.keys() == right.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], right[name], rtol=0, atol=WEIGHTS[precision])
    saved, wanted = (json.loads((newest(folder, step) / "progress.json").read_text()) for folder in (output, whole))
    assert [saved[key] for key in ("progress", "loader")] == [wanted[key] for key in ("progress", "loader")]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_give_the_curve_of_one_process_that_accumulates(ranks: Path, finished: Pretrain, kind: str) -> None:
    assert finished.output is not None
    same(ranks / kind, finished.output, 6)


def test_two_ranks_go_on_from_what_one_wrote_and_rank_0_alone_has_it(ranks: Path, finished: Pretrain) -> None:
    assert finished.output is not None
    same(ranks / "resumed", finished.output, 6, rows=slice(-2, None))
    assert not (ranks / "no-disk" / CHECKPOINTS).exists()


def test_one_process_goes_on_from_what_two_ranks_wrote(job: Pretrain, ranks: Path, finished: Pretrain) -> None:
    assert job.output is not None
    assert finished.output is not None
    shutil.copytree(newest(ranks / "fsdp", 5), newest(job.output, 5))
    run(job)
    same(job.output, finished.output, 6, rows=slice(-2, None))


def test_bfloat16_a_hybrid_and_a_tied_head_are_sharded_as_they_are_on_one_device(mixed: Pretrain, ranks: Path) -> None:
    assert mixed.output is not None
    assert (mixed.model.layer_mixers, mixed.model.tied) == (("gdn2", "attention"), True)
    assert mixed.training.precision == "bfloat16"
    run(mixed)
    exact = replace(mixed, output=mixed.runs / "exact", training=replace(mixed.training, precision="float32"))
    run(exact)
    same(ranks / "mixed", mixed.output, 3, "bfloat16")
    sharded, alone, right = (
        torch.cat([t.flatten() for _, t in sorted(load_file(newest(folder, 3) / "model.safetensors").items())])
        for folder in (ranks / "mixed", mixed.output, mixed.runs / "exact")
    )
    rounding = (alone - right).square().mean().sqrt()  # of bfloat16 itself, on one device
    assert 0 < (sharded - alone).square().mean().sqrt() < 1.5 * rounding


@pytest.fixture
def said(ranks: Path) -> list[dict[str, Any]]:
    return [json.loads((ranks / f"said-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_nan_on_one_rank_leaves_the_step_out_on_both(said: list[dict[str, Any]], kind: str) -> None:
    first, second = (one[kind] for one in said)
    assert first == second
    assert (first["step"], first["skipped"]) == (3, 1)
    assert first["finite"]
    assert first["moved"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("different", "training.peak was"),
        ("single", "must be auto, ddp or fsdp for several, got 'single'"),
        ("damaged", "CheckpointError: output: all 1 checkpoints"),
    ],
)
def test_every_rank_is_told_what_is_wrong(said: list[dict[str, Any]], name: str, told: str) -> None:
    assert all(told in one[name] for one in said)
