"""The forecaster: windows -> tokens -> blocks -> the query's horizon. Knows no files, frames or runs.

    commits write, queries read:   forward (a window, dense queries) | prefill (a history) | commit (one) | read (one)
    prediction in units of the channel = mean + scale * head(query)      with the scaler after the last observed value

`forward` is the training path, `prefill` + `read` the batch forecast, `commit` + `read` the stream; a test holds the
three equal after every observation.

B lanes, N commits and M queries of all of them end to end, D width, H horizon, C channels, Q quantiles, P patch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tsgdn2.block import Block
from tsgdn2.events.patch import EventPatcher, EventWindows, WaitHead
from tsgdn2.forecaster_config import MIXERS, ForecasterConfig
from tsgdn2.head import HorizonHead
from tsgdn2.mixers.contract import Commits, Queries
from tsgdn2.mixers.registry import make_mixer
from tsgdn2.norm import RMSNorm
from tsgdn2.patch import SensorPatcher, Windows
from tsgdn2.scale import Floats
from tsgdn2.sequence import Ints, Peers, Sequences
from tsgdn2.state import ForecasterState

__all__ = ["MIXERS", "Forecaster", "ForecasterConfig", "Layout", "QueryInputs", "Reading", "with_channels"]


class Layout(NamedTuple):
    """Whose tokens are whose: length [B] of each lane, after and owner [M] of the queries (see Sequences), peers."""

    length: Ints
    after: Ints | None = None
    owner: Ints | None = None
    commit_peers: Peers | None = None
    query_peers: Peers | None = None


class Reading(NamedTuple):
    """What queries read: horizon [M,H,C,Q] standardised; wait [M,Q], log1p(periods to the next event), for events."""

    horizon: Tensor
    wait: Tensor | None


class QueryInputs(NamedTuple):
    """What a query needs beside its window: future [.., H, F] standardised and lags [.., L, C] scaled, numpy."""

    windows: Windows | EventWindows
    future: Floats
    lags: Floats


class Forecaster(nn.Module):
    """Patcher, blocks and head over lanes (sequences of `config.lane_channels` channels)."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        sizes = config.static_cardinalities
        static = config.static_real + sum(_embedding_dim(c) for c in sizes) + config.identities
        self.embeddings = nn.ModuleList(nn.Embedding(c, _embedding_dim(c)) for c in sizes)
        self.patcher = _patcher(config, static)
        self.wait = WaitHead(config.width, config.quantiles) if config.event_types else None
        self.blocks = nn.ModuleList(
            Block(config.width, config.mlp, make_mixer(config, layer), config.dropout, config.across)
            for layer in range(config.layers)
        )
        self.norm = RMSNorm(config.width)
        self.head = HorizonHead(
            width=config.width,
            horizon=config.prediction_length,
            channels=config.lane_channels,
            outputs=config.outputs or len(config.quantiles),
            known=config.horizon_covariates,
            lag_skip=config.lag_skip,
            identities=config.identities,
        )
        if not config.outputs:
            normal = torch.special.ndtri(torch.tensor(config.quantiles, dtype=torch.float64))
            bias = (0.7 * normal).repeat(config.prediction_length * config.lane_channels)
            self.head.linear.bias.data.copy_(bias)

    @property
    def dtype(self) -> torch.dtype:
        """Parameter dtype; states are in it too (fp32, or fp64 for oracles)."""
        return self.head.linear.weight.dtype

    def initial_state(self, batch: int) -> ForecasterState:
        """State of `batch` lanes that have seen nothing."""
        return ForecasterState(
            layers=tuple(block.mixer.initial_state(batch) for block in self._blocks()),
            count=torch.zeros(batch, dtype=torch.int64),
            fingerprint=self.config.fingerprint,
        )

    def static(self, real: Floats, categories: np.ndarray) -> Tensor:
        """Static features [.., S] from real [.., R] (standardised) and categories [.., K] (integers).

        With channel_identity the last category is the lane's channel; it becomes the last features, one-hot.
        """
        parts = [torch.from_numpy(np.ascontiguousarray(real)).to(self.dtype)]
        parts += [e(torch.from_numpy(categories[..., i])) for i, e in enumerate(self.embeddings)]
        if self.config.identities:
            parts.append(F.one_hot(torch.from_numpy(categories[..., -1]), self.config.identities).to(self.dtype))
        return torch.cat(parts, -1)

    def forward(
        self,
        commits: Windows | EventWindows,
        elapsed: Floats,
        layout: Layout,
        queries: QueryInputs,
        query_elapsed: Floats,
        static: Tensor,
        state: ForecasterState | None = None,
    ) -> tuple[Reading, ForecasterState]:
        """Train: N commits and M queries between them. Returns what the queries read and the state.

        commits, elapsed [N]; queries, query_elapsed [M]; static [B,S].
        """
        stream, after = self._commits(commits, elapsed, layout, static, state)
        at = stream.at
        asked = Queries(
            self.patcher(queries.windows, "query", static[at.query_owner]).embedding,
            self._tensor(query_elapsed),
            layout.query_peers,
        )
        layers = []
        for i, block in enumerate(self._blocks()):
            last = i == len(self.blocks) - 1
            x, y, layer = block(stream, asked, after.layers[i], commit_output=not last)
            asked = asked._replace(x=y)
            stream = stream if last else stream._replace(x=x)
            layers.append(layer)
        h = self.norm(asked.x)
        horizon = self._horizon(
            at,
            static,
            h,
            self._tensor(queries.future[..., : self.config.horizon_covariates]),
            self._tensor(queries.lags),
        )
        return self._reading(horizon, h), after.after(layers, torch.from_numpy(at.length))

    def prefill(
        self,
        commits: Windows | EventWindows,
        elapsed: Floats,
        layout: Layout,
        static: Tensor,
        state: ForecasterState | None = None,
    ) -> ForecasterState:
        """Read a history of commits in one chunkwise pass; arguments as `forward`. Returns the state after it."""
        stream, after = self._commits(commits, elapsed, layout, static, state)
        layers = []
        for i, block in enumerate(self._blocks()):
            last = i == len(self.blocks) - 1
            x, _, layer = block(stream, None, after.layers[i], commit_output=not last)
            stream = stream if last else stream._replace(x=x)
            layers.append(layer)
        return after.after(layers, torch.from_numpy(stream.at.length))

    def commit(
        self,
        windows: Windows | EventWindows,
        elapsed: Floats,
        static: Tensor,
        state: ForecasterState,
        peers: Peers | None = None,
    ) -> tuple[ForecasterState, list[dict[str, Tensor]]]:
        """One commit token per row. Returns the state after and, per layer, the trace that the audit reads."""
        tokens = self.patcher(windows, "commit", static)
        x, waited = tokens.embedding, self._tensor(elapsed)
        layers, traces = [], []
        for i, block in enumerate(self._blocks()):
            x, layer, traced = block.step(x, tokens.observed, waited, state.count, state.layers[i], peers)
            layers.append(layer)
            traces.append(traced)
        return state.after(layers, torch.ones_like(state.count)), traces

    def read(
        self,
        queries: QueryInputs,
        elapsed: Floats,
        static: Tensor,
        state: ForecasterState,
        peers: Peers | None = None,
    ) -> Reading:
        """One query per row; leaves nothing behind."""
        x, waited = self.patcher(queries.windows, "query", static).embedding, self._tensor(elapsed)
        for i, block in enumerate(self._blocks()):
            x = block.read(x, waited, state.layers[i], peers)
        h = self.norm(x)
        return self._reading(
            self.head(
                h,
                self._tensor(queries.future[..., : self.config.horizon_covariates]),
                self._tensor(queries.lags),
                static,
            ),
            h,
        )

    def _reading(self, horizon: Tensor, h: Tensor) -> Reading:
        return Reading(horizon, None if self.wait is None else self.wait(h))

    def _commits(
        self,
        windows: Windows | EventWindows,
        elapsed: Floats,
        layout: Layout,
        static: Tensor,
        state: ForecasterState | None,
    ) -> tuple[Commits, ForecasterState]:
        state = state if state is not None else self.initial_state(len(layout.length))
        at = Sequences(layout.length, state.count.numpy(), layout.after, layout.owner)
        tokens = self.patcher(windows, "commit", static[at.commit_owner])
        return Commits(tokens.embedding, tokens.observed, self._tensor(elapsed), at, layout.commit_peers), state

    def _horizon(self, at: Sequences, static: Tensor, h: Tensor, future: Tensor, lags: Tensor) -> Tensor:
        """The head over M queries; where lanes are equally long their own lag maps are gathered once a lane."""
        if at.dense and at.uniform is not None:
            rows = (t.unflatten(0, (at.size, at.uniform)) for t in (h, future, lags))
            return torch.as_tensor(self.head(*rows, static)).flatten(0, 1)
        return torch.as_tensor(self.head(h, future, lags, static[at.query_owner]))

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _tensor(self, x: Floats) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.dtype)


def with_channels(forecaster: Forecaster, channels: int) -> Forecaster:
    """The same independent model serving another number of channels; the weights are shared, not copied."""
    twin = Forecaster(replace(forecaster.config, channels=channels)).to(forecaster.dtype)
    twin.load_state_dict(forecaster.state_dict(), assign=True)
    return twin


def _patcher(config: ForecasterConfig, static: int) -> SensorPatcher | EventPatcher:
    shape: dict[str, Any] = {
        "patch_length": config.patch_length,
        "channels": config.lane_channels,
        "width": config.width,
        "known": config.step_covariates,
        "static": static,
        "period_ns": config.period_ns,
        "cycles": config.calendar,
    }
    if not config.event_types:
        return SensorPatcher(**shape)
    schema = config.event_schema()
    return EventPatcher(**shape, slots=schema.slots, marks=len(config.event_marks), by_number=config.event_window > 0)


def _embedding_dim(cardinality: int) -> int:
    return min(16, (cardinality + 1) // 2)
