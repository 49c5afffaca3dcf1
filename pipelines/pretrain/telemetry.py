"""What a training tells while it runs: a row per step in a file, points in MLflow, a line on the screen.

    tokens per second    those of all ranks over the wall clock since the last point
    MFU                  operations per token (language/cost.py) * tokens per second / (devices * peak); told where the
                         peak is known: by `cluster.teraflops`, or by the device's name

Nothing here waits for a server: points go to the run's spool, and a thread sends the spool now and then, so that a long
training can be watched. A server that is down costs nothing; what it missed is sent at the end or by `audit sync`.
Rows behind the checkpoint that a training goes on from are cut off, so the file has every step once.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final, TextIO

from tsgdn2.datasets.tokens import write_whole
from tsgdn2.errors import TsgdnError
from tsgdn2.pipelines.drain import drain
from tsgdn2.pipelines.pretrain.options import TrainingOptions
from tsgdn2.pipelines.pretrain.training import Progress, StepResult
from tsgdn2.pipelines.pretrain.validation import Score
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.screen import Screen

CURVE: Final = "curve.jsonl"
SEND_EVERY: Final = 60.0
"""Seconds between two sendings to MLflow."""


class Telemetry:
    """The record of one process of a training; only rank 0 has one."""

    def __init__(
        self, folder: Path, record: Run, screen: Screen, options: TrainingOptions, *, operations: float,
        peak: float | None, done: int,
    ) -> None:  # fmt: skip
        """operations: per token, forward and backward; peak: operations per second of all devices, None where nobody
        knows it; done: steps."""
        self.record, self.screen, self.options = record, screen, options
        self._operations, self._peak = operations, peak
        self._curve = _cut(folder / CURVE, done)
        self._since, self._tokens_since = time.perf_counter(), 0
        self.tokens_per_second = math.nan
        self._closing = threading.Event()
        self._sender = threading.Thread(target=self._send, name="tsgdn2 telemetry", daemon=True)
        self._sender.start()

    def step(self, progress: Progress, result: StepResult) -> None:
        """Keep a step; every `log_every`-th goes to MLflow and to the screen too."""
        row = {"step": progress.step, "tokens": progress.tokens, **asdict(result)}
        self._write(row)
        self._tokens_since += self.options.step_tokens
        if result.skipped:
            self.screen.say(f"step {progress.step}: left out, its gradient is not finite ({progress.skipped} so far)")
        if progress.step % self.options.log_every and progress.step != self.options.steps:
            return
        now = time.perf_counter()
        self.tokens_per_second = self._tokens_since / max(1e-9, now - self._since)
        self._since, self._tokens_since = now, 0
        points = {
            "loss": result.loss, "gradient_norm": result.gradient_norm, "rate": result.rate,
            "tokens": progress.tokens, "skipped_steps": progress.skipped,
            "tokens_per_second": self.tokens_per_second,
        }  # fmt: skip
        if self._peak is not None:
            points["mfu"] = self._operations * self.tokens_per_second / self._peak
        self._record(points, progress.step)
        left = (self.options.steps - progress.step) * self.options.step_tokens / self.tokens_per_second
        self.screen.say(
            f"step {progress.step} of {self.options.steps}: {result.loss:.4f} nats a token, "
            f"|g| {result.gradient_norm:.3g}, rate {result.rate:.2e}, {self.tokens_per_second:,.0f} tokens/s, "
            + (f"MFU {points['mfu']:.1%}, " if "mfu" in points else "")
            + f"{left / 60:.1f} min left"
        )

    def validated(self, progress: Progress, score: Score) -> None:
        """Keep a validation; its time is not the training's."""
        self._write({"step": progress.step, "tokens": progress.tokens, **{f"validation_{k}": v for k, v in
                                                                          asdict(score).items()}})  # fmt: skip
        self._record({"validation_nats": score.nats, "validation_bits_per_byte": score.bits_per_byte}, progress.step)
        self.screen.say(
            f"step {progress.step} of {self.options.steps}: held out {score.nats:.4f} nats a token, "
            f"{score.bits_per_byte:.4f} bits a byte"
        )

    def resumed_clock(self) -> None:
        """Start the clock of tokens per second anew, after something that was no training."""
        self._since, self._tokens_since = time.perf_counter(), 0

    def close(self) -> None:
        """End the thread and the file; what waits is sent when the run ends."""
        self._closing.set()
        self._sender.join(timeout=15)
        self._curve.close()

    def _record(self, points: Mapping[str, float], step: int) -> None:
        try:
            self.record.metrics(points, step=step)
        except OSError as error:  # a full disk must not end a training that holds its weights in memory
            self.screen.say(f"step {step}: its points were not recorded ({error.strerror})")

    def _write(self, row: Mapping[str, object]) -> None:
        try:
            self._curve.write(json.dumps(row) + "\n")
            self._curve.flush()
        except OSError as error:
            self.screen.say(f"step {row['step']}: its row was not written ({error.strerror})")

    def _send(self) -> None:
        while not self._closing.wait(SEND_EVERY):
            with contextlib.suppress(TsgdnError, OSError):
                drain(self.record.spool, self.record.spool.header.tracking_uri, timeout=5.0, budget=SEND_EVERY)


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Rows of a training's curve, those of validations among them; a line that was cut off is left out."""
    rows = []
    for line in (folder / CURVE).read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def _cut(path: Path, done: int) -> TextIO:
    """The file without rows behind step `done`, open for more."""
    if path.exists():
        kept = [row for row in read_curve(path.parent) if row["step"] <= done]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
    return path.open("a", encoding="utf-8")
