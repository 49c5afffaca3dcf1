"""The language model as a Hugging Face class: config, weights, generate() on the recurrent state. Extra `hf`.

    import tsgdn2.pipelines.pretrain.hugging_face          registers; then, without trust_remote_code:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generate(**tokenizer("def main", return_tensors="pt"), max_new_tokens=40)

The weights are LanguageModel's own under `model.`, so a round trip is equal to the bit. The cache that generate()
carries is the state, whose size does not grow: `StateCache` holds it where the library expects keys and values. Padded
tokens are never read, so a row in a batch is what it is alone; generate() wants them on the left. What needs a cache
that can be cut back (assisted decoding) or the outputs of layers is refused. dtype=torch.bfloat16 rounds matrices and
leaves decays and memories in float32 (mixers/contract.py).

B rows, T tokens with padding, V vocabulary.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tsgdn2.errors import CheckpointError, ConfigError
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.model import LanguageModel, LanguageState
from tsgdn2.mixers.contract import Exact, exact

try:
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
    from transformers.cache_utils import Cache
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ImportError as error:
    raise ConfigError("hf: needs the package transformers; install tsgdn2[hf]") from error

MODEL_TYPE: Final = "tsgdn2"
_INSIDES: Final = ("output_hidden_states", "output_attentions")


class LanguageModelConfig(PreTrainedConfig):
    """config.json of an exported model: every field of LanguageConfig in `language`, and the names that tools read."""

    model_type = MODEL_TYPE

    def __init__(self, language: dict[str, Any] | None = None, tokenizer_digest: str = "", **kwargs: Any) -> None:
        """language: fields of LanguageConfig; None is a tiny model, for tools that make a config without a word."""
        self.tokenizer_digest = tokenizer_digest
        self.language = language or asdict(LanguageConfig(vocabulary=257, width=64, layers=2, heads=2, mlp=128))
        shape = self.shape
        self.vocab_size, self.hidden_size, self.num_hidden_layers = shape.vocabulary, shape.width, shape.layers
        self.num_attention_heads, self.intermediate_size = shape.heads, shape.mlp
        self.use_cache = kwargs.pop("use_cache", True)
        derived = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        for name in (*derived, "tie_word_embeddings"):
            kwargs.pop(name, None)
        super().__init__(**kwargs)
        self.tie_word_embeddings = shape.tied

    @property
    def shape(self) -> LanguageConfig:
        """What the weights fit."""
        return LanguageConfig(**self.language)


class StateCache(Cache):
    """The state of B rows in the place of a cache of keys and values; None before the first token."""

    def __init__(self, state: LanguageState | None = None) -> None:
        super().__init__(layers=[])
        self.state = state

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Tokens that the longest row has read."""
        return 0 if self.state is None else int(self.state.count.max())

    def get_max_length(self) -> int | None:
        """There is no limit."""
        return None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in another order, of a beam search."""
        if self.state is not None:
            self.state = self.state.rows(beam_idx.to(self.state.count.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        if self.state is not None:
            self.reorder_cache(torch.arange(len(self.state.count)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Some rows."""
        self.reorder_cache(indices)

    def crop(self, max_length: int) -> None:
        """A state can not be cut back."""
        raise ConfigError(f"max_length: a recurrent state can not be cut back to {max_length} tokens; read them again")

    def reset(self) -> None:
        """Forget all."""
        self.state = None

    @property
    def is_croppable(self) -> bool:
        """It is not."""
        return False

    @property
    def is_compileable(self) -> bool:
        """Its tensors change with every token."""
        return False


class LanguageModelForCausalLM(PreTrainedModel, GenerationMixin):
    """LanguageModel under the library's names."""

    config_class = LanguageModelConfig
    base_model_prefix = "model"
    _is_stateful = True
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _tied_weights_keys = {"model.head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config)
        wanted = torch.get_default_dtype()  # the library's way to say a dtype
        torch.set_default_dtype(exact(wanted))
        try:
            self.model = LanguageModel(config.shape).to(wanted)
        finally:
            torch.set_default_dtype(wanted)
        self.post_init()
        own = {f"{name}.{each}" for name, module in self.named_modules() if isinstance(module, Exact)
               for each, _ in module.named_parameters(recurse=False)}  # fmt: skip
        self._keep_in_fp32_modules_strict = {re.escape(name) for name in own}

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As the library's; CheckpointError where a weight is missing, because it would be left as it is drawn."""
        made, found = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        missing = sorted([*found["missing_keys"], *(str(one) for one in found["mismatched_keys"])])
        if missing:
            raise CheckpointError(
                f"model: the folder lacks the weights {missing[:4]}, {len(missing)} in all; export again"
            )
        return (made, found) if output_loading_info else made

    @classmethod
    def of(cls, model: LanguageModel, **kwargs: Any) -> LanguageModelForCausalLM:
        """Wrap a model, whose weights are shared; kwargs go to the config, eos_token_id say."""
        with torch.device("meta"):
            made = cls(LanguageModelConfig(language=asdict(model.config), dtype=model.dtype, **kwargs))
        made.model = model
        made.train(model.training)
        return made

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, past_key_values: StateCache | None = None,
        labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None, return_dict: bool | None = None, **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:  # fmt: skip
        """Logits [B,T,V] for input_ids [B,T]; 0 where attention_mask is 0 (of the whole text, or of these tokens).

        labels [B,T]: scored against the logits before them, -100 is left out; loss is their mean in nats.
        num_items_in_batch: labels of all micro-batches of a step, which the sum is divided by in the place of its own.
        logits_to_keep: only the last so many positions. return_dict: False is a tuple. Errors: ConfigError for outputs
        of layers, which this model does not hand out.
        """
        _no_insides({name: kwargs.get(name, getattr(self.config, name, False)) for name in _INSIDES})
        mask = _own_mask(input_ids, attention_mask)
        state = None if past_key_values is None else past_key_values.state
        logits, after = self._read(input_ids, mask, state, logits_to_keep)
        loss = None
        if labels is not None:
            if logits_to_keep:
                raise ConfigError("logits_to_keep: must be 0 with labels, which need all logits")
            targets = labels[:, 1:].masked_fill(~(mask[:, 1:] & mask[:, :-1]), -100)
            how = "mean" if num_items_in_batch is None else "sum"
            loss = cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction=how
            )
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        if use_cache or (use_cache is None and not self.training):
            past_key_values = StateCache() if past_key_values is None else past_key_values
            past_key_values.state = after
        made = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        asked = self.config.return_dict if return_dict is None else return_dict
        return made if asked else made.to_tuple()

    def _read(
        self, input_ids: Tensor, mask: Tensor, state: LanguageState | None, keep: int
    ) -> tuple[Tensor, LanguageState]:
        if state is not None and input_ids.shape[1] == 1 and bool(mask.all()) and not torch.is_grad_enabled():
            logits, after = self.model.step(input_ids[:, 0], state)
            return logits[:, None], after
        h, after = self.model.hidden(input_ids[mask], self.model.documents(mask.sum(1).tolist(), state), state)
        whole = h.new_zeros(*input_ids.shape, h.shape[-1])
        whole[mask] = h
        return torch.as_tensor(self.model.head(whole[:, -keep:] if keep else whole)), after

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: StateCache | None = None, attention_mask: Tensor | None = None,
        use_cache: bool | None = None, **kwargs: Any,  # noqa: ARG002
    ) -> dict[str, Any]:  # fmt: skip
        """The tokens that the state has not read: all at first, then the newest."""
        if not input_ids.shape[1] or (attention_mask is not None and not bool(attention_mask.any(1).all())):
            raise ConfigError(
                "input_ids: every prompt must hold at least one token; begin an empty one with the end token"
            )
        if past_key_values is not None and past_key_values.state is not None:
            unread = _unread(input_ids, attention_mask, past_key_values.state)
            input_ids = input_ids[:, -unread:]
        # The logits of the last token are all that is asked for, which is the last position but with padding behind.
        behind = attention_mask is not None and not bool(attention_mask[:, -1].all())
        if behind:
            raise ConfigError("attention_mask: generate() goes on from the last position; pad on the left")
        return {"input_ids": input_ids, "attention_mask": attention_mask, "past_key_values": past_key_values,
                "use_cache": use_cache, "logits_to_keep": 1}  # fmt: skip

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> bool:
        """A state in the place of the library's own cache, whatever cache_implementation says."""
        _no_insides({name: getattr(generation_config, name, False) for name in _INSIDES})
        if generation_config.use_cache is False:
            raise ConfigError("use_cache: must be true; the state is how this model generates")
        given = model_kwargs.get("past_key_values")
        if given is not None and not isinstance(given, StateCache):
            raise ConfigError(f"past_key_values: must be a StateCache, got {type(given).__name__}")
        model_kwargs["past_key_values"] = StateCache() if given is None else given
        return True

    def get_input_embeddings(self) -> nn.Module:
        """The embedding [V,D]."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:  # noqa: ARG002
        """The embedding can not be exchanged: the config fixes its size."""
        raise ConfigError("embedding: is fixed by the config; train a model with the other vocabulary")

    def get_output_embeddings(self) -> nn.Module:
        """The head [V,D]."""
        return self.model.head

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: LanguageModel draws its own weights when it is made, and from_pretrained() wants all of them."""

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The core keeps the inputs of blocks alone, with torch's own function; no other way is taken."""
        self.model.checkpointing = enable

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward."""
        return self.model.checkpointing


def _no_insides(asked: dict[str, Any]) -> None:
    """ConfigError where a caller wants outputs of layers."""
    for name in (name for name, wanted in asked.items() if wanted):
        raise ConfigError(f"{name}: must be false; take the blocks of model.model for what is inside")


def _own_mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """True [B,T] where a token is to be read."""
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.dim() != 2 or attention_mask.shape[1] < input_ids.shape[1]:
        raise ConfigError(
            f"attention_mask: must be [B,T] with T at least {input_ids.shape[1]}, got {tuple(attention_mask.shape)}"
        )
    return attention_mask[:, -input_ids.shape[1] :].bool()


def _unread(input_ids: Tensor, attention_mask: Tensor | None, state: LanguageState) -> int:
    """Tokens at the end of every row that the state has not read; ConfigError where rows differ."""
    given = torch.full((len(input_ids),), input_ids.shape[1]) if attention_mask is None else attention_mask.sum(1).cpu()
    left = given - state.count.cpu()
    if bool((left != left[0]).any()) or int(left[0]) < 1:
        raise ConfigError(f"input_ids: rows must have equally many unread tokens, at least one, got {left.tolist()}")
    return int(left[0])


AutoConfig.register(MODEL_TYPE, LanguageModelConfig, exist_ok=True)
AutoModelForCausalLM.register(LanguageModelConfig, LanguageModelForCausalLM, exist_ok=True)
