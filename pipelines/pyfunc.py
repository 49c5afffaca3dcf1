"""The MLflow form of a trained predictor: a data frame of observations in, a data frame of quantiles out.

The predictor is stored as GluonTS serialized it, and the model's code is a three-line file that imports this module:
no class of ours is pickled, but whoever loads the model needs tsgdn2 installed (its requirements say so).

    in     item_id, timestamp, then one column per channel; several columns are one multivariate target
           of events: item_id, timestamp, type, then one column per mark (event_table.py)
    out    item_id, timestamp, (channel, for several,) then one column per quantile: "0.1" ... "0.9"

Rows may come in any order and with holes: an absent step is a missing observation. The whole history of an item is
read on every call; known future covariates and static features have no column here, use the predictor for those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, TypedDict, cast

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModelContext
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset

from tsgdn2.errors import SchemaError
from tsgdn2.forecaster_config import ForecasterConfig
from tsgdn2.pipelines.tracking import silent

KEYS = ("item_id", "timestamp")
_CODE = """\"\"\"Loads a tsgdn2 forecaster into MLflow; written by tsgdn2.pipelines.pyfunc.\"\"\"

from mlflow.models import set_model

from tsgdn2.pipelines.pyfunc import ForecastModel

set_model(ForecastModel())
"""


class Entry(TypedDict):
    """One item of a GluonTS data set."""

    item_id: str
    start: pd.Period
    target: NDArray[np.float32]


class ForecastLike(Protocol):
    """What is used of a GluonTS forecast: quantile(level) gives [H], or [H, C] for C channels."""

    item_id: str | None
    index: pd.PeriodIndex

    def quantile(self, q: float | str) -> NDArray[np.floating]:
        """Values of one level."""
        ...


class PredictorLike(Protocol):
    """What is used of a GluonTS predictor."""

    def predict(self, dataset: Sequence[Entry]) -> Iterable[ForecastLike]:
        """One forecast for each entry, in order."""
        ...


def load_predictor(path: Path) -> PredictorLike:
    """Load any serialized GluonTS predictor, ours too; GluonTS is imported only here, when it is needed."""
    from gluonts.model.predictor import Predictor

    loaded: PredictorLike = Predictor.deserialize(path)
    return loaded


def channels_of(frame: pd.DataFrame) -> list[str]:
    """The channel columns, in order.

    Raises:
        SchemaError: A key column is absent, or no column is left for a channel.
    """
    absent = [key for key in KEYS if key not in frame.columns]
    channels = [str(column) for column in frame.columns if column not in KEYS]
    if absent or not channels:
        raise SchemaError(
            f"model_input: columns item_id, timestamp and at least one channel are needed, got {list(frame.columns)}; "
            "rename them"
        )
    return channels


def naive_utc(times: pd.Series) -> pd.Series:
    """Time stamps without a zone, in UTC; naive ones are taken as UTC.

    Raises:
        SchemaError: A time is missing or can not be read.
    """
    try:
        stamps = pd.to_datetime(times, utc=True).dt.tz_localize(None)
    except (ValueError, TypeError) as error:
        raise SchemaError(
            f"timestamp: dates and times are needed, got {times.iloc[0]!r} ({error}); convert them"
        ) from error
    if stamps.isna().any():
        raise SchemaError(f"timestamp: {int(stamps.isna().sum())} of {len(stamps)} are missing; drop those rows")
    return stamps


def inferred_freq(frame: pd.DataFrame) -> str:
    """The period of the observations, from the first item without holes.

    Raises:
        SchemaError: No item shows it.
    """
    for _, rows in frame.groupby("item_id", sort=False):
        stamps = pd.DatetimeIndex(naive_utc(rows["timestamp"]).sort_values())
        if len(stamps) >= 3 and pd.infer_freq(stamps) is not None:
            return str(stamps.to_period().freqstr)
    raise SchemaError("freq: input_example has no item with 3 or more even steps to take it from; give freq, 'h' say")


def entries(frame: pd.DataFrame, channels: Sequence[str], freq: str) -> list[Entry]:
    """The frame as a GluonTS data set on an even grid: holes are NaN, and the last row of a step wins.

    Raises:
        SchemaError: A column is absent or not numeric, a time is missing, or the frame is empty.
    """
    if list(channels) != channels_of(frame):
        raise SchemaError(
            f"model_input: channels {list(channels)} are needed, got {channels_of(frame)}; rename or reorder"
        )
    if frame.empty:
        raise SchemaError("model_input: at least one row is needed, got none; send the history of the items")
    offset = to_offset(freq)
    result: list[Entry] = []
    for item, rows in frame.assign(timestamp=naive_utc(frame["timestamp"])).groupby("item_id", sort=False):
        ordered = rows.sort_values("timestamp", kind="stable")
        stamps = pd.DatetimeIndex(ordered["timestamp"])
        if isinstance(offset, pd.offsets.Tick):  # periods of 15 minutes begin where the first one does: floor before
            stamps = stamps.floor(freq)
        steps = stamps.to_period(freq)
        try:
            values = ordered[list(channels)].to_numpy(dtype=np.float32)
        except (ValueError, TypeError) as error:
            raise SchemaError(
                f"model_input: channels {list(channels)} hold numbers, item {item!r} has {error}"
            ) from error
        if np.isinf(values).any():
            raise SchemaError(f"model_input: item {item!r} has infinite values; make them NaN if they mean missing")
        table = pd.DataFrame(values, index=steps)
        table = table[~table.index.duplicated(keep="last")]
        grid = pd.period_range(steps[0], steps[-1], freq=freq)
        target = np.ascontiguousarray(table.reindex(grid).to_numpy(dtype=np.float32).T)
        result.append({"item_id": str(item), "start": grid[0], "target": target[0] if len(channels) == 1 else target})
    return result


def _data(frame: pd.DataFrame, channels: Sequence[str], marks: Sequence[str] | None, freq: str) -> Sequence[Entry]:
    """The frame as a data set: of sensors, or with marks (none are a list, too) of events."""
    if marks is None:
        return entries(frame, channels, freq)
    from tsgdn2.pipelines.event_table import event_frame_entries

    return cast(list[Entry], event_frame_entries(frame, channels, marks, freq))


def quantile_frame(forecasts: Iterable[ForecastLike], channels: Sequence[str], levels: Sequence[str]) -> pd.DataFrame:
    """Forecasts as rows: item_id, timestamp (a step's start), channel if several, one column per level."""
    parts = []
    for forecast in forecasts:
        horizon = len(forecast.index)
        values_LHC = np.stack([np.asarray(forecast.quantile(level)).reshape(horizon, -1) for level in levels])
        for number, channel in enumerate(channels):
            keys: dict[str, object] = {"item_id": str(forecast.item_id), "timestamp": forecast.index.to_timestamp()}
            if len(channels) > 1:
                keys["channel"] = channel
            columns = {
                level: row.astype(np.float64) for level, row in zip(levels, values_LHC[:, :, number], strict=True)
            }
            parts.append(pd.DataFrame(keys | columns))
    return pd.concat(parts, ignore_index=True)


def levels_of(forecast: ForecastLike) -> list[str]:
    """The quantile levels that a forecast was made with; 0.1 ... 0.9 when it can give any."""
    keys: list[str] = [key for key in getattr(forecast, "forecast_keys", []) if key != "mean"]
    return sorted(keys, key=float) or [f"0.{digit}" for digit in range(1, 10)]


def signature_of(channels: Sequence[str], levels: Sequence[str], marks: Sequence[str] | None = None) -> ModelSignature:
    """What goes in and out, as MLflow checks it; marks: of a model of events."""
    keys: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "item_id"), ColSpec(DataType.datetime, "timestamp")]
    channel: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "channel")] if len(channels) > 1 else []
    values: list[ColSpec | TensorSpec] = [ColSpec(DataType.double, name) for name in channels]
    if marks is not None:
        marked = (ColSpec(DataType.double, name, required=False) for name in marks)
        values = [ColSpec(DataType.string, "type", required=False), *marked]
    return ModelSignature(
        inputs=Schema([*keys, *values]),
        outputs=Schema([*keys, *channel, *(ColSpec(DataType.double, level) for level in levels)]),
    )


class ForecastModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined, unused-ignore]
    """A serialized predictor that MLflow can load and serve; it keeps no state between calls."""

    predictor: PredictorLike | None = None

    def load_context(self, context: PythonModelContext) -> None:
        """Load the predictor from the artifact folder "predictor"."""
        self.predictor = load_predictor(Path(context.artifacts["predictor"]))

    def predict(  # type: ignore[override, unused-ignore]
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: Mapping[str, object] | None = None,  # noqa: ARG002  MLflow passes it by name
    ) -> pd.DataFrame:
        """Forecast every item from its last step on.

        Raises:
            SchemaError: The frame does not fit the signature.
        """
        assert self.predictor is not None, "MLflow calls load_context first"
        config = context.model_config
        data = _data(model_input, config["channels"], config.get("marks"), config["freq"])
        return quantile_frame(self.predictor.predict(data), config["channels"], config["levels"])


def save_forecast_model(
    path: Path, predictor_path: Path, input_example: pd.DataFrame, *, freq: str | None = None
) -> ModelSignature:
    """Write the MLflow model folder of a serialized predictor; no server and no network is needed.

    Args:
        path: The new folder.
        predictor_path: Folder that `predictor.serialize` wrote.
        input_example: A frame as above, small; it is stored beside the model, and forecast once to check the model.
        freq: Period of the observations as pandas writes it ("h", "15min"); None takes it from the example.

    Raises:
        SchemaError: The example does not fit.
    """
    predictor = load_predictor(predictor_path)
    config: object = getattr(predictor, "config", None)
    marks: list[str] | None = None
    if isinstance(config, ForecasterConfig) and config.event_types:
        marks, channels = list(config.event_marks), list(config.event_targets)
    else:
        channels = channels_of(input_example)
    period = freq or inferred_freq(input_example)
    forecasts = list(predictor.predict(_data(input_example, channels, marks, period)))
    levels = levels_of(forecasts[0])
    quantile_frame(forecasts, channels, levels)
    signature = signature_of(channels, levels, marks)
    example = input_example.assign(
        item_id=input_example["item_id"].astype(str), timestamp=naive_utc(input_example["timestamp"])
    ).astype(dict.fromkeys(channels if marks is None else marks, np.float64))
    with silent(), TemporaryDirectory() as draft:
        code = Path(draft, "forecast_model.py")
        code.write_text(_CODE, encoding="utf-8")
        mlflow.pyfunc.save_model(
            path=str(path),
            python_model=str(code),
            artifacts={"predictor": str(predictor_path.resolve())},
            signature=signature,
            input_example=example,
            model_config={"freq": period, "channels": channels, "levels": levels, "marks": marks},
            pip_requirements=[
                f"{name}=={version(name)}" for name in ("tsgdn2", "mlflow", "gluonts", "torch", "pandas")
            ],
        )
    return signature
