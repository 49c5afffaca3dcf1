"""What the states of a language model evicted: how long a token is kept, which kinds are lost, and to whom.

    trace     k, e, g, z of every token of a text, from the model's own step
    write     a token in one head; evicted when less than `threshold` of its key is left (tsgdn2.audit)
    evictor   the later token whose erase took most of it, if any erase did
    class     letters, digits, space, punctuation, end of a document, other: by the first character that is no space

One row per head, one per head and class, one per head and quarter of the text, and the count of who evicted whom, class
by class. The text is read token by token, as in production; only the audited heads of a window of at most `window`
tokens are kept, and heads are accounted for one at a time, so memory is that of one head. A layer without one erase and
one write a token (attention, Mamba-3, RWKV-7) has no trace and no rows.

T tokens, H heads, K key, V value.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsgdn2.audit import carried_state, eviction_events, half_life, retained_keys
from tsgdn2.audit.eviction import EvictionEvents
from tsgdn2.errors import ConfigError
from tsgdn2.language.model import LanguageModel

Ints = NDArray[np.int64]

CLASSES: Final = ("letters", "digits", "space", "punctuation", "end", "other")
QUARTERS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What became of a group of writes of one head."""

    layer: int
    head: int
    group: str
    """"all", a class, or a quarter of the text: "1/4" .. "4/4"."""
    writes: int
    evicted: int
    by_erase: int
    """Evictions to which erases contributed more than decay."""
    half_life: float
    """Kaplan-Meier, in tokens; inf where more than half survive."""


@dataclass(frozen=True, kw_only=True)
class LanguageAudit:
    """All rows of one text."""

    tokens: int
    kept: tuple[Kept, ...]
    taken: NDArray[np.int64]
    """[6,6] by CLASSES: evictions of a class (row) whose strongest evictor is of a class (column), all heads."""
    residual: float
    """Largest relative distance between a state and what its retained writes rebuild: the audit's own error."""


def token_class(text: str) -> str:
    """Class of a token by its text; an end of a document has none."""
    if not text:
        return "end"
    shown = text.strip()
    if not shown:
        return "space"
    category = unicodedata.category(shown[0])
    if shown[0] == "\ufffd":  # part of a character of several bytes
        return "other"
    return {"L": "letters", "M": "letters", "N": "digits", "P": "punctuation", "S": "punctuation"}.get(
        category[0], "other"
    )


@torch.no_grad()
def audit(
    model: LanguageModel, tokens: Ints, classes: Sequence[str], *,
    layers: Sequence[int] | Literal["all", "last"] = "all", heads: int = 2, window: int = 512, threshold: float = 0.1,
    tick: Callable[[], None] = lambda: None,
) -> LanguageAudit:  # fmt: skip
    """Read a text and account for its last `window` tokens.

    tokens [N], with the class of each. layers: of those that can be audited; heads: the first so many of each. Cost: N
    steps, then O(window^2 K) for every head. Errors: ConfigError for a layer that has no trace.
    """
    if len(tokens) != len(classes) or not len(tokens):
        raise ConfigError(f"tokens, classes: must be of one length and at least 1, got {len(tokens)}, {len(classes)}")
    if heads < 1 or window < 1:
        raise ConfigError(f"heads, window: must be at least 1, got {heads} and {window}")
    traced = _traced_layers(model)
    chosen = {"all": traced, "last": traced[-1:]}[layers] if isinstance(layers, str) else list(layers)
    if not set(chosen) <= set(traced):
        raise ConfigError(f"layers: must be among {traced}, got {chosen}; the others have no trace")
    kept: list[Kept] = []
    taken = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    residual = 0.0
    size = min(window, len(tokens))
    kinds = np.array([CLASSES.index(name) for name in classes[len(classes) - size :]])
    for layer, trace in _trace(model, tokens, chosen, heads, size, tick).items():
        for head in range(trace["k"].shape[1]):
            k, e, g, z = (trace[name][None, :, head : head + 1] for name in ("k", "e", "g", "z"))
            events = eviction_events(k, e, g, threshold=threshold, top=1)
            kept += _rows(events, kinds, layer, head)
            _add_taken(taken, events, kinds)
            before, after = (trace[name][head][None, None] for name in ("before", "after"))
            rebuilt = torch.einsum("bthk,bthv->bhkv", retained_keys(k.double(), e, g), z.double())
            rebuilt += carried_state(k, e, g, before.double())
            apart = (rebuilt - after.double()).norm() / after.double().norm().clamp_min(1e-12)
            residual = max(residual, float(apart))
    return LanguageAudit(tokens=size, kept=tuple(kept), taken=taken, residual=residual)


def _traced_layers(model: LanguageModel) -> list[int]:
    token = torch.zeros(1, dtype=torch.int64, device=model.device)
    _, _, traces = model.trace(token, model.initial_state(1))
    return [layer for layer, trace in enumerate(traces) if trace]


def _trace(
    model: LanguageModel, tokens: Ints, layers: Sequence[int], heads: int, size: int, tick: Callable[[], None]
) -> dict[int, dict[str, Tensor]]:
    """Per layer: k, e, g [T,H,K] and z [T,H,V] of the last T tokens, and the state before and after them [H,K,V]."""
    rows: dict[int, dict[str, list[Tensor]]] = {n: {name: [] for name in ("k", "e", "g", "z")} for n in layers}
    before: dict[int, Tensor] = {}
    bound: dict[int, Tensor] = {}
    state = model.initial_state(1)
    for number, token in enumerate(tokens.tolist()):
        inside = number >= len(tokens) - size
        if number == len(tokens) - size:
            before = {n: state.layers[n]["memory"][0, :heads].cpu() for n in layers}
        _, state, traces = model.trace(torch.tensor([token], device=model.device), state)
        for n in layers if inside else ():
            own = {name: tensor[0, :heads].cpu() for name, tensor in traces[n].items()}
            if n in bound:  # a bound of the norm is booked as decay of the next token
                own["g"] = own["g"] + bound[n]
            bound[n] = own["factor"].log()[:, None]
            for name, kept in rows[n].items():
                kept.append(own[name])
        tick()
    # The last bound has no next token.
    after = {n: state.layers[n]["memory"][0, :heads].cpu() / bound[n].exp()[..., None] for n in layers}
    return {
        n: {name: torch.stack(kept) for name, kept in rows[n].items()} | {"before": before[n], "after": after[n]}
        for n in layers
    }


def _rows(events: EvictionEvents, kinds: Ints, layer: int, head: int) -> list[Kept]:
    quarter = np.arange(len(kinds)) * QUARTERS // len(kinds)
    groups = {"all": np.ones(len(kinds), np.bool_)}
    groups |= {name: kinds == n for n, name in enumerate(CLASSES) if (kinds == n).any()}
    groups |= {f"{n + 1}/{QUARTERS}": quarter == n for n in range(QUARTERS)}
    alive, censored, cause, age = (
        t[0, 0].cpu().numpy() for t in (~events.void, events.censored, events.cause, events.duration)
    )
    found = []
    for name, member in groups.items():
        own = member & alive
        fell = own & ~censored
        half = half_life(age[own], ~censored[own])
        found.append(Kept(layer=layer, head=head, group=name, writes=int(own.sum()), evicted=int(fell.sum()),
                          by_erase=int((cause[fell] == 1).sum()), half_life=half))  # fmt: skip
    return found


def _add_taken(taken: NDArray[np.int64], events: EvictionEvents, kinds: Ints) -> None:
    evictor = events.evictors[0, 0, :, 0].cpu().numpy()
    fell = (~events.void & ~events.censored)[0, 0].cpu().numpy() & (evictor >= 0)
    np.add.at(taken, (kinds[fell], kinds[evictor[fell]]), 1)
