"""Compiles every kernel and launch configuration for GPUs that are not here, and prints what each of them needs.

    python -m tsgdn2.kernels.gpu.targets [--target sm_90 ...] [--case NAME ...] [--markdown FILE] [--rows FILE]

targets.md beside this file is what it printed last; a test holds it to the present sources.
A row fails on a crash of the compiler, on registers spilled to memory, on more shared memory than a block may have,
and where a kernel meant for matrix units got none of their instructions; the command then exits with 1. The limit:
what is checked is what `launches.run` would launch for CASES; other shapes may choose other rows of the launch tables.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from tsgdn2.kernels.gpu.compilations import Row, check
from tsgdn2.kernels.gpu.device import assume
from tsgdn2.kernels.gpu.launches import Call, record
from tsgdn2.kernels.gpu.resources import ARCHITECTURES, KiB


class Case(NamedTuple):
    """Shapes and options whose launches are compiled."""

    name: str
    K: int
    V: int
    dtype: str = "bfloat16"
    tokens: int = 192
    """1: a step on a pool of states; up to 16: a scan token by token; beyond: by chunks."""
    packed: bool = False
    masked: bool = True
    gated: bool = True
    """Whether the kernels apply the gates (gdn2_scan) or e and z come ready (delta_scan)."""
    heads: int = 3
    """Without a factor of 16, and not 1: compilers get no help from it."""


SIZES = ((64, 64), (128, 128), (256, 256), (128, 256))
CASES = (
    *(Case(f"scan {K}/{V} bfloat16", K, V) for K, V in SIZES),
    *(Case(f"scan {K}/{V} float32", K, V, "float32") for K, V in ((32, 32), *SIZES[:3])),
    Case("scan 128/128 float16", 128, 128, "float16"),
    Case("packed scan 128/128 bfloat16", 128, 128, packed=True),
    Case("delta scan 128/128 bfloat16", 128, 128, masked=False, gated=False),
    # Tensors of more than 2 GiB, which nothing here touches: AMD's compiler then has to use other loads and stores.
    Case("long scan 128/128 bfloat16", 128, 128, tokens=1 << 18, heads=17),
    *(Case(f"short scan {K}/{V} bfloat16", K, V, tokens=16) for K, V in SIZES),
    *(Case(f"step {K}/{V} bfloat16", K, V, tokens=1) for K, V in SIZES),
)
MATRIX: dict[str, bool] = {}
"""Kernels, by name, that are meant for matrix units or are not; of the others a tl.dot says so."""
SOURCES = ("arithmetic", "blocks", "chunks", "outputs", "recurrent", "states")
TARGETS = tuple(ARCHITECTURES)
COLUMNS = ("case", "target", "kernel", "tile", "warps", "stages", "registers", "spilled", "shared KiB", "blocks",
           "matrix instructions", "verdict")  # fmt: skip


def calls(case: Case, architecture: str) -> list[Call]:
    """Every launch of the case on the architecture: of forward and backward, or of one step."""
    from tsgdn2.kernels.gpu import recurrent, scan

    B, T, H, K, V = 2, case.tokens, case.heads, case.K, case.V
    if case.packed:
        B, T = 1, 2 * T
    dtype = getattr(torch, case.dtype)
    q, k, erase, v, write = (torch.empty(B, T, H, size, dtype=dtype) for size in (K, K, K, V, V))
    g, mask = torch.empty(B, T, H, K), torch.empty(B, T) if case.masked else None
    initial, scale = torch.empty(2, H, K, V), K**-0.5
    if T == 1:
        q, k, v, g, b, w = (x[:, 0] for x in (q, k, v, g, erase, write))
        with record() as made:
            recurrent.step(initial, torch.arange(2), q, k, v, g, b, w, None if mask is None else mask[:, 0], scale)
        return made
    bounds = torch.tensor([0, T // 3, T]) if case.packed else None
    inputs = (q, k, erase, v, write if case.gated else None, g, mask, initial, bounds, scale)
    with record() as made, assume(architecture):
        o, final, A, P = scan.scan_forward(*inputs)
        scan.scan_backward(*inputs, A, P, torch.empty_like(o), torch.empty_like(final))
    return made


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table that is also aligned as plain text."""
    cells = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(COLUMNS))]
    cells.insert(1, tuple("-" * width for width in widths))
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells)


def record_of(row: Row) -> dict[str, object]:
    """The row as flat data for a line of JSON, with the versions that it holds for."""
    found = {} if row.found is None else row.found._asdict()
    return {
        **row.case._asdict(),
        **row._asdict(),
        "case": row.case.name,
        "launch": row.launch._asdict(),
        **found,
        "found": row.found is not None,
        "limit": ARCHITECTURES[row.target].shared,
        "triton": triton.__version__,
        "torch": torch.__version__,
    }


def sources() -> str:
    """A digest of the kernels and of every launch of CASES: what is compiled, and what a table holds for."""
    digest = hashlib.sha256()
    for name in SOURCES:
        for node in ast.walk(ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "triton.jit" in map(ast.unparse, _decorators(node)):
                digest.update(ast.dump(node).encode())
    for architecture in TARGETS:
        for case in CASES:
            for call in calls(case, architecture):
                given = {name: getattr(x, "dtype", x) for name, x in call.arguments.items()}
                digest.update(f"{architecture} {call.kernel.fn.__name__} {call.launch} {given}".encode())
    return digest.hexdigest()[:16]


def _decorators(node: ast.FunctionDef) -> list[ast.expr]:
    return [x.func if isinstance(x, ast.Call) else x for x in node.decorator_list]


def _cells(row: Row) -> tuple[str, ...]:
    found, launch = row.found, row.launch
    named = (row.case.name, row.target, f"{row.kernel} {row.number}", *map(str, launch[:3]))
    verdict = "FAIL: " + row.fault.replace("|", "/") if row.fault else "pass"
    if found is None:
        return (*named, "", "", "", "", "", verdict)
    kinds = [f"{kind} x{count}" for kind, count in found.matrix.items()]
    kinds += [f"({found.scalar_dots} of the products on multiply-adds)"] if found.scalar_dots else []
    shared = f"{found.shared / KiB:.1f} of {ARCHITECTURES[row.target].shared // KiB}"
    spilled = f"{found.spilled}" + (f" (+{found.scalar_spills} scalar)" if found.scalar_spills else "")
    return (*named, str(found.registers), spilled, shared, str(found.blocks), ", ".join(kinds), verdict)


def main(
    arguments: Sequence[str] | None = None,
    cases: Sequence[Case] = CASES,
    source: str = "tsgdn2.kernels.gpu.targets:calls",
) -> int:
    """Check, print the table, write it where asked; 1 when a row failed."""
    names = [case.name for case in cases]
    parser = argparse.ArgumentParser(prog="python -m tsgdn2.kernels.gpu.targets", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", action="append", choices=tuple(ARCHITECTURES), help=f"default: {', '.join(TARGETS)}"
    )
    parser.add_argument("--case", action="append", choices=names, metavar="NAME", help=f"default: {', '.join(names)}")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here too")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="write one line of JSON per row here")
    parser.add_argument("--workers", type=int, default=2, help="compilations at a time; default 2")
    chosen = parser.parse_args(arguments)
    some = [case for case in cases if case.name in (chosen.case or names)]
    targets = chosen.target or TARGETS

    def report(row: Row) -> None:
        print(f"{row.case.name}, {row.target}: {row.kernel} {row.fault or 'compiled'}", file=sys.stderr, flush=True)

    rows = check(some, targets, source, matrix=MATRIX, workers=chosen.workers, report=report)
    failed = [row for row in rows if row.fault]
    for row in failed:
        if row.stderr:
            print(f"\n{row.case.name}, {row.target}, {row.kernel} {row.number}\n{row.stderr}", file=sys.stderr)
    text = f"{table(rows)}\n\ntriton {triton.__version__}: {len(rows)} compilations, {len(failed)} failed\n"
    text += f"sources {sources()}\n"
    print(text)
    if chosen.markdown:
        chosen.markdown.write_text(text, encoding="utf-8")
    if chosen.rows:
        chosen.rows.write_text("".join(json.dumps(record_of(row)) + "\n" for row in rows), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
