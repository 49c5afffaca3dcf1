"""The loader of windows against a list of tokens: whole, disjoint, in one order for any number of ranks."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgdn2.datasets.token_writer import TokenWriter
from tsgdn2.datasets.tokens import TokenShards
from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.pretrain.loader import TokenBatch, TokenLoader, permute, round_keys

END = 200
DOCUMENTS = st.lists(st.lists(st.integers(0, 199), max_size=15), min_size=1, max_size=10)


def packed(folder: Path, documents: list[list[int]], shard_tokens: int = 7) -> TokenShards:
    out = TokenWriter(folder, vocabulary=201, end_of_document=END, tokenizer_digest="d", shard_tokens=shard_tokens)
    for number, document in enumerate(documents):
        out.append(document, text_bytes=len(document), cursor=(number,))
    out.close()
    return TokenShards(folder)


def numbered(folder: Path, tokens: int) -> TokenShards:
    """One document of distinct tokens (up to its end)."""
    return packed(folder, [[token % 200 for token in range(tokens - 1)]], 50)


def expected(
    documents: list[list[int]], length: int, window: int
) -> tuple[list[int], list[int], list[bool], list[int]]:
    """Tokens, targets, counted and lengths of one window, token by token."""
    stream = [(number, token) for number, document in enumerate(documents) for token in [*document, END]]
    tokens, targets, counted, lengths = [], [], [], []
    owner = None
    for place in range(window * length, min((window + 1) * length, len(stream))):
        number, token = stream[place]
        same = place + 1 < len(stream) and stream[place + 1][0] == number
        tokens.append(token)
        targets.append(stream[place + 1][1] if same else 0)
        counted.append(same)
        if number != owner:
            lengths.append(0)
        owner = number
        lengths[-1] += 1
    return tokens, targets, counted, lengths


@settings(deadline=None, max_examples=30)
@given(documents=DOCUMENTS, shard_tokens=st.integers(1, 30), length=st.integers(1, 30))
def test_a_window_equals_the_one_made_token_by_token(
    documents: list[list[int]], shard_tokens: int, length: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        loader = TokenLoader(packed(Path(name), documents, shard_tokens), length=length, windows=1)
        for window in range(loader.epoch_windows):
            batch = loader.batch([window])
            assert [part.tolist() for part in batch[:3]] + [batch.lengths] == list(expected(documents, length, window))
        both = loader.batch([0, loader.epoch_windows - 1])
        assert sum(both.lengths) == len(both.tokens) == len(both.targets) == len(both.counted)


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 300), length=st.integers(1, 40), ranks=st.integers(1, 8), windows=st.integers(1, 5),
    seed=st.integers(0, 2**40), epochs=st.integers(1, 3),
)  # fmt: skip
def test_ranks_share_every_epoch_whole_and_disjoint(
    tokens: int, length: int, ranks: int, windows: int, seed: int, epochs: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        shards = numbered(Path(name), tokens)
        options: dict[str, Any] = {"length": length, "seed": seed, "epochs": epochs}
        shares = [
            list(TokenLoader(shards, windows=windows, rank=rank, ranks=ranks, **options)) for rank in range(ranks)
        ]
        alone = list(TokenLoader(shards, windows=windows * ranks, **options))
        assert {len(share) for share in shares} == {len(alone)}
        order = [window for batch in alone for window in batch.windows]
        count = -(-tokens // length)
        for epoch in range(epochs):
            assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))
        for step, batch in enumerate(alone):
            dealt = [share[step].windows for share in shares]
            assert [dealt[place % ranks][place // ranks] for place in range(len(batch.windows))] == batch.windows
            assert sum(map(len, dealt)) == len(batch.windows)
            counted = sum(int(share[step].counted.sum()) for share in shares)
            assert counted == int(batch.counted.sum())


def same(one: TokenBatch, other: TokenBatch) -> bool:
    tensors = all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    return tensors and one[3:] == other[3:]


@settings(deadline=None, max_examples=25)
@given(read=st.integers(0, 30), ranks=st.integers(1, 4), windows=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_restored_state_goes_on_as_if_never_stopped(read: int, ranks: int, windows: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        shards = numbered(Path(name), 137)
        options: dict[str, Any] = {"length": 10, "windows": windows, "seed": seed, "ranks": ranks, "rank": ranks - 1}
        first = TokenLoader(shards, **options)
        list(islice(first, read))
        state = first.state_dict()
        place = dict(zip(("epoch", "position"), divmod(read * windows * ranks, 14), strict=True))
        assert state == place | {"identity": first.identity}
        second = TokenLoader(shards, **options)
        second.load_state_dict(state)
        assert all(same(one, other) for one, other in zip(islice(first, 5), islice(second, 5), strict=True))


def test_a_state_is_taken_over_by_another_number_of_ranks(tmp_path: Path) -> None:
    shards = numbered(tmp_path, 400)
    whole = TokenLoader(shards, length=10, windows=4, seed=3)
    later = [batch.windows for batch in islice(whole, 6)][3:]
    two = [TokenLoader(shards, length=10, windows=2, seed=3, rank=rank, ranks=2) for rank in range(2)]
    for loader in two:
        loader.load_state_dict({"epoch": 0, "position": 12})
    dealt = zip(*(islice(loader, 3) for loader in two), strict=True)
    assert [[a.windows[0], b.windows[0], a.windows[1], b.windows[1]] for a, b in dealt] == later


def test_a_jump_to_the_end_of_a_billion_windows_reads_no_others() -> None:
    keys = round_keys(1, 2)
    size = 10**15 + 7
    places = np.array([0, 1, 10**9, size - 1])
    found = permute(places, size, keys)
    assert len(set(found.tolist())) == 4
    assert ((found >= 0) & (found < size)).all()
    assert permute(places[2:3], size, keys)[0] == found[2]


@settings(deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64), epoch=st.integers(0, 1000))
def test_the_order_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    found = permute(np.arange(size), size, round_keys(seed, epoch))
    assert sorted(found.tolist()) == list(range(size))


def test_the_order_looks_drawn_and_differs_between_seeds_and_epochs() -> None:
    size = 1000
    orders = [permute(np.arange(size), size, round_keys(*key)) for key in ((0, 0), (0, 1), (1, 0))]
    for number, order in enumerate(orders):
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.1  # 3 standard deviations of a drawn one
        assert np.mean(np.abs(np.diff(order))) > 250  # 333 for a drawn one, 1 for none
        assert all((order == other).sum() < 10 for other in orders[:number])  # 1 expected


def test_small_orders_are_all_drawn_about_equally_often() -> None:
    drawn = [tuple(permute(np.arange(3), 3, round_keys(seed, 0)).tolist()) for seed in range(1200)]
    counts = [drawn.count(order) for order in sorted(set(drawn))]
    assert len(counts) == 6
    assert min(counts) > 100  # 200 expected


def test_the_last_batch_and_window_may_be_smaller_and_then_it_ends(tmp_path: Path) -> None:
    loader = TokenLoader(numbered(tmp_path, 95), length=10, windows=3, epochs=1)
    batches = list(loader)
    assert [len(batch.windows) for batch in batches] == [3, 3, 3, 1]
    assert sum(len(batch.tokens) for batch in batches) == 95
    assert len(loader) == 4
    assert list(loader) == []


def test_a_state_of_another_corpus_length_or_seed_is_refused_and_an_old_one_believed(tmp_path: Path) -> None:
    shards, other = numbered(tmp_path / "a", 200), packed(tmp_path / "b", [[7] * 199], 50)
    loader = TokenLoader(shards, length=10, windows=2, seed=1)
    state = loader.state_dict()
    TokenLoader(shards, length=10, windows=1, seed=1, rank=1, ranks=2).load_state_dict(state)
    for foreign in (TokenLoader(shards, length=10, windows=2, seed=2), TokenLoader(shards, length=8, windows=2, seed=1),
                    TokenLoader(other, length=10, windows=2, seed=1)):  # fmt: skip
        with pytest.raises(ConfigError, match="state: it belongs to another corpus, length of window or seed"):
            foreign.load_state_dict(state)
    loader.load_state_dict({"epoch": 2, "position": 5})
    assert loader.state_dict() == {"epoch": 2, "position": 5, "identity": loader.identity}


def test_a_rank_without_windows_gets_one_that_counts_nothing(tmp_path: Path) -> None:
    loader = TokenLoader(numbered(tmp_path, 30), length=10, windows=1, rank=3, ranks=4, epochs=1)
    (batch,) = loader
    assert batch.windows == []
    assert len(batch.tokens) > 0
    assert not batch.counted.any()


@pytest.mark.parametrize(
    ("options", "named"),
    [({"length": 0}, "length"), ({"windows": 0}, "windows"), ({"ranks": 0}, "ranks"), ({"rank": 2}, "rank")],
)
def test_settings_out_of_their_bounds_are_named(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}"):
        TokenLoader(numbered(tmp_path, 30), **({"length": 10, "windows": 1} | options))


def test_an_empty_stream_and_a_foreign_state_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no token"):
        TokenLoader(packed(tmp_path / "empty", []), length=10, windows=1)
    loader = TokenLoader(numbered(tmp_path / "full", 30), length=10, windows=1)
    with pytest.raises(ConfigError, match="another corpus"):
        loader.load_state_dict({"epoch": 0, "position": 3})
    with pytest.raises(TypeError, match="endless"):
        len(loader)
