"""Streams that arrive out of order, and everything that a predictor holds of one of them, to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tsgdn2.audit import AuditConfig
from tsgdn2.forecaster import Forecaster, ForecasterConfig
from tsgdn2.online import OnlinePredictor
from tsgdn2.standards import Standards

HOUR = 3_600_000_000_000
CHANNELS = ("a", "b", "c")
SIZES = {
    "prediction_length": 6, "period_ns": HOUR, "channels": 3, "half_life": 40.0, "calendar": ("day", "week"),
    "patch_length": 4, "width": 16, "layers": 2, "heads": 2, "key_dim": 4, "value_dim": 8, "mlp": 16,
}  # fmt: skip
GAPS = (1, 1, 1, 1, 2, 3, 9, 40)
AUDIT = AuditConfig(layers="all", heads="all", ring=3, reservoir=3, threshold=0.5)
KINDS = {
    "plain": ({}, {"late": "tag"}),
    "joint, audited": ({"mode": "joint", "known": 2, "past": 1}, {"late": "drop", "audit": AUDIT}),
    "attention, watermark": ({"mode": "attention", "lag_skip": 5}, {"late": "tag", "watermark": 7, "audit": AUDIT}),
    "replay": (
        {"known": 1, "past": 1, "norm_max": 0.5},
        {"late": "replay", "watermark": 3, "checkpoints": 3, "checkpoint_every": 2, "audit": AUDIT},
    ),
}


class Disorder:
    """Rows are (step, values [C], covariates [F + U], known ones first); a missing cell is NaN."""

    hour, channels, audit, kinds = HOUR, CHANNELS, AUDIT, KINDS

    def predictor(self, seed=0, options=None, **changes):
        """A predictor of random weights, the same for the same seed and changes of its config."""
        torch.manual_seed(seed)
        forecaster = Forecaster(ForecasterConfig(**{**SIZES, **changes}))
        with torch.no_grad():
            for name, parameter in forecaster.named_parameters():
                if name.startswith("head"):
                    parameter.normal_(std=0.3)
        known, past, static = (getattr(forecaster.config, name) for name in ("known", "past", "static_real"))
        scales = Standards(
            default=(2.0,) * 3, known_mean=(0.5,) * known, known_scale=(2.0,) * known, past_mean=(1.0,) * past,
            past_scale=(0.5,) * past, static_mean=(0.0,) * static, static_scale=(1.0,) * static,
        )  # fmt: skip
        return OnlinePredictor(forecaster, scales, channels=CHANNELS, freq="h", **(options or {}))

    def rows(self, rng, count, known=0, past=0):
        """Rows in the order of time: missing cells, rows without a value, gaps, cells of one moment one by one."""
        step, rows = int(rng.integers(-50, 50)), []
        for _ in range(count):
            step += int(rng.choice(GAPS))
            values = np.where(rng.random(3) < 0.3, np.nan, rng.normal(size=3) * 5 + 10)
            if rng.random() < 0.15:
                values[:] = np.nan
            covariates = rng.normal(size=known + past)
            covariates[known:][rng.random(past) < 0.3] = np.nan
            parts = int(rng.integers(2, 5)) if rng.random() < 0.3 else 1
            whose = rng.integers(0, parts, 3), np.append(np.full(known, -1), rng.integers(0, parts, past))
            for part in range(parts):  # some of them hold nothing at all
                own = np.where(whose[0] == part, values, np.nan)
                rows.append((step, own, np.where((whose[1] == part) | (whose[1] == -1), covariates, np.nan)))
        return rows

    def permuted(self, rng, rows, watermark):
        """The rows in an order in which none comes more than `watermark` steps behind the newest."""
        arrival = [row[0] + rng.integers(0, watermark + 1) + rng.random() / 2 for row in rows]
        return [rows[i] for i in np.argsort(arrival)]

    def delayed(self, rng, rows, longest):
        """The rows in an order in which some let up to `longest` others pass."""
        delay = np.where(rng.random(len(rows)) < 0.2, rng.integers(0, longest, len(rows)), 0)
        return [rows[i] for i in np.argsort(np.arange(len(rows)) + delay + rng.random(len(rows)) / 2)]

    def merged(self, rows):
        """What the rows say in the end, one row per step in the order of time: the last value of a cell wins."""
        cells, covariates = {}, {}
        for step, values, told in rows:
            cells[step] = np.where(np.isfinite(values), values, cells.get(step, np.full(3, np.nan)))
            covariates[step] = np.where(np.isfinite(told), told, covariates.get(step, np.full(len(told), np.nan)))
        return [(step, cells[step], covariates[step]) for step in sorted(cells)]

    def feed(self, online, rows, stream="s", **options):
        """Observe every row; returns their statuses."""
        return [
            online.observe(stream, step * HOUR, values, **self.told(online, covariates), **options).status
            for step, values, covariates in rows
        ]

    def told(self, online, covariates):
        """Arguments for covariates [.., F + U]."""
        known, past = online.config.known, online.config.past
        parts = {"known": covariates[..., :known] if known else None, "past": covariates[..., known:] if past else None}
        return {name: part for name, part in parts.items() if part is not None}

    def state(self, online, stream="s"):
        """The stream's row of the slab but its counters, its rows of the model's state and of the audit, its events."""
        slab, slot = online._slab, online._slots[stream]
        lanes = slab.lanes(np.array([slot]))
        found = {}
        for name, tensor in slab.tensors(np.array([slot])).items():
            if name != "stream.counters":
                found[name] = _bits(tensor)
        if online.audit is not None:
            found |= {name: _bits(tensor) for name, tensor in online.audit.tensors(lanes).items()}
            queued = online.audit.queued(lanes.tolist())
            found["events"] = [repr(replace(event, slot=event.slot - int(lanes[0]))) for event in queued]
        return found

    def waiting(self, online, stream="s"):
        """What the routes hold of a stream beside its state: held rows, log, places of the checkpoints, counters."""
        slot, route, found = online._slots[stream], online._route, {"counters": online.counters(stream)}
        if hasattr(route, "held"):
            found["held"] = [_bits(array) for array in route._held(slot)]
            route = route.route
        if hasattr(route, "tracks"):
            track = route._track(slot)
            found |= {"log": [_bits(array) for array in track.log.all()], "track": (track.places, track.touched)}
        return found

    def made(self, kind, cls=OnlinePredictor, seed=0, **model):
        """A predictor of one of the kinds."""
        own, options = KINDS[kind]
        options = {**options, "watermark": options.get("watermark", 0) * HOUR}
        online = self.predictor(seed, options, **own, **model)
        return online if cls is OnlinePredictor else cls.of(online)

    def some(self, rng, kind, count):
        """Rows for a kind, some of them late."""
        model = KINDS[kind][0]
        return self.delayed(rng, self.rows(rng, count, model.get("known", 0), model.get("past", 0)), 25)

    def seen(self, online, row, stream, **options):
        """What observing a row says, to the bit."""
        step, values, covariates = row
        found = online.observe(stream, step * HOUR, values, **self.told(online, covariates), **options)
        return found.status, found.surprise.tobytes()

    def asked(self, online, stream):
        """A forecast, to the bit."""
        known = online.config.known
        return online.forecast(stream, future=np.full((6, known), 0.5) if known else None).quantiles.tobytes()

    def whole(self, online, stream):
        """All that there is of a stream, to the bit."""
        tensors = online._tensors(np.array([online._slots[stream]]))
        late = [tuple(map(str, one[1:])) for one in online.late_arrivals() if one.stream == stream]
        evicted = [(e.channel, repr(replace(e.eviction, slot=0))) for e in online.evictions() if e.stream == stream]
        return {
            "tensors": {name: _bits(t) for name, t in tensors.items() if name != "late.dropped"},
            "state": self.state(online, stream), "waiting": self.waiting(online, stream), "late": late,
            "evictions": evicted,
        }  # fmt: skip

    def all(self, online):
        """All that there is of every stream."""
        return {stream: self.whole(online, stream) for stream in online.streams}

    def filled(self, kind, streams=("s", "t"), count=60, cls=OnlinePredictor, seed=3):
        """A predictor of one of the kinds that has seen some streams and forecast them."""
        online = self.made(kind, cls)
        for n, stream in enumerate(streams):
            for row in self.some(np.random.default_rng(seed + n), kind, count):
                self.seen(online, row, stream)
            self.asked(online, stream)
        return online


def _bits(values):
    array = np.ascontiguousarray(values)
    return array.dtype.str, array.shape, array.tobytes()


@pytest.fixture(scope="session")
def disorder():
    return Disorder()
