"""The page of a judged language model, made of its rows alone: tables, and sentences that say what they show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tsgdn2.evaluation.language.eviction import CLASSES
from tsgdn2.evaluation.rows import Row, Value
from tsgdn2.pipelines.report import Report

_EVICTION = ("layer, head", "writes", "half-life, tokens", "evicted", "by erase")


def page(title: str, rows: Sequence[Row]) -> Report:
    """A page of the parts that have rows."""
    report = Report(title, _subtitle(rows))
    _perplexity(report, [one for one in rows if one.what in ("perplexity", "trigram")])
    _extrapolation(report, [one for one in rows if one.what == "extrapolation"])
    _needles(report, [one for one in rows if one.what == "needle"])
    _eviction(report, [one for one in rows if one.what == "eviction"], [one for one in rows if one.what == "evictor"])
    return report


def _subtitle(rows: Sequence[Row]) -> str:
    first = next(one for one in rows if one.what == "perplexity")
    return (
        f"{first.shape['model']}, weights {first.shape['weights']}; {first.device}, commit {first.commit}, {first.date}"
    )


def _perplexity(report: Report, rows: Sequence[Row]) -> None:
    report.heading("Held-out documents")
    columns = ("model", "bits per byte", "nats per token", "perplexity", "tokens", "bytes of text")
    names = {"perplexity": "the model", "trigram": "trigram of bytes, interpolated"}
    report.table(columns, [
        dict(zip(columns, (names[one.what], _number(one, "bits_per_byte", "{:.4f}"), _number(one, "loss", "{:.4f}"),
                           _number(one, "perplexity", "{:.3g}"), _number(one, "predicted", "{:,}"),
                           _number(one, "text_bytes", "{:,}")), strict=True))
        for one in rows
    ], ours=("the model",), note=(
        "Documents whole and each for itself. Bits per byte are the length of a code of the text, a document's first "
        "token charged as one of all. A token of one row need not be one of the other; bits per byte compare."
    ))  # fmt: skip
    both = {one.what: _float(one.values["bits_per_byte"]) for one in rows}
    if len(both) == 2 and not any(map(math.isnan, both.values())):
        ours, theirs = both["perplexity"], both["trigram"]
        report.paragraph(f"The model is **{'below' if ours < theirs else 'not below'}** the trigram model: {ours:.4f} "
                         f"against {theirs:.4f} bits per byte.")  # fmt: skip


def _extrapolation(report: Report, rows: Sequence[Row]) -> None:
    if not rows:
        return
    length = int(_float(rows[0].shape["length"]))
    report.heading("Past the length of training")
    columns = ("positions", "in windows of training", "nats per token", "perplexity", "tokens", "inside documents",
               "the same, reset")  # fmt: skip
    report.table(columns, [
        dict(zip(columns, (f"{one.shape['first']:,} - {one.shape['last']:,}",
                           f"{_float(one.shape['first']) / length:g} - {_float(one.shape['last']) / length:g}",
                           _number(one, "loss", "{:.4f}"), _number(one, "perplexity", "{:.3g}"),
                           _number(one, "predicted", "{:,}"), _number(one, "loss_carried", "{:.4f}"),
                           _number(one, "loss_reset", "{:.4f}")), strict=True))
        for one in rows
    ], note=(
        "Documents end to end, the state never reset. The last two columns are nats per token on the tokens that are "
        "not the first of their document: so, and with the state reset at every document, as in training."
    ))  # fmt: skip
    inside = [one for one in rows if _float(one.shape["last"]) <= length]
    beyond = [one for one in rows if _float(one.shape["first"]) >= length]
    if inside and beyond:
        change = _float(beyond[-1].values["loss"]) - _float(inside[-1].values["loss"])
        report.paragraph(f"From the last positions of a training window to the last of all the loss "
                         f"{'rises' if change > 0 else 'falls'} by {abs(change):.4f} nats per token.")  # fmt: skip
    last = rows[-1].values
    if last.get("loss_carried") is not None and last.get("loss_reset") is not None:
        change = _float(last["loss_carried"]) - _float(last["loss_reset"])
        report.paragraph(f"There, what lies before a document {'costs' if change > 0 else 'saves'} {abs(change):.4f} "
                         "nats per token inside documents.")  # fmt: skip


def _needles(report: Report, rows: Sequence[Row]) -> None:
    if not rows:
        return
    report.heading("Needles")
    columns = ("task", "tokens", "answered", "right, of answers", "right, of all", "right by depth")
    report.table(columns, [
        dict(zip(columns, (str(one.shape["task"]), f"{one.shape['length']:,}", _number(one, "answer_rate", "{:.0%}"),
                           _number(one, "accuracy_given_answer", "{:.0%}"), _number(one, "accuracy", "{:.0%}"),
                           ", ".join(_number(one, name, "{:.0%}") for name in one.values if "depth" in name)),
                 strict=True))
        for one in rows
    ], note="An answer is the first thing of the asked form; depth in quarters, from the beginning.")  # fmt: skip


def _eviction(report: Report, rows: Sequence[Row], evictors: Sequence[Row]) -> None:
    if not rows:
        return
    report.heading("What the states evicted")
    worst = max(_float(one.values["residual"]) for one in rows)
    report.paragraph(f"Every write of {rows[0].shape['tokens']:,} held-out tokens was followed. What is left of the "
                     f"writes rebuilds the states to {worst:.0e} of their size.")  # fmt: skip
    whole = [one for one in rows if one.shape["group"] == "all"]
    report.table(_EVICTION, [_kept(one, f"{one.shape['layer']}, {one.shape['head']}") for one in whole])
    groups = [name for name in dict.fromkeys(str(one.shape["group"]) for one in rows) if name != "all"]
    columns = ("writes of", *(f"{one.shape['layer']}, {one.shape['head']}" for one in whole))
    lives = {(one.shape["layer"], one.shape["head"], one.shape["group"]): one for one in rows}
    table = []
    for group in groups:
        cells = [_half(lives.get((one.shape["layer"], one.shape["head"], group))) for one in whole]
        table.append(dict(zip(columns, [f"{group} of the text" if "/" in group else group, *cells], strict=True)))
    report.table(columns, table, note="Half-life in tokens for each layer and head, by what was written and where.")
    if evictors:
        columns = ("lost", *CLASSES)
        report.table(columns, [
            dict(zip(columns, (str(one.shape["group"]), *(f"{_float(one.values[name]):,.0f}" for name in CLASSES)),
                     strict=True))
            for one in evictors
        ], note="Evictions by the class of what was lost (row) and of the token whose erase took most.")  # fmt: skip


def _kept(one: Row, name: str) -> dict[str, str]:
    cells = (name, _number(one, "writes", "{:,}"), _half(one), _number(one, "evicted_share", "{:.0%}"),
             _number(one, "erased_share", "{:.0%}"))  # fmt: skip
    return dict(zip(_EVICTION, cells, strict=True))


def _half(one: Row | None) -> str:
    if one is None:
        return "-"
    return "more than half stay" if one.values["half_life"] is None else _number(one, "half_life", "{:.0f}")


def _number(one: Row, name: str, form: str) -> str:
    value = one.values.get(name)
    return "-" if value is None else form.format(value)


def _float(value: Value) -> float:
    return math.nan if value is None else float(value)
