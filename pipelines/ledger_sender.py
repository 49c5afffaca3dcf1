"""A process that sends spools to MLflow for a service, so that the service neither loads MLflow nor waits for it.

    stdin    one JSON line per spool: {"path": .., "uri": .., "timeout": .., "budget": ..}
    stdout   one JSON line per answer: {"error": ""} or what went wrong

It ends with its stdin, so it never outlives the service by more than one spool. What it costs, it costs at the lowest
priority: some four processor seconds for the first spool, most of it to load MLflow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tsgdn2.errors import DataError
from tsgdn2.pipelines.drain import drain
from tsgdn2.pipelines.spool import Spool, TrackingError


class Sender:
    """The process from the service's side; begun with the first spool, ended with the `with` statement."""

    def __init__(self, log: Path) -> None:
        """log: file of what the process says beside its answers; that of the last time only."""
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def send(self, path: Path, uri: str, *, timeout: float, budget: float) -> None:
        """Send one spool, which is removed then. TrackingError: it was not sent whole, and can be sent again."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        order = {"path": str(path), "uri": uri, "timeout": timeout, "budget": budget}
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError) as error:  # it has ended, or `kill` has closed its pipes
            raise TrackingError(f"ledger: the process that sends it ended ({error}); see {self._log}") from None
        if not answer.endswith("\n"):
            raise TrackingError(f"ledger: the process that sends it ended ({process.wait()}); see {self._log}")
        if said := json.loads(answer)["error"]:
            raise TrackingError(str(said))

    def kill(self) -> None:
        """End the process now, from any thread; what it was sending can be sent again."""
        process = self._process
        if process is not None:
            process.kill()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-P", "-m", "tsgdn2.pipelines.ledger_sender"]
            with self._log.open("w", encoding="utf-8") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
        return self._process

    def __enter__(self) -> Self:
        """Begin nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process: at once where something went wrong, else when it has done what it was told."""
        process = self._process
        if process is None:
            return
        if kind is not None:
            process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        for pipe in (process.stdin, process.stdout):
            try:
                pipe.close()
            except OSError:
                continue  # what was left in it has nobody to go to
        process.wait()
        self._process = None


def main(orders: IO[str], answers: IO[str]) -> None:
    """Send what is told, until there is no more."""
    for line in orders:
        order, said = json.loads(line), ""
        try:
            drain(Spool(Path(order["path"])), order["uri"], timeout=order["timeout"], budget=order["budget"])
        except (TrackingError, DataError, OSError) as error:
            said = str(error) or type(error).__name__
        answers.write(json.dumps({"error": said}) + "\n")
        answers.flush()


if __name__ == "__main__":
    os.nice(10)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as own:
        os.dup2(2, 1)  # whatever MLflow prints is no answer
        main(sys.stdin, own)
