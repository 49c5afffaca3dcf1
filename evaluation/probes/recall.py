"""Probes of what was written under a key: recall, overwrite-and-keep, and a key that leads to another one.

    token  [write, ask | key one-hot (16) | value (2)]            filler tokens have values and no key
    topology  [link, value, ask | from one-hot (6) | to one-hot (6) | own one-hot (6) | value (2)]

Keys are orthogonal, so a state of K key channels can hold K of them exactly; what is hard is to keep them among filler.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tsgdn2.evaluation.probes.contract import Episodes, Floats, Ints, Probe, end, explained, one_hot, some

IDS, VALUES = 16, 2
NODES = 6


def _keyed(rng: np.random.Generator, streams: int, tokens: int) -> Floats:
    """Tokens of filler: values that belong to no key."""
    x = np.zeros((streams, tokens, 2 + IDS + VALUES))
    x[..., 2 + IDS :] = rng.uniform(-1, 1, (streams, tokens, VALUES))
    return x


def _asked(keys: Ints) -> Floats:
    x = np.zeros((*keys.shape, 2 + IDS + VALUES))
    x[..., 1] = 1
    x[..., 2 : 2 + IDS] = one_hot(keys, IDS)
    return x


class Recall(Probe):
    """Multi-query associative recall with real values; one key at the first level."""

    name = "recall"
    asks = "which two numbers came with this key, some time ago, among tokens without a key?"
    one = "every value is given exactly"
    levels = (1, 4, 8, 12)
    level_is = "keys written and asked"
    features, outputs = 2 + IDS + VALUES, VALUES

    def draw(self, rng: np.random.Generator, streams: int, tokens: int) -> Episodes:
        """`level` keys at random places, all asked at the end."""
        row, count = np.arange(streams)[:, None], self.level
        x = _keyed(rng, streams, tokens)
        keys, places = some(rng, streams, IDS, count), some(rng, streams, tokens, count)
        x[row, places, 0] = 1
        x[row, places, 2 : 2 + IDS] = one_hot(keys, IDS)
        vital = np.zeros((streams, tokens), np.bool_)
        vital[row, places] = True
        nothing = np.zeros((streams, count))
        answer = x[row, places, 2 + IDS :]
        return Episodes(
            x, vital, _asked(keys), end(streams, count, tokens), nothing, answer, nothing.astype(np.int64)
        )  # fmt: skip


class Overwrite(Probe):
    """Some keys are written again: their new values must be new, the untouched ones must survive."""

    name = "overwrite"
    asks = "which two numbers does this key hold now, after a share of the eight keys was written again?"
    one = "rewritten keys give their new value and untouched ones their old one, exactly"
    levels = (25, 50, 75)
    level_is = "percent of the keys that are rewritten"
    features, outputs = 2 + IDS + VALUES, VALUES
    keys = 8

    @property
    def things(self) -> int:
        """All eight keys are asked."""
        return self.keys

    def draw(self, rng: np.random.Generator, streams: int, tokens: int) -> Episodes:
        """Eight keys, then `level` percent of them again, at random places in this order; all asked at the end."""
        row, count = np.arange(streams)[:, None], self.keys
        again = count * self.level // 100
        x = _keyed(rng, streams, tokens)
        keys = some(rng, streams, IDS, count)
        places = np.sort(some(rng, streams, tokens, count + again), 1)
        rewritten = some(rng, streams, count, again)
        written = np.concatenate([keys, np.take_along_axis(keys, rewritten, 1)], 1)
        x[row, places, 0] = 1
        x[row, places, 2 : 2 + IDS] = one_hot(written, IDS)
        vital = np.zeros((streams, tokens), np.bool_)
        vital[row, places] = True
        values = x[row, places, 2 + IDS :]
        answer, part = values[:, :count].copy(), np.zeros((streams, count), np.int64)
        answer[row, rewritten], part[row, rewritten] = values[:, count:], 1
        nothing = np.zeros((streams, count))
        return Episodes(x, vital, _asked(keys), end(streams, count, tokens), nothing, answer, part)

    def score(self, y: Floats, answer: Floats, part: Ints) -> Mapping[str, float]:
        """The smaller of the two shares explained."""
        kept, new = (explained(y[part == p], answer[part == p]) for p in (0, 1))
        return {"score": min(kept, new), "kept": kept, "new": new}


class Topology(Probe):
    """What a node reads depends on whom it is linked to, and links change."""

    name = "topology"
    asks = "what is the value of the node that this node is linked to now, after half of the links have changed?"
    one = "every value is given exactly, along the link of now; the value of a node itself is asked too, and not scored"
    levels = (2, 4, 6)
    level_is = "nodes"
    length = 24
    features, outputs = 3 + 3 * NODES + VALUES, VALUES

    def draw(self, rng: np.random.Generator, streams: int, tokens: int) -> Episodes:
        """A value and a link for every node in random order, then new links for half; every node is asked both ways."""
        row, count = np.arange(streams)[:, None], self.level
        again = count // 2
        start_at, to_at, own_at = (slice(3 + NODES * n, 3 + NODES * (n + 1)) for n in range(3))
        value_at = slice(3 + 3 * NODES, None)
        x = np.zeros((streams, tokens, self.features))
        x[..., value_at] = rng.uniform(-1, 1, (streams, tokens, VALUES))
        nodes = some(rng, streams, NODES, count)
        links = rng.integers(0, count, (streams, count))
        changed = some(rng, streams, count, again)
        fresh = (links[row, changed] + rng.integers(1, max(2, count), (streams, again))) % count
        places = np.sort(some(rng, streams, tokens, 2 * count + again), 1)
        mixed = np.take_along_axis(places[:, : 2 * count], some(rng, streams, 2 * count, 2 * count), 1)
        told, linked = mixed[:, :count], mixed[:, count:]
        x[row, told, 1] = 1
        x[row, told, own_at] = one_hot(nodes, NODES)
        values = x[row, told, value_at]
        later = places[:, 2 * count :]
        for at, start, to in ((linked, nodes, links), (later, nodes[row, changed], fresh)):
            x[row, at, 0] = 1
            x[row, at, value_at] = 0
            x[row, at, start_at], x[row, at, to_at] = one_hot(start, NODES), one_hot(nodes[row, to], NODES)
        links[row, changed] = fresh
        vital = np.zeros((streams, tokens), np.bool_)
        vital[row, places] = True
        asked = np.zeros((streams, 2 * count, self.features))
        asked[..., 2] = 1
        asked[:, :count, start_at] = asked[:, count:, own_at] = one_hot(nodes, NODES)
        part = np.zeros((streams, 2 * count), np.int64)
        part[:, count:] = 1
        answer = np.concatenate([values[row, links], values], 1)
        nothing = np.zeros((streams, 2 * count))
        return Episodes(x, vital, asked, end(streams, 2 * count, tokens), nothing, answer, part)

    def score(self, y: Floats, answer: Floats, part: Ints) -> Mapping[str, float]:
        """The share explained along the links, and that of the nodes asked directly."""
        linked, direct = (explained(y[part == p], answer[part == p]) for p in (0, 1))
        return {"score": linked, "direct": direct}
