"""A process that remembers until it is killed, and the nursery that it is forked from; run by test_recovery.

    python -m tests.service.rememberer PLACE KIND      reads seeds, one in a line; forks a life for each

A life says `pid`, then `found` with the rows that each stream has, then `kept` with the rows acknowledged, over and
over; the nursery says `dead` behind each. Row k of a stream is always the same row, and what was sent before may be
sent again, as brokers do: the state of a stream tells which rows it was given, and how often.
"""

from __future__ import annotations

import json
import os
import random
import sys
from concurrent.futures import Future
from pathlib import Path

import structlog
import torch
from tests.service.predictors import batch, limits, memory

from tsgdn2.service.batch import Batch
from tsgdn2.service.receipts import Receipt

STREAMS = [f"stream {number}" for number in range(7)]


def row(stream: str, numbers: list[int]) -> Batch:
    """Rows of a stream by their numbers; every fourth comes late, some by more than a patch."""
    steps = [number - (0, 0, 0, 2, 0, 0, 0, 5)[number % 8] for number in numbers]
    return batch([stream] * len(numbers), steps, numbers)


def say(word: str, **facts: object) -> None:
    """One line that is there whole or not at all."""
    os.write(1, f"{word} {json.dumps(facts)}\n".encode())


def live(where: Path, kind: str, seed: int) -> None:
    """Send rows until killed."""
    dice = random.Random(seed)
    made = memory(where, limits(4, kind=kind, journal_rows=300, snapshot_after_s=0.0), kind=kind)
    after = dict.fromkeys(STREAMS, 0)
    for stream in made.names().result():
        after[stream] = made.ask([stream], lambda online, name=stream: online.counters(name)["observations"]).result()
    say("found", **after)
    kept = dict(after)
    waiting: list[tuple[str, int, Future[Receipt]]] = []
    while True:
        for _ in range(dice.choice([1, 4, 16])):
            stream, count = dice.choice(STREAMS), dice.choice([1, 2, 9])
            begin = max(0, after[stream] - (dice.randrange(30) if dice.random() < 0.3 else 0))
            end = max(after[stream], begin + count)
            waiting.append((stream, end, made.observe(row(stream, list(range(begin, end))))))
            after[stream] = end
        for stream, end, future in waiting:
            assert "refused" not in future.result().status
            kept[stream] = max(kept[stream], end)
        waiting.clear()
        say("kept", **kept)


def nurse(where: Path, kind: str) -> None:
    """Fork a life for each line, so that none has to import everything anew."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            say("pid", pid=os.getpid())
            try:
                live(where, kind, int(line))
            finally:
                os._exit(1)
        os.waitpid(pid, 0)
        os.write(1, b"\ndead\n")


if __name__ == "__main__":
    nurse(Path(sys.argv[1]), sys.argv[2])
