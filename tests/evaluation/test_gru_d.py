"""GRU-D: its loop against the paper's equations, what a gap may change, and its face for GluonTS."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.evaluation.gru_d import GRUD, GRUDConfig, GRUDPredictor, Inputs, lane, stack
from tsgdn2.scale import Moments, forgetting, scale_of, update

HOUR = 3600 * 10**9
START = pd.Period("2024-03-01 05:00", freq="h")
SMALL = GRUDConfig(
    prediction_length=3, period_ns=HOUR, width=5, lag_skip=4, context_length=16, quantiles=(0.1, 0.5, 0.9)
)


def model(config: GRUDConfig = SMALL, seed: int = 0) -> GRUD:
    torch.manual_seed(seed)
    made = GRUD(config).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def series(length: int, seed: int = 0, missing: float = 0.4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = 50 + 3 * np.sin(np.arange(length) / 4) + rng.normal(size=length)
    values[rng.random(length) < missing] = np.nan
    return values


def by_the_paper(net: GRUD, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Equations 5 to 14 of Che et al., one series and one step at a time."""
    width = net.config.width
    w_r, w_z, w_c = net.inputs.weight.split(width)
    b_r, b_z, b_c = net.inputs.bias.split(width)
    u_r, u_z = net.gates.weight.split(width)
    all_states, all_filled = [], []
    for row in range(len(inputs.x)):
        h, states, filled = torch.zeros(width, dtype=torch.float64), [], []
        for t in range(inputs.x.shape[1]):
            m, delta = inputs.seen[row, t].double(), inputs.delta[row, t]
            gamma_x = torch.exp(-torch.clamp(net.input_decay.weight[0, 0] * delta + net.input_decay.bias[0], min=0))
            gamma_h = torch.exp(-torch.clamp(net.hidden_decay.weight[:, 0] * delta + net.hidden_decay.bias, min=0))
            x = m * inputs.x[row, t] + (1 - m) * (gamma_x * inputs.last[row, t] + (1 - gamma_x) * 0.0)
            given_ = torch.cat([x[None], m[None], inputs.phase[row, t]])
            h = gamma_h * h
            z = torch.sigmoid(w_z @ given_ + u_z @ h + b_z)
            r = torch.sigmoid(w_r @ given_ + u_r @ h + b_r)
            c = torch.tanh(w_c @ given_ + net.candidate.weight @ (r * h) + b_c)
            h = (1 - z) * h + z * c
            states.append(h)
            filled.append(x)
        all_states.append(torch.stack(states))
        all_filled.append(torch.stack(filled))
    return torch.stack(all_states), torch.stack(all_filled)


def test_the_loop_equals_the_equations_of_the_paper():
    net = model()
    lanes = [lane(series(23, seed), 1000, 2.0, 50.0) for seed in range(3)]
    inputs = stack(net, lanes, [0, 2, 5], 17)
    states, filled = by_the_paper(net, inputs)
    torch.testing.assert_close(net(inputs, net.initial_state(3)), states, rtol=0, atol=1e-12)
    torch.testing.assert_close(net.fill(inputs), filled, rtol=0, atol=1e-12)


def test_every_parameter_learns_from_a_series_with_gaps():
    net = model()
    inputs = stack(net, [lane(series(16), 0, 2.0, 50.0)], [0], 16)
    at = torch.tensor([9, 15])
    net.read(net(inputs, net.initial_state(1))[:, at], net.lags(inputs, at)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=40), st.floats(2, 400))
@settings(max_examples=60, deadline=None)
def test_a_lane_is_what_a_stream_would_know_step_by_step(cells: list[float | None], half_life: float):
    values = np.array([np.nan if cell is None else cell for cell in cells])
    made = lane(values, 7, 1.5, half_life)
    moments, last, before = Moments.zeros((1,)), 0.0, None
    largest = max((abs(cell) for cell in cells if cell is not None), default=0.0)
    for step, value in enumerate(values):
        assert made.last[step] == last
        assert made.delta[step] == step - (before if before is not None else 0)
        moments = update(moments, np.array([value]), np.array([np.isfinite(value)]), forgetting(half_life))
        scale = scale_of(moments, np.array([1.5]))[0]
        assert made.mean[step] == pytest.approx(moments.mean[0], rel=1e-6, abs=1e-9 * (1 + largest))
        assert made.scale[step] == pytest.approx(scale, rel=1e-6, abs=1e-9 * (1 + largest))
        if np.isfinite(value):
            last, before = made.x[step], step
        assert made.seen[step] == np.isfinite(value)
    assert made.clock.tolist() == list(range(7, 7 + len(values)))


def test_lags_are_the_filled_cells_in_the_units_of_the_step_that_is_asked():
    net, values = model(), series(30)
    values[:6] = np.nan
    one = lane(values, 0, 2.0, 10.0)
    inputs = stack(net, [one], [-3], 33)
    filled = net.fill(inputs)[0].detach().numpy()
    for row in (3, 9, 20, 32):
        found = net.lags(inputs, torch.tensor([row]))[0, 0].detach().numpy()
        for lag, got in zip(range(3, -1, -1), found, strict=True):
            at = row - 3 - lag
            if at < 6:
                assert got == 0
                continue
            raw = one.mean[at] + one.scale[at] * np.sinh(filled[at + 3])
            if np.isfinite(values[at]):
                assert raw == pytest.approx(values[at])
            assert got == pytest.approx((raw - one.mean[row - 3]) / one.scale[row - 3], abs=1e-9)


def test_hidden_cells_are_as_if_they_had_never_come():
    values = series(60, missing=0.2)
    hidden = np.random.default_rng(3).random(60) < 0.5
    gone = np.where(hidden, np.nan, values)
    for shown, truth in zip(lane(values, 0, 1.0, 30.0, hidden), lane(gone, 0, 1.0, 30.0), strict=True):
        np.testing.assert_array_equal(shown, truth)


def test_steps_before_and_after_a_lane_are_missing_ones():
    net = model()
    one = lane(series(10, missing=0.0), 0, 1.0, 30.0)
    inputs = stack(net, [one, one, one], [-4, 6, -30], 8)
    assert inputs.seen.tolist() == [[False] * 4 + [True] * 4, [True] * 4 + [False] * 4, [False] * 8]
    assert inputs.x[0, 4:].tolist() == pytest.approx(one.x[:4].tolist())


def test_forecasts_come_in_order_and_scale_with_the_data():
    predictor = GRUDPredictor(model(), {"a": 1.0, "b": 2.0})
    data = [{"item_id": name, "start": START, "target": series(40, i)} for i, name in enumerate("ab")]
    found = list(predictor.predict(data))
    assert [forecast.item_id for forecast in found] == ["a", "b"]
    assert found[0].start_date == START + 40
    assert found[0].forecast_array.shape == (3, 3)
    assert (np.diff(found[0].forecast_array, axis=0) >= 0).all()
    scaled = GRUDPredictor(predictor.model, {"a": 1000.0, "b": 2000.0})
    again = list(scaled.predict([{**entry, "target": 1000 * entry["target"]} for entry in data]))
    np.testing.assert_allclose(again[1].forecast_array, 1000 * found[1].forecast_array, rtol=1e-9)


@pytest.mark.parametrize("length", [1, 15, 16, 40])
def test_histories_of_any_length_and_of_nothing_are_forecast(length: int):
    predictor = GRUDPredictor(model(), {"a": 1.0})
    empty = {"item_id": "never", "start": START, "target": np.full(length, np.nan)}
    for forecast in predictor.predict([empty, {**empty, "target": series(length, missing=0.0)}]):
        assert np.isfinite(forecast.forecast_array).all()


def test_what_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"lag_skip: must lie in \[0, context_length = 8\]"):
        GRUDConfig(prediction_length=1, period_ns=HOUR, lag_skip=9, context_length=8)
    with pytest.raises(ConfigError, match="width: must be at least 1"):
        GRUDConfig(prediction_length=1, period_ns=HOUR, width=0)
    with pytest.raises(ConfigError, match="priors: must hold"):
        GRUDPredictor(model(), {})
    predictor = GRUDPredictor(model(), {"a": 1.0})
    with pytest.raises(SchemaError, match="univariate series"):
        list(predictor.predict([{"start": START, "target": np.zeros((2, 5))}]))
    with pytest.raises(SchemaError, match=r"start: must be a pandas\.Period"):
        list(predictor.predict([{"start": "2024", "target": np.zeros(5)}]))
