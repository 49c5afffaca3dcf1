"""kill -9 at random moments: what was acknowledged is there afterwards, once, in order, for a new process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.service.appender import STREAMS
from tests.service.shelves import KINDS, execute, place

ROOT = Path(__file__).resolve().parents[2]
LIVES = 5


def life(kind: str, where: str, seed: int, lines: int) -> tuple[dict[str, int], dict[str, int]]:
    """One process that is killed while it works behind its `lines`th answer; what it found, and last acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.service.appender", kind, where, str(seed)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    found = process.stdout.readline()
    assert found.startswith("found "), found + process.stderr.read()
    kept = found
    for _ in range(lines):
        kept = process.stdout.readline()
        assert kept.startswith("kept "), process.stderr.read()
    process.send_signal(signal.SIGKILL)
    rest, said = process.communicate(timeout=60)
    assert not said, said
    whole = [line for line in rest.splitlines(keepends=True) if line.endswith("}\n")]
    kept = [kept, *whole][-1]
    return json.loads(found.split(" ", 1)[1]), json.loads(kept.split(" ", 1)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_survives_kill_9_at_any_moment(kind: str, tmp_path: Path) -> None:
    where = place(kind, tmp_path)
    dice = random.Random(8)
    acknowledged = dict.fromkeys(STREAMS, 0)
    for seed in range(LIVES):
        found, kept = life(kind, where, seed, dice.choice([0, 1, 5, 25, 60]))
        assert all(found[name] >= acknowledged[name] for name in STREAMS), (found, acknowledged)
        acknowledged = kept
        if kind == "postgres":  # the lease of a killed process runs out; here it runs out at once
            execute(kind, where, "UPDATE owners SET expires = clock_timestamp() - INTERVAL '1 second'")
    found, _ = life(kind, where, LIVES, 0)
    assert all(found[name] >= acknowledged[name] for name in STREAMS)
    assert sum(found.values()) > 100
