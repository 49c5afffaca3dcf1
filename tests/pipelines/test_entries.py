"""Frequencies become periods, starts become absolute steps that follow each other, and a wrong field is named."""

import re

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tsgdn2.datasets.events import normalise_events
from tsgdn2.datasets.gluon import event_entries, to_file_dataset, to_list_dataset
from tsgdn2.errors import SchemaError
from tsgdn2.forecaster import ForecasterConfig
from tsgdn2.pipelines.entries import absolute_step, period_ns, read_entry
from tsgdn2.pipelines.event_table import event_example

HOUR = 3_600_000_000_000
LOG = normalise_events(
    pl.DataFrame({
        "stream": ["a"] * 4, "time": [0, HOUR // 2, HOUR, 3 * HOUR], "type": ["x", "y", "x", None],
        "m": [1.0, 2.0, None, 4.0], "d": [10.0, 20.0, 30.0, 40.0],
    }), unit="ns",
)  # fmt: skip


@pytest.mark.parametrize(
    ("freq", "period"), [("h", 3600e9), ("15min", 900e9), ("D", 86400e9), ("W-THU", 604800e9), ("M", 0), ("Q", 0)]
)
def test_periods_of_frequencies(freq, period):
    assert period_ns(freq) == period
    start = pd.Period("2024-05-16", freq=freq)
    steps = [absolute_step(start + i, period_ns(freq)) for i in range(5)]
    assert np.diff(steps).tolist() == [1, 1, 1, 1]


def of_events(marks, targets=("count",)):
    return ForecasterConfig(
        prediction_length=2, period_ns=HOUR, channels=len(targets), event_types=("x", "y"), event_targets=targets,
        event_marks=marks, event_mark_low=(-np.inf,) * len(marks), event_mark_high=(np.inf,) * len(marks),
    )  # fmt: skip


def made(targets=("count",), **options):
    (entry,) = event_entries(LOG, "1h", targets={name: name for name in targets}, **options)
    return entry


def read(entry, config):
    return read_entry(entry, config, 0, horizon=False)


@pytest.mark.parametrize("marks", [("m", "d"), ("d", "m"), ("d",), ("m",), ()])
def test_marks_are_met_by_name_in_the_order_of_the_model(marks, tmp_path):
    wanted = LOG.select(marks).fill_null(np.nan).to_numpy() if marks else np.zeros((4, 0))
    stored = to_file_dataset([made()], tmp_path / "f", "1h", kind="arrow")
    for (entry,) in ([made()], to_list_dataset([made()], "1h"), stored):
        np.testing.assert_array_equal(read(entry, of_events(marks)).events.marks, wanted)
    example = event_example(made(), marks, 3)
    np.testing.assert_array_equal(example[list(marks)].to_numpy(), wanted[:3])


def test_marks_that_are_not_there_or_have_no_names_are_refused_unless_they_are_as_many():
    with pytest.raises(SchemaError, match=r"event_marks: item 'a' carries \['m'\].* reads \['d'\]"):
        read(made(marks=["m"]), of_events(("d",)))
    bare = {name: value for name, value in made().items() if name != "event_mark_names"}
    with pytest.raises(SchemaError, match=r"event_marks: item 'a' has 2 columns without names.*event_mark_names"):
        read(bare, of_events(("d",)))
    assert read(bare, of_events(("m", "d"))).events.marks[0].tolist() == [1, 10]
    with pytest.raises(SchemaError, match=r"event_marks: item 'a' .*2 names"):
        read({**made(), "event_mark_names": ["m"]}, of_events(("m",)))


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"s": "sum(d)"}, ("count",)),
        ({"a": "sum(d)", "b": "count"}, ("count", "sum(d)")),
        ({"a": "count", "b": "sum(d)"}, ("count",)),
        ({"x": pl.col("d").quantile(0.9)}, ("count",)),
    ],
)  # fmt: skip
def test_targets_of_another_definition_or_order_are_refused(given, asked):
    (entry,) = event_entries(LOG, "1h", targets=given)
    with pytest.raises(SchemaError, match="event_targets: item 'a'") as caught:
        read(entry, of_events(("m", "d"), asked))
    assert str(list(asked)) in str(caught.value)
    texts = [text for text in given.values() if isinstance(text, str)]
    assert all(text in str(caught.value) for text in texts)


def test_the_name_of_a_target_is_free_and_entries_made_by_hand_are_taken_as_they_are(tmp_path):
    (named,) = event_entries(LOG, "1h", targets={"all": "count", "load": "sum(d)"})
    config = of_events(("m", "d"), ("count", "sum(d)"))
    assert read(named, config).values.shape == (4, 2)
    (stored,) = to_file_dataset([named], tmp_path / "f", "1h", kind="arrow")
    assert read(stored, config).values.shape == (4, 2)
    by_hand = {name: value for name, value in named.items() if name != "event_targets"}
    assert read(by_hand, config).values.shape == (4, 2)


WIDE = ForecasterConfig(
    prediction_length=2, period_ns=HOUR, known=1, known_cardinalities=(3,), past=1, static_real=1,
    static_cardinalities=(4,),
)  # fmt: skip
PLAIN = {
    "item_id": "it", "start": pd.Period("2024-01-01", freq="h"), "target": np.arange(5.0),
    "feat_dynamic_real": np.ones((1, 7)), "feat_dynamic_cat": np.ones((1, 7)),
    "past_feat_dynamic_real": np.ones((1, 5)), "feat_static_real": [0.5], "feat_static_cat": [2.0],
}  # fmt: skip
WRONG = {
    "a category between two": ("feat_static_cat", [0.7]),
    "a category too many": ("feat_static_cat", [0, 1]),
    "a category that is missing": ("feat_static_cat", [np.nan]),
    "an infinite category": ("feat_static_cat", [np.inf]),
    "a category that training had not": ("feat_static_cat", [4]),
    "a category that is a word": ("feat_static_cat", ["x"]),
    "a static feature too many": ("feat_static_real", [0.5, 0.6]),
    "no static feature": ("feat_static_real", []),
    "a static feature that is missing": ("feat_static_real", [np.nan]),
    "an infinite static feature": ("feat_static_real", [-np.inf]),
    "an infinite target": ("target", [1.0, np.inf, 2.0, 3.0, 4.0]),
    "a known covariate that is missing": ("feat_dynamic_real", np.full((1, 7), np.nan)),
    "an infinite known covariate": ("feat_dynamic_real", np.full((1, 7), np.inf)),
    "known covariates too many": ("feat_dynamic_real", np.ones((2, 7))),
    "a known category between two": ("feat_dynamic_cat", np.full((1, 7), 0.5)),
    "a known category that is missing": ("feat_dynamic_cat", np.full((1, 7), np.nan)),
    "an infinite known category": ("feat_dynamic_cat", np.full((1, 7), np.inf)),
    "known categories too many": ("feat_dynamic_cat", np.ones((2, 7))),
    "an infinite covariate of the past": ("past_feat_dynamic_real", np.full((1, 5), np.inf)),
    "covariates of the past too many": ("past_feat_dynamic_real", np.ones((2, 5))),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("horizon", [True, False])
def test_a_field_that_does_not_fit_is_named_with_its_item_and_nothing_is_cut_or_cast(case, horizon):
    field, value = WRONG[case]
    with pytest.raises(SchemaError, match=f"^{field}: item 'it'") as caught:
        read_entry({**PLAIN, field: value}, WIDE, 0, horizon=horizon)
    assert not re.search(r"np\.|\n", str(caught.value)), "plain numbers on one line"


def test_what_may_be_missing_is_taken_and_what_the_model_does_not_read_is_left():
    found = read_entry({**PLAIN, "past_feat_dynamic_real": np.full((1, 5), np.nan)}, WIDE, 0, horizon=True)
    assert np.isnan(found.past).all()
    assert found.static_categories.tolist() == [2]
    bare = ForecasterConfig(prediction_length=2, period_ns=HOUR)
    found = read_entry({**PLAIN, "feat_static_cat": [0.7], "feat_static_real": [1, 2, 3]}, bare, 0, horizon=True)
    assert (found.static_real.size, found.static_categories.size) == (0, 0)
