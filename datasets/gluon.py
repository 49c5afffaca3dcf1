"""Frames and events to and from GluonTS datasets: gaps become NaN on the grid there, and gaps again on the way back.

    entry   item_id            "stream/channel" (univariate) or "stream" (multivariate)
            start              pandas.Period of the stream's first step, UTC without saying so
            target             [T] or [C, T], NaN is missing
            feat_dynamic_real  [F, T + future], when asked for
            feat_static_real   [S], feat_static_cat [S], when given

    events  target             [C, T], one row per target of `events.windows`, always two axes
            event_targets      [C] what each row is, in the grammar of events.py; a polars expression as it prints
            event_time         [E] int64 nanoseconds since 1970, UTC, ascending
            event_type         [E] text, None is missing
            event_marks        [E, M] float64, NaN is missing
            event_mark_names   [M] what the columns of event_marks are called; a model takes them by name

GluonTS cuts targets and dynamic features and hands every other field on as it is. So each piece of an entry, cut for
training or for a test, has ALL events: those after the end of its target are the future, and a model must not look at
them. They are shared, not copied.
The entries hold float64. GluonTS's own ListDataset and FileDataset turn them into float32 while reading; for exact
values iterate over `entries`, a PandasDataset, or the raw file (`from_gluonts` takes the loader of a file as well).
A row in which everything is missing leaves no trace in a dataset: it comes back as a gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pandas as pd
import polars as pl
from gluonts.dataset.arrow import ArrowWriter
from gluonts.dataset.common import FileDataset, ListDataset
from gluonts.dataset.jsonl import JsonLinesWriter
from gluonts.dataset.pandas import PandasDataset
from numpy.typing import NDArray

from tsgdn2.datasets import events as happenings
from tsgdn2.datasets.errors import DataError, FrameError
from tsgdn2.datasets.frame import STREAM, TIME, channels, normalise, validate
from tsgdn2.datasets.grid import Period, pandas_freq, period_ns, regular

Targets = Literal["univariate", "multivariate"]
Entry = dict[str, object]


def entries(
    frame: pl.DataFrame,
    period: Period,
    *,
    targets: Targets = "univariate",
    dynamic: Sequence[str] = (),
    future: int = 0,
    static_real: Mapping[str, Sequence[float]] | None = None,
    static_cat: Mapping[str, Sequence[int]] | None = None,
    collisions: Literal["error", "last"] = "error",
) -> list[Entry]:
    """Turn a frame into GluonTS entries, a dataset in its own right; streams in the frame's order, then channels.

    Args:
        frame: a frame of the schema; it need not be on the grid, stamps floor to their step.
        period: step of the grid, "1h" or nanoseconds.
        targets: "univariate" makes one entry per stream and channel, "multivariate" one per stream.
        dynamic: channels that are covariates and no targets; NaN where they are missing.
        future: the last `future` steps of each stream are known covariates alone: targets end before them.
        static_real, static_cat: features of each stream; every stream needs its row, all of one length.
        collisions: two different values of one cell are an "error", or the "last" wins.

    Raises FrameError, DataError.
    """
    names = [name for name in channels(frame) if name not in dynamic]
    _check(frame, names, targets, dynamic, future)
    on_grid = regular(frame, period, fill_gaps=True)
    lost = {stream: count for stream, count in on_grid.collisions.items() if count}
    if lost and collisions == "error":
        raise FrameError(
            f"{sum(lost.values())} values share a cell of {pandas_freq(period)} with another (streams {sorted(lost)}); "
            "choose a shorter period, or pass collisions='last'"
        )
    out: list[Entry] = []
    for (stream,), part in on_grid.frame.group_by([STREAM], maintain_order=True):
        end = part.height - future
        if end < 1:
            raise FrameError(f"stream {stream!r} has {part.height} steps, future={future} leaves no target")
        late = part[end:].select(pl.any_horizontal(pl.col(names).is_not_null().any())).item() if future else False
        if late:
            raise FrameError(f"stream {stream!r} has targets in its last {future} steps; future would drop them")
        start = pd.Period(pd.Timestamp(int(part[TIME].to_physical()[0])), freq=pandas_freq(period))
        shared = _shared(str(stream), part, dynamic, static_real, static_cat)
        target_CT = _numbers(part[:end], names)
        if targets == "multivariate":
            out.append({"item_id": str(stream), "start": start, "target": target_CT, **shared})
        else:
            for name, target_T in zip(names, target_CT, strict=True):
                out.append({"item_id": f"{stream}/{name}", "start": start, "target": target_T.copy(), **shared})
    return out


def event_entries(
    events: pl.DataFrame,
    every: Period,
    *,
    targets: happenings.Targets,
    start: happenings.Instant | None = None,
    stop: happenings.Instant | None = None,
    streams: Sequence[str] | None = None,
    marks: Sequence[str] | None = None,
) -> list[Entry]:
    """Turn events into GluonTS entries, one per stream: windows as target, and the events from first window to last.

    Args:
        events: an event frame.
        every, targets, start, stop, streams: as in `events.windows`; channels follow the order of `targets`.
        marks: marks to carry, in this order; None carries all. Carry none that is known later than its event's stamp.

    Raises FrameError.
    """
    wide = happenings.windows(events, every, targets=targets, start=start, stop=stop, streams=streams)
    carried = happenings.marks(events) if marks is None else list(marks)
    absent = [name for name in carried if name not in happenings.marks(events)]
    if absent:
        raise FrameError(f"marks names {absent[0]!r}, which is no mark of {happenings.marks(events)}")
    length = period_ns(every)
    of_stream = events.partition_by(STREAM, as_dict=True)
    out: list[Entry] = []
    for (stream,), part in wide.group_by([STREAM], maintain_order=True):
        first = int(part[TIME].to_physical()[0])
        its = of_stream.get((stream,), events.clear())
        when = its[TIME].to_physical().to_numpy()
        inside = slice(*np.searchsorted(when, (first, first + length * part.height)))
        out.append(
            {
                "item_id": str(stream),
                "start": pd.Period(pd.Timestamp(first), freq=pandas_freq(every)),
                "target": _numbers(part, list(targets)),
                "event_targets": [t if isinstance(t, str) else " ".join(str(t).split()) for t in targets.values()],
                "event_time": when[inside].copy(),
                "event_type": its[happenings.TYPE][inside].to_numpy().astype(object),
                "event_marks": _numbers(its[inside], carried).T.copy(),
                "event_mark_names": list(carried),
            }
        )
    return out


def to_list_dataset(dataset: Sequence[Entry], period: Period) -> list[Entry]:
    """Run `entries` through GluonTS's ListDataset, which checks shapes and makes values float32."""
    made: list[Entry] = ListDataset([dict(e) for e in dataset], freq=pandas_freq(period), one_dim_target=_flat(dataset))
    return made


def to_pandas_dataset(frame: pl.DataFrame, period: Period, *, targets: Targets = "univariate") -> PandasDataset:
    """Turn a frame into a GluonTS PandasDataset of float64 targets, covariates left out. Raises FrameError."""
    freq = pandas_freq(period)
    made: dict[str, pd.DataFrame] = {}
    names = channels(frame) if targets == "multivariate" else ["target"]
    for entry in entries(frame, period, targets=targets):
        target = np.atleast_2d(np.asarray(entry["target"]))
        index = pd.period_range(start=cast(pd.Period, entry["start"]), periods=target.shape[1], freq=freq)
        made[str(entry["item_id"])] = pd.DataFrame(dict(zip(names, target, strict=True)), index=index)
    return PandasDataset(made, target=names if targets == "multivariate" else "target", freq=freq, dtype=np.float64)


def to_file_dataset(
    dataset: Sequence[Entry], path: str | Path, period: Period, *, kind: Literal["jsonl", "arrow"] = "jsonl"
) -> Iterable[Entry]:
    """Write `entries` below the folder `path` and open them as a GluonTS FileDataset.

    The file keeps float64 (data.json or data.feather); what FileDataset gives is float32. An existing file is an
    error, since FileDataset would read both. Raises DataError.
    """
    folder = Path(path)
    if kind not in ("jsonl", "arrow"):
        raise DataError(f"kind must be 'jsonl' or 'arrow', got {kind!r}")
    if not dataset:
        raise DataError("dataset has no entries; a file of none can not be opened again")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"path must be a new or empty folder, {folder} is neither")
    folder.mkdir(parents=True, exist_ok=True)
    writer = JsonLinesWriter(use_gzip=False) if kind == "jsonl" else ArrowWriter()
    writer.write_to_folder(dataset, folder)
    made: Iterable[Entry] = FileDataset(folder, freq=pandas_freq(period), one_dim_target=_flat(dataset))
    return made


def from_gluonts(
    dataset: Iterable[Mapping[str, object]],
    period: Period,
    *,
    names: Sequence[str] | None = None,
    dynamic: Sequence[str] = (),
    keep_empty: bool = False,
) -> pl.DataFrame:
    """Turn a GluonTS dataset, or the raw loader of a GluonTS file, into a frame; rows of nothing but NaN are gaps.

    Args:
        dataset: entries with start and target; "stream/channel" as item_id is taken apart at its last slash.
        period: step of the series.
        names: channels of a multivariate target in order; None calls them "0", "1", ...; a univariate item without a
            slash in its item_id is one stream with the channel "target", one without item_id is called by its number.
        dynamic: names of the rows of feat_dynamic_real that become channels too.
        keep_empty: keep rows in which every channel is missing.

    Raises DataError naming the entry, FrameError for two values of one cell.
    """
    length, freq = period_ns(period), pandas_freq(period)
    parts: dict[str, list[pl.DataFrame]] = {}
    order: dict[str, None] = {}
    for number, entry in enumerate(dataset):
        item = str(entry.get("item_id", number))
        if "start" not in entry or "target" not in entry:
            raise DataError(f"entry {item!r} must have start and target, it has {sorted(entry)}")
        target = np.asarray(entry["target"], dtype=np.float64)
        if target.ndim not in (1, 2):
            raise DataError(f"target of entry {item!r} must be [T] or [C, T], got shape {target.shape}")
        stream, called = item, list(names or ())
        if target.ndim == 1:
            stream, slash, channel = item.rpartition("/")
            stream, called = (stream, [channel]) if slash else (item, called or ["target"])
        rows = np.atleast_2d(target)
        called = called or [str(c) for c in range(len(rows))]
        if len(called) != len(rows):
            raise DataError(f"entry {item!r} has {len(rows)} channels, names has {len(called)}: {called}")
        first = pd.Period(cast(pd.Period, entry["start"]), freq=freq).start_time.value
        columns = dict(zip(called, rows, strict=True)) | _dynamic(entry, item, dynamic)
        longest = max(len(row) for row in columns.values())
        made = pl.DataFrame(
            {c: np.pad(row, (0, longest - len(row)), constant_values=np.nan) for c, row in columns.items()}
        )
        when = pl.Series(TIME, first + length * np.arange(longest, dtype=np.int64))
        made = normalise(made.with_columns(when), name=stream, unit="ns")
        parts.setdefault(stream, []).append(made)
        order.update(dict.fromkeys(columns))
    if not parts:
        raise DataError("dataset has no entries, so the frame's channels are not known")
    frames = [_side_by_side(stream, made) for stream, made in parts.items()]
    frame = pl.concat(frames, how="diagonal").select(STREAM, TIME, *order)
    if not keep_empty:
        frame = frame.filter(pl.any_horizontal(pl.col(list(order)).is_not_null()))
    return validate(frame.sort(STREAM, TIME))


def _check(frame: pl.DataFrame, names: list[str], targets: str, dynamic: Sequence[str], future: int) -> None:
    if targets not in ("univariate", "multivariate"):
        raise DataError(f"targets must be 'univariate' or 'multivariate', got {targets!r}")
    unknown = [name for name in dynamic if name not in channels(frame)]
    if unknown:
        raise FrameError(f"dynamic names {unknown[0]!r}, which is no channel of {channels(frame)}")
    if not names:
        raise FrameError("dynamic names every channel; at least one target must be left")
    slashed = [name for name in names if "/" in name]
    if slashed and targets == "univariate":
        raise FrameError(f"channel {slashed[0]!r} holds a slash, which parts stream and channel; rename it")
    if future < 0 or (future and not dynamic):
        raise DataError(f"future must be 0, or positive together with dynamic covariates, got {future}")


def _shared(
    stream: str,
    part: pl.DataFrame,
    dynamic: Sequence[str],
    static_real: Mapping[str, Sequence[float]] | None,
    static_cat: Mapping[str, Sequence[int]] | None,
) -> Entry:
    """Fields that all entries of one stream have in common."""
    shared: Entry = {"feat_dynamic_real": _numbers(part, dynamic)} if dynamic else {}
    for field, given, dtype in (
        ("feat_static_real", static_real, np.float64),
        ("feat_static_cat", static_cat, np.int64),
    ):
        if given is None:
            continue
        if stream not in given or len(given[stream]) != len(next(iter(given.values()))):
            raise DataError(f"{field[5:]} must have one row of the same length for every stream; look at {stream!r}")
        shared[field] = np.asarray(given[stream], dtype=dtype)
    return shared


def _numbers(part: pl.DataFrame, names: Sequence[str]) -> NDArray[np.float64]:
    rows = [part[name].fill_null(np.nan).to_numpy() for name in names]
    return np.stack(rows).astype(np.float64) if rows else np.empty((0, part.height))


def _flat(dataset: Sequence[Entry]) -> bool:
    return not dataset or np.ndim(np.asarray(dataset[0]["target"])) == 1


def _dynamic(entry: Mapping[str, object], item: str, dynamic: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    if not dynamic:
        return {}
    rows = np.atleast_2d(np.asarray(entry.get("feat_dynamic_real", ()), dtype=np.float64))
    if len(rows) != len(dynamic):
        raise DataError(f"entry {item!r} has {len(rows)} rows of feat_dynamic_real, dynamic names {len(dynamic)}")
    return dict(zip(dynamic, rows, strict=True))


def _side_by_side(stream: str, parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Join the entries of one stream; a covariate that several of them carry must be the same in each."""
    frame = parts[0]
    for part in parts[1:]:
        again = [name for name in channels(part) if name in channels(frame)]
        both = frame.join(part, on=[STREAM, TIME], how="full", coalesce=True, suffix="\0")
        for name in again:
            if not both.select((pl.col(name).eq_missing(pl.col(f"{name}\0"))).all()).item():
                raise FrameError(
                    f"stream {stream!r} has two different series of channel {name!r}; item_ids must differ"
                )
        frame = both.drop(f"{name}\0" for name in again)
    return frame
