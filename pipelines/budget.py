"""A training that ends when its processor time is spent: what makes models of different cost comparable.

spent = processor seconds of this process, all threads, since the first batch began;   stop after a batch >= budget
"""

from __future__ import annotations

import time

from lightning.pytorch import Callback, LightningModule, Trainer


class CpuBudget(Callback):
    """Stops Lightning after a batch when the budget is spent; a machine that others use too does not shorten it."""

    def __init__(self, seconds: float) -> None:
        """seconds: processor time that training may take, validation included."""
        self.seconds = seconds
        self.steps = 0
        """Batches of the training so far."""
        self.error: BaseException | None = None
        """What ended the training, where it was no choice: GluonTS keeps silent about it."""
        self._began = time.process_time()

    @property
    def spent(self) -> float:
        """Processor seconds since training began."""
        return time.process_time() - self._began

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Begin to count."""
        self._began, self.steps = time.process_time(), 0

    def on_train_batch_end(self, trainer: Trainer, *args: object, **kwargs: object) -> None:  # noqa: ARG002
        """Ask for the end when the budget is spent; the epoch is closed and validated as usual."""
        self.steps += 1
        if self.spent >= self.seconds:
            trainer.should_stop = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Keep what ended the training."""
        self.error = exception
