"""Everything that fixes the shape and the meaning of a forecaster, checked where it is made.

The fingerprint is over the canonical JSON, so a field that changes its meaning without changing its name or value goes
unnoticed: rename it instead. A field that came later counts where it is not at its default, so that older states stay.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from tsgdn2 import clock
from tsgdn2.errors import ConfigError, require
from tsgdn2.events.schema import EventSchema
from tsgdn2.mixers.gates import MEMBERS

MIXERS = (*MEMBERS, "mamba3", "mamba3-mimo", "rwkv7", "swa", "lstm", "none")
OWN_DECAY = tuple(name for name, gates in MEMBERS.items() if gates.decay != "none")
"""Mixers whose intervals can decay by the rate of the token at their end."""
MODES = ("independent", "joint", "attention")


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
    """"independent": one sequence per channel, shared weights. "joint": one token holds all channels. "attention":
    independent, and the channels of one moment attend to each other; the model serves any number of them."""
    quantiles: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Levels of the forecast, increasing, inside (0, 1)."""
    outputs: int = 0
    """Outputs per step where they are not quantiles (parameters of a distribution); 0 means one per quantile."""
    patch_length: int = 8
    """Steps per commit token, P. Smaller is dearer and remembers finer."""
    width: int = 64
    """Residual width D."""
    layers: int = 1
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
    """Memory of every layer, one of MIXERS: a member of the delta family (mixers/gates.py), mamba3, mamba3-mimo,
    rwkv7, swa (sliding-window attention), lstm or none."""
    attention_every: int = 0
    """A hybrid: every n-th layer is swa, the others `mixer`; 0 for none."""
    attention_window: int = 64
    """Commits that a layer of swa sees; its state grows with it."""
    decay_from: str = "previous"
    """Whose rate decays an interval: the commit before it ("previous") or the token at its end ("own"; the mixers of
    OWN_DECAY, which are the delta family's that decay)."""
    norm_max: float = 256.0
    """Bound M on a head's Frobenius norm at every 64th commit."""
    half_life: float = 336.0
    """Observed values after which the scaler has forgotten half; inf forgets nothing."""
    lag_skip: int = 0
    """Last scaled steps that reach the horizon by a linear map, past the audited memory; 0 is off."""
    bridge: float = 0.0
    """Steps over which a value reaches into the missing cells beside it; 0 takes a missing cell for the mean."""
    calendar: tuple[str, ...] = ()
    """Cycles whose phase a token knows: any of "day", "week"."""
    known: int = 0
    """Known real covariates per step, of the past and of the horizon."""
    known_cardinalities: tuple[int, ...] = ()
    """Number of values of each known categorical covariate, of the past and of the horizon."""
    past: int = 0
    """Real covariates that are known up to the clock only; any of them may be missing."""
    static_real: int = 0
    """Real static features per stream."""
    static_cardinalities: tuple[int, ...] = ()
    """Number of values of each categorical static feature."""
    channel_identity: bool = False
    """Independent channels know which channel they are; the model then serves the channels of training alone."""
    event_types: tuple[str, ...] = ()
    """Types that an event can have; with any, the model reads events and its channels are `event_targets`."""
    event_marks: tuple[str, ...] = ()
    """Names of the numbers that come with an event."""
    event_targets: tuple[str, ...] = ()
    """What is forecast per step: count, sum(mark), mean(mark), min(mark), max(mark), each also of one [type]."""
    event_mark_low: tuple[float, ...] = ()
    """Least value of each mark, -inf for none; an event below it is refused."""
    event_mark_high: tuple[float, ...] = ()
    """Largest value of each mark, inf for none."""
    event_unknown: str = "raise"
    """A type that is not in the vocabulary is an error ("raise") or one of the others ("other")."""
    event_window: int = 0
    """Events per commit token; 0: one token per patch of `patch_length` steps."""

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
            require(name, getattr(self, name), ">= 1", getattr(self, name) >= 1)
        for name in ("period_ns", "outputs", "lag_skip", "known", "past", "static_real"):
            require(name, getattr(self, name), ">= 0", getattr(self, name) >= 0)
        levels = self.quantiles
        rising = all(a < b for a, b in zip((0.0, *levels), (*levels, 1.0), strict=True))
        require("quantiles", levels, "increasing levels inside (0, 1), at least one", bool(levels) and rising)
        require("mode", self.mode, f"one of {MODES}", self.mode in MODES)
        require("mixer", self.mixer, f"one of {MIXERS}", self.mixer in MIXERS)
        every = self.attention_every
        allowed = "0, or from 2 to the number of layers (mixer swa is attention in all of them)"
        require("attention_every", every, allowed, every == 0 or 2 <= every <= self.layers)
        require("attention_window", self.attention_window, ">= 1", self.attention_window >= 1)
        require("key_dim", self.key_dim, "even for mamba3", self.key_dim % 2 == 0 or "mamba3" not in self.mixer)
        require("decay_from", self.decay_from, '"previous" or "own"', self.decay_from in ("previous", "own"))
        allowed = f'"previous" for mixer {self.mixer!r} ("own" is for {", ".join(OWN_DECAY)})'
        require("decay_from", self.decay_from, allowed, self.decay_from == "previous" or self.mixer in OWN_DECAY)
        require(
            "channel_identity",
            self.channel_identity,
            "False where one token holds all channels (mode joint)",
            not self.channel_identity or self.mode != "joint",
        )
        require(
            "heads", self.heads, "a divisor of width in mode attention", not self.across or self.width % self.heads == 0
        )
        require("dropout", self.dropout, "in [0, 1)", 0 <= self.dropout < 1)
        require("norm_max", self.norm_max, "> 0 and finite", 0 < self.norm_max < float("inf"))
        require("half_life", self.half_life, "> 0 (inf forgets nothing)", self.half_life > 0)
        require("bridge", self.bridge, ">= 0 and finite", 0 <= self.bridge < float("inf"))
        require(
            "calendar",
            self.calendar,
            f"names among {tuple(clock.CYCLES_NS)}",
            set(self.calendar) <= set(clock.CYCLES_NS),
        )
        for name in ("static_cardinalities", "known_cardinalities"):
            require(name, getattr(self, name), "each >= 1", all(c >= 1 for c in getattr(self, name)))

        if self.event_types or self.event_targets:
            require("channels", self.channels, "the number of event_targets", self.channels == len(self.event_targets))
            require("period_ns", self.period_ns, ">= 1 where events are counted", self.period_ns >= 1)
            require("event_window", self.event_window, ">= 0", self.event_window >= 0)
            self.event_schema()

    def event_schema(self, mean: tuple[float, ...] = (), scale: tuple[float, ...] = ()) -> EventSchema:
        """How events are read; mean and scale of the marks come from training. ConfigError names the field."""
        return EventSchema(
            types=self.event_types,
            targets=self.event_targets,
            period_ns=self.period_ns,
            marks=self.event_marks,
            low=self.event_mark_low,
            high=self.event_mark_high,
            mean=mean or (0.0,) * len(self.event_marks),
            scale=scale or (1.0,) * len(self.event_marks),
            unknown=self.event_unknown,
        )

    @property
    def layer_mixers(self) -> tuple[str, ...]:
        """The mixer of each layer."""
        every = self.attention_every
        return tuple("swa" if every and n % every == 0 else self.mixer for n in range(1, self.layers + 1))

    @property
    def traced_layers(self) -> tuple[int, ...]:
        """Layers whose memory can be audited: those of the delta family."""
        return tuple(n for n, name in enumerate(self.layer_mixers) if name in MEMBERS)

    @property
    def audited(self) -> bool:
        """Whether the memory of every layer can be audited."""
        return len(self.traced_layers) == self.layers

    @property
    def lanes(self) -> int:
        """Sequences per stream: one when joint, else one per channel."""
        return 1 if self.mode == "joint" else self.channels

    @property
    def lane_channels(self) -> int:
        """Channels of one sequence."""
        return self.channels if self.mode == "joint" else 1

    @property
    def horizon_covariates(self) -> int:
        """Columns of what is known of a step of the horizon: reals, then categories one-hot."""
        return self.known + sum(self.known_cardinalities)

    @property
    def step_covariates(self) -> int:
        """Columns of what is known of a past step: those of the horizon, then past reals and whether each was given."""
        return self.horizon_covariates + 2 * self.past

    @property
    def bound(self) -> bool:
        """Whether the model serves the channels of its training alone; else any number of them."""
        return self.mode == "joint" or self.channel_identity or bool(self.event_types)

    @property
    def across(self) -> int:
        """Heads of the attention across channels; 0 for none."""
        return self.heads if self.mode == "attention" else 0

    @property
    def identities(self) -> int:
        """Channels that a lane is told apart by: all of them with channel_identity, else 0."""
        return self.channels if self.channel_identity else 0

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
        raw: dict[str, Any] = json.loads(text)
        unknown = set(raw) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"config: unknown fields {sorted(unknown)}; it was written by another version, upgrade")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()
        }
        return cls(**values)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of the canonical JSON without later fields at their defaults."""
        default = {f.name: f.default for f in fields(self)}
        values = {n: v for n, v in asdict(self).items() if n not in _LATER or v != default[n]}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


_LATER = ("attention_every", "attention_window")
