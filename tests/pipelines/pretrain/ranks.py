"""What every rank of test_ranks.py runs under torchrun: the same training by DDP and by FSDP2, on gloo.

torchrun --nproc_per_node 2 ranks.py HOME       outputs HOME/ddp and HOME/fsdp; HOME/resumed goes on by FSDP2
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch


def main() -> None:
    """Train with each strategy."""
    home = Path(sys.argv[1])
    spec = spec_from_file_location("corpus", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    corpus = module_from_spec(spec)
    spec.loader.exec_module(corpus)
    from tsgdn2.pipelines.pretrain.run import run

    for kind in ("ddp", "fsdp"):
        job = corpus.small_job(home, output=kind)
        run(replace(job, cluster=replace(job.cluster, devices=2, strategy=kind)))
    job = corpus.small_job(home, output="resumed", checkpointing=True)
    run(replace(job, cluster=replace(job.cluster, devices=2, strategy="fsdp")))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
