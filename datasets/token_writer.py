"""Writes packed tokens as tokens.py reads them; a writer that was killed goes on after its last finished shard.

    shard-000000.tokens.part      the shard being written: a restart removes it
    shard-000000.json             the record of a finished shard, written last; the manifest takes all records' place

A record holds counts, digests, and (cursor, done): the last document that the shard holds something of, by the caller's
own cursor, and how many of its tokens are written. The caller reads its source again from `resume` on and appends as
before; what is written already is passed over, so that the files are the same whether a run was killed or not. One
process may write a folder at a time; the caller sees to that.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tsgdn2.datasets.errors import DataError
from tsgdn2.datasets.tokens import DRAFT, MANIFEST, SCHEMA, Manifest, Part, Shard, shard_from, token_dtype, write_whole

Cursor = tuple[int, ...]
"""Where a document comes from, as the caller counts; ascending in the order of the documents."""


class TokenWriter:
    """Takes documents in order and leaves a folder that TokenShards opens."""

    def __init__(
        self, folder: Path, *, vocabulary: int, end_of_document: int, tokenizer_digest: str, shard_tokens: int
    ) -> None:
        """Begin, or go on where a writer with the same arguments stopped.

        Args:
            folder: Made if it is not there.
            vocabulary: Number of ids, the end-of-document id among them; at most 2^32.
            end_of_document: Id that `append` puts behind every document.
            tokenizer_digest: What made the tokens; kept in the manifest.
            shard_tokens: Tokens S of a shard.

        Raises:
            DataError: A bound is broken, the folder was begun with other arguments, or it can not be written.
        """
        if not 1 <= vocabulary <= 2**32 or not 0 <= end_of_document < vocabulary or shard_tokens < 1:
            raise DataError(
                "vocabulary, end_of_document, shard_tokens: must be within 1 .. 2^32, below vocabulary, at least 1, "
                f"got {vocabulary}, {end_of_document}, {shard_tokens}"
            )
        self.folder = folder
        self.empty = Manifest(vocabulary=vocabulary, end_of_document=end_of_document, tokenizer_digest=tokenizer_digest,
                              shard_tokens=shard_tokens, shards=())  # fmt: skip
        self.shards: list[Shard] = []
        self.resume: Cursor | None = None
        """The document to read the source from; None is the first one."""
        self._written = 0  # tokens of the document `resume` that are in finished shards
        self._last: Cursor | None = None
        self._dtype = token_dtype(vocabulary)
        self.complete = (folder / MANIFEST).is_file()
        """The manifest is written: there is nothing left to append."""
        self._stream: IO[bytes] | None = None
        with self._telling():
            folder.mkdir(parents=True, exist_ok=True)
            self._recover()
        self._begin()

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return sum(shard.tokens for shard in self.shards) + self._tokens

    def wants(self, cursor: Cursor) -> bool:
        """Whether the document at this cursor is not wholly written; one that is need not be made into tokens."""
        return not self.complete and (self.resume is None or cursor >= self.resume)

    def append(self, tokens: NDArray[Any] | Sequence[int], *, text_bytes: int, cursor: Cursor) -> None:
        """Add one document: tokens [n] without the end-of-document token, n = 0 allowed.

        Cursors ascend from call to call. DataError: an id is out of range, a cursor does not ascend, or the disk is
        full; finished shards stay.
        """
        values = np.asarray(tokens, np.int64)
        if self._last is not None and cursor <= self._last:
            raise DataError(f"cursor: must come after {self._last}, got {cursor}; append documents in order")
        if values.ndim != 1 or (len(values) and not 0 <= values.min() <= values.max() < self.empty.vocabulary):
            raise DataError(f"tokens: must be [n] with ids below {self.empty.vocabulary}; document {cursor} has others")
        if not self.wants(cursor):
            return
        whole = np.append(values, self.empty.end_of_document).astype(self._dtype)
        at = self._written if cursor == self.resume else 0
        with self._telling():
            while at < len(whole):
                room = self.empty.shard_tokens - self._tokens
                piece = whole[at : at + room]
                at += len(piece)
                self._put(piece.tobytes())
                self._tokens += len(piece)
                if at == len(whole):
                    self._ends.append(self._tokens)
                    self._bytes.append(text_bytes)
                if self._tokens == self.empty.shard_tokens:
                    self._finish(cursor, at)
        self._last = cursor

    def close(self) -> Manifest:
        """Write the last shard and the manifest; the folder is complete after this."""
        with self._telling():
            if self._tokens:
                self._finish((), 0)
            manifest = Manifest(**(vars(self.empty) | {"shards": tuple(self.shards)}))
            write_whole(self.folder / MANIFEST, manifest.to_json().encode())
            self.complete = True
            self._tidy(keep=set())
        return manifest

    def abandon(self) -> None:
        """Give up the unfinished shard; a later writer goes on at its beginning."""
        self._drop_part()

    def _begin(self) -> None:
        self._tokens, self._ends, self._bytes, self._hash = 0, array("q"), array("q"), hashlib.sha256()

    def _name(self, number: int, kind: str) -> Path:
        return self.folder / f"shard-{number:06d}.{kind}"

    def _put(self, content: bytes) -> None:
        if self._stream is None:
            self._stream = self._name(len(self.shards), "tokens.part").open("wb")
        self._stream.write(content)
        self._hash.update(content)

    def _finish(self, cursor: Cursor, done: int) -> None:
        number = len(self.shards)
        tokens, documents = self._name(number, "tokens"), self._name(number, "documents")
        assert self._stream is not None
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._stream = None
        self._name(number, "tokens.part").replace(tokens)
        index = np.array([self._ends, self._bytes], "<i8").tobytes()
        write_whole(documents, index)
        shard = Shard(
            tokens=self._tokens,
            documents=len(self._ends),
            text_bytes=sum(self._bytes),
            files=(
                Part(name=tokens.name, size=self._tokens * self._dtype.itemsize, sha256=self._hash.hexdigest()),
                Part(name=documents.name, size=len(index), sha256=hashlib.sha256(index).hexdigest()),
            ),
        )
        record = {"arguments": self._arguments(), "shard": asdict(shard), "cursor": list(cursor), "done": done}
        write_whole(self._name(number, "json"), json.dumps(record, sort_keys=True).encode())
        self.shards.append(shard)
        self._begin()

    def _arguments(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.empty).items() if name != "shards"} | {"schema": SCHEMA}

    def _recover(self) -> None:
        """Take over the finished shards, and remove what is not of them."""
        if self.complete:
            path = self.folder / MANIFEST
            manifest = Manifest.from_json(path.read_text(encoding="utf-8"), str(path))
            same = vars(manifest) | {"shards": ()} == vars(self.empty)
            self.shards = list(manifest.shards)
        else:
            same = True
            while self._name(len(self.shards), "json").is_file():
                record = json.loads(self._name(len(self.shards), "json").read_text(encoding="utf-8"))
                same = same and record["arguments"] == self._arguments()
                shard = shard_from(record["shard"])
                if shard.tokens < self.empty.shard_tokens:
                    break  # the last one of a run that was killed before its manifest: it is made again
                sizes = [part.size == (self.folder / part.name).stat().st_size for part in shard.files]
                if not all(sizes):
                    raise DataError(f"folder: a shard of {self.folder} was changed; remove the folder and begin again")
                self.shards.append(shard)
                self.resume, self._written = tuple(record["cursor"]), record["done"]
        if not same:
            reason = f"{self.folder} was begun with another tokenizer or shard size"
            raise DataError(f"folder: {reason}; remove it, or name another one")
        keep = {self._name(number, "json").name for number in range(0 if self.complete else len(self.shards))}
        self._tidy(keep=keep)

    def _tidy(self, keep: set[str]) -> None:
        keep = keep | {part.name for shard in self.shards for part in shard.files}
        for path in [*self.folder.glob("shard-*"), *self.folder.glob(f".*{DRAFT}")]:
            if path.name not in keep:
                path.unlink()

    def _drop_part(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._name(len(self.shards), "tokens.part").unlink(missing_ok=True)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._give_up()
            reason = f"{self.folder} can not be written ({error.strerror or error})"
            remedy = "make room and run the same command again: it goes on after the last finished shard"
            raise DataError(f"folder: {reason}; {remedy}") from error

    def _give_up(self) -> None:
        """Free what the unfinished shard holds of a full disk; its buffered rest may not be writable."""
        stream, self._stream = self._stream, None
        try:
            if stream is not None:
                stream.close()
        except OSError:
            pass  # the buffer could not be written: the disk is still full
        finally:
            self._name(len(self.shards), "tokens.part").unlink(missing_ok=True)
