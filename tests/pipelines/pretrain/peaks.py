"""How much memory steps of a training really take, each kind in a process of its own: a program for test_estimate.py.

    python peaks.py        reads a list of jobs from stdin, [[model, training], ..] as JSON; prints bytes of each

A process is forked for each after one that warms torch up; the peak is the kernel's own count of what is resident, from
before the model is made on. The allocator hands what is freed back at once, so that only what lives is counted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.options import TrainingOptions
from tsgdn2.pipelines.pretrain.training import groups


def resident(name: str) -> int:
    """Bytes: VmRSS now, or VmHWM, the most since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def train(config: LanguageConfig, options: TrainingOptions) -> None:
    """Two steps, as Pretraining makes them, so that the second one meets the optimiser's moments."""
    model = LanguageModel(config)
    model.checkpointing = options.checkpointing
    optimizer = torch.optim.AdamW(groups(model, options), lr=1e-4)
    tokens = torch.randint(0, config.vocabulary, (options.micro_windows * options.length,))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            at = model.documents([options.length] * options.micro_windows)
            loss = model.loss(tokens, tokens, torch.ones(len(tokens), dtype=torch.bool), at)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def main() -> None:
    """Measure every job."""
    jobs = [(LanguageConfig(**model), TrainingOptions(**training)) for model, training in json.load(sys.stdin)]
    for config, options in jobs:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            small = LanguageConfig(vocabulary=9, width=16, layers=1, heads=1, key_dim=16, value_dim=16, mlp=16,
                                   mixer=config.mixer)  # fmt: skip
            train(small, options)
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            train(config, options)
            os.write(writing, str(resident("VmHWM") - before).encode())
            os._exit(0)
        os.close(writing)
        print(os.read(reading, 100).decode(), flush=True)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
