"""The GDN-2 mixer: the member of the delta family that decouples erase and write (math.md 1; arXiv 2605.22791).

    q, k, v = SiLU(conv4(x W))           q, k <- L2-normalised per head
    rate = -exp(A_log[h]) softplus(low-rank(x) + dt_bias)        b = m sigmoid(x Wb)      w = m sigmoid(x Ww)
    g_t = rate_{t-1} elapsed_t                                   (decay_from "own": rate_t elapsed_t)
    S_t = (I - k_t (b_t*k_t)^T) Diag(exp g_t) S_{t-1} + k_t (w_t*v_t)^T
    y_t = RMSNorm_V(scale S_t^T q_t) * SiLU(low-rank gate(x)) Wo

What it does not do: know patches, time stamps or horizons. `elapsed` is in patch periods. The arithmetic, the state and
its ranges are those of delta.py; the gates are the first row of gates.py.
"""

from __future__ import annotations

from tsgdn2.mixers.delta import DeltaMixer, bound_factor
from tsgdn2.mixers.gates import MEMBERS
from tsgdn2.sequence import BOUND_EVERY

__all__ = ["BOUND_EVERY", "GDN2Mixer", "bound_factor"]


class GDN2Mixer(DeltaMixer):
    """Gated DeltaNet-2 with an explicit state; D width, H heads, K key and V value channels per head."""

    def __init__(
        self, width: int, *, heads: int, key_dim: int, value_dim: int, norm_max: float, decay_from: str = "previous"
    ) -> None:
        super().__init__(
            width, gates=MEMBERS["gdn2"], heads=heads, key_dim=key_dim, value_dim=value_dim, norm_max=norm_max,
            decay_from=decay_from,
        )  # fmt: skip
