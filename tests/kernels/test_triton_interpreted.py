"""Runs the tests of the Triton kernels that need no GPU, in Triton's interpreter and in processes of their own.

TRITON_INTERPRET must be set before triton is first imported, so they can not share a process with the other tests. Both
start at once, one thread each.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests/kernels"
# Files that share a process, and how many tests must really have run and passed in it.
RUNS = {
    "scan": (("interpreted_scan.py",), 45),
    "invariance": (("interpreted_invariance.py", "interpreted_tiles.py"), 28),
    "recurrent": (("interpreted_recurrent.py",), 60),
}
LIMIT = 600  # seconds; together they take 200 seconds of processor time


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[subprocess.Popen[bytes], Path]]]:
    """All runs, under way."""
    folder = tmp_path_factory.mktemp("interpreted")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    options = ["-q", "--no-header", "--show-capture=no", "-p", "no:cacheprovider", "--durations=5"]
    started = {}
    for name, (files, _) in RUNS.items():
        command = [sys.executable, "-m", "pytest", *options, *(f"{HERE}/{file}" for file in files)]
        with (folder / name).open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        started[name] = (process, folder / name)
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", RUNS)
def test_the_kernels_pass_their_tests_in_the_interpreter(
    name: str, running: dict[str, tuple[subprocess.Popen[bytes], Path]]
) -> None:
    process, output = running[name]
    try:
        process.wait(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"{name} took longer than {LIMIT} s; the end of its output:\n{tail(output)}")
    assert process.returncode == 0, tail(output)
    passed = re.search(r"(\d+) passed", tail(output))
    assert passed, tail(output)
    assert int(passed.group(1)) >= RUNS[name][1], f"too few tests ran:\n{tail(output)}"


def tail(output: Path, characters: int = 6000) -> str:
    return output.read_text(encoding="utf-8", errors="replace")[-characters:]
