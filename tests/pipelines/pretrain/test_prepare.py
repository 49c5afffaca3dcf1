"""The job `prepare`: from text to shards and back, and what is left when it is killed or the disk is full."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tsgdn2.datasets.text import Corpus
from tsgdn2.datasets.tokens import TokenShards
from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.cli import main
from tsgdn2.pipelines.pretrain.jobs import Prepare
from tsgdn2.pipelines.pretrain.loader import TokenLoader
from tsgdn2.pipelines.pretrain.prepare import Pace, run
from tsgdn2.pipelines.pretrain.prepared import loses_text
from tsgdn2.pipelines.pretrain.tokenizer import load_tokenizer
from tsgdn2.pipelines.screen import Phase, Screen

KILLED = """
import os, signal, sys
from pathlib import Path
from tsgdn2.pipelines.pretrain.jobs import Prepare
from tsgdn2.pipelines.pretrain.prepare import run

text, reference, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

def job(output):
    run(Prepare(text=(text,), output=output, shard_tokens=1_200, validation_every=4, quiet=True))

def killed_at(moment, output):
    "Prepare in a process of its own that is killed at the n-th file that it opens, renames or removes."
    seen = 0
    def watch(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove") and str(output) in str(arguments[0]):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if child == 0:
        if moment:
            sys.addaudithook(watch)
        sys.stdout = open(os.devnull, "w")
        job(output)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def files(output):
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}

assert killed_at(0, reference) == 0
expected, moment = files(reference), 0
while True:
    moment += 1
    output = folder / str(moment)
    code = killed_at(moment, output)
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    assert killed_at(moment // 2 + 1, output) in (0, -signal.SIGKILL)
    assert killed_at(0, output) == 0
    assert files(output) == expected, (moment, sorted(set(files(output)) ^ set(expected)))
print(moment)
"""

# No file may grow beyond 6,000 bytes: the tokenizer fits, a shard of 4,000 tokens or a manifest of many does not.
FULL = """
import resource, sys
from tsgdn2.pipelines.cli import main
sys.dont_write_bytecode = True
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
sys.exit(main(["pretrain", "prepare", *sys.argv[1:]]))
"""


def texts(folder: Path, count: int = 40) -> Path:
    """Texts of 0 to 390 letters, one longer than three shards of 300 tokens."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number:03d}.txt").write_text(f"{number} é" * (2 * number) if number != 17 else "long " * 250)
    return folder


def digests(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def child(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_all_text_is_there_once_in_one_of_the_parts(tmp_path: Path, tokenizer: str) -> None:
    source = texts(tmp_path / "text")
    (source / "zz copy.txt").write_text((source / "005.txt").read_text())
    output = tmp_path / "out"
    run(Prepare(text=(str(source),), output=output, tokenizer=tokenizer, vocabulary=300, shard_tokens=300,
                validation_every=4, quiet=True))  # fmt: skip
    made = load_tokenizer(output)
    parts = {}
    for part in ("train", "validation"):
        shards = TokenShards(output / part, verify="all")
        assert (shards.vocabulary, shards.tokenizer_digest) == (made.vocabulary, made.digest)
        documents = list(shards.walk())
        assert all(document.tokens[-1] == made.end_of_document for document in documents)
        parts[part] = [made.decode(document.tokens) for document in documents]
        assert [document.text_bytes for document in documents] == [len(text.encode()) for text in parts[part]]
    given = [document.text for document in Corpus([str(source)]).documents()]
    assert sorted(parts["train"] + parts["validation"]) == sorted(given)
    for held in parts.values():
        places = [given.index(text) for text in held if text != given[5]]
        assert places == sorted(places)
    assert 3 <= len(parts["validation"]) <= 20
    assert not set(parts["train"]) & set(parts["validation"])


def test_killed_at_every_file_it_touches_it_ends_with_the_same_files(tmp_path: Path) -> None:
    source = texts(tmp_path / "text", 24)
    done = child(KILLED, str(source), str(tmp_path / "reference"), str(tmp_path / "killed"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25


@pytest.mark.parametrize("shard_tokens", [4_000, 300], ids=["in a shard", "in the manifest"])
def test_where_no_more_can_be_written_finished_shards_stay_and_it_goes_on(tmp_path: Path, shard_tokens: int) -> None:
    source, output = texts(tmp_path / "text"), tmp_path / "out"
    given = ["--text", f'["{source}"]', "--shard_tokens", str(shard_tokens), "--validation_every", "4", "--quiet"]
    assert main(["pretrain", "prepare", *given, "--output", str(tmp_path / "reference")]) == 0
    failed = child(FULL, *given, "--output", str(output))
    assert failed.returncode == 2
    assert "run the same command again" in failed.stderr
    left = digests(output)
    assert not any(name.endswith(".part") or "train/manifest" in name for name in left)
    assert main(["pretrain", "prepare", *given, "--output", str(output)]) == 0
    expected = digests(tmp_path / "reference")
    assert digests(output) == expected
    kept = {name for name in left if name.startswith("train") and name.endswith(".tokens")}
    assert len(kept) > 10 if shard_tokens == 300 else not kept
    assert {name: left[name] for name in kept}.items() <= expected.items()


def test_the_same_command_does_nothing_and_another_one_is_refused(tmp_path: Path) -> None:
    source, output = texts(tmp_path / "text", 8), tmp_path / "out"
    job = Prepare(text=(str(source),), output=output, quiet=True)
    run(job)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.tokens")}
    run(job)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.tokens")} == before
    with pytest.raises(ConfigError, match=r"other settings \(shard_tokens\)"):
        run(replace(job, shard_tokens=10))
    (source / "new.txt").write_text("new")
    with pytest.raises(ConfigError, match=r"other settings \(text files\)"):
        run(job)


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ConfigError, match="another process"):
        run(Prepare(text=(str(texts(tmp_path / "text", 3)),), output=tmp_path / "out", quiet=True))


def test_limits_end_the_text_with_a_whole_document(tmp_path: Path) -> None:
    source = texts(tmp_path / "text")
    sizes = [len(document.text.encode()) for document in Corpus([str(source)]).documents()]

    def read(**limit: Any) -> list[int]:
        output = tmp_path / str(limit)
        run(Prepare(text=(str(source),), output=output, quiet=True, **limit))
        return [
            document.text_bytes for part in ("train", "validation") for document in TokenShards(output / part).walk()
        ]

    assert sorted(read(documents=11)) == sorted(sizes[:11])
    found = sum(read(text_bytes=1_000))
    assert found >= 1_000 > found - max(sizes[:20])
    assert found in [sum(sizes[:count]) for count in range(40)]


def test_the_job_says_how_fast_it_is_and_what_it_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tsgdn2.pipelines.pretrain.prepare._SAY_EVERY", 0.0)
    source = texts(tmp_path / "text")
    (source / "broken.txt").write_bytes(b"\xff")
    run(Prepare(text=(str(source),), output=tmp_path / "out"))
    shown = capsys.readouterr()
    assert "tokens/s, " in shown.err
    assert "min left" in shown.err
    assert "passed over: 1 documents" in shown.out
    assert "validation" in shown.out


def test_the_rate_and_the_rest_follow_from_what_was_done() -> None:
    pace = Pace(Phase("tokens"), Screen(quiet=True))
    pace.began -= 60.0
    pace.move(0, 0.25)
    assert "not known yet" in pace.line(0.25)
    pace.move(6_000, 0.5)
    assert "50.0 %, 2.0 min left" in pace.line(0.5)
    assert 90 < pace.per_second <= 100


def test_errors_of_the_text_are_one_line_for_the_caller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in (str(tmp_path / "missing"), "[]"):
        assert main(["pretrain", "prepare", "--quiet", "--text", f'["{text}"]', "--output", str(tmp_path / "o")]) == 2
        assert "text: " in capsys.readouterr().err
    with pytest.raises(ConfigError, match="text: must hold at least one source"):
        Prepare(text=())


def test_the_library_becomes_a_corpus_of_which_the_loader_reads(tmp_path: Path) -> None:
    run(Prepare(output=tmp_path, text_bytes=300_000, validation_every=10, quiet=True))
    train = TokenShards(tmp_path / "train")
    loader = TokenLoader(train, length=256, windows=4, epochs=1)
    assert sum(len(batch.tokens) for batch in loader) == train.tokens
    assert train.text_bytes + TokenShards(tmp_path / "validation").text_bytes >= 300_000


def words_tokenizer(path: Path) -> Path:
    """A tokenizer.json of three words, which takes every other one for unknown."""
    tokenizers = pytest.importorskip("tokenizers")
    known = {"[UNK]": 0, "one": 1, "two": 2, "three": 3}
    engine = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    engine.add_special_tokens(["</s>", "<end>"])
    engine.save(str(path))
    return path


@pytest.mark.parametrize("word", ["two", "four"])
def test_a_tokenizer_that_loses_text_is_found_out_and_a_restart_does_not_forget_it(tmp_path: Path, word: str) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(40):
        kinds = " ".join(("one", "two", "three")[number // 3**place % 3] for place in range(4))
        (folder / f"{number:02d}.txt").write_text(kinds if number != 3 else f"one {word} three")
    job = Prepare(text=str(folder), output=tmp_path / "out", tokenizer=str(words_tokenizer(tmp_path / "w.json")),
                  shard_tokens=12, validation_every=4, quiet=True)  # fmt: skip
    read = Corpus.documents

    def until_ten(self: Corpus, start: Any = (0, 0, 0)) -> Any:
        for document in read(self, start):
            if document.cursor[1] == 10:
                raise KeyboardInterrupt
            yield document

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tsgdn2.pipelines.pretrain.prepare._BATCH_DOCUMENTS", 1)
        patch.setattr(Corpus, "documents", until_ten)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    assert (tmp_path / "out" / "train" / "shard-000001.tokens").is_file()
    run(job)
    tokenizer = load_tokenizer(tmp_path / "out")
    assert not tokenizer.exact
    assert loses_text(tmp_path / "out", tokenizer) == (word == "four")
    run(job)
    assert loses_text(tmp_path / "out", tokenizer) == (word == "four")


def test_where_nothing_says_whether_text_was_lost_a_probe_does(tmp_path: Path) -> None:
    run(Prepare(text=str(texts(tmp_path / "text", 8)), output=tmp_path / "out", quiet=True))
    assert not loses_text(tmp_path / "out", load_tokenizer(tmp_path / "out"))
    (tmp_path / "out" / "prepare.json").unlink()
    assert not loses_text(tmp_path / "out", load_tokenizer(tmp_path / "out"))
    assert loses_text(tmp_path / "out", load_tokenizer(words_tokenizer(tmp_path / "w.json")))


def test_the_token_that_ends_a_document_can_be_named(tmp_path: Path) -> None:
    source, file = texts(tmp_path / "text", 8), words_tokenizer(tmp_path / "w.json")
    run(Prepare(text=str(source), output=tmp_path / "out", tokenizer=str(file), end="<end>", quiet=True))
    assert load_tokenizer(tmp_path / "out").end_of_document == 5
    with pytest.raises(ConfigError, match=r"got '\[UNK\]', which a text spells"):
        run(Prepare(text=str(source), output=tmp_path / "other", tokenizer=str(file), end="[UNK]", quiet=True))
    with pytest.raises(ConfigError, match="end: is for a tokenizer"):
        Prepare(end="</s>")
