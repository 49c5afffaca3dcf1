"""Text to tokens and back, exactly: 256 bytes and an end of document, or byte-level pairs trained or loaded.

    decode(encode(text)) == text        for every text of whole characters, a special token's own spelling included

The byte tokenizer needs no package; pairs need `tokenizers` (the extra `language`). Both are saved as tokenizer.json
and tokenizer_config.json, which transformers reads too. A loaded tokenizer that changes text (it adds a space, or
normalises) is usable and says so in `exact`; bytes are counted before, so where it loses text (lower case, unknown
letters) bits per byte flatter the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tsgdn2.datasets.tokens import write_whole
from tsgdn2.errors import ConfigError, SchemaError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

Ids = NDArray[np.int64]

FILE: Final = "tokenizer.json"
SETTINGS: Final = "tokenizer_config.json"
END: Final = "<|endoftext|>"
_ENDS: Final = (END, "</s>", "<|end_of_text|>", "<eos>", "[EOS]")
_PROBE: Final = f" \t a  b\r\n\ne\u0301 \u00e9 \ufb01 \U0001f469\u200d\U0001f680 \x00 12345 Don't{END}</s> ."


class Tokenizer(Protocol):
    """What the path needs of a tokenizer."""

    @property
    def vocabulary(self) -> int:
        """Number of ids, the end of document among them."""

    @property
    def end_of_document(self) -> int:
        """Id behind every document; `encode` never gives it."""

    @property
    def exact(self) -> bool:
        """Text comes back as it was."""

    @property
    def digest(self) -> str:
        """sha256 that stands for all of it; two tokenizers with one digest give the same ids."""

    def encode(self, text: str) -> Ids:
        """Text -> ids [n], without the end of document; SchemaError for half a character (a lone surrogate)."""

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        """`encode` of each, on all cores where the package can."""

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text; ends of documents are left out, bytes that are no UTF-8 become U+FFFD."""

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into an existing folder."""


class ByteTokenizer:
    """Ids 0 .. 255 are the bytes of UTF-8, 256 ends a document."""

    vocabulary: Final = 257
    end_of_document: Final = 256
    exact: Final = True

    @property
    def digest(self) -> str:
        """sha256 of what `save` writes."""
        return _digest(_byte_file(), END)

    def encode(self, text: str) -> Ids:
        """Text -> bytes [n] as int64."""
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int64)

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        """`encode` of each."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Bytes -> text; ends of documents are left out."""
        values = np.fromiter(ids, np.int64)
        if len(values) and not 0 <= values.min() <= values.max() < self.vocabulary:
            raise SchemaError(f"ids: must be within 0 .. 256, got {values.min()} .. {values.max()}")
        return values[values < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Write the pairs' own file without any pair: `tokenizers` and transformers read it."""
        _save(folder, _byte_file(), END)


class PairTokenizer:
    """Byte-level pairs, or any other tokenizer.json, with one id that ends a document."""

    def __init__(self, content: str, end: str | None = None) -> None:
        """content: text of a tokenizer.json. end: the token that ends a document; None looks for a usual one."""
        self._engine = _engine(content)
        known = [name for name in ([end] if end else _ENDS) if self._engine.token_to_id(name) is not None]
        if not known:
            looked = end or ", ".join(_ENDS)
            raise ConfigError(f"end: the tokenizer has none of {looked}; name the token that ends a text with "
                              f"--end, or as eos_token in a {SETTINGS} beside it")  # fmt: skip
        self._content, self.end = content, known[0]
        self._engine.encode_special_tokens = True  # in a text such a token is its letters
        self._engine.no_truncation()
        self._engine.no_padding()
        self.vocabulary: int = max(self._engine.get_vocab(with_added_tokens=True).values()) + 1
        self.end_of_document: int = self._engine.get_vocab(with_added_tokens=True)[self.end]
        spelt = self.encode_many([self.end, f"a{self.end}b", f"a {self.end} b"])
        if any(self.end_of_document in ids for ids in spelt):
            raise ConfigError(f"end: must be a special token, which no text can hold, got {self.end!r}, which a text "
                              f"spells; name another one with --end, or as eos_token in a {SETTINGS}")  # fmt: skip

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> PairTokenizer:
        """Learn pairs until there are `vocabulary` ids, or no pair comes twice; at least 257 (all bytes, the end)."""
        if vocabulary < 257:
            raise ConfigError(f"vocabulary: must be at least 257, all bytes and the end, got {vocabulary}")
        _package()
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        engine = Tokenizer(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        engine.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocabulary, min_frequency=2, show_progress=False,
                                      special_tokens=[END], initial_alphabet=alphabet)  # fmt: skip
        engine.train_from_iterator(texts, trainer=trainer)
        return cls(engine.to_str(), END)

    @cached_property
    def exact(self) -> bool:
        """A text of spaces, accents, control characters and spelt-out tokens comes back as it was."""
        return self.decode(self.encode(_PROBE)) == _PROBE

    @property
    def digest(self) -> str:
        """sha256 of tokenizer.json and of the name of the end."""
        return _digest(self._content, self.end)

    def encode(self, text: str) -> Ids:
        """Text -> ids [n]."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        """Texts -> ids; the package uses all cores unless TOKENIZERS_PARALLELISM is false."""
        for text in texts:
            _utf8(text)
        found = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int64) for one in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text; ends of documents are left out."""
        kept = [int(one) for one in ids if int(one) != self.end_of_document]
        return str(self._engine.decode(kept, skip_special_tokens=False))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json as it was loaded or trained, and the name of the end beside it."""
        _save(folder, self._content, self.end)


def load_tokenizer(path: Path, end: str | None = None) -> Tokenizer:
    """Read a tokenizer.json, or a folder with one; ConfigError names what is missing.

    end: the token that ends a document; by default eos_token of the tokenizer_config.json beside it, then a usual name.
    """
    file = path / FILE if path.is_dir() else path
    try:
        content = file.read_text(encoding="utf-8")
        beside = file.with_name(SETTINGS)
        settings: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    except (OSError, ValueError) as error:
        reason = f"{file} can not be read ({error})"
        raise ConfigError(f"tokenizer: {reason}; name a tokenizer.json or its folder") from error
    if content == _byte_file():
        return ByteTokenizer()
    named = settings.get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    return PairTokenizer(content, end or named)


def _package() -> None:
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise ConfigError("tokenizer: pairs need the package tokenizers; install tsgdn2[language]") from error


def _engine(content: str) -> Engine:
    _package()
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # the package raises plain Exception for a text that it does not understand
        raise ConfigError(f"tokenizer: is no tokenizer.json that the package tokenizers reads ({error})") from error


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SchemaError(
            f"text: must be whole characters, got half of one at {error.start}; repair it with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from error


def _digest(content: str, end: str) -> str:
    return hashlib.sha256(f"{content}\0{end}".encode()).hexdigest()


def _save(folder: Path, content: str, end: str) -> None:
    # Padding is never read (hugging_face.py); on the left it may be any token, and the end is there.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": end,
                "padding_side": "left", "clean_up_tokenization_spaces": False}  # fmt: skip
    write_whole(folder / SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())
    write_whole(folder / FILE, content.encode())


def _byte_file() -> str:
    """The tokenizer.json of bytes: byte-level pairs without a pair, where byte b has id b.

    Byte-level files write a byte that is a printable Latin letter as that letter, and the others, in order, as the
    letters from U+0100 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte if byte in printable else 256 + others.index(byte)): byte for byte in range(256)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    added = {"id": 256, "content": END, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}  # fmt: skip
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": letters, "merges": []}  # fmt: skip
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [added], "normalizer": None,
             "pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model}  # fmt: skip
    return json.dumps(whole, indent=1) + "\n"
