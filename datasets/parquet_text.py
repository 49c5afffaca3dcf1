"""A column of text from Parquet files, here or at hf://: in order, from any row on, a few documents at a time.

    row groups before `start` are not read; pages of its own group are decoded and passed over

pyarrow streams the pages of the one column and polars holds what comes, so memory does not depend on the size of a file
or of its row groups: a megabyte of the file, its open page, and BATCH documents. A remote file is opened once and its
footer read once; after a fault of the network it is opened again, after growing pauses, and read on from the next row.
What no pause mends (a wrong name, no right to read) is an error at once.

Tested are local files, the listing and opening of hf:// names against a connection that is refused, and the going on
after such a fault. Reading from the real hub was not tested: no network was there.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tsgdn2.datasets.errors import DataError

REMOTE: Final = "hf://"
BATCH: Final = 128
"""Documents that are held at a time."""
PAUSES: Final = (1.0, 4.0, 15.0, 60.0, 240.0, 600.0, 600.0)
"""Seconds before each new try; about 25 minutes in all, then the job ends and can be run again."""
_BUFFER: Final = 2**20
_BLOCK: Final = 2**24  # of a remote file, fetched at a time
_LASTING: Final = ("NotFound", "Gated", "Disabled", "BadRequest", "HFValidation", "Revision")
_STATUS: Final = (400, 401, 403, 404, 410)
_T = TypeVar("_T")


class ParquetText:
    """A column of Parquet files, in the order that is given."""

    def __init__(
        self, files: Sequence[str], column: str, *, opened: Callable[[str], IO[bytes]] | None = None,
        pauses: Sequence[float] = PAUSES,
    ) -> None:  # fmt: skip
        """files: paths, or hf:// names. opened: opens a remote name; the default asks the hub. pauses: see PAUSES."""
        self.files, self.column, self.pauses = list(files), column, pauses
        self.skipped: Counter[str] = Counter()
        self._opened = opened or _open_remote
        self._rows: tuple[int, int] = (-1, 0)

    def rows(self, file: int, start: int) -> Iterator[tuple[int, str]]:
        """Texts of a file from row `start` on; DataError for a file that is damaged or can not be had."""
        path = self.files[file]
        failed, at = 0, start
        while True:
            try:
                for text in self._read(file, at):
                    at, failed = at + 1, 0
                    if text is None:
                        self.skipped[f"null in {self.column}"] += 1
                    else:
                        yield at - 1, text
            except (pa.ArrowException, pl.exceptions.PolarsError) as error:
                raise _unreadable(path, error) from error
            except Exception as error:  # of the hub's client come the errors of whichever library it speaks through
                if isinstance(error, DataError):
                    raise
                if not path.startswith(REMOTE) or _lasts(error) or failed == len(self.pauses):
                    raise _unreadable(path, error) from error
                _pause(path, error, self.pauses[failed])
                failed += 1
            else:
                return

    def share(self, file: int, row: int) -> float:
        """Files count alike, rows of the open one too."""
        inside = row / max(1, self._rows[1]) if self._rows[0] == file else 0.0
        return (file + inside) / len(self.files)

    def state(self) -> list[list[object]]:
        """Names, and sizes of the local ones; give hf:// a revision (name@revision) to be sure of the others."""
        sizes = [-1 if file.startswith(REMOTE) else Path(file).stat().st_size for file in self.files]
        return [[file, size, self.column] for file, size in zip(self.files, sizes, strict=True)]

    def _read(self, file: int, start: int) -> Iterator[str | None]:
        path = self.files[file]
        stream = self._opened(path) if path.startswith(REMOTE) else open(path, "rb")  # noqa: SIM115
        with stream:
            table = pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
            self._check(path, table)
            self._rows = (file, table.metadata.num_rows)
            first = 0
            groups: list[int] = []
            for number in range(table.metadata.num_row_groups):
                size = table.metadata.row_group(number).num_rows
                if groups or first + size > start:
                    groups.append(number)
                else:
                    first += size
            if not groups:
                return
            for batch in table.iter_batches(BATCH, row_groups=groups, columns=[self.column], use_threads=False):
                texts = pl.Series(batch.column(0)).cast(pl.String)
                yield from texts.slice(max(0, start - first))
                first += batch.num_rows

    def _check(self, path: str, table: Any) -> None:
        """DataError unless the column is there and of text; categories are text too."""
        schema = table.schema_arrow
        kinds = {name: schema.field(name).type for name in schema.names}
        kind = kinds.get(self.column)
        value = kind.value_type if kind is not None and pa.types.is_dictionary(kind) else kind
        if value is None or not (
            pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
        ):
            held = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise DataError(f"column: {self.column!r} must be a column of text in {path}, which has {held}")


def remote_files(name: str, *, pauses: Sequence[float] = PAUSES[:2]) -> list[str]:
    """Parquet files of an hf:// name, sorted: one file, those of a pattern, or those of a folder and its subfolders.

    A name that ends in .parquet and has no wildcard is one file, without asking the hub. Errors: DataError when the hub
    can not be asked, after short pauses: whoever starts a job sees it soon.
    """
    if any(sign in name for sign in "*?["):
        pattern = name
    elif name.endswith(".parquet"):
        return [name]
    else:
        pattern = f"{name.rstrip('/')}/**/*.parquet"
    found = _insist(name, lambda: hub().glob(pattern.removeprefix(REMOTE)), pauses)
    return sorted(f"{REMOTE}{path}" for path in found if path.endswith(".parquet"))


def hub() -> Any:
    """The file system of hf:// names; DataError where its package is missing."""
    try:
        from huggingface_hub import HfFileSystem
    except ImportError as error:
        raise DataError("text: hf:// names need the package huggingface_hub; install tsgdn2[language]") from error
    return HfFileSystem()


def _open_remote(path: str) -> IO[bytes]:
    stream: IO[bytes] = hub().open(path.removeprefix(REMOTE), "rb", block_size=_BLOCK)
    return stream


def _insist(name: str, ask: Callable[[], _T], pauses: Sequence[float]) -> _T:
    """Ask, and ask again after each pause where a pause may help."""
    for pause in (*pauses, None):
        try:
            return ask()
        except DataError:
            raise
        except Exception as error:
            if pause is None or _lasts(error):
                raise _unreadable(name, error) from error
            _pause(name, error, pause)
    raise AssertionError("the last try returns or raises")


def _lasts(error: Exception) -> bool:
    """Whether trying again is of no use: a wrong name, a missing right."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in _STATUS
    return isinstance(error, (FileNotFoundError, PermissionError, NotImplementedError, ValueError, TypeError)) or any(
        part in type(error).__name__ for part in _LASTING
    )


def _pause(name: str, error: Exception, seconds: float) -> None:
    logging.getLogger(__name__).warning("%s: %s; trying again in %g s", name, _words(error), seconds)
    time.sleep(seconds)


def _unreadable(name: str, error: Exception) -> DataError:
    return DataError(f"text: {name} can not be read ({_words(error)}); mend it or the connection and run again")


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
