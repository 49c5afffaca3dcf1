"""Packed tokens on disk: shards of raw integers, an index of documents beside each, and a manifest with checksums.

    stream    t_0 .. t_{T-1}    all documents end to end, each with its end-of-document token as its last one
    shard k   holds t_{kS} .. t_{min((k+1)S, T)-1}    a document may begin in one shard and end in another

    shard-000000.tokens       uint16 (up to 65,536 ids) or uint32, little-endian, nothing else
    shard-000000.documents    int64 [2, D], little-endian: where each document that ends here ends in this shard
                              (exclusive, 1 .. S), and the bytes of UTF-8 that each was before it became tokens
    manifest.json             counts, sizes, sha256 of every file, digest of the tokenizer, and a digest of itself

Opening checks the manifest's own digest and the size of every file, which costs one stat per file and notices what was
cut short or never copied. It does not read the tokens: `verify="use"` reads a shard whole and compares its sha256
before the first use, `verify="all"` every shard at once. What was found sound is kept in verified.json with the file's
size and time of change, so that the next process does not read it again.

T tokens, S tokens of a shard (the last one may hold fewer), D documents.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsgdn2.datasets.errors import ChecksumError, DataError

Ints = NDArray[np.int64]
Verify = Literal["size", "use", "all"]

MANIFEST: Final = "manifest.json"
VERIFIED: Final = "verified.json"
SCHEMA: Final = 1
DRAFT: Final = ".draft"  # ends the name of a file that is being written; a kill leaves it behind
_OPEN_MAPS = 128  # each holds a file open, and a process may have 1,024


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a shard, as the manifest has it."""

    name: str
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Counts of one shard; a document counts where it ends."""

    tokens: int
    documents: int
    text_bytes: int
    """UTF-8 of the documents that end here."""
    files: tuple[Part, Part]
    """The tokens and the documents."""


class Document(NamedTuple):
    """One document: its tokens [n] with the end-of-document token, and the bytes of UTF-8 that it was."""

    tokens: Ints
    text_bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds."""

    vocabulary: int
    """Number of ids, the end-of-document id among them."""
    end_of_document: int
    tokenizer_digest: str
    shard_tokens: int
    """S: tokens of every shard but the last."""
    shards: tuple[Shard, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """How a token lies on disk."""
        return token_dtype(self.vocabulary)

    def to_json(self) -> str:
        """Text with a digest of itself; `from_json` is its inverse."""
        content = {"schema": SCHEMA} | asdict(self)
        return json.dumps(content | {"digest": _digest(content)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str) -> Manifest:
        """Read what `to_json` wrote; ChecksumError when a byte of it was changed, DataError when it is no manifest."""
        try:
            content = json.loads(text)
            digest = content.pop("digest")
            schema = content.pop("schema")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            reason = f"is no manifest of token shards ({error!r})"
            raise DataError(f"{origin}: {reason}; prepare the corpus again") from error
        if schema != SCHEMA:
            raise DataError(f"{origin}: has schema {schema}, this version reads {SCHEMA}; use the one that wrote it")
        found = _digest({"schema": schema} | content)
        if found != digest:
            raise ChecksumError(f"{origin}: has sha256 {found}, its own line says {digest}; copy the folder again")
        shards = tuple(shard_from(shard) for shard in content.pop("shards"))
        return cls(shards=shards, **content)


class TokenShards:
    """Read-only view of one folder of shards; the numbers of tokens and documents are those of the whole stream."""

    def __init__(self, folder: Path, *, verify: Verify = "size") -> None:
        """folder: as `TokenWriter` left it. verify: see the module. DataError, or ChecksumError naming the file."""
        path = folder / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = f"{folder} holds no readable {MANIFEST} ({error})"
            raise DataError(f"folder: {reason}; prepare it, or let `prepare` finish") from error
        self.folder, self.manifest = folder, Manifest.from_json(text, str(path))
        shards = self.manifest.shards
        self._documents_before = [0, *accumulate(shard.documents for shard in shards)]
        self.tokens = sum(shard.tokens for shard in shards)
        """T."""
        self.documents = self._documents_before[-1]
        self.text_bytes = sum(shard.text_bytes for shard in shards)
        """UTF-8 of all documents."""
        self.vocabulary, self.end_of_document = self.manifest.vocabulary, self.manifest.end_of_document
        self.tokenizer_digest = self.manifest.tokenizer_digest
        self._verify_on_use = verify == "use"
        for number in range(len(shards)):
            self._check_size(number)
            if verify == "all":
                self.verify(number)
        self._tokens = lru_cache(_OPEN_MAPS)(self._map_tokens)
        self._index = lru_cache(_OPEN_MAPS)(self._map_documents)

    def __getstate__(self) -> dict[str, Any]:
        """Maps do not travel to another process; it opens its own."""
        return {"folder": self.folder, "verify": "use" if self._verify_on_use else "size"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the folder again."""
        self.__init__(state["folder"], verify=state["verify"])  # type: ignore[misc]

    def read(self, start: int, stop: int) -> Ints:
        """Copy tokens start .. stop - 1 of the stream, int64 [stop - start]; DataError outside 0 .. T."""
        if not 0 <= start <= stop <= self.tokens:
            raise DataError(f"start, stop: must be in order within 0 .. {self.tokens:,}, got {start} and {stop}")
        out = np.empty(stop - start, np.int64)
        size = self.manifest.shard_tokens
        at = start
        while at < stop:
            number, first = divmod(at, size)
            last = min(size, first + stop - at)
            out[at - start : at - start + last - first] = self._tokens(number)[first:last]
            at += last - first
        return out

    def ends(self, start: int, stop: int) -> Ints:
        """Where documents end (exclusive) in start + 1 .. stop, ascending, in the stream's numbering."""
        size = self.manifest.shard_tokens
        found = [np.zeros(0, np.int64)]
        for number in range(start // size, min(-(-stop // size), len(self.manifest.shards))):
            ends = self._index(number)[0]
            base = number * size
            low, high = np.searchsorted(ends, [start - base, stop - base], side="right")
            found.append(ends[low:high].astype(np.int64) + base)
        return np.concatenate(found)

    def bounds(self, number: int) -> tuple[int, int]:
        """First token and end (exclusive) of document `number` in the stream; DataError outside 0 .. documents - 1."""
        if not 0 <= number < self.documents:
            raise DataError(f"number: must be within 0 .. {self.documents - 1:,}, got {number}")
        return (0 if number == 0 else self._end(number - 1)[0]), self._end(number)[0]

    def document(self, number: int) -> Document:
        """Read document `number`, whichever shards it lies in."""
        start, stop = self.bounds(number)
        return Document(self.read(start, stop), self._end(number)[1])

    def walk(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Read documents start .. stop - 1 in order, one at a time."""
        for number in range(start, self.documents if stop is None else min(stop, self.documents)):
            yield self.document(number)

    def verify(self, number: int) -> None:
        """Compare the sha256 of both files of a shard, unless verified.json has them; ChecksumError names the file."""
        known = _read_verified(self.folder)
        new: dict[str, list[object]] = {}
        for part in self.manifest.shards[number].files:
            path = self.folder / part.name
            try:
                stat = path.stat()
                sound: list[object] = [part.sha256, stat.st_size, stat.st_mtime_ns]
                if known.get(part.name) == sound:
                    continue
                with path.open("rb") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise _unreadable(path, error) from error
            if found != part.sha256:
                raise ChecksumError(f"{path}: has sha256 {found}, expected {part.sha256}; copy or prepare it again")
            new[part.name] = sound
        if new:
            _add_verified(self.folder, new)

    def _end(self, number: int) -> tuple[int, int]:
        shard = bisect_right(self._documents_before, number) - 1
        end, text_bytes = self._index(shard)[:, number - self._documents_before[shard]]
        return int(end) + shard * self.manifest.shard_tokens, int(text_bytes)

    def _check_size(self, number: int) -> None:
        shard = self.manifest.shards[number]
        widths = (shard.tokens * self.manifest.dtype.itemsize, shard.documents * 16)
        for part, width in zip(shard.files, widths, strict=True):
            path = self.folder / part.name
            try:
                size = path.stat().st_size
            except OSError as error:
                raise _unreadable(path, error) from error
            if not size == part.size == width:
                raise ChecksumError(f"{path}: has {size:,} bytes, expected {width:,}; it is cut short or another file")

    def _map_tokens(self, number: int) -> NDArray[Any]:
        if self._verify_on_use:
            self.verify(number)
        return self._map(number, 0, self.manifest.dtype)

    def _map_documents(self, number: int) -> NDArray[np.int64]:
        if self._verify_on_use:
            self.verify(number)
        return self._map(number, 1, np.dtype("<i8")).reshape(2, -1)

    def _map(self, number: int, part: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        entry = self.manifest.shards[number].files[part]
        if entry.size == 0:  # nothing can be mapped of an empty file: a shard in which no document ends
            return np.zeros(0, dtype)
        return np.asarray(np.memmap(self.folder / entry.name, dtype, mode="r"))


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the target, bring it to the disk and rename, so that no reader ever sees half a file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}{DRAFT}")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """uint16 where it holds every id, else uint32; little-endian."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def shard_from(raw: dict[str, Any]) -> Shard:
    """Build a Shard from its JSON."""
    tokens, documents = (Part(**part) for part in raw["files"])
    return Shard(tokens=raw["tokens"], documents=raw["documents"], text_bytes=raw["text_bytes"],
                 files=(tokens, documents))  # fmt: skip


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: can not be read ({error.strerror}); copy or prepare the corpus again")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_verified(folder: Path) -> dict[str, list[object]]:
    try:
        known = json.loads((folder / VERIFIED).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no cache, or half of one: the files are read again
        return {}
    return known if isinstance(known, dict) else {}


def _add_verified(folder: Path, new: dict[str, list[object]]) -> None:
    content = json.dumps(_read_verified(folder) | new, indent=1, sort_keys=True).encode()
    try:
        write_whole(folder / VERIFIED, content)
    except OSError:  # a folder that is only read: the next process reads again
        return
