"""Documents of text, in a fixed order and one at a time: Parquet here or at hf://, folders of files, Python's library.

    documents(start) -> cursor (source, file, row), text        ascending; start is the cursor of any document

A cursor is enough to go on anywhere: files before it are not opened and row groups before it not read. Text is kept to
the character. What is no text (null, bytes that are no UTF-8) is passed over and counted in `skipped`.

Memory: a few documents of a Parquet file (parquet_text.py), one whole file of a folder. A single text file of many
gigabytes is therefore better split, or written as Parquet. A source whose files change between two runs is another
source: `fingerprint` says so. A folder of both kinds is refused, because which of them is meant is not known.
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
from typing import Final, NamedTuple, Protocol

from tsgdn2.datasets.errors import DataError
from tsgdn2.datasets.parquet_text import REMOTE, ParquetText, remote_files

STDLIB: Final = "stdlib"
STDLIB_DOCS: Final = "stdlib-docs"
_TEXT_SUFFIXES: Final = (".txt", ".md", ".rst", ".py", ".html", ".tex", ".csv", ".json", ".xml")
_PARQUET: Final = ".parquet"


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
        """names: `stdlib`, `stdlib-docs`, a file, a folder or a pattern, of Parquet (hf:// too) or of text."""
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


class FolderText:
    """Text files of a folder and its subfolders, one document each, in the order of their names."""

    def __init__(self, root: Path, names: Sequence[str] | None = None) -> None:
        """root: a folder, or one file. names: the files below it; None is every one whose ending is that of text."""
        self.root, self.names = root, names
        self.skipped: Counter[str] = Counter()

    @cached_property
    def files(self) -> list[str]:
        """Names below the root; hidden files and folders are left out."""
        if self.names is not None:
            return sorted(self.names)
        if self.root.is_file():
            return [""]
        found = (path.relative_to(self.root) for path in self.root.rglob("*") if _is_text(path))
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
        kept = [name.as_posix() for name in found if "site-packages" not in name.parts and (self.root / name).is_file()]
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
    """Find what a name means; what is there under just this name goes before a pattern. DataError if nothing is."""
    if name in (STDLIB, STDLIB_DOCS):
        return PythonLibrary(documentation=name == STDLIB_DOCS)
    if name.startswith(REMOTE):
        return ParquetText(remote_files(name), column)
    path = Path(name)
    if path.is_file():
        return ParquetText([name], column) if path.suffix == _PARQUET else FolderText(path)
    if path.is_dir():
        parquet = sorted(str(file) for file in path.rglob(f"*{_PARQUET}") if file.is_file())
        if parquet and FolderText(path).files:
            raise _mixed(name, f"{name}/**/*{_PARQUET}", f"{name}/**/*.txt")
        return ParquetText(parquet, column) if parquet else FolderText(path)
    if any(sign in name for sign in "*?["):
        return _matching(name, column)
    raise DataError(f"text: {name} is no file, folder, pattern, hf:// path, `{STDLIB}` or `{STDLIB_DOCS}`; correct it")


def _matching(pattern: str, column: str) -> Source:
    """Files that match a pattern, hidden ones left out: Parquet if all of them end so, text if none does."""
    path = Path(pattern)
    anchor = Path(path.anchor) if path.anchor else Path()
    try:
        found = [file for file in anchor.glob(str(path.relative_to(anchor))) if file.is_file()]
    except (ValueError, OSError) as error:  # `a**b` is no pattern
        raise DataError(f"text: {pattern} is no pattern of files ({error}); correct it") from error
    names = sorted(str(file) for file in found if not file.name.startswith("."))
    parquet = [name for name in names if name.endswith(_PARQUET)]
    if parquet and len(parquet) < len(names):
        raise _mixed(pattern, f"{pattern}{_PARQUET}", f"{pattern}.txt")
    return ParquetText(parquet, column) if parquet else FolderText(Path(), names)


def _mixed(name: str, *patterns: str) -> DataError:
    remedy = " or ".join(patterns)
    return DataError(f"text: {name} holds Parquet and files of text; name those that you mean, by a pattern: {remedy}")


def _is_text(path: Path) -> bool:
    """A file that is there and whose ending is one of text: no folder of such a name, no link to nowhere."""
    return path.suffix in _TEXT_SUFFIXES and path.is_file()
