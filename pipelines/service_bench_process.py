"""Child processes of the service's benchmark: a line of JSON asks, a line of JSON answers; the rest goes to a log.

    python -m tsgdn2.pipelines.service_bench_process inside|senders          answers questions until its input ends
    python -m tsgdn2.pipelines.service_bench_process serve {"port": ..}      serves until SIGTERM, or its input ends

So a child never outlives its parent, whatever ended that. Plain text goes between them, nothing that would be run.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tsgdn2.errors import TsgdnError

Figures = dict[str, Any]


class ChildError(TsgdnError):
    """A process of the benchmark failed or died; its log says more."""


class Child:
    """One process, from the parent's side."""

    def __init__(self, role: str, log: Path, given: Figures | None = None, *, threads: int = 1) -> None:
        """Start it. given: what it is told at once; threads: of every library in it."""
        self.role, self.log = role, log
        command = [sys.executable, "-m", __name__, role, *([json.dumps(given)] if given is not None else [])]
        with log.open("ab") as where:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=where,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        self.pid = self._process.pid
        self.measured = psutil.Process(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def ask(self, tick: Callable[[], object] | None = None, **question: Any) -> Figures:
        """Its answer; `tick` is called every second until it comes. ChildError: it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # its end of the pipe is closed, or ours
            raise self.failed("it has ended") from None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not selector.select(1.0):
                if tick is not None:
                    tick()
        line = self._process.stdout.readline()
        if not line:
            raise self.failed("it has ended")
        answer: Figures = json.loads(line)
        if "error" in answer:
            raise self.failed(str(answer["error"]))
        return answer

    def failed(self, why: str) -> ChildError:
        """What to raise, with the end of its log."""
        said = self.log.read_text(encoding="utf-8", errors="replace")[-1_500:]
        return ChildError(f"service: the process {self.role!r} failed ({why}); the end of {self.log} is: {said}")

    def end(self) -> None:
        """Kill it: what it should keep, it has kept."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def answer(handle: Callable[[Figures], Figures]) -> None:
    """Answer questions until the input ends, from the child's side."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        try:
            found = handle(json.loads(line))
        except Exception as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.excepthook(type(error), error, error.__traceback__)
            found = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(found) + "\n")
        replies.flush()


def end_with_parent() -> None:
    """End this process when its input does."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(3)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main(role: str, *given: str) -> None:
    """Be a child."""
    if role == "serve":
        from tsgdn2.pipelines.service_bench_server import serve_bench

        end_with_parent()
        serve_bench(json.loads(given[0]))
    elif role == "inside":
        from tsgdn2.pipelines.service_bench_inside import Inside

        answer(Inside().handle)
    else:
        from tsgdn2.pipelines.service_bench_senders import send

        answer(send)


if __name__ == "__main__":
    main(*sys.argv[1:])
