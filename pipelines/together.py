"""Univariate series through a multivariate predictor: the channels of one stream, cut at one moment, side by side.

    entries "stream/channel" [T]  ->  one entry "stream" [C, T]  ->  forecasts of single channels, in the first order

What is judged stays univariate, whatever a model looks at. Channels of one stream must come in the order of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
from gluonts.model.forecast import Forecast, QuantileForecast

from tsgdn2.errors import SchemaError
from tsgdn2.evaluation.metrics import LEVELS, Predicts

Entry: TypeAlias = Mapping[str, object]
Key: TypeAlias = tuple[str, object, int]


def together(entries: Sequence[Entry]) -> list[dict[str, object]]:
    """Stack the univariate entries of every stream, start and length: {item_id, start, target [C, T]}."""
    return [_stacked(entries, rows) for rows in _groups(entries).values()]


def apart(forecast: Forecast, names: Sequence[str], levels: Sequence[float] = LEVELS) -> list[QuantileForecast]:
    """Split a multivariate forecast into one of quantiles per channel."""
    quantiles_QHC = np.stack([np.asarray(forecast.quantile(level), np.float64) for level in levels])
    quantiles_QHC = quantiles_QHC.reshape(*quantiles_QHC.shape[:2], -1)
    if quantiles_QHC.shape[-1] != len(names):
        raise SchemaError(f"forecast of {forecast.item_id} has {quantiles_QHC.shape[-1]} channels, {len(names)} series")
    return [
        QuantileForecast(
            quantiles_QHC[:, :, column],
            start_date=forecast.start_date,
            forecast_keys=[str(level) for level in levels],
            item_id=name,
        )
        for column, name in enumerate(names)
    ]


class Together:
    """A predictor of univariate series around one of multivariate targets."""

    def __init__(
        self,
        predictor: Predicts,
        *,
        prepare: Callable[[Iterable[Entry]], Iterable[Entry]] = list,
        block: int = 4,
        levels: Sequence[float] = LEVELS,
    ) -> None:
        """prepare: what entries pass through before they are stacked. block: targets that are held at a time."""
        self.predictor, self.prepare, self.block, self.levels = predictor, prepare, block, tuple(levels)

    def predict(self, dataset: Iterable[Entry]) -> Iterator[QuantileForecast]:
        """Forecast every entry, in their order; the data set is read whole."""
        entries = list(dataset)
        groups = iter(_groups(entries).values())
        found: dict[int, QuantileForecast] = {}
        while part := list(islice(groups, self.block)):
            stacked = [_stacked(list(self.prepare([entries[row] for row in rows])), range(len(rows))) for rows in part]
            for rows, forecast in zip(part, self.predictor.predict(stacked), strict=True):
                names = [str(entries[row]["item_id"]) for row in rows]
                found.update(zip(rows, apart(forecast, names, self.levels), strict=True))
        for row in range(len(entries)):
            yield found[row]


def _groups(entries: Sequence[Entry]) -> dict[Key, list[int]]:
    """Numbers of the entries of each stream, start and length, in the order of the first of each."""
    found: dict[Key, list[int]] = {}
    for row, entry in enumerate(entries):
        stream = str(entry["item_id"]).rpartition("/")[0]
        found.setdefault((stream, entry["start"], len(np.asarray(entry["target"]))), []).append(row)
    return found


def _stacked(entries: Sequence[Entry], rows: Iterable[int]) -> dict[str, object]:
    own = [entries[row] for row in rows]
    return {
        "item_id": str(own[0]["item_id"]).rpartition("/")[0],
        "start": own[0]["start"],
        "target": np.stack([np.asarray(entry["target"], np.float64) for entry in own]),
    }
