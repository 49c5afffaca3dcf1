"""Streams a file observation by observation, or event by event, as it once arrived, and keeps what the predictor said.

    <output>/forecasts.parquet    quantiles by stream, origin, step and channel
    <output>/surprises.parquet    bits of every value under the forecast made before it, and each row's status
                                  of events: those of the windows that a row closes, under its status
    <output>/online.safetensors   model, states and audit: `replay` goes on from it, `audit run` shows it

Late rows are counted and left out unless `arrivals` says otherwise, so that one bad stamp does not end a replay of
days. One that lies years ahead would ask for the forecasts of all those years and leave all that follows late:
columns.longest_gap refuses it before anything is observed.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from tsgdn2.datasets.frame import STREAM, TIME
from tsgdn2.errors import ConfigError
from tsgdn2.events.online import OnlineEvents
from tsgdn2.pipelines.audit_report import log_audit, online_view, write_audit
from tsgdn2.pipelines.event_source import open_data
from tsgdn2.pipelines.jobs import DataOptions, Replay
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.saved import Online, go_online, open_saved
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.source import Source, long_silence, span_ns
from tsgdn2.pipelines.streaming import clock_of, stream_events, stream_frame
from tsgdn2.pipelines.training import record_options, write_settings


def run(job: Replay) -> None:
    """Run the job. Errors: those of the data and the predictor; ConfigError where they do not fit."""
    screen = Screen(job.quiet)
    with screen.phase("reading"):
        saved = open_saved(job.predictor)
        source = open_data(job.data, job.columns, saved.config)
        online = go_online(saved, source.channels, job.predictor, audit=job.audit, arrivals=job.arrivals)
        channels = online.targets if isinstance(online, OnlineEvents) else online.channels
        source = source.select(channels)
        longest_gap = span_ns("columns.longest_gap", job.columns.longest_gap)
        _continued(online, source, job.columns, longest_gap)
        period = online.config.period_ns
        if source.period != period:
            raise ConfigError(f"data: its step is {source.freq}, the predictor's {online.freq}; give columns.period")
    folder = job.folder("replay")
    with Run.start(job.experiment, f"replay {source.name}", root=job.runs, tracking_uri=job.tracking_uri,
                   tags={"tsgdn2.job": "replay"}) as record:  # fmt: skip
        write_settings(job, folder)
        record_options(record, job)
        source.log(record, context="test")
        steps = source.frame[TIME].to_physical().to_numpy() // period
        every = job.forecast_every
        origins = range(int(steps.min()) // every * every + every - 1, int(steps.max()) + 1, every)
        with screen.phase("streaming", total=source.frame.height) as phase:
            if isinstance(online, OnlineEvents):
                streamed = stream_events(
                    online, source.frame, origins, longest_gap=longest_gap, speed=job.speed, tick=phase.advance
                )
            else:
                streamed = stream_frame(
                    online, source.frame, origins, longest_gap=longest_gap, speed=job.speed, tick=phase.advance
                )
        with screen.phase("saving"):
            online.save(folder / "online.safetensors")
            streamed.forecast_frame().write_parquet(folder / "forecasts.parquet")
            streamed.surprises.write_parquet(folder / "surprises.parquet")
            bits = streamed.surprises.select(f"surprise.{name}" for name in channels).to_numpy()
            found = {
                "observations": float(source.frame.height), "forecasts": float(len(streamed.forecasts)),
                "microseconds_per_observation": streamed.microseconds,
                "microseconds_per_observation_median": streamed.median_microseconds,
                "state_bytes": float(online.state_nbytes),
                "surprises_above_10_bits": float((bits[np.isfinite(bits)] > 10).sum()),
            }  # fmt: skip
            counted = [online.counters(stream) for stream in online.streams]
            for name in ("duplicates", "replaced", "late", "unknown"):
                if name in counted[0]:
                    found[f"rows/{name}"] = float(sum(counters[name] for counters in counted))
            record.metrics(found)
            for name in ("forecasts.parquet", "surprises.parquet", "online.safetensors"):
                record.artifact(folder / name, "replay")
            view = online_view(online, streamed.evictions)
            if view is not None:
                audit = write_audit(folder / "audit", [], view, f"replay of {source.name}")
                log_audit(record, folder / "audit", audit, {"state": "online.safetensors"})
    what = "events" if isinstance(online, OnlineEvents) else "observations"
    became = ", ".join(f"{count:,} {status}" for status, count in streamed.statuses.items())
    screen.say(
        f"{source.frame.height:,} {what} of {len(source.streams)} streams ({became}), "
        f"{len(streamed.forecasts):,} forecasts; "
        f"median {streamed.median_microseconds:,.0f} µs, mean {streamed.microseconds:,.0f} µs per observation, "
        f"{online.state_nbytes:,} bytes of state per stream"
    )
    screen.say(f"state: {folder / 'online.safetensors'}")


def _continued(online: Online, source: Source, columns: DataOptions, longest_gap: int) -> None:
    """Refuse data of which no stream goes on with the saved ones: every state would begin anew, and nobody notice.

    And data that begin too long after the saved state of a stream: columns.longest_gap holds there too.
    """
    saved, streams = online.streams, source.streams
    if saved and not set(saved) & set(streams):
        raise ConfigError(f"data: its streams {streams[:5]} are none of the saved state's {list(saved)[:5]}; "
                          "name the only stream of a file with --columns.name")  # fmt: skip
    for stream in saved:
        stamps, clock = source.frame.filter(pl.col(STREAM) == stream)[TIME].to_physical(), clock_of(online, stream)
        first = stamps.filter(stamps > clock).min()
        if isinstance(first, int) and first - clock > longest_gap:
            raise long_silence(stream, clock, first, source.origin, columns)
