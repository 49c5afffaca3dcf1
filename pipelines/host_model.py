"""The model of `tsgdn2 serve --source host` where none is given: trained on weather, calibrated on the host as it goes.

It has never seen a computer. Independent channels share all weights, so a model serves channels that it was not trained
on: what it has learned is how a curve goes on after its last values, from New York's weather of 2013, whose hours are
taken for steps of the host and which has no calendar, as a day is not 24 steps here. Level and scale of each channel
are learned while it runs, and its bands are widened or narrowed until they cover as often as they say. It is a
beginning; a model that was trained on the host's own history is better, and `tsgdn2 train` makes one.

    <runs>/host-model/predictor/   made once, by a process of its own, as training needs what serving does not
    <runs>/host-model/note.json    how it came about
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from filelock import FileLock

from tsgdn2.conformal import Calibrated
from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.forecaster import Forecaster
from tsgdn2.pipelines.predictor_folder import TrainedModel, read_trained
from tsgdn2.standards import Standards

SAID: Final = "Using `json`-module for json-handling"
"""What GluonTS says when it is imported; nothing large goes that way."""
RECIPE: Final = 1
"""Goes up when the recipe changes, and with it the model that is kept."""
PERIOD: Final = "5s"
HALF_LIFE: Final = 720.0
"""Values after which the scaler has forgotten half: an hour at five seconds."""
USUAL: Final[dict[str, float]] = {
    "cpu": 10.0, "memory": 1.0, "swap": 1.0, "load": 0.5, "disk_read": 1e6, "disk_write": 1e6, "net_in": 1e5,
    "net_out": 1e5,
}  # fmt: skip
"""How far a channel strays, before it is known; a few values outvote it."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """The model, and how it came about, in words for a log."""

    trained: TrainedModel
    note: dict[str, object]


def host_model(runs: Path, *, step_s: float, seconds: float) -> Made:
    """The model of the host for steps of so many seconds, made first where it is not there yet.

    Training goes on for so many `seconds` at most. ConfigError: it could not be made.
    """
    home = runs / "host-model"
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):  # a second service waits for the first one's model
        note = _kept(home)
        if note is None:
            _make(home, seconds)
            note = _kept(home)
    if note is None:
        raise ConfigError(f"source: no model of the host could be made in {home}; see above, or give --model")
    return Made(trained=fitted(read_trained(home), step_s), note=note)


def fitted(trained: TrainedModel, step_s: float) -> TrainedModel:
    """The same weights for the host's channels and step. They depend on neither: channels are independent sequences,
    and the model has no calendar, so that a step is a step."""
    from tsgdn2.service.connectors.host import CHANNELS

    period = round(step_s * 1e9)
    forecaster = Forecaster(replace(trained.config, channels=len(CHANNELS), period_ns=period)).to(
        trained.forecaster.dtype
    )
    forecaster.load_state_dict(trained.forecaster.state_dict())
    standards = Standards(default=trained.standards.default[:1], prior=tuple((c, (USUAL[c],)) for c in CHANNELS))
    return TrainedModel(forecaster, standards, CHANNELS, f"{step_s:g}s")


def online(made: Made, **policy: object) -> Calibrated:
    """The predictor without streams; policy: further arguments of `OnlinePredictor.from_predictor`."""
    return Calibrated.from_predictor(made.trained, **policy)  # type: ignore[arg-type]


def _kept(home: Path) -> dict[str, object] | None:
    """The note of a model that is there and whole, of this recipe."""
    try:
        note: dict[str, object] = json.loads((home / "note.json").read_text(encoding="utf-8"))
        read_trained(home)
    except (OSError, ValueError, CheckpointError):
        return None
    return note if note.get("recipe") == RECIPE else None


def _make(home: Path, seconds: float) -> None:
    """Train in a process of its own; what it says is on stderr."""
    command = [sys.executable, "-P", "-W", f"ignore:{SAID}", "-m", "tsgdn2.pipelines.host_model"]
    command += [str(home), f"{seconds:g}"]
    print(
        f"Making a model for this machine, once: up to {seconds:g} s of training on New York's weather of 2013.",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise ConfigError(
            f"source: making a model of the host failed (exit code {done.returncode}, see above); give one with --model"
        )


def train(home: Path, seconds: float) -> None:
    """Train and keep the model and its note; whole or not at all."""
    import shutil

    import pandas as pd

    from tsgdn2 import __version__
    from tsgdn2.datasets import catalog
    from tsgdn2.datasets.gluon import entries
    from tsgdn2.datasets.grid import period_ns
    from tsgdn2.pipelines.estimator import GDN2Estimator
    from tsgdn2.pipelines.screen import Screen, training_callback
    from tsgdn2.pipelines.training import history

    weather = catalog.SETS["nyc_weather"]
    hourly = entries(weather.load(), period_ns(weather.period), collisions="last")
    relabelled = [{**entry, "start": pd.Period("2013-01-01", freq=PERIOD)} for entry in hourly]
    epochs, batches = 10, 30
    began = time.perf_counter()
    with Screen().phase("training", total=epochs * batches) as phase:
        estimator: GDN2Estimator = GDN2Estimator(
            PERIOD, 36, patch_length=4, context_length=256, half_life=HALF_LIFE, bridge=12.0, calendar=(), dropout=0.15,
            validation_share=0.04, num_batches_per_epoch=batches,
            trainer_kwargs={
                "max_epochs": epochs, "max_time": {"seconds": seconds}, "callbacks": [training_callback(phase)],
            },
        )  # fmt: skip
        predictor = estimator.train(relabelled)
    losses = [row["val_loss"] for row in history(predictor) if "val_loss" in row]
    note = {
        "recipe": RECIPE, "what": "forecaster of this machine's readings; trained on weather, calibrated as it goes",
        "trained_on": f"{len(relabelled)} series of {weather.home}, hours taken for steps, without a calendar",
        "seconds": round(time.perf_counter() - began, 1), "validation_loss": min(losses) if losses else None,
        "version": __version__, "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    draft, final = home / ".predictor", home / "predictor"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    predictor.serialize(draft)
    (home / "note.json").unlink(missing_ok=True)  # without it what is there counts for nothing
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    (home / "note.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    train(Path(sys.argv[1]), float(sys.argv[2]))
