"""The job `pretrain evaluate`: what a trained language model is worth, in rows, on a page and in MLflow.

    <output>/evaluate.jsonl     a row is appended as soon as it is known; what has its rows is not done again
    <output>/report.html        the page of this model, its Markdown twin report.md

    perplexity      the held-out part, document by document, and a trigram model of bytes on the same text
    extrapolation   the loss by position, up to `factor` windows of training
    needles         answer rate, and accuracy of what was answered
    audit           how long states keep a token, which kinds they lose, and to whom

Rows are known by the weights, the data and the options that they depend on, so one output may hold many models. A part
that the data does not allow is left out with a line that says why: a text without words for keys, a length too short
for its question, and bits per byte, with the trigram model, where the tokenizer lost text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np

from tsgdn2.datasets.tokens import Document, TokenShards
from tsgdn2.errors import ConfigError, DataError
from tsgdn2.evaluation.language.eviction import CLASSES, audit, token_class
from tsgdn2.evaluation.language.extrapolation import extrapolate
from tsgdn2.evaluation.language.judgement import tally
from tsgdn2.evaluation.language.needle import ROOM, TASKS, Haystack, needles
from tsgdn2.evaluation.language.ngrams import Trigram
from tsgdn2.evaluation.language.perplexity import Score, score
from tsgdn2.evaluation.language.retrieval import ask
from tsgdn2.evaluation.rows import Row, Value, row
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.evaluation_page import page
from tsgdn2.pipelines.pretrain.jobs import Evaluate, several
from tsgdn2.pipelines.pretrain.ledger import Ledger
from tsgdn2.pipelines.pretrain.prepare import TRAIN, VALIDATION
from tsgdn2.pipelines.pretrain.prepared import loses_text
from tsgdn2.pipelines.pretrain.tokenizer import Tokenizer, load_tokenizer
from tsgdn2.pipelines.pretrain.weights import device_of, digest, opened, training_length
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.screen import Phase, Screen
from tsgdn2.pipelines.training import record_options, write_settings

ROWS: Final = "evaluate.jsonl"
_HAYSTACK_BYTES: Final = 4_000_000
_SHOWN: Final = ("loss", "perplexity", "bits_per_byte", "answer_rate", "accuracy", "accuracy_given_answer", "half_life",
                 "evicted_share", "residual")  # fmt: skip
"""Values of rows that go to MLflow."""


@dataclass(eq=False)
class Subject:
    """The model, its tokenizer and its data."""

    job: Evaluate
    model: LanguageModel
    tokenizer: Tokenizer
    train: TokenShards
    held_out: TokenShards
    lossy: bool
    """The tokenizer lost text, so there are no bits per byte."""
    length: int
    """Tokens of a training window; 0 where nobody asks."""

    @classmethod
    def of(cls, job: Evaluate) -> Subject:
        """Open everything; errors name what does not fit."""
        unknown = sorted(set(job.needles) - set(TASKS))
        if unknown:
            raise ConfigError(f"needles: must be among {', '.join(TASKS)}, got {unknown}")
        length = job.length or training_length(job.checkpoint) if job.streams else 0
        if length is None:
            raise ConfigError("length: nothing beside the checkpoint says how long a training window is; give --length")
        tokenizer = load_tokenizer(job.data)
        model = opened(job.checkpoint, tokenizer_digest=tokenizer.digest, device=device_of(job.device))
        if model.config.vocabulary < tokenizer.vocabulary:
            ids = f"{tokenizer.vocabulary} ids, the model {model.config.vocabulary}"
            raise ConfigError(f"data: its tokenizer has {ids}; "
                              "give the data that the model was trained on")  # fmt: skip
        train, held_out = (TokenShards(job.data / part, verify="use") for part in (TRAIN, VALIDATION))
        if not held_out.tokens:
            raise ConfigError(f"data: {job.data} has no held-out part; prepare it with a smaller validation_every")
        return cls(job, model, tokenizer, train, held_out, loses_text(job.data, tokenizer), length)

    @cached_property
    def identity(self) -> dict[str, Value]:
        """What all rows depend on."""
        data = self.held_out.manifest.to_json()
        return {"model": self.model.config.mixer, "weights": digest(self.model), "data": _short(data)}

    def texts(self, shards: TokenShards, stop: int | None = None) -> Iterator[bytes]:
        """Documents as bytes."""
        for document in shards.walk(0, stop):
            yield self.tokenizer.decode(document.tokens).encode()

    @cached_property
    def haystack(self) -> Haystack:
        """Held-out text, and text of training where that is not enough; made when the first needle needs it."""
        parts, size = list[str](), 0
        for shards in (self.held_out, self.train):
            for text in self.texts(shards):
                if size >= _HAYSTACK_BYTES:
                    break
                parts.append(text.decode())
                size += len(text)
        return Haystack("\n\n".join(parts))


def run(job: object) -> None:
    """Run the job: what has no row yet, then the page and the run."""
    assert isinstance(job, Evaluate)
    screen = Screen(job.quiet)
    job = replace(job, output=job.output or job.runs / "pretrain-evaluate")
    with screen.phase("opening"):
        subject = Subject.of(job)
        screen.say(f"weights {subject.identity['weights']}, {subject.held_out.documents:,} held-out documents")
    folder = job.folder("pretrain-evaluate")
    with Run.start(job.experiment, f"evaluate {job.checkpoint.name}", root=job.runs, tracking_uri=job.tracking_uri,
                   tags={"tsgdn2.job": "pretrain evaluate"}) as record:  # fmt: skip
        write_settings(job, folder)
        record_options(record, job)
        rows = evaluate(subject, Ledger(folder / ROWS), screen)
        written = page(f"{job.checkpoint.name}: a language model judged", rows).write(folder)
        for one in rows:
            record.metrics({_metric(one, name): value for name in _SHOWN
                            if isinstance(value := one.values.get(name), int | float)})  # fmt: skip
        for file in (folder / ROWS, written, written.with_suffix(".md")):
            record.artifact(file, "report")
    for one in rows:
        if one.what in ("perplexity", "trigram"):
            bits = one.values["bits_per_byte"]
            screen.say(f"{one.what:<12} " + ("no bits per byte" if bits is None else f"{bits:.4f} bits per byte"))
    screen.say(f"page: {written}")


def evaluate(subject: Subject, ledger: Ledger, screen: Screen) -> list[Row]:
    """Every part that the job asks for, in order; parts that have their rows are read."""
    job, same = subject.job, subject.identity
    rows: list[Row] = []
    documents = min(job.documents or subject.held_out.documents, subject.held_out.documents)
    shape: dict[str, Value] = {**same, "documents": documents}
    if subject.lossy:
        shape["text"] = "lost"
        screen.say("bits per byte, trigram: left out, the tokenizer loses text; `--tokenizer bytes` or `bpe` lose none")
    with screen.phase("perplexity", total=documents) as phase:
        rows += ledger.part("perplexity", shape, lambda: [_perplexity(subject, shape, documents, phase)])
    if job.trigram_bytes and not subject.lossy:
        own: dict[str, Value] = {"data": same["data"], "documents": documents, "counted_bytes": job.trigram_bytes}
        try:
            with screen.phase("trigram"):
                rows += ledger.part("trigram", own, lambda: [_trigram(subject, own, documents)])
        except ConfigError as error:
            screen.say(f"trigram_bytes: left out, {error}")
    if job.streams:
        rows += _extrapolation(subject, ledger, screen)
    if job.needles:
        rows += _needles(subject, ledger, screen)
    if job.audit_tokens:
        rows += _audit(subject, ledger, screen)
    return rows


def _perplexity(subject: Subject, shape: Mapping[str, Value], documents: int, phase: Phase) -> Row:
    def walk() -> Iterator[Document]:
        for document in subject.held_out.walk(0, documents):
            phase.advance()
            yield document

    values = _values(score(subject.model, walk(), window=subject.job.window))
    return _row("perplexity", shape, values | ({"bits_per_byte": None} if subject.lossy else {}))


def _trigram(subject: Subject, shape: Mapping[str, Value], documents: int) -> Row:
    def counted() -> Iterator[bytes]:
        size = 0
        for text in subject.texts(subject.train):
            yield text
            size += len(text)
            if size >= subject.job.trigram_bytes:
                return

    model = Trigram.fit(counted())
    return _row("trigram", shape, _values(model.score(subject.texts(subject.held_out, documents))))


def _row(what: str, shape: Mapping[str, Value], values: Mapping[str, Value], seed: int | None = None) -> Row:
    return replace(row(what, shape, seed=seed), values=dict(values))


def _values(found: Score) -> dict[str, Value]:
    return {"loss": found.loss, "perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte,
            "predicted": found.predicted, "text_bytes": found.text_bytes}  # fmt: skip


def _extrapolation(subject: Subject, ledger: Ledger, screen: Screen) -> list[Row]:
    job, length = subject.job, subject.length
    shape: dict[str, Value] = {
        **subject.identity, "length": length, "factor": job.factor, "streams": job.streams, "window": job.window,
        "resets": True,
    }  # fmt: skip
    if subject.held_out.tokens < length:
        screen.say(f"extrapolation: left out, the held-out part has {subject.held_out.tokens:,} tokens, one window "
                   f"{length:,}")  # fmt: skip
        return []
    if subject.held_out.tokens < length * job.factor:
        screen.say(f"extrapolation: up to {subject.held_out.tokens:,} tokens, all that the held-out part has")

    def make() -> list[Row]:
        found = extrapolate(subject.model, subject.held_out, length=length, factor=job.factor, streams=job.streams,
                            window=job.window, tick=phase.advance)  # fmt: skip
        return [
            _row("extrapolation", {**shape, "first": one.first, "last": one.last},
                 {"loss": one.loss, "perplexity": one.perplexity, "predicted": one.tokens, "inside": one.inside,
                  "loss_carried": _known(one.inside_loss), "loss_reset": _known(one.reset_loss)})
            for one in found
        ]  # fmt: skip

    each = min(length * job.factor, subject.held_out.tokens)
    total = 2 * (each - 1) * min(job.streams, subject.held_out.tokens // each)
    with screen.phase("extrapolation", total=total) as phase:
        return ledger.part("extrapolation", shape, make)


def _needles(subject: Subject, ledger: Ledger, screen: Screen) -> list[Row]:
    job, rows, lengths = subject.job, list[Row](), several(subject.job.needle_lengths)
    with screen.phase("needles", total=len(job.needles) * len(lengths) * job.needle_samples) as phase:
        for task in job.needles:
            for length in lengths:
                shape: dict[str, Value] = {
                    **subject.identity, "task": task, "length": length, "samples": job.needle_samples,
                    "needle_seed": job.seed, "room": ROOM,
                }  # fmt: skip

                def make(task: str = task, length: int = length, shape: Mapping[str, Value] = shape) -> list[Row]:
                    drawn = needles(
                        task, length, subject.haystack, subject.tokenizer, samples=job.needle_samples, seed=job.seed
                    )
                    found = tally(list(ask(subject.model, drawn, subject.tokenizer, window=job.window,
                                           tick=phase.advance)))  # fmt: skip
                    depths = {f"accuracy to depth {edge:g}": right / count if count else None
                              for edge, count, right in found.by_depth}  # fmt: skip
                    rates = {"answer_rate": found.answer_rate, "accuracy": found.accuracy,
                             "accuracy_given_answer": found.accuracy_given_answer}  # fmt: skip
                    return [_row("needle", shape, rates | depths, job.seed)]

                try:
                    rows += ledger.part("needle", shape, make)
                except (ConfigError, DataError) as error:  # too short a length, too few words: the rest is not lost
                    screen.say(f"{task} of {length:,} tokens: left out, {error}")
    return rows


def _audit(subject: Subject, ledger: Ledger, screen: Screen) -> list[Row]:
    job, model = subject.job, subject.model
    size = min(job.audit_tokens, subject.held_out.tokens)
    shape: dict[str, Value] = {**subject.identity, "tokens": size, "heads": job.audit_heads, "layers": job.audit_layers}

    def make() -> list[Row]:
        tokens = subject.held_out.read(0, size)
        names = {int(one): "end" if one == subject.tokenizer.end_of_document
                 else token_class(subject.tokenizer.decode([int(one)])) for one in np.unique(tokens)}  # fmt: skip
        found = audit(model, tokens, [names[int(one)] for one in tokens], heads=job.audit_heads, window=size,
                      layers=job.audit_layers, tick=phase.advance)  # fmt: skip
        made = [
            _row("eviction", {**shape, "layer": one.layer, "head": one.head, "group": one.group}, {
                "writes": one.writes, "half_life": one.half_life if np.isfinite(one.half_life) else None,
                "evicted_share": one.evicted / one.writes if one.writes else None,
                "erased_share": one.by_erase / one.evicted if one.evicted else None, "residual": found.residual,
            }) for one in found.kept
        ]  # fmt: skip
        made += [
            _row("evictor", {**shape, "group": name}, dict(zip(CLASSES, map(int, counts), strict=True)))
            for name, counts in zip(CLASSES, found.taken, strict=True) if counts.any()
        ]  # fmt: skip
        return made

    with screen.phase("audit", total=size) as phase:
        rows = ledger.part("eviction", shape, make)
    if not rows:
        screen.say(f"audit: no layer of {model.config.mixer} has a trace of one erase and one write a token")
    return rows + [one for one in ledger.rows
                   if one.what == "evictor" and shape.items() <= one.shape.items()]  # fmt: skip


def _metric(one: Row, value: str) -> str:
    parts = [str(one.shape[name]) for name in ("task", "length", "first", "last", "layer", "head", "group")
             if name in one.shape and (name != "length" or one.what == "needle")]  # fmt: skip
    return "/".join([one.what, *(part.replace("/", " of ") for part in parts), value])


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
