"""Probes of what sensors told without naming it: a pulse elsewhere, a rare spike, the level of a regime before a gap.

    lookup   [values of 4 channels | pulse one-hot | ask]
    rare     [values of 8 channels | wanted one-hot | ask]
    regime   [label one-hot (8) | values of 3 channels | ask]

Each token carries values that will never be asked for; what to keep is decided when it is seen.
"""

from __future__ import annotations

import numpy as np

from tsgdn2.evaluation.probes.contract import Episodes, Probe, end, one_hot, some

CHANNELS, SPIKING = 4, 8
LABELS, LEVELS = 8, 3


class Lookup(Probe):
    """Delayed lookup across channels."""

    name = "lookup"
    asks = "what did every channel read at the moment when this channel pulsed, some time ago?"
    one = "every reading is given exactly"
    levels = (1, 2, 4)
    level_is = "channels that pulsed"
    features, outputs = 2 * CHANNELS + 1, CHANNELS

    def draw(self, rng: np.random.Generator, streams: int, tokens: int) -> Episodes:
        """`level` channels pulse once; the readings of all channels are asked for each pulse."""
        row = np.arange(streams)[:, None]
        x = np.zeros((streams, tokens, self.features))
        x[..., :CHANNELS] = rng.uniform(-1, 1, (streams, tokens, CHANNELS))
        pulsing, places = some(rng, streams, CHANNELS, self.level), some(rng, streams, tokens, self.level)
        x[row, places, CHANNELS : 2 * CHANNELS] = one_hot(pulsing, CHANNELS)
        vital = np.zeros((streams, tokens), np.bool_)
        vital[row, places] = True
        question = np.zeros((streams, self.level, self.features))
        question[..., CHANNELS : 2 * CHANNELS] = one_hot(pulsing, CHANNELS)
        question[..., -1] = 1
        answer, nothing = x[row, places, :CHANNELS], np.zeros((streams, self.level))
        return Episodes(
            x, vital, question, end(streams, self.level, tokens), nothing, answer, nothing.astype(np.int64)
        )  # fmt: skip


class Rare(Probe):
    """Recall of rare events that only their size gives away."""

    name = "rare"
    asks = "how high was the only spike of this channel, among ordinary readings of eight channels?"
    one = "every height is given exactly"
    levels = (1, 2, 4)
    level_is = "channels that spiked once"
    features, outputs = 2 * SPIKING + 1, 1

    def draw(self, rng: np.random.Generator, streams: int, tokens: int) -> Episodes:
        """Ordinary readings lie in [-1, 1], a spike in [1.5, 4]; its answer is centred."""
        row = np.arange(streams)[:, None]
        x = np.zeros((streams, tokens, self.features))
        x[..., :SPIKING] = np.clip(rng.normal(0, 0.4, (streams, tokens, SPIKING)), -1, 1)
        spiking, places = some(rng, streams, SPIKING, self.level), some(rng, streams, tokens, self.level)
        heights = rng.uniform(1.5, 4.0, (streams, self.level))
        x[row, places, spiking] = heights
        vital = np.zeros((streams, tokens), np.bool_)
        vital[row, places] = True
        question = np.zeros((streams, self.level, self.features))
        question[..., SPIKING : 2 * SPIKING] = one_hot(spiking, SPIKING)
        question[..., -1] = 1
        nothing = np.zeros((streams, self.level))
        return Episodes(
            x, vital, question, end(streams, self.level, tokens), nothing, (heights - 2.75)[..., None],
            nothing.astype(np.int64),
        )  # fmt: skip


class Regime(Probe):
    """The level of a regime, seen before unlabelled readings and a long gap."""

    name = "regime"
    asks = (
        "which mean level did three channels have in this regime, before other readings and a gap of 20 to 100 periods?"
    )
    one = "the mean of what was seen of the regime is given exactly"
    levels = (2, 4, 8)
    level_is = "regimes"
    features, outputs = LABELS + LEVELS + 1, LEVELS
    seen = 16

    def draw(self, rng: np.random.Generator, streams: int, tokens: int) -> Episodes:
        """Sixteen labelled tokens, a section for each regime, at random places; all regimes are asked after the gap."""
        row, count = np.arange(streams)[:, None], self.level
        x = np.zeros((streams, tokens, self.features))
        x[..., LABELS : LABELS + LEVELS] = rng.uniform(-1, 1, (streams, tokens, LEVELS))
        labels = some(rng, streams, LABELS, count)
        places = np.sort(some(rng, streams, tokens, self.seen), 1)
        level = rng.uniform(-1, 1, (streams, count, LEVELS))
        noise = rng.normal(0, 0.2, (streams, count, self.seen // count, LEVELS))
        seen = level[:, :, None] + noise
        x[row, places, LABELS : LABELS + LEVELS] = seen.reshape(streams, self.seen, LEVELS)
        x[row, places, :LABELS] = one_hot(np.repeat(labels, self.seen // count, 1), LABELS)
        vital = np.zeros((streams, tokens), np.bool_)
        vital[row, places] = True
        question = np.zeros((streams, count, self.features))
        question[..., :LABELS] = one_hot(labels, LABELS)
        question[..., -1] = 1
        wait = np.repeat(rng.uniform(20, 100, (streams, 1)), count, 1)
        return Episodes(
            x, vital, question, end(streams, count, tokens), wait, seen.mean(2), np.zeros((streams, count), np.int64)
        )  # fmt: skip
