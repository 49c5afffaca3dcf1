"""What an audit leaves on disk and in MLflow: Parquet tables, figures, an HTML summary, a nested run.

    evictions.parquet   heads.parquet   ledger.parquet   alerts.parquet        offline: every write of the window
    online_heads.parquet   online_evictions.parquet                            beside the predictor: a bounded sample
    summary.html   summary.md   figures/

The two views differ where they should: offline knows all writes of its window, online knows the whole stream's sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from tsgdn2.events.online import OnlineEvents
from tsgdn2.online import OnlinePredictor
from tsgdn2.passage import Evicted
from tsgdn2.pipelines import figures
from tsgdn2.pipelines.accounts import Account, Clock, metrics
from tsgdn2.pipelines.report import Report
from tsgdn2.pipelines.runs import Run

SHOWN = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class OnlineView:
    """What the audit beside an online predictor says now."""

    heads: pl.DataFrame
    """One row per stream, channel and sampled head."""
    evictions: pl.DataFrame
    """Tracked writes that fell."""
    alerts: list[str]
    """What needs a human, in words."""


def online_view(online: OnlinePredictor | OnlineEvents, evictions: Sequence[Evicted]) -> OnlineView | None:
    """Read the audit of every lane; None where the predictor runs without one.

    evictions: what `online.evictions(drain=True)` gave on the way; each knows its stream, which may be gone by now.
    """
    audit, config, clock = online.audit, online.config, Clock(period=online.config.period_ns)
    if audit is None:
        return None
    channels = online.targets if isinstance(online, OnlineEvents) else online.channels

    def series(stream: str, channel: str | None) -> str:
        return f"{stream}/{channel}" if config.lanes > 1 else stream

    rows, alerts = [], []
    slots = [(stream, lane, slot) for stream in online.streams for lane, slot in enumerate(online.audit_slots(stream))]
    for stream, lane, slot in slots:
        found, name = audit.readings(slot), series(stream, channels[lane])
        alerts += [f"{name}: {alert.message}" for alert in found.alerts]
        for head in found.heads:
            ages = {key: float(clock.age(np.array([getattr(head, key)]))[0]) for key in ("mean_age", "half_life")}
            rows.append(
                {
                    "series": name, "layer": head.layer, "head": head.head, "writes": found.writes,
                    f"half_life_{clock.unit}": ages["half_life"], f"mean_age_{clock.unit}": ages["mean_age"],
                    "retained_writes": head.retained, "key_directions": head.directions, "energy": head.energy,
                    "crosstalk_over_signal": head.crosstalk / head.signal if head.signal > 0 else math.nan,
                    "ledger_residual": head.residual, "swell": head.swell,
                    **{f"booked_{key}": value for key, value in head.ledger.items()},
                    **{f"cohort_{key}": value for key, value in head.cohorts.items()},
                }
            )  # fmt: skip
    fallen = [
        {"series": series(stream, channel)}
        | {key: value for key, value in asdict(one).items() if key not in ("slot", "birth", "time", "evictor_time")}
        | {key: int(clock.moment(np.array([step]))[0].astype(np.int64))
           for key, step in (("written", one.birth), ("evicted", one.time), ("evictor_written", one.evictor_time))}
        for stream, channel, one in evictions
    ]  # fmt: skip
    frame = pl.DataFrame(fallen)
    if fallen:
        frame = frame.with_columns(pl.col("written", "evicted", "evictor_written").cast(pl.Datetime("ns")))
        frame = frame.with_columns(pl.when(pl.col("evictor") >= 0).then("evictor_written").alias("evictor_written"))
    return OnlineView(heads=pl.DataFrame(rows), evictions=frame, alerts=alerts)


def add_retention(report: Report, accounts: Sequence[Account]) -> None:
    """Add the retention curves, the causes, a heat map and the table of evictions to a page."""
    curves: dict[str, tuple[figures.Array, figures.Array]] = {}
    halves: dict[str, float] = {}
    for one in accounts[-1:]:
        own, own_halves = one.survival()
        curves |= own
        halves |= own_halves
    last = accounts[-1]
    chosen = dict(list(curves.items())[:12])
    followed = [when[when >= 0] for when in last.trace.clocks]
    span = float(last.clock.age(np.array([max(np.ptp(when) for when in followed if len(when))]))[0])
    longest = max((float(age[-1]) for age, _ in chosen.values() if len(age)), default=span)
    report.figure(
        "retention", figures.survival(chosen, halves, last.clock.unit, min(span, 1.15 * longest) or 1.0),
        f"Kaplan-Meier curves of layer {last.trace.layer}, {last.trace.k.shape[2]} heads together: a write counts as "
        "evicted once less than the threshold of its key is left. Writes still retained at the end are censored, not "
        "dropped.",
    )  # fmt: skip
    shares = {}
    for name, rows in last.heads.group_by("series", maintain_order=True):
        seen = rows.filter(pl.col("evicted") > 0)
        if seen.height:
            shares[str(name[0])] = (
                _column_mean(seen, "energy_lost_to_decay"),
                _column_mean(seen, "energy_lost_to_erase"),
            )
    if shares:
        ages = {cause: last.evictions.filter(pl.col("cause") == cause)[f"age_{last.clock.unit}"].to_numpy()
                for cause in ("decay", "erase")}  # fmt: skip
        chosen_shares = dict(list(shares.items())[:12])
        report.figure("causes", figures.causes(chosen_shares, ages, last.clock.unit),
                      "Energies are signed: an erase can give energy back, so bars need not end at 100 %.")  # fmt: skip
    rho, written, seen_at = last.retention(0, 0)
    title = f"{last.trace.lanes[0]}, layer {last.trace.layer}, head 0"
    report.figure(
        "heat_map", figures.heat_map(rho, last.clock.moment(written), last.clock.moment(seen_at), title),
        "Each column is one write, followed upward in time; dark is gone. Colours are spread by the square root.",
    )  # fmt: skip
    report.table(*eviction_rows(last), note=(
        f"The newest evictions, a few of each series; all {sum(one.evictions.height for one in accounts):,} are in "
        "`audit/evictions.parquet`. Times are ends of patches, UTC. The evictor is the later write whose erase took "
        "most; shares are of the evicted write's energy."
    ))  # fmt: skip


def eviction_rows(one: Account) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The newest evictions, a few of every series, as text: headings, rows."""
    age = f"age, {one.clock.unit}"
    columns = (
        "series",
        "head",
        "written",
        "evicted",
        age,
        "cause",
        "decay took",
        "erase took",
        "evictor",
        "evictor took",
    )
    each = max(1, SHOWN // max(1, len(one.trace.lanes)))
    newest = (
        one.evictions.sort("evicted", descending=True).group_by("series", maintain_order=True).head(each).head(SHOWN)
    )
    rows = []
    for row in newest.iter_rows(named=True):
        evictor = row["evictor_1"]
        cells = (row["series"], str(row["head"]), f"{row['written']:%d %b %H:%M}", f"{row['evicted']:%d %b %H:%M}",
                 f"{row[f'age_{one.clock.unit}']:.1f}", row["cause"], f"{row['lost_to_decay']:.0%}",
                 f"{row['lost_to_erase']:.0%}", f"{evictor:%d %b %H:%M}" if evictor else "-",
                 f"{row['took_1']:.0%}" if evictor else "-")  # fmt: skip
        rows.append(dict(zip(columns, cells, strict=True)))
    return columns, rows


def head_rows(one: Account) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """One line per series, its heads averaged: headings, rows."""
    columns = ("series", f"half-life, {one.clock.unit}", "evicted", "by erase", "writes retained", "key directions",
               "crosstalk / signal", "ledger residual")  # fmt: skip
    rows = []
    for (name,), part in one.heads.group_by("series", maintain_order=True):
        halves = part["half_life"].to_numpy()
        half = float(np.median(halves))
        cells = (str(name), f"{half:.3g}" if math.isfinite(half) else "beyond the window",
                 f"{part['evicted'].sum():,} of {part['writes'].sum():,}",
                 f"{_column_mean(part, 'evicted_by_erase'):.0%}" if part["evicted"].sum() else "-",
                 f"{_column_mean(part, 'retained_writes'):.1f}",
                 f"{_column_mean(part, 'key_directions'):.1f} of {one.trace.k.shape[-1]}",
                 f"{_column_mean(part, 'crosstalk_over_signal'):.2f}",
                 f"{part['ledger_residual'].to_numpy().max():.0e}")  # fmt: skip
        rows.append(dict(zip(columns, cells, strict=True)))
    return columns, rows


def online_rows(view: OnlineView) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """One line per watched head: headings, rows."""
    named = {
        "writes": "writes", "writes retained": "retained_writes", "key directions": "key_directions",
        **{name.replace("_", " "): name for name in view.heads.columns if name.startswith(("half_life_", "mean_age_"))},
        "crosstalk / signal": "crosstalk_over_signal",
    }  # fmt: skip
    rows = [
        {"series": row["series"], "layer, head": f"{row['layer']}, {row['head']}"}
        | {heading: f"{row[name]:,.3g}" if math.isfinite(row[name]) else "-" for heading, name in named.items()}
        for row in view.heads.iter_rows(named=True)
    ]
    return ("series", "layer, head", *named), rows


def write_audit(folder: Path, accounts: Sequence[Account], view: OnlineView | None, subject: str) -> dict[str, float]:
    """Write everything into a folder; gives the figures that a run logs."""
    folder.mkdir(parents=True, exist_ok=True)
    report = Report("Eviction audit", subject)
    found: dict[str, float] = {}
    if accounts:
        for name in ("heads", "evictions", "ledger", "alerts"):
            pl.concat([getattr(one, name) for one in accounts]).write_parquet(folder / f"{name}.parquet")
        found |= metrics(accounts)
        report.heading("What the state kept, and what it lost")
        report.paragraph(
            f"The newest {accounts[0].trace.k.shape[1]} commits of each series were followed write by write. The "
            f"retained writes rebuild the state to {found['state_residual/max']:.1e} of its size, and the ledger "
            f"closes to {found['ledger_residual/max']:.1e}: nothing is unaccounted for."
        )
        for one in accounts:
            report.table(*head_rows(one), note=f"Layer {one.trace.layer}, mean over its audited heads.")
        add_retention(report, accounts)
        _add_alerts(report, [f"{row['series']}: {row['message']}" for one in accounts for row in one.alerts.to_dicts()])
    if view is not None:
        view.heads.write_parquet(folder / "online_heads.parquet")
        view.evictions.write_parquet(folder / "online_evictions.parquet")
        found |= {"online/evictions_tracked": float(view.evictions.height), "online/alerts": float(len(view.alerts))}
        if view.heads.height:
            residuals = view.heads["ledger_residual"].to_numpy()
            found["online/ledger_residual_max"] = float(np.nanmax(residuals))
        report.heading("The audit beside the predictor")
        report.paragraph(
            f"{view.heads.height} heads were watched over the whole stream; {view.evictions.height:,} of the tracked "
            "writes fell. Sums and cohorts are in `online_heads.parquet`."
        )
        if view.heads.height:
            report.table(*online_rows(view), note="Since the stream began; ages are weighted by what is left.")
        _add_alerts(report, view.alerts)
    report.write(folder, "summary")
    return found


def log_audit(run: Run, folder: Path, found: Mapping[str, float], params: Mapping[str, object]) -> None:
    """Log a written audit as a run nested in the job's."""
    with run.child("audit", tags={"tsgdn2.job": "audit"}) as audit:
        audit.params(params)
        audit.metrics(found)
        for path in sorted(folder.iterdir()):
            audit.artifact(path, "audit")


def _add_alerts(report: Report, alerts: Sequence[str]) -> None:
    if alerts:
        more = f" (and {len(alerts) - 8} more)" if len(alerts) > 8 else ""
        report.paragraph(f"**{len(alerts)} alerts:** " + "; ".join(alerts[:8]) + more)
    else:
        report.paragraph("No alert.")


def _column_mean(frame: pl.DataFrame, name: str) -> float:
    values = frame[name].to_numpy().astype(np.float64)
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
