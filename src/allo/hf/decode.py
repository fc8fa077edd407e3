"""The decoding loop: prompts' ids in, sampled ids out, for any causal language model with a key-value cache.

Left padding lives in this file only. It differs from transformers' `generate` in what costs time: completions of a
prompt share its prefill, the nucleus is found without sorting the vocabulary, the cache grows in place, and
rows that have ended leave the batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

CHECK_EVERY = 4  # steps between looks at which rows have ended; each look waits for the device
COMPACT_SHARE = 0.25  # of the rows must have ended before the others are copied together
CANDIDATES = 128  # tokens that usually hold the nucleus; rows where they do not are sorted whole
SPARE_POSITIONS = 64  # by which a full key-value buffer grows


def decode(
    model: PreTrainedModel,
    prompts: list[list[int]],
    uniforms: Tensor,
    *,
    num_generations: int,
    choose: Callable[[Tensor, Tensor], Tensor],
    eos: list[int],
    has_stopped: Callable[[list[int]], bool] | None,
) -> list[list[int]]:
    """Continue every prompt `num_generations` times; row p * num_generations + g continues prompts[p].

    Args:
        uniforms: [max_new_tokens, rows] float32 in [0, 1), what each step draws its tokens with. A row's
            numbers do not depend on which other rows have ended.
        choose: (logits [rows, vocabulary], uniforms [rows]) -> token ids [rows].
        eos: ids that end a row.
        has_stopped: whether a row's ids end it for another reason; asked now and then, so a row may run on
            for a few tokens. None where only EOS ends rows.

    Returns:
        For each row its ids up to and with the first of `eos`, or max_new_tokens of them.
    """
    device, (max_new_tokens, num_rows) = model.device, uniforms.shape
    input_ids, mask = _pad_left(prompts, pad_id=eos[0], room=max_new_tokens)
    longest, mask = input_ids.shape[1], mask.to(device)

    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]

    def next_logits(token_ids: Tensor, num_read: int) -> Tensor:
        """Logits [rows, vocabulary] after `token_ids`, the last of the `num_read` positions read so far."""
        positions = (mask[:, :num_read].cumsum(-1) - 1).clamp_(min=0)
        return model(
            input_ids=token_ids,
            attention_mask=mask[:, :num_read],
            position_ids=positions[:, -token_ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    logits = next_logits(input_ids.to(device), longest).repeat_interleave(num_generations, dim=0)
    cache.batch_repeat_interleave(num_generations)
    mask = mask.repeat_interleave(num_generations, dim=0)

    # Filled with EOS, so that a row which leaves the batch early reads as ended.
    tokens = torch.full((num_rows, max_new_tokens), eos[0], device=device)
    eos_ids = torch.tensor(eos, device=device)
    rows = torch.arange(num_rows, device=device)  # those still in the batch
    ended = torch.zeros(num_rows, dtype=torch.bool, device=device)  # of `rows`
    for step in range(max_new_tokens):
        chosen = choose(logits, uniforms[step, rows])
        tokens[rows, step] = chosen
        ended |= (chosen[:, None] == eos_ids).any(-1)
        if step + 1 == max_new_tokens:
            break
        if (step + 1) % CHECK_EVERY == 0:
            if has_stopped is not None:
                so_far = tokens[rows, : step + 1].tolist()
                ended |= torch.tensor([has_stopped(ids) for ids in so_far], device=device)
            running = (~ended).nonzero().squeeze(-1)
            if len(running) == 0:
                break
            if len(running) <= (1 - COMPACT_SHARE) * len(rows):
                cache.batch_select_indices(running)
                mask, rows, chosen, ended = (x[running] for x in (mask, rows, chosen, ended))
        logits = next_logits(chosen[:, None], longest + step + 1)
    return [_up_to_first(ids, set(eos)) for ids in tokens.tolist()]


def _pad_left(prompts: list[list[int]], *, pad_id: int, room: int) -> tuple[Tensor, Tensor]:
    """Ids [prompts, longest] and an attention mask [prompts, longest + room], both int64."""
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.ones(len(prompts), longest + room, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, : longest - len(prompt)] = 0
    return input_ids, mask


def take_most_probable(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Greedy decoding: logits [rows, vocabulary] -> ids [rows]; the uniforms are not needed."""
    return logits.argmax(-1)


def draw(logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """Draw one token a row from softmax(logits / temperature), restricted to its nucleus.

    The nucleus is the smallest set of most probable tokens whose probability reaches `top_p`. A token is
    drawn by inverting the cumulative distribution over it, in fp32.

    Args:
        logits: [rows, vocabulary], any floating dtype.
        uniforms: [rows] float32 in [0, 1).

    Returns:
        [rows] int64 token ids.
    """
    probs = (logits.float() / temperature).softmax(-1)
    if top_p == 1:
        cumulative = probs.cumsum(-1)
        return _invert(cumulative, cumulative[:, -1:], uniforms)
    # On an accelerator a sort is cheaper than to wait for the answer to "do the candidates suffice?".
    num_candidates = min(CANDIDATES, probs.shape[1]) if probs.device.type == "cpu" else probs.shape[1]
    ids, reached = _draw_from_top(probs, uniforms, top_p=top_p, num_candidates=num_candidates)
    if num_candidates < probs.shape[1]:
        wide = (reached < top_p).nonzero().squeeze(-1)
        if len(wide):
            ids[wide], _ = _draw_from_top(
                probs[wide], uniforms[wide], top_p=top_p, num_candidates=probs.shape[1]
            )
    return ids


class GrowingLayer(DynamicLayer):
    """A cache layer that writes into spare room, where its parent copies all positions for every token."""

    keys: Tensor
    values: Tensor
    buffers: tuple[Tensor, Tensor] | None = None  # of keys, values: [rows, heads, capacity, head size]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append positions; return all keys and values, [rows, heads, positions, head size]."""
        if not self.is_initialized:
            return super().update(key_states, value_states)
        old = self.keys.shape[2]
        new = old + key_states.shape[2]
        if self.buffers is None or self.buffers[0].shape[2] < new:
            self.buffers = (_with_room(self.keys, new), _with_room(self.values, new))
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, old:new] = states
        self.keys, self.values = (buffer[:, :, :new] for buffer in self.buffers)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row; the rows then are others than those in the buffers."""
        super().batch_repeat_interleave(repeats)
        self.buffers = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at `indices`; the rows then are others than those in the buffers."""
        super().batch_select_indices(indices)
        self.buffers = None


def _with_room(states: Tensor, num_positions: int) -> Tensor:
    rows, heads, old, size = states.shape
    buffer = states.new_empty(rows, heads, num_positions + SPARE_POSITIONS, size)
    buffer[:, :, :old] = states
    return buffer


def _draw_from_top(
    probs: Tensor, uniforms: Tensor, *, top_p: float, num_candidates: int
) -> tuple[Tensor, Tensor]:
    """Ids [rows] drawn from the nucleus among the candidates, and the candidates' probability [rows]."""
    top, ids = probs.topk(num_candidates)
    cumulative = top.cumsum(-1)
    last = (cumulative[:, :-1] < top_p).sum(-1, keepdim=True)
    index = _invert(cumulative, cumulative.gather(-1, last), uniforms)
    return ids.gather(-1, index[:, None]).squeeze(-1), cumulative[:, -1]


def _invert(cumulative: Tensor, mass: Tensor, uniforms: Tensor) -> Tensor:
    """First index whose cumulative probability exceeds uniforms * mass; mass [rows, 1]."""
    # Rounding up to the mass itself would reach past the last token that has any probability.
    target = torch.minimum(uniforms[:, None] * mass, torch.nextafter(mass, torch.zeros_like(mass)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def _up_to_first(ids: list[int], ends: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: end + 1]
