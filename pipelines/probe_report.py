"""The page of the memory probes: a summary, then per probe what is asked, who wins, a figure and every mixer's row.

Mean and range over the seeds, losers included; nothing is computed here that standings.py does not say.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tsgdn2.evaluation.probes.contract import Probe
from tsgdn2.evaluation.probes.standings import OURS, Standing, floor_at, order, standings, verdict
from tsgdn2.evaluation.probes.suite import MIXERS, probe_of
from tsgdn2.evaluation.probes.trial import FACTORS, GAPS, MISSING
from tsgdn2.evaluation.rows import Row
from tsgdn2.pipelines.figures import BLUE, COLOURS, INK, MARKS, STYLE
from tsgdn2.pipelines.report import Report

POINTS: Final = {
    **{f"x{factor}": "T" if factor == 1 else f"{factor} T" for factor in FACTORS},
    **{f"gap {share}": f"gaps {share:.0%}" for share in GAPS},
    **{f"missing {share}": f"missing {share:.0%}" for share in MISSING},
}
"""Test points and their headings."""
AXES: Final = ("x1", f"gap {GAPS[-1]}", f"missing {MISSING[-1]}")


def page(title: str, rows: Sequence[Row], settings: str) -> Report:
    """The report of finished runs; `settings` says in a sentence how they were made."""
    report = Report(title, settings)
    found = standings(rows)
    probes = list(dict.fromkeys((one.probe, one.level) for one in found))
    by_time = any(row.shape.get("seconds") is not None for row in rows)
    report.paragraph(
        "Every mixer sits in the same two blocks and trains on the same streams of a seed with the same optimiser and "
        f"the same {'processor seconds' if by_time else 'number of steps'}; nothing is tuned per mixer. Rivals have at "
        "least the state of gdn2 in bytes, and as many weights where they can; the last table has every size. A cell "
        "is the mean over the seeds, with the smallest and the largest. T is the length of training."
    )
    report.heading("All probes")
    report.table(
        ("mixer", *(_name(*key) for key in probes)), _summary(found, probes), ours=(OURS,),
        note="Score at T, then at 16 T; means over the seeds. Sorted by the mean of both over all probes.",
    )  # fmt: skip
    for key in probes:
        own = order([one for one in found if (one.probe, one.level) == key])
        probe = probe_of(*key)
        report.heading(f"{_name(*key)}: {probe.asks}")
        report.paragraph(
            f"1 means: {probe.one}. Without memory the best answer is {probe.guess}: "
            f"{_chance(probe)}.{_pooled(probe)} Level {key[1]}: {probe.level_is}. T = {probe.length} tokens."
        )
        report.paragraph(verdict(own))
        report.figure(f"probe-{key[0]}-{key[1]}", picture(own), f"{_name(*key)}: left, score against the length of the "
                      "stream; right, score at T with gaps and with missing tokens. Bars span the seeds; the dashed "
                      "line is the floor, which tells nothing apart.")  # fmt: skip
        points = [point for point in POINTS if all(point in one.scores for one in own)]
        parts = [part for part in own[0].scores if part not in POINTS]
        columns = {**{point: POINTS[point] for point in points}, **{part: f"{part}, T" for part in parts}}
        report.table(
            ("mixer", *columns.values(), "seeds"),
            [{"mixer": one.mixer, "seeds": ", ".join(map(str, one.seeds))}
             | {title: str(one.scores[name]) for name, title in columns.items()} for one in own],
            ours=(OURS,),
        )  # fmt: skip
    report.heading("What every mixer had")
    report.table(
        ("mixer", "memory, floats", "whole state, bytes", "parameters", "training steps", "CPU-s a step",
         "CPU-s a run"),
        [_size([one for one in found if one.mixer == mixer]) for mixer in dict.fromkeys(one.mixer for one in found)],
        ours=(OURS,),
        note="The whole state is what is compared: all mixers but gdn, deltanet, mamba2 (gdn2's matrices and "
        "convolution, fewer rates) and none have at least gdn2's. Memory is what is remembered of the past at any "
        "length; the rest are convolution caches, rates and angles. An lstm of this state has more weights than any "
        "SwiGLU can make up. Parameters differ between probes by their embeddings; means over all runs.",
    )  # fmt: skip
    return report


def picture(own: Sequence[Standing]) -> bytes:
    """Two panels of one probe: score by length, and by gaps and missing tokens; own is sorted, the best first."""
    with mpl.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=(11.0, 1.6 + 0.24 * max(12, len(own))))
        FigureCanvasAgg(figure)
        left, right = cast(tuple[Axes, Axes], tuple(figure.subplots(1, 2, width_ratios=(1.5, 1))))
        for number, one in enumerate(own):
            ours, place = one.mixer == OURS, MIXERS.index(one.mixer)  # a mixer looks the same on every probe
            colour, mark = COLOURS[place % len(COLOURS)], MARKS[(place // len(COLOURS)) % len(MARKS)]
            colour = INK if ours else colour
            ranges = [one.scores[f"x{factor}"] for factor in FACTORS]
            means = [each.mean for each in ranges]
            spread = [[each.mean - each.low for each in ranges], [each.high - each.mean for each in ranges]]
            left.errorbar(FACTORS, means, yerr=spread, label=one.mixer, color=colour, marker=mark, ms=5, capsize=2,
                          lw=2.6 if ours else 1.3, zorder=3 if ours else 2)  # fmt: skip
            line = len(own) - number
            for shift, (point, dot) in enumerate(zip(AXES, (INK, BLUE, COLOURS[1]), strict=True)):
                value = one.scores[point]
                right.errorbar(
                    [value.mean], [line + 0.22 * (1 - shift)], ls="", ms=4.5, color=dot, marker=MARKS[shift],
                    xerr=[[value.mean - value.low], [value.high - value.mean]],
                    label=POINTS[point] if number == 0 else None,
                )  # fmt: skip
        left.set_xscale("log", base=2)
        left.set_xticks(FACTORS, [POINTS[f"x{factor}"] for factor in FACTORS])
        left.set(title="by length", xlabel="tokens of the stream", ylabel="score", ylim=(-0.03, 1.03))
        floors = [floor_at(own[0], factor) for factor in FACTORS]
        left.plot(FACTORS, floors, color="#8a929c", lw=1, ls="--", label="floor")
        right.set(title="by gaps and missing tokens, at T", xlabel="score", xlim=(-0.03, 1.03))
        right.axvline(floors[0], color="#8a929c", lw=1, ls="--")
        right.set_yticks(range(len(own), 0, -1), [one.mixer for one in own])
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=9)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=7, fontsize=9)
        out = io.BytesIO()
        figure.savefig(out, format="png")
        return out.getvalue()


def _chance(probe: Probe) -> str:
    first, last = (probe.chance(factor * probe.length) for factor in (1, FACTORS[-1]))
    return f"{first:.2f}" if first == last else f"{first:.2f} at T, {last:.2f} at {FACTORS[-1]} T"


def _pooled(probe: Probe) -> str:
    if not probe.pooled:
        return ""
    return f" The mean of the stream's own {probe.things} answers, which tells none apart, scores {probe.pooled:.2f}."


def _name(probe: str, level: int) -> str:
    return f"{probe} {level}"


def _summary(found: Sequence[Standing], probes: Sequence[tuple[str, int]]) -> list[dict[str, str]]:
    """One line per mixer, the best first; a probe that it has no run of is left empty."""
    lines: list[tuple[float, dict[str, str]]] = []
    for mixer in dict.fromkeys(one.mixer for one in found):
        own = {(one.probe, one.level): one.scores for one in found if one.mixer == mixer}
        cells = {_name(*key): f"{own[key]['x1'].mean:.2f}, {own[key]['x16'].mean:.2f}" if key in own else ""
                 for key in probes}  # fmt: skip
        total = sum(scores["x1"].mean + scores["x16"].mean for scores in own.values()) / len(probes)
        lines.append((total, {"mixer": mixer} | cells))
    return [line for _, line in sorted(lines, key=lambda pair: -pair[0])]


def _size(own: Sequence[Standing]) -> dict[str, str]:
    def mean(name: str) -> float:
        return sum(one.figures[name].mean for one in own) / len(own)

    return {
        "mixer": own[0].mixer, "memory, floats": f"{mean('memory_floats'):,.0f}",
        "whole state, bytes": f"{mean('state_bytes'):,.0f}", "parameters": f"{mean('parameters'):,.0f}",
        "training steps": f"{mean('steps'):,.0f}",
        "CPU-s a step": f"{mean('step_seconds'):.3f}",
        "CPU-s a run": f"{mean('cpu_seconds'):.1f}",
    }  # fmt: skip
