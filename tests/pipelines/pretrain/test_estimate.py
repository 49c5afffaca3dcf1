"""The estimate before a run: its memory against what torch really keeps, its refusals, its arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tsgdn2.errors import ConfigError
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.cost import footprint
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.pretrain.estimate import estimate
from tsgdn2.pipelines.pretrain.jobs import Pretrain
from tsgdn2.pipelines.pretrain.options import ClusterOptions, TrainingOptions
from tsgdn2.pipelines.pretrain.run import run
from tsgdn2.pipelines.pretrain.strategy import kind_of

PROGRAM = Path(__file__).with_name("peaks.py")
CONFIG = LanguageConfig(vocabulary=300, width=64, layers=4, heads=2, key_dim=16, value_dim=32, mlp=96)
TRAINING = TrainingOptions(tokens=1 << 20, step_tokens=1024, length=256, micro_windows=2)


def kept(model: LanguageModel, tokens: int) -> int:
    """Bytes that a forward keeps for its backward, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return x

    drawn = torch.randint(0, 300, (tokens,), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.hidden(drawn, model.documents(np.array([tokens])), keep=False)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("mixer", ["gdn2", "rwkv7", "attention"])
def test_activations_are_what_a_whole_model_keeps(mixer: str) -> None:
    config = replace(CONFIG, mixer=mixer, attention_window=64)
    weighed = estimate(config, TRAINING, ClusterOptions(), kind="single")
    own = kept(LanguageModel(config), 512)
    assert 0.85 * own < weighed.activations[False] < 1.6 * own  # and what one block's backward needs beside
    assert weighed.activations[True] < weighed.activations[False]
    assert weighed.bytes["activations"] == weighed.activations[False]


def test_the_estimate_is_what_the_kernel_counts_at_the_widest_moment() -> None:
    """Kept by a scan, and remade by attention; in float32, a CPU takes minutes for the products of bfloat16."""
    wide = {"vocabulary": 1000, "width": 128, "layers": 3, "heads": 1, "key_dim": 128, "value_dim": 128, "mlp": 384}
    windows = {"tokens": 1 << 20, "step_tokens": 1 << 14, "length": 1024, "micro_windows": 3}
    cases = [
        ({**wide, "mixer": mixer}, {**windows, "precision": precision, "checkpointing": checkpointing})
        for mixer, precision, checkpointing in (
            ("gdn2", "float32", False), ("attention", "float32", True),
        )
    ]  # fmt: skip
    returned = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    done = subprocess.run([sys.executable, str(PROGRAM)], input=json.dumps(cases), capture_output=True, text=True,
                          check=True, timeout=300, env={**os.environ, **returned})  # fmt: skip
    ratios = {}
    for (model, training), measured in zip(cases, done.stdout.split(), strict=True):
        weighed = estimate(LanguageConfig(**model), TrainingOptions(**training),  # type: ignore[arg-type]
                           ClusterOptions(document_tokens=10**6), kind="single")  # fmt: skip
        ratios[str((model["mixer"], training["precision"], training["checkpointing"]))] = int(measured) / weighed.total
    assert all(0.6 < ratio < 1.15 for ratio in ratios.values()), ratios


def test_bfloat16_adds_the_copies_that_autocast_holds() -> None:
    half_training = replace(TRAINING, precision="bfloat16")
    whole, half = (estimate(CONFIG, one, ClusterOptions(), kind="single") for one in (TRAINING, half_training))
    assert (whole.bytes["copies"], half.bytes["copies"]) == (0, 2 * footprint(CONFIG).products)
    assert half.activations[False] < whole.activations[False]


def test_the_peak_is_looked_up_by_name_or_assumed_for_time_alone() -> None:
    half = replace(TRAINING, precision="bfloat16")
    for name, teraflops in (("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756),
                            ("NVIDIA H200", 989)):  # fmt: skip
        weighed = estimate(CONFIG, half, ClusterOptions(), kind="single", device=name)
        assert (weighed.peak, weighed.peak_known) == (teraflops * 1e12, True)
    for training, other in ((half, "NVIDIA H20"), (half, None), (half, "NVIDIA H200 MIG 1g.18gb"),
                            (TRAINING, "NVIDIA H200")):  # fmt: skip
        weighed = estimate(CONFIG, training, ClusterOptions(), kind="single", device=other)
        assert not weighed.peak_known
        assert any("assumed" in row["estimate"] for row in weighed.rows())
    said = estimate(CONFIG, half, ClusterOptions(teraflops=7.0), kind="single", device="NVIDIA H200")
    assert (said.peak, said.peak_known) == (7e12, True)


def test_a_strategy_is_held_against_the_devices_once_they_are_known() -> None:
    sharded = ClusterOptions(strategy="fsdp")  # torchrun will say how many
    assert kind_of(replace(sharded, devices=2), "cpu") == "fsdp"
    with pytest.raises(ConfigError, match="auto or single for one device, got 'fsdp' for 1"):
        kind_of(sharded, "cpu")
    with pytest.raises(ConfigError, match="auto, ddp or fsdp for several, got 'single' for 2"):
        kind_of(ClusterOptions(strategy="single", devices=2), "cpu")


def test_weights_gradients_and_moments_are_sharded_by_fsdp_alone() -> None:
    whole = sum(p.numel() for p in LanguageModel(CONFIG).parameters())
    cluster = ClusterOptions(devices=4)
    for kind, shards in (("ddp", 1), ("fsdp", 4)):
        weighed = estimate(CONFIG, TRAINING, cluster, kind=kind)  # type: ignore[arg-type]
        assert weighed.parameters + weighed.vocabulary_parameters == whole
        assert [weighed.bytes[name] for name in ("weights", "gradients", "optimizer")] == [
            4 * whole // shards, 4 * whole // shards, 8 * whole // shards,
        ]  # fmt: skip


def test_time_and_cost_follow_from_operations_peak_and_price() -> None:
    cluster = ClusterOptions(devices=2, teraflops=10.0, mfu=0.5, price=3.0)
    weighed = estimate(CONFIG, TRAINING, cluster, kind="ddp")
    seconds = (1 << 20) * footprint(CONFIG, context=256).operations / (2 * 10e12 * 0.5)
    assert weighed.seconds == pytest.approx(seconds)
    assert weighed.cost == pytest.approx(seconds / 3600 * 2 * 3.0)
    assert weighed.steps == 1024


def test_what_can_not_fit_is_refused_before_anything_is_made(job: Pretrain) -> None:
    small = replace(job, cluster=replace(job.cluster, memory_gib=1e-4))
    with pytest.raises(ConfigError, match=r"cluster.memory_gib: .* it was not started. What helps: fewer"):
        run(small)
    assert job.output is not None
    assert not job.output.exists()


def test_a_dry_run_needs_no_data_and_no_devices(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ["pretrain", "run", "--config", "gdn2-1.3b", "--data", str(tmp_path / "nothing"), "--dry_run", "true"]
    cluster = ["--cluster.devices", "8", "--cluster.price", "2.5"]
    assert main([*given, *cluster, "--cluster.memory_gib", "80"]) == 0
    said = capsys.readouterr().out
    assert "1,302,638,112" in said
    assert "8 (fsdp)" in said
    assert "it fits" in said
    assert main([*given, *cluster, "--cluster.memory_gib", "8"]) == 2
    assert "a device has 7.2 GiB to use" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_more_devices_than_processes_says_how_to_start_them(job: Pretrain) -> None:
    with pytest.raises(ConfigError, match="torchrun --nproc_per_node 4"):
        run(replace(job, cluster=replace(job.cluster, devices=4, strategy="ddp")))
