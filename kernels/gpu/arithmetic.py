"""What every kernel of this folder shares: where a chunk's tokens lie, products on matrix units, exact sums of decays.

A product rounds its operands to the dtype of the inputs and accumulates in fp32. Sums of log-decays are products with
a matrix of zeros and ones, J g, with g cut into bf16 parts that add up to it: every sum is taken again from its own
anchor and keeps its digits behind a hard reset. The limit: `EMULATED` (the interpreter) computes products in fp32 on
rounded operands, because arithmetic in bf16 is silently wrong there.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = tl.constexpr(64)  # tokens of a chunk
BLOCK = tl.constexpr(16)  # tokens of a sub-block, whose ratios need anchors of their own
FLOOR = tl.constexpr(-1e30)  # stands in for a log-decay of -inf, which would meet a zero of J as NaN


@triton.jit
def span(chunk, spans, T, per_sequence, PACKED: tl.constexpr):
    """First token of a chunk in the flattened [B T] axis (int64) and how many it holds, 0 to 64."""
    if PACKED:
        begin = tl.load(spans + 2 * chunk)
        count = tl.load(spans + 2 * chunk + 1).to(tl.int32)
    else:
        step = chunk % per_sequence
        begin = (chunk // per_sequence).to(tl.int64) * T + step.to(tl.int64) * 64
        count = tl.minimum(T - step * 64, 64).to(tl.int32)
    return begin, count


@triton.jit
def product(a, b, DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATED: tl.constexpr):
    """A b in fp32 with both operands rounded to DOT; PRECISION is what a float32 product may cost."""
    a = a.to(DOT)
    b = b.to(DOT)
    if EMULATED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def sums(J, x, PARTS: tl.constexpr, EMULATED: tl.constexpr):
    """J x in fp32 for J of zeros and ones, x cut into PARTS bf16 parts: 3 hold all of fp32, 2 hold 16 bits."""
    part = x.to(tl.bfloat16)
    total = product(J, part, tl.bfloat16, "ieee", EMULATED)
    rest = x - part.to(tl.float32)
    part = rest.to(tl.bfloat16)
    total += product(J, part, tl.bfloat16, "ieee", EMULATED)
    if PARTS > 2:
        rest -= part.to(tl.float32)
        total += product(J, rest, tl.bfloat16, "ieee", EMULATED)
    return total


@triton.jit
def stretch(rows, columns, level):
    """J of blocks of h = 2^level: row r of an odd block sums (block start .. r], row s of an even one (s .. block end].

    `rows` and `columns` broadcast to the matrix; handing them over the other way round gives its transpose. The anchor
    is the border between the two blocks, so both sums are at most 0, and no later gate enters an earlier row.
    """
    same = rows >> level == columns >> level
    odd = (rows >> level) % 2 == 1
    return (same & ((odd & (columns <= rows)) | ((odd == 0) & (columns > rows)))).to(tl.float32)


@triton.jit
def beneath(rows, columns, level):
    """Where the row lies in an odd block of h = 2^level and the column in the even block before it."""
    return ((rows >> level) % 2 == 1) & (columns >> level == (rows >> level) - 1)
