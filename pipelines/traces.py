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

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.pipelines.entries import read_entry
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.streaming import one_thread
from tsgdn2.state import ForecasterState
from tsgdn2.timeline import Ints, Timelines

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

    Errors: ConfigError for a model without a GDN-2 state; SchemaError when no entry holds a whole observed patch.
    """
    config, model = predictor.config, predictor.forecaster.eval()
    if config.mixer != "gdn2":
        raise ConfigError(f"predictor: only a gdn2 state can be audited, this model has mixer {config.mixer!r}")
    raw = [read_entry(entry, config, number, horizon=False) for number, entry in enumerate(entries)]
    series = [one.series(predictor.standards, predictor.channels) for one in raw]
    split = config.mode == "independent"
    lines = Timelines(
        [lane for one in series for lane in one.lanes(config)], window=config.window, horizon=config.prediction_length,
        half_life=config.half_life,
    )  # fmt: skip
    clocks = [lines.commit_clocks(lane, config.patch_length) for lane in range(len(lines))]
    length = np.array([len(own) for own in clocks])
    if not length.any():
        raise SchemaError(f"data: no series holds one observed patch of {config.patch_length} steps to be audited")
    tokens = min(window, int(length.max()))
    static = model.static(lines.static_real, lines.static_categories)
    state = model.initial_state(len(lines))
    initial = {layer: state.layers[layer]["memory"].clone() for layer in layers}
    kept = {layer: _empty(len(lines), tokens, config.heads, config.key_dim, config.value_dim) for layer in layers}
    when = np.full((len(lines), tokens), PADDING, np.int64)
    for n in range(int(length.max())):
        rows = np.flatnonzero(length > n)
        begins = torch.from_numpy(rows[length[rows] - tokens == n])
        for layer in layers:
            initial[layer][begins] = state.layers[layer]["memory"][begins]
        clock = np.array([clocks[row][n] for row in rows], np.int64)
        waited = clock - np.array([clocks[row][max(0, n - 1)] for row in rows], np.int64)
        at = torch.from_numpy(rows)
        after, traced = model.commit(
            lines.windows(rows, clock, config.patch_length), waited / config.patch_length, static[at], state.rows(at)
        )
        column = n - (length[rows] - tokens)  # padded on the left: the last commit is always the last column
        inside = column >= 0
        target = (torch.from_numpy(rows[inside]), torch.from_numpy(column[inside]))
        when[rows[inside], column[inside]] = clock[inside]
        for layer in layers:
            for name, rows_of in kept[layer].items():
                rows_of[target] = traced[layer][name][torch.from_numpy(inside)]
        _put(state, at, after)
        tick()
    names = tuple(
        f"{one.item_id}/{channel}" if split and config.channels > 1 else one.item_id
        for one in raw for channel in (predictor.channels if split else ("all",))
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
