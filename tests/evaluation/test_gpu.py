"""The command for a GPU, as far as it goes without one: arguments, rows, counts of bytes and FLOPs, errors, peers."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tsgdn2.evaluation import gpu, kernel_bench, kernel_counts, kernel_grid
from tsgdn2.evaluation.kernel_counts import quantiles, scan_cost, step_cost
from tsgdn2.evaluation.kernel_grid import Case, errors, grid, relative, results, stream, upstream, within
from tsgdn2.evaluation.kernel_peers import PEERS, arguments, peer, same_scan
from tsgdn2.evaluation.rows import read

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def recorder(path: Path) -> gpu.Recorder:
    return gpu.Recorder(path, "a device", {"python": "3"}, "abc", seed=4)


def run_without_a_gpu(*program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", *program]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip


def test_without_a_gpu_the_command_says_so_and_leaves_with_2(tmp_path: Path) -> None:
    done = run_without_a_gpu("-m", "tsgdn2.evaluation.gpu", "--quick", "--output", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 2
    assert "needs a GPU" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_needs_nothing_but_torch_triton_and_the_standard_library(tmp_path: Path) -> None:
    blocked = ("numpy", "pandas", "polars", "gluonts", "lightning", "mlflow", "scipy", "pytest", "matplotlib", "rich")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked})); "
        "from tsgdn2.evaluation import gpu, kernel_bench, kernel_grid, kernel_peers, kernel_promises; "
        f"sys.exit(gpu.main(['--output', {str(tmp_path / 'rows.jsonl')!r}]))"
    )
    done = run_without_a_gpu("-c", program)
    assert done.returncode == 2, done.stderr
    assert "finds none" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--output"),
        (["--output", "rows.csv"], r"must end in \.jsonl"),
        (["--output", "rows.jsonl", "--part", "everything"], "--part"),
        (["--output", "rows.jsonl", "--minutes", "0"], "--minutes above 0"),
        (["--output", "rows.jsonl", "--workers", "0"], "--workers must be at least 1"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(arguments)
    assert re.search(words, capsys.readouterr().err)


def test_each_row_is_in_the_file_as_soon_as_it_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    record = recorder(path)
    record("first", {"B": 2, "initial": False}, passed=True, o=0.5, error=None)
    assert [row.what for row in read(path)] == ["first"]
    record("second", {}, passed=False, o=math.nan)
    record("third", {"of": "x"}, seconds={"0.1": 0.001, "0.5": 0.002, "0.9": 0.003}, over_bound=1.5)
    first, second, third = read(path)
    assert first.values == {"passed": True, "o": 0.5}
    assert (first.device, first.commit, first.seed) == ("a device", "abc", 4)
    assert second.values["o"] == "nan"
    assert third.seconds["0.5"] == 0.002
    assert (record.checked, record.failed) == (2, 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "right | first | B=2 initial=False | o=0.5"
    assert lines[1].startswith("WRONG | second")
    assert lines[2] == "third | of=x | 2 ms | over_bound=1.5"


def test_parts_for_which_no_time_is_left_are_rows_that_say_so(tmp_path: Path) -> None:
    record = recorder(tmp_path / "rows.jsonl")
    gpu.run(record, gpu.PARTS, quick=True, peers=False, workers=1, minutes=1e-9)
    rows = read(tmp_path / "rows.jsonl")
    assert {row.what for row in rows} == {"left out", "run"}
    assert len(rows) == len(grid(quick=True)) + 6
    assert record.checked == 0


def test_a_case_that_breaks_is_a_row_and_counts_as_wrong(tmp_path: Path) -> None:
    record = recorder(tmp_path / "rows.jsonl")
    kernel_grid.check_case(Case(1, 20, 1, 512, 16), CPU, record, seed=0)
    (row,) = read(tmp_path / "rows.jsonl")
    assert row.values["passed"] is False
    assert "ValueError" in str(row.values["error"])
    assert record.failed == 1


def test_the_grid_reaches_as_far_as_it_is_asked_to() -> None:
    cases = grid()
    assert len(set(cases)) == len(cases)
    assert {case.B for case in cases} >= {1, 2, 3, 4}
    assert {min(case.T for case in cases if case.T > 16), max(case.T for case in cases)} == {63, 8192}
    assert {case.H for case in cases} >= {1, 32}
    assert {(case.K, case.V) for case in cases} >= {(64, 64), (128, 128), (256, 256), (128, 256)}
    assert {case.dtype for case in cases} == {"bf16", "fp16", "fp32"}
    assert {case.decay for case in cases} == set(kernel_grid.DECAYS)
    assert all(
        sum(case.lengths) == case.T for case in [*cases, *kernel_bench.cases(kernel_bench.SHAPES)] if case.lengths
    )


def test_cases_that_share_kernels_are_compiled_once() -> None:
    found = {kernel_grid.signature(case) for case in grid()}
    assert len(found) < len(grid()) * 2 / 3
    assert all(case.B * case.T * case.H <= 2 * 70 * 16 and sum(case.lengths) in (0, case.T) for case in found)
    assert {kernel_grid.signature(case) for case in found} == found


@pytest.mark.parametrize("lengths", [(), (20, 0, 13)])
def test_errors_are_small_for_a_right_result_however_heads_are_grouped(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(1, 33, 3, 16, 32, dtype="fp32", lengths=lengths)
    x = stream(case, CPU)
    sent = upstream(case, x)
    found = results(x, sent, "chunked")
    whole = errors(x, sent, found)
    assert set(whole) == {"o", "final", *(f"d{name}" for name in kernel_grid.DIFFERENTIABLE)}
    assert 0 < max(whole.values()) < 1e-6
    assert within(whole, "fp32")
    monkeypatch.setattr(kernel_grid, "_MEMORY", 1)
    assert errors(x, sent, found) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("name", ["o", "final", "dq", "dinitial_state"])
@pytest.mark.parametrize("value", [1.0, math.nan])
def test_one_wrong_element_of_one_result_fails_the_case(name: str, value: float) -> None:
    case = Case(2, 20, 2, 16, 16, dtype="fp32")
    x = stream(case, CPU)
    sent = upstream(case, x)
    found = results(x, sent, "chunked")
    found[name].view(-1)[7] += value
    wrong = errors(x, sent, found)
    assert not within(wrong, "fp32")
    assert within({other: error for other, error in wrong.items() if other != name}, "fp32")


def test_a_gradient_that_is_nothing_is_measured_against_the_largest() -> None:
    found = relative({"dq": 4e-8, "dg": 4e-8, "o": 0.0}, {"dq": 4.0, "dg": 0.0, "o": 1.0}, {"dq": 4, "dg": 4, "o": 1})
    assert found == pytest.approx({"dq": 1e-4, "dg": 1e-4, "o": 0.0})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("initial", [False, True])
def test_counted_bytes_are_those_of_the_tensors(masked: bool, initial: bool) -> None:
    case = Case(2, 30, 3, 16, 48, missing=0.5 if masked else None, initial=initial)
    x = stream(case, CPU)
    o, final = kernel_grid.scan(x, "chunked")
    inputs = sum(t.nbytes for t in x if t is not None)
    sizes = {"masked": masked, "initial": initial}
    assert scan_cost(2, 60, 3, 16, 48, **sizes).bytes == inputs + o.nbytes + final.nbytes
    gradients = inputs - (x.mask.nbytes if x.mask is not None else 0)
    both = 2 * inputs + 2 * (o.nbytes + final.nbytes) + gradients
    assert scan_cost(2, 60, 3, 16, 48, backward=True, **sizes).bytes == both
    pool = torch.empty(5, 3, 16, 48)
    tokens = sum(t[:1, :5].nbytes for t in x[:6]) + o[:1, :5].nbytes + 5 * 8
    assert step_cost(5, 3, 16, 48).bytes == 2 * pool.nbytes + tokens


def test_counted_flops_are_those_of_the_products_of_a_chunk() -> None:
    C, K, V = kernel_counts.CHUNK, 16, 48
    triangle = sum(r + 1 for r in range(C))
    square = C * K * V
    inverse = C**3 / 6
    forward = 3 * triangle * K + 2 * triangle * V + inverse + 3 * square
    assert scan_cost(1, 2 * C, 5, K, V).flops == pytest.approx(2 * 2 * 5 * forward)
    backward = 9 * triangle * K + 5 * triangle * V + 3 * inverse + 7 * square
    assert scan_cost(1, 2 * C, 5, K, V, backward=True).flops == pytest.approx(2 * 2 * 5 * (forward + backward))
    assert scan_cost(1, C, 1, K, V).seconds(bandwidth=math.inf, rate=2.0) == pytest.approx(forward)
    cost = scan_cost(1, C, 1, K, V)
    assert cost.seconds(bandwidth=1.0, rate=math.inf) == cost.bytes


def test_quantiles_are_those_of_numpy() -> None:
    values = [0.3, 0.1, 7.0, 0.2, 0.25, 0.9]
    assert quantiles(values) == pytest.approx(
        {str(level): float(np.quantile(values, level)) for level in kernel_counts.LEVELS}
    )
    assert quantiles([2.0]) == {"0.1": 2.0, "0.5": 2.0, "0.9": 2.0}
    with pytest.raises(ValueError, match="at least one measurement"):
        quantiles([])


PEER = """
from tsgdn2.kernels.ops import delta_scan

def chunk_kda(q, k, v, g, beta, scale=None, output_final_state=False, **kwargs):
    assert output_final_state and not kwargs
    return delta_scan(q, k, beta[..., None] * k, beta[..., None] * v, g, scale=scale, backend="chunked")

def chunk_gdn2(q, k, v, g, b, w, A_log): ...
"""


def test_a_peer_is_called_by_the_names_of_its_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "borrowed_scan.py").write_text(PEER)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("chunk_kda", "chunk_gdn2"):
        monkeypatch.setitem(PEERS, name, "borrowed_scan")
    monkeypatch.setitem(PEERS, "chunk_gated_delta_rule", "no_such_module")
    x = stream(Case(1, 20, 2, 16, 16, missing=None, initial=False), CPU)
    function, leaves, differs = peer("chunk_kda", x, "chunked")
    assert differs < 1e-2
    assert torch.equal(function(leaves), function(leaves))
    with pytest.raises(TypeError, match="A_log"):
        peer("chunk_gdn2", x, "chunked")
    with pytest.raises(ImportError, match="no_such_module"):
        peer("chunk_gated_delta_rule", x, "chunked")


def test_the_gated_delta_rule_is_our_scan_with_one_decay_per_head() -> None:
    x = stream(Case(1, 12, 2, 16, 16, dtype="fp32", missing=None, initial=False), CPU)
    leaves = arguments("chunk_gated_delta_rule", x)
    state, reads = torch.zeros(2, 16, 16), []
    for t in range(12):
        q, k, v, g, beta = (leaves[name][0, t] for name in ("q", "k", "v", "g", "beta"))
        state = g.exp()[:, None, None] * state
        change = beta[:, None] * (v - torch.einsum("hk,hkv->hv", k, state))
        state = state + torch.einsum("hk,hv->hkv", k, change)
        reads.append(torch.einsum("hk,hkv->hv", q, state) / 4)
    torch.testing.assert_close(same_scan("chunk_gated_delta_rule", x, "chunked")[0], torch.stack(reads))
