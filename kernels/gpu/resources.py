"""What one launch costs on a GPU that is not here: compiled for it by Triton's own path, then read from the assembly.

A stand-in for the driver names the target, so the types, alignments and constants of the arguments are those that a
launch on that GPU would get. The limit: a kernel is compiled, not run; what a driver would refuse for other reasons,
and all times, stay unknown. The blocks per unit are arithmetic on the vendors' tables, not a measurement.

| field | NVIDIA | AMD |
|---|---|---|
| registers | REG of the cubin, per thread | .vgpr_count, accumulators included |
| spilled | STACK + LOCAL, bytes per thread | .private_segment_fixed_size, or 4 .vgpr_spill_count |
| shared | bytes per block | the same |
| matrix | wgmma, mma.sync, tcgen05.mma in the PTX | v_mfma in the assembly |
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from tsgdn2.kernels.gpu.launches import Call

KiB = 1024


class Architecture(NamedTuple):
    """A compilation target and what one multiprocessor (NVIDIA) or compute unit (AMD) holds."""

    backend: str
    arch: int | str
    shared: int
    """Shared memory that one block may take, bytes."""
    shared_unit: int
    shared_reserved: int
    """Bytes that the system adds to every block."""
    warps: int
    blocks: int
    warp_size: int = 32


ARCHITECTURES = {
    "sm_80": Architecture("cuda", 80, 163 * KiB, 164 * KiB, KiB, 64, 32),
    "sm_86": Architecture("cuda", 86, 99 * KiB, 100 * KiB, KiB, 48, 16),
    "sm_90": Architecture("cuda", 90, 227 * KiB, 228 * KiB, KiB, 64, 32),
    "sm_100": Architecture("cuda", 100, 227 * KiB, 228 * KiB, KiB, 64, 32),
    "gfx942": Architecture("hip", "gfx942", 64 * KiB, 64 * KiB, 0, 32, 32, 64),
}
REGISTERS = 512  # vector registers per lane of each of a unit's four schedulers, on all of these
TENSOR_COLUMNS = 512  # tensor memory of a multiprocessor of sm_100


class Resources(NamedTuple):
    """What the compiler gave one kernel; see the table of the module."""

    registers: int
    spilled: int
    scalar_spills: int
    """Scalar registers kept in lanes of a vector register (AMD): no memory traffic, so not counted as spilled."""
    shared: int
    tensor_columns: int
    """Columns of tensor memory, 0 but on sm_100."""
    matrix: dict[str, int]
    """Matrix instructions in the assembly by kind and operand, each counted once whatever loop it stands in."""
    dots: int
    """Products of tiles (tl.dot) that the kernel asks for, before the compiler unrolls or splits them."""
    scalar_dots: int
    """Those that the compiler gave to multiply-adds and not to matrix units."""
    blocks: int
    """Blocks that fit on one unit at a time; 0: not even one."""


class _Elsewhere:
    """Answers what the compiler asks a driver for: which GPU this would be."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_current_target(self) -> Any:
        chosen = ARCHITECTURES[self.name]
        return GPUTarget(chosen.backend, chosen.arch, chosen.warp_size)

    def get_current_device(self) -> str:
        """A key for the kernel's cache, so that one process may compile for several targets."""
        return self.name

    def get_current_stream(self, device: str) -> int:
        del device
        return 0


def compile_call(call: Call, architecture: str) -> Resources:
    """Compile what this call would launch on the architecture; nothing is launched.

    Triton's active driver is the stand-in from then on, so this belongs in a process that launches nothing. Raises
    ValueError in Triton's interpreter, which has no compiler, and whatever the compiler raises.
    """
    if triton.knobs.runtime.interpret:
        raise ValueError("TRITON_INTERPRET must be unset to compile kernels; the interpreter compiles nothing")
    triton.runtime.driver.set_active(_Elsewhere(architecture))
    options = {"num_warps": call.launch.warps, "num_stages": call.launch.stages}
    compiled = call.kernel.warmup(**call.arguments, grid=(max(1, call.programs),), **options)
    read = _read_nvidia if ARCHITECTURES[architecture].backend == "cuda" else _read_amd
    registers, spilled, scalar_spills, matrix = read(compiled.asm)
    shared, columns = int(compiled.metadata.shared), int(getattr(compiled.metadata, "tmem_size", None) or 0)
    return Resources(
        registers,
        spilled,
        scalar_spills,
        shared,
        columns,
        dict(sorted(matrix.items())),
        len(re.findall(r"= tt\.dot(?:_scaled)? ", compiled.asm["ttir"])),
        len(re.findall(r"= tt\.dot(?:_scaled)? .*-> tensor<[^#>]*#(?:blocked|linear)\d*>", compiled.asm["ttgir"])),
        blocks_per_unit(architecture, registers, shared, columns, call.launch.warps),
    )


def faults(found: Resources, architecture: str, matrix: bool | None = None) -> list[str]:
    """What keeps a kernel from being launched as it is; empty for a good one.

    `matrix` says whether it is meant for matrix units; None: if it has a tl.dot.
    """
    limit, wrong = ARCHITECTURES[architecture].shared, []
    if found.spilled:
        wrong.append(f"spills {found.spilled} bytes per thread")
    if found.shared > limit:
        wrong.append(f"shared memory {found.shared / KiB:.0f} KiB, limit {limit // KiB}")
    if found.tensor_columns > TENSOR_COLUMNS:
        wrong.append(f"tensor memory {found.tensor_columns} columns, limit {TENSOR_COLUMNS}")
    if (found.dots > 0 if matrix is None else matrix) and not found.matrix:
        wrong.append("no matrix instruction")
    return wrong


def blocks_per_unit(architecture: str, registers: int, shared: int, columns: int, warps: int) -> int:
    """Blocks that one unit can hold at a time, by registers (in steps of 8), warps, shared and tensor memory."""
    unit = ARCHITECTURES[architecture]
    if shared > unit.shared:
        return 0
    fitting = 4 * (REGISTERS // (8 * -(-max(registers, 1) // 8)))
    limits = [min(fitting, unit.warps) // warps, unit.blocks]
    limits += [unit.shared_unit // taken] if (taken := shared + unit.shared_reserved) else []
    limits += [TENSOR_COLUMNS // columns] if columns else []
    return min(limits)


def _read_nvidia(asm: Any) -> tuple[int, int, int, Counter[str]]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if not functions:
        raise ValueError(f"cuobjdump names no function; it said {usage!r}")
    matrix: Counter[str] = Counter()
    for line in asm["ptx"].splitlines():
        if found := re.search(r"\bwgmma\.mma_async\.\S*\.m\d+n\d+k\d+\.\w+\.(\w+)", line):
            matrix[f"wgmma {found[1]}"] += 1
        elif found := re.search(r"\bmma\.sync\.\S*\.m\d+n\d+k\d+\.\w+\.\w+\.\w+\.(\w+)", line):
            matrix[f"mma.sync {found[1]}"] += 1
        elif found := re.search(r"\btcgen05\.mma\.\S*kind::(\w+)", line):
            matrix[f"tcgen05.mma {found[1]}"] += 1
    return max(int(f[0]) for f in functions), sum(int(f[1]) + int(f[2]) for f in functions), 0, matrix


def _read_amd(asm: Any) -> tuple[int, int, int, Counter[str]]:
    text = asm["amdgcn"]

    def largest(field: str) -> int:
        found = re.findall(rf"^\s*(?:- )?\.{field}:\s*(\d+)", text, re.MULTILINE)
        if not found:
            raise ValueError(f"the assembly has no .{field}")
        return max(map(int, found))

    kinds = re.findall(r"^\s*v_mfma_\w+?_\d+x\d+x\d+_?(?:\d+b_)?([a-z]+\d+)", text, re.MULTILINE)
    matrix = Counter(f"v_mfma {kind}" for kind in kinds)
    spilled = max(largest("private_segment_fixed_size"), 4 * largest("vgpr_spill_count"))
    return largest("vgpr_count"), spilled, largest("sgpr_spill_count"), matrix
