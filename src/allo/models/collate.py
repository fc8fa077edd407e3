"""Batches from rows of token ids; every token keeps its meaning, wherever it is placed.

A row of the model is a prompt and its completions: one, both of a pair, or all that a step has of the prompt. Each
completion sees only the prompt and itself. The losses see the same in all cases: C completions of at most L tokens,
[C, L].
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

Batch = dict[str, Tensor]
Ids = Sequence[int]
Row = Mapping[str, Any]


_LONGEST = 4096
"""Tokens of a row with several completions: a kernel may need a mask of their square."""


class _Completion(NamedTuple):
    """A completion: `ids` begin at column `start` of `row`; column `before` predicts the first of them."""

    row: int
    before: int
    start: int
    ids: Ids


class _Row(NamedTuple):
    """A row of the model: the ids of its text, and for each completion in it, its number among all that are read."""

    number: int
    text: list[int]
    held: dict[tuple[int, ...], int]


def pad(completions: Sequence[tuple[Ids, Ids]], *, pad_id: int) -> Batch:
    """Lay (prompt ids, completion ids) out in rows of their own."""
    return lay_out(completions, range(len(completions)), pad_id=pad_id)


def lay_out(completions: Sequence[tuple[Ids, Ids]], places: Iterable[Hashable], *, pad_id: int) -> Batch:
    """Lay (prompt ids, completion ids) out in right-padded rows. Those of one place have the same prompt and one row.

    For R rows of at most T tokens, return `input_ids` [R, T] int64 and `attention_mask` [R, T] int64. The mask follows
    the rows' lengths: a pad id within a text is still text. For C completions of at most L tokens, return `targets`
    [C, L] int64, `completion_mask` [C, L] bool and `sources` [C, L] int64. A source is the place in the flattened rows
    whose hidden state predicts the target.

    If a row has several completions, `segments` [R, T] int16 is 0 in the prompt, n in its n-th completion and -1 in the
    padding. In `position_ids` [R, T] int64, every completion continues after the prompt. Equal completions of a row
    stand in it once. If there are any, `distinct` [D] int64 are the completions that are read, and `copies` [C] int64
    says which of these each completion is.
    """
    rows: dict[Hashable, _Row] = {}
    found: list[_Completion] = []
    distinct, copies = [], []
    for number, (place, (prompt, ids)) in enumerate(zip(places, completions, strict=True)):
        row = rows.setdefault(place, _Row(len(rows), list(prompt), {}))
        if (key := tuple(ids)) not in row.held:
            row.held[key] = len(found)
            distinct.append(number)
            found.append(_Completion(row.number, len(prompt) - 1, len(row.text), ids))
            row.text.extend(ids)
        copies.append(row.held[key])
    batch = _fill([row.text for row in rows.values()], [found[copy] for copy in copies], pad_id=pad_id)
    if len(found) > len(rows):
        batch |= _segments(found, batch["attention_mask"])
    if len(found) < len(completions):
        batch |= {"distinct": torch.tensor(distinct), "copies": torch.tensor(copies)}
    return batch


def lay_out_together(completions: Sequence[tuple[Ids, Ids]], *, pad_id: int, shared: bool) -> Batch:
    """Lay (prompt ids, completion ids) out so that few tokens are read: equal rows once and, if `shared`, prompts once.

    A row has at most `_LONGEST` tokens, or one completion.
    """
    apart = [(tuple(prompt), tuple(ids)) for prompt, ids in completions]
    if not shared:
        return lay_out(completions, apart, pad_id=pad_id)
    lengths: dict[Hashable, int] = {}
    rows: dict[Hashable, int] = {}  # a prompt's rows that are full
    places: dict[tuple[tuple[int, ...], tuple[int, ...]], Hashable] = {}
    for prompt, ids in apart:
        if (prompt, ids) in places:
            continue
        place = (prompt, rows.get(prompt, 0))
        if lengths.get(place, 0) + len(ids) > _LONGEST:
            rows[prompt] = rows.get(prompt, 0) + 1
            place = (prompt, rows[prompt])
        places[prompt, ids] = place
        lengths[place] = lengths.get(place, len(prompt)) + len(ids)
    longest = max(len(prompt) + len(ids) for prompt, ids in places)
    saves = len(lengths) * max(lengths.values()) <= len(places) * longest  # with the padding
    return lay_out(completions, [places[each] if saves else each for each in apart], pad_id=pad_id)


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


def _segments(completions: Sequence[_Completion], attention_mask: Tensor) -> Batch:
    segments = attention_mask.to(torch.int16) - 1
    # Padding has position 0: its columns could lie beyond the model's last position.
    position_ids = torch.arange(attention_mask.shape[1]) * attention_mask
    for row, before, start, ids in completions:
        end = start + len(ids)
        segments[row, start:end] = segments[row, :start].max() + 1
        position_ids[row, start:end] = torch.arange(before + 1, before + 1 + len(ids))
    return {"segments": segments, "position_ids": position_ids}


def grouped(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return rows with a `group`, the same number for rows of one prompt. Collators read what a group shares once."""
    numbers: dict[tuple[int, ...], int] = {}
    return [{**row, "group": numbers.setdefault(tuple(row["prompt_ids"]), len(numbers))} for row in rows]


@dataclass(frozen=True)
class Collator:
    """A collator of rows with a prompt and the completions of its `sides`: all of the first side, then the second.

    With `shared_prefix`, a row is one row of the model, and so are all rows of a `group`. Without, each completion is,
    and equal completions of a group are one. Rows with reference log-probs also give `ref_logps` [C, L] fp32.
    """

    pad_id: int
    shared_prefix: bool = False
    sides: ClassVar[tuple[str, ...]]

    def __call__(self, rows: Sequence[Row]) -> Batch:
        batch = lay_out(self._completions(rows), self._places(rows), pad_id=self.pad_id)
        logps = [row[name] for side in self.sides for row in rows if (name := f"{side}_ref_logps") in row]
        return batch | _columns("ref_logps", logps, like=batch["targets"])

    def apart(self, rows: Sequence[Row]) -> Batch:
        """Collate with a row of its own for each completion."""
        return pad(self._completions(rows), pad_id=self.pad_id)

    def num_tokens(self, rows: Sequence[Row]) -> int:
        """Return the tokens of a batch of these rows, padding included."""
        lengths = self._lengths(rows)
        return len(lengths) * max(lengths)

    def num_read(self, rows: Sequence[Row]) -> int:
        """Return the tokens of a batch of these rows, without padding."""
        return sum(self._lengths(rows))

    def _completions(self, rows: Sequence[Row]) -> list[tuple[Ids, Ids]]:
        return [(row["prompt_ids"], row[f"{side}_ids"]) for side in self.sides for row in rows]

    def _places(self, rows: Sequence[Row]) -> Iterator[Hashable]:
        """Yield a key for each completion: equal ones go into one row of the model."""
        for side in self.sides:
            for number, row in enumerate(rows):
                own = ("group", row["group"]) if "group" in row else ("row", number)
                if self.shared_prefix:
                    yield own
                else:
                    yield own, tuple(row[f"{side}_ids"]) if "group" in row else side

    def _lengths(self, rows: Sequence[Row]) -> list[int]:
        """Return the lengths of the model's rows."""
        lengths: dict[Hashable, dict[Ids | None, int]] = {}
        for place, (prompt, ids) in zip(self._places(rows), self._completions(rows), strict=True):
            own = lengths.setdefault(place, {None: len(prompt)})
            own[tuple(ids)] = len(ids)
        return [sum(own.values()) for own in lengths.values()]


SIDES = ("chosen", "rejected")


class PairCollator(Collator):
    """A collator of preference pairs: completions 0..B-1 are chosen, B..2B-1 rejected."""

    sides = SIDES


class CompletionCollator(Collator):
    """A collator of completions; `token_weights` [C, L] fp32 are 0 outside the completion, 1 by default."""

    sides = ("completion",)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        weights = [row.get("token_weights") or [1.0] * len(row["completion_ids"]) for row in rows]
        batch = super().__call__(rows)
        return batch | _columns("token_weights", weights, like=batch["targets"])


class FeedbackCollator(CompletionCollator):
    """A collator of labelled completions; `label` [C] bool is true for good ones."""

    def __call__(self, rows: Sequence[Row]) -> Batch:
        return super().__call__(rows) | {"label": torch.tensor([row["label"] for row in rows])}


def _columns(name: str, values: Sequence[Sequence[float] | Tensor], *, like: Tensor) -> Batch:
    """Return per-token values, one row per completion, as `name` [C, L] fp32; nothing if there are none."""
    if not values:
        return {}
    column = torch.zeros(like.shape)
    for place, each in enumerate(values):
        column[place, : len(each)] = torch.as_tensor(each)
    return {name: column}
