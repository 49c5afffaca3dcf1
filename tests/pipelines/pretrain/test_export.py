"""Export: the Hugging Face class is our model to the bit and token for token, also in a process that never saw ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.language import archive
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.generation import generate
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.export import check, run, write
from tsgdn2.pipelines.pretrain.hugging_face import LanguageModelConfig, LanguageModelForCausalLM, StateCache
from tsgdn2.pipelines.pretrain.jobs import Export
from tsgdn2.pipelines.pretrain.tokenizer import ByteTokenizer
from tsgdn2.pipelines.pretrain.weights import located, opened

MODELS = {
    "plain": {},
    "tied": {"tied": True},
    "hybrid": {"attention_every": 3, "attention_window": 6, "attention_heads": 2},
    "mamba3": {"mixer": "mamba3"},
}
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


def model_of(**fields: object) -> LanguageModel:
    torch.manual_seed(1)
    sizes: dict[str, object] = {"vocabulary": 257, "width": 32, "layers": 3, "heads": 2, "key_dim": 8, "value_dim": 8,
                                "mlp": 48}  # fmt: skip
    return LanguageModel(LanguageConfig(**(sizes | fields))).eval()  # type: ignore[arg-type]


def padded(prompts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts with zeros on the left, and the mask."""
    size = max(map(len, prompts))
    rows = [torch.cat([torch.zeros(size - len(one), dtype=torch.int64), one]) for one in prompts]
    masks = [torch.arange(size) >= size - len(one) for one in prompts]
    return torch.stack(rows), torch.stack(masks).long()


@pytest.mark.parametrize("name", MODELS)
def test_generate_gives_our_tokens_and_a_round_trip_our_weights(name: str, tmp_path: Path) -> None:
    model = model_of(**MODELS[name])
    write(model, tmp_path / "out", ByteTokenizer())
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(back, LanguageModelForCausalLM)
    weights = back.model.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    assert (back.model.head.weight is back.model.embedding.weight) == model.config.tied
    assert back.model.config == model.config
    prompts = [torch.randint(0, 256, (size,)) for size in (7, 1, 12)]
    ids, mask = padded(prompts)
    made = back.generate(ids, attention_mask=mask, max_new_tokens=15, do_sample=False)
    for row, own in zip(made, generate(model, prompts, tokens=15, stop=(256,)), strict=True):
        assert row[12:].tolist()[: len(own)] == own
    assert opened(tmp_path / "out").config == model.config


def test_a_new_process_reads_what_was_exported_without_trusting_any_code(tmp_path: Path) -> None:
    model = model_of()
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


def test_the_tokenizer_goes_along_and_the_card_s_lines_run(tmp_path: Path) -> None:
    write(model_of(), tmp_path / "out", ByteTokenizer())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    given = tokenizer("def main", return_tensors="pt")
    assert given["input_ids"][0].tolist() == list(b"def main")
    made = model.generate(**given, max_new_tokens=3, do_sample=False)
    assert made.shape[1] <= 11
    assert (tmp_path / "out/README.md").read_text().startswith("# out\n")


def test_the_cache_is_the_state_and_does_not_grow() -> None:
    model = LanguageModelForCausalLM.of(model_of())
    ids = torch.randint(0, 256, (2, 9))
    first = model(ids, use_cache=True)
    cache = first.past_key_values
    assert isinstance(cache, StateCache)
    assert cache.get_seq_length() == 9
    assert cache.state is not None
    size = cache.state.nbytes
    more = torch.randint(0, 256, (2, 30))
    second = model(more, past_key_values=cache)
    torch.testing.assert_close(second.logits, model(torch.cat([ids, more], 1)).logits[:, 9:], rtol=1e-4, atol=1e-5)
    assert cache.state.nbytes == size
    assert cache.get_seq_length() == 39
    with pytest.raises(ConfigError, match="can not be cut back"):
        cache.crop(3)


def test_beams_are_those_of_a_search_that_reads_everything_again() -> None:
    model = LanguageModelForCausalLM.of(model_of())
    prompt = torch.randint(0, 256, (1, 6))
    beams = [(prompt[0], 0.0)]
    for _ in range(4):
        grown = []
        for text, likelihood in beams:
            p = torch.log_softmax(model(text[None]).logits[0, -1], -1).detach()
            grown += [
                (torch.cat([text, torch.tensor([n])]), likelihood + float(p[n])) for n in p.topk(3).indices.tolist()
            ]
        beams = sorted(grown, key=lambda pair: -pair[1])[:3]
    made = model.generate(prompt, max_new_tokens=4, num_beams=3, do_sample=False, pad_token_id=256)
    assert made[0].tolist() == beams[0][0].tolist()


def test_the_loss_is_the_model_s_own_and_padding_counts_nowhere() -> None:
    ours = model_of()
    model = LanguageModelForCausalLM.of(ours)
    prompts = [torch.randint(0, 256, (size,)) for size in (8, 3)]
    ids, mask = padded(prompts)
    nats = 0.0
    for one in prompts:
        counted = torch.arange(len(one)) < len(one) - 1
        nats += float(ours.loss(one, one.roll(-1), counted, ours.documents([len(one)])).detach())
    found = model(ids, attention_mask=mask, labels=ids)
    assert float(found.loss) == pytest.approx(nats / 9, rel=1e-5)
    assert found.logits.shape == (2, 8, 257)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    model = LanguageModelForCausalLM.of(model_of())
    ids = torch.randint(0, 256, (1, 4))
    with pytest.raises(ConfigError, match="pad on the left"):
        model.generate(ids, attention_mask=torch.tensor([[1, 1, 1, 0]]), max_new_tokens=2, pad_token_id=256)
    with pytest.raises(ConfigError, match="use_cache: must be true"):
        model.generate(ids, max_new_tokens=2, use_cache=False, pad_token_id=256)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("all of it")
    with pytest.raises(ConfigError, match="holds something that is no export"):
        write(model.model, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "all of it"
    with pytest.raises(CheckpointError, match="holds no model"):
        located(tmp_path)
    assert LanguageModelConfig().shape.vocabulary == 257


def test_an_export_that_fails_leaves_the_older_one_and_no_draft(tmp_path: Path) -> None:
    first = model_of()
    write(first, tmp_path / "out")

    class Broken(ByteTokenizer):
        def save(self, folder: Path) -> None:
            raise OSError(28, "No space left on device")

    torch.manual_seed(7)
    with pytest.raises(OSError, match="No space left"):
        write(LanguageModel(first.config), tmp_path / "out", Broken())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    check(first, tmp_path / "out")
    with pytest.raises(CheckpointError, match="other weights"):
        check(LanguageModel(first.config), tmp_path / "out")
    write(LanguageModel(first.config), tmp_path / "out", ByteTokenizer())
    assert (tmp_path / "out/tokenizer.json").is_file()
