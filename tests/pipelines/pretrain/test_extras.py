"""Without an extra's package a job says which extra to install, and not where an import failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path

import torch

from tsgdn2.datasets.text import open_source
from tsgdn2.language import archive
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.export import write
from tsgdn2.pipelines.pretrain.tokenizer import ByteTokenizer, PairTokenizer
from tsgdn2.pipelines.pretrain.weights import opened

# Packages that training needs look for some of these by their metadata: they are shut out only now.
ABSENT = ("transformers", "lm_eval", "tokenizers", "huggingface_hub")
for name in (*ABSENT, *(name for name in sys.modules if name.startswith(tuple(f"{one}." for one in ABSENT)))):
    sys.modules[name] = None  # an import of it is an ImportError from here on

home = Path(sys.argv[1])
model = LanguageModel(LanguageConfig(vocabulary=257, width=8, layers=1, heads=1, key_dim=4, value_dim=4, mlp=8))
(home / "exported").mkdir()
archive.save(model, home / "exported/model.safetensors")
(home / "exported/config.json").write_text("{}")
assert ByteTokenizer().decode(ByteTokenizer().encode("a")) == "a"


def said(job):
    try:
        job()
    except ValueError as error:
        print(type(error).__name__, str(error))


def harness():
    import tsgdn2.pipelines.pretrain.harness


said(lambda: write(model, home / "out"))
said(lambda: opened(home / "exported"))
said(harness)
said(lambda: PairTokenizer.train(["a"], 300))
said(lambda: open_source("hf://datasets/someone/something/*.parquet"))
"""


def test_each_absent_extra_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "ConfigError hf: needs the package transformers; install tsgdn2[hf]",
        "ConfigError hf: needs the package transformers; install tsgdn2[hf]",
        "ConfigError harness: needs the package lm-eval; install tsgdn2[harness]",
        "ConfigError tokenizer: pairs need the package tokenizers; install tsgdn2[language]",
        "DataError text: hf:// names need the package huggingface_hub; install tsgdn2[language]",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported"]
