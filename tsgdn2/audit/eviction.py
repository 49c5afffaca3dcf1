"""Which writes were lost, when, to what, and to whom.

A full account is O(T^2 K) time; it is made in blocks of writes, so that memory is O(block T). A write's key splits as

    |k_i|^2 = |r_i(t)|^2 + sum_j Ldec_i(j) + sum_j Lera_i(j)                                        (math.md 3)
    Ldec_i(j) = sum_c (1 - alpha_j[c]^2) r_i(j-1)[c]^2
    Lera_i(j) = 2 (k_j.y)(e_j.y) - |k_j|^2 (e_j.y)^2,   y = Diag(alpha_j) r_i(j-1)

Lera is the matrix "who evicted whom". Its entries are signed, because an erase can expand; they are never clipped.
An eviction is the first token at which rho_i falls below `threshold`; another one of the same write needs rho_i to have
risen above threshold + hysteresis in between. Writes that never fell are right-censored, and Kaplan-Meier counts them
as such: dropping them, or calling them evicted at the end, would make every half-life shorter than it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tsgdn2.audit.retention import check_shapes, heads_first
from tsgdn2.errors import ConfigError, SchemaError

CAUSES = ("decay", "erase")
_BLOCK = 512
# Below this retention a whole block is given up: the largest gain of a token is 2 / sqrt(3), so coming back to the
# threshold would take more than 170 adversarial tokens without decay.
_GONE = 1e-12


class EvictionMatrix(NamedTuple):
    """decay, erase [B,H,T,T]: energy that write i (third axis) lost to token j (last); retained [B,H,T]: |r_i|^2."""

    decay: Tensor
    erase: Tensor
    retained: Tensor


@dataclass(frozen=True)
class EvictionEvents:
    """One entry per write of a window, a struct of arrays.

    time [B,H,T] int64: token of the first eviction, -1 where censored. cause [B,H,T] int64: 0 decay, 1 erase, the
    larger signed energy up to then; -1 where censored. decay, erase [B,H,T]: those energies, up to the eviction or to
    the end of the window. evictors [B,H,T,top] int64 and energies [B,H,T,top]: the tokens whose erase took most, -1
    and 0 where there are fewer. evictions [B,H,T] int64: how often the write fell, with hysteresis.
    retention [B,H,T]: rho_i at the end. censored [B,H,T] bool: never fell. void [B,H,T] bool: the key was zero, there
    was nothing to lose.
    """

    time: Tensor
    cause: Tensor
    decay: Tensor
    erase: Tensor
    evictors: Tensor
    energies: Tensor
    evictions: Tensor
    retention: Tensor
    censored: Tensor
    void: Tensor

    @property
    def duration(self) -> Tensor:
        """Tokens from the write to its eviction, or to the end of the window where censored, [B,H,T] int64."""
        birth = torch.arange(self.time.shape[-1], device=self.time.device).expand_as(self.time)
        return torch.where(self.censored, self.time.shape[-1] - 1 - birth, self.time - birth)

    def half_life(self) -> Tensor:
        """Kaplan-Meier half-life in tokens, [B,H] float64; inf where more than half of the writes survive."""
        duration, censored, void = (t.cpu().numpy() for t in (self.duration, self.censored, self.void))
        return torch.tensor(
            [
                [half_life(duration[b, h][~void[b, h]], ~censored[b, h][~void[b, h]]) for h in range(void.shape[1])]
                for b in range(void.shape[0])
            ],
            dtype=torch.float64,
        )

    def table(self) -> dict[str, NDArray[np.int64] | NDArray[np.float64] | NDArray[np.str_]]:
        """Return one row per eviction as flat columns, ready for a frame: row, head, write, time, age, cause, ..."""
        row, head, write = (~self.censored & ~self.void).nonzero(as_tuple=True)
        at = (row, head, write)
        named = np.array(CAUSES)
        columns: dict[str, NDArray[np.int64] | NDArray[np.float64] | NDArray[np.str_]] = {
            "row": row.cpu().numpy(), "head": head.cpu().numpy(), "write": write.cpu().numpy(),
            "time": self.time[at].cpu().numpy(), "age": self.duration[at].cpu().numpy(),
            "cause": named[self.cause[at].cpu().numpy()],
            "decay": self.decay[at].double().cpu().numpy(), "erase": self.erase[at].double().cpu().numpy(),
            "evictions": self.evictions[at].cpu().numpy(),
        }  # fmt: skip
        for rank in range(self.evictors.shape[-1]):
            columns[f"evictor_{rank + 1}"] = self.evictors[..., rank][at].cpu().numpy()
            columns[f"energy_{rank + 1}"] = self.energies[..., rank][at].double().cpu().numpy()
        return columns


@torch.no_grad()
def eviction_matrix(k: Tensor, e: Tensor, g: Tensor) -> EvictionMatrix:
    """Return the signed account of every write against every token; k, e, g [B,T,H,K]. O(T^2 K) time, O(T^2) memory."""
    check_shapes(k, e, g)
    k_, e_, g_ = (heads_first(t) for t in (k, e, g))
    decay, erase, energy = _trace(k_, e_, g_, 0, k.shape[1])
    return EvictionMatrix(decay.to(k.dtype), erase.to(k.dtype), energy[..., -1].to(k.dtype))


@torch.no_grad()
def eviction_events(
    k: Tensor, e: Tensor, g: Tensor, *, threshold: float = 0.1, hysteresis: float = 0.05, top: int = 3
) -> EvictionEvents:
    """Find the eviction of every write of a window; k, e, g [B,T,H,K].

    threshold and hysteresis are retentions in (0, 1); top is how many evictors are named. Raises ConfigError or
    SchemaError. Source: math.md 3.
    """
    check_shapes(k, e, g)
    if not (0 < threshold < 1 and hysteresis >= 0 and threshold + hysteresis < 1):
        raise ConfigError(
            f"threshold and threshold + hysteresis must lie in (0, 1), got {threshold} and {hysteresis}; "
            "the defaults are 0.1 and 0.05"
        )
    if top < 1:
        raise ConfigError(f"top must be at least 1, got {top}")
    k_, e_, g_ = (heads_first(t) for t in (k, e, g))
    parts = [
        _block_events(k_, e_, g_, first, min(first + _BLOCK, k.shape[1]), threshold, hysteresis, top)
        for first in range(0, k.shape[1], _BLOCK)
    ]
    merged = [torch.cat(column, 2) for column in zip(*parts, strict=True)]
    return EvictionEvents(*(t.to(k.dtype) if t.is_floating_point() else t for t in merged))


def kaplan_meier(duration: ArrayLike, evicted: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (times, survival): the times of evictions in order and the share of writes that outlive each.

    duration: how long each write was followed, any unit; evicted: True where it ended by eviction, False where the
    view ended first (right-censored). A write censored at a time of evictions counts as at risk there.
    """
    d, x = np.asarray(duration, np.float64).ravel(), np.asarray(evicted, bool).ravel()
    if d.shape != x.shape or not np.isfinite(d).all():
        raise SchemaError(
            f"duration and evicted must be finite and of one length, got {d.shape} and {x.shape}; drop writes that "
            "were not followed"
        )
    times, deaths = np.unique(d[x], return_counts=True)
    at_risk = d.size - np.searchsorted(np.sort(d), times, side="left")
    survival: NDArray[np.float64] = np.cumprod(1.0 - deaths / at_risk, dtype=np.float64)
    return np.asarray(times, np.float64), survival


def half_life(duration: ArrayLike, evicted: ArrayLike, *, level: float = 0.5) -> float:
    """Return the first time at which the Kaplan-Meier survival is at most `level`; inf if it never is."""
    times, survival = kaplan_meier(duration, evicted)
    reached = np.flatnonzero(survival <= level + 1e-12)
    return float(times[reached[0]]) if reached.size else math.inf


def _trace(
    k: Tensor, e: Tensor, g: Tensor, first: int, last: int, give_up: float = -1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the writes first..last-1 to the end: decay, erase, energy |r|^2, each [B,H,W,T-first], W writes."""
    tokens, writes = k.shape[2] - first, last - first
    R = k.new_zeros(*k.shape[:2], writes, k.shape[3])
    decay, erase, energy = (k.new_zeros(*k.shape[:2], writes, tokens) for _ in range(3))
    alpha, lost = g.exp(), -torch.expm1(2 * g)
    size = k.square().sum(-1)
    for t in range(tokens):
        at = first + t
        decay[..., t] = (R.square() @ lost[:, :, at, :, None]).squeeze(-1)
        y = R * alpha[:, :, at, None, :]
        ey, ky = (y @ e[:, :, at, :, None]).squeeze(-1), (y @ k[:, :, at, :, None]).squeeze(-1)
        erase[..., t] = (2 * ky - size[:, :, at, None] * ey) * ey
        R = y - ey[..., None] * k[:, :, at, None, :]
        if t < writes:
            R[:, :, t] = k[:, :, at]
        energy[..., t] = R.square().sum(-1)
        if t >= writes and give_up > 0 and bool((energy[..., t] <= give_up**2 * size[:, :, first:last]).all()):
            break
    return decay, erase, energy


def _block_events(
    k: Tensor, e: Tensor, g: Tensor, first: int, last: int, threshold: float, hysteresis: float, top: int
) -> tuple[Tensor, ...]:
    decay, erase, energy = _trace(k, e, g, first, last, _GONE)
    size = k[:, :, first:last].square().sum(-1)
    rho = (energy / size.clamp_min(1e-300)[..., None]).sqrt()
    at = torch.arange(rho.shape[-1], device=k.device)
    born = at >= at[: last - first, None]
    void = size == 0
    below, above = born & (rho < threshold) & ~void[..., None], (rho > threshold + hysteresis) | ~born
    # The last token that was clearly above or below: an eviction is a fall after "above", the middle says nothing.
    mark = torch.where(below | above, at, -1).cummax(-1).values
    fallen = below.gather(-1, mark.clamp_min(0)) & (mark >= 0)
    was_fallen = torch.nn.functional.pad(fallen[..., :-1], (1, 0))
    evictions = (fallen & ~was_fallen).sum(-1)
    censored = ~below.any(-1)
    time = torch.where(censored, at[-1], below.int().argmax(-1))
    until = at <= time[..., None]
    erase = torch.where(until, erase, 0.0)
    decay_sum, erase_sum = torch.where(until, decay, 0.0).sum(-1), erase.sum(-1)
    energies, evictors = erase.topk(min(top, erase.shape[-1]), -1)
    pad = (0, top - energies.shape[-1])
    energies, evictors = torch.nn.functional.pad(energies, pad), torch.nn.functional.pad(evictors + first, pad)
    taken = energies > 0
    cause = torch.where(censored, -1, (erase_sum > decay_sum).long())
    retention = torch.where(void, 0.0, rho[..., -1])
    return (
        torch.where(censored, -1, time + first), cause, decay_sum, erase_sum, torch.where(taken, evictors, -1),
        torch.where(taken, energies, 0.0), evictions, retention, censored, void,
    )  # fmt: skip
