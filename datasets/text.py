"""Documents of text, in a fixed order and one at a time: Parquet here or at hf://, folders of files, Python's library.

    documents(start) -> cursor (source, file, row), text        ascending; start is the cursor of any document

A cursor is enough to go on anywhere: files before it are not opened and row groups before it not read. Text is kept to
the character. What is no text (null, bytes that are no UTF-8) is passed over and counted in `skipped`.

Memory: one piece of a Parquet file, at most a row group and at most about 32 MB of a local one; one whole file of a
folder. A single text file of many gigabytes is therefore better split, or written as Parquet. A source whose files
change between two runs is another source: `fingerprint` says so.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import polars as pl
import pyarrow.parquet as pq

from tsgdn2.datasets.errors import DataError

STDLIB: Final = "stdlib"
STDLIB_DOCS: Final = "stdlib-docs"
_REMOTE: Final = "hf://"
_TEXT_SUFFIXES: Final = (".txt", ".md", ".rst", ".py", ".html", ".tex", ".csv", ".json", ".xml")
_PIECE_BYTES: Final = 32 * 2**20


class Text(NamedTuple):
    """One document."""

    cursor: tuple[int, int, int]
    """Source, file, row; the place of the document in the order of all."""
    text: str


class Source(Protocol):
    """Documents of one kind."""

    skipped: Counter[str]
    """What was passed over, by reason, with one count for each."""

    @property
    def files(self) -> Sequence[str]:
        """Names of the files in order."""

    def rows(self, file: int, start: int) -> Iterator[tuple[int, str]]:
        """Rows of a file from `start` on, with their text."""

    def share(self, file: int, row: int) -> float:
        """Part of the source that lies before a row, 0 .. 1, about."""

    def state(self) -> list[list[object]]:
        """Name and size of every file, as far as they are known without reading."""


class Corpus:
    """Sources one behind the other."""

    def __init__(self, names: Sequence[str], *, column: str = "text") -> None:
        """names: `stdlib`, `stdlib-docs`, a Parquet file or pattern (hf:// too), a text file, a folder of either."""
        if not names:
            raise DataError("text: must name at least one source, got none; `stdlib` is on any machine")
        self.sources = [open_source(name, column) for name in names]
        for name, source in zip(names, self.sources, strict=True):
            if not source.files:
                kinds = f"{', '.join(_TEXT_SUFFIXES)} and .parquet"
                raise DataError(f"text: {name} holds no file of text; {kinds} are read")

    def documents(self, start: Sequence[int] = (0, 0, 0)) -> Iterator[Text]:
        """Every document from the cursor `start` on, itself included."""
        first, file_start, row_start = start
        for number in range(first, len(self.sources)):
            source = self.sources[number]
            for file in range(file_start, len(source.files)):
                for row, text in source.rows(file, row_start):
                    yield Text((number, file, row), text)
                row_start = 0
            file_start = 0

    def share(self, cursor: Sequence[int]) -> float:
        """Part of the corpus before a cursor, about; sources count alike."""
        source, file, row = cursor
        return (source + self.sources[source].share(file, row)) / len(self.sources)

    @property
    def skipped(self) -> dict[str, int]:
        """What was passed over in this process, by reason."""
        return dict(sum((source.skipped for source in self.sources), Counter[str]()))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over names and sizes of all files; another one means that cursors lead elsewhere."""
        states = [source.state() for source in self.sources]
        return hashlib.sha256(json.dumps(states).encode()).hexdigest()


class ParquetText:
    """A column of Parquet files, in the order of their names."""

    def __init__(self, pattern: str, column: str) -> None:
        """pattern: a file, a folder, or a name with wildcards; wildcards at hf:// need the package huggingface_hub."""
        self.column, self.pattern = column, pattern
        self.skipped: Counter[str] = Counter()
        self._open: tuple[int, int] = (-1, 0)

    @cached_property
    def files(self) -> list[str]:
        """Paths, sorted."""
        if self.pattern.startswith(_REMOTE):
            if not any(sign in self.pattern for sign in "*?["):
                return [self.pattern]
            return sorted(f"{_REMOTE}{path}" for path in _hub().glob(self.pattern.removeprefix(_REMOTE)))
        path = Path(self.pattern)
        if path.is_dir():
            return sorted(str(file) for file in path.rglob("*.parquet"))
        if path.is_file():
            return [str(path)]
        anchor = Path(path.anchor) if path.anchor else Path()
        return sorted(str(file) for file in anchor.glob(str(path.relative_to(anchor))) if file.is_file())

    def rows(self, file: int, start: int) -> Iterator[tuple[int, str]]:
        """Texts of a file, read piece by piece."""
        path = self.files[file]
        try:
            scan = pl.scan_parquet(path, low_memory=True)
            schema = scan.collect_schema()
            if schema.get(self.column) != pl.String:
                held = ", ".join(f"{name} ({kind})" for name, kind in schema.items())
                raise DataError(f"column: {self.column!r} must be a column of text in {path}, which has {held}")
            pieces = self._pieces(path)
            self._open = (file, sum(pieces))
            at = 0
            for size in pieces:
                if at + size > start:
                    skip = max(0, start - at)
                    piece = scan.select(self.column).slice(at + skip, size - skip).collect()
                    yield from self._known(piece.to_series(), at + skip)
                at += size
        except (pl.exceptions.PolarsError, OSError) as error:
            reason = f"{path} can not be read ({' '.join(str(error).split())})"
            raise DataError(f"text: {reason}; mend it or the connection and run again") from error

    def share(self, file: int, row: int) -> float:
        """Files count alike, rows of the open one too."""
        inside = row / max(1, self._open[1]) if self._open[0] == file else 0.0
        return (file + inside) / len(self.files)

    def state(self) -> list[list[object]]:
        """Names, and sizes of the local ones; give hf:// a revision (name@revision) to be sure of the others."""
        local = not self.pattern.startswith(_REMOTE)
        return [[file, Path(file).stat().st_size if local else -1, self.column] for file in self.files]

    def _known(self, texts: pl.Series, first: int) -> Iterator[tuple[int, str]]:
        for row, text in enumerate(texts, first):
            if text is None:
                self.skipped[f"null in {self.column}"] += 1
            else:
                yield row, text

    def _pieces(self, path: str) -> list[int]:
        """Rows of each read: a row group, or several reads of a large local one (a remote one is fetched once)."""
        remote = path.startswith(_REMOTE)
        stream: Any = _hub().open(path.removeprefix(_REMOTE)) if remote else open(path, "rb")  # noqa: SIM115
        with stream:
            meta = pq.ParquetFile(stream).metadata
            groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
        pieces = []
        for group in groups:
            parts = 1 if remote else max(1, -(-group.total_byte_size // _PIECE_BYTES))
            size = max(1, -(-group.num_rows // parts))
            pieces += [min(size, group.num_rows - at) for at in range(0, group.num_rows, size)]
        return pieces


class FolderText:
    """Text files of a folder and its subfolders, one document each, in the order of their names."""

    def __init__(self, root: Path) -> None:
        """root: a folder, or one file."""
        self.root = root
        self.skipped: Counter[str] = Counter()

    @cached_property
    def files(self) -> list[str]:
        """Names below the root; hidden files and folders are left out."""
        if self.root.is_file():
            return [""]
        found = (path.relative_to(self.root) for path in self.root.rglob("*") if path.suffix in _TEXT_SUFFIXES)
        return sorted(name.as_posix() for name in found if not any(part.startswith(".") for part in name.parts))

    def rows(self, file: int, start: int) -> Iterator[tuple[int, str]]:
        """The one document of a file, unless it is no text."""
        try:
            content = (self.root / self.files[file]).read_bytes()
        except OSError as error:
            raise DataError(f"text: {self.root / self.files[file]} can not be read ({error.strerror})") from error
        text = self.decode(content)
        if text is None:
            self.skipped["no text in its encoding"] += 1
        elif start == 0:
            yield 0, text

    def decode(self, content: bytes) -> str | None:
        """Bytes of a file -> its text with its own ends of lines; None if it is none."""
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return None

    def share(self, file: int, row: int) -> float:  # noqa: ARG002
        """Files count alike."""
        return file / len(self.files)

    def state(self) -> list[list[object]]:
        """Names and sizes."""
        return [[name, (self.root / name).stat().st_size] for name in self.files]


class PythonLibrary(FolderText):
    """Modules of Python's standard library, one document each, in an order in which every prefix is a fair sample.

    The order is that of the sha256 of the modules' names, because by name all of the tests would come together. The
    text differs between versions of Python; `fingerprint` tells them apart.
    """

    def __init__(self, *, documentation: bool = False) -> None:
        """documentation: the documentation strings alone, those of a module together; else the whole source."""
        super().__init__(Path(sysconfig.get_path("stdlib")))
        self.documentation = documentation

    @cached_property
    def files(self) -> list[str]:
        """Modules below the library's folder, installed packages left out."""
        found = (path.relative_to(self.root) for path in self.root.rglob("*.py"))
        kept = [name.as_posix() for name in found if "site-packages" not in name.parts]
        return sorted(kept, key=lambda name: hashlib.sha256(name.encode()).digest())

    def state(self) -> list[list[object]]:
        """Names, sizes, and which text is taken."""
        return [*super().state(), ["documentation", self.documentation]]

    def decode(self, content: bytes) -> str | None:
        """Source in the encoding that it declares, or its documentation; None for a test of broken source."""
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            source = content.decode(encoding)
            return documentation(source) if self.documentation else source
        except (SyntaxError, UnicodeDecodeError, LookupError, ValueError):
            return None


def documentation(source: str) -> str:
    """Documentation strings of a module, its classes, its functions, the outer ones first; a blank line between."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a compiler would say of that source is none of the reader's business
        tree = ast.parse(source)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(text for text in found if text)


def open_source(name: str, column: str = "text") -> Source:
    """Find what a name means; DataError if nothing is there."""
    if name in (STDLIB, STDLIB_DOCS):
        return PythonLibrary(documentation=name == STDLIB_DOCS)
    path = Path(name)
    if name.startswith(_REMOTE) or path.suffix == ".parquet" or any(sign in name for sign in "*?["):
        return ParquetText(name, column)
    if path.is_dir():
        parquet = next(path.rglob("*.parquet"), None) is not None
        return ParquetText(name, column) if parquet else FolderText(path)
    if path.is_file():
        return FolderText(path)
    raise DataError(f"text: {name} is no file, folder, pattern, hf:// path, `{STDLIB}` or `{STDLIB_DOCS}`; correct it")


def _hub() -> Any:
    try:
        from huggingface_hub import HfFileSystem
    except ImportError as error:
        raise DataError("text: hf:// paths need the package huggingface_hub; install tsgdn2[language]") from error
    return HfFileSystem()
