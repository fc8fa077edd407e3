"""What a rehearsal needs of a model: its shape, and texts of a given number of tokens."""

import copy
import functools

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from allo.hf.models import model_of_config, read_config
from allo.hf.start import DTYPES
from allo.recipe import Recipe

_WORD = "word"


def rehearsed_model(recipe: Recipe, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The recipe's model without numbers, in the run's dtype (or `dtype`); call it within a `Rehearsal`."""
    model = model_of_config(
        copy.deepcopy(_config(recipe.model, recipe.trust_remote_code)),
        dtype=dtype or DTYPES[recipe.dtype],
        trust_remote_code=recipe.trust_remote_code,
    )
    # It is where it shall be; a Module cannot exchange parameters without numbers.
    model.to = lambda *_, **__: model
    return model


@functools.cache
def _config(ref: str, trust_remote_code: bool) -> PretrainedConfig:
    """Read once: the header of a `.gguf` file takes seconds."""
    return read_config(ref, trust_remote_code=trust_remote_code)


def one_word_tokenizer() -> PreTrainedTokenizerFast:
    """Reads `words(n)` as n tokens."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, _WORD: 2}, unk_token=_WORD))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def words(number: int) -> str:
    return " ".join([_WORD] * number)


class KeysAndValues:
    """Rows of words that a model reads on and on, with what it keeps of them."""

    def __init__(self, model: PreTrainedModel, *, rows: int) -> None:
        self._model, self._rows, self._length = model, rows, 0
        self._cache = DynamicCache(config=model.config)

    def read(self, length: int) -> Tensor:
        """Logits [rows, vocabulary] after `length` more tokens; one row is padded, so attention takes a mask."""
        end = self._length + length
        mask = torch.ones(self._rows, end, dtype=torch.int64)
        mask[-1, 0] = self._rows == 1
        logits: Tensor = self._model(
            input_ids=torch.ones(self._rows, length, dtype=torch.int64),
            attention_mask=mask,
            position_ids=torch.arange(self._length, end).expand(self._rows, -1),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self._length = end
        return logits[:, -1]

    def tensors(self) -> list[Tensor]:
        return [
            value
            for layer in self._cache.layers
            for value in vars(layer).values()
            if isinstance(value, Tensor) and value.is_floating_point()
        ]
