"""Train a forecaster on a GluonTS data set by GluonTS's conventions.

    data set -> series -> timelines up to the validation cut -> windows -> Lightning -> best average -> predictor

The last tenth of every series (at least one horizon) picks the weights, unless validation_data is given; nothing of it
is trained on. `context_length` is the length of a training window; memory at prediction time has no such limit.
"""

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from gluonts.model.predictor import Predictor
from gluonts.time_feature import get_seasonality
from gluonts.torch.distributions import Output
from gluonts.torch.model.estimator import PyTorchLightningEstimator

from tsgdn2.clock import calendar_cycles
from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.pipelines.distribution import Distribution
from tsgdn2.pipelines.entries import RawSeries, names_of, period_ns, read_entry
from tsgdn2.pipelines.lightning_module import ForecastTraining
from tsgdn2.pipelines.loader import WindowSampler, validation_batches
from tsgdn2.pipelines.packing import Lines, timelines_of
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.standardisation import standards_of
from tsgdn2.pipelines.trainer import run
from tsgdn2.standards import Standards
from tsgdn2.timeline import Ints

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class GDN2Estimator(PyTorchLightningEstimator):
    """Gated DeltaNet-2 forecaster for univariate or multivariate series of one frequency.

    freq: pandas frequency. prediction_length: steps of a forecast. context_length: steps of a training window
    (default 64 patches). target_channels: channels of one entry, target [T] for 1, else [C, T]. channels:
    "independent", "joint" or "attention". event_types, event_targets, event_marks: vocabulary, what is counted per
    step, and the numbers of an event, for entries of events (datasets.gluon.event_entries). quantiles: levels, or pass
    distr_output (a GluonTS torch output) instead.
    num_feat_dynamic_real, dynamic_cardinality: known covariates and categories, feat_dynamic_real [F, T + H],
    feat_dynamic_cat [G, T + H]; num_past_feat_dynamic_real: covariates without a future, past_feat_dynamic_real [U, T].
    lag_skip: steps of the linear skip, 0 is off. bridge: steps over which a value reaches into missing cells (default
    half a season, 0 takes them for the mean). hidden_shares: each series also trains in copies of which these shares of
    the cells are hidden from the input. carry_windows: windows in a row whose state is carried. validation_share: share
    of each series that picks the weights. trainer_kwargs: go to lightning.pytorch.Trainer (max_epochs, callbacks, ...).
    Further arguments are fields of ForecasterConfig. Raises ConfigError naming the argument.
    """

    @validated()
    def __init__(
        self,
        freq: str,
        prediction_length: int,
        *,
        context_length: int | None = None,
        target_channels: int = 1,
        channels: str = "independent",
        quantiles: Sequence[float] = DECILES,
        num_feat_dynamic_real: int = 0,
        num_past_feat_dynamic_real: int = 0,
        dynamic_cardinality: Sequence[int] = (),
        num_feat_static_real: int = 0,
        cardinality: Sequence[int] = (),
        distr_output: Output | None = None,
        patch_length: int = 8,
        width: int = 64,
        layers: int = 1,
        heads: int = 4,
        key_dim: int = 16,
        value_dim: int = 16,
        mlp: int = 128,
        dropout: float = 0.0,
        mixer: str = "gdn2",
        attention_every: int = 0,
        attention_window: int = 64,
        decay_from: str = "previous",
        half_life: float | None = None,
        lag_skip: int = 0,
        bridge: float | None = None,
        hidden_shares: Sequence[float] = (),
        calendar: Sequence[str] | None = None,
        norm_max: float = 256.0,
        channel_identity: bool = False,
        event_types: Sequence[str] = (),
        event_targets: Sequence[str] = (),
        event_marks: Sequence[str] = (),
        event_mark_low: Sequence[float] | None = None,
        event_mark_high: Sequence[float] | None = None,
        event_unknown: str = "raise",
        event_window: int = 0,
        channel_names: Sequence[str] | None = None,
        batch_size: int = 32,
        num_batches_per_epoch: int = 50,
        lr: float = 4e-3,
        weight_decay: float = 0.05,
        carry_windows: int = 1,
        validation_share: float = 0.1,
        seed: int = 0,
        trainer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        period = period_ns(freq)
        cycles = calendar_cycles(period) if calendar is None else tuple(calendar)
        distribution = None if distr_output is None else Distribution(distr_output)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            season = get_seasonality(freq)
        self.config = ForecasterConfig(
            prediction_length=prediction_length,
            period_ns=period,
            channels=len(event_targets) or target_channels,
            mode=channels,
            quantiles=tuple(quantiles),
            outputs=0 if distribution is None else distribution.size,
            patch_length=patch_length,
            width=width,
            layers=layers,
            heads=heads,
            key_dim=key_dim,
            value_dim=value_dim,
            mlp=mlp,
            dropout=dropout,
            mixer=mixer,
            attention_every=attention_every,
            attention_window=attention_window,
            decay_from=decay_from,
            norm_max=norm_max,
            channel_identity=channel_identity,
            event_types=tuple(event_types),
            event_marks=tuple(event_marks),
            event_targets=tuple(event_targets),
            event_mark_low=(-math.inf,) * len(event_marks) if event_mark_low is None else tuple(event_mark_low),
            event_mark_high=(math.inf,) * len(event_marks) if event_mark_high is None else tuple(event_mark_high),
            event_unknown=event_unknown,
            event_window=event_window,
            lag_skip=lag_skip,
            bridge=season / 2 if bridge is None else bridge,
            half_life=float(max(64, 14 * season)) if half_life is None else half_life,
            calendar=cycles,
            known=num_feat_dynamic_real,
            known_cardinalities=tuple(dynamic_cardinality),
            past=num_past_feat_dynamic_real,
            static_real=num_feat_static_real,
            static_cardinalities=tuple(cardinality),
        )
        self.freq, self.distr_output = freq, distr_output
        self.tokens = 64 if context_length is None else -(-context_length // patch_length)
        _bounds(
            "context_length",
            context_length,
            context_length is None or context_length >= patch_length,
            f"at least one patch of {patch_length} steps",
        )
        counts = {"batch_size": batch_size, "num_batches_per_epoch": num_batches_per_epoch}
        for name, value in {**counts, "carry_windows": carry_windows}.items():
            _bounds(name, value, value >= 1, ">= 1")
        _bounds("lr", lr, 0 < lr < 1, "in (0, 1)")
        _bounds("weight_decay", weight_decay, 0 <= weight_decay < 1, "in [0, 1)")
        _bounds("validation_share", validation_share, 0 <= validation_share < 1, "in [0, 1)")
        _bounds(
            "carry_windows",
            carry_windows,
            carry_windows == 1 or self.tokens % 64 == 0,
            "1 unless a window is a multiple of 64 patches (the bound on the state is aligned to 64 commits)",
        )
        count = self.config.channels
        names = tuple(channel_names if channel_names is not None else event_targets or names_of((), count))
        _bounds("channel_names", names, len(set(names)) == len(names) == count, f"{count} different names")
        self.channel_names = names
        self.batch_size, self.num_batches_per_epoch = batch_size, num_batches_per_epoch
        self.lr, self.weight_decay, self.carry_windows = lr, weight_decay, carry_windows
        self.validation_share, self.seed = validation_share, seed
        self.hidden_shares = tuple(hidden_shares)
        _bounds("hidden_shares", self.hidden_shares, all(0 < s < 1 for s in self.hidden_shares), "shares in (0, 1)")
        _bounds(
            "hidden_shares", self.hidden_shares, not (event_types and self.hidden_shares), "empty where events are read"
        )
        super().__init__(trainer_kwargs={"max_epochs": 10, **(trainer_kwargs or {})})
        self.prediction_length = prediction_length

    def train(self, training_data: Dataset, validation_data: Dataset | None = None, **_: object) -> GDN2Predictor:
        """Fit and return the predictor with the best averaged weights."""
        return self.fit(training_data, validation_data).predictor(self)

    def train_from(
        self, predictor: Predictor, training_data: Dataset, validation_data: Dataset | None = None, **_: object
    ) -> GDN2Predictor:
        """Warm start: go on from another predictor's weights. ConfigError where the shapes differ."""
        if not isinstance(predictor, GDN2Predictor):
            raise ConfigError(f"predictor: must be a GDN2Predictor, got {type(predictor).__name__}")
        return self.fit(training_data, validation_data, predictor).predictor(self)

    def fit(
        self, training_data: Dataset, validation_data: Dataset | None = None, start: GDN2Predictor | None = None
    ) -> "Fitted":
        """Train and hand out the forecaster, the standards and the history of losses."""
        raw = self._read(training_data)
        cut = [raw_.step + len(raw_.values) if validation_data is not None else self._cut(raw_) for raw_ in raw]
        standards = standards_of(raw, cut, self.config)
        lines, since = self._timelines(*self._with_hidden(raw, cut), standards)
        held = raw if validation_data is None else self._read(validation_data)
        if validation_data is None:
            held_lines, held_since = lines, since
        else:
            ends = {one.item_id: one.step + len(one.values) for one in raw}  # what was trained on is not scored
            first = [ends.get(one.item_id, one.step + len(one.values) - 4 * self.prediction_length) for one in held]
            held_lines, held_since = self._timelines(held, first, standards)
        torch.manual_seed(self.seed)
        forecaster = Forecaster(self.config)
        if start is not None:
            _warm(forecaster, start.forecaster)
        epochs = int(self.trainer_kwargs["max_epochs"])
        sampler = WindowSampler(
            lines,
            self.config,
            tokens=self.tokens,
            batch_size=self.batch_size,
            batches=self.num_batches_per_epoch,
            seed=self.seed,
            carry=self.carry_windows,
            until=since if validation_data is None else None,
        )
        if sampler.empty:
            raise SchemaError(
                f"training_data: no series holds one observed patch of {self.config.patch_length} steps before its "
                "validation part; give longer series, a smaller patch_length or validation_share=0"
            )
        checks = (
            validation_batches(
                held_lines,
                self.config,
                tokens=self.tokens,
                since=held_since,
                seed=self.seed,
                batch_size=self.batch_size,
            )
            if self.validation_share or validation_data is not None
            else []
        )
        module = ForecastTraining(
            forecaster,
            learning_rate=self.lr,
            weight_decay=self.weight_decay,
            steps=epochs * self.num_batches_per_epoch,
            likelihood=None if self.distr_output is None else Distribution(self.distr_output),
        )
        run(module, sampler, checks, self.trainer_kwargs)
        return Fitted(module, standards)

    def _with_hidden(self, raw: list[RawSeries], cut: list[int]) -> tuple[list[RawSeries], list[int]]:
        """The series, and for each share a copy of which that share of the cells is hidden at random."""
        rng = np.random.default_rng(self.seed)
        copies = [
            replace(one, hidden=rng.random(one.values.shape) < share) for share in self.hidden_shares for one in raw
        ]
        return [*raw, *copies], cut * (1 + len(self.hidden_shares))

    def _read(self, data: Dataset) -> list[RawSeries]:
        raw = [read_entry(entry, self.config, i, horizon=False) for i, entry in enumerate(data)]
        if not raw:
            raise SchemaError("training_data: empty; there is nothing to train on")
        return raw

    def _cut(self, raw: RawSeries) -> int:
        """First step that is not trained on."""
        if not self.validation_share:
            return raw.step + len(raw.values)
        held = max(self.prediction_length, int(len(raw.values) * self.validation_share))
        return raw.step + max(len(raw.values) - held, len(raw.values) // 2)

    def _timelines(self, raw: list[RawSeries], cut: list[int], standards: Standards) -> tuple[Lines, Ints]:
        lines, entry = timelines_of(raw, self.config, standards, self.channel_names)
        return lines, np.array(cut, np.int64)[entry]


class Fitted:
    """What a training left behind."""

    def __init__(self, module: ForecastTraining, standards: Standards) -> None:
        self.forecaster, self.standards = module.best(), standards
        self.history, self.best_loss = module.history, module.best_loss

    def predictor(self, estimator: GDN2Estimator) -> GDN2Predictor:
        """The weights in a predictor of their own."""
        made: GDN2Predictor = GDN2Predictor(
            config_json=estimator.config.to_json(),
            standards_json=self.standards.to_json(),
            freq=estimator.freq,
            channels=list(estimator.channel_names),
            batch_size=32,
            distr_output=estimator.distr_output,
        )
        made.forecaster.load_state_dict(self.forecaster.state_dict())
        made.history = self.history
        return made


def _warm(forecaster: Forecaster, start: Forecaster) -> None:
    same = replace(start.config, prediction_length=forecaster.config.prediction_length)
    if start.config.prediction_length != forecaster.config.prediction_length or same != replace(
        forecaster.config, dropout=start.config.dropout
    ):
        ours, theirs = json.loads(forecaster.config.to_json()), json.loads(start.config.to_json())
        differ = [name for name in ours if ours[name] != theirs[name]]
        raise ConfigError(f"predictor: was trained with another config ({differ} differ); a warm start needs the same")
    forecaster.load_state_dict(start.state_dict())


def _bounds(name: str, value: object, ok: bool, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{name}: must be {allowed}, got {value!r}")
