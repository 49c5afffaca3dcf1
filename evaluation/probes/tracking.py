"""Probes of state tracking: parity and permutations, which no sum of decayed writes can follow for long.

    parity        p_t = p_{t-1} xor flip_t                    token [flip + noise, ask]
    permutations  swap places i and j, or hold                token [i, j two-hot (5) | hold | ask | place one-hot (5)]

Questions come after random ones of the last T tokens, so at 16 T all of them stand at the end of a long product.
"""

from __future__ import annotations

import numpy as np

from tsgdn2.evaluation.probes.contract import Episodes, Ints, Probe, one_hot

ASKED, PLACES = 8, 5


def _late(rng: np.random.Generator, streams: int, tokens: int, last: int) -> Ints:
    return rng.integers(max(0, tokens - last), tokens, (streams, ASKED))


class Parity(Probe):
    """Is the number of flips so far odd?"""

    name = "parity"
    asks = "is the number of flips so far odd?"
    one = "every answer is right"
    none = "0.5: guessing"
    chance = 0.5
    levels = (10, 50)
    level_is = "percent of the tokens that flip"
    length = 16
    classes = 2
    features, outputs = 2, 2

    def draw(self, rng: np.random.Generator, streams: int, tokens: int) -> Episodes:
        """Flips at random; tokens without one may be lost."""
        row = np.arange(streams)[:, None]
        flips = rng.random((streams, tokens)) < self.level / 100
        x = np.zeros((streams, tokens, 2))
        x[..., 0] = flips + rng.normal(0, 0.1, (streams, tokens))
        after = _late(rng, streams, tokens, self.length)
        question = np.zeros((streams, ASKED, 2))
        question[..., 1] = 1
        answer = (np.cumsum(flips, 1) % 2)[row, after][..., None].astype(np.float64)
        nothing = np.zeros((streams, ASKED))
        return Episodes(x, flips, question, after, nothing, answer, nothing.astype(np.int64))


class Permutations(Probe):
    """Which of five things stands at this place after all the swaps? At the last level the word problem of S5."""

    name = "s5"
    asks = "which of five things stands at this place, after every swap of two places so far?"
    one = "every answer is right"
    levels = (2, 3, 5)
    level_is = "places that take part"
    length = 8
    classes = PLACES
    features, outputs = PLACES + 2 + PLACES, PLACES

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.chance = 1 / level
        self.none = f"{self.chance:.2g}: guessing among the places that take part"

    def draw(self, rng: np.random.Generator, streams: int, tokens: int) -> Episodes:
        """A quarter of the tokens hold; these may be lost."""
        row = np.arange(streams)
        i = rng.integers(0, self.level, (streams, tokens))
        j = (i + rng.integers(1, self.level, (streams, tokens))) % self.level
        holds = rng.random((streams, tokens)) < 0.25
        x = np.zeros((streams, tokens, self.features))
        x[..., :PLACES] = (one_hot(i, PLACES) + one_hot(j, PLACES)) * ~holds[..., None]
        x[..., PLACES] = holds
        order = np.tile(np.arange(PLACES), (streams, 1))
        orders = np.empty((streams, tokens, PLACES), np.int64)
        for t in range(tokens):
            moved = order.copy()
            moved[row, i[:, t]], moved[row, j[:, t]] = order[row, j[:, t]], order[row, i[:, t]]
            order = np.where(holds[:, t, None], order, moved)
            orders[:, t] = order
        after, place = _late(rng, streams, tokens, self.length), rng.integers(0, self.level, (streams, ASKED))
        question = np.zeros((streams, ASKED, self.features))
        question[..., PLACES + 1] = 1
        question[..., PLACES + 2 :] = one_hot(place, PLACES)
        answer = orders[row[:, None], after, place][..., None].astype(np.float64)
        nothing = np.zeros((streams, ASKED))
        return Episodes(x, ~holds, question, after, nothing, answer, nothing.astype(np.int64))
