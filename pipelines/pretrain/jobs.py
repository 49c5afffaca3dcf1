"""What the jobs of `tsgdn2 pretrain` can be told: one dataclass per job, as in pipelines/jobs.py.

Nothing heavy is imported here, so that `tsgdn2 --help` is fast. Options of a training that several jobs share are in
options.py of this folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from tsgdn2.errors import ConfigError
from tsgdn2.language.config import LanguageConfig
from tsgdn2.pipelines.options import Job, at_least_one
from tsgdn2.pipelines.pretrain.options import ClusterOptions, TrainingOptions

Strings = tuple[str, ...] | str
Integers = tuple[int, ...] | int
"""Several values, such as `[a, b]`, or a bare one; the job holds a tuple in either case."""

__all__ = ["PRETRAIN", "ClusterOptions", "Compare", "Evaluate", "Export", "Prepare", "Pretrain",
           "TrainingOptions", "several"]  # fmt: skip


def several(value: Integers) -> tuple[int, ...]:
    """Several whole numbers, or the one."""
    return (value,) if isinstance(value, int) else tuple(value)


def _settle(job: Job, *names: str) -> None:
    """Make a tuple of every bare value among the fields of these names."""
    for name in names:
        value = getattr(job, name)
        object.__setattr__(job, name, (value,) if isinstance(value, str | int) else tuple(value))


@dataclass(frozen=True, kw_only=True)
class Prepare(Job):
    """Turn text into shards of packed tokens, with a part held out for validation; goes on where it was stopped."""

    output: Path | None = None
    """Folder of tokenizer and shards; by default `tokens` in `runs`, so that the same command goes on."""
    text: Strings = ("stdlib",)
    """Where text comes from, one or several as `[a, b]`, in this order: Parquet (files, folders, patterns,
    hf://datasets/..), files of text, folders or patterns of them, `stdlib`, the sources of Python's standard library,
    or `stdlib-docs`, its documentation strings alone."""
    column: str = "text"
    """Parquet: the column of text."""
    documents: int | None = None
    """Stop after so many documents; None reads all."""
    text_bytes: int | None = None
    """Stop with the document that brings the text to so many bytes of UTF-8; None reads all."""
    tokenizer: str = "bytes"
    """bytes (257 ids, no dependency), bpe (trained on the first documents), or the path of a tokenizer.json."""
    end: str | None = None
    """tokenizer.json: the token that ends a document; None takes its own eos_token, or looks for a usual one."""
    vocabulary: int = 32_000
    """bpe: size of the vocabulary, the end of a document among it."""
    tokenizer_documents: int = 100_000
    """bpe: documents that it is trained on, from the first on."""
    validation_every: int = 100
    """One document in so many is held out, chosen by its text, so that copies of one are on the same side."""
    shard_tokens: int = 100_000_000
    """Tokens of a shard of the training part; held-out shards are smaller by `validation_every`. A killed job goes on
    after its last finished shard."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _settle(self, "text")
        at_least_one(documents=1 if self.documents is None else self.documents, vocabulary=self.vocabulary,
                     text_bytes=1 if self.text_bytes is None else self.text_bytes,
                     tokenizer_documents=self.tokenizer_documents, shard_tokens=self.shard_tokens)  # fmt: skip
        if self.validation_every < 2:
            raise ConfigError(f"validation_every: must be at least 2, got {self.validation_every}")
        if not self.text:
            raise ConfigError("text: must hold at least one source, got none; `stdlib` is on any machine")
        if self.end is not None and self.tokenizer in ("bytes", "bpe"):
            raise ConfigError(f"end: is for a tokenizer.json, got {self.end!r} with {self.tokenizer}; leave it out")


@dataclass(frozen=True, kw_only=True)
class Pretrain(Job):
    """Train a language model on prepared shards; the same command goes on from the newest checkpoint."""

    data: Path
    """Folder that `pretrain prepare` wrote."""
    model: LanguageConfig
    """The network; `--config NAME` takes it from a configuration of the package: gdn2-1.3b, tiny, .."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    """Schedule, batches, checkpoints."""
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    """Devices: what the estimate, the check of memory and the strategy go by."""
    output: Path | None = None
    """Folder of checkpoints and of the curve; by default `pretrain` in `runs`, so that the same command goes on."""
    experiment: str = "pretrain"
    """MLflow experiment of the run."""
    dry_run: bool = False
    """Estimate memory, time and cost for the cluster, say whether it fits, and stop; the data need not be there."""
    fresh: bool = False
    """Refuse an output that holds checkpoints, instead of going on from them."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Job):
    """Judge a trained language model: perplexity, bits per byte, longer windows, needles, what its state evicted."""

    checkpoint: Path
    """Folder of a training (its newest checkpoint), of one checkpoint, or an exported model."""
    data: Path
    """Folder that `pretrain prepare` wrote; its held-out part is scored."""
    output: Path | None = None
    """Folder of rows and page; by default `pretrain-evaluate` in `runs`, so that the same command goes on."""
    experiment: str = "pretrain"
    """MLflow experiment of the run."""
    device: str = "auto"
    """Where the model runs; auto is cuda where there is one."""
    window: int = 16_384
    """Tokens that are read at a time; memory grows with it, results do not change."""
    documents: int | None = None
    """Score so many held-out documents; None is all."""
    trigram_bytes: int = 50_000_000
    """Bytes of the training part that an interpolated trigram model counts, as a baseline; 0 leaves it out."""
    length: int | None = None
    """Tokens of a training window, for the extrapolation; None is what the training says."""
    factor: int = 16
    """The longest streams of the extrapolation, in training windows."""
    streams: int = 8
    """Streams of the extrapolation; 0 leaves it out."""
    needles: Strings = ("s-niah-1", "s-niah-2", "s-niah-3", "mk-niah-1")
    """Needle tasks, one or several as `[a, b]`; `[]` skips them."""
    needle_lengths: Integers = (1_024, 2_048, 4_096, 8_192)
    """Tokens of a needle's prompt and answer together, one or several as `[a, b]`."""
    needle_samples: int = 100
    """Samples of each needle task and length."""
    audit_tokens: int = 512
    """Held-out tokens whose writes the audit of the states follows; 0 leaves it out."""
    audit_layers: Literal["last", "all"] = "all"
    """Audited layers, of those that have a trace."""
    audit_heads: int = 2
    """Audited heads of each layer, from the first on."""
    seed: int = 0
    """Seed of the needles."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _settle(self, "needles", "needle_lengths")
        at_least_one(
            window=self.window, documents=1 if self.documents is None else self.documents, factor=self.factor,
            length=1 if self.length is None else self.length, needle_samples=self.needle_samples,
            audit_heads=self.audit_heads,
        )  # fmt: skip
        for name in ("trigram_bytes", "streams", "audit_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: must be at least 0, got {getattr(self, name)}")
        lengths = several(self.needle_lengths)
        if self.needles and (not lengths or min(lengths) < 1):
            raise ConfigError(f"needle_lengths: must hold lengths above 0, got {list(lengths)}")


@dataclass(frozen=True, kw_only=True)
class Export(Job):
    """Write a trained language model as a Hugging Face folder that AutoModelForCausalLM loads."""

    checkpoint: Path
    """Folder of a training (its newest checkpoint) or of one checkpoint."""
    output: Path | None = None
    """Folder of the exported model; by default `exported` beside the checkpoint."""
    data: Path | None = None
    """Folder of `pretrain prepare` whose tokenizer goes along; None is the one that the training names."""


@dataclass(frozen=True, kw_only=True)
class Compare(Job):
    """Train one configuration with several mixers and seeds at the same budget, and print one table of all."""

    data: Path
    """Folder that `pretrain prepare` wrote."""
    recipe: str = "tiny"
    """Configuration of the package, or a YAML file."""
    mixers: Strings = ("gdn2", "kda", "gdn")
    """One or several, as `[a, b]`, in place of the configuration's own; all else is equal."""
    seeds: Integers = (0, 1, 2)
    """One or several, as `[a, b]`: seeds of weights and of the order of the data."""
    steps: int | None = None
    """Steps of each run; None is the configuration's."""
    output: Path | None = None
    """Folder of the rows; by default `pretrain-compare` in `runs`, so that the same command goes on."""
    experiment: str = "pretrain"
    """MLflow experiment of the run."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _settle(self, "mixers", "seeds")
        at_least_one(steps=1 if self.steps is None else self.steps)
        for name in ("mixers", "seeds"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: must hold at least one, got none")


Verb = type[Prepare] | type[Pretrain] | type[Evaluate] | type[Export] | type[Compare]

PRETRAIN: Final[dict[str, tuple[Verb, str]]] = {
    "pretrain prepare": (Prepare, "pretrain.prepare"),
    "pretrain run": (Pretrain, "pretrain.run"),
    "pretrain evaluate": (Evaluate, "pretrain.evaluate"),
    "pretrain export": (Export, "pretrain.export"),
    "pretrain compare": (Compare, "pretrain.compare"),
}
"""Verb on the command line: its options, and the module whose `run` does it."""
