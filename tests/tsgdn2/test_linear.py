"""A row's bits do not depend on where it lies in a tile, whatever the size of the model."""

import numpy as np
import polars as pl
import pytest
import torch

from tsgdn2.head import HorizonHead
from tsgdn2.linear import Linear
from tsgdn2.online import OnlinePredictor

PLACES = 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inputs", [1, 5, 7, 10, 19, 22, 65])
@pytest.mark.parametrize("outputs", [1, 3, 8, 40])
def test_a_row_of_a_tile_has_the_same_bits_at_every_place(dtype, inputs, outputs):
    torch.manual_seed(inputs)
    layer, own = Linear(inputs, outputs).to(dtype), torch.randn(inputs, dtype=dtype)
    found = set()
    with torch.inference_mode():
        for place in range(PLACES):
            tile = torch.randn(PLACES, inputs, dtype=dtype)
            tile[place] = own
            found.add(layer(tile)[place].numpy().tobytes())
    assert len(found) == 1


def test_a_filled_product_is_the_plain_one_and_has_its_gradient():
    torch.manual_seed(0)
    layer, x = Linear(7, 5).double(), torch.randn(3, 7, dtype=torch.float64)
    with torch.no_grad():
        filled = layer(x)
    torch.testing.assert_close(filled, x @ layer.weight.T + layer.bias, rtol=1e-14, atol=1e-14)
    torch.autograd.gradcheck(layer, (x.requires_grad_(),))


@pytest.mark.parametrize("identities", [0, 3])
def test_the_lag_skip_has_the_same_bits_at_every_place(identities):
    torch.manual_seed(1)
    head = HorizonHead(width=8, horizon=6, channels=1, outputs=1, known=0, lag_skip=21, identities=identities).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    own = torch.randn(21, 1, dtype=torch.float64)
    hidden, static = torch.zeros(PLACES, 8, dtype=torch.float64), torch.zeros(PLACES, 3, dtype=torch.float64)
    static[:, 1] = 1
    found = set()
    with torch.inference_mode():
        for place in range(PLACES):
            lags = torch.randn(PLACES, 21, 1, dtype=torch.float64)
            lags[place] = own
            found.add(
                head(hidden, torch.zeros(PLACES, 6, 0, dtype=torch.float64), lags, static)[place].numpy().tobytes()
            )
    assert len(found) == 1


@pytest.mark.parametrize("mode", ["independent", "joint", "attention"])
@pytest.mark.parametrize("double", [False, True])
def test_a_narrow_model_observes_a_frame_as_it_observes_its_rows(disorder, mode, double):
    sizes = {"width": 8, "heads": 1, "value_dim": 4, "mlp": 8, "layers": 1, "lag_skip": 9, "patch_length": 3}
    rows, frame = (disorder.predictor(mode=mode, **sizes) for _ in range(2))
    if double:
        rows, frame = (
            OnlinePredictor(one.forecaster.double(), one.standards, channels=disorder.channels, freq="h")
            for one in (rows, frame)
        )
    rng = np.random.default_rng(2)
    data = [(stream, step * disorder.hour, rng.normal(size=3)) for step in range(30) for stream in "xyz"]
    data = [row for row in data if rng.random() < 0.8]
    for stream, time, values in data:
        rows.observe(stream, time, values)
    time = pl.Series([time for _, time, _ in data]).cast(pl.Datetime("ns"))
    channels = {name: [values[i] for *_, values in data] for i, name in enumerate(disorder.channels)}
    frame.observe_many(pl.DataFrame({"stream": [stream for stream, *_ in data], "time": time, **channels}))
    for stream in "xyz":
        np.testing.assert_array_equal(rows.forecast(stream).quantiles, frame.forecast(stream).quantiles)
