"""The decoding loop, from prompt ids to sampled ids, for any causal language model with a key-value cache.

It is faster than transformers' `generate`: completions of a prompt share its prefill and, if the model's attention
can be exchanged, its keys and values. Rows that have ended leave, and waiting prompts take their place.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo.models.model_checks import rope_length
from allo.models.repeated_prompts import RepeatedPrompts, way_of
from allo.models.shared_prompts import SharedPrompts, can_share, shared_attention

CHECK_EVERY = 4  # steps between looks at which rows have ended; each look waits for the device
LEAVING_SHARE = 0.125  # of the rows must have ended before the others are copied together


def decode(
    model: PreTrainedModel,
    prompts: list[list[int]],
    uniforms: Tensor,
    *,
    max_rows: int,
    choose: Callable[[Tensor, Tensor], Tensor],
    eos: list[int],
    has_stopped: Callable[[list[int]], bool] | None,
) -> list[list[int]]:
    """Continue every prompt num_generations times; row p * num_generations + g continues prompts[p].

    Args:
        prompts: they begin in this order; neighbours of about equal length need little padding.
        uniforms: [prompts * num_generations, max_new_tokens] float32 in [0, 1), from which a row draws
            its tokens; so a row's tokens do not depend on which others are decoded beside it.
        max_rows: rows decoded together, at least num_generations.
        choose: (logits [rows, vocabulary], uniforms [rows]) -> token ids [rows].
        eos: ids that end a row.
        has_stopped: whether a row's ids end it for another reason; checked every few steps, so a row may
            run on for a few tokens. None if only EOS ends rows.

    Returns:
        For each row its ids up to and with the first of `eos`, or max_new_tokens of them.
    """
    num_generations, max_new_tokens = uniforms.shape[0] // len(prompts), uniforms.shape[1]
    drawn = _Drawn(uniforms, choose=choose, eos=eos, has_stopped=has_stopped)
    # Rows beyond this length have other angles: they cross it together, and change all their keys.
    limit = rope_length(model.config)
    crosses = limit is not None and max(map(len, prompts)) + max_new_tokens > limit
    if not crosses and can_share(model):
        with shared_attention(model):
            shared = SharedPrompts(model, num_generations=num_generations, max_new_tokens=max_new_tokens)
            _run(shared, prompts, drawn, max_rows=max_rows)
    else:
        way = way_of(model)
        way = replace(way, pads=way.pads and not crosses)
        repeated = RepeatedPrompts(model, num_generations=num_generations, way=way)
        _run(repeated, prompts, drawn, max_rows=max_rows)
    return drawn.ids(drawn.all_rows)


def _run(
    running: SharedPrompts | RepeatedPrompts, prompts: list[list[int]], drawn: "_Drawn", *, max_rows: int
) -> None:
    """Draw every row to its end, at most `max_rows` together."""
    num_generations = len(drawn.all_rows) // len(prompts)
    rows = drawn.all_rows[:0]  # those in `running`
    num_begun = 0  # prompts
    youngest = 0  # tokens of the rows that began last
    for step in itertools.count():
        if step % CHECK_EVERY == 0 or youngest == drawn.limit:
            staying = drawn.unfinished(rows)
            if len(staying) <= (1 - LEAVING_SHARE) * len(rows):
                if len(rows):
                    running.keep(staying)
                    rows = rows[staying]
                room = max((max_rows - len(rows)) // num_generations, 0 if len(rows) else 1)
                waiting = prompts[num_begun : num_begun + room]
                if waiting and (running.takes_more or not len(rows)):
                    logits = running.admit(waiting).repeat_interleave(num_generations, dim=0)
                    new = drawn.all_rows[num_begun * num_generations :][: len(logits)]
                    drawn.append(new, logits)
                    rows, youngest = torch.cat([rows, new]), 1
                    num_begun += len(new) // num_generations
        if not len(rows):
            return
        drawn.append(rows, running.step(drawn.last(rows)))
        youngest += 1


class _Drawn:
    """The tokens that each row has drawn; a row with all its tokens no longer changes."""

    def __init__(
        self,
        uniforms: Tensor,
        *,
        choose: Callable[[Tensor, Tensor], Tensor],
        eos: list[int],
        has_stopped: Callable[[list[int]], bool] | None,
    ) -> None:
        self._uniforms, self._choose, self._has_stopped = uniforms, choose, has_stopped
        self._eos = torch.tensor(eos, device=uniforms.device)
        num_rows, self.limit = uniforms.shape
        self.all_rows = torch.arange(num_rows, device=uniforms.device)
        # One spare column, for rows that have ended but not left yet: they go on drawing.
        self._tokens = self.all_rows.new_zeros(num_rows, self.limit + 1)
        self._lengths = torch.zeros_like(self.all_rows)
        self._ended = self._lengths.bool()

    def append(self, rows: Tensor, logits: Tensor) -> None:
        """Add one token to each of these rows."""
        column = self._lengths[rows]
        chosen = self._choose(logits, self._uniforms[rows, column.clamp(max=self.limit - 1)])
        self._tokens[rows, column] = chosen
        self._lengths[rows] = (column + 1).clamp(max=self.limit)
        self._ended[rows] |= torch.isin(chosen, self._eos)

    def last(self, rows: Tensor) -> Tensor:
        return self._tokens[rows, self._lengths[rows] - 1]

    def unfinished(self, rows: Tensor) -> Tensor:
        """Return the indices into `rows` of those that have not ended."""
        if self._has_stopped is not None:
            stopped = [self._has_stopped(ids) for ids in self.ids(rows)]
            self._ended[rows] |= torch.tensor(stopped, dtype=torch.bool, device=rows.device)
        return (~self._ended[rows] & (self._lengths[rows] < self.limit)).nonzero().squeeze(-1)

    def ids(self, rows: Tensor) -> list[list[int]]:
        """Return the tokens of each of these rows, up to and with the first EOS."""
        ends = set(self._eos.tolist())
        return [
            _up_to_first(ids[:length], ends)
            for ids, length in zip(self._tokens[rows].tolist(), self._lengths[rows].tolist(), strict=True)
        ]


def _up_to_first(ids: list[int], ends: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: end + 1]
