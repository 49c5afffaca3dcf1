"""What a model did to its state, token by token: k, e, z, g of every commit of a window, for the offline audit.

    g_{t+1} <- g_{t+1} + log factor_t        the norm bound, booked as decay of the next token (math.md 3)

The stream is run from its first commit, one commit at a time as in production, so the state at the beginning of the
window is the real one. A lane with fewer commits is padded on the left with tokens that do nothing.

L lanes, T tokens, H heads, K key, V value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsgdn2.engine import untraced
from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.pipelines.entries import names_of, read_entry
from tsgdn2.pipelines.packing import NONE, patch_clocks, since, streams_of, timelines_of
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.streaming import one_thread
from tsgdn2.sequence import Peers
from tsgdn2.state import ForecasterState
from tsgdn2.timeline import Ints

PADDING = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """One layer over a window: its inputs to the recurrence, the state before and after."""

    layer: int
    lanes: tuple[str, ...]
    """Names of the lanes: stream/channel, or the stream where channels are joint."""
    clocks: Ints
    """Absolute step at which each token committed, [L,T]; PADDING before a lane's first one."""
    k: Tensor
    e: Tensor
    z: Tensor
    g: Tensor
    """[L,T,H,K], z [L,T,H,V]."""
    initial: Tensor
    """State before the window [L,H,K,V]."""
    final: Tensor
    """State after it [L,H,K,V]; the window's writes and what is left of `initial` sum to it."""

    def heads(self, count: int) -> Trace:
        """The first `count` heads alone."""
        part = slice(0, count)
        return Trace(
            layer=self.layer, lanes=self.lanes, clocks=self.clocks, k=self.k[:, :, part], e=self.e[:, :, part],
            z=self.z[:, :, part], g=self.g[:, :, part], initial=self.initial[:, part], final=self.final[:, part],
        )  # fmt: skip


@one_thread()
@torch.inference_mode()
def collect(
    predictor: GDN2Predictor, entries: Iterable[Mapping[str, object]], *, layers: tuple[int, ...], window: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Trace, ...]:  # fmt: skip
    """Run the entries through the predictor's memory and keep the newest `window` commits of every lane.

    Errors: ConfigError for layers without such a state; SchemaError when no entry holds a whole observed patch.
    """
    config, model = predictor.config, predictor.forecaster.eval()
    if not set(layers) <= set(config.traced_layers):
        raise ConfigError(f"predictor: {untraced(config)}; name layers that can be audited")
    raw = [read_entry(entry, config, number, horizon=False) for number, entry in enumerate(entries)]
    lines, entry = timelines_of(raw, config, predictor.standards, predictor.channels)
    streams, patch = streams_of(lines), config.patch_length
    clocks = [patch_clocks(lines, own, patch, 0, lines.start + lines.steps) for own in streams]
    length = np.array([
        int(lines.anything(np.full(len(ends), lane), ends, patch).sum())
        for own, ends in zip(streams, clocks, strict=True) for lane in own.tolist()
    ])  # fmt: skip
    if not length.any():
        raise SchemaError(f"data: no series holds one observed patch of {patch} steps to be audited")
    tokens = min(window, int(length.max()))
    static = model.static(lines.static_real, lines.static_categories)
    state = model.initial_state(len(lines))
    initial = {layer: state.layers[layer]["memory"].clone() for layer in layers}
    kept = {layer: _empty(len(lines), tokens, config.heads, config.key_dim, config.value_dim) for layer in layers}
    when = np.full((len(lines), tokens), PADDING, np.int64)
    done, last = np.zeros(len(lines), np.int64), np.full(len(lines), NONE)
    for n in range(max(map(len, clocks))):
        alive = [(own, ends[n]) for own, ends in zip(streams, clocks, strict=True) if len(ends) > n]
        lanes, clock = np.concatenate([own for own, _ in alive]), np.concatenate([np.full(len(o), c) for o, c in alive])
        moment = np.repeat(np.arange(len(alive)), [len(own) for own, _ in alive])
        column = np.concatenate([np.arange(len(own)) for own, _ in alive])
        here = lines.anything(lanes, clock, patch)
        rows, clock = lanes[here], clock[here]
        peers = None
        if config.across:
            everyone, width = np.ones(len(rows), np.bool_), int(column.max()) + 1
            peers = Peers(moment[here], column[here], everyone, groups=len(alive), width=width)
        begins = torch.from_numpy(rows[length[rows] - tokens == done[rows]])
        for layer in layers:
            initial[layer][begins] = state.layers[layer]["memory"][begins]
        waited, at = since(clock, last[rows]), torch.from_numpy(rows)
        windows = lines.windows(rows, clock, patch, waited)
        after, traced = model.commit(windows, waited / lines.span(patch), static[at], state.rows(at), peers)
        column = done[rows] - (length[rows] - tokens)  # padded on the left: the last commit is always the last column
        inside = column >= 0
        target = (torch.from_numpy(rows[inside]), torch.from_numpy(column[inside]))
        when[rows[inside], column[inside]] = lines.horizon_steps(clock[inside])[:, 0] - 1  # of events it counts ns
        for layer in layers:
            for name, rows_of in kept[layer].items():
                rows_of[target] = traced[layer][name][torch.from_numpy(inside)]
        _put(state, at, after)
        done[rows] += 1
        last[rows] = clock
        tick()
    count = np.bincount(entry)
    names = tuple(
        f"{one.item_id}/{channel}" if many > 1 else one.item_id
        for one, many in zip(raw, count.tolist(), strict=True) for channel in names_of(predictor.channels, many)
    )  # fmt: skip
    return tuple(_trace(layer, names, when, kept[layer], initial[layer], state) for layer in layers)


def _trace(
    layer: int, names: tuple[str, ...], when: Ints, kept: dict[str, Tensor], initial: Tensor, state: ForecasterState
) -> Trace:
    bound = kept["factor"].log()[..., None]
    g = kept["g"].clone()
    g[:, 1:] += bound[:, :-1]
    final = state.layers[layer]["memory"] / kept["factor"][:, -1, :, None, None]  # the last bound has no next token
    return Trace(
        layer=layer, lanes=names, clocks=when, k=kept["k"], e=kept["e"], z=kept["z"], g=g, initial=initial, final=final
    )


def _empty(lanes: int, tokens: int, heads: int, key_dim: int, value_dim: int) -> dict[str, Tensor]:
    keys = {name: torch.zeros(lanes, tokens, heads, key_dim) for name in ("k", "e", "g")}
    return keys | {"z": torch.zeros(lanes, tokens, heads, value_dim), "factor": torch.ones(lanes, tokens, heads)}


def _put(state: ForecasterState, rows: Tensor, new: ForecasterState) -> None:
    for mine, theirs in zip(state.layers, new.layers, strict=True):
        for name, tensor in theirs.items():
            mine[name][rows] = tensor
    state.count[rows] = new.count
