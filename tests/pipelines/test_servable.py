"""What may be served and what not: saved models without their frameworks, the host's model, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pipelines.tiny import HOUR, predictor, written

from tsgdn2.conformal import Calibrated
from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.events.online import OnlineEvents
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines.host_model import Made as HostModel
from tsgdn2.pipelines.host_model import fitted, online
from tsgdn2.pipelines.jobs import Serve
from tsgdn2.pipelines.live import _opened
from tsgdn2.pipelines.options import ArrivalOptions
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.predictor_folder import ARGUMENTS, TrainedModel, read_trained
from tsgdn2.pipelines.servable import open_servable
from tsgdn2.pipelines.service_sources import source_of
from tsgdn2.service.connectors.host import CHANNELS
from tsgdn2.standards import Standards

pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture
def folder(at_home: None) -> Path:
    """A predictor's folder."""
    return written(Path("predictor"))


def test_a_predictors_folder_is_the_same_model_without_the_frameworks_of_training(folder: Path) -> None:
    light, whole = read_trained(folder), GDN2Predictor.deserialize(folder)
    assert (light.config, light.standards, light.channels, light.freq) == (
        whole.config, whole.standards, whole.channels, whole.freq,
    )  # fmt: skip
    theirs = whole.forecaster.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in light.forecaster.state_dict().items())
    (folder / ARGUMENTS).write_text((folder / ARGUMENTS).read_text().replace("0.5", "0.6"))
    with pytest.raises(CheckpointError, match="was altered"):
        read_trained(folder)


def test_settings_of_a_saved_model_fit_the_service(folder: Path) -> None:
    made = open_servable(folder).fresh()
    assert (made.late, made.streams, isinstance(made, Calibrated)) == ("tag", (), False)
    assert made.audit is not None
    assert open_servable(folder, audit=False, calibrate=True).fresh().audit is None
    assert open_servable(folder, channels=("a", "b", "c")).fresh().channels == ("a", "b", "c")
    learned = Calibrated.from_predictor(predictor(), late="drop")
    learned.observe("s", 0, [1.0, 2.0])
    learned.save("state.safetensors")
    state = open_servable(Path("state.safetensors"))
    assert isinstance(state.fresh(), Calibrated)
    assert (state.fresh().late, state.fresh().streams, list(state.streams)) == ("drop", (), ["s"])


def test_what_independent_channels_say_depends_neither_on_their_number_nor_on_the_models_step() -> None:
    trained = predictor(("z",), half_life=40.0)
    alone = OnlinePredictor.from_predictor(trained, late="tag", channels=("cpu",))
    model = TrainedModel(trained.forecaster, Standards(), ("z",), "h")
    many = online(HostModel(trained=fitted(model, 5.0), note={}), late="tag")
    assert many.channels == CHANNELS
    assert isinstance(many, Calibrated)
    plain = OnlinePredictor.from_predictor(replace(fitted(model, 5.0), standards=Standards()), late="tag")
    rng = np.random.default_rng(0)
    for step in range(60):
        row = rng.normal(size=8)
        alone.observe("s", step * HOUR, row[:1])
        plain.observe("s", step * 5 * 10**9, row)
        many.observe("s", step * 5 * 10**9, row)
    np.testing.assert_allclose(
        alone.forecast("s").quantiles[:, 0], plain.forecast("s").quantiles[:, 0], rtol=1e-4, atol=1e-5
    )
    assert many.coverage("s")[0].judged > 0


def test_a_model_that_can_not_be_served_is_refused_with_what_to_do(folder: Path) -> None:
    events = predictor(("count",), event_types=("u",), event_targets=("count",))
    written(Path("events"), ("count",), event_types=("u",), event_targets=("count",))
    OnlineEvents.from_predictor(events).save("events.safetensors")
    OnlinePredictor.from_predictor(predictor()).save("state.safetensors")
    Path("empty").mkdir()
    bound = written(Path("bound"), mode="joint")
    late = ArrivalOptions(late="raise")
    refused: list[tuple[Serve, str]] = [
        (Serve(), "model: is needed; give --model"),
        (Serve(source=("host", "mqtt://broker")), "nothing but --source host"),
        (Serve(model="nowhere"), "model: there is no nowhere"),
        (Serve(model="empty"), "no folder that `tsgdn2 train` wrote"),
        (Serve(model="nowhere.safetensors"), "no file nowhere.safetensors"),
        (Serve(model="events"), "it reads events"),
        (Serve(model="events.safetensors"), "is a state of events"),
        (Serve(model="predictor", arrivals=late), "must be drop, tag or replay"),
        (Serve(model="predictor", arrivals=ArrivalOptions(watermark="soon")), "arrivals.watermark"),
        (Serve(model="state.safetensors", arrivals=ArrivalOptions(late="tag")), "its own policy, late='raise'"),
        (Serve(model="state.safetensors", channels=("a",)), "goes on with its own, \\['x', 'y'\\]"),
        (Serve(model="models:/tiny@best"), "is written models:/name/3"),
        (Serve(source=("host",), channels=("a",)), "those of the host"),
    ]
    for job, message in refused:
        with pytest.raises((ConfigError, CheckpointError), match=message):
            _opened(job, [source_of(text) for text in job.source])
    with pytest.raises(ConfigError, match="bound to the channels of its training"):
        open_servable(bound, channels=("a", "b")).fresh()
    with pytest.raises(ConfigError, match="require_audit: only a registered version"):
        Serve(model="predictor", require_audit=True)
    with pytest.raises(ConfigError, match="ledger_every"):
        Serve(ledger_every=0)
    with pytest.raises(ConfigError, match="experiment"):
        Serve(experiment="Default")
