"""Export: the Hugging Face class is our model to the bit and token for token, also in a process that never saw ours."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.language import archive
from tsgdn2.language.generation import generate
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.export import check, run, write
from tsgdn2.pipelines.pretrain.hugging_face import LanguageModelForCausalLM
from tsgdn2.pipelines.pretrain.jobs import Export
from tsgdn2.pipelines.pretrain.tokenizer import ByteTokenizer
from tsgdn2.pipelines.pretrain.weights import located, opened

Lively = Callable[..., LanguageModel]

PROGRAM = """
import sys, torch
import tsgdn2.pipelines.pretrain.hugging_face
from transformers import AutoModelForCausalLM
from tsgdn2.language import archive
theirs, ours = AutoModelForCausalLM.from_pretrained(sys.argv[1]), archive.load(__import__("pathlib").Path(sys.argv[2]))
a, b = theirs.model.state_dict(), ours.state_dict()
assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
text = torch.arange(40)
assert torch.equal(theirs(input_ids=text[None]).logits[0], ours(text, ours.documents([40]))[0])
print(theirs.generate(text[None], max_new_tokens=12, do_sample=False)[0, 40:].tolist())
"""
KILLED = """
import os, pathlib, signal, sys
from tsgdn2.language import archive
from tsgdn2.pipelines.pretrain.export import write
def kill(event, arguments):
    if event == "os.rename" and str(arguments[0]).endswith(".draft"):
        os.kill(os.getpid(), signal.SIGKILL)
model = archive.load(pathlib.Path(sys.argv[1]))
sys.addaudithook(kill)
write(model, pathlib.Path(sys.argv[2]))
"""


@pytest.mark.parametrize("fields", [{}, {"tied": True}, {"mixer": "mamba3"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_round_trip_gives_our_weights(
    lively: Lively, fields: dict[str, object], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = lively(**fields).to(dtype)
    write(model, tmp_path / "out", ByteTokenizer())
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(back, LanguageModelForCausalLM)
    weights = back.model.state_dict()
    for key, tensor in model.state_dict().items():
        assert weights[key].dtype == tensor.dtype
        assert torch.equal(weights[key], tensor)
    assert (back.model.head.weight is back.model.embedding.weight) == model.config.tied
    assert back.model.config == model.config
    assert opened(tmp_path / "out").config == model.config


def test_a_new_process_reads_what_was_exported_without_trusting_any_code(lively: Lively, tmp_path: Path) -> None:
    model = lively()
    archive.save(model, tmp_path / "model.safetensors", tokenizer_digest=ByteTokenizer().digest)
    ByteTokenizer().save(tmp_path)
    run(Export(checkpoint=tmp_path / "model.safetensors", data=tmp_path, output=tmp_path / "out", quiet=True,
               runs=tmp_path / "runs"))  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "out"), str(tmp_path / "model.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (expected,) = generate(model, [torch.arange(40)], tokens=12)
    assert done.stdout.strip() == str(expected)
    assert located(tmp_path / "out").exported
    with pytest.raises(ConfigError, match="is an exported folder already"):
        run(Export(checkpoint=tmp_path / "out", quiet=True, runs=tmp_path / "runs"))


def test_the_tokenizer_goes_along_and_the_card_s_lines_run(lively: Lively, tmp_path: Path) -> None:
    write(lively(), tmp_path / "out", ByteTokenizer())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    given = tokenizer("def main", return_tensors="pt")
    assert given["input_ids"][0].tolist() == list(b"def main")
    made = model.generate(**given, max_new_tokens=3, do_sample=False)
    assert made.shape[1] <= 11
    both = tokenizer(["def main", "if"], return_tensors="pt", padding=True)
    assert both["attention_mask"].tolist() == [[1] * 8, [0] * 6 + [1] * 2]
    assert (
        torch.equal(model.generate(**both, max_new_tokens=3, min_new_tokens=3)[0, :11], made[0]) or made.shape[1] < 11
    )
    assert (tmp_path / "out/README.md").read_text().startswith("# out\n")


@pytest.mark.parametrize("config", ["", '{"model_type": "bert"}', "mine", '{"model_type": "tsgdn2"}', "[]"])
def test_a_folder_with_other_things_is_left_as_it_is(lively: Lively, config: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    if config:
        (mine / "config.json").write_text(config)
    with pytest.raises(ConfigError, match="holds something that is no export"):
        write(lively(), mine)
    assert (mine / "thesis.txt").read_text() == "all of it"
    with pytest.raises(ConfigError, match="holds something that is no export"):
        write(lively(), mine / "thesis.txt")


def test_an_export_of_another_class_is_no_export_of_ours(lively: Lively, tmp_path: Path) -> None:
    write(lively(), tmp_path / "out")
    config = (tmp_path / "out/config.json").read_text()
    (tmp_path / "out/config.json").write_text(config.replace('"tsgdn2"', '"bert"'))
    with pytest.raises(ConfigError, match="holds something that is no export"):
        write(lively(), tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").is_file()
    (tmp_path / "empty").mkdir()
    write(lively(), tmp_path / "empty")
    with pytest.raises(CheckpointError, match="holds no model"):
        located(tmp_path)


def test_an_export_that_fails_leaves_the_older_one_and_no_draft(lively: Lively, tmp_path: Path) -> None:
    first = lively()
    write(first, tmp_path / "out")

    class Broken(ByteTokenizer):
        def save(self, folder: Path) -> None:
            raise OSError(28, "No space left on device")

    torch.manual_seed(7)
    with pytest.raises(OSError, match="No space left"):
        write(LanguageModel(first.config), tmp_path / "out", Broken())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    check(first, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.aside")  # what a kill between the renames leaves
    (tmp_path / ".out.77.draft").mkdir()
    with pytest.raises(OSError, match="No space left"):
        write(LanguageModel(first.config), tmp_path / "out", Broken())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    check(first, tmp_path / "out")
    with pytest.raises(CheckpointError, match="other weights"):
        check(LanguageModel(first.config), tmp_path / "out")
    write(LanguageModel(first.config), tmp_path / "out", ByteTokenizer())
    assert (tmp_path / "out/tokenizer.json").is_file()


def test_a_kill_inside_the_swap_loses_no_export(lively: Lively, tmp_path: Path) -> None:
    first = lively()
    write(first, tmp_path / "out")
    torch.manual_seed(7)
    archive.save(LanguageModel(first.config), tmp_path / "new.safetensors")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "new.safetensors"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "out").exists()
    check(first, tmp_path / ".out.aside")
    second = archive.load(tmp_path / "new.safetensors")
    write(second, tmp_path / "out")
    check(second, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.safetensors", "out"]


def test_a_disk_that_takes_no_more_is_an_os_error_and_leaves_no_draft(lively: Lively, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"output: .* can not be written .*; free space"):
            write(lively(), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
