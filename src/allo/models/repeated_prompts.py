"""Rows on transformers' own cache: each completion has a copy of its prompt's keys and values, or of its states."""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from allo.console import say
from allo.errors import UserError
from allo.models.model_checks import rope_length
from allo.models.probe import Rows, cache_argument, fault


@dataclass(frozen=True)
class Way:
    """A way to run rows of a model together.

    `pads`: prompts of all lengths run side by side, otherwise those of one length. `moves`: rows take other places in
    the batch, otherwise those that have ended run on until the last one ends.
    """

    pads: bool = True
    moves: bool = True


FASTEST = Way()
# In the order of their speed.
_WAYS = {
    FASTEST: "",
    Way(
        pads=False
    ): "padding before a prompt changes its logits; only prompts of equal length are decoded together",
    Way(
        pads=False, moves=False
    ): "some of its states are not in its cache; only prompts of equal length are decoded "
    "together, and rows that have ended make room only together",
}


def way_of(model: PreTrainedModel) -> Way:
    """Return the fastest way to run rows together that gives a few tokens the logits of each row alone.

    A message mentions a slow one once. Raises `UserError` for a model without such a way.
    """
    for way, message in _WAYS.items():
        found, is_new = fault(
            model,
            way,
            partial(_two_of_each, model, way),
            lengths=(7, 12) if way.pads else (7, 7),
        )
        if found is None:
            if is_new and message:
                say(f"{type(model).__name__}: {message}, which takes longer")
            return way
    raise UserError(
        f"{type(model).__name__}: decoding with a cache {found}, so allo cannot sample from it or evaluate it. Use another "
        "model, or another version of transformers."
    )


def _two_of_each(model: PreTrainedModel, way: Way) -> AbstractContextManager[Rows]:
    return nullcontext(RepeatedPrompts(model, num_generations=2, way=way))


def prefill(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], cache: DynamicCache
) -> tuple[Tensor, Tensor, Tensor]:
    """Read the prompts into an empty cache, left-padded to the longest.

    Returns:
        Logits [prompts, vocabulary] after each prompt, and the ids and attention mask [prompts, longest] int64.
    """
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    input_ids, mask = input_ids.to(model.device), mask.to(model.device)
    name = cache_argument(type(model))
    logits = _logits(model, input_ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache, name=name)
    return logits, input_ids, mask


def _logits(
    model: PreTrainedModel,
    input_ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: DynamicCache,
    *,
    name: str,
) -> Tensor:
    """Return logits [rows, vocabulary] after the last of `input_ids`, which are added to the cache.

    `name`: of the cache's argument. A model of states alone takes a mask of its input; after the prompt, nothing in it
    is padding.
    """
    logits: Tensor = model(
        input_ids=input_ids,
        attention_mask=mask if name != "cache_params" or mask.shape == input_ids.shape else None,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **{name: cache},
    ).logits[:, -1]
    return logits


class RepeatedPrompts:
    """A cache for any model; all rows begin together, so new prompts wait until the last row has finished."""

    takes_more = False  # prompts while rows are running

    def __init__(self, model: PreTrainedModel, *, num_generations: int, way: Way = FASTEST) -> None:
        self._model = model
        self._num_generations = num_generations
        self._way = way
        self._rope_length = rope_length(model.config)
        self._name = cache_argument(type(model))

    def admit(self, prompts: list[list[int]]) -> Tensor:
        """Begin `num_generations` rows for each of the first prompts; return logits [those prompts, vocabulary]."""
        each = self._num_generations
        if not self._way.pads:
            prompts = list(itertools.takewhile(lambda prompt: len(prompt) == len(prompts[0]), prompts))
        if not self._way.moves:  # a pass without a cache clears the states
            self._model(
                input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self._model.device), use_cache=False
            )
        read = prompts if self._way.moves else [prompt for prompt in prompts for _ in range(each)]
        self._cache = DynamicCache(config=self._model.config)
        logits, self._ids, self._mask = prefill(self._model, read, self._cache)
        self._places = torch.arange(len(prompts) * each, device=logits.device)
        if not self._way.moves:
            return logits[::each]
        self.keep(self._places // each)
        return logits

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows at these indices, in this order."""
        if not self._way.moves:
            self._places = self._places[rows]
            return
        self._cache.reorder_cache(rows)
        self._ids, self._mask = self._ids[rows], self._mask[rows]

    def step(self, token_ids: Tensor) -> Tensor:
        """Return logits [rows, vocabulary] after one more token per row, `token_ids` [rows]."""
        if not self._way.moves:
            token_ids = self._ids[:, -1].index_copy(0, self._places, token_ids)
        self._ids = torch.cat([self._ids, token_ids[:, None]], dim=1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(token_ids), 1)], dim=1)
        new = self._ids[:, -1:]
        if self._ids.shape[1] - 1 == self._rope_length:  # from here on, all keys have other angles
            self._cache, new = DynamicCache(config=self._model.config), self._ids
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        logits = _logits(self._model, new, self._mask, positions, self._cache, name=self._name)
        return logits if self._way.moves else logits[self._places]

    @property
    def states(self) -> list[Tensor]:
        """Return the cache's tensors: keys and values, or states."""
        return [
            held
            for layer in self._cache.layers
            for value in vars(layer).values()
            for held in (value.values() if isinstance(value, dict) else [value])
            if isinstance(held, Tensor)
        ]

    def rehearse(self, read: int) -> None:
        """Grow keys and values as if each row had read so many more tokens."""
        for layer in self._cache.layers:
            if isinstance(layer, DynamicLayer) and layer.is_initialized:
                length, window = layer.keys.shape[2], getattr(layer, "sliding_window", None)
                more = read if window is None else max(0, min(read, window - 1 - length))
                layer.keys, layer.values = (pad(held, (0, 0, 0, more)) for held in (layer.keys, layer.values))
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length += read
        self._ids, self._mask = pad(self._ids, (0, read)), pad(self._mask, (0, read), value=1)
