"""The native library in processes of its own: switched off, beside torch's threads, after a fork.

What is decided once per process cannot be asked of the one that runs the tests. Each program ends with an assertion of
its own, so that its exit status is the answer. Other targets run all native tests in `make test-sanitized`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 120  # seconds; each takes about three, nearly all of them for importing torch
PRELUDE = """
import json, os, sys, threading
import torch
from tsgdn2.evaluation.kernel_grid import Case, results, scan, stream, upstream
from tsgdn2.kernels.ops import gdn2_step

CPU = torch.device("cpu")

def made(case, seed=0):
    x = stream(case, CPU, seed)
    return x, upstream(case, x)

def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in b)

def step(pool, x, backend="native", t=0):
    slots = torch.arange(len(x.q)).flip(0)
    return gdn2_step(pool, slots, *(y[:, t] for y in x[:6]), mask=x.mask[:, t], backend=backend)
"""


def ran(program: str, **environment: str) -> str:
    """What the program printed; its errors are those of the test."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + program],
        env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_switched_off_it_is_refused_with_the_reason_and_auto_runs_in_torch_without_a_word() -> None:
    ran(
        """
x, sent = made(Case(2, 40, 2, 6, 11, "fp32"))
pool = x.initial_state.clone()
for call in (lambda: scan(x, "native"), lambda: step(pool, x)):
    try:
        call()
    except ValueError as error:
        assert "native" in str(error) and "TSGDN2_NATIVE=off" in str(error), error
    else:
        raise SystemExit("it ran")
assert torch.equal(pool, x.initial_state)
assert same(results(x, sent, "auto"), results(x, sent, "chunked"))
other = pool.clone()
assert torch.equal(step(pool, x, "auto"), step(other, x, "reference")) and torch.equal(pool, other)
""",
        TSGDN2_NATIVE="off",
    )


def test_one_thread_makes_none_and_two_are_those_that_torch_already_has() -> None:
    """A thread of Python's counts the tasks of the process all the time, so one made for a call is seen too."""
    ran("""
x, sent = made(Case(16, 200, 4, 32, 32, "fp32"))
torch.set_num_threads(1)
before = len(os.listdir("/proc/self/task"))
scan(x, "native")
step(x.initial_state.clone(), x)
assert len(os.listdir("/proc/self/task")) == before

torch.set_num_threads(2)
weight = torch.rand(1 << 20, requires_grad=True)
torch.autograd.grad((weight * 2).exp().sum(), weight)  # torch's pool is made
most, watching = 0, True

def watch():
    global most
    while watching:
        most = max(most, len(os.listdir("/proc/self/task")))

watcher = threading.Thread(target=watch)
watcher.start()
before = len(os.listdir("/proc/self/task"))
wide, row = made(Case(16, 200, 4, 32, 32, "fp32")), made(Case(1, 400, 1, 128, 128, "fp32"))
for _ in range(5):
    for x, sent in (wide, row):
        results(x, sent, "native")
        step(x.initial_state.clone(), x)
watching = False
watcher.join()
assert before >= 3, before
assert most == before, (most, before)
""")


def test_forked_children_of_a_parent_with_two_threads_compute_the_same() -> None:
    """As the workers of a DataLoader do: one thread each."""
    ran("""
import multiprocessing
torch.set_num_threads(2)
x, sent = made(Case(8, 100, 4, 32, 32, "fp32"))
expected = results(x, sent, "native")
pool = x.initial_state.clone()
read = step(pool, x)

def child():
    torch.set_num_threads(1)
    o, final = scan(x, "native")
    assert torch.equal(o, expected["o"]) and torch.equal(final, expected["final"])
    mine = x.initial_state.clone()
    assert torch.equal(step(mine, x), read) and torch.equal(mine, pool)
    assert same(results(x, sent, "native"), expected)

context = multiprocessing.get_context("fork")
children = [context.Process(target=child) for _ in range(3)]
for process in children:
    process.start()
for process in children:
    process.join(60)
for process in children:
    process.kill()
assert [process.exitcode for process in children] == [0, 0, 0]
assert same(results(x, sent, "native"), expected)  # and the parent's threads still work
""")


def test_many_threads_that_call_at_once_and_first_get_the_results_of_one() -> None:
    ran("""
from concurrent.futures import ThreadPoolExecutor
torch.set_num_threads(2)
cases = [Case(3, 60 + n, 2, 5 + 7 * n, 40 - n, ("fp32", "fp64")[n % 2]) for n in range(8)]
jobs = []
for n, case in enumerate(cases):
    x, sent = made(case, n)
    if case.dtype == "fp64":
        x, sent = type(x)(*(t if t is None else t.double() for t in x)), [t.double() for t in sent]
    jobs.append((x, sent))
gate = threading.Barrier(len(jobs))

def job(pair):
    gate.wait()
    x, sent = pair
    found = [results(x, sent, "native") for _ in range(5)]
    pool = x.initial_state.clone()
    found[0]["read"], found[0]["pool"] = step(pool, x), pool
    assert all(same(again, found[1]) for again in found)
    return found[0]

with ThreadPoolExecutor(len(jobs)) as executor:
    together = list(executor.map(job, jobs))
gate = threading.Barrier(1)
assert all(same(mine, job(pair)) for mine, pair in zip(together, jobs, strict=True))
""")
