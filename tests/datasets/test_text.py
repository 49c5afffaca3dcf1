"""Documents from every kind of source: in order, to the character, and from any cursor on."""

from __future__ import annotations

import http.client
import io
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import IO

import polars as pl
import pytest

from tsgdn2.datasets.errors import DataError
from tsgdn2.datasets.parquet_text import ParquetText, remote_files
from tsgdn2.datasets.text import Corpus, FolderText, PythonLibrary, documentation

ODD = ["", " ", "a\r\nb\n", "\ufeffé e\u0301 \U0001f469\u200d\U0001f680", "\x00", "x" * 5_000]


def parquet(folder: Path, rows: int = 50, group: int = 7) -> Path:
    """Two files with nulls in them, several row groups each."""
    folder.mkdir(exist_ok=True)
    for file in range(2):
        texts = [None if row % 10 == 3 else f"{file} {row} {ODD[row % 6]}" for row in range(rows)]
        frame = pl.DataFrame({"id": range(rows), "text": texts})
        frame.write_parquet(folder / f"{file:03d}.parquet", row_group_size=group)
    return folder


@pytest.mark.parametrize("pattern", ["", "*.parquet", "0*1.parquet"])
def test_parquet_is_read_in_order_to_the_character(tmp_path: Path, pattern: str) -> None:
    folder = parquet(tmp_path / "set")
    corpus = Corpus([str(folder / pattern)])
    files = [1] if pattern == "0*1.parquet" else [0, 1]
    expected = [f"{file} {row} {ODD[row % 6]}" for file in files for row in range(50) if row % 10 != 3]
    assert [document.text for document in corpus.documents()] == expected
    assert corpus.skipped == {"null in text": 5 * len(files)}


def test_every_cursor_leads_back_to_its_document_in_every_source(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(name)
    corpus = Corpus([str(folder), str(parquet(tmp_path / "set", rows=12)), str(folder / "b.txt")])
    documents = list(corpus.documents())
    cursors = [document.cursor for document in documents]
    assert cursors == sorted(set(cursors))
    for number, cursor in enumerate(cursors):
        assert list(corpus.documents(cursor)) == documents[number:]
    shares = [corpus.share(cursor) for cursor in cursors]
    assert shares[0] == 0.0
    assert all(0 <= share < 1 for share in shares)
    assert [document.text for document in corpus.documents((2, 0, 0))] == ["b"]
    assert list(corpus.documents((2, 0, 1))) == []


@pytest.mark.parametrize("groups", [1, 4])
def test_memory_depends_on_neither_the_file_nor_its_row_groups(tmp_path: Path, groups: int) -> None:
    draw = random.Random(0)
    words = [f"{draw.getrandbits(40):x}" for _ in range(400_000)]
    texts = [" ".join(words[row * 20 : row * 20 + 4_000]) for row in range(4_000)]  # 160 MB, and no dictionary
    frame = pl.DataFrame({"other": texts[::-1], "text": texts})
    frame.write_parquet(tmp_path / "large.parquet", row_group_size=4_000 // groups)
    program = (
        "import resource, sys; from tsgdn2.datasets.text import Corpus; import pyarrow.parquet\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "size = sum(len(document.text) for document in Corpus([sys.argv[1]]).documents())\n"
        "print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "large.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    size, kilobytes = map(int, done.stdout.split())
    assert size == sum(map(len, texts))
    assert kilobytes < 64 * 1024


def test_a_column_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "set")
    for column in ("words", "id"):
        with pytest.raises(DataError, match=f"column: '{column}' must be a column of text.*id \\(int64\\)"):
            list(Corpus([str(folder)], column=column).documents())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "set")
    path = folder / "001.parquet"
    path.write_bytes(path.read_bytes()[:300])
    read = Corpus([str(folder)]).documents()
    with pytest.raises(DataError, match=r"001\.parquet can not be read"):
        list(read)


@pytest.mark.parametrize("name", ["missing", "missing.parquet", "*.parquet", "."])
def test_a_source_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="text: "):
        Corpus([str(tmp_path / name)])
    with pytest.raises(DataError, match="at least one source"):
        Corpus([])


def test_files_of_a_folder_keep_their_line_ends_and_hidden_ones_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name, content in {"b/1.txt": b"\xef\xbb\xbfa\r\nb\r", "a.md": b"", "c.txt": b"\xff\xfe", "d.png": b"x",
                          ".git/x.txt": b"x"}.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    corpus = Corpus([str(tmp_path)])
    assert [document.text for document in corpus.documents()] == ["", "\ufeffa\r\nb\r"]
    assert corpus.skipped == {"no text in its encoding": 1}


def test_a_changed_source_has_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    first = Corpus([str(tmp_path)]).fingerprint
    assert Corpus([str(tmp_path)]).fingerprint == first
    (tmp_path / "a.txt").write_text("ab")
    assert Corpus([str(tmp_path)]).fingerprint != first
    assert Corpus(["stdlib"]).fingerprint != Corpus(["stdlib-docs"]).fingerprint


def test_the_library_is_the_same_in_every_process_and_mixed() -> None:
    program = "from tsgdn2.datasets.text import PythonLibrary as P; print('\\n'.join(P().files))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    library = PythonLibrary()
    assert done.stdout.split() == list(library.files)
    assert len(library.files) > 300
    tests = [name.startswith("test/") for name in library.files]
    assert abs(sum(tests[: len(tests) // 2]) - sum(tests) / 2) < 0.1 * len(tests)


def test_sources_are_whole_modules_and_documentation_is_that_alone() -> None:
    whole, documented = PythonLibrary(), PythonLibrary(documentation=True)
    number = list(whole.files).index("textwrap.py")
    ((_, source),) = whole.rows(number, 0)
    assert source.encode() == (whole.root / "textwrap.py").read_bytes()
    ((_, found),) = documented.rows(number, 0)
    assert found.startswith("Text wrapping and filling.")
    assert "import re" not in found


def test_documentation_of_a_module_without_any_is_empty() -> None:
    assert documentation("x = '\\d'\n") == ""
    assert documentation('"""A."""\nclass B:\n    """B."""\n    async def c(self):\n        "C."\n') == "A.\n\nB.\n\nC."
    assert PythonLibrary(documentation=True).decode(b"def broken(") is None
    assert PythonLibrary().decode(b"# -*- coding: latin-1 -*-\n\xe9") == "# -*- coding: latin-1 -*-\né"
    assert PythonLibrary().decode(b"# -*- coding: uft-8 -*-\n") is None


def test_a_remote_file_is_one_source_without_asking_the_network() -> None:
    name = "hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT/000_00000.parquet"
    assert remote_files(name) == [name]
    assert ParquetText([name], "text").state() == [[name, -1, "text"]]


# Port 9 of this machine refuses: nothing listens there.
REFUSED = """
import sys, logging
from tsgdn2.datasets.errors import DataError
from tsgdn2.datasets.parquet_text import ParquetText, remote_files
logging.basicConfig(format="%(message)s")
name = sys.argv[1]
try:
    files = remote_files(name, pauses=(0.01, 0.02))
    list(ParquetText(files, "text", pauses=(0.01, 0.02)).rows(0, 0))
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["hf://datasets/a/b/*.parquet", "hf://datasets/a/b/c", "hf://datasets/a/b/c.parquet"])
def test_a_refused_connection_is_tried_again_and_named_in_the_end(name: str) -> None:
    pytest.importorskip("huggingface_hub")
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", REFUSED, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"text: {name} can not be read (")
    assert "refused" in done.stdout
    assert "mend it or the connection and run again" in done.stdout
    tries = [line for line in done.stderr.splitlines() if "trying again in" in line]
    assert [line.rsplit("in ", 1)[1] for line in tries] == ["0.01 s", "0.02 s"]


class Failing(io.BytesIO):
    """A file whose connection breaks after so many bytes."""

    left = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.left -= len(content)
        if self.left < 0:
            http.client.HTTPConnection("127.0.0.1", 9, timeout=5).connect()  # refused
        return content


@pytest.mark.parametrize("start", [0, 7, 49])
def test_after_a_fault_of_the_network_it_reads_on_from_the_next_document(tmp_path: Path, start: int) -> None:
    file = parquet(tmp_path / "set") / "000.parquet"
    content = file.read_bytes()
    opened: list[int] = []

    def open_remote(name: str) -> IO[bytes]:
        opened.append(len(opened))
        stream = Failing(content)
        # The footer is read first; each connection goes a little further than the one before.
        stream.left = len(content) * len(opened) // 2 if len(opened) < 9 else 10**9
        return stream

    source = ParquetText(["hf://a/b.parquet"], "text", opened=open_remote, pauses=(0.0,) * 9)
    expected = ParquetText([str(file)], "text")
    assert list(source.rows(0, start)) == list(expected.rows(0, start))
    assert source.skipped == expected.skipped
    assert len(opened) > 1


def test_what_no_pause_mends_is_said_at_once() -> None:
    def missing(name: str) -> IO[bytes]:
        raise FileNotFoundError(f"no {name}")

    with pytest.raises(DataError, match=r"no hf://a/b\.parquet"):
        list(ParquetText(["hf://a/b.parquet"], "text", opened=missing, pauses=(600.0,)).rows(0, 0))


def test_a_folder_or_a_broken_link_with_the_name_of_a_text_is_none(tmp_path: Path) -> None:
    (tmp_path / "site.html").mkdir()
    (tmp_path / "site.html" / "page.html").write_text("page")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    corpus = Corpus([str(tmp_path)])
    assert [document.text for document in corpus.documents()] == ["page"]
    assert corpus.fingerprint


def test_a_pattern_of_text_files_is_text_and_a_mixture_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / ".hidden.txt").write_text("x")
    corpus = Corpus([str(tmp_path / "*.txt")])
    assert [document.text for document in corpus.documents((0, 0, 0))] == ["a", "b"]
    assert corpus.fingerprint
    parquet(tmp_path)
    assert [len(Corpus([str(tmp_path / f"*.{kind}")]).sources[0].files) for kind in ("txt", "parquet")] == [2, 2]
    for place in (tmp_path, tmp_path / "*"):
        with pytest.raises(DataError, match=r"holds Parquet and files of text; .*\*\.parquet or .*\*\.txt"):
            Corpus([str(place)])


def test_a_name_with_brackets_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "data[1]", rows=3)
    (folder / "000.parquet").rename(folder / "a[1].parquet")
    expected = [f"0 {row} {ODD[row]}" for row in range(3)]
    for name in (folder / "a[1].parquet", folder):
        texts = [document.text for document in Corpus([str(name)]).documents()]
        assert texts[-3:] == expected if name == folder else texts == expected
    (tmp_path / "b[1].txt").write_text("b")
    assert [document.text for document in Corpus([str(tmp_path / "b[1].txt")]).documents()] == ["b"]


def test_a_column_of_categories_is_text(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": ["a", "b", None, "a"]}).with_columns(pl.col("text").cast(pl.Categorical))
    frame.write_parquet(tmp_path / "a.parquet")
    assert [document.text for document in Corpus([str(tmp_path / "a.parquet")]).documents()] == ["a", "b", "a"]


def test_a_single_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "one.unknown"
    path.write_text("text")
    source = FolderText(path)
    assert list(source.rows(0, 0)) == [(0, "text")]
    assert source.state() == [["", 4]]
