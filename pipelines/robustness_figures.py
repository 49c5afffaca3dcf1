"""The curves of the robustness benchmark as PNG bytes, in the style of the reports; draws finished numbers only."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tsgdn2.evaluation.recovery import TOLERANCE
from tsgdn2.evaluation.rows import Row
from tsgdn2.pipelines.figures import COLOURS, INK, MARKS, STYLE

LINES = tuple(zip((*COLOURS, INK), (*MARKS, "X"), strict=True))
"""Colour and mark of each model; beyond these they come again."""


class Line(NamedTuple):
    """One point of a curve."""

    panel: str
    name: str
    x: float
    y: float


def damage_curves(title: str, points: Sequence[Line], unit: str) -> bytes:
    """One panel per kind of damage, one line per model: the score against the share of cells that went."""
    return _panels(
        [point._replace(panel=f"{title}, {point.panel}", x=100 * point.x) for point in points],
        "cells missing, %",
        unit,
        None,
    )


def recovery_curves(rows: Sequence[Row], after: Sequence[int]) -> bytes:
    """One panel per length of the outage: CRPS over that without the outage, by observed steps after it."""
    points = []
    for row in rows:
        panel, _, name = row.what.partition(": ")
        for k in after:
            y = row.values[f"ratio {k}"]
            assert isinstance(y, float)
            points.append(Line(f"{panel} steps", name, k, y))
    return _panels(points, "observed steps after the outage", "CRPS over that without an outage", 1 + TOLERANCE)


def _panels(points: Sequence[Line], x: str, y: str, limit: float | None) -> bytes:
    panels = list(dict.fromkeys(point.panel for point in points))
    names = list(dict.fromkeys(point.name for point in points))
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    with mpl.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=(5.2 * columns, 3.2 * lines + 0.6))
        FigureCanvasAgg(figure)
        axes: list[Axes] = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axis, panel in zip(axes, panels, strict=False):
            for number, name in enumerate(names):
                own = sorted((point.x, point.y) for point in points if (point.panel, point.name) == (panel, name))
                colour, mark = LINES[number % len(LINES)]
                if own:
                    axis.plot(
                        [at for at, _ in own], [value for _, value in own], label=name, lw=1.6, ms=5, color=colour,
                        marker=mark,
                    )  # fmt: skip
            if limit is not None:
                axis.axhline(limit, color="#8a929c", lw=1, ls="--")
            axis.set(title=panel, xlabel=x, ylabel=y)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9.5)
        out = io.BytesIO()
        figure.savefig(out, format="png")
        return out.getvalue()
