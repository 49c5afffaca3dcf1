import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsgdn2.audit import (
    AlertLimits,
    AuditConfig,
    Eviction,
    OnlineAudit,
    energy_ledger,
    eviction_events,
    eviction_matrix,
    occupancy,
    retained_keys,
)
from tsgdn2.errors import CheckpointError, SchemaError

H, K, V = 3, 4, 3


class Tokens(NamedTuple):
    k: Tensor
    e: Tensor
    z: Tensor
    g: Tensor
    factor: Tensor
    time: Tensor
    cohort: Tensor


def tokens(
    count: int, rows: int, *, seed: int = 0, dtype: torch.dtype = torch.float64, factors: bool = False
) -> Tokens:
    """[T,n,..]: masked observations, gaps, cohorts, and now and then a norm bound."""
    r = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(count, rows, *shape, generator=r, dtype=torch.float64)

    k = torch.nn.functional.normalize(rand(H, K) - 0.5, dim=-1)
    m = (rand(1, 1) * 2 - 0.3).clamp(0, 1)
    gap = 1 + (rand() * 3).long() * (rand() < 0.3)
    g = -0.15 * gap[..., None, None] * rand(H, K)
    factor = torch.where(rand(H) < 0.1, 0.7, 1.0) if factors else torch.ones(count, rows, H, dtype=torch.float64)
    parts = (k, m * rand(H, K) * k, m * (rand(H, V) - 0.5), g, factor)
    return Tokens(*(t.to(dtype) for t in parts), gap.cumsum(0), (rand() * 3).long())


def step(state: Tensor, x: Tokens, t: int) -> Tensor:
    """The recurrence and the bound, [n,H,K,V]."""
    decayed = x.g[t].exp()[..., None] * state
    y = (decayed * x.e[t][..., None]).sum(-2)
    return (decayed + x.k[t][..., None] * (x.z[t] - y)[..., None, :]) * x.factor[t][..., None, None]


def run(
    audit: OnlineAudit, x: Tokens, slots: list[int], *, state: Tensor | None = None, span: range | None = None,
    checked: float | None = None,
) -> tuple[Tensor, list[Eviction]]:  # fmt: skip
    """Feed a stream; with `checked`, the cohorts must sum to the state after every update."""
    state = torch.zeros(len(slots), H, K, V, dtype=x.k.dtype) if state is None else state
    events = []
    for t in span or range(len(x.k)):
        for layer in range(2):
            events += audit.update(
                torch.tensor(slots), layer, state, x.k[t], x.e[t], x.z[t], x.g[t], x.factor[t], x.time[t], x.cohort[t]
            )
        state = step(state, x, t)
        if checked is not None:
            for row, slot in enumerate(slots):
                sampled = torch.stack([state[row, head] for _, head in audit.pairs])
                assert audit.check(slot, sampled) <= checked
    return state, events


def new(slots: int = 8, dtype: torch.dtype = torch.float64, **config: object) -> OnlineAudit:
    given = {"layers": "last", "heads": "all", **config}
    audit = OnlineAudit(AuditConfig(**given), layers=2, heads=H, key_dim=K, value_dim=V, dtype=dtype)
    audit.allocate(slots)
    return audit


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 3), count=st.integers(1, 40), ring=st.integers(1, 5),
    reservoir=st.integers(0, 3), pinned=st.integers(0, 2), ledger=st.booleans(), double=st.booleans(),
    spread=st.booleans(), begun=st.booleans(),
)  # fmt: skip
def test_cohorts_sum_to_the_state_after_every_update(
    seed: int, rows: int, count: int, ring: int, reservoir: int, pinned: int, ledger: bool, double: bool,
    spread: bool, begun: bool,
) -> None:  # fmt: skip
    dtype = torch.float64 if double else torch.float32
    audit = new(dtype=dtype, ring=ring, reservoir=reservoir, pinned=pinned, ledger=ledger, heads=(0, 2))
    x = tokens(count, rows, seed=seed, dtype=dtype, factors=True)
    slots = [3 * row if spread else row + 1 for row in range(rows)]
    state = torch.randn(rows, H, K, V, generator=torch.Generator().manual_seed(seed)).to(dtype) if begun else None
    run(audit, x, slots, state=state, checked=1e-10 if double else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_online_retention_ledger_and_occupancy_equal_the_offline_ones(dtype: torch.dtype) -> None:
    near = 1e-10 if dtype == torch.float64 else 1e-4
    x, audit = tokens(70, 2, dtype=dtype), new(dtype=dtype)
    x = x._replace(g=x.g / 4, time=torch.arange(70)[:, None].expand(70, 2))
    state, _ = run(audit, x, [5, 2])
    k, e, z, g = (t.transpose(0, 1).double() for t in x[:4])
    r, full, ledger = retained_keys(k, e, g), occupancy(k, e, z, g), energy_ledger(k, e, z, g)
    matrix = eviction_matrix(k, e, g)
    for row, slot in enumerate([5, 2]):
        readings = audit.readings(slot)
        assert (readings.writes, readings.first_time, readings.last_time) == (70, 0, 69)
        for h, head in enumerate(readings.heads):
            seen = head.tracked
            assert len(seen.write) == 32
            assert seen.write[-16:].tolist() == list(range(54, 70))
            for n, i in enumerate(seen.write.tolist()):
                assert abs(seen.retention[n] - r[row, i, h].norm() / k[row, i, h].norm()) <= near
                assert abs(seen.decay[n] - matrix.decay[row, h, i].sum()) <= near
                assert abs(seen.erase[n] - matrix.erase[row, h, i].sum()) <= near
                top = matrix.erase[row, h, i].max()
                assert abs(seen.evictor_share[n] - top.clamp_min(0)) <= near
                if top > near:
                    assert seen.evictor[n] == matrix.erase[row, h, i].argmax() == seen.evictor_time[n]
            found = (head.retained, head.directions, head.mean_age, head.signal, head.crosstalk)
            for value, column in zip(found, full, strict=True):
                assert abs(value - float(column[row, h, 0])) <= near * max(1.0, abs(value))
            for cause in ("decay", "erase", "write", "interaction"):
                assert abs(head.ledger[cause] - float(getattr(ledger, cause)[row, :, h].sum())) <= 20 * near
            assert head.residual <= near
            assert abs(head.energy - float(state[row, h].double().square().sum())) <= near
            assert abs(sum(head.cohorts.values())) > 0


def test_online_evictions_equal_the_offline_ones_of_the_tracked_writes() -> None:
    x, audit = tokens(60, 2, seed=3), new(ring=60, reservoir=0, threshold=0.4)
    x = x._replace(time=torch.arange(60)[:, None].expand(60, 2))
    _, events = run(audit, x, [1, 4])
    k, e, _, g = (t.transpose(0, 1) for t in x[:4])
    offline = eviction_events(k, e, g, threshold=0.4, top=1)
    falls = {}
    for event in events:
        falls.setdefault((event.slot, event.head, event.write), []).append(event)
    assert sum(map(len, falls.values())) == int(offline.evictions.sum()) > 100
    for (slot, head, write), (first, *_) in falls.items():
        at = ([1, 4].index(slot), head, write)
        assert (first.time, first.birth, first.layer, first.tracked) == (offline.time[at], write, 1, "ring")
        assert first.cause == ("decay", "erase")[int(offline.cause[at])]
        assert abs(first.decay - offline.decay[at]) < 1e-10
        assert abs(first.erase - offline.erase[at]) < 1e-10
        assert first.evictor == offline.evictors[at][0]
        assert abs(first.evictor_energy - offline.energies[at][0]) < 1e-10
        assert first.retention < 0.4
    assert audit.drain() == events
    assert audit.drain() == []


def test_the_bound_is_booked_as_decay_and_the_ledger_still_closes() -> None:
    x, audit = tokens(50, 1, factors=True), new()
    state, _ = run(audit, x, [0])
    for h, head in enumerate(audit.readings(0).heads):
        books = head.ledger
        assert 0 < books["bound"] < books["decay"]
        left = books["write"] + books["interaction"] - books["decay"] - books["erase"]
        assert abs(left - float(state[0, h].square().sum())) < 1e-12
        assert head.residual < 1e-12
        seen = head.tracked
        assert abs(seen.retention**2 + seen.decay + seen.erase - 1).max() < 1e-12


def test_a_row_depends_neither_on_its_slot_nor_on_its_neighbours() -> None:
    x = tokens(80, 5, dtype=torch.float32, factors=True)
    together, scattered, alone = new(dtype=torch.float32), new(40, dtype=torch.float32), new(dtype=torch.float32)
    run(together, x, [0, 1, 2, 3, 4])
    run(scattered, x, [31, 7, 22, 5, 3])
    run(alone, Tokens(*(t[:, 2:3].clone() for t in x)), [6])
    for name, tensor in together.state_tensors().items():
        if tensor.ndim > 2:
            assert torch.equal(tensor[:, 2], scattered.state_tensors()[name][:, 22])
            assert torch.equal(tensor[:, 2], alone.state_tensors()[name][:, 6])


def test_saving_and_loading_in_mid_stream_goes_on_bit_for_bit() -> None:
    x = tokens(90, 2, dtype=torch.float32, factors=True)
    straight, first, second = (new(dtype=torch.float32, threshold=0.3) for _ in range(3))
    for audit in (straight, first):
        audit.pin(1, 60)
    _, whole = run(straight, x, [1, 2])
    state, _ = run(first, x, [1, 2], span=range(45))
    saved = first.state_tensors()
    run(first, x, [1, 2], state=state, span=range(45, 50))  # the copy must not follow the original
    second.load_state_tensors(saved)
    run(second, x, [1, 2], state=state, span=range(45, 90))
    assert second.drain() == whole
    for name, tensor in straight.state_tensors().items():
        if not name.startswith("event"):
            assert torch.equal(tensor, second.state_tensors()[name])
    assert second.readings(1).heads[0].tracked.place[0] == straight.readings(1).heads[0].tracked.place[0]


def test_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    audit = new()
    run(audit, tokens(5, 1), [0])
    kept = audit.state_tensors()
    for bad in (
        {name: t for name, t in kept.items() if name != "ints"},
        {name: t for name, t in kept.items() if name != "event_ints"},
        {**kept, "schema": torch.tensor(99)},
        {**kept, "shadow": kept["shadow"].float()},
        {**kept, "sums": kept["sums"][:, :3]},
    ):
        with pytest.raises(CheckpointError):
            audit.load_state_tensors(bad)
    assert all(torch.equal(t, audit.state_tensors()[name]) for name, t in kept.items())


def test_growing_keeps_and_resetting_forgets() -> None:
    audit = new(2)
    run(audit, tokens(20, 2), [0, 1])
    before = audit.state_tensors()
    size = audit.nbytes
    audit.allocate(5)
    assert audit.slots == 5
    assert audit.nbytes == size * 5 // 2
    assert all(torch.equal(t, audit.state_tensors()[n][:, :2]) for n, t in before.items() if t.ndim > 2)
    audit.reset([0])
    assert audit.readings(0).writes == 0
    assert audit.readings(0).alerts == ()
    assert audit.readings(1).writes == 20
    fresh = new(5).state_tensors()
    assert all(torch.equal(t[:, 0], audit.state_tensors()[n][:, 0]) for n, t in fresh.items() if t.ndim > 2)


def kinds(audit: OnlineAudit, slot: int = 0, **limits: float) -> set[str]:
    return {alert.kind for alert in audit.readings(slot, limits=AlertLimits(writes=50, **limits)).alerts}


def test_alerts_stay_quiet_on_a_healthy_stream_and_each_can_fire() -> None:
    x = tokens(200, 1, dtype=torch.float32)
    healthy = new(dtype=torch.float32)
    x = x._replace(g=x.g * 3, z=x.z * torch.randn(200, 1, H, 1, generator=torch.Generator().manual_seed(0)))
    state, _ = run(healthy, x, [0])
    assert kinds(healthy) == set()
    assert "half_life" in kinds(healthy, horizon=100.0)

    run(healthy, x, [0], state=state + 0.5, span=range(1))
    assert "ledger" in kinds(healthy)

    lasting = new(dtype=torch.float32)
    run(lasting, x._replace(e=0 * x.e, g=0 * x.g, z=x.z.abs(), time=torch.arange(200)[:, None]), [0])
    assert kinds(lasting, occupancy=0.5) == {"never_forgets", "occupancy", "crosstalk"}

    growing = new(dtype=torch.float32)
    run(growing, x._replace(e=0 * x.e, g=0 * x.g + 0.05), [0])
    assert "expansion" in kinds(growing)

    for ledger in (True, False):
        broken = new(dtype=torch.float32, ledger=ledger)
        z = x.z.clone()
        z[20] = math.nan
        run(broken, x._replace(z=z), [0], span=range(30))
        assert kinds(broken) == {"non_finite"}


def test_bad_updates_are_named_and_change_nothing() -> None:
    audit, x = new(4), tokens(3, 2)
    run(audit, x, [0, 1])
    kept = audit.state_tensors()
    state = torch.zeros(2, H, K, V, dtype=torch.float64)
    good = {
        "slots": torch.tensor([0, 1]), "layer": 1, "before": state, "k": x.k[0], "e": x.e[0], "z": x.z[0],
        "g": x.g[0], "factor": None, "time": x.time[0], "cohort": x.cohort[0],
    }  # fmt: skip
    for name, value in (
        ("slots", torch.tensor([0, 4])), ("before", state[:, :1]), ("k", x.k[0, :1]), ("z", x.k[0].repeat(1, 1, 2)),
        ("factor", torch.ones(2)), ("cohort", torch.tensor([0, 3])), ("time", x.time[0, :1]),
    ):  # fmt: skip
        with pytest.raises(SchemaError, match=f"^{name} must"):
            audit.update(**{**good, name: value})
    assert all(torch.equal(t, audit.state_tensors()[name]) for name, t in kept.items())
    assert audit.update(**{**good, "layer": 0}) == []
    assert not audit.samples(0)
    with pytest.raises(SchemaError, match="slot must"):
        audit.readings(9)
    with pytest.raises(SchemaError, match="state must"):
        audit.check(0, state[0, :1])


def test_updates_inside_and_outside_inference_mode_are_the_same() -> None:
    x, plain, mixed = tokens(6, 1), new(), new()
    run(plain, x, [0])
    with torch.inference_mode():
        state, _ = run(mixed, x, [0], span=range(3))
    run(mixed, x, [0], state=state.clone(), span=range(3, 6))
    assert all(torch.equal(t, mixed.state_tensors()[name]) for name, t in plain.state_tensors().items())
