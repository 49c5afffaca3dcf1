"""The audit beside a real predictor: its cohorts sum to the state that the stream holds, after every patch."""

import numpy as np
import pandas as pd
import pytest
import torch

from tsgdn2.audit import AuditConfig
from tsgdn2.errors import ConfigError
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.online import OnlinePredictor
from tsgdn2.standards import Standards


def predictor(audit, dtype=torch.float64, **changes):
    torch.manual_seed(1)
    config = ForecasterConfig(
        **{
            "prediction_length": 6, "period_ns": 3_600_000_000_000, "channels": 3, "patch_length": 4, "width": 16,
            "layers": 2, "heads": 2, "key_dim": 4, "value_dim": 8, "mlp": 16, **changes,
        }
    )  # fmt: skip
    return OnlinePredictor(
        Forecaster(config).to(dtype), Standards(), channels=["a", "b", "c"], freq="h", audit=audit
    )  # fmt: skip


def feed(online, rng, steps, begin=0):
    clock = begin
    for _ in range(steps):
        clock += int(rng.choice([1, 1, 1, 1, 9]))
        values = np.where(rng.random(3) < 0.3, np.nan, rng.normal(size=3))
        online.observe("s", pd.Timestamp("2024-01-01") + pd.Timedelta(hours=clock), values)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_cohorts_sum_to_the_state_through_missing_cells_gaps_and_the_bound(dtype, tolerance):
    online = predictor(AuditConfig(layers="all", heads="all"), dtype, norm_max=0.5)
    rng = np.random.default_rng(0)
    for turn in range(12):
        feed(online, rng, 30, begin=1000 * turn)
        for lane in range(3):
            state = torch.stack(
                [online._slab.state.layers[layer]["memory"][lane, head] for layer, head in online.audit.pairs]
            )
            assert float(np.max(online.audit.check(lane, state))) <= tolerance
    assert int(online._slab.state.count[0]) > 64, "the bound was applied at least once"


def test_the_audit_changes_no_bit_of_a_forecast():
    audited, plain = predictor(AuditConfig(), torch.float32), predictor(None, torch.float32)
    for online in (audited, plain):
        feed(online, np.random.default_rng(3), 200)
    np.testing.assert_array_equal(audited.forecast("s").quantiles, plain.forecast("s").quantiles)


def test_evictions_name_their_cause_and_their_evictor():
    online = predictor(AuditConfig(layers="all", heads="all"))
    with torch.no_grad():
        for name, parameter in online.forecaster.named_parameters():
            if name.endswith("A_log"):
                parameter.fill_(1.0)
    feed(online, np.random.default_rng(4), 300)
    events = online.audit.drain()
    assert events
    assert {event.cause for event in events} <= {"decay", "erase"}
    for event in events:
        assert event.time > event.birth
        assert event.evictor == -1 or event.evictor_time > event.birth
    assert online.audit.readings(0).heads


def test_a_mixer_without_a_gdn2_state_can_not_be_audited():
    with pytest.raises(ConfigError, match=r"^audit: .*lstm"):
        predictor(AuditConfig(), mixer="lstm")
