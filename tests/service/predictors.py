"""Small predictors for the tests of the memory, rows for them, and a twin that is never interrupted to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.online import OnlinePredictor
from tsgdn2.service.batch import Batch
from tsgdn2.service.limits import Limits
from tsgdn2.service.memory import Memory
from tsgdn2.service.sqlite_store import SqliteStore
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
CHANNELS = ("x", "y")
LATE = {
    "tag": {"late": "tag"},
    "replay": {"late": "replay", "watermark": 2 * HOUR, "checkpoints": 2, "checkpoint_every": 2},
}


def predictor(kind: str = "tag", **options) -> OnlinePredictor:
    """A predictor of the same random weights each time; patches of three hours."""
    torch.manual_seed(0)
    config = ForecasterConfig(
        prediction_length=4, period_ns=HOUR, channels=2, half_life=40.0, calendar=("day",), patch_length=3, width=8,
        layers=1, heads=1, key_dim=4, value_dim=4, mlp=8,
    )  # fmt: skip
    forecaster = Forecaster(config)
    with torch.no_grad():
        for name, parameter in forecaster.named_parameters():
            if name.startswith("head"):
                parameter.normal_(std=0.3)
    given = {**LATE[kind], **options}
    return OnlinePredictor(forecaster, Standards(default=(2.0,) * 2), channels=CHANNELS, freq="h", **given)


def limits(streams: int = 100, **more) -> Limits:
    """Limits under which so many streams of the predictor may be hot."""
    online = predictor(more.pop("kind", "tag"))
    return Limits(memory_bytes=streams * (online.state_nbytes + 4_096), **more)


def memory(folder: Path, bounds: Limits | None = None, *, kind: str = "tag", **more) -> Memory:
    """A memory over a store in a folder, started."""
    made = Memory(predictor(kind), SqliteStore(folder / "store.db"), bounds or limits(kind=kind), **more)
    made.start()
    return made


def batch(
    streams: Sequence[str], steps: Sequence[int], sequences: Sequence[int] | None = None, seed: int = 0, source="mqtt"
) -> Batch:
    """Rows whose values are told by their stream and step; one cell in six is missing."""
    values = np.empty((len(streams), 2))
    for row, (stream, step) in enumerate(zip(streams, steps, strict=True)):
        dice = np.random.default_rng([seed, step + 10_000, *stream.encode()])
        values[row] = np.where(dice.random(2) < 1 / 6, np.nan, dice.normal(size=2) * 3 + 10)
    return Batch.of(
        streams, np.array(steps, np.int64) * HOUR, values, sources=[source] * len(streams), sequences=sequences
    )


def observed(online: OnlinePredictor, rows: Batch) -> list[tuple[str, bytes]]:
    """Statuses and surprises of rows that a predictor observes one by one."""
    found = [
        online.observe(stream, time, values)
        for stream, time, values in zip(rows.streams, rows.times.tolist(), rows.values, strict=True)
    ]
    return [(one.status, one.surprise.tobytes()) for one in found]


def blobs(made: Memory, streams: Sequence[str]) -> dict[str, bytes]:
    """The whole state of some streams."""
    return {
        stream: made.ask([stream], lambda online, name=stream: online.take_out(name)).result() for stream in streams
    }


def ledger(made: Memory, stream: str | None = None) -> list[tuple[str, str]]:
    """Kinds and streams of the ledger so far, once the worker is idle."""
    made.ask([], lambda online: made._sessions.flush()).result()
    return [(row.kind, row.stream) for row in made._store.read_ledger(0, 10_000, stream=stream)]


def feed(made: Memory, twin, streams: list[str], steps: range, **more) -> None:
    """Observe rows with both; the statuses are the same."""
    for step in steps:
        rows = batch(streams, [step] * len(streams), [step] * len(streams), **more)
        assert list(made.observe(rows).result().status) == [status for status, _ in observed(twin, rows)]


def poison(stream: str):
    """A reading that does what a fault would: one number of a stream's state is no longer finite."""

    def strike(online) -> None:
        lanes = torch.from_numpy(online._slab.lanes(np.array([online._slots[stream]])))
        layer = online._slab.state.layers[0]
        layer[sorted(layer)[0]][lanes[:1]] = torch.nan

    return strike
