"""Turns text into what a language model is trained on: a tokenizer, shards of tokens, and a held-out part.

    <output>/tokenizer.json, tokenizer_config.json
    <output>/train/, <output>/validation/        as datasets/tokens.py reads them
    <output>/prepare.json                        the settings; the same command goes on, another one is refused
                                                 and whether tokens lose text, as prepared.py reads it

    held out      a document whose keyed hash of its text is 0 modulo `validation_every`

Killed at any moment, or out of disk, the same command goes on after the last finished shard of each part, and the files
are the same in the end. What is read twice for that are the documents of the shards that were not finished; they are
made into tokens again only where they belong to one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

from tsgdn2.datasets.text import Corpus
from tsgdn2.datasets.token_writer import TokenWriter
from tsgdn2.datasets.tokens import DRAFT, TokenShards
from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.folder_lock import alone
from tsgdn2.pipelines.pretrain.jobs import Prepare
from tsgdn2.pipelines.pretrain.prepared import SETTINGS, TEXT_LOST, Loss, read_settings, write_settings
from tsgdn2.pipelines.pretrain.tokenizer import FILE, ByteTokenizer, PairTokenizer, Tokenizer, load_tokenizer
from tsgdn2.pipelines.screen import Phase, Screen

TRAIN: Final = "train"
VALIDATION: Final = "validation"
_BATCH_BYTES: Final = 4 * 2**20
_BATCH_DOCUMENTS: Final = 4_096
_SMALLEST_SHARD: Final = 4_096
_SAY_EVERY: Final = 15.0  # seconds between lines where there is no bar


class Item(NamedTuple):
    """A document on its way: its cursor (source, file, row, documents before, bytes before), text, size, part."""

    cursor: tuple[int, ...]
    text: str
    size: int
    part: str


@dataclass(eq=False)
class Pace:
    """Tokens per second of this process, and the time that the rest will take at that pace."""

    phase: Phase
    screen: Screen
    began: float = field(default_factory=time.perf_counter)
    tokens: int = 0
    first: float | None = None
    """Share of the corpus that was done when this process began."""
    steps: int = 0
    said: float = field(default_factory=time.perf_counter)

    def move(self, tokens: int, share: float) -> None:
        """Count tokens, and show where the job is: share, 0 .. 1, of the whole corpus."""
        self.first = share if self.first is None else self.first
        self.tokens += tokens
        self.phase.advance(int(share * 1000) - self.steps)
        self.steps = int(share * 1000)
        now = time.perf_counter()
        if self.phase.progress is not None and self.phase.task is not None:
            self.phase.progress.update(self.phase.task, description=self.line(share))
        elif not self.screen.quiet and now - self.said > _SAY_EVERY:
            self.said = now
            self.screen.status.print(f"tokens: {self.line(share)}", soft_wrap=True)

    @property
    def per_second(self) -> float:
        """Tokens per second so far."""
        return self.tokens / max(time.perf_counter() - self.began, 1e-9)

    def line(self, share: float) -> str:
        """One line: pace, part done, minutes left."""
        moved = share - (self.first or 0.0)
        left = (time.perf_counter() - self.began) * (1 - share) / moved / 60 if moved > 0 else None
        rest = "the rest is not known yet" if left is None else f"{left:,.1f} min left"
        return f"{self.per_second:,.0f} tokens/s, {100 * share:.1f} %, {rest}"


def run(job: object) -> None:
    """Run the job. Errors: those of the text and the disk; ConfigError for settings that do not fit what is there."""
    assert isinstance(job, Prepare)
    folder = replace(job, output=job.output or job.runs / "tokens").folder("tokens")
    with alone(folder, "process prepares"):
        prepare(job, folder, Screen(job.quiet))


def prepare(job: Prepare, folder: Path, screen: Screen) -> None:
    """Make everything that is not there yet; the caller holds the folder's lock."""
    for draft in folder.glob(f".*{DRAFT}"):
        draft.unlink()
    corpus = Corpus(job.text, column=job.column)
    _settle(job, corpus, folder)
    with screen.phase("tokenizer"):
        tokenizer = _tokenizer(job, folder)
    if not tokenizer.exact:
        screen.say("The tokenizer changes some texts (spaces or accents): decoded text may differ from what was read.")
    loss = Loss(folder / SETTINGS)
    writers = {part: _writer(job, tokenizer, folder / part) for part in (TRAIN, VALIDATION)}
    if all(writer.complete for writer in writers.values()):
        screen.say(f"{folder} is complete already")
    else:
        with screen.phase("tokens", total=1000) as phase:
            pace = Pace(phase, screen)
            try:
                _write(job, corpus, tokenizer, writers, pace, loss)
            finally:
                for writer in writers.values():
                    writer.abandon()
        screen.say(f"{pace.tokens:,} tokens made at {pace.per_second:,.0f} tokens/s")
        for reason, count in corpus.skipped.items():
            screen.say(f"passed over: {count:,} documents ({reason})")
    loss.finish()
    if loss.known:
        screen.say("The tokenizer loses text: bits per byte will be left out; `--tokenizer bytes` or `bpe` lose none.")
    _report(folder, screen)


def _report(folder: Path, screen: Screen) -> None:
    rows = []
    for part in (TRAIN, VALIDATION):
        shards = TokenShards(folder / part)
        ratio = f"{shards.text_bytes / shards.tokens:.2f}" if shards.tokens else "-"
        rows.append({"part": part, "documents": f"{shards.documents:,}", "tokens": f"{shards.tokens:,}",
                     "bytes of text": f"{shards.text_bytes:,}", "bytes/token": ratio,
                     "shards": f"{len(shards.manifest.shards):,}"})  # fmt: skip
        if not shards.tokens:
            screen.say(f"No document fell into the part {part}: give more text, or change validation_every.")
    screen.table(str(folder), list(rows[0]), rows)


def _settle(job: Prepare, corpus: Corpus, folder: Path) -> None:
    """Write the settings, or compare them with those that the folder was begun with."""
    names = ("text", "column", "documents", "text_bytes", "tokenizer", "end", "vocabulary", "tokenizer_documents",
             "validation_every", "shard_tokens")  # fmt: skip
    settings = {name: getattr(job, name) for name in names} | {"text files": corpus.fingerprint}
    settings["text"] = list(job.text)
    path = folder / SETTINGS
    if not path.is_file():
        # Pairs and bytes that are made here lose nothing; of a loaded tokenizer it is not known yet.
        write_settings(path, settings | {TEXT_LOST: None if _loaded(job) else False})
        return
    known = read_settings(path)
    changed = [name for name in settings if known.get(name) != settings[name]] if known else ["all of them"]
    if changed:
        reason = f"{folder} was begun with other settings ({', '.join(changed)})"
        raise ConfigError(f"output: {reason}; use those of its {SETTINGS}, name another folder, or remove this one")


def _tokenizer(job: Prepare, folder: Path) -> Tokenizer:
    if (folder / FILE).is_file():
        return load_tokenizer(folder)
    if job.tokenizer == "bytes":
        tokenizer: Tokenizer = ByteTokenizer()
    elif job.tokenizer == "bpe":
        tokenizer = PairTokenizer.train(_learnt(job), job.vocabulary)
    else:
        tokenizer = load_tokenizer(Path(job.tokenizer), job.end)
    tokenizer.save(folder)
    return tokenizer


def _loaded(job: Prepare) -> bool:
    return job.tokenizer not in ("bytes", "bpe")


def _learnt(job: Prepare) -> Iterator[str]:
    """Texts that pairs are learnt from: the first documents, held-out ones left out."""
    for item in _items(job, Corpus(job.text, column=job.column), None):
        if item.cursor[3] >= job.tokenizer_documents:
            return
        if item.part == TRAIN:
            yield item.text


def _writer(job: Prepare, tokenizer: Tokenizer, folder: Path) -> TokenWriter:
    """A part's writer; held-out shards are smaller, so that both parts finish one about equally often."""
    size = job.shard_tokens
    if folder.name == VALIDATION:
        size = min(size, max(_SMALLEST_SHARD, size // job.validation_every))
    return TokenWriter(folder, vocabulary=tokenizer.vocabulary, end_of_document=tokenizer.end_of_document,
                       tokenizer_digest=tokenizer.digest, shard_tokens=size)  # fmt: skip


def _items(job: Prepare, corpus: Corpus, start: tuple[int, ...] | None) -> Iterator[Item]:
    """Documents from a cursor on, until the job's limits; the counts in the cursor go on where it was made."""
    *place, count, size = start or (0, 0, 0, 0, 0)
    for cursor, text in corpus.documents(place):
        if count == job.documents or (job.text_bytes is not None and size >= job.text_bytes):
            return
        content = text.encode()
        held = hashlib.blake2b(content, digest_size=8, person=b"held out").digest()
        part = VALIDATION if int.from_bytes(held, "little") % job.validation_every == 0 else TRAIN
        yield Item((*cursor, count, size), text, len(content), part)
        count += 1
        size += len(content)


def _batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += item.size
        if size >= _BATCH_BYTES or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(job: Prepare, corpus: Corpus, tokenizer: Tokenizer, writers: dict[str, TokenWriter], pace: Pace,
           loss: Loss) -> None:  # fmt: skip
    open_ones = [writer for writer in writers.values() if not writer.complete]
    resumes = [writer.resume for writer in open_ones]
    known = [resume for resume in resumes if resume is not None]
    start = min(known) if len(known) == len(resumes) else None
    pace.move(0, _share(job, corpus, start or (0, 0, 0, 0, 0)))
    for batch in _batches(_items(job, corpus, start)):
        wanted = [item for item in batch if writers[item.part].wants(item.cursor)]
        made = tokenizer.encode_many([item.text for item in wanted])
        loss.look(tokenizer, [item.text for item in wanted], made)
        for item, tokens in zip(wanted, made, strict=True):
            writers[item.part].append(tokens, text_bytes=item.size, cursor=item.cursor)
        pace.move(sum(len(tokens) + 1 for tokens in made), _share(job, corpus, batch[-1].cursor))
    for part in (VALIDATION, TRAIN):
        if not writers[part].complete:
            writers[part].close()


def _share(job: Prepare, corpus: Corpus, cursor: tuple[int, ...]) -> float:
    """Part of the job that is done at a cursor, 0 .. 1: by the limit that comes first, else by the files."""
    *place, count, size = cursor
    shares = [corpus.share(place)]
    if job.documents is not None:
        shares.append(count / job.documents)
    if job.text_bytes is not None:
        shares.append(size / job.text_bytes)
    return min(1.0, max(shares))
