"""Text to tokens and back, to the character, for both tokenizers; the files that others read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from transformers import AutoTokenizer

from tsgdn2.errors import ConfigError, SchemaError
from tsgdn2.pipelines.pretrain.tokenizer import END, ByteTokenizer, PairTokenizer, Tokenizer, load_tokenizer

TEXTS = ["the cat sat on the mat, the cat sat", "def f(x):\n    return x  # größer\n", "the the the"] * 3
BYTES = ByteTokenizer()
PAIRS = PairTokenizer.train(TEXTS, 290)
BOTH = pytest.mark.parametrize("tokenizer", [BYTES, PAIRS], ids=["bytes", "pairs"])


@BOTH
@given(text=st.text() | st.text(alphabet="the cat\n \t<|endoftx>"))
def test_every_text_comes_back_to_the_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_of_document not in ids
    assert ((ids >= 0) & (ids < tokenizer.vocabulary)).all()


@BOTH
def test_a_text_that_spells_the_end_does_not_end(tokenizer: Tokenizer) -> None:
    text = f"a{END}b"
    ids = tokenizer.encode(text)
    assert tokenizer.end_of_document not in ids
    assert tokenizer.decode([*ids, tokenizer.end_of_document]) == text
    assert tokenizer.exact


@BOTH
def test_many_texts_equal_one_at_a_time(tokenizer: Tokenizer) -> None:
    texts = ["", "a", "the cat \U0001f469\u200d\U0001f680", "\r\n"]
    assert [ids.tolist() for ids in tokenizer.encode_many(texts)] == [tokenizer.encode(text).tolist() for text in texts]


@BOTH
def test_half_a_character_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(SchemaError, match="half of one at 1"):
        tokenizer.encode("a\ud800")


@BOTH
def test_a_saved_tokenizer_loads_as_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert type(loaded) is type(tokenizer)
        assert (loaded.digest, loaded.vocabulary) == (tokenizer.digest, tokenizer.vocabulary)
        assert loaded.encode("the größte").tolist() == tokenizer.encode("the größte").tolist()


@given(text=st.text())
def test_the_file_of_bytes_means_the_same_to_the_package(text: str) -> None:
    engine = FILE_OF_BYTES
    assert engine.encode(text).ids == BYTES.encode(text).tolist()
    assert engine.decode(engine.encode(text).ids, skip_special_tokens=False) == text


def _file_of_bytes() -> Engine:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as name:
        BYTES.save(Path(name))
        engine = Engine.from_file(str(Path(name, "tokenizer.json")))
    engine.encode_special_tokens = True
    assert engine.token_to_id(END) == BYTES.end_of_document
    return engine


FILE_OF_BYTES = _file_of_bytes()


def test_bytes_that_are_no_text_are_marked() -> None:
    assert BYTES.decode([0x61, 0xFF, 256, 0x62]) == "a\ufffdb"
    with pytest.raises(SchemaError, match="must be within 0"):
        BYTES.decode([257])


def test_training_is_the_same_in_another_process(tmp_path: Path) -> None:
    program = (
        "import sys, json; from tsgdn2.pipelines.pretrain.tokenizer import PairTokenizer\n"
        "print(PairTokenizer.train(json.loads(sys.argv[1]), 290).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(TEXTS)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == PAIRS.digest


def test_pairs_are_learnt_up_to_the_size_asked_for() -> None:
    assert 257 < PAIRS.vocabulary <= 290
    assert len(PAIRS.encode("the cat")) < len(BYTES.encode("the cat"))
    assert PairTokenizer.train(TEXTS, 257).vocabulary == 257
    with pytest.raises(ConfigError, match="at least 257"):
        PairTokenizer.train(TEXTS, 256)


def test_a_tokenizer_that_changes_text_says_so(tmp_path: Path) -> None:
    PAIRS.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    changed = content | {"normalizer": {"type": "Lowercase"}}
    assert not PairTokenizer(json.dumps(changed)).exact


def test_the_end_of_a_document_is_looked_for_and_can_be_named(tmp_path: Path) -> None:
    PAIRS.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    other = {**content["added_tokens"][0], "id": PAIRS.vocabulary, "content": "<stop>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"added_tokens": [*content["added_tokens"], other]}))
    assert load_tokenizer(tmp_path, "<stop>").end_of_document == PAIRS.vocabulary
    with pytest.raises(ConfigError, match="has none of <none>"):
        load_tokenizer(tmp_path, "<none>")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "zebra"}}')
    with pytest.raises(ConfigError, match="has none of zebra"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("end", ["the", END])
def test_an_end_that_a_text_can_spell_is_refused(end: str, tmp_path: Path) -> None:
    PAIRS.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"][0]["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="end: must be a special token, which no text can hold"):
        load_tokenizer(tmp_path, end)


@BOTH
def test_what_is_saved_says_how_to_pad(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    made = theirs(["ab", "a"], padding=True)
    assert made["attention_mask"] == [[1, 1], [0, 1]]
    assert made["input_ids"][1] == [tokenizer.end_of_document, *tokenizer.encode("a")]


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can not be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is no tokenizer\.json"):
        load_tokenizer(tmp_path)
