"""Two ranks by torchrun on gloo, DDP and FSDP2, against one process that accumulates the same windows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tsgdn2.pipelines.pretrain.checkpoints import CHECKPOINTS
from tsgdn2.pipelines.pretrain.jobs import Pretrain
from tsgdn2.pipelines.pretrain.telemetry import read_curve

PROGRAM = Path(__file__).with_name("ranks.py")
TOLERANCE = 1e-5


def newest(output: Path) -> Path:
    return output / CHECKPOINTS / "step-00000006"


def test_two_ranks_give_the_curve_of_one_process_that_accumulates(home: Path, finished: Pretrain) -> None:
    assert finished.output is not None
    whole = finished.output
    # The third training of the ranks goes on from what a single process wrote.
    shutil.copytree(whole / CHECKPOINTS / "step-00000005", home / "resumed" / CHECKPOINTS / "step-00000005")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, str(PROGRAM), str(home)], capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = read_curve(whole)
    for kind in ("ddp", "fsdp", "resumed"):
        rows = {(row["step"], "loss" in row): row for row in read_curve(home / kind)}
        steps = [row["step"] for row in alone]
        assert [row["step"] for row in read_curve(home / kind)] == (steps[-2:] if kind == "resumed" else steps)
        for expected in alone:
            row = rows.get((expected["step"], "loss" in expected))
            if row is None:
                assert kind == "resumed"
                continue
            assert row == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE), kind
        one, other = (load_file(newest(folder) / "model.safetensors") for folder in (whole, home / kind))
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=1e-4)
        progress, loader = (json.loads((newest(home / kind) / "progress.json").read_text())[key]
                            for key in ("progress", "loader"))  # fmt: skip
        saved = json.loads((newest(whole) / "progress.json").read_text())
        assert (progress, loader) == (saved["progress"], saved["loader"])
