"""Probes of state tracking: parity and permutations, which no sum of decayed writes can follow for long.

    parity        p_t = p_{t-1} xor flip_t                    token [flip + noise, ask]
    permutations  swap places i and j, or hold                token [i, j two-hot (5) | hold | ask | place one-hot (5)]

Questions come after random ones of the last T tokens, so at 16 T all of them stand at the end of a long product. Short
products are still near to where they began, and the best guess knows that. After n tokens, with a share s of flips and
k places of which a token that moves (3/4 of them) moves a given thing with probability 2/k:

    even                (1 + (1 - 2 s)^n) / 2
    in its own place    1/k + (1 - 1/k) (1 - (3/4) 2/(k - 1))^n

The floor is the mean over the n of the questions; of s5, for the better of two guesses: its own place, or another one.
"""

from __future__ import annotations

import numpy as np

from tsgdn2.evaluation.probes.contract import Episodes, Ints, Probe, one_hot

ASKED, PLACES, HOLDS = 8, 5, 0.25


def _late(rng: np.random.Generator, streams: int, tokens: int, last: int) -> Ints:
    return rng.integers(max(0, tokens - last), tokens, (streams, ASKED))


def _mean_power(base: float, tokens: int, last: int) -> float:
    """Mean of base^n over the numbers n of tokens before a question."""
    return float(np.mean(base ** np.arange(max(0, tokens - last) + 1, tokens + 1)))


class Parity(Probe):
    """Is the number of flips so far odd?"""

    name = "parity"
    asks = "is the number of flips so far odd?"
    one = "every answer is right"
    guess = "always even"
    levels = (10, 50)
    level_is = "percent of the tokens that flip"
    length = 16
    classes = 2
    features, outputs = 2, 2

    @property
    def things(self) -> int:
        """One bit."""
        return 1

    def chance(self, tokens: int) -> float:
        """Share of even answers."""
        return 0.5 + 0.5 * _mean_power(1 - 2 * self.level / 100, tokens, self.length)

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

    guess = "that everything stands in its own place, or another one where that is more often right"

    @property
    def things(self) -> int:
        """One order; its places can not be averaged."""
        return 1

    def chance(self, tokens: int) -> float:
        """Share of things in their own place, or in another one."""
        above = _mean_power(1 - (1 - HOLDS) * 2 / (self.level - 1), tokens, self.length) / self.level
        return 1 / self.level + max((self.level - 1) * above, -above)

    def draw(self, rng: np.random.Generator, streams: int, tokens: int) -> Episodes:
        """A quarter of the tokens hold; these may be lost."""
        row = np.arange(streams)
        i = rng.integers(0, self.level, (streams, tokens))
        j = (i + rng.integers(1, self.level, (streams, tokens))) % self.level
        holds = rng.random((streams, tokens)) < HOLDS
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
