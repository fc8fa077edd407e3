"""Rows of token ids to padded batches; every position keeps its meaning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Tensor]


def pad(rows: Sequence[tuple[Sequence[int], Sequence[float]]], *, pad_id: int) -> Batch:
    """Right-pad (prompt ids, completion ids) rows.

    Returns `input_ids` [B, T] int64, `attention_mask` [B, T] int64 and `completion_mask` [B, T] bool,
    built from the ids' own lengths: a pad id inside a text is still text.
    """
    length = max(len(prompt) + len(completion) for prompt, completion in rows)
    input_ids = torch.full((len(rows), length), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    completion_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor([*prompt, *completion])
        attention_mask[row, :end] = 1
        completion_mask[row, len(prompt) : end] = True
    return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}


@dataclass(frozen=True)
class PairCollator:
    """Preference pairs -> rows 0..B-1 chosen, rows B..2B-1 rejected."""

    pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        chosen = [(row["prompt_ids"], row["chosen_ids"]) for row in rows]
        rejected = [(row["prompt_ids"], row["rejected_ids"]) for row in rows]
        return pad(chosen + rejected, pad_id=self.pad_id)


@dataclass(frozen=True)
class CompletionCollator:
    """Completions -> rows; `token_weights` [B, T] fp32, 0 outside the completion (all 1 where a row has none)."""

    pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        batch = pad([(row["prompt_ids"], row["completion_ids"]) for row in rows], pad_id=self.pad_id)
        weights = torch.zeros(batch["input_ids"].shape)
        for place, row in enumerate(rows):
            start, length = len(row["prompt_ids"]), len(row["completion_ids"])
            weights[place, start : start + length] = torch.tensor(row.get("token_weights", 1.0))
        return batch | {"token_weights": weights}
