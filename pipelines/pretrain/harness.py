"""The adapter to lm-evaluation-harness: its tasks on the recurrent state. Extra `harness`.

    python -m tsgdn2.pipelines.pretrain.harness --model tsgdn2 --model_args checkpoint=runs/pretrain,data=runs/tokens \\
        --tasks lambada_openai --batch_size 8                      the harness's own command line, with this model known

    log p(continuation | context) = sum of log p(token | all before)       read with the state, at any length

A document has nothing before it, so where the context is empty its first token is charged as one of V equally likely
ones, as in evaluation/language/perplexity.py. Nothing is ever cut off on the left: there is no longest context. Prompts
of one batch are packed, not padded; batch_size is the number of them that are read or decoded side by side.

Generation knows until, max_gen_toks, do_sample, temperature, top_k, top_p and seed; without do_sample it is greedy.
What else a task asks for (beams, penalties) is refused, because its score would be another task's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.language.perplexity import WINDOW, losses, stream_losses
from tsgdn2.evaluation.language.retrieval import answers
from tsgdn2.language.generation import choose
from tsgdn2.language.model import LanguageModel
from tsgdn2.pipelines.pretrain.tokenizer import FILE, Tokenizer, load_tokenizer
from tsgdn2.pipelines.pretrain.weights import device_of, located, opened

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ConfigError("harness: needs the package lm-eval; install tsgdn2[harness]") from error

Ints = NDArray[np.int64]

_KNOWN: Final = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "seed")
_NEUTRAL: Final = {"num_beams": 1, "repetition_penalty": 1.0, "min_p": 0.0}


@register_model("tsgdn2")
class HarnessModel(TemplateLM):
    """A language model and its tokenizer under the harness's names."""

    backend = "causal"

    def __init__(
        self, checkpoint: str | None = None, data: str | None = None, *, model: LanguageModel | None = None,
        tokenizer: Tokenizer | None = None, device: str | None = None, batch_size: int | str = 8,
        max_gen_toks: int = 256, window: int = WINDOW, **kwargs: object,  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Open a model, or take one.

        Args:
            checkpoint: As `pretrain evaluate` takes it; None where `model` is given.
            data: Folder of `pretrain prepare` with the tokenizer; None looks for it beside an exported model.
            model: A model in memory.
            tokenizer: Its tokenizer.
            device: As torch names it; None is cuda where there is one.
            batch_size: Prompts that are decoded side by side; auto is 8.
            max_gen_toks: Tokens of an answer where the task does not say.
            window: Tokens that are read at a time.
            kwargs: What the harness hands to every model; ignored.

        Raises:
            ConfigError: No model or no tokenizer is named.
        """
        super().__init__()
        if tokenizer is None:
            places = [Path(data)] if data else [located(Path(checkpoint)).file.parent] if checkpoint else []
            found = [place for place in places if (place / FILE).is_file()]
            if not found:
                raise ConfigError("data: no tokenizer.json was found; name the folder that `pretrain prepare` wrote")
            tokenizer = load_tokenizer(found[0])
        if model is None:
            if checkpoint is None:
                raise ConfigError("checkpoint: must name a model, got none; --model_args checkpoint=FOLDER,data=FOLDER")
            model = opened(Path(checkpoint), tokenizer_digest=tokenizer.digest, device=device_of(device or "auto"))
        self.model, self.text = model.eval(), tokenizer
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 8
        self.max_gen_toks, self.window = max_gen_toks, window

    @property
    def eot_token_id(self) -> int:
        """The end of a document; as a context it means that nothing stands before."""
        return self.text.end_of_document

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of requests goes by."""
        return self.text.digest

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:  # noqa: ARG002
        """Text -> ids."""
        return [int(one) for one in self.text.encode(string)]

    def loglikelihood_rolling(
        self,
        requests: Sequence[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002
    ) -> list[float]:
        """-(length of the code of each text), in nats."""
        return [found for found, _ in self._likelihoods([([], self.tok_encode(one.args[0])) for one in requests])]

    def generate_until(
        self,
        requests: Sequence[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002
    ) -> list[str]:
        """Greedy text of each prompt up to the first of its stops; sampling where the task asks for it."""
        made: list[str] = []
        for begin in range(0, len(requests), self.batch_size):
            made += self._generated(requests[begin : begin + self.batch_size])
        return made

    def _generated(self, requests: Sequence[Instance]) -> list[str]:
        prompts, stops, rooms, choosers = [], [], [], []
        for one in requests:
            context, options = one.args
            until = options.get("until") or []
            stops.append([until] if isinstance(until, str) else list(until))
            rooms.append(int(options.get("max_gen_toks", self.max_gen_toks)))
            choosers.append(_chooser(options, self.model.device))
            ids = self.tok_encode(context) or [self.eot_token_id]
            prompts.append(np.array(ids, np.int64))

        def halted(row: int, ids: Sequence[int]) -> bool:
            text = self.text.decode(ids)
            return any(stop and stop in text for stop in stops[row])

        made = answers(self.model, prompts, rooms=rooms, end=self.eot_token_id, window=self.window, halted=halted,
                       choosers=choosers, vocabulary=self.text.vocabulary)  # fmt: skip
        return [_cut(self.text.decode(ids), own) for ids, own in zip(made, stops, strict=True)]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        **kwargs: Any,  # noqa: ARG002
    ) -> list[tuple[float, bool]]:
        return self._likelihoods([(context, continuation) for _, context, continuation in requests])

    def _likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation in nats, and whether it is the greedy one; short ones are packed."""
        found: dict[int, tuple[float, bool]] = {}
        batch: list[int] = []
        size = 0
        for n, (context, continuation) in enumerate(pairs):
            length = len(context) + len(continuation)
            if batch and size + length > self.window:
                found |= self._packed(pairs, batch)
                batch, size = [], 0
            batch.append(n)
            size += length
        found |= self._packed(pairs, batch)
        return [found[n] for n in range(len(pairs))]

    def _packed(self, pairs: Sequence[tuple[list[int], list[int]]], batch: list[int]) -> dict[int, tuple[float, bool]]:
        contexts = {n: [] if pairs[n][0] == [self.eot_token_id] else pairs[n][0] for n in batch}
        texts = {n: np.array([*contexts[n], *pairs[n][1]], np.int64) for n in batch if pairs[n][1]}
        nats, greedy = [np.zeros(0)], [np.zeros(0, np.bool_)]
        if len(texts) == 1:  # it may be longer than what is read at a time
            pieces = list(stream_losses(self.model, next(iter(texts.values()))[None], self.window))
            nats += [piece.nats[0].numpy() for piece in pieces] + [np.zeros(1)]
            greedy += [piece.greedy[0].numpy() for piece in pieces] + [np.ones(1, np.bool_)]
        elif texts:
            whole = losses(self.model, np.concatenate(list(texts.values())), [len(text) for text in texts.values()])
            nats, greedy = [whole.nats.numpy()], [whole.greedy.numpy()]
        ends = np.cumsum([len(text) for text in texts.values()])
        found: dict[int, tuple[float, bool]] = {n: (0.0, True) for n in batch}
        for n, end in zip(texts, ends.tolist(), strict=True):
            # The nats of a token stand at the one before it.
            own = slice(end - 1 - len(pairs[n][1]) + (0 if contexts[n] else 1), end - 1)
            first = 0.0 if contexts[n] else math.log(self.model.config.vocabulary)
            likelihood = -first - float(np.concatenate(nats)[own].sum())
            found[n] = likelihood, bool(contexts[n]) and bool(np.concatenate(greedy)[own].all())
        return found


def _chooser(options: Mapping[str, Any], device: torch.device) -> Callable[[Tensor], Tensor]:
    """How a request wants its tokens chosen; ConfigError for an option that is not known."""
    unknown = {name: value for name, value in options.items() if name not in _KNOWN and value != _NEUTRAL.get(name)}
    if unknown:
        raise ConfigError(f"gen_kwargs: must be of {', '.join(_KNOWN)}, got {unknown}; leave them out, or the task")
    heat = float(options.get("temperature", 1.0)) if options.get("do_sample", False) else 0.0
    top_k, top_p, seed = (options.get(name) for name in ("top_k", "top_p", "seed"))
    draws = None if seed is None else torch.Generator(device).manual_seed(int(seed))

    def chosen(logits: Tensor) -> Tensor:
        if heat and top_k:
            least = logits.topk(min(int(top_k), logits.shape[-1]), -1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        return choose(logits, temperature=heat, top_p=1.0 if top_p is None else float(top_p), generator=draws)

    return chosen


def _cut(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
