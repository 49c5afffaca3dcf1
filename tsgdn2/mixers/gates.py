"""The delta family by its gates: which decay, erase and write each named member has, and nothing that runs.

All members are one recurrence (math.md 1) with other gates; everything else (convolution, output norm and gate, initial
draws) is the same, so that a difference between two of them is a difference between their gates. That is also the
limit: a member is its paper's recurrence, not its paper's whole layer.

    S_t = (I - k_t e_t^T) Diag(exp g_t) S_{t-1} + k_t z_t^T,      e_t = m_t b_t * k_t,      z_t = m_t w_t * v_t

| member | recurrence | decay, g / elapsed | b | w |
|---|---|---|---|---|
| gdn2 | (I - k (b*k)^T) Diag(a) S + k (w*v)^T | -exp(A_log) softplus(..), vector | vector | vector |
| kda | (I - beta k k^T) Diag(a) S + beta k v^T | -exp(A_log) softplus(..), vector | beta | beta |
| kda-sigmoid | (I - beta k k^T) Diag(a) S + beta k v^T | -5 sigmoid(exp(A_log) (..)), vector | beta | beta |
| gdn | a (I - beta k k^T) S + beta k v^T | -exp(A_log) softplus(..), number | beta | beta |
| deltanet | (I - beta k k^T) S + beta k v^T | none | beta | beta |
| mamba2 | a S + k (dt v)^T, read + D v | -exp(A_log) dt, dt = softplus(..), number | none | dt |
| gdn2-scalar-erase | (I - b k k^T) Diag(a) S + k (w*v)^T | gdn2's | number | vector |
| gdn2-scalar-write | (I - k (b*k)^T) Diag(a) S + w k v^T | gdn2's | vector | number |
| gdn2-scalar-both | (I - b k k^T) Diag(a) S + w k v^T | gdn2's | number | another number |
| gdn2-erase-2 | (I - k (b*k)^T) Diag(a) S + k (w*v)^T | gdn2's | vector in [0, 2] | vector |

A number is one per head and token, a vector one per channel of the key (decay, erase) or value (write) as well. b, w
and beta are sigmoids. In a decay, (..) is low-rank(x) + dt_bias, of a number its own column of x W + dt_bias; A_log is
one per head, dt_bias one per number of the decay. kda-sigmoid's g is in (-5, 0) a patch period, whatever the input.
mamba2 does not normalise q and k and reads without a scale; the others have |q| = |k| = 1 and scale K^-1/2. An erase of
up to 2 can turn a key's content round; it expands by up to sqrt(2) a token (2 / sqrt(3) at range 1), so by 2^32 at most
between two bounds of the norm, which float32 holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

DECAY_BOUND = -5.0
"""Of the bounded decay, g = DECAY_BOUND sigmoid(..): a patch period takes at most all but exp(-5) of a channel."""


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Which gates a member of the family has."""

    decay: Literal["none", "scalar", "channel", "bounded"] = "channel"
    """"scalar" and "channel" are softplus decays per head and per key channel; "bounded" a sigmoid, per channel."""
    erase: Literal["none", "scalar", "channel"] = "channel"
    """What the old content of a key is multiplied by before it is taken away."""
    erase_range: float = 1.0
    """Largest erase gate, 1 or 2."""
    write: Literal["tied", "scalar", "channel", "step"] = "channel"
    """"tied" is the erase's number; "step" the softplus step of the scalar decay, dt."""
    unit_keys: bool = True
    """q and k have length 1 per head, and reads the scale K^-1/2; else neither."""
    skip: bool = False
    """Reads add D v of their own token, past the state."""

    def __post_init__(self) -> None:
        """Check what can not go together: these are our own tables, so it asserts."""
        assert self.write != "tied" or self.erase == "scalar", "a tied write needs the erase's number"
        assert self.write != "step" or self.decay == "scalar", "a step is that of the scalar decay"


_GDN2 = Gates()
_KDA = Gates(erase="scalar", write="tied")

MEMBERS: dict[str, Gates] = {
    "gdn2": _GDN2,
    "kda": _KDA,
    "kda-sigmoid": replace(_KDA, decay="bounded"),
    "gdn": replace(_KDA, decay="scalar"),
    "deltanet": replace(_KDA, decay="none"),
    "mamba2": Gates(decay="scalar", erase="none", write="step", unit_keys=False, skip=True),
    "gdn2-scalar-erase": replace(_GDN2, erase="scalar"),
    "gdn2-scalar-write": replace(_GDN2, write="scalar"),
    "gdn2-scalar-both": replace(_GDN2, erase="scalar", write="scalar"),
    "gdn2-erase-2": replace(_GDN2, erase_range=2.0),
}
