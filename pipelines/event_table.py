"""Events as an MLflow model takes them: a pandas frame of one event per row, made into entries.

    item_id, timestamp, type, then one column per mark            type None and mark NaN are missing

Rows may come in any order; those of one item and instant keep theirs. A history ends with the window of its item's last
event, so the forecast begins with the window after it; whoever knows of silence since then asks the predictor itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd
import polars as pl

from tsgdn2.datasets.events import TYPE, normalise_events
from tsgdn2.datasets.frame import STREAM, TIME
from tsgdn2.datasets.gluon import event_entries
from tsgdn2.errors import SchemaError
from tsgdn2.pipelines.entries import marks_of, period_ns

ITEM, TIMESTAMP = "item_id", "timestamp"


def event_example(entry: Mapping[str, object], marks: Sequence[str], most: int) -> pd.DataFrame:
    """The first `most` events of an entry as such a frame; marks: those to show, by name."""
    times = cast(np.ndarray, entry["event_time"])[:most]
    values = marks_of(entry, marks, len(cast(np.ndarray, entry["event_time"])), str(entry.get(ITEM, "0")))[:most]
    columns = {name: values[:, column] for column, name in enumerate(marks)}
    keys = {ITEM: str(entry.get(ITEM, "0")), TIMESTAMP: times.astype("datetime64[ns]")}
    return pd.DataFrame({**keys, TYPE: cast(np.ndarray, entry["event_type"])[:most], **columns})


def event_frame_entries(
    frame: pd.DataFrame, targets: Sequence[str], marks: Sequence[str], freq: str
) -> list[dict[str, object]]:
    """GluonTS entries, one per item; a column of type or of a mark that is absent is missing in all rows.

    Errors: SchemaError for an absent key or an unknown column, an empty frame; FrameError for what is in the cells.
    """
    absent = [name for name in (ITEM, TIMESTAMP) if name not in frame.columns]
    unknown = [str(name) for name in frame.columns if name not in (ITEM, TIMESTAMP, TYPE, *marks)]
    if absent or unknown:
        raise SchemaError(
            f"model_input: columns item_id, timestamp, type and {list(marks)} are needed, got {list(frame.columns)}; "
            "rename them"
        )
    if frame.empty:
        raise SchemaError("model_input: at least one event is needed, got none; send the history of the items")
    stamps = pd.to_datetime(frame[TIMESTAMP], utc=True)
    if stamps.isna().any():
        raise SchemaError(f"timestamp: {int(stamps.isna().sum())} of {len(stamps)} are missing; drop those rows")
    types = frame[TYPE].tolist() if TYPE in frame.columns else [None] * len(frame)
    numbers = {name: frame[name].to_numpy(np.float64) if name in frame.columns else np.nan for name in marks}
    table = pl.DataFrame(
        {
            STREAM: frame[ITEM].astype(str).tolist(),
            TIME: stamps.dt.tz_localize(None).to_numpy("datetime64[ns]").astype(np.int64),
            TYPE: pl.Series([None if pd.isna(name) else str(name) for name in types], dtype=pl.String),
        }
    ).with_columns(**{name: pl.lit(values) if np.ndim(values) == 0 else values for name, values in numbers.items()})
    events = normalise_events(table, unit="ns", marks=list(marks))
    return event_entries(events, period_ns(freq), targets={name: name for name in targets})
