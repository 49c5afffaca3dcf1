"""Compilation for GPUs that are not here: good kernels pass, and each way of being unfit to launch is a failed row."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from tsgdn2.kernels.gpu.compilations import Row, check
from tsgdn2.kernels.gpu.launches import Call, Launch
from tsgdn2.kernels.gpu.resources import ARCHITECTURES, Resources, blocks_per_unit, faults
from tsgdn2.kernels.gpu.targets import CASES, Case, calls, main, sources

# The processes that compile import this file under this name; its folder is on their path.
SOURCE = "test_targets:probes"
UNITS = {
    "sm_80": "mma.sync bf16",
    "sm_86": "mma.sync bf16",
    "sm_90": "wgmma bf16",
    "sm_100": "tcgen05.mma f16",
    "gfx942": "v_mfma bf16",
}
GOOD = Resources(64, 0, 0, 16384, 0, {"wgmma bf16": 4}, 1, 0, 8)


@triton.jit
def product(a, b, c, bias, columns, K, SIZE: tl.constexpr, PRECISION: tl.constexpr = None):
    """C [SIZE,SIZE] = A [SIZE,K] B [K,columns] for K a multiple of SIZE; `columns` 1 is a constant, None is static."""
    tl.static_assert(bias is None)
    r = tl.arange(0, SIZE)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for start in range(0, K, SIZE):
        left = tl.load(a + r[:, None].to(tl.int64) * K + start + r[None, :])
        right = tl.load(b + (start + r[:, None]).to(tl.int64) * columns + r[None, :])
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(c + r[:, None] * columns + r[None, :], total)


@triton.jit
def scaled(x, y, factor, n, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y + at, factor * tl.load(x + at, mask=at < n), mask=at < n)


@triton.jit
def centred(x, y, SIZE: tl.constexpr):
    """Every value is needed again after the sum of all."""
    at = tl.arange(0, SIZE)
    values = tl.load(x + at)
    tl.store(y + at, values - tl.sum(values) / SIZE)


@triton.jit
def constant_one(y, one):
    tl.static_assert(one == 1)  # holds only where the launch makes an argument of 1 a constant
    tl.store(y, one)


@triton.constexpr_function
def act(action):
    action()


@triton.jit
def ending(y, ACTION: tl.constexpr):
    """Does something to the process that compiles it."""
    act(ACTION)
    tl.store(y, 1.0)


@triton.jit
def refused(y, SIZE: tl.constexpr):
    tl.static_assert(SIZE == 0, "SIZE must be 0")
    tl.store(y, 1.0)


def probes(case: Case, architecture: str) -> list[Call]:
    """The calls of the case called `case.name`."""
    dtype = getattr(torch, case.dtype)
    a, b, c = torch.empty(256, dtype=dtype), torch.empty(256, dtype=dtype), torch.empty(256)
    multiply = {"a": a, "b": b, "c": c, "bias": None, "columns": case.K, "K": 256, "SIZE": case.K}
    one = Call(scaled, 4, {"x": c, "y": c, "factor": 0.5, "n": 1000, "SIZE": 256}, Launch(16))
    kinds = {
        "good": [Call(product, 1, {**multiply, "PRECISION": None}, Launch(case.K)), one],
        "one": [Call(constant_one, 1, {"y": c, "one": 1}, Launch(16, 1, 1))],
        "not one": [Call(constant_one, 1, {"y": c, "one": 2}, Launch(16, 1, 1))],
        "spills": [Call(centred, 1, {"x": c, "y": c, "SIZE": case.K}, Launch(16, 1, 1))],
        "shared": [Call(product, 1, multiply, Launch(case.K, 8, 6))],
        "no units": [Call(product, 1, {**multiply, "PRECISION": "ieee"}, Launch(case.K))],
        "killed": [one, Call(ending, 1, {"y": c, "ACTION": os.abort}, Launch(16)), one],
        "endless": [Call(ending, 1, {"y": c, "ACTION": signal.pause}, Launch(16)), one],
        "refused": [Call(refused, 1, {"y": c, "SIZE": 3}, Launch(16)), one],
        "empty": [],
    }
    return kinds[case.name]


@pytest.fixture(autouse=True)
def path_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])


def compiled(name: str, *targets: str, size: int = 64, dtype: str = "bfloat16", timeout: float = 600.0) -> list[Row]:
    return check([Case(name, size, size, dtype)], targets, SOURCE, timeout=timeout)


def test_a_good_kernel_passes_on_every_target_and_its_matrix_instructions_are_found() -> None:
    rows = compiled("good", *ARCHITECTURES)
    assert [(row.target, row.number, row.kernel, row.fault) for row in rows] == [
        (target, number, kernel, "") for target in ARCHITECTURES for number, kernel in enumerate(("product", "scaled"))
    ]
    for row in rows:
        assert row.found is not None
        assert row.found.registers > 0
        assert row.found.blocks > 0
        assert row.found.spilled == 0
        if row.kernel == "product":
            assert list(row.found.matrix) == [UNITS[row.target]]
            assert (row.found.dots, row.found.scalar_dots) == (1, 0)
            assert 0 < row.found.shared <= ARCHITECTURES[row.target].shared
            assert (row.found.tensor_columns > 0) == (row.target == "sm_100")
        else:
            assert (row.found.matrix, row.found.dots) == ({}, 0)


def test_arguments_are_specialised_as_a_launch_would() -> None:
    (one,), (other,) = compiled("one", "sm_90"), compiled("not one", "sm_90")
    assert one.fault == ""
    assert "ompile-time" in other.fault or "CompileTime" in other.fault


@pytest.mark.parametrize(("target", "size"), [("sm_80", 8192), ("gfx942", 32768)])
def test_registers_spilled_to_memory_fail(target: str, size: int) -> None:
    (row,) = compiled("spills", target, size=size)
    assert row.found is not None
    assert row.found.spilled > 0
    assert row.fault == f"spills {row.found.spilled} bytes per thread"


@pytest.mark.parametrize(("target", "size"), [("sm_80", 128), ("gfx942", 64)])
def test_more_shared_memory_than_a_block_may_have_fails(target: str, size: int) -> None:
    (row,) = compiled("shared", target, size=size)
    assert "shared memory" in row.fault


def test_a_product_without_matrix_units_fails() -> None:
    (row,) = compiled("no units", "sm_80", size=32, dtype="float32")
    assert row.fault == "no matrix instruction"
    assert row.found is not None
    assert row.found.scalar_dots == 1
    assert faults(row.found, "sm_80", matrix=False) == []


def test_a_compiler_killed_by_a_signal_is_one_failed_row_and_the_calls_around_it_are_compiled() -> None:
    before, killed, after = compiled("killed", "sm_80")
    assert killed.fault.startswith("killed by SIGABRT")
    assert killed.found is None
    assert (before.fault, after.fault) == ("", "")
    assert before.found == after.found


def test_a_compilation_that_never_ends_is_one_failed_row() -> None:
    rows = compiled("endless", "sm_80", timeout=8.0)
    assert rows[0].fault.startswith("not compiled in 8 s")
    assert [row.fault for row in rows[1:]] == [""]


def test_an_error_of_the_compiler_is_one_failed_row_with_what_it_printed() -> None:
    failed, after = compiled("refused", "sm_80")
    assert failed.found is None
    assert "SIZE must be 0" in failed.stderr
    assert after.fault == ""


def test_a_case_that_cannot_be_recorded_or_makes_no_call_fails() -> None:
    (empty,), (unknown,) = compiled("empty", "sm_80"), compiled("nameless", "sm_80")
    assert empty.fault == "the case makes no call"
    assert unknown.fault == "the process failed: KeyError: 'nameless'"
    assert (empty.number, unknown.number) == (-1, -1)


def test_limits_are_those_of_the_architecture() -> None:
    assert faults(GOOD, "sm_90") == []
    assert faults(GOOD._replace(shared=100 * 1024), "sm_80") == []
    assert faults(GOOD._replace(shared=100 * 1024), "sm_86") == ["shared memory 100 KiB, limit 99"]
    assert faults(GOOD._replace(spilled=4, matrix={}), "sm_90") == [
        "spills 4 bytes per thread",
        "no matrix instruction",
    ]
    assert faults(GOOD._replace(tensor_columns=1024), "sm_100") == ["tensor memory 1024 columns, limit 512"]
    assert faults(GOOD._replace(matrix={}, dots=0), "sm_90") == []
    assert faults(GOOD._replace(matrix={}, dots=0), "sm_90", matrix=True) == ["no matrix instruction"]


@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "columns", "warps", "fitting"),
    [
        ("sm_80", 128, 0, 0, 4, 4),  # 65,536 registers hold 512 threads of 128
        ("sm_90", 168, 0, 0, 4, 3),
        ("sm_90", 161, 0, 0, 4, 3),  # registers come in steps of 8
        ("sm_90", 255, 0, 0, 8, 1),
        ("sm_90", 32, 75 * 1024, 0, 4, 3),  # 228 KiB, 1 KiB more per block
        ("sm_90", 32, 0, 0, 1, 32),
        ("sm_86", 32, 0, 0, 4, 12),
        ("sm_100", 32, 0, 256, 4, 2),
        ("gfx942", 128, 0, 0, 4, 4),
        ("gfx942", 128, 24 * 1024, 0, 4, 2),
        ("gfx942", 512, 0, 0, 8, 0),
        ("gfx942", 32, 65 * 1024, 0, 4, 0),
    ],
)
def test_blocks_per_unit_follow_from_what_a_block_takes(
    architecture: str, registers: int, shared: int, columns: int, warps: int, fitting: int
) -> None:
    assert blocks_per_unit(architecture, registers, shared, columns, warps) == fitting


def test_what_is_not_a_target_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="target must be one of sm_80, sm_86"):
        check(CASES, ["sm_42"], SOURCE)


def test_the_command_prints_and_writes_the_table_and_fails_with_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [Case("good", 64, 64), Case("no units", 32, 32, "float32"), Case("killed", 64, 64)]
    written, rows = tmp_path / "table.md", tmp_path / "rows.jsonl"
    wanted = ["--case", "good", "--case", "no units", "--target", "sm_80", "--target", "gfx942"]
    assert main([*wanted, "--markdown", str(written), "--rows", str(rows)], cases, SOURCE) == 1
    text = capsys.readouterr().out
    assert text.strip() == written.read_text().strip()
    assert "6 compilations, 1 failed" in text
    assert len({line.index(" | ") for line in text.splitlines() if line.startswith("|")}) == 1
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [line["target"] for line in lines if line["fault"]] == ["sm_80"]
    assert {"kernel", "K", "V", "dtype", "registers", "spilled", "shared", "matrix", "triton"} <= lines[0].keys()
    assert main(["--case", "good", "--target", "gfx942"], cases, SOURCE) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_case_has_a_name_of_its_own_and_makes_calls(architecture: str) -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert len(calls(case, architecture)) > 0


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_the_kernels_of_the_scan_and_of_the_step_are_fit_to_launch(architecture: str) -> None:
    chosen = [case for case in CASES if case.name in ("scan 64/64 bfloat16", "step 128/128 bfloat16")]
    rows = check(chosen, [architecture], "tsgdn2.kernels.gpu.targets:calls")
    assert len(rows) > 10
    assert [(row.kernel, row.fault) for row in rows if row.fault] == []


def test_the_committed_table_is_of_these_sources_and_holds_no_failure() -> None:
    table = (Path(__file__).resolve().parents[2] / "kernels" / "gpu" / "targets.md").read_text(encoding="utf-8")
    assert f"sources {sources()}" in table, "run python -m tsgdn2.kernels.gpu.targets (its docstring says how)"
    assert "FAIL" not in table
    for architecture in ("sm_80", "sm_90", "sm_100", "gfx942"):
        assert all(f"| {case.name}" in table for case in CASES)
        assert table.count(f"| {architecture} ") > len(CASES)
