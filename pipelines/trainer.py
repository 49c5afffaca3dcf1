"""Lightning's Trainer as this project runs it: one device, no logger, no checkpoint files, no progress bar.

Every setting can be overridden. Warnings about what is deliberate here are silenced only while it runs.
"""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from tsgdn2.pipelines.lightning_module import ForecastTraining
from tsgdn2.pipelines.loader import Batch, WindowSampler


def run(
    module: ForecastTraining, sampler: WindowSampler, checks: Sequence[Batch], options: Mapping[str, object]
) -> None:
    """Train `module` on the batches of `sampler`, validate on `checks`; `options` go to Trainer over the defaults."""
    quiet = logging.getLogger("lightning.pytorch")
    level = quiet.level
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "gradient_clip_val": 1.0,
        **options,
    }
    if not settings["enable_progress_bar"]:
        quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():  # one process feeds arrays faster than workers could
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
            warnings.filterwarnings("ignore", message=".*overridden after .* initialization.*")
            warnings.filterwarnings("ignore", category=FutureWarning, module="lightning.*")
            trainer = pl.Trainer(**settings)
            _fit(trainer, module, sampler, checks)
    finally:
        quiet.setLevel(level)


def _fit(trainer: pl.Trainer, module: ForecastTraining, sampler: WindowSampler, checks: Sequence[Batch]) -> None:
    """Fit; an interrupt stays a KeyboardInterrupt (Lightning makes it an exit with code 1)."""
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            module,
            sampler,
            DataLoader(cast(Any, checks), batch_size=None, collate_fn=_as_it_is) if checks else None,
        )
    except SystemExit as left:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
        if isinstance(left.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from left
        raise


def _as_it_is(batch: object) -> object:
    return batch  # the loader would turn the arrays of the scaler into tensors
