"""The forecaster: windows -> tokens -> blocks -> the query's horizon. Knows no files, frames or runs.

    commits write, queries read:   forward (a window, dense queries) | prefill (a history) | commit (one) | read (one)
    prediction in units of the channel = mean + scale * head(query)      with the scaler after the last observed value

`forward` is the training path, `prefill` + `read` the batch forecast, `commit` + `read` the stream; a test holds the
three equal after every observation.

B batch, N tokens, D width, L layers, H horizon, C channels, Q quantiles, P patch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tsgdn2 import clock
from tsgdn2.block import Block, RMSNorm
from tsgdn2.errors import ConfigError
from tsgdn2.gdn2 import GDN2Mixer
from tsgdn2.head import HorizonHead
from tsgdn2.mixer import Commits, LSTMMixer, Mixer, NoMixer, Queries
from tsgdn2.patch import SensorPatcher, Windows
from tsgdn2.scale import Floats
from tsgdn2.state import ForecasterState

MIXERS = ("gdn2", "lstm", "none")


@dataclass(frozen=True, kw_only=True)
class ForecasterConfig:
    """Everything that fixes the shape and the meaning of a forecaster; its fingerprint is stored in every state."""

    prediction_length: int
    """Steps that one forecast covers."""
    period_ns: int
    """Length of a step in nanoseconds; 0 for a calendar frequency, which can not be streamed."""
    channels: int = 1
    """Channels of one observation."""
    mode: str = "independent"
    """"independent": one sequence per channel, shared weights. "joint": one token holds all channels."""
    quantiles: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Levels of the forecast, increasing, inside (0, 1)."""
    outputs: int = 0
    """Outputs per step where they are not quantiles (parameters of a distribution); 0 means one per quantile."""
    patch_length: int = 8
    """Steps per commit token, P. Smaller is dearer and remembers finer."""
    width: int = 64
    """Residual width D."""
    layers: int = 2
    """Blocks."""
    heads: int = 4
    """Heads H of the mixer."""
    key_dim: int = 16
    """Key channels K of one head: how many directions its state can tell apart."""
    value_dim: int = 16
    """Value channels V of one head."""
    mlp: int = 128
    """Hidden width of the SwiGLU."""
    dropout: float = 0.0
    """Dropout on both residual branches while training."""
    mixer: str = "gdn2"
    """One of gdn2, lstm, none."""
    decay_from: str = "previous"
    """Whose rate decays an interval: the commit before it ("previous") or the token at its end ("own")."""
    norm_max: float = 256.0
    """Bound M on a head's Frobenius norm at every 64th commit."""
    half_life: float = 336.0
    """Observed values after which the scaler has forgotten half; inf forgets nothing."""
    lag_skip: int = 0
    """Last scaled steps that reach the horizon by a linear map, past the audited memory; 0 is off."""
    calendar: tuple[str, ...] = ()
    """Cycles whose phase a token knows: any of "day", "week"."""
    known: int = 0
    """Known covariates per step, of the past and of the horizon."""
    static_real: int = 0
    """Real static features per stream."""
    static_cardinalities: tuple[int, ...] = ()
    """Number of values of each categorical static feature."""

    def __post_init__(self) -> None:
        """Check every bound; ConfigError names the field."""
        for name in (
            "prediction_length",
            "channels",
            "patch_length",
            "width",
            "layers",
            "heads",
            "key_dim",
            "value_dim",
            "mlp",
        ):
            _require(name, getattr(self, name), ">= 1", getattr(self, name) >= 1)
        for name in ("period_ns", "outputs", "lag_skip", "known", "static_real"):
            _require(name, getattr(self, name), ">= 0", getattr(self, name) >= 0)
        levels = self.quantiles
        rising = all(a < b for a, b in zip((0.0, *levels), (*levels, 1.0), strict=True))
        _require("quantiles", levels, "increasing levels inside (0, 1), at least one", bool(levels) and rising)
        _require("mode", self.mode, 'one of "independent", "joint"', self.mode in ("independent", "joint"))
        _require("mixer", self.mixer, f"one of {MIXERS}", self.mixer in MIXERS)
        _require("decay_from", self.decay_from, '"previous" or "own"', self.decay_from in ("previous", "own"))
        _require("dropout", self.dropout, "in [0, 1)", 0 <= self.dropout < 1)
        _require("norm_max", self.norm_max, "> 0 and finite", 0 < self.norm_max < float("inf"))
        _require("half_life", self.half_life, "> 0 (inf forgets nothing)", self.half_life > 0)
        _require(
            "calendar",
            self.calendar,
            f"names among {tuple(clock.CYCLES_NS)}",
            set(self.calendar) <= set(clock.CYCLES_NS),
        )
        _require(
            "static_cardinalities",
            self.static_cardinalities,
            "each >= 1",
            all(c >= 1 for c in self.static_cardinalities),
        )

    @property
    def lanes(self) -> int:
        """Sequences per stream: one per channel when independent, one when joint."""
        return self.channels if self.mode == "independent" else 1

    @property
    def lane_channels(self) -> int:
        """Channels of one sequence."""
        return 1 if self.mode == "independent" else self.channels

    @property
    def window(self) -> int:
        """Raw steps that a stream must hold: the query's patch and the lag skip."""
        return max(self.patch_length, self.lag_skip)

    def to_json(self) -> str:
        """Canonical JSON; `from_json` is its inverse."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ForecasterConfig:
        """Read what `to_json` wrote; ConfigError names a field that this version does not know."""
        raw = json.loads(text)
        unknown = set(raw) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"config: unknown fields {sorted(unknown)}; it was written by another version, upgrade")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()})

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


class QueryInputs(NamedTuple):
    """What a query needs beside its window: future [.., H, F] standardised and lags [.., L, C] scaled, numpy."""

    windows: Windows
    future: Floats
    lags: Floats


class Forecaster(nn.Module):
    """Patcher, blocks and head over lanes (sequences of `config.lane_channels` channels)."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        static = config.static_real + sum(_embedding_dim(c) for c in config.static_cardinalities)
        self.embeddings = nn.ModuleList(nn.Embedding(c, _embedding_dim(c)) for c in config.static_cardinalities)
        self.patcher = SensorPatcher(
            patch_length=config.patch_length,
            channels=config.lane_channels,
            width=config.width,
            known=config.known,
            static=static,
            period_ns=config.period_ns,
            cycles=config.calendar,
        )
        self.blocks = nn.ModuleList(
            Block(config.width, config.mlp, _mixer(config), config.dropout) for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.width)
        self.head = HorizonHead(
            width=config.width,
            horizon=config.prediction_length,
            channels=config.lane_channels,
            outputs=config.outputs or len(config.quantiles),
            known=config.known,
            lag_skip=config.lag_skip,
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
        """Static features [.., S] from real [.., R] (standardised) and categories [.., K] (integers)."""
        parts = [torch.from_numpy(np.ascontiguousarray(real)).to(self.dtype)]
        parts += [e(torch.from_numpy(categories[..., i])) for i, e in enumerate(self.embeddings)]
        return torch.cat(parts, -1)

    def forward(
        self,
        commits: Windows,
        elapsed: Floats,
        length: Tensor,
        queries: QueryInputs,
        query_elapsed: Floats,
        static: Tensor,
        state: ForecasterState | None = None,
    ) -> tuple[Tensor, ForecasterState]:
        """Train: N commits, a query after each. Returns head outputs [B,N,H,C,Q] (standardised) and the state."""
        static_n = static[:, None].expand(-1, elapsed.shape[1], -1)
        stream, after = self._commits(commits, elapsed, length, static_n, state)
        asked = Queries(self.patcher(queries.windows, "query", static_n).embedding, self._tensor(query_elapsed))
        layers = []
        for i, block in enumerate(self._blocks()):
            last = i == len(self.blocks) - 1
            x, y, layer = block(stream, asked, after.layers[i], commit_output=not last)
            asked = asked._replace(x=y)
            stream = stream if last else stream._replace(x=x)
            layers.append(layer)
        out = self.head(self.norm(asked.x), self._tensor(queries.future), self._tensor(queries.lags))
        return out, after.after(layers, length)

    def prefill(
        self, commits: Windows, elapsed: Floats, length: Tensor, static: Tensor, state: ForecasterState | None = None
    ) -> ForecasterState:
        """Read a history of commits in one chunkwise pass; arguments as `forward`. Returns the state after it."""
        stream, after = self._commits(commits, elapsed, length, static[:, None].expand(-1, elapsed.shape[1], -1), state)
        layers = []
        for i, block in enumerate(self._blocks()):
            last = i == len(self.blocks) - 1
            x, _, layer = block(stream, None, after.layers[i], commit_output=not last)
            stream = stream if last else stream._replace(x=x)
            layers.append(layer)
        return after.after(layers, length)

    def commit(
        self, windows: Windows, elapsed: Floats, static: Tensor, state: ForecasterState
    ) -> tuple[ForecasterState, list[dict[str, Tensor]]]:
        """One commit token per row. Returns the state after and, per layer, the trace that the audit reads."""
        tokens = self.patcher(windows, "commit", static)
        x, waited = tokens.embedding, self._tensor(elapsed)
        layers, traces = [], []
        for i, block in enumerate(self._blocks()):
            x, layer, traced = block.step(x, tokens.observed, waited, state.count, state.layers[i])
            layers.append(layer)
            traces.append(traced)
        return state.after(layers, torch.ones_like(state.count)), traces

    def read(self, queries: QueryInputs, elapsed: Floats, static: Tensor, state: ForecasterState) -> Tensor:
        """One query per row, [B,H,C,Q] standardised; leaves nothing behind."""
        x, waited = self.patcher(queries.windows, "query", static).embedding, self._tensor(elapsed)
        for i, block in enumerate(self._blocks()):
            x = block.read(x, waited, state.layers[i])
        return torch.as_tensor(self.head(self.norm(x), self._tensor(queries.future), self._tensor(queries.lags)))

    def _commits(
        self, windows: Windows, elapsed: Floats, length: Tensor, static_n: Tensor, state: ForecasterState | None
    ) -> tuple[Commits, ForecasterState]:
        state = state if state is not None else self.initial_state(len(length))
        tokens = self.patcher(windows, "commit", static_n)
        return Commits(tokens.embedding, tokens.observed, self._tensor(elapsed), length, state.count), state

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _tensor(self, x: Floats) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.dtype)


def _mixer(config: ForecasterConfig) -> Mixer:
    if config.mixer == "gdn2":
        return GDN2Mixer(
            config.width,
            heads=config.heads,
            key_dim=config.key_dim,
            value_dim=config.value_dim,
            norm_max=config.norm_max,
            decay_from=config.decay_from,
        )
    if config.mixer == "lstm":
        return LSTMMixer(config.width, config.heads * config.value_dim)
    return NoMixer(config.width)


def _embedding_dim(cardinality: int) -> int:
    return min(16, (cardinality + 1) // 2)


def _require(name: str, value: object, allowed: str, ok: bool) -> None:
    if not ok:
        raise ConfigError(f"{name}: must be {allowed}, got {value!r}")
