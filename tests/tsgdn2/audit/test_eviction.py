import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tsgdn2.audit import (
    AlertLimits,
    HeadFacts,
    eviction_events,
    eviction_matrix,
    half_life,
    judge,
    kaplan_meier,
    retention_matrix,
    window_alerts,
)
from tsgdn2.audit import eviction as eviction_module
from tsgdn2.errors import ConfigError, SchemaError


def window(tokens: int, *, B: int = 2, H: int = 2, K: int = 4, V: int = 3, decay: float = 0.2) -> list[Tensor]:
    r = torch.Generator().manual_seed(tokens)
    k = torch.nn.functional.normalize(torch.randn(B, tokens, H, K, generator=r, dtype=torch.float64), dim=-1)
    e = torch.rand(B, tokens, H, K, generator=r, dtype=torch.float64) * k
    z = torch.randn(B, tokens, H, V, generator=r, dtype=torch.float64)
    return [k, e, z, -decay * torch.rand(B, tokens, H, K, generator=r, dtype=torch.float64)]


def adversarial(tokens: int) -> list[Tensor]:
    """Two keys whose channel-wise erases expand what they meet (math.md 2), without decay, from a first write."""
    k = torch.zeros(1, tokens, 1, 2, dtype=torch.float64)
    e, z = torch.zeros_like(k), torch.zeros_like(k)
    for t in range(tokens):
        # An erase address is one channel of its key; two of these transitions multiply an eigenvector by 1.25.
        angle = math.radians(66 if t % 2 else 24)
        k[0, t, 0] = torch.tensor([math.cos(angle), math.sin(angle)])
        e[0, t, 0, 1 - t % 2] = k[0, t, 0, 1 - t % 2] if t else 0.0
    z[0, 0, 0] = 1.0
    return [k, e, z, torch.zeros_like(k)]


def slow_events(k: Tensor, e: Tensor, g: Tensor, threshold: float, hysteresis: float) -> list[tuple[int, ...]]:
    """(row, head, write, first time, falls) token by token."""
    rho = retention_matrix(k, e, g)
    rows = []
    for b in range(k.shape[0]):
        for h in range(k.shape[2]):
            for i in range(k.shape[1]):
                alive, falls, first = True, 0, -1
                for t in range(i, k.shape[1]):
                    if alive and rho[b, h, t, i] < threshold:
                        alive, falls, first = False, falls + 1, t if first < 0 else first
                    elif rho[b, h, t, i] > threshold + hysteresis:
                        alive = True
                rows.append((b, h, i, first, falls))
    return rows


@pytest.mark.parametrize(("threshold", "hysteresis"), [(0.1, 0.05), (0.5, 0.05), (0.6, 0.0)])
def test_events_are_those_of_a_walk_along_every_write(
    threshold: float, hysteresis: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction_module, "_BLOCK", 7)
    k, e, _, g = window(37)
    events = eviction_events(k, e, g, threshold=threshold, hysteresis=hysteresis)
    for b, h, i, first, falls in slow_events(k, e, g, threshold, hysteresis):
        assert (events.time[b, h, i], events.evictions[b, h, i]) == (first, falls)
    decay, erase, retained = eviction_matrix(k, e, g)
    assert (events.retention - retained.sqrt()).abs().max() < 1e-12
    at = events.time.where(~events.censored, torch.tensor(36))
    until = torch.arange(37) <= at[..., None]
    assert (events.decay - (decay * until).sum(-1)).abs().max() < 1e-12
    assert (events.erase - (erase * until).sum(-1)).abs().max() < 1e-12
    assert torch.equal(events.cause == 1, ~events.censored & (events.erase > events.decay))
    best = (erase * until).topk(3, -1)
    assert torch.equal(events.evictors, torch.where(best.values > 0, best.indices, -1))


def test_hysteresis_counts_a_wobble_once() -> None:
    # Retention of the only write, in one channel: 1, .09, .12, .09, .16, .09.  exp(g) > 1 here only to steer it.
    wanted = torch.tensor([1.0, 0.09, 0.12, 0.09, 0.16, 0.09], dtype=torch.float64)
    g = torch.zeros(1, 6, 1, 1, dtype=torch.float64)
    g[0, 1:, 0, 0] = (wanted[1:] / wanted[:-1]).log()
    k = torch.zeros(1, 6, 1, 1, dtype=torch.float64)
    k[0, 0] = 1.0
    e = torch.zeros_like(k)
    assert eviction_events(k, e, g).evictions[0, 0].tolist() == [2, 0, 0, 0, 0, 0]
    assert eviction_events(k, e, g, hysteresis=0.01).evictions[0, 0, 0] == 3
    events = eviction_events(k, e, g)
    assert (events.time[0, 0, 0], events.cause[0, 0, 0]) == (1, 0)
    assert events.void[0, 0].tolist() == [False, True, True, True, True, True]
    assert events.table()["write"].tolist() == [0]
    assert events.table()["cause"].tolist() == ["decay"]


def test_an_expanding_erase_is_booked_as_negative_and_never_clipped() -> None:
    k, e, _, g = adversarial(6)
    decay, erase, retained = eviction_matrix(k, e, g)
    assert erase.min() < -1e-3
    assert (decay == 0).all()
    assert (retained + erase.sum(-1) - k.square().sum(-1).transpose(1, 2)).abs().max() < 1e-14


def test_kaplan_meier_of_a_hand_example() -> None:
    # Followed for 1, 3, 3, 5, 5, 6 tokens, evicted at 1, 3, 5, 6; one censored at 3 and one at 5.
    times, survival = kaplan_meier([1, 3, 3, 5, 5, 6], [True, True, False, True, False, True])
    assert times.tolist() == [1, 3, 5, 6]
    np.testing.assert_allclose(survival, [5 / 6, 5 / 6 * 4 / 5, 5 / 6 * 4 / 5 * 2 / 3, 0], rtol=1e-15)
    assert half_life([1, 3, 3, 5, 5, 6], [True, True, False, True, False, True]) == 5
    assert half_life([4, 4, 4], [False, False, False]) == math.inf
    assert half_life([], []) == math.inf
    assert half_life([2, 9], [True, False]) == 2
    with pytest.raises(SchemaError, match="one length"):
        kaplan_meier([1, 2], [True])


def test_half_life_of_a_plain_decay_is_when_it_crosses_the_threshold() -> None:
    k = torch.ones(1, 60, 1, 1, dtype=torch.float64)
    g = torch.full_like(k, math.log(0.5))
    events = eviction_events(k, torch.zeros_like(k), g)
    assert events.half_life().tolist() == [[4.0]]  # 0.5^4 = 0.0625 is the first below 0.1
    assert events.censored[0, 0].nonzero().flatten().tolist() == [56, 57, 58, 59]


@pytest.mark.parametrize("bad", [{"threshold": 0.0}, {"threshold": 0.99}, {"hysteresis": -0.1}, {"top": 0}])
def test_settings_out_of_bounds_are_refused(bad: dict[str, float]) -> None:
    k, e, _, g = window(4)
    with pytest.raises(ConfigError, match=r"threshold|top"):
        eviction_events(k, e, g, **bad)


HEALTHY = HeadFacts(
    layer=1, head=2, key_dim=8, writes=1000, elapsed=1000.0, directions=4.0, signal=2.0, crosstalk=1.0, mean_age=50.0,
    half_life=40.0, swell=0.1, residual=1e-6, finite=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("occupancy", {"directions": 7.9}),
        ("crosstalk", {"crosstalk": 2.1}),
        ("half_life", {"half_life": 20.0}),
        ("never_forgets", {"mean_age": 490.0}),
        ("expansion", {"swell": 0.8}),
        ("ledger", {"residual": 2e-3}),
        ("non_finite", {"finite": False}),
    ],
)
def test_every_alert_fires_alone_and_says_what_to_do(kind: str, change: dict[str, float]) -> None:
    limits = AlertLimits(horizon=24.0)
    assert judge(HEALTHY, limits, 1e-3) == []
    (alert,) = judge(HeadFacts(**{**vars(HEALTHY), **change}), limits, 1e-3)
    assert (alert.kind, alert.layer, alert.head) == (kind, 1, 2)
    assert alert.message.startswith(f"{kind} in layer 1, head 2: ")
    assert alert.severity == ("error" if kind in ("expansion", "ledger", "non_finite") else "warning")


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="never_forgets must be in"):
        AlertLimits(never_forgets=0.7)


def test_window_alerts_are_quiet_on_a_healthy_window_and_name_what_is_wrong_with_another() -> None:
    r = torch.Generator().manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(1, 300, 1, 16, generator=r, dtype=torch.float64), dim=-1)
    z = torch.randn(1, 300, 1, 8, generator=r, dtype=torch.float64)
    g = torch.full_like(k, -0.2)
    assert window_alerts(k, 0.5 * k, z, g, limits=AlertLimits(horizon=3.0)) == [[]]
    lasting = window_alerts(k, 0.0 * k, z, 0.0 * g, limits=AlertLimits(horizon=3.0, occupancy=0.5), layer=4)
    assert {alert.kind for alert in lasting[0]} >= {"occupancy", "never_forgets"}
    assert {alert.layer for alert in lasting[0]} == {4}
    short = window_alerts(k, k, z, 20 * g, limits=AlertLimits(horizon=3.0))
    assert "half_life" in {alert.kind for alert in short[0]}
    same = window_alerts(k[:, :1].expand_as(k), 0 * k, z[:, :1].expand_as(z), g, limits=AlertLimits())
    assert "crosstalk" in {alert.kind for alert in same[0]}
    assert "expansion" in {alert.kind for alert in window_alerts(*adversarial(20))[0]}
    z[0, 100] = math.nan
    assert "non_finite" in {alert.kind for alert in window_alerts(k, k, z, g)[0]}
