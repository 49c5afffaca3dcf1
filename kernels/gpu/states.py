"""The state through the chunks of one sequence, in order, and its adjoint through them in reverse.

    R = U - Y S          S <- exp(G_C) * S + Kt^T R
    dR = P^T dO + Kt dS      dS <- exp(G_C) * dS + Qg^T dO - Y^T dR

The only part of the scan that cannot run in parallel over time: a program owns one head and TILE columns of V, and
keeps its [K,TILE] of the state in registers, in fp32, as a tuple of slices of KEYS keys. The trade-off: the state at
each chunk's start is stored, in the dtype of the inputs, so that everything else is parallel over chunks. Products of
fp32 leave it no room in registers (WIDE); what is stored is then exact, and is read back.

| symbol | shape | meaning |
|---|---|---|
| Y, Qg, Kt, U, decay, P | | as in chunks.py; U is fp32 |
| S, dS | [chunks,H,K,V] | state at the start of a chunk; gradient of the state at its end |
| R, dR | [chunks,H,64,V] | what each token really adds along its key |
"""

from __future__ import annotations

import triton
import triton.language as tl

from tsgdn2.kernels.gpu.arithmetic import CHUNK, product, span


@triton.jit
def sequence_span(first_chunk, sequence, per_sequence, PACKED: tl.constexpr):
    """Number of the sequence's first chunk, and how many chunks it has."""
    if PACKED:
        begin = tl.load(first_chunk + sequence)
        steps = (tl.load(first_chunk + sequence + 1) - begin).to(tl.int32)
    else:
        begin = sequence.to(tl.int64) * per_sequence
        steps = per_sequence
    return begin, steps


@triton.jit
def load_slices(x, owner, v, K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr):
    """A state's columns v in fp32, as a tuple of [KEYS,TILE]."""
    slices = ()
    for first in tl.static_range(0, K, KEYS):
        c = first + tl.arange(0, KEYS)
        inside = (c < K)[:, None] & (v < V)[None, :]
        x_KV = tl.load(x + owner + c[:, None] * V + v[None, :], mask=inside, other=0.0)
        slices = slices + (x_KV.to(tl.float32),)
    return slices


@triton.jit
def store_slices(x, owner, v, slices, K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr):
    """The way back, rounded to what x holds."""
    for first in tl.static_range(0, K, KEYS):
        c = first + tl.arange(0, KEYS)
        inside = (c < K)[:, None] & (v < V)[None, :]
        tl.store(x + owner + c[:, None] * V + v[None, :], slices[first // KEYS], mask=inside)


@triton.jit
def load_slice(x, owner, first, v, K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr):
    """KEYS keys of a state of fp32, columns v."""
    c = first + tl.arange(0, KEYS)
    return tl.load(x + owner + c[:, None] * V + v[None, :], mask=(c < K)[:, None] & (v < V)[None, :], other=0.0)


@triton.jit
def store_slice(x, owner, first, v, x_KV, K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr):
    """The way back."""
    c = first + tl.arange(0, KEYS)
    tl.store(x + owner + c[:, None] * V + v[None, :], x_KV, mask=(c < K)[:, None] & (v < V)[None, :])


@triton.jit
def by_rows(x, tile, first, K: tl.constexpr, KEYS: tl.constexpr):
    """A chunk's [64,KEYS] of Y or Kt."""
    r, c = tl.arange(0, CHUNK), first + tl.arange(0, KEYS)
    return tl.load(x + (tile * CHUNK + r)[:, None] * K + c[None, :], mask=(c < K)[None, :], other=0.0)


@triton.jit
def by_keys(x, tile, first, K: tl.constexpr, KEYS: tl.constexpr):
    """Its transpose [KEYS,64], read as such: no accumulator is ever transposed."""
    r, c = tl.arange(0, CHUNK), first + tl.arange(0, KEYS)
    return tl.load(x + (tile * CHUNK + r)[None, :] * K + c[:, None], mask=(c < K)[:, None], other=0.0)


@triton.jit
def kept(S_KV, decay, tile, first, K: tl.constexpr, KEYS: tl.constexpr):
    """What exp(G_C) leaves of a slice."""
    c = first + tl.arange(0, KEYS)
    return S_KV * tl.load(decay + tile * K + c, mask=c < K, other=0.0)[:, None]


@triton.jit(do_not_specialize=["per_sequence", "keys", "H"])
def states_forward(
    Y, U, Kt, decay, initial, first_chunk, S, R, final, per_sequence, H, keys,
    K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
    PACKED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """TILE columns of one head's state through its sequence: S at each chunk, R of each token, the final state."""
    tiles: tl.constexpr = (V + TILE - 1) // TILE
    v = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    head = tl.program_id(0) // tiles % H
    sequence = tl.program_id(0) // tiles // H
    begin, steps = sequence_span(first_chunk, sequence, per_sequence, PACKED)
    r = tl.arange(0, CHUNK)
    owner = (sequence.to(tl.int64) * H + head) * K * V
    if WIDE:
        for key in range(0, keys, KEYS):
            S_KV = load_slice(initial, owner, key, v, K, V, KEYS)
            if steps > 0:
                store_slice(S, (begin * H + head) * K * V, key, v, S_KV, K, V, KEYS)
            else:
                store_slice(final, owner, key, v, S_KV, K, V, KEYS)
        for step in range(steps):
            tl.debug_barrier()
            tile = (begin + step) * H + head
            at_RV = (tile * CHUNK + r)[:, None] * V + v[None, :]
            R_RV = tl.load(U + at_RV, mask=(v < V)[None, :], other=0.0)
            for early in range(0, keys, KEYS):
                S_KV = load_slice(S, tile * K * V, early, v, K, V, KEYS)
                R_RV -= product(by_rows(Y, tile, early, K, KEYS), S_KV, DOT, PRECISION, EMULATED)
            tl.store(R + at_RV, R_RV, mask=(v < V)[None, :])
            for late in range(0, keys, KEYS):
                S_KV = kept(load_slice(S, tile * K * V, late, v, K, V, KEYS), decay, tile, late, K, KEYS)
                S_KV += product(by_keys(Kt, tile, late, K, KEYS), R_RV, DOT, PRECISION, EMULATED)
                if step + 1 < steps:
                    store_slice(S, (tile + H) * K * V, late, v, S_KV, K, V, KEYS)
                else:
                    store_slice(final, owner, late, v, S_KV, K, V, KEYS)
        return
    state = load_slices(initial, owner, v, K, V, KEYS)
    for step in range(steps):
        tile = (begin + step) * H + head
        store_slices(S, tile * K * V, v, state, K, V, KEYS)
        at_RV = (tile * CHUNK + r)[:, None] * V + v[None, :]
        R_RV = tl.load(U + at_RV, mask=(v < V)[None, :], other=0.0).to(tl.float32)
        for first in tl.static_range(0, K, KEYS):
            R_RV -= product(by_rows(Y, tile, first, K, KEYS), state[first // KEYS], DOT, PRECISION, EMULATED)
        R_RV = R_RV.to(DOT)
        tl.store(R + at_RV, R_RV, mask=(v < V)[None, :])
        following = ()
        for first in tl.static_range(0, K, KEYS):
            S_KV = kept(state[first // KEYS], decay, tile, first, K, KEYS)
            S_KV += product(by_keys(Kt, tile, first, K, KEYS), R_RV, DOT, PRECISION, EMULATED)
            following = following + (S_KV,)
        state = following
    store_slices(final, owner, v, state, K, V, KEYS)


@triton.jit(do_not_specialize=["T", "per_sequence", "keys", "H"])
def states_backward(
    Y, Qg, Kt, decay, P, do, dfinal, first_chunk, spans, dS, dR, dinitial, T, per_sequence, H, keys,
    K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
    PACKED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """The same columns in reverse: dS at each chunk's end, dR of each token, the gradient of the initial state."""
    tiles: tl.constexpr = (V + TILE - 1) // TILE
    v = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    head = tl.program_id(0) // tiles % H
    sequence = tl.program_id(0) // tiles // H
    begin, steps = sequence_span(first_chunk, sequence, per_sequence, PACKED)
    r = tl.arange(0, CHUNK)
    owner = (sequence.to(tl.int64) * H + head) * K * V
    if WIDE:
        for key in range(0, keys, KEYS):
            S_KV = load_slice(dfinal, owner, key, v, K, V, KEYS)
            if steps > 0:
                store_slice(dS, ((begin + steps - 1) * H + head) * K * V, key, v, S_KV, K, V, KEYS)
            else:
                store_slice(dinitial, owner, key, v, S_KV, K, V, KEYS)
        for back in range(steps):
            tl.debug_barrier()
            chunk = begin + (steps - 1 - back)
            token, count = span(chunk, spans, T, per_sequence, PACKED)
            tile = chunk * H + head
            row = tile * CHUNK + r
            at_do = ((token + r) * H + head)[:, None] * V + v[None, :]
            do_RV = tl.load(do + at_do, mask=(r < count)[:, None] & (v < V)[None, :], other=0.0)
            P_SR = tl.load(P + row[None, :] * CHUNK + r[:, None])
            dR_RV = product(P_SR, do_RV, DOT, PRECISION, EMULATED)
            for early in range(0, keys, KEYS):
                S_KV = load_slice(dS, tile * K * V, early, v, K, V, KEYS)
                dR_RV += product(by_rows(Kt, tile, early, K, KEYS), S_KV, DOT, PRECISION, EMULATED)
            tl.store(dR + row[:, None] * V + v[None, :], dR_RV, mask=(v < V)[None, :])
            for late in range(0, keys, KEYS):
                S_KV = kept(load_slice(dS, tile * K * V, late, v, K, V, KEYS), decay, tile, late, K, KEYS)
                S_KV -= product(by_keys(Y, tile, late, K, KEYS), dR_RV, DOT, PRECISION, EMULATED)
                S_KV += product(by_keys(Qg, tile, late, K, KEYS), do_RV, DOT, PRECISION, EMULATED)
                if back + 1 < steps:
                    store_slice(dS, (tile - H) * K * V, late, v, S_KV, K, V, KEYS)
                else:
                    store_slice(dinitial, owner, late, v, S_KV, K, V, KEYS)
        return
    state = load_slices(dfinal, owner, v, K, V, KEYS)
    for back in range(steps):
        chunk = begin + (steps - 1 - back)
        token, count = span(chunk, spans, T, per_sequence, PACKED)
        tile = chunk * H + head
        row = tile * CHUNK + r
        store_slices(dS, tile * K * V, v, state, K, V, KEYS)
        dR_RV = tl.zeros([CHUNK, TILE], tl.float32)
        for first in tl.static_range(0, K, KEYS):
            dR_RV += product(by_rows(Kt, tile, first, K, KEYS), state[first // KEYS], DOT, PRECISION, EMULATED)
        at_do = ((token + r) * H + head)[:, None] * V + v[None, :]
        do_RV = tl.load(do + at_do, mask=(r < count)[:, None] & (v < V)[None, :], other=0.0)
        P_SR = tl.load(P + row[None, :] * CHUNK + r[:, None])
        dR_RV += product(P_SR, do_RV, DOT, PRECISION, EMULATED)
        dR_RV = dR_RV.to(DOT)
        tl.store(dR + row[:, None] * V + v[None, :], dR_RV, mask=(v < V)[None, :])
        previous = ()
        for first in tl.static_range(0, K, KEYS):
            S_KV = kept(state[first // KEYS], decay, tile, first, K, KEYS)
            S_KV -= product(by_keys(Y, tile, first, K, KEYS), dR_RV, DOT, PRECISION, EMULATED)
            S_KV += product(by_keys(Qg, tile, first, K, KEYS), do_RV, DOT, PRECISION, EMULATED)
            previous = previous + (S_KV,)
        state = previous
    store_slices(dinitial, owner, v, state, K, V, KEYS)
