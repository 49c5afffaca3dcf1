"""Mixers by name: every one streams as it runs in batch, costs what it says, and can be given equal memory."""

from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch

from tsgdn2.audit import AuditConfig
from tsgdn2.errors import ConfigError
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.forecaster_config import MIXERS
from tsgdn2.mixers.gates import MEMBERS
from tsgdn2.mixers.registry import cost, make_mixer, matched
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.options import ModelOptions
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.traces import collect
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
START = pd.Timestamp("2024-03-01 05:00")
BASE = ForecasterConfig(
    prediction_length=5, period_ns=HOUR, channels=2, half_life=40.0, patch_length=2, width=12, layers=2, heads=2,
    key_dim=4, value_dim=6, mlp=16, norm_max=0.5, attention_window=6,
)  # fmt: skip
MODELS = {name: {"mixer": name} for name in MIXERS} | {
    "hybrid": {"mixer": "gdn2", "attention_every": 2},
    "hybrid of three layers": {"mixer": "kda", "attention_every": 3, "layers": 3},
}


def forecaster(name, dtype=torch.float64):
    torch.manual_seed(0)
    made = Forecaster(replace(BASE, **MODELS[name])).to(dtype)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            if key.startswith("head"):
                parameter.normal_(std=0.3)
            if key.endswith("A_log"):
                parameter.uniform_(-4.0, 0.5)
    return made


def both(model, **options):
    scales = Standards(default=(2.0,) * 2)
    predictor = GDN2Predictor(
        config_json=model.config.to_json(), standards_json=scales.to_json(), freq="h", channels=["a", "b"]
    )
    predictor.prediction_net.to(model.dtype).load_state_dict(model.state_dict())
    return OnlinePredictor(model, scales, channels=["a", "b"], freq="h", **options), predictor


def values(rng, steps):
    """Two channels with missing cells, silent hours and an outage."""
    found = np.where(rng.random((steps, 2)) < 0.2, np.nan, rng.normal(size=(steps, 2)))
    found[rng.random(steps) < 0.05] = np.nan
    found[steps // 2 : steps // 2 + 17] = np.nan
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_stream_equals_the_batch_at_fixed_bytes(name):
    model = forecaster(name)
    online, predictor = both(model)
    cells, streamed, entries, sizes = values(np.random.default_rng(1), 165), [], [], set()
    for t, row in enumerate(cells):
        if np.isfinite(row).any():
            online.observe("s", START + pd.Timedelta(hours=t), row)
            sizes.add(online.state_nbytes)
            if t % 23 == 0 or t > 160:
                streamed.append(online.forecast("s").quantiles)
                target = cells[: t + 1].T
                entries.append({"start": pd.Period(START, freq="h"), "target": target, "item_id": "s"})
    assert len(sizes) == 1
    assert int(online._slab.state.count.max()) > 64, "the bound was applied"
    batch = np.stack([np.moveaxis(f.forecast_array, 0, -1) for f in predictor.predict(entries)])
    np.testing.assert_allclose(np.stack(streamed), batch, rtol=1e-9, atol=1e-9)
    assert np.abs(batch).max() > 0.1


@pytest.mark.parametrize("name", ["gdn", "deltanet", "mamba3-mimo", "rwkv7", "swa", "lstm", "none", "hybrid"])
def test_a_stream_goes_on_from_its_file_to_the_bit(name, tmp_path):
    online, _ = both(forecaster(name, torch.float32))
    cells = values(np.random.default_rng(2), 40)
    for t, row in enumerate(cells[:30]):
        online.observe("s", START + pd.Timedelta(hours=t), row)
    online.save(tmp_path / "state.safetensors")
    other = OnlinePredictor.load(tmp_path / "state.safetensors")
    for t, row in enumerate(cells[30:], 30):
        for one in (online, other):
            one.observe("s", START + pd.Timedelta(hours=t), row)
    np.testing.assert_array_equal(online.forecast("s").quantiles, other.forecast("s").quantiles)


@pytest.mark.parametrize("name", MODELS)
def test_matched_models_have_equal_memory_and_nearly_equal_parameters(name):
    base = replace(BASE, layers=MODELS[name].get("layers", 2), width=24, mlp=64, key_dim=4, value_dim=4)
    config = matched(replace(base, **MODELS[name]), state_floats=512, parameters=40_000)
    made = cost(config)
    assert made.memory_floats == (0 if name == "none" else base.layers * 512)
    if name == "lstm":
        assert made.parameters > 40_000
        assert config.mlp == 1
        config = matched(replace(base, mixer=name), 512, 40_000, lstm_by="parameters")
        assert cost(config).memory_floats < made.memory_floats
        assert config.mlp >= base.mlp
        made = cost(config)
    assert abs(made.parameters - 40_000) <= 3 * base.width * base.layers / 2
    model = Forecaster(config)
    assert made.parameters == sum(p.numel() for p in model.blocks.parameters())
    assert made.state_bytes == sum(t.nbytes for layer in model.initial_state(1).layers for t in layer.values())


def test_by_default_a_model_is_matched_to_gdn2_at_its_own_sizes():
    gdn2 = cost(BASE)
    assert matched(BASE) == BASE
    kda = cost(matched(replace(BASE, mixer="kda")))
    assert kda.memory_floats == gdn2.memory_floats
    assert abs(kda.parameters - gdn2.parameters) <= 3 * BASE.width


def test_counting_costs_no_random_number():
    torch.manual_seed(0)
    cost(BASE)
    counted = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(counted, torch.rand(3))


@pytest.mark.parametrize(("mixer", "floats"), [("gdn2", 49), ("lstm", 46), ("swa", 50), ("mamba3", 2 * 7), ("gdn2", 0)])
def test_memory_that_a_mixer_can_not_have_is_an_error_that_says_what_it_can(mixer, floats):
    with pytest.raises(ConfigError, match=r"^state_floats: must be .*got \d+"):
        matched(replace(BASE, mixer=mixer), floats)


def test_every_name_is_an_option_of_the_command_line():
    assert get_args(get_type_hints(ModelOptions)["mixer"]) == MIXERS


def test_every_nth_layer_of_a_hybrid_is_attention():
    config = replace(BASE, layers=5, mixer="gdn", attention_every=2)
    assert config.layer_mixers == ("gdn", "swa", "gdn", "swa", "gdn")
    names = [type(make_mixer(config, layer)).__name__ for layer in range(5)]
    assert names == ["DeltaMixer", "SWAMixer", "DeltaMixer", "SWAMixer", "DeltaMixer"]
    assert config.traced_layers == (0, 2, 4)
    assert not config.audited


@pytest.mark.parametrize(
    ("field", "value"), [("attention_every", 1), ("attention_every", 3), ("attention_window", 0), ("key_dim", 3)]
)
def test_a_wrong_size_of_a_mixer_names_its_field(field, value):
    with pytest.raises(ConfigError, match=f"^{field}: must be"):
        replace(BASE, **{"mixer": "mamba3", field: value})


@pytest.mark.parametrize("name", MIXERS)
def test_the_decay_of_the_own_token_is_refused_where_a_mixer_would_ignore_it(name):
    if name in MEMBERS and name != "deltanet":
        assert make_mixer(replace(BASE, mixer=name, decay_from="own")).decay_from == "own"
        return
    with pytest.raises(ConfigError, match=rf"^decay_from: must be \"previous\" for mixer '{name}' .*gdn2, .*got 'own'"):
        replace(BASE, mixer=name, decay_from="own")


def test_a_config_from_before_the_hybrids_keeps_its_fingerprint():
    assert replace(BASE, attention_window=64).fingerprint == "5ed541d08a39b99e"
    assert replace(BASE, attention_window=64, attention_every=2).fingerprint != "5ed541d08a39b99e"


@pytest.mark.parametrize("name", MEMBERS)
def test_the_audit_of_a_member_sums_to_its_state_and_its_trace_replays_it(name):
    online, predictor = both(forecaster(name), audit=AuditConfig(layers="all", heads="all"))
    predictor.prediction_net.float()
    cells = values(np.random.default_rng(3), 70)
    for t, row in enumerate(cells):
        online.observe("s", START + pd.Timedelta(hours=t), row)
    for lane in range(2):
        states = online._slab.state.layers
        state = torch.stack([states[layer]["memory"][lane, head] for layer, head in online.audit.pairs])
        assert float(np.max(online.audit.check(lane, state))) <= 1e-10
    entry = {"start": pd.Period(START, freq="h"), "target": cells.T, "item_id": "s"}
    (trace,) = collect(predictor, [entry], layers=(1,), window=20)
    held = trace.initial
    for n in range(20):
        decayed = trace.g[:, n].exp()[..., None] * held
        wrong = trace.z[:, n] - (trace.e[:, n, ..., None] * decayed).sum(2)
        held = decayed + trace.k[:, n, ..., None] * wrong[:, :, None]
    torch.testing.assert_close(held, trace.final, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["swa", "lstm", "none", "mamba3", "rwkv7", "hybrid"])
def test_what_has_no_such_state_can_not_be_audited(name):
    model = forecaster(name, torch.float32)
    with pytest.raises(ConfigError, match=r"^audit: only states of the delta family .* 1 "):
        both(model, audit=AuditConfig(layers="all"))
    _, predictor = both(model)
    entry = {"start": pd.Period(START, freq="h"), "target": np.zeros((2, 9)), "item_id": "s"}
    with pytest.raises(ConfigError, match=r"^predictor: only states of the delta family"):
        collect(predictor, [entry], layers=(1,), window=20)


def test_the_recurrent_layers_of_a_hybrid_can_be_audited():
    online, _ = both(forecaster("hybrid"), audit=AuditConfig(layers=(0,), heads="all"))
    for t, row in enumerate(values(np.random.default_rng(4), 60)):
        online.observe("s", START + pd.Timedelta(hours=t), row)
    state = torch.stack([online._slab.state.layers[0]["memory"][0, head] for _, head in online.audit.pairs])
    assert float(np.max(online.audit.check(0, state))) <= 1e-10
