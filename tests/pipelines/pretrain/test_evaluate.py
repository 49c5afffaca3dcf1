"""The job `pretrain evaluate` on a tiny model: every part has its rows, and what has its rows is not done again."""

from __future__ import annotations

import dataclasses
import resource
import shutil
from pathlib import Path

import pytest
import torch

from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.evaluation.language.ngrams import Trigram
from tsgdn2.evaluation.language.perplexity import score
from tsgdn2.evaluation.rows import read, row
from tsgdn2.language import archive
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.pretrain import evaluate, prepare
from tsgdn2.pipelines.pretrain.evaluate import Subject
from tsgdn2.pipelines.pretrain.jobs import Evaluate, Prepare
from tsgdn2.pipelines.pretrain.ledger import Ledger
from tsgdn2.pipelines.pretrain.tokenizer import ByteTokenizer

WORDS = [
    f"{a}{b}{c}"
    for a in ("bar", "cot", "dun", "fel")
    for b in ("ka", "lo", "mi", "ne")
    for c in ("st", "rt", "lm", "x")
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Shards of sixty small documents."""
    text = tmp_path / "text"
    text.mkdir()
    for n in range(60):
        sentences = [f"The {WORDS[(n * k) % 64]} of the {WORDS[(n + k) % 64]} was {n * k}." for k in range(1, 12)]
        (text / f"{n:02}.txt").write_text(" ".join(sentences))
    prepare.run(Prepare(text=(str(text),), output=tmp_path / "data", validation_every=5, quiet=True))
    return tmp_path / "data"


@pytest.fixture
def job(tmp_path: Path, data: Path, empty_store: Path) -> Evaluate:
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    torch.manual_seed(0)
    model = LanguageModel(LanguageConfig(vocabulary=257, width=24, layers=2, heads=2, key_dim=8, value_dim=8, mlp=32))
    archive.save(model, tmp_path / "model.safetensors", tokenizer_digest=ByteTokenizer().digest)
    return Evaluate(
        checkpoint=tmp_path / "model.safetensors", data=data, output=tmp_path / "out", runs=tmp_path / "runs",
        length=16, streams=2, window=700,
        needles=("s-niah-1", "mk-niah-1"), needle_lengths=(100, 900), needle_samples=2,
        audit_tokens=40, device="cpu", quiet=True,
    )  # fmt: skip


def test_every_part_has_its_rows_and_a_second_run_does_nothing_again(
    job: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.run(job)
    path = tmp_path / "out/evaluate.jsonl"
    rows = read(path)
    subject = Subject.of(job)
    (whole,) = [one for one in rows if one.what == "perplexity"]
    assert whole.values["bits_per_byte"] == score(subject.model, subject.held_out.walk(), window=700).bits_per_byte
    assert whole.values["text_bytes"] == subject.held_out.text_bytes
    (trigram,) = [one for one in rows if one.what == "trigram"]
    baseline = Trigram.fit(subject.texts(subject.train)).score(subject.texts(subject.held_out))
    assert trigram.values["bits_per_byte"] == pytest.approx(baseline.bits_per_byte)
    assert trigram.values["text_bytes"] == subject.held_out.text_bytes
    assert [one.shape["last"] for one in rows if one.what == "extrapolation"] == [4, 8, 16, 32, 64, 128, 256]
    needles = [one for one in rows if one.what == "needle"]
    assert [(one.shape["task"], one.shape["length"]) for one in needles] == [("s-niah-1", 900), ("mk-niah-1", 900)]
    assert "s-niah-1 of 100 tokens: left out" in capsys.readouterr().out
    heads = [one for one in rows if one.what == "eviction" and one.shape["group"] == "all"]
    assert [(one.shape["layer"], one.shape["head"]) for one in heads] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(one.values["residual"] < 1e-5 for one in heads)  # type: ignore[operator]
    text = (tmp_path / "out/report.md").read_text()
    for heading in ("Held-out documents", "Past the length of training", "Needles", "What the states evicted"):
        assert f"## {heading}" in text
    assert "**not below** the trigram model" in text
    assert "what lies before a document" in text
    before = path.read_bytes()
    path.write_bytes(before + b'{"what": "need')  # as if it had died in the middle of a line
    evaluate.run(job)
    assert path.read_bytes() == before


def test_another_model_or_option_has_rows_of_its_own(job: Evaluate, tmp_path: Path) -> None:
    small = dataclasses.replace(job, needles=(), streams=0, audit_tokens=0, trigram_bytes=0)
    evaluate.run(small)
    evaluate.run(dataclasses.replace(small, documents=2))
    torch.manual_seed(5)
    archive.save(LanguageModel(archive.load(job.checkpoint).config), job.checkpoint)
    evaluate.run(small)
    rows = read(tmp_path / "out/evaluate.jsonl")
    assert len(rows) == 3
    assert len({one.shape["weights"] for one in rows}) == 2


def test_what_does_not_fit_is_said_before_anything_is_read(job: Evaluate, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needles: must be among s-niah-1, .*, got \['x'\]"):
        evaluate.run(dataclasses.replace(job, needles=("x",)))
    archive.save(archive.load(job.checkpoint), tmp_path / "other.safetensors", tokenizer_digest="of another")
    with pytest.raises(CheckpointError, match="was trained with tokenizer of another"):
        evaluate.run(dataclasses.replace(job, checkpoint=tmp_path / "other.safetensors"))
    with pytest.raises(ConfigError, match="length: nothing beside the checkpoint says"):
        evaluate.run(dataclasses.replace(job, length=None))
    assert not (tmp_path / "out").exists()
    evaluate.run(dataclasses.replace(job, length=None, streams=0, needles=(), trigram_bytes=0, audit_tokens=0))
    assert len(read(tmp_path / "out/evaluate.jsonl")) == 1


def test_rows_of_a_part_are_there_together_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first = Ledger(path).part("one", {"a": 1}, lambda: [row("one", {"a": 1})])
    rows = [row("many", {"a": 1, "n": n}) for n in range(20)]
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size * 8, kept[1]))  # the disk is full after some rows
    try:
        with pytest.raises(ConfigError, match="make room and run the same command again"):
            Ledger(path).part("many", {"a": 1}, lambda: rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert read(path) == first
    assert [one.name for one in tmp_path.iterdir()] == ["rows.jsonl"]
    assert Ledger(path).part("many", {"a": 1}, lambda: rows) == rows
    assert read(path) == first + rows
    assert Ledger(path).part("many", {"a": 1}, lambda: pytest.fail("it has its rows")) == rows


def test_a_damaged_shard_ends_the_job_with_its_name(job: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    path = job.data / "validation" / "shard-000000.tokens"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    given = ["--checkpoint", str(job.checkpoint), "--data", str(job.data), "--output", str(job.output),
             "--length", "16", "--runs", str(job.runs), "--device", "cpu", "--quiet"]  # fmt: skip
    assert main(["pretrain", "evaluate", *given]) == 2
    assert "validation/shard-000000.tokens: has sha256" in capsys.readouterr().err


def test_what_the_data_does_not_allow_is_left_out_and_the_page_is_made(
    job: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "few"
    text.mkdir()
    for n in range(7):
        (text / f"{n}.txt").write_text(f"{n} \u8a9e\u3002" * 40)
    prepare.run(Prepare(text=str(text), output=tmp_path / "few data", validation_every=2, quiet=True))
    small = dataclasses.replace(job, data=tmp_path / "few data", needle_lengths=(900,), audit_tokens=0)
    evaluate.run(small)
    said = capsys.readouterr().out
    assert "s-niah-1 of 900 tokens: left out, text: must hold at least 50 different words" in said
    kinds = {one.what for one in read(tmp_path / "out/evaluate.jsonl")}
    assert kinds == {"perplexity", "trigram", "extrapolation"}  # the trigram holds out bytes where documents are few
    evaluate.run(dataclasses.replace(small, trigram_bytes=1, needles=(), output=tmp_path / "again"))
    assert "## Held-out documents" in (tmp_path / "out/report.md").read_text()


def test_where_the_tokenizer_loses_text_no_bits_per_byte_are_stated(
    job: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = job.data / "prepare.json"
    settings.write_text(settings.read_text().replace('"text_lost": false', '"text_lost": true'))
    evaluate.run(dataclasses.replace(job, needles=(), streams=0, audit_tokens=0))
    (only,) = read(tmp_path / "out/evaluate.jsonl")
    assert (only.what, only.values["bits_per_byte"]) == ("perplexity", None)
    assert "bits per byte, trigram: left out, the tokenizer loses text" in capsys.readouterr().out


def test_text_is_not_read_for_needles_that_are_known(job: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(job, needles="s-niah-1", needle_lengths=900, streams=0, audit_tokens=0, trigram_bytes=0)
    evaluate.run(small)
    monkeypatch.setattr(evaluate, "Haystack", lambda text: pytest.fail("the text is read"))
    evaluate.run(small)
