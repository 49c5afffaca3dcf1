"""The pictures of the benchmarks' pages as PNG bytes, in the style of the reports; they draw rows and compute no score.

Points are means over the seeds, bars span them. Axes of time and number are logarithmic.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tsgdn2.evaluation.nab import PROFILES
from tsgdn2.evaluation.rows import Row
from tsgdn2.pipelines.figures import BLUE, COLOURS, INK, MARKS, ORANGE, STYLE

CHANCE: Final = "random"
"""Name of the detector that draws numbers."""
WANTED: Final = 0.8
BAND: Final = 0.02
GREY: Final = "#8a929c"


def nab(rows: Sequence[Row]) -> bytes:
    """One panel per profile, one line per detector that was run here; the band is the range of random numbers."""
    names = [name for name in comparable(rows) if name != CHANCE]
    with _style():
        figure, axes = _panels(len(PROFILES), 4.4, 1.4 + 0.3 * len(names), sharey=True)
        for axis, profile in zip(axes, (one.name for one in PROFILES), strict=True):
            chance = _values(rows, CHANCE, profile)
            if len(chance):
                axis.axvspan(chance.min(), chance.max(), color=ORANGE, alpha=0.25, lw=0)
                axis.axvline(chance.mean(), color=ORANGE, lw=1)
            for line, name in enumerate(reversed(names)):
                _point(axis, _values(rows, name, profile), line, INK if name.startswith("tsgdn2") else BLUE, "o")
            axis.set_yticks(range(len(names)), list(reversed(names)))
            axis.set(title=profile, xlabel="score")
        return _png(figure)


def comparable(rows: Sequence[Row]) -> list[str]:
    """Names of the detectors that were judged here, in their order."""
    return list(dict.fromkeys(row.what for row in rows if "windows_found" in row.values))


def calibration(rows: Sequence[Row]) -> bytes:
    """Coverage of every stream, adaptive and split-conformal."""
    names = list(dict.fromkeys(row.what for row in passes(rows)))
    with _style():
        figure, (axis,) = _panels(1, 9.6, 1.6 + 0.27 * len(names))
        axis.axvspan(WANTED - BAND, WANTED + BAND, color=GREY, alpha=0.2, lw=0)
        axis.axvline(WANTED, color=GREY, lw=1)
        for line, name in enumerate(reversed(names)):
            for source, colour, mark, shift in (("split coverage", ORANGE, "s", -0.14), ("coverage", INK, "o", 0.14)):
                label = {"coverage": "adaptive", "split coverage": "split-conformal"}[source] if line == 0 else None
                _point(axis, _values(rows, name, source), line + shift, colour, mark, label)
        axis.set_yticks(range(len(names)), list(reversed(names)))
        axis.set(xlabel="coverage of 80 % intervals", ylim=(-0.6, len(names) - 0.4))
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9.5)
        return _png(figure)


def passes(rows: Sequence[Row]) -> list[Row]:
    """Rows of one stream and one seed of the calibration benchmark, without those over all streams."""
    return [row for row in rows if "off" in row.values and "worst off" not in row.values]


def serving(rows: Sequence[Row]) -> bytes:
    """Microseconds of an update and a forecast: one stream by its age, and many by their number."""
    names = list(dict.fromkeys(contender(row) for row in rows))
    parts: tuple[tuple[str, str, Callable[[Row], bool], int], ...] = (
        ("one stream", "observations behind it", lambda row: row.shape["streams"] == 1, 1),
        ("many streams", "streams", lambda row: row.shape["streams"] != 1, 0),
    )
    with _style():
        figure, axes = _panels(2, 5.4, 5.2, sharey=True)
        for axis, (title, x, belongs, which) in zip(axes, parts, strict=True):
            for number, name in enumerate(names):
                own = [row for row in rows if contender(row) == name and belongs(row)]
                ours = name.startswith("tsgdn2")
                sizes = sorted({size(row)[which] for row in own})
                times = [np.mean([_together(row) for row in own if size(row)[which] == each]) for each in sizes]
                axis.plot(sizes, times, label=name, marker=MARKS[number % len(MARKS)], ms=6, lw=2.6 if ours else 1.5,
                          color=INK if ours else (*COLOURS, GREY, "#7a5c2e")[(number - 1) % 8])  # fmt: skip
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set(title=title, xlabel=x, ylabel="update and forecast, µs per stream")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
        return _png(figure)


def contender(row: Row) -> str:
    """Name of a contender of the serving benchmark, without the number of its streams."""
    return row.what.rpartition(", ")[0]


def size(row: Row) -> tuple[float, float]:
    """Number of streams and observations behind each."""
    return float(row.shape["streams"] or 0), float(row.shape["observations"] or 0)


def running(curves: dict[str, tuple[NDArray[np.datetime64], NDArray[np.float64]]], ours: str) -> bytes:
    """Score over all that was known by a moment, one line per model."""
    with _style():
        figure, (axis,) = _panels(1, 9.6, 4.0)
        for number, (name, (when, score)) in enumerate(curves.items()):
            axis.plot(cast(Any, when), score, label=name, lw=2.6 if name == ours else 1.5, ms=3.5,
                      marker=MARKS[number % len(MARKS)] if len(when) < 60 else "",
                      color=INK if name == ours else COLOURS[number % len(COLOURS)])  # fmt: skip
        axis.set(xlabel="when the values had arrived", ylabel="CRPS of all windows so far")
        axis.tick_params(axis="x", rotation=20)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9.5)
        return _png(figure)


def _together(row: Row) -> float:
    return float(row.values["update_patch_us"] or 0) + float(row.values["forecast_us"] or 0)


def _values(rows: Sequence[Row], name: str, figure: str) -> NDArray[np.float64]:
    """A figure of all rows of one name."""
    return np.array([float(row.values[figure] or 0) for row in rows if row.what == name])


def _point(
    axis: Axes, values: NDArray[np.float64], line: float, colour: str, mark: str, label: str | None = None
) -> None:
    mean = float(values.mean())
    axis.errorbar([mean], [line], xerr=[[mean - values.min()], [values.max() - mean]], ls="", marker=mark, ms=5.5,
                  capsize=2, color=colour, label=label)  # fmt: skip


def _style() -> AbstractContextManager[None]:
    return mpl.rc_context(cast(Any, STYLE))


def _panels(count: int, width: float, height: float, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * count, height))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=sharey).flat)


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()
