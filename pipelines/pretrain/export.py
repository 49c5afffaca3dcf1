"""The job `pretrain export`: a language model as a Hugging Face folder, read back and compared before it counts.

    <output>/config.json, generation_config.json, model.safetensors      hugging_face.py
    <output>/tokenizer.json, tokenizer_config.json, README.md

The folder gets its name when all of it is written and what was read back is equal to the bit, weights and logits. An
older export steps aside for it, two renames long, and is removed after them; a kill in between leaves it as
.<output>.aside, which the next export puts back first. Drafts of killed exports go then, too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError

from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.language import archive
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.jobs import Export
from tsgdn2.pipelines.pretrain.tokenizer import FILE, Tokenizer, load_tokenizer
from tsgdn2.pipelines.pretrain.weights import located, settings_of
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.training import record_options

_CARD = """# {name}

A language model of tsgdn2: {mixer}, {parameters:,} weights, a state of fixed size.

    import tsgdn2.pipelines.pretrain.hugging_face  # registers the class; trust_remote_code is not needed
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("{name}")
    model = AutoModelForCausalLM.from_pretrained("{name}")
    text = model.generate(**tokenizer("def main", return_tensors="pt"), max_new_tokens=40)
"""
_PROBE = 48
_OWN: Final = re.compile(
    r"(generation_)?config\.json|tokenizer(_config)?\.json|README\.md|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)


def run(job: object) -> None:
    """Export. Errors: CheckpointError for the model, ConfigError for settings that do not fit."""
    assert isinstance(job, Export)
    screen = Screen(job.quiet)
    found = located(job.checkpoint)
    if found.exported:
        raise ConfigError(f"checkpoint: {job.checkpoint} is an exported folder already; copy it")
    tokenizer = _tokenizer(job)
    with screen.phase("reading"):
        model = archive.load(found.file, tokenizer_digest=None if tokenizer is None else tokenizer.digest)
    home = found.file.parent
    # Not inside a checkpoint, which goes when newer ones come.
    home = home.parent if home.name.startswith("step-") else home
    target = job.output or (home.parent if home.name == "checkpoints" else home) / "exported"
    with Run.start(job.experiment, f"export {target.name}", root=job.runs, tracking_uri=job.tracking_uri,
                   tags={"tsgdn2.job": "pretrain export"}) as record:  # fmt: skip
        record_options(record, job)
        with screen.phase("writing and reading back"):
            size = write(model, target, tokenizer)
        record.metrics({"bytes": size})
    if tokenizer is None:
        screen.say("No tokenizer goes along: the training names no data; give --data")
    screen.say(f"exported: {target}, {size:,} bytes, read back equal to the bit")


def write(model: LanguageModel, target: Path, tokenizer: Tokenizer | None = None) -> int:
    """Write a folder whole or not at all, over an older export; gives its bytes.

    Errors: ConfigError where the target holds something else; CheckpointError where what was read back differs; OSError
    of a full disk. The draft goes with any of them.
    """
    from tsgdn2.pipelines.pretrain.hugging_face import MODEL_TYPE, LanguageModelForCausalLM  # says what is missing

    from transformers.utils import logging  # isort: skip

    target.parent.mkdir(parents=True, exist_ok=True)
    draft, aside = (target.with_name(f".{target.name}.{what}") for what in (f"{os.getpid()}.draft", "aside"))
    _put_back(target, aside)
    if target.exists() and not _replaceable(target, MODEL_TYPE):
        raise ConfigError(f"output: {target} holds something that is no export; name another folder")
    for left in target.parent.glob(f".{target.name}.*.draft"):
        shutil.rmtree(left)
    end = None if tokenizer is None else tokenizer.end_of_document
    digest = "" if tokenizer is None else tokenizer.digest
    logging.disable_progress_bar()
    try:
        draft.mkdir()
        whole = LanguageModelForCausalLM.of(model, eos_token_id=end, pad_token_id=end, tokenizer_digest=digest)
        try:
            whole.save_pretrained(draft)
        except SafetensorError as error:  # which is no OSError, a full disk's neither
            raise OSError(
                f"output: {draft} can not be written ({error}); free space, or name another folder"
            ) from error
        if tokenizer is not None:
            tokenizer.save(draft)
        count = sum(p.numel() for p in model.parameters())
        (draft / "README.md").write_text(
            _CARD.format(name=target.name, mixer=model.config.mixer, parameters=count), encoding="utf-8"
        )
        check(model, draft)
        size = sum(file.stat().st_size for file in draft.iterdir())
        if target.exists():
            target.rename(aside)
        draft.rename(target)
    except BaseException:
        _put_back(target, aside)
        shutil.rmtree(draft, ignore_errors=True)
        raise
    finally:
        logging.enable_progress_bar()
    _put_back(target, aside)
    return size


def _put_back(target: Path, aside: Path) -> None:
    """Give an older export that stands aside its name again, or remove it where a newer one has the name."""
    if aside.exists() and not target.exists():
        aside.rename(target)
    elif aside.exists():
        shutil.rmtree(aside)


def _replaceable(target: Path, model_type: str) -> bool:
    """Whether a path is an empty folder, or an export of ours and nothing else."""
    if not target.is_dir():
        return False
    files = list(target.iterdir())
    if not files:
        return True
    try:
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ours = isinstance(config, dict) and config.get("model_type") == model_type
    return ours and all(file.is_file() and _OWN.fullmatch(file.name) for file in files)


@torch.no_grad()
def check(model: LanguageModel, folder: Path) -> None:
    """CheckpointError unless AutoModelForCausalLM reads a folder as this model: every weight, and logits of a text."""
    from transformers import AutoModelForCausalLM

    import tsgdn2.pipelines.pretrain.hugging_face  # noqa: F401

    back = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).to(model.device).eval()
    weights, others = model.state_dict(), back.model.state_dict()
    wrong = [name for name in {*weights, *others}
             if name not in weights or name not in others or not torch.equal(weights[name], others[name])]  # fmt: skip
    if wrong:
        raise CheckpointError(f"output: {folder} was read back with other weights {sorted(wrong)[:4]}; the disk is bad")
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(model.config.vocabulary, (1, _PROBE), generator=draw).to(model.device)
    mine, _ = model(text[0], model.documents([_PROBE]))
    if not torch.equal(mine, back(input_ids=text).logits[0]):
        raise CheckpointError(f"output: {folder} was read back with other logits; report it with the config")


def _tokenizer(job: Export) -> Tokenizer | None:
    named = settings_of(job.checkpoint).get("data")
    data = job.data or (Path(str(named)) if named else None)
    if data is None:
        return None
    if not (data / FILE).is_file():
        raise ConfigError(f"data: {data} holds no {FILE}; name the folder that `pretrain prepare` wrote")
    return load_tokenizer(data)
