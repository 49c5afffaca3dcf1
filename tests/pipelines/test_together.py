"""Univariate series through a multivariate predictor: stacked, split, and in the order that they came in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pandas as pd
import pytest
from gluonts.model.forecast import QuantileForecast

from tsgdn2.errors import SchemaError
from tsgdn2.evaluation.backtest import windows
from tsgdn2.evaluation.baselines import SeasonalNaive
from tsgdn2.pipelines.together import Together, apart, together

START = pd.Period("2024-01-01 00:00", freq="h")


def entries(streams: int = 2, channels: int = 3, length: int = 40) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    return [
        {"item_id": f"s{stream}/c{channel}", "start": START + stream, "target": rng.normal(size=length)}
        for stream in range(streams)
        for channel in range(channels)
    ]


def test_channels_of_one_stream_are_stacked_in_their_order() -> None:
    data = entries()
    made = together([*data[::2], *data[1::2]])
    assert [one["item_id"] for one in made] == ["s0", "s1"]
    np.testing.assert_array_equal(made[0]["target"], np.stack([data[row]["target"] for row in (0, 2, 1)]))
    assert made[1]["start"] == START + 1


@pytest.mark.parametrize("block", [1, 2, 5])
def test_a_predictor_of_all_channels_gives_what_it_gives_to_each(block: int) -> None:
    test = windows(entries(), 4, 3)
    naive = SeasonalNaive(4, 5, spread="normal")
    alone, beside = list(naive.predict(test.input)), list(Together(naive, block=block).predict(test.input))
    assert len(alone) == len(beside) == 18
    for one, other in zip(alone, beside, strict=True):
        assert (one.item_id, one.start_date) == (other.item_id, other.start_date)
        for level in (0.1, 0.5, 0.9):
            np.testing.assert_allclose(other.quantile(level), one.quantile(level), rtol=1e-12)


def test_entries_are_prepared_before_they_are_stacked() -> None:
    seen: list[np.ndarray] = []

    class Spy(SeasonalNaive):
        def predict(self, dataset: Iterable[Mapping[str, object]]) -> Iterator[QuantileForecast]:  # type: ignore[override]
            for entry in dataset:
                seen.append(np.asarray(entry["target"]))
                yield from super().predict([entry])

    def zeros(part: Iterable[Mapping[str, object]]) -> list[dict[str, object]]:
        return [{**entry, "target": np.zeros_like(entry["target"])} for entry in part]

    list(Together(Spy(4, 5), prepare=zeros).predict(entries(1)))
    assert [one.shape for one in seen] == [(3, 40)]
    assert not seen[0].any()


def test_a_forecast_of_other_channels_is_refused() -> None:
    (made,) = SeasonalNaive(4, 5).predict(together(entries(1)))
    with pytest.raises(SchemaError, match="3 channels, 2 series"):
        apart(made, ["a", "b"])
