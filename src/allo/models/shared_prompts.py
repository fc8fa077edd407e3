"""Rows that read their prompt's keys and values in place, stored once for all completions of the prompt.

A step multiplies all queries of a prompt with its keys in one product. Each row's query is also multiplied with the
keys of its own sampled tokens. One softmax covers both. Completions copy nothing of their prompt. Rows of different
ages run side by side, so a waiting prompt can replace finished rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import sdpa_mask

from allo.console import say
from allo.models.probe import Rows, fault
from allo.models.repeated_prompts import prefill

ATTENTION = "allo_shared_prompts"
PREFILL_TOKENS = 1024  # read at once, padding included
SPARE_POSITIONS = 32  # by which the rows' own keys and values grow

# Keys and values of each layer, each [rows or prompts, heads, positions, head size].
KeysValues = list[tuple[Tensor, Tensor]]


def can_share(model: PreTrainedModel) -> bool:
    """Return True if the model's attention can be replaced, with the same logits on a few tokens.

    It must be SDPA over all positions or a sliding window. Any other model repeats its prompts; if its logits differ,
    a message says so once.
    """
    if not _is_plain_sdpa(model):
        return False
    if any(isinstance(param, FakeTensor) for param in model.parameters()):
        return True  # in a rehearsal, whose weights have no values

    @contextmanager
    def rows() -> Iterator[Rows]:
        with shared_attention(model):
            yield SharedPrompts(model, num_generations=2, max_new_tokens=5)

    found, is_new = fault(model, "shared", rows)
    if found is not None and is_new:
        say(
            f"{type(model).__name__}: a prompt shared by its completions {found}; each completion keeps a copy of its "
            "prompt's keys and values"
        )
    return found is None


def _is_plain_sdpa(model: PreTrainedModel) -> bool:
    layers = DynamicCache(config=model.config).layers
    return (
        model._supports_attention_backend
        and model.config._attn_implementation == "sdpa"
        and {type(layer) for layer in layers} <= {DynamicLayer, DynamicSlidingWindowLayer}
        and getattr(model.config, "attention_chunk_size", None) is None
    )


class SharedPrompts(DynamicCache):
    """A cache of P prompts and of R rows that continue them, used within `shared_attention`.

    A prompt's keys are left-padded to those of the longest prompt. A row's own keys begin at position 0 of a buffer,
    whatever its age, so all buffers have the same width.
    """

    takes_more = True  # prompts while rows are running

    def __init__(self, model: PreTrainedModel, *, num_generations: int, max_new_tokens: int) -> None:
        super().__init__()  # without layers: keys and values are kept here
        self._model = model
        self._num_generations = num_generations
        self._max_own = max_new_tokens - 1  # the last token is not read
        self._windows = [
            getattr(layer, "sliding_window", None) for layer in DynamicCache(config=model.config).layers
        ]
        self.prompt_states: KeysValues = []
        self.own_states: KeysValues = []
        none = torch.zeros(0, dtype=torch.int64, device=model.device)
        self._prompt_lengths = none  # [P]
        self._prompt_of = none  # [R]
        self._generation_of = none  # [R], below num_generations
        self._lengths = none  # [R], a row's own tokens read so far
        self._written: list[int] = []  # layers that wrote keys in this step
        self._read: list[int] = []  # layers whose attention read the prompts
        self._oldest = 0  # the largest of the lengths, known without asking the device
        self._biases: dict[int | None, Tensor] = {}  # by window, see `_bias`

    def admit(self, prompts: list[list[int]]) -> Tensor:
        """Begin `num_generations` rows per prompt, after the others; return logits [prompts, vocabulary]."""
        logits, caches = [], []
        for group in _groups(prompts):
            caches.append(DynamicCache())
            with _attention(self._model, "sdpa"):
                logits.append(prefill(self._model, group, caches[-1])[0])
        self._append(caches, self._prompt_lengths.new_tensor([len(prompt) for prompt in prompts]))
        return torch.cat(logits)

    def _append(self, caches: list[DynamicCache], lengths: Tensor) -> None:
        """Add prompts of these lengths, whose keys and values the caches hold in this order."""
        new = [
            [(layer.keys, layer.values) for layer in layers]
            for layers in zip(*(cache.layers for cache in caches), strict=True)
        ]
        if not self.prompt_states:
            self.prompt_states = [(keys[:0, :, :0], values[:0, :, :0]) for (keys, values), *_ in new]
            self.own_states = list(self.prompt_states)
        for number, more in enumerate(new):
            keys, values = zip(self.prompt_states[number], *more, strict=True)
            self.prompt_states[number] = (_stacked(keys), _stacked(values))
        num_new = len(lengths) * self._num_generations
        _change(self.own_states, lambda states: pad(states, (0, 0, 0, 0, 0, 0, 0, num_new)))
        counter = torch.arange(num_new, device=lengths.device)
        self._prompt_of = torch.cat(
            [self._prompt_of, len(self._prompt_lengths) + counter // self._num_generations]
        )
        self._generation_of = torch.cat([self._generation_of, counter % self._num_generations])
        self._lengths = torch.cat([self._lengths, torch.zeros_like(counter)])
        self._prompt_lengths = torch.cat([self._prompt_lengths, lengths])

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows at these indices, in this order, and the prompts that they continue."""
        self._generation_of, self._lengths = self._generation_of[rows], self._lengths[rows]
        prompts, self._prompt_of = self._prompt_of[rows].unique(return_inverse=True)
        if len(prompts) < len(self._prompt_lengths):
            self._prompt_lengths = self._prompt_lengths[prompts]
            longest = int(self._prompt_lengths.max()) if len(prompts) else 0
            _change(self.prompt_states, lambda states: states[prompts, :, states.shape[2] - longest :])
        _change(self.own_states, lambda states: states[rows])
        self._oldest = int(self._lengths.max()) if len(rows) else 0

    def step(self, token_ids: Tensor) -> Tensor:
        """Return logits [rows, vocabulary] after one more token per row, `token_ids` [rows].

        A row that has reached its last position stays there until `keep` drops it.
        """
        if self.own_states[0][0].shape[2] <= self._oldest:
            _change(self.own_states, lambda states: pad(states, (0, 0, 0, SPARE_POSITIONS)))
        self._biases = {window: self._bias(window) for window in set(self._windows)}
        self._written, self._read = [], []
        logits = self._model(
            input_ids=token_ids[:, None],
            position_ids=self._positions()[:, None],
            past_key_values=self,
            use_cache=True,
            logits_to_keep=1,
            shared_prompts=self,
        ).logits[:, -1]
        if sorted(self._read) != list(range(len(self.prompt_states))):
            raise ValueError(f"{type(self._model).__name__}: not every layer's attention read the prompts")
        self._lengths = (self._lengths + 1).clamp_(max=self._max_own)
        self._oldest = min(self._oldest + 1, self._max_own)
        return logits

    def _positions(self) -> Tensor:
        """Return the position of each row's next token, [R]."""
        return self._prompt_lengths[self._prompt_of] + self._lengths

    def _bias(self, window: int | None) -> Tensor:
        """Return 0 at the positions that a row sees, otherwise -inf: [R, 1, 1, longest + capacity] fp32."""
        device = self._lengths.device
        longest, capacity = self.prompt_states[0][0].shape[2], self.own_states[0][0].shape[2]
        lengths = self._prompt_lengths[self._prompt_of, None]
        in_prompt = torch.arange(longest, device=device) - (longest - lengths)
        own = torch.arange(capacity, device=device).expand(len(lengths), -1)
        seen = torch.cat([in_prompt >= 0, own <= self._lengths[:, None]], dim=1)
        if window is not None:
            seen &= torch.cat([in_prompt, lengths + own], dim=1) > self._positions()[:, None] - window
        return torch.zeros(seen.shape, device=device).masked_fill_(~seen, -torch.inf)[:, None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the rows' next keys and values; return their own, [R, heads, capacity, head size]."""
        self._written.append(layer_idx)
        rows = torch.arange(len(self._lengths), device=self._lengths.device)
        for buffer, states in zip(self.own_states[layer_idx], (key_states, value_states), strict=True):
            buffer[rows, :, self._lengths] = states[:, :, 0]
        return self.own_states[layer_idx]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer_idx: int, scaling: float) -> Tensor:
        """Compute the attention of each row's query to its prompt and its own tokens, softmax in fp32.

        Args:
            query: [R, query heads, 1, head size]; a key head serves consecutive query heads.
            key, value: as returned by `update`.

        Returns:
            [R, 1, query heads, head size of values].
        """
        self._read.append(layer_idx)
        if self._read != self._written:  # a layer that runs several times keeps several layers of keys
            raise ValueError(f"layers {self._read} read the keys of layers {self._written}")
        prompt_keys, prompt_values = self.prompt_states[layer_idx]
        heads, longest = prompt_keys.shape[1:3]
        query = query.reshape(len(query), heads, -1, query.shape[-1])
        scores = torch.cat(
            [
                self._by_row(self._by_prompt(query) @ prompt_keys.transpose(2, 3)),
                query @ key.transpose(2, 3),
            ],
            dim=-1,
        )
        probs = torch.add(self._biases[self._windows[layer_idx]], scores, alpha=scaling).softmax(-1)
        probs = probs.to(query.dtype)
        out = probs[..., longest:] @ value
        out += self._by_row(self._by_prompt(probs[..., :longest]) @ prompt_values)
        return out.reshape(len(query), 1, -1, value.shape[-1])

    def _by_prompt(self, states: Tensor) -> Tensor:
        """Regroup [R, heads, queries, n] to [P, heads, num_generations * queries, n]; dropped rows become zeros."""
        num_prompts, num_generations = len(self._prompt_lengths), self._num_generations
        _, heads, queries, size = states.shape
        grid = states.new_zeros(num_prompts, heads, num_generations, queries, size)
        grid[self._prompt_of, :, self._generation_of] = states
        return grid.flatten(2, 3)

    def _by_row(self, states: Tensor) -> Tensor:
        """Regroup [P, heads, num_generations * queries, n] back to [R, heads, queries, n]."""
        grid = states.unflatten(2, (self._num_generations, -1))
        return grid[self._prompt_of, :, self._generation_of]


def _groups(prompts: list[list[int]]) -> Iterator[list[list[int]]]:
    """Group the prompts in order, each group at most PREFILL_TOKENS with padding, or a single prompt."""
    group: list[list[int]] = []
    for prompt in prompts:
        longest = max(len(prompt), *(len(other) for other in group), 0)
        if group and longest * (len(group) + 1) > PREFILL_TOKENS:
            yield group
            group = []
        group.append(prompt)
    yield group


def _change(states: KeysValues, change: Callable[[Tensor], Tensor]) -> None:
    """Change one layer at a time, so that only one layer exists twice."""
    for number, (keys, values) in enumerate(states):
        states[number] = (change(keys), change(values))


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the parts, each left-padded to the longest."""
    longest = max(part.shape[2] for part in parts)
    return torch.cat([pad(part, (0, 0, longest - part.shape[2], 0)) for part in parts])


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prompts: SharedPrompts | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface for one step; prompts are read with SDPA.

    Raises `ValueError` if the model's code has dropped `shared_prompts`.
    """
    if shared_prompts is None:
        raise ValueError(f"{type(module).__name__} did not pass on `shared_prompts`")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    assert isinstance(module.layer_idx, int)
    return shared_prompts.attend(query, key, value, layer_idx=module.layer_idx, scaling=scaling), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def shared_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Give the model the attention that `SharedPrompts` needs, within the block."""
    return _attention(model, ATTENTION)


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
