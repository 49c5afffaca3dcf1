"""The benchmark of the processor: bounds by hand-computed numbers, turns, rows, refusals, its table. Never a timing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tsgdn2.evaluation import cpu
from tsgdn2.evaluation.ceilings import Ceilings, Job, Rates, in_turn, last_cache, lstm_cost, scan_cost, step_cost
from tsgdn2.evaluation.contenders import BOTH, FORWARD, directions, lstms, scans, steps
from tsgdn2.evaluation.kernel_counts import Cost
from tsgdn2.evaluation.kernel_grid import DIFFERENTIABLE, Case, scan, stream
from tsgdn2.evaluation.rows import Row, append, read, row
from tsgdn2.evaluation.tables import render

CPU = torch.device("cpu")
PLAIN = Case(1, 2, 3, 4, 5, dtype="fp32", missing=None, initial=False)


def quick(path: Path, *more: str) -> list[Row]:
    assert cpu.main(["--quick", "--output", str(path), "--commit", "abc", *more]) == 0
    return read(path)


@pytest.mark.parametrize(
    ("settings", "operations", "numbers"),
    [
        # 1 x 2 tokens of 3 heads: 6 times K V = 20; q, k, g, b 16 numbers, v, w 10, o 5; the final state 60.
        ({"gated": True, "backward": False}, 840, 6 * 31 + 60),
        ({"gated": False, "backward": False}, 840, 6 * 26 + 60),
        ({"gated": True, "backward": True}, 2640, 6 * 31 + 60 + 6 * 26 + 6 * 5 + 6 * 26),
        ({"gated": False, "backward": True}, 2640, 6 * 26 + 60 + 6 * 21 + 6 * 5 + 6 * 21),
        ({"gated": True, "backward": True, "again": True}, 3000, 6 * 31 + 60 + 6 * 26 + 6 * 5 + 6 * 26),
    ],
)
def test_a_scan_counts_7_and_15_operations_and_every_number_once(
    settings: dict[str, bool], operations: int, numbers: int
) -> None:
    assert scan_cost(PLAIN, **settings) == Cost(4 * numbers, operations)


@pytest.mark.parametrize("missing", [None, 0.3])
@pytest.mark.parametrize("initial", [False, True])
def test_counted_bytes_are_those_of_the_tensors(missing: float | None, initial: bool) -> None:
    case = Case(2, 9, 3, 17, 5, dtype="fp32", missing=missing, initial=initial)
    x = stream(case, CPU)
    o, final = scan(x, "chunked")
    inputs = sum(t.nbytes for t in x if t is not None)
    gradients = sum(t.nbytes for name in DIFFERENTIABLE if (t := getattr(x, name)) is not None)
    forward = inputs + o.nbytes + final.nbytes
    assert scan_cost(case, gated=True, backward=False).bytes == forward
    assert scan_cost(case, gated=True, backward=True).bytes == forward + inputs + o.nbytes + gradients


def test_a_step_counts_its_states_alone() -> None:
    assert step_cost(1024, 4, 32, 16) == Cost(2 * torch.empty(1024, 4, 32, 16).nbytes, 7 * 1024 * 4 * 32 * 16)


def test_an_lstm_counts_the_weights_that_it_has_and_holds_as_many_numbers_as_the_state() -> None:
    case = Case(2, 20, 2, 8, 4, dtype="fp32", missing=None, initial=False)
    equal, both, usual, _ = lstms("A", case, "ours", timed_steps=5, rounds=3)
    assert (equal.shape["direction"], both.shape["direction"]) == (FORWARD, BOTH)
    assert 2 * int(str(equal.shape["hidden"])) == 2 * 8 * 4
    assert (equal.factor, equal.job.rounds) == (4.0, 3)
    assert (usual.shape["hidden"], usual.factor, usual.job.rounds) == (8, 1.0, None)
    weights = sum(p.numel() for name, p in nn.LSTM(8, 32).named_parameters() if name.startswith("weight"))
    tokens = 2 * 20
    assert equal.cost == Cost(4 * (weights + tokens * (8 + 32)), 2.0 * weights * tokens)
    assert both.cost.flops == 3 * equal.cost.flops
    assert lstm_cost(2, 20, 8, 32, backward=True).bytes == 4 * (3 * weights + tokens * (3 * 8 + 2 * 32))


def test_the_bound_is_the_larger_one_at_the_faster_copy() -> None:
    rates = Rates(sgemm=100.0, copy=10.0, own=20.0, in_place=None)
    assert rates.bound(Cost(bytes=40, flops=300.0)) == (3.0, "operations")
    assert rates.bound(Cost(bytes=80, flops=300.0)) == (4.0, "bytes")
    assert rates._replace(copy=40.0).bound(Cost(bytes=80, flops=100.0)) == (2.0, "bytes")


def test_rates_are_those_of_the_median_runs() -> None:
    ceilings = Ceilings("A", side=10, far=800, own=80, in_place=True)
    times = {name: [9.0, seconds, 0.0] for name, seconds in zip(ceilings.jobs, (2.0, 4.0, 5.0, 8.0), strict=True)}
    assert ceilings.rates(times) == Rates(sgemm=1000.0, copy=200.0, own=16.0, in_place=10.0)
    assert Ceilings("A", side=10, far=800, own=80).rates(times).in_place is None
    assert last_cache() >= 1 << 10


def test_jobs_take_turns_and_what_cannot_run_is_told() -> None:
    seen: list[str] = []

    def fails() -> None:
        raise ValueError("not here")

    jobs = {
        "a": Job(lambda: seen.append("a"), after=lambda: seen.append("after a")),
        "rare": Job(lambda: seen.append("rare"), rounds=1),
        "fails": Job(fails),
        "two": Job(lambda: seen.append(f"two {torch.get_num_threads()}"), threads=2),
    }
    before = torch.get_num_threads()
    found = in_turn(jobs, rounds=2, slot=0.0)
    assert torch.get_num_threads() == before
    once = ["a", "after a", "rare", "two 2"]
    assert seen == [*once, *once, "a", "after a", "two 2"]
    assert {name: len(times) for name, times in found.wall.items()} == {"a": 2, "rare": 1, "two": 2}
    assert found.processor.keys() == found.wall.keys()
    assert found.refused == {"fails": "ValueError: not here"}


def test_a_small_job_fills_its_turn() -> None:
    found = in_turn({"a": Job(lambda: None)}, rounds=2, slot=1.0)
    assert len(found.wall["a"]) == 2 * 64


def test_a_backward_reaches_every_input_and_leaves_no_gradient_behind() -> None:
    leaves = [torch.randn(3, requires_grad=True) for _ in range(2)]
    forward, both = directions(lambda: (leaves[0] * leaves[1], leaves[0]), leaves, torch.ones(3))
    forward.run()
    assert all(x.grad is None for x in leaves)
    both.run()
    assert torch.equal(leaves[0].grad, leaves[1])
    assert both.after is not None
    both.after()
    assert all(x.grad is None for x in leaves)


@pytest.mark.parametrize("missing", [None, 0.3])
def test_both_scans_run_in_both_directions_beside_the_first_backend(missing: float | None) -> None:
    case = Case(2, 9, 2, 5, 7, dtype="fp32", missing=missing, initial=missing is not None)
    entries = scans("A", case, ("chunked", "reference"))
    assert len(entries) == 8
    assert not any(in_turn({entry.key: entry.job for entry in entries}, rounds=1, slot=0.0).refused)
    assert {(entry.ours, entry.key) for entry in entries[2:4]} == {
        ("A: gdn2_scan, chunked", f"A: gdn2_scan, reference, {direction}") for direction in (FORWARD, BOTH)
    }


def test_the_quick_run_has_a_row_for_everything_and_prints_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    rows = quick(tmp_path / "rows.jsonl")
    assert torch.get_num_threads() == threads
    plan = cpu.plan(quick=True)
    for name in plan.cases:
        for function in ("gdn2_scan", "delta_scan"):
            for backend in ("native", "chunked"):
                found = [one for one in rows if one.what == f"{name}: {function}, {backend}"]
                assert [one.shape["direction"] for one in found] == [FORWARD, BOTH]
    for what in ("nn.LSTM of as many state bytes", "nn.LSTM of the layer's width"):
        assert [one.shape["case"] for one in rows if one.what.endswith(what)] == ["A", "A"]
    assert {one.what for one in rows if one.shape.get("N")} >= {
        f"step of 6 streams, K = V = 4: {backend}" for backend in ("native", "reference")
    }
    for one in rows:
        assert {"threads", "dtype", "K", "V", "H"} <= set(one.shape) or "error" in one.values
        assert one.commit == "abc"
        assert {"python", "torch", "native targets"} <= set(one.versions)
        if "error" not in one.values:
            assert set(one.seconds) == {"0.1", "0.5", "0.9"}
            assert one.values["median_ms"] == pytest.approx(1e3 * one.seconds["0.5"])
    for one in (one for one in rows if "bound" in one.values):
        bound, median = (float(str(one.values[name])) for name in ("bound_ms", "median_ms"))
        assert one.values["fraction_of_bound"] == pytest.approx(bound / median)
        assert one.values["bound"] in ("operations", "bytes")
        assert ("target" in one.values) == (one.shape.get("backend") == "native")
        assert ("fraction_of_in_place" in one.values) == ("N" in one.shape)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[1:]] == [one.what for one in rows]


def test_a_backend_that_cannot_run_here_is_a_row_that_says_why(tmp_path: Path) -> None:
    rows = quick(tmp_path / "rows.jsonl", "--backend", "triton")
    refused = [one for one in rows if one.shape.get("backend") == "triton"]
    assert {one.what.partition(": ")[0] for one in refused} >= {"A", "odd", "step of 6 streams, K = V = 4"}
    assert all("backend 'triton' cannot run here" in str(one.values["error"]) for one in refused)
    others = [one for one in rows if one.shape.get("backend") in ("chunked", "reference")]
    assert others
    assert all(one.seconds and "times_ours" not in one.values for one in others)


def test_one_processor_is_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "processors", lambda: 1)
    (two,) = [one for one in quick(tmp_path / "rows.jsonl") if one.what.endswith("on 2 threads")]
    assert "one processor only" in str(two.values["error"])


def test_a_second_run_adds_its_rows_and_prints_them_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    first = quick(path, "--backend", "chunked")
    capsys.readouterr()
    both = quick(path, "--backend", "chunked", "--rounds", "2")
    assert both[: len(first)] == first
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) - 1 == len(both) - len(first)
    assert {one.values["runs"] for one in both[len(first) :] if "runs" in one.values} == {1, 2}


def test_the_plan_of_record_has_the_cases_that_are_judged() -> None:
    plan = cpu.plan(quick=False)
    assert plan.cases["A"][:5] == (32, 512, 4, 32, 32)
    assert plan.cases["B"][:5] == (8, 2048, 4, 64, 64)
    assert any(case.K % 2 and case.V % 2 for case in plan.cases.values())
    assert plan.streams == ((1024, 4, 32), (1024, 4, 64), (1024, 4, 16))
    assert plan.lstm_steps >= 64
    assert plan.far >= 2 * last_cache()


def test_steps_run_on_distinct_rows_of_a_larger_pool() -> None:
    (entry,) = steps("steps", 6, 2, 4, ("reference",))
    pool, slots = entry.job.run.args[:2]
    before = pool.clone()
    entry.job.run()
    changed = (pool != before).flatten(1).any(1)
    assert int(changed.sum()) == len(slots.unique()) == 6
    assert len(pool) == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--output"),
        (["--output", "rows.csv"], r"must end in \.jsonl"),
        (["--output", "rows.jsonl", "--rounds", "0"], "--rounds must be at least 1"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cpu.main(arguments)
    assert re.search(words, capsys.readouterr().err)


def test_the_readme_s_table_sets_both_directions_side_by_side_and_keeps_rows_that_lose(tmp_path: Path) -> None:
    figures = {"median_ms": 14.25, "fraction_of_bound": 0.5}
    append(
        tmp_path / "scan_cpu.jsonl",
        row("sgemm, GFLOP/s", {}, rate=79.5),
        row("A: ours", {"direction": FORWARD}, **figures),
        row("A: ours", {"direction": BOTH}, **{**figures, "median_ms": 70.0}),
        row("A: a rival that wins", {"direction": FORWARD}, **figures, times_ours=0.5),
        row("A: one that cannot run", {"direction": FORWARD}, error="ValueError"),
        row("A on 2 threads: ours", {"direction": FORWARD}, gain=1.75),
    )
    text = render("<!-- table: scan_cpu -->\n<!-- end -->", tmp_path)
    head, _, *lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert not {"seeds", "CPU-s"} & set(head)
    assert lines == [  # no row has a rival's time with the backward: that column is left out
        ["sgemm, GFLOP/s", "-", "-", "-", "-", "-", "-", "79.5"],
        ["A: ours", "14.2", "0.500", "-", "70.0", "0.500", "-", "-"],
        ["A: a rival that wins", "14.2", "0.500", "0.500", "-", "-", "-", "-"],
        ["A: one that cannot run (cannot run here)", "-", "-", "-", "-", "-", "-", "-"],
        ["A on 2 threads: ours", "-", "-", "-", "-", "-", "1.750", "-"],
    ]
