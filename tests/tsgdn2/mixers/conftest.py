"""Windows for mixers that are tested token by token: packed commits with queries, and the same taken step by step."""

import numpy as np
import pytest
import torch

from tsgdn2.mixers.contract import Commits, Queries
from tsgdn2.sequence import Sequences

D = 12


class Window:
    """Commits x [N, D] of packed sequences, and queries [M, D] at any place of them."""

    def streams(self, rng, lengths, counts, places):
        """Packed commits with gaps and half-seen tokens, and queries at `places` ("one" behind each commit, "any")."""
        after, owner, offset = [], [], 0
        for row, length in enumerate(lengths):
            for place in range(-1, length):
                times = int(place >= 0) if places == "one" else int(rng.integers(0, 3))
                after += [offset + place] * times
                owner += [row] * times
            offset += length
        order = np.arange(len(after)) if places == "one" else rng.permutation(len(after))
        at = Sequences(lengths, counts, np.array(after, np.int64)[order], np.array(owner, np.int64)[order])
        x, asked = (torch.from_numpy(rng.normal(size=(n, D))) for n in (offset, len(after)))
        seen = torch.from_numpy(rng.choice([0.0, 0.25, 1.0, 1.0], size=offset))
        elapsed = torch.from_numpy(rng.choice([0.5, 1.0, 1.0, 3.5, 1e4], size=offset))
        return Commits(x, seen, elapsed, at), Queries(asked, torch.from_numpy(rng.random(len(after)) * 3))

    def carried(self, mixer, rows):
        """A state that a stream could be in; rates are not above 0."""
        state = {name: torch.randn_like(t) for name, t in mixer.initial_state(rows).items()}
        return state | {"rate": -state["rate"].abs()}

    def stepped(self, mixer, commits, queries, start, counts):
        """The same window token by token: commit outputs [N,D], query outputs [M,D], states."""
        y, read, states = torch.empty_like(commits.x), torch.empty_like(queries.x), []
        at = commits.at
        for row in range(at.size):
            state = {name: t[row : row + 1] for name, t in start.items()}
            for n in range(int(at.offsets[row]) - 1, int(at.offsets[row + 1])):
                if n >= at.offsets[row]:
                    done = torch.tensor([counts[row] + n - int(at.offsets[row])])
                    one = slice(n, n + 1)
                    token = commits.x[one], commits.observed[one], commits.elapsed[one]
                    y[n], state = mixer.step(*token, done, state)
                for m in np.flatnonzero((at.owner == row) & (at.after == n)):
                    read[m] = mixer.read(queries.x[m : m + 1], queries.elapsed[m : m + 1], state)
            states.append(state)
        return y, read, {name: torch.cat([state[name] for state in states]) for name in start}


@pytest.fixture(scope="session")
def window():
    return Window()
