"""The Hugging Face class: it reads and decodes as our model, on a state that does not grow, and says what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.language.generation import generate
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.export import write
from tsgdn2.pipelines.pretrain.hugging_face import LanguageModelConfig, LanguageModelForCausalLM, StateCache

Lively = Callable[..., LanguageModel]

MODELS: dict[str, dict[str, object]] = {
    "plain": {},
    "tied": {"tied": True},
    "hybrid": {"attention_every": 3, "attention_window": 6, "attention_heads": 2},
    "mamba3": {"mixer": "mamba3"},
}


def padded(prompts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts with zeros on the left, and the mask."""
    size = max(map(len, prompts))
    rows = [torch.cat([torch.zeros(size - len(one), dtype=torch.int64), one]) for one in prompts]
    masks = [torch.arange(size) >= size - len(one) for one in prompts]
    return torch.stack(rows), torch.stack(masks).long()


@pytest.mark.parametrize("name", MODELS)
def test_generate_gives_our_tokens_from_padded_prompts(lively: Lively, name: str) -> None:
    model = lively(**MODELS[name])
    prompts = [torch.randint(0, 256, (size,)) for size in (7, 1, 12)]
    ids, mask = padded(prompts)
    whole = LanguageModelForCausalLM.of(model, eos_token_id=256, pad_token_id=256)
    made = whole.generate(ids, attention_mask=mask, max_new_tokens=15, do_sample=False)
    expected = generate(model, prompts, tokens=15, stop=(256,))
    for row, own in zip(made, expected, strict=True):
        assert row[12:].tolist()[: len(own)] == own
    # what would hide a mistake: rows that say the same, or what a model says that forgot or that read the padding
    assert len({tuple(own) for own in expected}) == 3
    for row, prompt, own in zip(ids, prompts, expected, strict=True):
        forgetful = [generate(model, [torch.tensor([one])], tokens=1)[0][0] for one in [int(prompt[-1]), *own[:-1]]]
        assert own != forgetful
        assert len(prompt) == 12 or generate(model, [row], tokens=len(own))[0] != own


def test_the_cache_is_the_state_and_does_not_grow(lively: Lively) -> None:
    model = LanguageModelForCausalLM.of(lively())
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


def test_beams_are_those_of_a_search_that_reads_everything_again(lively: Lively) -> None:
    model = LanguageModelForCausalLM.of(lively())
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


def test_the_loss_is_the_model_s_own_and_padding_counts_nowhere(lively: Lively) -> None:
    ours = lively()
    model = LanguageModelForCausalLM.of(ours)
    prompts = [torch.randint(0, 256, (size,)) for size in (8, 3)]
    ids, mask = padded(prompts)
    nats = 0.0
    for one in prompts:
        counted = torch.arange(len(one)) < len(one) - 1
        nats += float(ours.loss(one, one.roll(-1), counted, ours.documents([len(one)])).detach())
    found = model(ids, attention_mask=mask, labels=ids)
    assert float(found.loss.detach()) == pytest.approx(nats / 9, rel=1e-5)
    assert found.logits.shape == (2, 8, 257)


def test_ten_thousand_tokens_of_a_hybrid_leave_the_cache_as_large_as_its_window(lively: Lively) -> None:
    ours = lively(layers=2, width=16, mlp=16, attention_every=2, attention_window=8, attention_heads=2)
    model, sizes = LanguageModelForCausalLM.of(ours), []
    for count in (12, 10_000):
        cache = StateCache()
        made = model.generate(torch.arange(3)[None], max_new_tokens=count, do_sample=False, past_key_values=cache)
        assert made.shape == (1, 3 + count)
        assert cache.state is not None
        sizes.append((cache.state.nbytes, [t.shape for layer in cache.state.layers for t in layer.values()]))
        assert cache.get_seq_length() == 2 + count
    assert sizes[0] == sizes[1]
    assert cache.state is not None
    assert cache.state.layers[1]["keys"].shape[1] == 8
    ring = 2 * 8 * 16 * 4
    assert sum(tensor.nbytes for tensor in cache.state.layers[1].values()) == ring


def test_a_step_s_micro_batches_weigh_their_tokens_and_not_their_number(lively: Lively) -> None:
    """What a trainer does that accumulates: the loss of each part, over the labels of all."""
    model = LanguageModelForCausalLM.of(lively())
    model.train()
    ids = torch.randint(0, 256, (4, 9))
    labels = ids.clone()
    labels[2:, 4:] = -100
    (whole,) = torch.autograd.grad(model(ids, labels=labels).loss, [model.model.head.weight])
    count = (labels[:, 1:] != -100).sum()
    parts = [model(ids[part], labels=labels[part], num_items_in_batch=count).loss for part in (slice(2), slice(2, 4))]
    (summed,) = torch.autograd.grad(torch.stack(parts).sum(), [model.model.head.weight])
    torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-6)


def test_gradients_are_the_same_where_blocks_are_computed_again(lively: Lively) -> None:
    model = LanguageModelForCausalLM.of(lively())
    model.train()
    ids = torch.randint(0, 256, (2, 9))
    found = []
    for again in (False, True):
        (model.activation_checkpointing_enable if again else model.activation_checkpointing_disable)()
        assert model.model.checkpointing == model.is_gradient_checkpointing == again
        found.append(torch.autograd.grad(model(ids, labels=ids).loss, [model.model.embedding.weight])[0])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("mixer", ["gdn2", "mamba3", "rwkv7", "attention", "lstm"])
def test_bfloat16_is_read_from_a_folder_with_decays_and_memories_in_float32(
    lively: Lively, mixer: str, tmp_path: Path
) -> None:
    ours = lively(mixer=mixer, attention_window=20, attention_heads=2)
    write(ours, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    rounded = LanguageModel(ours.config).eval()
    rounded.load_state_dict(ours.state_dict())
    weights = model.model.state_dict()
    for name, tensor in rounded.to(torch.bfloat16).state_dict().items():
        assert weights[name].dtype == tensor.dtype, name
        assert torch.equal(weights[name], tensor), name
    for name in (name for name in weights if name.endswith(("A_log", "dt_bias"))):
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], ours.state_dict()[name])
    ids = torch.randint(0, 256, (2, 9))
    cache = StateCache()
    made = model.generate(ids, max_new_tokens=5, min_new_tokens=5, past_key_values=cache, pad_token_id=256)
    assert made.shape == (2, 14)
    assert cache.state is not None
    assert all(layer["memory"].dtype == torch.float32 for layer in cache.state.layers if "memory" in layer)
    drawn = AutoModelForCausalLM.from_config(LanguageModelConfig(ours.config.__dict__), dtype=torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in drawn.model.state_dict().items()}
    assert dtypes == {name: tensor.dtype for name, tensor in weights.items()}
    assert torch.get_default_dtype() == torch.float32


def test_a_folder_that_lacks_a_weight_is_no_model(lively: Lively, tmp_path: Path) -> None:
    write(lively(), tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    weights = load_file(file)
    del weights["model.blocks.0.mixer.A_log"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks the weights"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_outputs_come_as_a_tuple_where_asked_for(lively: Lively) -> None:
    model = LanguageModelForCausalLM.of(lively())
    ids = torch.randint(0, 256, (1, 4))
    logits, cache = model(ids, return_dict=False)
    assert torch.equal(logits, model(ids).logits)
    assert isinstance(cache, StateCache)


def test_what_does_not_fit_is_said(lively: Lively) -> None:
    model = LanguageModelForCausalLM.of(lively())
    ids = torch.randint(0, 256, (1, 4))
    with pytest.raises(ConfigError, match="pad on the left"):
        model.generate(ids, attention_mask=torch.tensor([[1, 1, 1, 0]]), max_new_tokens=2, pad_token_id=256)
    with pytest.raises(ConfigError, match="use_cache: must be true"):
        model.generate(ids, max_new_tokens=2, use_cache=False, pad_token_id=256)
    with pytest.raises(ConfigError, match="output_hidden_states: must be false"):
        model(ids, output_hidden_states=True)
    with pytest.raises(ConfigError, match="output_attentions: must be false"):
        model.generate(ids, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True, pad_token_id=256)
    for prompt, mask in ((ids[:, :0], None), (ids, torch.zeros_like(ids))):
        with pytest.raises(ConfigError, match="input_ids: every prompt must hold at least one token"):
            model.generate(prompt, attention_mask=mask, max_new_tokens=2, pad_token_id=256)
    assert LanguageModelConfig().shape.vocabulary == 257
