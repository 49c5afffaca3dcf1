"""Decoding on the recurrent state: the prompt is read once, then every token costs the same, however long the text is.

    logits, S = prefill(prompts)            one packed pass
    token ~ p(logits);  logits, S = step(token, S)

    temperature 0     the most likely token, of equal ones the first
    top_p             the smallest set of tokens whose probabilities sum to at least top_p

Rows that are finished go on being stepped until all are, so that the batch stays one; what they give is dropped.
B prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from tsgdn2.errors import ConfigError
from tsgdn2.language.model import LanguageModel, LanguageState


@torch.no_grad()
def prefill(
    model: LanguageModel, prompts: Sequence[Tensor], state: LanguageState | None = None
) -> tuple[Tensor, LanguageState]:
    """Read prompts, int64 [n_b] each and at least one token long: logits [B,V] of the next token, and the state.

    state: what was read before, to go on from there.
    """
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) < 1:
        raise ConfigError(f"prompts: each must hold at least one token, got lengths {lengths}")
    tokens = torch.cat([torch.as_tensor(prompt, dtype=torch.int64) for prompt in prompts]).to(model.device)
    wrong = tokens[(tokens < 0) | (tokens >= model.config.vocabulary)]
    if len(wrong):
        raise ConfigError(f"prompts: tokens must be in [0, {model.config.vocabulary}), got {int(wrong[0])}")
    at = model.documents(lengths, state)
    h, after = model.hidden(tokens, at, state)
    return torch.as_tensor(model.head(h[at.tensor(at.offsets[1:] - 1)])), after


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Tensor],
    *,
    tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: Collection[int] = (),
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Go on from each prompt by up to `tokens` tokens; a row ends with the first token of `stop`, which it keeps.

    generator: of the draws, on the model's device; the same seed gives the same text in the same batch.
    Errors: ConfigError for a bound.
    """
    if tokens < 0 or temperature < 0 or not 0 < top_p <= 1:
        raise ConfigError(
            f"tokens, temperature, top_p: must be >= 0, >= 0 and in (0, 1], got {tokens}, {temperature}, {top_p}"
        )
    logits, state = prefill(model, prompts)
    made: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(made)))
    for number in range(1, tokens + 1):
        token = choose(logits, temperature=temperature, top_p=top_p, generator=generator)
        for row, value in enumerate(token.tolist()):
            if row in open_rows:
                made[row].append(value)
                if value in stop:
                    open_rows.remove(row)
        if not open_rows or number == tokens:
            break
        logits, state = model.step(token, state)
    return made


def choose(
    logits: Tensor, *, temperature: float = 0.0, top_p: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the next token [B] from logits [B,V]; see the module."""
    if temperature == 0:
        return logits.argmax(-1)
    p = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        falling, order = p.sort(-1, descending=True)
        before = falling.cumsum(-1) - falling
        p = torch.zeros_like(p).scatter(-1, order, falling.masked_fill(before >= top_p, 0.0))
    return torch.multinomial(p, 1, generator=generator)[:, 0]
