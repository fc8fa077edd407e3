"""Rows on transformers' own cache: each completion has a copy of its prompt's keys and values."""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


def prefill(model: PreTrainedModel, prompts: list[list[int]], cache: DynamicCache) -> tuple[Tensor, Tensor]:
    """Read the prompts into an empty cache, left-padded to the longest.

    Returns:
        Logits [prompts, vocabulary] after each prompt, and the attention mask [prompts, longest] int64.
    """
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    mask = mask.to(model.device)
    logits = model(
        input_ids=input_ids.to(model.device),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits, mask


class RepeatedPrompts:
    """A cache for any model; all rows begin together, so new prompts wait until the last row has finished."""

    takes_more = False  # prompts while rows are running

    def __init__(self, model: PreTrainedModel, *, num_generations: int) -> None:
        self._model = model
        self._num_generations = num_generations

    def admit(self, prompts: list[list[int]]) -> Tensor:
        """Begin `num_generations` rows per prompt; return logits [prompts, vocabulary]."""
        self._cache = DynamicCache(config=self._model.config)
        logits, mask = prefill(self._model, prompts, self._cache)
        self._cache.batch_repeat_interleave(self._num_generations)
        self._mask = mask.repeat_interleave(self._num_generations, dim=0)
        return logits

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows at these indices, in this order."""
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]

    def step(self, token_ids: Tensor) -> Tensor:
        """Return logits [rows, vocabulary] after one more token per row, `token_ids` [rows]."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(token_ids), 1)], dim=1)
        return self._model(
            input_ids=token_ids[:, None],
            attention_mask=self._mask,
            position_ids=self._mask.sum(-1, keepdim=True) - 1,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
