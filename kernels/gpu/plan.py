"""Where the chunks of a scan lie, and how its kernels are launched: fixed by shapes, dtypes and the device's family.

Packed sequences get a table of chunks, made on the device, so that no length is read by the host. The limit: it has
room for the most chunks that T tokens in N sequences can need; a program without a chunk ends at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tsgdn2.kernels.gpu import arithmetic, blocks, chunks, outputs, states
from tsgdn2.kernels.gpu.device import interpreted, precision
from tsgdn2.kernels.gpu.launches import Launch, choose, padded

CHUNK = arithmetic.CHUNK.value
SUBBLOCKS = CHUNK // arithmetic.BLOCK.value
DOT = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def sequence_count(q: Tensor, cu_seqlens: Tensor | None) -> int:
    """How many sequences q [B,T,H,K] holds."""
    return q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def chunk_count(q: Tensor, cu_seqlens: Tensor | None) -> int:
    """Chunks there is room for: of packed sequences as many as there can be; a program without one ends at once."""
    B, T, _, _ = q.shape
    packed = cu_seqlens is not None
    return T // CHUNK + sequence_count(q, cu_seqlens) if packed else B * int(triton.cdiv(T, CHUNK))


class Plan(NamedTuple):
    """Where the chunks of a scan lie, and how its kernels are launched."""

    chunks: int
    sequences: int
    spans: Tensor | None
    """[chunks,2] first token and number of tokens, int64; for packed sequences only."""
    first_chunk: Tensor | None
    """[N+1] number of each sequence's first chunk, int64; for packed sequences only."""
    layout: dict[str, Any]
    """T, per_sequence, H and PACKED."""
    arithmetic: dict[str, Any]
    """DOT, PRECISION and EMULATED."""
    launches: dict[str, Launch]
    parts: int
    """How many bf16 parts a log-decay is summed in."""
    solved: str
    """How products with A are made: operands of 16 bits deserve no more than TF32."""
    keys: int
    values: int
    wide: bool
    """Whether the state is too much for the registers of a program."""

    @classmethod
    def of(cls, q: Tensor, v: Tensor, cu_seqlens: Tensor | None, name: str) -> Plan:
        """The plan for q [B,T,H,K] and v [B,T,H,V] on a device of this family."""
        _, T, H, K = q.shape
        V = v.shape[-1]
        per_sequence = triton.cdiv(T, CHUNK)
        count = chunk_count(q, cu_seqlens)
        spans, first = (None, None) if cu_seqlens is None else _chunk_table(cu_seqlens, count)
        size = q.element_size()
        return cls(
            count,
            sequence_count(q, cu_seqlens),
            spans,
            first,
            {"T": T, "per_sequence": per_sequence, "H": H, "PACKED": cu_seqlens is not None},
            {"DOT": DOT[q.dtype], "PRECISION": precision(name), "EMULATED": interpreted()},
            {kernel: choose(kernel, name, size, K, V) for kernel in KERNELS},
            3 if size == 4 else 2,
            "tf32" if size == 2 and precision(name) == "tf32x3" else precision(name),
            K,
            V,
            size == 4,
        )

    def slice(self, launch: Launch) -> int:
        """Keys of the state that one product takes."""
        return min(launch.rows, padded(self.keys))


KERNELS = {
    "blocks_forward": blocks.blocks_forward,
    "chunks_forward": chunks.chunks_forward,
    "states_forward": states.states_forward,
    "outputs_forward": outputs.outputs_forward,
    "states_backward": states.states_backward,
    "outputs_backward": outputs.outputs_backward,
    "chunks_backward": chunks.chunks_backward,
    "blocks_backward": blocks.blocks_backward,
}
"""Every kernel of the chunkwise scan by the name that the launch tables use."""


def _chunk_table(cu_seqlens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Spans [count,2] and first chunks [N+1] of packed sequences, made on the device without waiting for it."""
    bounds = cu_seqlens.to(torch.int64)
    first = torch.nn.functional.pad(((bounds.diff() + CHUNK - 1) // CHUNK).cumsum(0), (1, 0))
    number = torch.arange(count, device=bounds.device)
    sequence = torch.searchsorted(first[1:], number, right=True).clamp_(max=bounds.shape[0] - 2)
    begin = bounds[sequence] + CHUNK * (number - first[sequence])
    rows = torch.where(number < first[-1], bounds[sequence + 1] - begin, 0).clamp_(0, CHUNK)
    return torch.stack([begin, rows], 1).contiguous(), first
