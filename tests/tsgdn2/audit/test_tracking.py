import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tsgdn2.audit import AuditConfig, Eviction, OnlineAudit, retained_keys
from tsgdn2.errors import ConfigError, StreamError

H, K, V = 3, 4, 3


class Tokens(NamedTuple):
    k: Tensor
    e: Tensor
    z: Tensor
    g: Tensor
    time: Tensor
    cohort: Tensor


def tokens(count: int, *, seed: int = 0) -> Tokens:
    """One stream of slot 0, [T,1,..] in float64."""
    r = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(count, 1, *shape, generator=r, dtype=torch.float64)

    k = torch.nn.functional.normalize(rand(H, K) - 0.5, dim=-1)
    e, z, g = rand(1, 1) * rand(H, K) * k, rand(H, V) - 0.5, -0.15 * rand(H, K)
    return Tokens(k, e, z, g, torch.arange(count)[:, None], (rand() * 3).long())


def step(state: Tensor, x: Tokens, t: int) -> Tensor:
    decayed = x.g[t].exp()[..., None] * state
    y = (decayed * x.e[t][..., None]).sum(-2)
    return decayed + x.k[t][..., None] * (x.z[t] - y)[..., None, :]


def run(
    audit: OnlineAudit, x: Tokens, *, state: Tensor | None = None, span: range | None = None
) -> tuple[Tensor, list[Eviction]]:
    state = torch.zeros(1, H, K, V, dtype=torch.float64) if state is None else state
    events = []
    for t in span or range(len(x.k)):
        events += audit.update(
            torch.tensor([0]), 1, state, x.k[t], x.e[t], x.z[t], x.g[t], None, x.time[t], x.cohort[t]
        )
        state = step(state, x, t)
    return state, events


def new(dtype: torch.dtype = torch.float64, **config: object) -> OnlineAudit:
    given = {"layers": "last", "heads": "all", **config}
    audit = OnlineAudit(AuditConfig(**given), layers=2, heads=H, key_dim=K, value_dim=V, dtype=dtype)
    audit.allocate(1)
    return audit


def test_pinned_writes_stay_and_are_reported_once() -> None:
    audit, x = new(ring=4, reservoir=2, pinned=2, heads=(1,), threshold=0.4), tokens(60, seed=1)
    assert audit.pin(0, "next") == 0
    state, _ = run(audit, x, span=range(10))
    assert audit.pin(0, 8) == 8
    assert audit.pin(0, 8) == 8
    with pytest.raises(StreamError, match="all 2 places"):
        audit.pin(0, 9)
    _, events = run(audit, x, state=state, span=range(10, 60))
    seen = audit.readings(0).heads[0].tracked
    pins = {int(w) for w, place in zip(seen.write, seen.place, strict=True) if place == "pinned"}
    assert pins == {0, 8}
    told = [event for event in events if event.write == 8]
    assert [event.tracked for event in told][:1] == ["pinned"]
    assert len({(event.write, event.time) for event in told}) == len(told)
    k, e, _, g = (t.transpose(0, 1) for t in x[:4])
    r = retained_keys(k, e, g)
    assert abs(seen.retention[list(seen.write).index(0)] - float(r[0, 0, 1].norm())) < 1e-12
    audit.unpin(0, 8)
    with pytest.raises(StreamError, match="not pinned"):
        audit.unpin(0, 8)
    with pytest.raises(StreamError, match="no longer tracked"):
        audit.pin(0, 20)
    assert audit.pin(0, 500) == 500


def test_the_reservoir_is_a_uniform_draw_from_what_left_the_ring() -> None:
    drawn = torch.zeros(64)
    for seed in range(100):
        audit = new(ring=1, reservoir=8, pinned=0, heads=(0,), ledger=False, seed=seed)
        x = tokens(65)
        run(audit, x)
        seen = audit.readings(0).heads[0].tracked
        drawn[[int(w) for w, place in zip(seen.write, seen.place, strict=True) if place == "reservoir"]] += 1
    assert drawn.sum() == 100 * 8
    quarters = drawn.reshape(4, 16).sum(1)
    assert ((quarters - 200).abs() < 4 * math.sqrt(200)).all()


def test_the_event_queue_is_bounded_and_counts_what_it_drops() -> None:
    audit = new(threshold=0.6, events=3)
    _, events = run(audit, tokens(40))
    assert audit.dropped == len(events) - 3
    assert audit.drain() == events[-3:]


def test_layers_and_heads_are_sampled_as_configured() -> None:
    assert new(heads=(0,)).pairs == ((1, 0),)
    assert new(layers="all", heads=(0, 2)).pairs == ((0, 0), (0, 2), (1, 0), (1, 2))
    wrong = ({"heads": (3,)}, {"layers": (2,)}, {"layers": (1, 0)}, {"ring": 0}, {"cohorts": ()}, {"threshold": 1.0})
    for bad in wrong:
        with pytest.raises(ConfigError):
            new(**bad)
    with pytest.raises(ConfigError, match="dtype must"):
        new(dtype=torch.bfloat16)


def test_both_layers_are_followed_apart() -> None:
    audit, x = new(layers="all", heads=(1,)), tokens(30)
    state = torch.zeros(1, H, K, V, dtype=torch.float64)
    other = state
    y = tokens(30, seed=9)
    for t in range(30):
        for layer, (s, w) in enumerate(((state, x), (other, y))):
            audit.update(torch.tensor([0]), layer, s, w.k[t], w.e[t], w.z[t], w.g[t], None, x.time[t], x.cohort[t])
        state, other = step(state, x, t), step(other, y, t)
    assert audit.check(0, torch.stack([state[0, 1], other[0, 1]])) < 1e-12
    assert [(head.layer, head.head) for head in audit.readings(0).heads] == [(0, 1), (1, 1)]
