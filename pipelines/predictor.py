"""A trained forecaster as a GluonTS predictor: the whole history in one chunkwise pass, then one query.

    states = prefill(commits of the history);   quantiles = mean + scale * read(query at the last step)

Batch and streaming mean the same thing: `context_length` limited the training windows, not the memory. Series are
sorted by length and packed, the order of the data set is restored.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from gluonts.core.component import validated
from gluonts.core.serde import dump_json, load_json
from gluonts.dataset.common import Dataset
from gluonts.model.forecast import Forecast, QuantileForecast, SampleForecast
from gluonts.model.predictor import Predictor, RepresentablePredictor
from gluonts.torch.distributions import Output
from gluonts.torch.model.predictor import PyTorchPredictor
from gluonts.transform import Identity
from numpy.typing import NDArray

from tsgdn2 import checkpoint
from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.events.waits import NextEvent, next_events
from tsgdn2.forecaster import Forecaster, ForecasterConfig, Layout, QueryInputs, Reading
from tsgdn2.pipelines.distribution import Distribution
from tsgdn2.pipelines.entries import RawSeries, read_entry
from tsgdn2.pipelines.packing import NONE, Lines, pack, patch_clocks, run_of, streams_of, timelines_of
from tsgdn2.pipelines.predictor_folder import ARGUMENTS, KIND, SCHEMA, WEIGHTS, digest_of
from tsgdn2.scale import Floats
from tsgdn2.sequence import Peers
from tsgdn2.standards import Standards

SORT_BUFFER = 4096
PIECE = 128  # commits per pass; a multiple of the 64 at which the state is bounded


class GDN2Predictor(PyTorchPredictor):
    """PyTorchPredictor over a Forecaster; equal to its own round trip through serialize and deserialize."""

    @validated()
    def __init__(
        self,
        config_json: str,
        standards_json: str,
        freq: str,
        channels: list[str],
        batch_size: int = 32,
        distr_output: Output | None = None,
        num_samples: int = 100,
        device: str = "cpu",
    ) -> None:
        self.config = ForecasterConfig.from_json(config_json)
        self.standards = Standards.from_json(standards_json)
        self.freq, self.channels = freq, tuple(channels)
        self.num_samples = num_samples
        self.distribution = None if distr_output is None else Distribution(distr_output)
        super().__init__(
            input_names=["target"],
            prediction_net=Forecaster(self.config),
            batch_size=batch_size,
            prediction_length=self.config.prediction_length,
            input_transform=Identity(),
            device=device,
        )

    @property
    def forecaster(self) -> Forecaster:
        """The network."""
        return cast(Forecaster, self.prediction_net)

    def predict(self, dataset: Dataset, num_samples: int | None = None) -> Iterator[Forecast]:
        """Forecasts in the order of the data set; reads it in blocks, so that it may be longer than memory."""
        block: list[RawSeries] = []
        for index, entry in enumerate(dataset):
            block.append(read_entry(entry, self.config, index, horizon=True))
            if len(block) == SORT_BUFFER:
                yield from self._predict_block(block, num_samples)
                block = []
        yield from self._predict_block(block, num_samples)

    def _predict_block(self, block: Sequence[RawSeries], num_samples: int | None) -> Iterator[Forecast]:
        order = sorted(range(len(block)), key=lambda i: len(block[i].values))
        results: dict[int, Floats] = {}
        for begin in range(0, len(order), self.batch_size):
            rows = order[begin : begin + self.batch_size]
            for row, result in zip(rows, self._outputs([block[i] for i in rows], num_samples), strict=True):
                results[row] = result
        for index, raw in enumerate(block):
            array = results[index]  # [Q or samples, H, C]
            array = array[..., 0] if raw.flat or (self.config.channels == 1 and array.shape[-1] == 1) else array
            start = raw.start + len(raw.values)
            if self.distribution is None:
                keys = [str(level) for level in self.config.quantiles]
                yield QuantileForecast(array, start_date=start, forecast_keys=keys, item_id=raw.item_id)
            else:
                yield SampleForecast(array, start_date=start, item_id=raw.item_id)

    def next_events(self, dataset: Dataset) -> Iterator[NextEvent]:
        """The time from the end of every target to the next event, in the order of the data set; targets as `predict`.

        What `OnlineEvents.next_event` answers at that moment. ConfigError for a model that reads sensors.
        """
        if not self.config.event_types:
            raise ConfigError("dataset: this predictor reads sensors; only one with event_types knows the next event")
        block: list[RawSeries] = []
        for index, entry in enumerate(dataset):
            block.append(read_entry(entry, self.config, index, horizon=True))
            if len(block) == self.batch_size:
                yield from self._next_events(block)
                block = []
        yield from self._next_events(block)

    @torch.inference_mode()
    def _next_events(self, batch: Sequence[RawSeries]) -> list[NextEvent]:
        if not batch:
            return []
        lines, entry, reading = self._read(batch)
        assert reading.wait is not None, "a model of events has a wait head"
        each = reading.wait.double().numpy()
        mean = np.stack([np.sort(each[entry == i], axis=-1).mean(0) for i in range(len(batch))])
        end = np.array([int(lines.end[entry == i][0]) for i in range(len(batch))], np.int64)
        return next_events([raw.item_id for raw in batch], end, mean, self.config)

    @torch.inference_mode()
    def _outputs(self, batch: Sequence[RawSeries], num_samples: int | None) -> list[Floats]:
        """Of every series, [Q or samples, H, C] in the units of the channels."""
        lines, entry, reading = self._read(batch)
        out = reading.horizon.double()  # [lanes, H, lane C, outputs]
        if self.distribution is None:
            z = out.sort(-1).values
        else:
            z = self.distribution.sample(out, num_samples or self.num_samples)
        mean, scale = lines.statistics(np.arange(len(lines)), lines.end)
        y = mean[:, None, :, None] + scale[:, None, :, None] * z.numpy()
        return [np.moveaxis(np.concatenate(list(y[entry == i]), axis=1), -1, 0) for i in range(len(batch))]

    def _read(self, batch: Sequence[RawSeries]) -> tuple[Lines, NDArray[np.int64], Reading]:
        """One query per lane at the end of its history. Returns the lanes, the series of each, and what they read."""
        config, model = self.config, self.forecaster.eval()
        lines, entry = timelines_of(batch, config, self.standards, self.channels)
        lane, patch = np.arange(len(lines)), config.patch_length
        clock, span = lines.end, lines.span(patch)
        streams, until = streams_of(lines), lines.start + lines.steps
        clocks = [patch_clocks(lines, own, patch, 0, until) for own in streams]
        clocks = [ends[ends < clock[own[0]]] for own, ends in zip(streams, clocks, strict=True)]
        static = model.static(lines.static_real, lines.static_categories)
        state = model.initial_state(len(lines))
        held = [np.full(len(own), NONE) for own in streams]
        for begin in range(0, max(1, *map(len, clocks)), PIECE):  # what is in flight stays small, however long it is
            runs = [
                run_of(own, ends, begin, begin + PIECE, span).part(0, PIECE, before)
                for own, ends, before in zip(streams, clocks, held, strict=True)
            ]
            packed = pack(lines, runs, patch, np.concatenate([run.clocks for run in runs]))
            commits, held = packed.commits, packed.last
            layout = Layout(packed.length)
            if config.across:
                everyone = np.ones(len(commits.lane), np.bool_)
                layout = layout._replace(commit_peers=commits.peers(packed.moments, everyone))
            windows = lines.windows(commits.lane, commits.clock, patch, commits.waited)
            state = model.prefill(windows, commits.waited / span, layout, static, state)
        newest = np.concatenate(held)
        waited = np.where(newest == NONE, 0, clock - np.where(newest == NONE, 0, newest))
        asked = lines.windows(lane, clock, patch, waited)
        peers = None
        if config.across:
            column = np.concatenate([np.arange(len(own)) for own in streams])
            width = int(column.max()) + 1
            peers = Peers(lines.group, column, asked.heard(), groups=len(streams), width=width)
        inputs = QueryInputs(asked, lines.future(lane, clock), lines.lags(lane, clock, config.lag_skip))
        return lines, entry, model.read(inputs, waited / span, static, state, peers)

    def serialize(self, path: Path) -> None:
        """Folder with GluonTS's JSON files and the weights as checksummed safetensors; no pickle."""
        RepresentablePredictor.serialize(self, path)
        weights = {name: t.detach().cpu() for name, t in self.forecaster.state_dict().items()}
        facts = {"fingerprint": self.config.fingerprint, "predictor": digest_of(Path(path))}
        checkpoint.write(Path(path) / WEIGHTS, weights, facts, kind=KIND, schema=SCHEMA)

    @classmethod
    def deserialize(cls, path: Path, device: str | torch.device | None = None) -> "GDN2Predictor":
        """Read what `serialize` wrote; CheckpointError says what is wrong with it."""
        weights, kept = checkpoint.read(Path(path) / WEIGHTS, kind=KIND, schema=SCHEMA)
        if kept.get("predictor") != digest_of(Path(path)):
            raise CheckpointError(f"path: {path}/{ARGUMENTS} is missing or was altered; restore the whole folder")
        predictor = load_json((Path(path) / ARGUMENTS).read_text())
        predictor.prediction_net.to(weights["norm.weight"].dtype).load_state_dict(weights)
        return cast(GDN2Predictor, predictor if device is None else predictor.to(device))

    def __eq__(self, other: object) -> bool:
        """Same arguments and same weights, to the bit."""
        if not isinstance(other, GDN2Predictor):
            return NotImplemented
        mine, theirs = self.forecaster.state_dict(), other.forecaster.state_dict()
        return dump_json(self) == dump_json(other) and all(torch.equal(mine[n], theirs[n]) for n in mine)

    __hash__ = None  # type: ignore[assignment]


def load(path: str | Path) -> Predictor:
    """Any serialized GluonTS predictor, ours included."""
    return Predictor.deserialize(Path(path))


def facts(predictor: GDN2Predictor) -> dict[str, str]:
    """What a run logs about a predictor: every config field, as strings."""
    return {name: str(value) for name, value in json.loads(predictor.config.to_json()).items()}
