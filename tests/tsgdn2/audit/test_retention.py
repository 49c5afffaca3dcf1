import math

import pytest
import torch
from torch import Tensor

from tsgdn2.audit import (
    carried_state,
    cohort_states,
    energy_ledger,
    eviction_matrix,
    largest_gain,
    occupancy,
    read_back,
    retained_keys,
    retention_matrix,
)
from tsgdn2.errors import SchemaError

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def stream(
    tokens: int, *, seed: int = 0, B: int = 2, H: int = 2, K: int = 5, V: int = 3, decay: float = 0.3
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """k, e, z, g and an initial state, with masked tokens, in float64."""
    r = torch.Generator().manual_seed(seed)
    k = torch.nn.functional.normalize(torch.randn(B, tokens, H, K, generator=r, dtype=torch.float64), dim=-1)
    m = (torch.rand(B, tokens, 1, 1, generator=r, dtype=torch.float64) * 2 - 0.4).clamp(0, 1)
    e = m * torch.rand(B, tokens, H, K, generator=r, dtype=torch.float64) * k
    z = m * torch.randn(B, tokens, H, V, generator=r, dtype=torch.float64)
    g = -decay * torch.rand(B, tokens, H, K, generator=r, dtype=torch.float64)
    return k, e, z, g, torch.randn(B, H, K, V, generator=r, dtype=torch.float64)


def loop(k: Tensor, e: Tensor, z: Tensor, g: Tensor, state: Tensor) -> list[Tensor]:
    """States before every token and at the end, token by token, head by head, in float64."""
    states = [state.double()]
    eye = torch.eye(k.shape[-1], dtype=torch.float64)
    for t in range(k.shape[1]):
        now = torch.empty_like(states[-1])
        for b in range(k.shape[0]):
            for h in range(k.shape[2]):
                kt, et, zt, gt = (x[b, t, h].double() for x in (k, e, z, g))
                now[b, h] = (eye - torch.outer(kt, et)) @ torch.diag(gt.exp()) @ states[-1][b, h] + torch.outer(kt, zt)
        states.append(now)
    return states


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 63])
def test_retained_writes_sum_to_the_state(tokens: int, dtype: torch.dtype) -> None:
    k, e, z, g, state = (t.to(dtype) for t in stream(tokens))
    r = retained_keys(k, e, g)
    total = torch.einsum("bthk,bthv->bhkv", r, z) + carried_state(k, e, g, state)
    assert r.dtype == total.dtype == dtype
    assert (total.double() - loop(k, e, z, g, state)[-1]).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_replay_without_a_write_under_the_same_gates_differs_by_that_write_alone(dtype: torch.dtype) -> None:
    k, e, z, g, state = (t.to(dtype) for t in stream(23))
    whole, r = loop(k, e, z, g, state)[-1], retained_keys(k, e, g)
    for i in (0, 7, 22):
        without = z.clone()
        without[:, i] = 0
        gone = whole - loop(k, e, without, g, state)[-1]
        write = torch.einsum("bhk,bhv->bhkv", r[:, i].double(), z[:, i].double())
        assert (gone - write).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tokens", [1, 3, 16, 37])
def test_the_ledger_closes_and_its_energies_are_the_states(tokens: int, dtype: torch.dtype) -> None:
    k, e, z, g, state = (t.to(dtype) for t in stream(tokens))
    ledger = energy_ledger(k, e, z, g, initial_state=state)
    energy = torch.stack([s.square().sum((-2, -1)) for s in loop(k, e, z, g, state)], 1)
    assert (ledger.before.double() - energy[:, :-1]).abs().max() <= TOLERANCE[dtype] * energy.max()
    assert (ledger.after.double() - energy[:, 1:]).abs().max() <= TOLERANCE[dtype] * energy.max()
    assert ledger.residual.max() <= TOLERANCE[dtype]
    assert all(column.shape == k.shape[:3] and column.dtype == dtype for column in ledger)


def test_a_ledger_without_initial_state_starts_empty() -> None:
    k, e, z, g, _ = stream(9)
    assert (energy_ledger(k, e, z, g).before[:, 0] == 0).all()
    assert (energy_ledger(k, e, z, g).transition_gain[:, 0] == 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_energies_of_every_write_telescope_to_its_key(dtype: torch.dtype) -> None:
    k, e, _, g, _ = (t.to(dtype) for t in stream(40))
    decay, erase, retained = eviction_matrix(k, e, g)
    size = k.square().sum(-1).transpose(1, 2)
    assert (retained + decay.sum(-1) + erase.sum(-1) - size).abs().max() <= TOLERANCE[dtype]
    assert (retained - retained_keys(k, e, g).square().sum(-1).transpose(1, 2)).abs().max() <= TOLERANCE[dtype]
    assert (torch.triu(erase, 1) == erase).all()  # nobody is evicted before it is written, or by itself


def test_two_orthonormal_keys_erased_by_a_third_token_come_out_exactly() -> None:
    # Write (3, 4) at key 1 and (1, 0) at key 2; token 3 halves nothing, erases half of key 1 and writes (0, 2) there.
    k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)[None, :, None]
    e = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.5, 0.0]], dtype=torch.float64)[None, :, None]
    z = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)[None, :, None]
    g = torch.zeros_like(k)
    r = retained_keys(k, e, g)[0, :, 0]
    assert r.tolist() == [[0.5, 0.0], [0.0, 1.0], [1.0, 0.0]]
    ledger = energy_ledger(k, e, z, g)
    rows = [column[0, :, 0].tolist() for column in ledger]
    assert rows == [
        [0.0, 25.0, 26.0],  # before
        [0.0, 0.0, 0.0],  # decay
        [0.0, 0.0, 18.75],  # erase: 25 - 25 / 4
        [25.0, 1.0, 4.0],  # write
        [0.0, 0.0, 8.0],  # interaction: 2 (0, 2).(1.5, 2)
        [25.0, 26.0, 19.25],  # after: |(1.5, 4)|^2 + 1
    ]
    full = occupancy(k, e, z, g)
    assert [column.item() for column in full[:4]] == [2.25, 2.25**2 / (1.25**2 + 1), (2 * 0.25 + 1) / 2.25, 11.25]
    assert full.crosstalk.item() == 19.25 - 11.25
    state = torch.tensor([[[[1.5, 4.0], [1.0, 0.0]]]], dtype=torch.float64)
    answer = read_back(state, k, r[None, :, None], z)
    assert answer.signal[0, :, 0].tolist() == [[1.5, 2.0], [1.0, 0.0], [0.0, 2.0]]
    assert answer.crosstalk[0, :, 0].tolist() == [[0.0, 2.0], [0.0, 0.0], [1.5, 2.0]]


def test_two_orthonormal_keys_under_decay_alone_come_out_exactly() -> None:
    # Channel 1 keeps half per token, channel 2 a quarter.
    k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)[None, :, None]
    z = torch.tensor([[2.0], [8.0], [0.0]], dtype=torch.float64)[None, :, None]
    g = torch.tensor([0.5, 0.25], dtype=torch.float64).log().expand(1, 3, 1, 2)
    e = torch.zeros_like(k)
    near = {"rtol": 0.0, "atol": 1e-15}
    kept = torch.tensor([[0.25, 0], [0, 0.25], [0, 0]]).double()
    torch.testing.assert_close(retained_keys(k, e, g)[0, :, 0], kept, **near)
    rho = retention_matrix(k, e, g)[0, 0]
    torch.testing.assert_close(rho, torch.tensor([[1, 0, 0], [0.5, 1, 0], [0.25, 0.25, 0]]).double(), **near)
    ledger = energy_ledger(k, e, z, g)
    torch.testing.assert_close(ledger.before[0, :, 0], torch.tensor([0.0, 4, 65]).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(ledger.decay[0, :, 0], torch.tensor([0.0, 3, 60.75]).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(ledger.after[0, :, 0], torch.tensor([4.0, 65, 4.25]).double(), rtol=0, atol=1e-12)
    assert (ledger.erase == 0).all()
    decay = eviction_matrix(k, e, g).decay[0, 0]
    torch.testing.assert_close(decay, torch.tensor([[0, 0.75, 0.1875], [0, 0, 0.9375], [0, 0, 0]]).double(), **near)


def test_retention_at_chosen_times_is_that_of_every_time() -> None:
    k, e, _, g, _ = stream(30)
    every, some = retention_matrix(k, e, g), retention_matrix(k, e, g, times=[0, 4, 5, 21, 29])
    assert (every[:, :, [0, 4, 5, 21, 29]] - some).abs().max() < 1e-13
    direct = retained_keys(k[:, :22], e[:, :22], g[:, :22]).norm(dim=-1).transpose(1, 2)
    assert (some[:, :, 3, :22] - direct).abs().max() < 1e-13
    assert (some[:, :, 3, 22:] == 0).all()


def test_retention_survives_a_hard_reset_and_a_zero_key() -> None:
    k, e, _, g, _ = stream(20)
    g[:, 10] = -1e4
    g[:, 12] = -math.inf
    k[:, 15], e[:, 15] = 0, 0
    rho = retention_matrix(k, e, g)
    assert torch.isfinite(rho).all()
    assert (rho[:, :, 19, :12] == 0).all()
    assert (rho[:, :, :, 15] == 0).all()


def test_occupancy_follows_its_recursion_at_every_time() -> None:
    k, e, z, g, _ = stream(25)
    full = occupancy(k, e, z, g, times=range(25))
    C = aged = weighted = torch.zeros(2, 2, 5, 5, dtype=torch.float64)
    states = loop(k, e, z, g, torch.zeros(2, 2, 5, 3))
    for t in range(25):
        P = (torch.eye(5) - k[:, t, :, :, None] * e[:, t, :, None, :]) * g[:, t, :, None, :].exp()
        one = k[:, t, :, :, None] * k[:, t, :, None, :]
        aged = P @ (aged + C) @ P.mT
        C = P @ C @ P.mT + one
        weighted = P @ weighted @ P.mT + z[:, t].square().sum(-1)[..., None, None] * one
        trace = C.diagonal(dim1=-2, dim2=-1).sum(-1)
        signal = weighted.diagonal(dim1=-2, dim2=-1).sum(-1)
        expected = (
            trace,
            trace**2 / C.square().sum((-2, -1)),
            aged.diagonal(dim1=-2, dim2=-1).sum(-1) / trace,
            signal,
            states[t + 1].square().sum((-2, -1)) - signal,
        )
        for column, value in zip(full, expected, strict=True):
            assert (column[..., t] - value).abs().max() < 1e-11
    assert (full.directions <= 5 + 1e-12).all()


def test_crosstalk_is_the_sum_over_pairs_of_writes() -> None:
    k, e, z, g, _ = stream(12)
    r = retained_keys(k, e, g)
    pairs = torch.einsum("bihk,bjhk->bhij", r, r) * torch.einsum("bihv,bjhv->bhij", z, z)
    off = pairs.sum((-2, -1)) - pairs.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert (occupancy(k, e, z, g).crosstalk[..., 0] - off).abs().max() < 1e-11


def test_reading_back_splits_the_answer() -> None:
    k, e, z, g, state = stream(18)
    final, r = loop(k, e, z, g, state)[-1], retained_keys(k, e, g)
    answer = read_back(final, k, r, z)
    assert (answer.signal + answer.crosstalk - torch.einsum("bhkv,bthk->bthv", final, k)).abs().max() < 1e-12
    others = z.clone()
    others[:, 5] = 0
    left = torch.einsum("bhkv,bhk->bhv", loop(k, e, others, g, state)[-1], k[:, 5])
    assert (answer.crosstalk[:, 5] - left).abs().max() < 1e-12


def test_cohorts_and_what_was_carried_in_sum_to_the_state() -> None:
    k, e, z, g, state = stream(31)
    group = torch.arange(31).expand(2, -1) % 4
    shadows = cohort_states(k, e, z, g, group, 4)
    total = shadows.sum(1) + carried_state(k, e, g, state)
    assert (total - loop(k, e, z, g, state)[-1]).abs().max() < 1e-11
    alone = loop(k, e, torch.where((group == 2)[..., None, None], z, 0.0), g, torch.zeros_like(state))[-1]
    assert (shadows[:, 2] - alone).abs().max() < 1e-11


def test_the_largest_gain_bounds_what_a_transition_does() -> None:
    k, e, z, g, state = stream(40, decay=0.0)
    gain, ledger = largest_gain(k, e, g), energy_ledger(k, e, z, g, initial_state=state)
    assert (ledger.transition_gain <= gain + 1e-9).all()
    assert 1 < gain.max() <= 2 / math.sqrt(3) + 1e-9  # the bound for b in [0, 1]^K, math.md 2


@pytest.mark.parametrize(
    ("change", "name"),
    [({"k": 3}, "k"), ({"e": 1}, "e"), ({"z": 2}, "z"), ({"state": 0}, "initial_state")],
)
def test_shapes_that_do_not_fit_are_named(change: dict[str, int], name: str) -> None:
    given = dict(zip(("k", "e", "z", "g", "state"), stream(6), strict=True))
    given = {key: value.flatten(0, 1) if key in change else value for key, value in given.items()}
    with pytest.raises(SchemaError, match=f"^{name} must"):
        energy_ledger(given["k"], given["e"], given["z"], given["g"], initial_state=given["state"])


def test_integer_keys_and_unsorted_times_are_refused() -> None:
    k, e, _, g, _ = stream(6)
    with pytest.raises(SchemaError, match="k must be floating point"):
        retained_keys(k.long(), e, g)
    with pytest.raises(SchemaError, match="strictly increasing"):
        retention_matrix(k, e, g, times=[3, 2])
    with pytest.raises(SchemaError, match="strictly increasing"):
        retention_matrix(k, e, g, times=[6])
