"""The estimate before a run: its memory against what torch really keeps, its refusals, its arithmetic."""

from __future__ import annotations

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
        model.hidden(drawn, model.documents(np.array([tokens])))
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("mixer", ["gdn2", "rwkv7", "attention"])
def test_activations_are_what_a_whole_model_keeps(mixer: str) -> None:
    config = replace(CONFIG, mixer=mixer, attention_window=64)
    weighed = estimate(config, TRAINING, ClusterOptions(), kind="single")
    assert weighed.activations[False] == pytest.approx(kept(LanguageModel(config), 512), rel=0.15)
    assert weighed.activations[True] < weighed.activations[False]
    assert weighed.bytes["activations"] == weighed.activations[False]


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
