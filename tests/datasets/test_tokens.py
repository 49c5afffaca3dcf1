"""Shards of tokens: every boundary, every damage, and what is left of a writer that stopped."""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.datasets.errors import ChecksumError, DataError
from tsgdn2.datasets.token_writer import TokenWriter
from tsgdn2.datasets.tokens import MANIFEST, VERIFIED, Manifest, TokenShards

END = 9
DOCUMENTS = st.lists(st.lists(st.integers(0, 8), max_size=12), max_size=12)


def writer(folder: Path, shard_tokens: int, **other: int) -> TokenWriter:
    return TokenWriter(
        folder, vocabulary=other.get("vocabulary", 10), end_of_document=END, tokenizer_digest="d",
        shard_tokens=shard_tokens,
    )  # fmt: skip


def fill(out: TokenWriter, documents: list[list[int]], start: int = 0) -> None:
    for number in range(start, len(documents)):
        out.append(documents[number], text_bytes=3 * len(documents[number]), cursor=(0, number))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def small(folder: Path) -> TokenShards:
    """Documents of 3, 1 and 12 tokens in shards of 5: the last one lies in three shards."""
    out = writer(folder, 5)
    fill(out, [[1, 2], [], [0, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3]])
    out.close()
    return TokenShards(folder)


@settings(deadline=None, max_examples=25)
@given(documents=DOCUMENTS, shard_tokens=st.integers(1, 40))
def test_documents_come_back_whatever_the_borders_of_shards(documents: list[list[int]], shard_tokens: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        out = writer(Path(name), shard_tokens)
        fill(out, documents)
        out.close()
        shards = TokenShards(Path(name), verify="all")
        stream = [token for document in documents for token in [*document, END]]
        assert [document.tokens.tolist() for document in shards.walk()] == [[*one, END] for one in documents]
        assert [document.text_bytes for document in shards.walk()] == [3 * len(one) for one in documents]
        assert shards.read(0, shards.tokens).tolist() == stream
        ends = list(accumulate(len(document) + 1 for document in documents))
        assert shards.ends(0, shards.tokens).tolist() == ends
        for start in range(0, len(stream), 3):
            for stop in range(start, len(stream) + 1, 4):
                assert shards.read(start, stop).tolist() == stream[start:stop]
                assert shards.ends(start, stop).tolist() == [end for end in ends if start < end <= stop]
        assert (shards.documents, shards.text_bytes) == (len(documents), 3 * sum(map(len, documents)))


@settings(deadline=None, max_examples=30)
@given(documents=DOCUMENTS, shard_tokens=st.integers(1, 20), stops=st.lists(st.integers(0, 12), max_size=3))
def test_a_writer_that_stopped_goes_on_to_the_same_files(
    documents: list[list[int]], shard_tokens: int, stops: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        whole = writer(Path(one), shard_tokens)
        fill(whole, documents)
        whole.close()
        for stop in stops:
            broken = writer(Path(other), shard_tokens)
            fill(broken, documents[:stop], 0 if broken.resume is None else broken.resume[1])
            broken.abandon()
        last = writer(Path(other), shard_tokens)
        fill(last, documents, 0 if last.resume is None else last.resume[1])
        last.close()
        assert digests(Path(other)) == digests(Path(one))


def test_a_last_short_shard_whose_manifest_was_not_written_is_made_again(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [4], [5, 6]]
    for folder in (tmp_path / "whole", tmp_path / "broken"):
        out = writer(folder, 4)
        fill(out, documents)
        if folder.name == "broken":
            (folder / MANIFEST).mkdir()  # what stands where the manifest goes: its rename fails
            with pytest.raises(DataError, match="run the same command again"):
                out.close()
            (folder / MANIFEST).rmdir()
            out = writer(folder, 4)
            assert out.resume is not None
            fill(out, documents, out.resume[1])
        out.close()
    assert digests(tmp_path / "broken") == digests(tmp_path / "whole")


def test_a_complete_folder_takes_nothing_more(tmp_path: Path) -> None:
    small(tmp_path)
    before = digests(tmp_path)
    out = writer(tmp_path, 5)
    assert out.complete
    assert not out.wants((7, 0))
    out.append([1], text_bytes=1, cursor=(7, 0))
    assert digests(tmp_path) == before


def test_another_tokenizer_or_shard_size_is_refused(tmp_path: Path) -> None:
    begun = writer(tmp_path, 4)
    fill(begun, [[1, 2, 3, 4, 5]])
    begun.abandon()
    with pytest.raises(DataError, match="another tokenizer or shard size"):
        writer(tmp_path, 5)
    small(tmp_path / "complete")
    with pytest.raises(DataError, match="another tokenizer or shard size"):
        writer(tmp_path / "complete", 5, vocabulary=11)


@pytest.mark.parametrize(("vocabulary", "width"), [(2**16, 2), (2**16 + 1, 4)])
def test_ids_are_as_wide_as_the_vocabulary_needs(tmp_path: Path, vocabulary: int, width: int) -> None:
    out = writer(tmp_path, 100, vocabulary=vocabulary)
    out.append([vocabulary - 1], text_bytes=1, cursor=(0,))
    out.close()
    assert TokenShards(tmp_path).read(0, 1).tolist() == [vocabulary - 1]
    raw = (tmp_path / "shard-000000.tokens").read_bytes()
    assert raw == (vocabulary - 1).to_bytes(width, "little") + END.to_bytes(width, "little")


@pytest.mark.parametrize("tokens", [[10], [-1], [[1]]])
def test_ids_out_of_range_are_refused(tmp_path: Path, tokens: list[int]) -> None:
    with pytest.raises(DataError, match="ids below 10"):
        writer(tmp_path, 4).append(tokens, text_bytes=1, cursor=(0,))


def test_documents_out_of_order_are_refused(tmp_path: Path) -> None:
    out = writer(tmp_path, 4)
    out.append([1], text_bytes=1, cursor=(0, 3))
    with pytest.raises(DataError, match="append documents in order"):
        out.append([1], text_bytes=1, cursor=(0, 3))
    out.abandon()


@pytest.mark.parametrize(
    "given", [{"vocabulary": 9}, {"vocabulary": 2**32 + 1}], ids=["end beyond vocabulary", "ids beyond uint32"]
)
def test_bounds_of_the_writer_are_checked(tmp_path: Path, given: dict[str, int]) -> None:
    with pytest.raises(DataError, match="vocabulary"):
        writer(tmp_path, 4, **given)


def test_a_shard_that_was_cut_short_is_noticed_on_opening(tmp_path: Path) -> None:
    small(tmp_path)
    path = tmp_path / "shard-000001.tokens"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ChecksumError, match="cut short"):
        TokenShards(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="can not be read"):
        TokenShards(tmp_path)


def test_a_shard_that_is_gone_after_opening_is_named(tmp_path: Path) -> None:
    small(tmp_path)
    shards = TokenShards(tmp_path, verify="use")
    (tmp_path / "shard-000001.tokens").unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tokens: can not be read"):
        shards.read(0, 10)


@pytest.mark.parametrize("kind", ["000002.tokens", "000003.documents"])
def test_an_altered_shard_is_noticed_where_the_digests_are_asked_for(tmp_path: Path, kind: str) -> None:
    small(tmp_path)
    path = tmp_path / f"shard-{kind}"
    raw = bytearray(path.read_bytes())
    raw[0] ^= 1
    path.write_bytes(raw)
    TokenShards(tmp_path)  # the size is right
    with pytest.raises(ChecksumError, match=path.name):
        TokenShards(tmp_path, verify="all")
    used = TokenShards(tmp_path, verify="use")
    assert used.read(0, 10).tolist() == [1, 2, 9, 9, 0, 1, 2, 3, 4, 5]
    with pytest.raises(ChecksumError, match=path.name):
        used.document(2)


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    small(tmp_path)
    TokenShards(tmp_path, verify="all")
    known = json.loads((tmp_path / VERIFIED).read_text())
    assert len(known) == 8
    (tmp_path / "shard-000000.tokens").write_bytes(b"\1\0" * 5)
    with pytest.raises(ChecksumError, match=r"shard-000000\.tokens"):
        TokenShards(tmp_path, verify="all")
    (tmp_path / VERIFIED).write_text("half of")
    with pytest.raises(ChecksumError):
        TokenShards(tmp_path, verify="all")


def test_an_altered_manifest_is_noticed(tmp_path: Path) -> None:
    small(tmp_path)
    path = tmp_path / MANIFEST
    text = path.read_text()
    path.write_text(text.replace('"vocabulary": 10', '"vocabulary": 11'))
    with pytest.raises(ChecksumError, match="its own line says"):
        TokenShards(tmp_path)
    path.write_text(text[:50])
    with pytest.raises(DataError, match="is no manifest"):
        TokenShards(tmp_path)
    path.write_text(text.replace('"schema": 1', '"schema": 2'))
    with pytest.raises(DataError, match="schema 2"):
        TokenShards(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="let `prepare` finish"):
        TokenShards(tmp_path)
    assert Manifest.from_json(text, "here").to_json() == text


def test_places_outside_the_stream_are_refused(tmp_path: Path) -> None:
    shards = small(tmp_path)
    assert (shards.tokens, shards.documents) == (16, 3)
    for start, stop in ((-1, 2), (3, 17), (5, 4)):
        with pytest.raises(DataError, match="start, stop"):
            shards.read(start, stop)
    with pytest.raises(DataError, match=r"0 \.\. 2"):
        shards.document(3)


def test_a_reader_travels_to_another_process(tmp_path: Path) -> None:
    shards = small(tmp_path)
    shards.read(0, 16)
    assert np.array_equal(pickle.loads(pickle.dumps(shards)).read(0, 16), shards.read(0, 16))


def test_more_shards_than_a_process_may_open_are_read(tmp_path: Path) -> None:
    out = writer(tmp_path, 1)
    fill(out, [[1]] * 150)
    out.close()
    shards = TokenShards(tmp_path)
    assert shards.read(0, 300).tolist() == [1, END] * 150
    assert shards.document(149).tokens.tolist() == [1, END]
