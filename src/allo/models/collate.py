"""Batches from rows of token ids; every token keeps its meaning, wherever it is placed.

The model reads rows of a prompt and its completion. With a shared prefix, a row is a prompt and several completions,
each of which sees only the prompt and itself. The losses see the same in both cases: C completions of at most L
tokens, [C, L].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Batch = dict[str, Tensor]
Ids = Sequence[int]


class _Completion(NamedTuple):
    """A completion: `ids` begin at column `start` of `row`; column `before` predicts the first of them."""

    row: int
    before: int
    start: int
    ids: Ids


def pad(rows: Sequence[tuple[Ids, Ids]], *, pad_id: int) -> Batch:
    """Right-pad (prompt ids, completion ids) rows.

    For C rows of at most T tokens, with completions of at most L, return `input_ids` [C, T] int64 and
    `attention_mask` [C, T] int64. The mask follows the rows' lengths: a pad id within a text is still text. For the
    completions, return `targets` [C, L] int64, `completion_mask` [C, L] bool and `sources` [C, L] int64. A source is
    the place in the flattened rows whose hidden state predicts the target.
    """
    completions = [
        _Completion(row, len(prompt) - 1, len(prompt), ids) for row, (prompt, ids) in enumerate(rows)
    ]
    return _fill([[*prompt, *ids] for prompt, ids in rows], completions, pad_id=pad_id)


def share_prefix(rows: Sequence[tuple[Ids, Ids, Ids]], *, pad_id: int) -> Batch:
    """Put a prompt and its two completions into one row, so that the prompt is computed once.

    For B (prompt, first, second), return `pad`'s tensors with B rows and 2 * B completions, all first ones before all
    second ones. `segments` [B, T] int8 is 0 in the prompt, 1 in the first completion, 2 in the second and 3 in the
    padding. In `position_ids` [B, T] int64, both completions continue after the prompt.
    """
    firsts = [_Completion(row, len(p) - 1, len(p), first) for row, (p, first, _) in enumerate(rows)]
    seconds = [
        _Completion(row, len(p) - 1, len(p) + len(first), second)
        for row, (p, first, second) in enumerate(rows)
    ]
    batch = _fill([[*p, *first, *second] for p, first, second in rows], firsts + seconds, pad_id=pad_id)
    lengths = torch.tensor([[len(ids) for ids in row] for row in rows])
    ends = lengths.cumsum(-1)
    column = torch.arange(batch["input_ids"].shape[1])
    segments = (column >= ends[:, :, None]).sum(1)
    positions = torch.where(segments < 2, column, column - lengths[:, 1:2])
    return batch | {
        "segments": segments.to(torch.int8),
        "position_ids": positions.where(
            segments < 3, 0
        ),  # padding could lie beyond the model's last position
    }


def _fill(rows: Sequence[Ids], completions: Sequence[_Completion], *, pad_id: int) -> Batch:
    input_ids = torch.full((len(rows), max(map(len, rows))), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
    targets = torch.zeros(len(completions), max(len(each.ids) for each in completions), dtype=torch.int64)
    sources, mask = torch.zeros_like(targets), torch.zeros_like(targets, dtype=torch.bool)
    for place, (row, before, start, ids) in enumerate(completions):
        begin, length = row * input_ids.shape[1], len(ids)
        targets[place, :length] = torch.tensor(ids)
        sources[place, :1] = begin + before
        sources[place, 1:length] = begin + torch.arange(start, start + length - 1)
        mask[place, :length] = True
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "sources": sources,
        "targets": targets,
        "completion_mask": mask,
    }


@dataclass(frozen=True)
class PairCollator:
    """A collator of preference pairs: completions 0..B-1 are chosen, B..2B-1 rejected.

    With `shared_prefix`, each pair is one row. Pairs with reference log-probs also give `ref_logps` [2B, L] fp32.
    """

    pad_id: int
    shared_prefix: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        if self.shared_prefix:
            batch = share_prefix(
                [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows],
                pad_id=self.pad_id,
            )
        else:
            sides = [(row["prompt_ids"], row[f"{side}_ids"]) for side in SIDES for row in rows]
            batch = pad(sides, pad_id=self.pad_id)
        logps = [row[f"{side}_ref_logps"] for side in SIDES for row in rows if f"{side}_ref_logps" in row]
        return batch | _columns("ref_logps", logps, like=batch["targets"])

    def num_tokens(self, row: Mapping[str, Any]) -> int:
        """Return the tokens that the row adds to a batch in which it is the longest."""
        prompt, *sides = (len(row[f"{part}_ids"]) for part in ("prompt", *SIDES))
        return prompt + sum(sides) if self.shared_prefix else 2 * (prompt + max(sides))

    def num_read(self, row: Mapping[str, Any]) -> int:
        """Return the row's own tokens, without padding."""
        prompt, *sides = (len(row[f"{part}_ids"]) for part in ("prompt", *SIDES))
        return prompt * (1 if self.shared_prefix else 2) + sum(sides)


@dataclass(frozen=True)
class CompletionCollator:
    """A collator of completions; `token_weights` [C, L] fp32 are 0 outside the completion, 1 by default.

    Completions with reference log-probs also give `ref_logps` [C, L] fp32.
    """

    pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        batch = pad([(row["prompt_ids"], row["completion_ids"]) for row in rows], pad_id=self.pad_id)
        targets = batch["targets"]
        weights = [row.get("token_weights") or [1.0] * len(row["completion_ids"]) for row in rows]
        logps = [row["completion_ref_logps"] for row in rows if "completion_ref_logps" in row]
        return (
            batch
            | _columns("token_weights", weights, like=targets)
            | _columns("ref_logps", logps, like=targets)
        )

    def num_tokens(self, row: Mapping[str, Any]) -> int:
        """Return the tokens that the row adds to a batch in which it is the longest."""
        return len(row["prompt_ids"]) + len(row["completion_ids"])

    num_read = num_tokens


class FeedbackCollator(CompletionCollator):
    """A collator of labelled completions; `label` [C] bool is true for good ones."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        return super().__call__(rows) | {"label": torch.tensor([row["label"] for row in rows])}


SIDES = ("chosen", "rejected")


def _columns(name: str, values: Sequence[Sequence[float] | Tensor], *, like: Tensor) -> Batch:
    """Return per-token values, one row per completion, as `name` [C, L] fp32; nothing if there are none."""
    if not values:
        return {}
    column = torch.zeros(like.shape)
    for place, each in enumerate(values):
        column[place, : len(each)] = torch.as_tensor(each)
    return {name: column}
