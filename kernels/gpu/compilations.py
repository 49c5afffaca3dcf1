"""Compiles calls in processes of their own: a compiler that dies, or never ends, is one failed row, not the run's end.

A process compiles the calls of one case for one target in turn. When it dies, the call that it was at is tried once
more as the first of a fresh process, and only what dies there has failed; the calls behind it go on in a third. The
limit: on the way to a failure every call is recorded again, so recording has to be cheap and always the same.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import triton

from tsgdn2.kernels.gpu.launches import Call, Launch
from tsgdn2.kernels.gpu.resources import ARCHITECTURES, Resources, compile_call, faults

if TYPE_CHECKING:
    from tsgdn2.kernels.gpu.targets import Case


class Row(NamedTuple):
    """One call of a case on a target: what it needs, or why it cannot be launched."""

    case: Case
    target: str
    number: int
    """Which of the case's calls, from 0; -1 for recording them."""
    kernel: str
    launch: Launch
    constants: dict[str, int]
    """Whole numbers and flags among the constants, which tell the variants of a kernel apart."""
    found: Resources | None
    fault: str
    """Empty for a good one."""
    stderr: str
    """What was printed last, where it failed."""


class _Group(NamedTuple):
    """The calls of a case on a target from a first one on, which one process compiles."""

    place: int
    case: Case
    target: str
    first: int = 0


class _Running(NamedTuple):
    group: _Group
    process: BaseProcess
    folder: Path
    started: float


def check(
    cases: Sequence[Case],
    targets: Sequence[str],
    source: str,
    *,
    matrix: Mapping[str, bool] | None = None,
    workers: int = 2,
    timeout: float = 600.0,
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Compile the calls of every case on every target, `workers` at a time; rows in the order of cases and targets.

    `source` names the function, as module:function, that makes the calls of a case on an architecture. `matrix` says
    of kernels, by name, whether they are meant for matrix units; of the others a tl.dot says so. `timeout` is in
    seconds and for one compilation. `report` is handed each row as it comes. Raises ValueError for an unknown target,
    and in Triton's interpreter.
    """
    for target in targets:
        if target not in ARCHITECTURES:
            raise ValueError(f"target must be one of {', '.join(ARCHITECTURES)}; got {target!r}")
    if triton.knobs.runtime.interpret:
        raise ValueError("TRITON_INTERPRET must be unset to compile kernels; the interpreter compiles nothing")
    # A server that has imported torch and triton, and nothing else, is forked: no thread of this process is copied.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "triton"])
    pairs = [(case, target) for case in cases for target in targets]
    waiting = deque(_Group(place, *pair) for place, pair in enumerate(pairs))
    running: dict[int, _Running] = {}
    placed: list[tuple[int, int, Row]] = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    group, folder = waiting.popleft(), Path(tempfile.mkdtemp(dir=scratch))
                    what = (source, *group[1:], str(folder), f"{scratch}/cache")
                    process = context.Process(target=_work, args=what, daemon=True)
                    process.start()
                    running[process.sentinel] = _Running(group, process, folder, time.time())
                nearest = min(_deadline(one, timeout) for one in running.values())
                ended = set(wait(list(running), max(0.0, nearest - time.time())))
                for sentinel, one in list(running.items()):
                    if sentinel in ended or time.time() >= _deadline(one, timeout):
                        del running[sentinel]
                        rows, rest = _finish(one, None if sentinel in ended else timeout, matrix or {})
                        waiting.extendleft(rest)
                        placed += [(one.group.place, row.number, row) for row in rows]
                        for row in rows:
                            if report is not None:
                                report(row)
        finally:
            for one in running.values():
                _end(one.process)
    return [row for _, _, row in sorted(placed, key=lambda entry: entry[:2])]


def _work(source: str, case: Case, target: str, first: int, folder: str, cache: str) -> None:
    """Record the calls of a case, list them, and compile them in turn; what each leaves is a file of its number."""
    os.setsid()  # so that ptxas, a child of this process, ends with it
    os.environ["TRITON_CACHE_DIR"] = cache
    _print_to(f"{folder}/{first}.stderr")
    module, function = source.split(":")
    calls: list[Call] = getattr(import_module(module), function)(case, target)
    _write(f"{folder}/calls", [_label(call) for call in calls])
    for number in range(first, len(calls)):
        _print_to(f"{folder}/{number}.stderr")
        try:
            answer: object = compile_call(calls[number], target)
        except Exception as error:
            traceback.print_exc()
            answer = f"{type(error).__name__}: {_last(str(error))}"
        _write(f"{folder}/{number}", answer)


def _print_to(path: str) -> None:
    printed = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.close(printed)


def _write(path: str, answer: object) -> None:
    """Written under another name first: a file that is there is whole."""
    Path(f"{path}.part").write_text(json.dumps(answer), encoding="utf-8")
    os.replace(f"{path}.part", path)


def _last(text: str) -> str:
    """The last line that says something, cut to fit a table."""
    return next((line.strip()[:160] for line in reversed(text.splitlines()) if line.strip()), "nothing was printed")


def _label(call: Call) -> tuple[str, Launch, dict[str, int]]:
    constants = {name: int(x) for name, x in call.arguments.items() if isinstance(x, int) and name.isupper()}
    return call.kernel.fn.__name__, call.launch, constants


def _deadline(one: _Running, timeout: float) -> float:
    """When the call that a process is at will have taken too long."""
    return timeout + max([one.started, *(path.stat().st_mtime for path in one.folder.glob("*[0-9]"))])


def _finish(one: _Running, timeout: float | None, matrix: Mapping[str, bool]) -> tuple[list[Row], list[_Group]]:
    """Rows of what a process did that ended, or that was too slow (`timeout` given); and the calls it left."""
    code, group, number = _end(one.process), one.group, one.group.first
    listed = one.folder / "calls"
    labels = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else []

    def row(number: int, found: Resources | None, fault: str, died: bool = False) -> Row:
        kernel, launch, constants = labels[number] if number >= 0 else ("(recording)", (0, 0, 0, 0), {})
        printed = one.folder / f"{max(number, group.first)}.stderr"
        stderr = printed.read_text(encoding="utf-8", errors="replace")[-4000:] if fault and printed.exists() else ""
        fault = f"{fault}: {_last(stderr)}" if died else fault
        return Row(group.case, group.target, number, kernel, Launch(*launch), constants, found, fault, stderr)

    rows = []
    while (path := one.folder / str(number)).exists():
        answer = json.loads(path.read_text(encoding="utf-8"))
        found = None if isinstance(answer, str) else Resources(*answer)
        fault = answer if found is None else "; ".join(faults(found, group.target, matrix.get(labels[number][0])))
        rows.append(row(number, found, fault))
        number += 1
    if timeout is None and code == 0:
        return rows or [row(-1, None, "the case makes no call")], []
    if timeout is None and number > group.first:
        return rows, [group._replace(first=number)]
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else "the process failed"
    rows.append(row(number if labels else -1, None, how if timeout is None else f"not compiled in {timeout:g} s", True))
    return rows, [group._replace(first=number + 1)] if number + 1 < len(labels) else []


def _end(process: BaseProcess) -> int:
    """Kill what still runs of a process and its children; its exit code, negative for a signal."""
    if process.is_alive():
        assert process.pid is not None
        with suppress(ProcessLookupError):  # before it has a group of its own
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return code
