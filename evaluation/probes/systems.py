"""Probes of a system whose parameters differ from stream to stream: what an action does, and what stopped to matter.

    effect   y' = 0.7 y + b_u + noise         token [y, y' | action u one-hot (4) | planned one-hot (4) | ask]
             two futures from the same y:  0.7^h y  and  0.7^h y + 0.7^{h-1} b_u,   h = 1 .. 3
    stale    r = phi y + beta z + noise       token [y, z, r, heard, ask];   beta becomes 0 in half of the streams
             the last quarter of a stream is silent: r and heard are 0, so that both relations must be remembered

b, phi and beta are drawn per stream, so they can only be learned from its past.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tsgdn2.evaluation.probes.contract import Episodes, Floats, Ints, Probe, end, explained, one_hot, some

KINDS, AHEAD, KEEPS = 4, 3, 0.7
NOISE, SILENT = 0.05, 0.25


class Effect(Probe):
    """The effect of an intervention, recalled in a what-if roll-out of two futures."""

    name = "effect"
    asks = "how do the next three steps differ if this action is planned, and if nothing is?"
    one = "the difference of the two futures is the true effect of the action in this stream"
    levels = (1, 2, 4)
    level_is = "kinds of action, each seen twice"
    features, outputs = 2 + 2 * KINDS + 1, AHEAD

    def draw(self, rng: np.random.Generator, streams: int, tokens: int) -> Episodes:
        """Every action of the stream is seen twice at random places; for each, two futures are asked at the end."""
        row, count = np.arange(streams)[:, None], self.level
        kinds, effects = some(rng, streams, KINDS, count), rng.uniform(-1, 1, (streams, count))
        places = some(rng, streams, tokens, 2 * count)
        action, pushed = np.full((streams, tokens), -1), np.zeros((streams, tokens))
        action[row, places], pushed[row, places] = np.tile(kinds, 2), np.tile(effects, 2)
        x = np.zeros((streams, tokens, self.features))
        y = rng.normal(0, 0.3, streams)
        noise = rng.normal(0, 0.02, (streams, tokens))
        for t in range(tokens):
            x[:, t, 0] = y
            y = KEEPS * y + pushed[:, t] + noise[:, t]
            x[:, t, 1] = y
        x[..., 2 : 2 + KINDS] = one_hot(action, KINDS)
        vital = np.zeros((streams, tokens), np.bool_)
        vital[row, places] = True
        planned = np.concatenate([np.full_like(kinds, -1), kinds], 1)
        question = np.zeros((streams, 2 * count, self.features))
        question[..., 1] = y[:, None]
        question[..., 2 + KINDS : 2 + 2 * KINDS] = one_hot(planned, KINDS)
        question[..., -1] = 1
        ahead = np.arange(1, AHEAD + 1)
        idle = (y[:, None] * KEEPS**ahead)[:, None].repeat(count, 1)
        acted = idle + effects[..., None] * KEEPS ** (ahead - 1)
        part = np.repeat([[0, 1]], count, 1).repeat(streams, 0)
        return Episodes(
            x, vital, question, end(streams, 2 * count, tokens), np.zeros((streams, 2 * count)),
            np.concatenate([idle, acted], 1), part,
        )  # fmt: skip

    def score(self, y: Floats, answer: Floats, part: Ints) -> Mapping[str, float]:
        """The share of the effect that is explained, and the share of both futures."""
        found, true = (v[part == 1] - v[part == 0] for v in (y, answer))
        return {"score": explained(found, true, about=0.0), "futures": explained(y, answer)}


class Stale(Probe):
    """An exogenous relation that goes stale while the dynamics stay, asked after a silence."""

    name = "stale"
    asks = (
        "what is the response now, after the driver may have stopped to matter, the dynamics stayed and it fell silent?"
    )
    one = "the dynamics are kept, a driver that stopped has no effect and one that goes on has its own"
    guess = "0, or half of the driver's effect where it is not known whether it stopped"
    levels = (8, 4, 2)
    level_is = "responses that were heard since the driver stopped"
    features, outputs = 5, 1

    @property
    def things(self) -> int:
        """The two relations have a score each, and the smaller one counts."""
        return 1

    def draw(self, rng: np.random.Generator, streams: int, tokens: int) -> Episodes:
        """Half of the streams lose the driver `level` tokens before the silence; each relation is asked twice."""
        heard = np.arange(tokens) < tokens - round(SILENT * tokens)
        keeps = rng.uniform(-1, 1, (streams, 1))
        gain = rng.choice([-1.0, 1.0], (streams, 1)) * rng.uniform(0.5, 1.0, (streams, 1))
        stopped = rng.random((streams, 1)) < 0.5
        matters = ~(stopped & (np.arange(tokens) >= heard.sum() - self.level))
        y = rng.uniform(-1, 1, (streams, tokens))
        z = rng.choice([-1.0, 1.0], y.shape) * rng.uniform(0.3, 1.0, y.shape)  # a weak one would tell nothing
        response = heard * (keeps * y + gain * matters * z + rng.normal(0, NOISE, y.shape))
        x = np.stack([y, z, response, np.broadcast_to(heard, y.shape), np.zeros_like(y)], -1)
        sizes = rng.choice([-1.0, 1.0], (streams, 4)) * rng.uniform(0.3, 1.0, (streams, 4))
        of_dynamics = np.array([True, True, False, False])
        question = np.zeros((streams, 4, self.features))
        question[..., 0], question[..., 1] = sizes * of_dynamics, sizes * ~of_dynamics
        question[..., -1] = 1
        answer = sizes * np.where(of_dynamics, keeps, gain * ~stopped)
        part = np.where(of_dynamics, 0, np.where(stopped, 1, 2))
        # what the driver did while it mattered rides along, so that the score can tell a stale answer's size
        answer = np.stack([answer, sizes * gain * ~of_dynamics], -1)
        vital = np.tile(heard, (streams, 1))
        return Episodes(x, vital, question, end(streams, 4, tokens), np.zeros((streams, 4)), answer, part)

    def score(self, y: Floats, answer: Floats, part: Ints) -> Mapping[str, float]:
        """The smallest of three: dynamics kept, stale driver forgotten, living driver kept.

        Half of the driver's effect is the best answer where it is not known whether it stopped, and scores 0.
        """
        true, was = answer[:, :1], answer[:, 1:]
        kept = explained(y[part == 0], true[part == 0], about=0.0)
        forgotten, going = (
            explained(y[part == p] - was[part == p] / 2, true[part == p] - was[part == p] / 2, about=0.0)
            for p in (1, 2)
        )
        return {"score": min(kept, forgotten, going), "kept": kept, "forgotten": forgotten, "going": going}
