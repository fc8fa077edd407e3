"""The models and texts of a rehearsal: weights without values, and texts of a given number of tokens."""

import contextlib
import copy
import functools

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import pad
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights

from allo.models.load import model_of_config, read_config
from allo.models.repeated_prompts import RepeatedPrompts
from allo.models.shared_prompts import SharedPrompts, can_share, shared_attention
from allo.models.start import DTYPES
from allo.recipe import Recipe

_WORD, _OTHER = "word", "other"


def rehearsed_model(recipe: Recipe, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Build the recipe's model without values, in the run's dtype (or `dtype`); call it within a `Rehearsal`."""
    # Some families draw a value until it lies within bounds: without values, forever.
    with no_init_weights():
        model = model_of_config(
            copy.deepcopy(config_of(recipe.model, recipe.trust_remote_code)),
            dtype=dtype or DTYPES[recipe.dtype],
            trust_remote_code=recipe.trust_remote_code,
        )
    model.tie_weights()
    # Masks of a rehearsal are by live tensor, which takes no values to convert.
    model._weight_conversions = []
    # It is already in place, and a Module cannot replace parameters without values.
    model.to = lambda *_, **__: model
    return model


@functools.cache
def config_of(ref: str, trust_remote_code: bool) -> PretrainedConfig:
    """Read the configuration once: the header of a `.gguf` file takes seconds."""
    return read_config(ref, trust_remote_code=trust_remote_code)


def one_word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that reads `words(n)` as n tokens."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, _WORD: 2, _OTHER: 3}, unk_token=_WORD))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def words(number: int) -> str:
    return " ".join([_WORD] * number)


def other_word(text: str) -> str:
    """Return `words(n)` with another last word."""
    return text.removesuffix(_WORD) + _OTHER


def rehearse_sampling(
    model: PreTrainedModel, *, prompts: int, length: int, num_generations: int, max_new_tokens: int
) -> tuple[Tensor, list[Tensor]]:
    """Read prompts of `length` and take the last step of their completions, when keys and values are largest.

    Returns logits [prompts * num_generations, vocabulary], and the keys and values.
    """
    given = [[2] * (length - number % 2) for number in range(prompts)]
    read = max(max_new_tokens - 2, 0)
    token_ids = torch.full((prompts * num_generations,), 2)
    if can_share(model):
        with (
            contextlib.suppress(ValueError, RuntimeError),
            shared_attention(model),
        ):  # its attention is of its own
            return _rehearse_shared(model, given, token_ids, read=read, max_new_tokens=max_new_tokens)
    rows = RepeatedPrompts(model, num_generations=num_generations)
    rows.admit(given)
    rows.rehearse(read)
    return rows.step(token_ids), rows.states


def _rehearse_shared(
    model: PreTrainedModel, given: list[list[int]], token_ids: Tensor, *, read: int, max_new_tokens: int
) -> tuple[Tensor, list[Tensor]]:
    rows = SharedPrompts(model, num_generations=len(token_ids) // len(given), max_new_tokens=max_new_tokens)
    rows.admit(given)
    rows.own_states = [
        (pad(keys, (0, 0, 0, read)), pad(values, (0, 0, 0, read))) for keys, values in rows.own_states
    ]
    rows._lengths.fill_(read)
    rows._oldest = read
    logits = rows.step(token_ids)
    return logits, [states for layer in rows.prompt_states + rows.own_states for states in layer]
