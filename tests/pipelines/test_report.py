"""Pages, figures and comparisons: what they show is what they were given."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tsgdn2.audit import AuditConfig, retained_keys
from tsgdn2.evaluation.metrics import LEVELS, Judged
from tsgdn2.online import OnlinePredictor
from tsgdn2.pipelines import figures
from tsgdn2.pipelines.accounts import account, metrics
from tsgdn2.pipelines.audit_report import online_view
from tsgdn2.pipelines.comparison import COLUMNS, OURS, Comparison, Model, number
from tsgdn2.pipelines.estimator import GDN2Estimator
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.report import Report
from tsgdn2.pipelines.traces import PADDING, collect

HOUR = 3_600_000_000_000
PNG = b"\x89PNG"


def judged(errors: dict[str, float], windows: int = 3, horizon: int = 4) -> Judged:
    """Windows whose every quantile is off by the series' error; the truth is 1."""
    items = [name for name in errors for _ in range(windows)]
    shape = (len(items), len(LEVELS), 1, horizon)
    off = np.array([errors[name] for name in items])[:, None, None, None]
    return Judged(
        items=tuple(items), starts=tuple(pd.Period("2024-01-01", "h") + 4 * (n % windows) for n in range(len(items))),
        windows=tuple(n % windows for n in range(len(items))), labels=np.ones((len(items), 1, horizon)),
        quantiles=np.broadcast_to(1 + off, shape).copy(), seasonal=np.ones((len(items), 1)), levels=LEVELS,
        channels=("target",),
    )  # fmt: skip


def compared(ours: dict[str, float]) -> Comparison:
    reference = Model(name="SeasonalNaive", judged=judged(dict.fromkeys(ours, 1.0)))
    return Comparison(models=(reference, Model(name=OURS, judged=judged(ours), microseconds=12.0, state_bytes=1024)))


def test_the_relative_figure_is_the_geometric_mean_over_channels_not_over_series() -> None:
    found = compared({"A/x": 0.5, "B/x": 0.5, "A/y": 2.0})
    assert set(found.groups[OURS]) == {"x", "y"}
    assert found.relative(OURS, "crps") == pytest.approx(math.sqrt(0.5 * 2.0))
    assert found.relative(OURS, "mase") == pytest.approx(1.0)


def test_a_channel_without_a_figure_has_no_vote() -> None:
    assert compared({"A/x": 0.5, "A/y": 0.0}).relative(OURS, "crps") == pytest.approx(0.5)


def test_channels_in_which_ours_is_beaten_are_named() -> None:
    (line,) = compared({"A/x": 0.5, "A/y": 2.0}).lost(OURS)
    assert line.startswith("y (SeasonalNaive")


def test_a_table_has_a_row_for_every_model_and_the_loser_too() -> None:
    rows = compared({"A/x": 3.0}).rows()
    assert [row["model"] for row in rows] == ["SeasonalNaive", OURS]
    assert rows[1]["CRPS rel."] == "3.000"
    assert rows[1]["state bytes"] == "1,024"
    assert set(rows[0]) == set(COLUMNS)


@pytest.mark.parametrize(
    ("value", "text"), [(0.00263, "0.0026"), (0.5, "0.500"), (12345.6, "12,345.6"), (math.nan, "-")]
)
def test_numbers_keep_three_digits_or_so(value: float, text: str) -> None:
    assert number(value) == text


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_report_escapes_what_it_is_given_and_keeps_both_forms(tmp_path: Path) -> None:
    report = Report("A < B", "of `code` & more")
    report.heading("Results")
    report.table(("model", "x|y"), [{"model": "<script>", "x|y": "1"}], ours=("<script>",), note="**bold**")
    report.figure("empty", figures.losses([{"step": 1.0, "val_loss": 0.5}]), 'it said "hi"')
    page = report.write(tmp_path)
    read = Tags()
    read.feed(page.read_text())
    assert "script" not in read.seen
    assert {"code", "strong", "img", "table"} <= set(read.seen)
    markdown = page.with_suffix(".md").read_text()
    assert "| model | x\\|y |" in markdown
    assert "(figures/empty.png)" in markdown
    assert (tmp_path / "figures" / "empty.png").read_bytes()[:4] == PNG


def test_every_figure_draws_even_where_nothing_was_seen() -> None:
    times = np.datetime64("2024-01-01", "ns") + np.arange(8) * np.timedelta64(1, "h")
    panel = figures.Panel(title="t", unit="K", times=times, truth=np.full(8, np.nan), quantiles=np.ones((1, 8)),
                          levels=(0.5,), origins=times[:1])  # fmt: skip
    drawn = (
        figures.bands([panel]),
        figures.reliability({"m": {0.5: math.nan}}),
        figures.relative_scores({"m": {"x": math.nan, "y": 0.5}}),
        figures.survival({"x": (np.zeros(0), np.zeros(0))}, {"x": math.inf}, "days", 1.0),
        figures.heat_map(np.zeros((2, 8)), times, times[:2], "title"),
        figures.causes({"x": (0.4, -0.1)}, {"decay": np.zeros(0), "erase": np.zeros(0)}, "days"),
        figures.losses([]),
    )
    assert all(png[:4] == PNG for png in drawn)


@pytest.fixture(scope="module")
def predictor() -> GDN2Predictor:
    rng = np.random.default_rng(1)
    entries = [{"start": pd.Period("2024-01-01", "h"), "target": rng.normal(size=200), "item_id": "s/x"}]
    trainer = {"max_epochs": 1}
    return GDN2Estimator("h", 4, layers=2, width=16, mlp=16, num_batches_per_epoch=2, batch_size=4, patch_length=4,
                         trainer_kwargs=trainer).train(entries)  # fmt: skip


def test_a_trace_rebuilds_the_state_from_what_its_writes_left(predictor: GDN2Predictor) -> None:
    rng = np.random.default_rng(2)
    long, short = rng.normal(size=400), rng.normal(size=120)
    long[40:80] = np.nan
    begin = pd.Period("2024-01-01", "h")
    entries = [{"start": begin, "target": long, "item_id": "s/x"}, {"start": begin, "target": short, "item_id": "s/y"}]
    layers = collect(predictor, entries, layers=(0, 1), window=64)
    assert [trace.layer for trace in layers] == [0, 1]
    for trace in layers:
        assert trace.lanes == ("s/x", "s/y")
        assert (trace.clocks[1] == PADDING).sum() == 64 - 30, "the short lane is padded on the left"
        assert (np.diff(trace.clocks[0]) >= 4).all()
        done = account(trace, HOUR)
        assert done.heads["state_residual"].max() < 1e-5
        assert done.heads["ledger_residual"].max() < 1e-5
        assert done.heads["writes"].to_list() == [64] * 4 + [30] * 4
        assert (done.evictions["evicted"] > done.evictions["written"]).all()
        rebuilt = torch.einsum("bthk,bthv->bhkv", retained_keys(trace.k, trace.e, trace.g), trace.z)
        assert torch.allclose(rebuilt[1], trace.final[1], atol=1e-5), "nothing was before the short lane's window"
        assert metrics([done])["writes"] == 4 * (64 + 30)


def test_a_trace_ends_where_a_longer_window_ends(predictor: GDN2Predictor) -> None:
    values = np.random.default_rng(3).normal(size=300)
    entries = [{"start": pd.Period("2024-01-01", "h"), "target": values, "item_id": "s/x"}]
    (short,), (long,) = (collect(predictor, entries, layers=(1,), window=window) for window in (16, 1000))
    assert torch.equal(short.final, long.final)
    assert torch.equal(short.k, long.k[:, -16:])
    assert long.clocks.shape == (1, 75)
    assert bool((long.initial == 0).all())


def test_the_online_view_names_the_stream_that_a_slot_has_now_and_an_eviction_the_one_that_it_was_of(
    predictor: GDN2Predictor,
) -> None:
    rng = np.random.default_rng(4)
    # Nothing is retained at this threshold for long, so that every stream has evictions.
    audit = AuditConfig(threshold=0.9, hysteresis=0.05)
    online = OnlinePredictor.from_predictor(predictor, channels=("x", "y"), audit=audit)

    def feed(stream: str, steps: int) -> None:
        for step in range(steps):
            online.observe(stream, step * HOUR, rng.normal(size=2))

    feed("first", 120)
    feed("gone", 120)
    feed("last", 120)
    fallen = online.evictions(drain=True)
    online.remove("gone")
    online.remove("first")
    feed("new", 40)
    view = online_view(online, fallen + online.evictions(drain=True))
    assert view is not None
    writes = dict(view.heads.select("series", "writes").iter_rows())
    assert writes == {"last/x": 29, "last/y": 29, "new/x": 9, "new/y": 9}
    told = set(view.evictions["series"])
    assert {"first/x", "gone/y", "last/x", "new/x"} <= told
    assert {name.partition("/")[0] for name in told} == {"first", "gone", "last", "new"}
