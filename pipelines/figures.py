"""The pictures of the reports, as PNG bytes: light background, colours that colour-blind readers can tell apart, units.

Each function takes finished numbers and draws; none of them computes a score. Matplotlib's state is left alone: every
figure has its own Agg canvas.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, cast

import matplotlib as mpl
import matplotlib.colors
import matplotlib.lines
import matplotlib.patches
import matplotlib.ticker
import numpy as np
from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, RED, SKY, PINK, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#1b1f24"
COLOURS: Final = (BLUE, ORANGE, GREEN, PINK, RED, SKY)
MARKS: Final = ("o", "s", "^", "D", "v", "P")
STYLE: Final = {
    "font.size": 10.5, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.edgecolor": "#8a929c", "text.color": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False, "figure.dpi": 110,
    "savefig.facecolor": "white", "figure.constrained_layout.use": True, "lines.solid_capstyle": "round",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """Consecutive forecasts of one series beside what came true."""

    title: str
    unit: str
    times: NDArray[np.datetime64]
    """[T]"""
    truth: Array
    """[T], NaN where nothing was observed."""
    quantiles: Array
    """[Q,T]"""
    levels: tuple[float, ...]
    origins: NDArray[np.datetime64]
    """First step of each forecast."""


def bands(panels: Sequence[Panel]) -> bytes:
    """Forecast bands, three panels in a row."""
    with _style():
        columns = min(3, len(panels))
        lines = -(-len(panels) // columns)
        figure, axes = _grid(lines, columns, width=4.3 * columns, height=2.35 * lines + 0.5)
        for axis, panel in zip(axes, panels, strict=False):
            for low, high, alpha in _pairs(panel.levels):
                axis.fill_between(
                    panel.times, panel.quantiles[low], panel.quantiles[high], color=BLUE, alpha=alpha, lw=0
                )
            middle = int(np.abs(np.array(panel.levels) - 0.5).argmin())
            axis.plot(panel.times, panel.quantiles[middle], color=BLUE, lw=1.4)
            axis.plot(panel.times, panel.truth, color=INK, lw=1.0)
            lonely = (
                np.isfinite(panel.truth)
                & ~np.isfinite(np.roll(panel.truth, 1))
                & ~np.isfinite(np.roll(panel.truth, -1))
            )
            axis.plot(panel.times[lonely], panel.truth[lonely], color=INK, ls="", marker="o", ms=2.5)
            for origin in panel.origins:
                axis.axvline(origin, color="#b8c0c8", lw=0.7, ls=(0, (2, 2)))
            axis.set_title(panel.title)
            axis.set_ylabel(panel.unit)
            axis.margins(x=0)
            _days(axis.xaxis, 5)
            axis.grid(axis="x", visible=False)
        handles = [
            mpl.lines.Line2D([], [], color=INK, lw=1.2, label="observed"),
            mpl.lines.Line2D([], [], color=BLUE, lw=1.6, label="median forecast"),
            *(mpl.patches.Patch(color=BLUE, alpha=min(1.0, total), label=f"{share:.0%} interval")
              for share, total in _legend(panels[0].levels)),
            mpl.lines.Line2D([], [], color="#b8c0c8", lw=1, ls=(0, (2, 2)), label="origin: nothing later was seen"),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=10)
        return _png(figure)


def reliability(shares: Mapping[str, Mapping[float, float]]) -> bytes:
    """Share of observations at or below each quantile, by model; the diagonal is perfect."""
    with _style():
        figure, (left, right) = _grid(1, 2, width=10.4, height=4.2)
        left.plot([0, 1], [0, 1], color="#8a929c", lw=1, ls="--", label="calibrated")
        right.axhline(0, color="#8a929c", lw=1, ls="--")
        for (name, share), colour, mark in zip(shares.items(), _cycle(COLOURS), _cycle(MARKS), strict=False):
            levels, found = np.array(list(share)), np.array(list(share.values()))
            left.plot(levels, found, color=colour, marker=mark, ms=5, lw=1.6, label=name)
            right.plot(levels, 100 * (found - levels), color=colour, marker=mark, ms=5, lw=1.6)
        left.set(title="Calibration", xlabel="quantile level", ylabel="share of observations below", xlim=(0, 1),
                 ylim=(0, 1), aspect="equal")  # fmt: skip
        right.set(title="Distance from calibrated", xlabel="quantile level", ylabel="percentage points", xlim=(0, 1))
        left.legend(loc="upper left", fontsize=9.5)
        return _png(figure)


def relative_scores(scores: Mapping[str, Mapping[str, float]]) -> bytes:
    """One line per series: CRPS relative to the reference, one mark per model; left of 1 is better."""
    with _style():
        groups = list(next(iter(scores.values())))
        figure, (axis,) = _grid(1, 1, width=8.6, height=0.42 * len(groups) + 1.3)
        y = np.arange(len(groups))[::-1]
        for line in y:
            axis.axhline(line, color="#e4e7eb", lw=0.8, zorder=0)
        for number, (name, found) in enumerate(scores.items()):
            colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
            values = [found[g] for g in groups]
            axis.scatter(
                values, y, color=colour, marker=mark, s=64 if not number else 38, label=name, zorder=3 - 0.1 * number
            )
        axis.axvline(1, color=INK, lw=1)
        axis.set_yticks(y, groups)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(mpl.ticker.FixedLocator([0.25, 0.35, 0.5, 0.7, 1, 1.4, 2, 3, 5]))
        axis.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axis.set(xlabel="CRPS relative to SeasonalNaive (log scale; left of 1 is better)", title="Every channel")
        axis.grid(axis="y", visible=False)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return _png(figure)


def survival(curves: Mapping[str, tuple[Array, Array]], halves: Mapping[str, float], unit: str, span: float) -> bytes:
    """Kaplan-Meier curves: the share of writes still retained at each age, one per series; half-lives in the legend."""
    with _style():
        figure, (axis,) = _grid(1, 1, width=8.6, height=4.2)
        dashes = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)))
        for number, (name, (age, share)) in enumerate(curves.items()):
            x, y = (
                np.concatenate([[0.0], age, [span]]),
                np.concatenate([[1.0], share, share[-1:] if len(share) else [1.0]]),
            )
            half = halves[name]
            said = f"half-life {half:,.3g} {unit}" if np.isfinite(half) else "more than half survive"
            axis.step(x, 100 * y, where="post", color=COLOURS[number % len(COLOURS)],
                      ls=dashes[number // len(COLOURS) % 3], lw=1.8, label=f"{name}: {said}")  # fmt: skip
        axis.axhline(50, color="#8a929c", lw=0.9, ls=":")
        axis.set(title="Retention: how long a write stays in the state", xlabel=f"age of the write, {unit}",
                 ylabel="writes not evicted, %", ylim=(0, 102), xlim=(0, span))  # fmt: skip
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9.5)
        return _png(figure)


def heat_map(retention: Array, written: NDArray[np.datetime64], seen: NDArray[np.datetime64], title: str) -> bytes:
    """Retention [seen, written] of every write at chosen moments."""
    with _style({"axes.grid": False}):
        figure, (axis,) = _grid(1, 1, width=8.6, height=4.6)
        later = seen[:, None] >= written[None, :]
        shown = np.where(later, np.clip(retention, 0.0, 1.0), np.nan)
        image = axis.pcolormesh(
            written, seen, shown, cmap="cividis", shading="nearest", norm=mpl.colors.PowerNorm(0.5, 0, 1)
        )
        bar = figure.colorbar(image, ax=axis, pad=0.02, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
        bar.set_label("retention of the write, |r| / |k|")
        for part in (axis.xaxis, axis.yaxis):
            _days(part, 7)
        axis.set(title=title, xlabel="written", ylabel="looked at")
        return _png(figure)


def causes(shares: Mapping[str, tuple[float, float]], ages: Mapping[str, Array], unit: str) -> bytes:
    """Left: mean share of an evicted write's energy lost to decay and to erase, by series. Right: ages at eviction."""
    with _style():
        figure, (left, right) = _grid(1, 2, width=10.4, height=0.3 * len(shares) + 2.2)
        y = np.arange(len(shares))[::-1]
        decay, erase = (np.array([pair[i] for pair in shares.values()]) for i in (0, 1))
        left.barh(y, 100 * decay, color=SKY, label="decay: time passed")
        left.barh(y, 100 * erase, left=100 * np.maximum(decay, 0), color=RED, label="erase: a later write took it")
        left.set_yticks(y, list(shares))
        left.set(title="Why writes were evicted", xlabel="energy lost until the eviction, % of the write")
        left.grid(axis="y", visible=False)
        figure.legend(loc="outside lower left", ncols=2, fontsize=9.5)
        names = {"decay": SKY, "erase": RED}
        filled = {name: own for name, own in ages.items() if len(own)}
        if filled:
            top = max(float(own.max()) for own in filled.values())
            edges = np.linspace(0, max(top, 1e-9), 32)
            right.hist(list(filled.values()), bins=list(edges), stacked=True, color=[names[name] for name in filled])
        right.set(title="Age at eviction, by main cause", xlabel=f"age, {unit}", ylabel="writes")
        right.grid(axis="x", visible=False)
        return _png(figure)


def losses(history: Sequence[Mapping[str, float]]) -> bytes:
    """Training and validation loss by step."""
    with _style():
        figure, (axis,) = _grid(1, 1, width=8.6, height=3.2)
        for name, colour, mark in (("train_loss", ORANGE, "s"), ("val_loss", BLUE, "o")):
            points = [(row["step"], row[name]) for row in history if name in row]
            if points:
                axis.plot(
                    *zip(*points, strict=True), color=colour, marker=mark, ms=4, lw=1.6, label=name.replace("_", " ")
                )
        axis.set(title="Training", xlabel="step", ylabel="quantile loss, standard units")
        if axis.get_lines():
            axis.legend()
        return _png(figure)


def _style(more: Mapping[str, object] | None = None) -> AbstractContextManager[None]:
    return mpl.rc_context(cast(Any, {**STYLE, **(more or {})}))


def _days(part: Axis, ticks: int) -> None:
    part.set_major_locator(dates.AutoDateLocator(minticks=3, maxticks=ticks))  # type: ignore[no-untyped-call]
    part.set_major_formatter(dates.DateFormatter("%-d %b"))  # type: ignore[no-untyped-call]


def _pairs(levels: tuple[float, ...]) -> list[tuple[int, int, float]]:
    """Index pairs of the outermost, and an inner interval, with the opacity of each layer."""
    last = len(levels) - 1
    inner = max(1, last // 4)
    return [(0, last, 0.18), (inner, last - inner, 0.30)] if last >= 4 else [(0, last, 0.25)] if last else []


def _legend(levels: tuple[float, ...]) -> list[tuple[float, float]]:
    total, out = 0.0, []
    for low, high, alpha in _pairs(levels):
        total += alpha
        out.append((levels[high] - levels[low], total))
    return out


def _cycle(values: Sequence[str]) -> Sequence[str]:
    return tuple(values) * 4


def _grid(lines: int, columns: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, list(np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel())


def _png(figure: Figure) -> bytes:
    for axis in figure.axes:
        if not axis.has_data() and not axis.get_title() and not axis.get_title(loc="left"):
            axis.set_visible(False)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120)
    return target.getvalue()
