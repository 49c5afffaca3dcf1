"""Decoding: token for token what the parallel pass says, in a state that does not grow."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.language import archive
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.cost import footprint
from tsgdn2.language.generation import choose, generate, prefill
from tsgdn2.language.model import LanguageModel

TINY = LanguageConfig(vocabulary=23, width=16, layers=2, heads=2, key_dim=8, value_dim=8, mlp=24, attention_heads=2)


def lively(config: LanguageConfig, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A model whose most likely token depends on the text: weights as drawn say nearly the same everywhere."""
    torch.manual_seed(1)
    model = LanguageModel(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
    return model


@pytest.mark.parametrize("mixer", ["gdn2", "kda", "mamba3", "rwkv7", "attention"])
def test_generation_is_the_argmax_of_the_parallel_pass(mixer: str) -> None:
    model = lively(replace(TINY, mixer=mixer, attention_window=16))
    prompts = [torch.tensor([3, 1, 4]), torch.tensor([5, 9, 2, 6, 5, 3, 5]), torch.tensor([8])]
    made = generate(model, prompts, tokens=40)
    for prompt, tail in zip(prompts, made, strict=True):
        text = torch.cat([prompt, torch.tensor(tail)])
        with torch.no_grad():
            logits, _ = model(text, model.documents([len(text)]))
        assert logits.argmax(-1)[len(prompt) - 1 : -1].tolist() == tail
    assert len({tuple(tail) for tail in made}) > 1
    assert len(set(made[0])) > 2


def test_the_state_does_not_grow_over_ten_thousand_tokens() -> None:
    model = lively(TINY, torch.float32)
    logits, state = prefill(model, [torch.tensor([1])])
    size, shapes = state.nbytes, [t.shape for layer in state.layers for t in layer.values()]
    with torch.no_grad():
        for _ in range(10_000):
            logits, state = model.step(choose(logits), state)
    assert state.nbytes == size
    assert [t.shape for layer in state.layers for t in layer.values()] == shapes
    assert torch.isfinite(logits).all()
    assert int(state.count) == 10_001
    assert size == footprint(TINY).state_bytes + 8  # the count of the tokens


def test_a_row_ends_with_its_stop_token_and_the_others_go_on() -> None:
    model = lively(TINY)
    prompts = [torch.tensor([3, 1, 4]), torch.tensor([8])]
    free = generate(model, prompts, tokens=12)
    stop = free[0][4]
    made = generate(model, prompts, tokens=12, stop=(stop,))
    assert made[0] == free[0][: free[0].index(stop) + 1]
    assert made[1] == (free[1][: free[1].index(stop) + 1] if stop in free[1] else free[1])


def test_draws_follow_their_seed_and_their_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).expand(20_000, 4)
    drawn = choose(logits, temperature=1.0, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(share, torch.softmax(logits[0], -1), rtol=0, atol=0.015)
    again = choose(logits, temperature=1.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    nucleus = choose(logits, temperature=1.0, top_p=0.8, generator=torch.Generator().manual_seed(0))
    assert set(nucleus.tolist()) == {1, 2}
    assert set(choose(logits, temperature=1.0, top_p=1e-9).tolist()) == {2}


def test_bounds_of_decoding_are_named() -> None:
    model = lively(TINY)
    with pytest.raises(ConfigError, match="prompts: each must hold at least one token"):
        generate(model, [torch.tensor([], dtype=torch.int64)], tokens=1)
    with pytest.raises(ConfigError, match=r"prompts: tokens must be in \[0, 23\), got 23"):
        generate(model, [torch.tensor([23])], tokens=1)
    with pytest.raises(ConfigError, match="temperature"):
        generate(model, [torch.tensor([2])], tokens=1, temperature=-1.0)


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_says_the_same_in_a_new_process(tied: bool, tmp_path: Path) -> None:
    model = lively(replace(TINY, tied=tied), torch.float32)
    archive.save(model, tmp_path / "model.safetensors", tokenizer_digest="abc")
    made = generate(model, [torch.tensor([3, 1, 4])], tokens=20)
    program = (
        "import sys, torch; from pathlib import Path; from tsgdn2.language import archive, generation;"
        "model = archive.load(Path(sys.argv[1]), tokenizer_digest='abc');"
        "print(generation.generate(model, [torch.tensor([3, 1, 4])], tokens=20))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.safetensors")],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == str(made)
    again = archive.load(tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert (again.head.weight is again.embedding.weight) == tied


def test_another_tokenizer_and_another_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    archive.save(lively(TINY), path, tokenizer_digest="abc")
    with pytest.raises(CheckpointError, match=r"tokenizer: .* was trained with tokenizer abc, got xyz"):
        archive.load(path, tokenizer_digest="xyz")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        archive.load(path)
