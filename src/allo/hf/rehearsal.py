"""What a rehearsal needs of a model: its shape, and texts of a given number of tokens."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from allo.hf.models import model_of_config
from allo.hf.start import DTYPES
from allo.recipe import Recipe

_WORD = "word"


def rehearsed_model(recipe: Recipe, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The recipe's model without numbers, in the run's dtype (or `dtype`); call it within a `Rehearsal`."""
    model = model_of_config(
        recipe.model, dtype=dtype or DTYPES[recipe.dtype], trust_remote_code=recipe.trust_remote_code
    )
    # It is where it shall be; a Module cannot exchange parameters without numbers.
    model.to = lambda *_, **__: model  # type: ignore[method-assign]
    return model


def one_word_tokenizer() -> PreTrainedTokenizerFast:
    """Reads `words(n)` as n tokens."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, _WORD: 2}, unk_token=_WORD))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def words(number: int) -> str:
    return " ".join([_WORD] * number)
