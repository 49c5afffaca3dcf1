"""What every rank of test_ranks.py runs under torchrun, on gloo; one start for all of it.

torchrun --nproc_per_node 2 ranks.py HOME       outputs in HOME:
    ddp, fsdp       the same training by both; nobody says how many devices there are
    resumed         goes on by FSDP2 from a checkpoint that rank 0 alone has
    mixed           bfloat16, a hybrid and a tied head by FSDP2
    said-R.json     what rank R met: steps left out where one rank's loss is NaN, and errors
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def corpus() -> ModuleType:
    """conftest.py, which is no package's."""
    spec = spec_from_file_location("corpus", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def poisoned(job: Any, kind: str) -> dict[str, Any]:
    """Train with a NaN on rank 1 in the second step: which steps are left out, and a digest of this rank's weights."""
    from tsgdn2.datasets.tokens import TokenShards
    from tsgdn2.language.model import LanguageModel
    from tsgdn2.pipelines.pretrain import run, strategy
    from tsgdn2.pipelines.pretrain.loader import TokenLoader
    from tsgdn2.pipelines.pretrain.training import Progress, Steps

    world, options = strategy.World.here(), replace(job.training, tokens=3 * job.training.step_tokens)

    class Poisoned(LanguageModel):
        passes = 0

        def loss(self, *given: Any) -> torch.Tensor:
            self.passes += 1
            found = super().loss(*given)
            return found * torch.nan if world.rank == 1 and self.passes == 3 else found

    torch.manual_seed(0)
    model = Poisoned(job.model)
    before = [p.detach().clone() for p in model.parameters()]
    loader = TokenLoader(TokenShards(job.data / "train"), length=options.length, windows=options.micro_windows,
                         seed=0, rank=world.rank, ranks=world.ranks)  # fmt: skip
    module = run._Sharding(model, options, Steps(loader, options, 0), Progress())
    cluster = replace(job.cluster, devices=world.ranks, strategy=kind)
    strategy.fit(strategy.trainer(cluster, world), module)
    after = [strategy.whole(p.detach()) for p in model.parameters()]
    return {
        "skipped": module.progress.skipped, "step": module.progress.step,
        "finite": all(bool(p.isfinite().all()) for p in after),
        "moved": not any(torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.ndim == 2),
        "sums": [float(p.double().sum()) for p in after],
    }  # fmt: skip


def main() -> None:
    """Train with each strategy."""
    home = Path(sys.argv[1])
    made = corpus()
    from tsgdn2.errors import ConfigError
    from tsgdn2.pipelines.pretrain.run import run
    from tsgdn2.pipelines.pretrain.strategy import World

    rank = World.here().rank
    said: dict[str, Any] = {}
    for kind in ("ddp", "fsdp"):
        job = made.small_job(home, output=kind)
        run(replace(job, cluster=replace(job.cluster, strategy=kind)))
        said[kind] = poisoned(job, kind)
    job = made.small_job(home, output="resumed" if rank == 0 else "no-disk", checkpointing=True)
    run(replace(job, cluster=replace(job.cluster, strategy="fsdp")))
    job = made.mixed_job(home, output="mixed")
    run(replace(job, cluster=replace(job.cluster, strategy="fsdp")))
    wrong = {
        "different": made.small_job(home, output="different", peak=1e-2 * (1 + rank)),
        "single": replace(job, cluster=replace(job.cluster, strategy="single")),
        "damaged": made.small_job(home, output="damaged"),
    }
    for name, other in wrong.items():
        try:
            run(other)
        except ConfigError as error:
            said[name] = str(error)
        except ValueError as error:
            said[name] = f"{type(error).__name__}: {error}"
    (home / f"said-{rank}.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
