"""The change in likelihood of chosen and rejected, or good and bad answers, on rows of the run or on held-out ones."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from allo.files.batches import Dealing, in_turn
from allo.files.records import Feedback, Pair
from allo.models.collate import SIDES, lay_out_together
from allo.models.load import Model, Tokenizer
from allo.models.policy import per_token_logps, shares_prefix
from allo.models.rows import counted_completions, counted_pairs
from allo.stats.metrics import Estimate, auc, bootstrap, wilson

ROWS = 64
"""Completions that are read together at most; a pair has two."""
AtStart = Callable[[], AbstractContextManager[None]]
Rows = list[dict[str, Any]]
Found = list[dict[str, Any]]


@torch.inference_mode()
def likelihood(
    pairs: Sequence[Pair],
    model: Model,
    tokenizer: Tokenizer,
    at_start: AtStart,
    *,
    max_length: int,
    size: int = ROWS,
    deal: Dealing = in_turn,
) -> dict[str, Any]:
    """Return the mean log-ratio of a token to the starting model, in nats, of chosen and of rejected answers.

    `at_start` turns `model` into the starting model for a block; `size` completions are read together. `deal` computes
    the batches.
    """
    rows, _ = counted_pairs(tokenizer, map(vars, pairs), max_length=max_length)
    sums = torch.zeros(2, dtype=torch.float64)
    counts = torch.zeros(2)

    def summed(logps: Tensor, start: Tensor, mask: Tensor) -> Found:
        changes = [side.double().sum().item() for side in (logps - start).chunk(2)]
        return [{"sums": changes, "counts": [int(side.sum()) for side in mask.chunk(2)]}]

    batches = _Batches(rows, SIDES, max(1, size // 2), model, tokenizer, at_start, shares_prefix(model))
    for found in batches.each(summed, deal):
        sums += torch.tensor(found["sums"], dtype=torch.float64)
        counts += torch.tensor(found["counts"])
    chosen, rejected = (sums / counts).tolist()
    return {"chosen": chosen, "rejected": rejected, "num_pairs": len(rows)}


@torch.inference_mode()
def measured_pairs(
    pairs: Sequence[Pair],
    model: Model,
    tokenizer: Tokenizer,
    at_start: AtStart | None,
    *,
    beta: float,
    max_length: int,
    seed: int,
    size: int = ROWS,
    deal: Dealing = in_turn,
) -> dict[str, Any]:
    """Return a model's accuracies on held-out pairs and, unless it is the start itself, its changes from the start.

    `chosen_logp` and `rejected_logp` are an answer's mean log-likelihoods under the model.
    A pair's margin is beta times the difference between the log-ratios of chosen and rejected answer, DPO's implicit
    reward; it is right if the margin is above 0. By likelihood it is right if the chosen answer is likelier. Intervals
    are over prompts.
    """
    rows, counts = counted_pairs(tokenizer, map(vars, pairs), max_length=max_length)
    batches = _Batches(rows, SIDES, max(1, size // 2), model, tokenizer, at_start, shares_prefix(model))
    found = [_Ratios(**one) for one in batches.each(_of_pairs, deal)]
    groups = _Groups.of(rows, seed)
    levels = {
        "chosen_logp": groups.mean([[one.chosen_logp] for one in found]),
        "rejected_logp": groups.mean([[one.rejected_logp] for one in found]),
    }
    changes: dict[str, Any] = dict.fromkeys(("reward_accuracy", "margin", "chosen", "rejected"))
    if at_start is not None:
        margins = [beta * (sum(one.chosen) - sum(one.rejected)) for one in found]
        changes = {
            "reward_accuracy": groups.share([margin > 0 for margin in margins]),
            "margin": groups.mean([[margin] for margin in margins]),
            "chosen": groups.change([one.chosen for one in found]),
            "rejected": groups.change([one.rejected for one in found]),
        }
    return {
        "num_pairs": len(rows),
        "num_prompts": len(groups.members),
        "num_dropped": counts.dropped,
        "beta": beta,
        "likelihood_accuracy": groups.share([one.chosen_logp > one.rejected_logp for one in found]),
        **levels,
        **changes,
    }


@torch.inference_mode()
def measured_feedback(
    rows: Sequence[Feedback],
    model: Model,
    tokenizer: Tokenizer,
    at_start: AtStart | None,
    *,
    beta: float,
    max_length: int,
    seed: int,
    size: int = ROWS,
    deal: Dealing = in_turn,
) -> dict[str, Any]:
    """Return how well a model tells held-out good from bad completions and, unless it is the start itself, its changes.

    `reward_auc` is the chance that a good completion has a higher reward than a bad one: beta times its log-ratio to the
    start. `likelihood_auc` is that of a higher mean log-prob of a token. Intervals are over prompts.
    """
    kept, counts = counted_completions(tokenizer, map(vars, rows), max_length=max_length)
    batches = _Batches(kept, ("completion",), size, model, tokenizer, at_start, shares_prefix(model))
    found = list(batches.each(_of_completions, deal))
    sums: list[float] = [one["sum"] for one in found]
    means: list[float] = [one["mean"] for one in found]
    ratios: list[list[float]] = [one["ratios"] for one in found]
    good, groups = [row["label"] for row in kept], _Groups.of(kept, seed)
    bad = [not one for one in good]
    changes: dict[str, Any] = dict.fromkeys(("reward_auc", "good", "bad"))
    if at_start is not None:
        rewards = [beta * sum(one) for one in ratios]
        changes = {
            "reward_auc": _figure(auc(rewards, good, groups.members, seed=seed)),
            "good": groups.change(ratios, good),
            "bad": groups.change(ratios, bad),
        }
    return {
        "num_good": sum(good),
        "num_bad": len(good) - sum(good),
        "num_prompts": len(groups.members),
        "num_dropped": counts.dropped,
        "beta": beta,
        "likelihood_auc": _figure(auc(means, good, groups.members, seed=seed)),
        "good_logp": groups.mean_of(sums, good),
        "bad_logp": groups.mean_of(sums, bad),
        **changes,
    }


def _figure(found: Estimate | None) -> dict[str, float] | None:
    return None if found is None else found.figure


@dataclass(frozen=True)
class _Ratios:
    """One pair's log-ratios to the start, token by token, and its answers' log-likelihoods now."""

    chosen: list[float]
    rejected: list[float]
    chosen_logp: float
    rejected_logp: float


@dataclass(frozen=True)
class _Groups:
    """The pairs of each prompt, by their places: pairs of one prompt are not independent."""

    members: list[list[int]]
    seed: int

    @classmethod
    def of(cls, rows: Rows, seed: int) -> "_Groups":
        found: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            found[tuple(row["prompt_ids"])].append(place)
        return cls(list(found.values()), seed)

    def mean(self, values: Sequence[Sequence[float]]) -> dict[str, float]:
        """Return the mean over all values of all pairs."""
        return self._estimate(values).figure

    def mean_of(self, values: Sequence[float], counts: Sequence[bool]) -> dict[str, float] | None:
        """Return the mean of the values that count; None if none does."""
        own = [[value] if count else [] for value, count in zip(values, counts, strict=True)]
        return self.mean(own) if any(counts) else None

    def share(self, right: Sequence[bool]) -> dict[str, float]:
        """Return the share of right pairs, with Wilson's interval if every prompt has one pair."""
        if len(self.members) == len(right):
            return wilson(right).figure
        return self.mean([[float(each)] for each in right])

    def change(
        self, ratios: Sequence[Sequence[float]], counts: Sequence[bool] | None = None
    ) -> dict[str, Any] | None:
        """Return the mean change in log-likelihood of an answer, and of a token; None if no answer `counts`."""
        own = [one if counts is None or counts[place] else [] for place, one in enumerate(ratios)]
        if not any(own):
            return None
        return {"answer": self.mean([[sum(one)] if one else [] for one in own]), "token": self.mean(own)}

    def _estimate(self, values: Sequence[Sequence[float]]) -> Estimate:
        """Return the mean with an interval over the prompts that have a value."""
        grouped = [[value for place in group for value in values[place]] for group in self.members]
        return bootstrap([group for group in grouped if group], seed=self.seed)


def _of_pairs(logps: Tensor, start: Tensor, mask: Tensor) -> Found:
    """Return the fields of `_Ratios` of a batch's pairs."""
    sums = logps.double().sum(-1).tolist()
    ratios = _ratios(logps, start, mask)
    half = len(sums) // 2
    names = [field.name for field in fields(_Ratios)]
    values = zip(ratios[:half], ratios[half:], sums[:half], sums[half:], strict=True)
    return [dict(zip(names, one, strict=True)) for one in values]


def _of_completions(logps: Tensor, start: Tensor, mask: Tensor) -> Found:
    """Return each completion's log-prob, its mean over tokens, and its tokens' log-ratios."""
    total = logps.double().sum(-1)
    values = zip(total.tolist(), (total / mask.sum(-1)).tolist(), _ratios(logps, start, mask), strict=True)
    return [{"sum": one, "mean": mean, "ratios": ratios} for one, mean, ratios in values]


def _ratios(logps: Tensor, start: Tensor, mask: Tensor) -> list[list[float]]:
    return [one[kept].tolist() for one, kept in zip((logps - start).double(), mask, strict=True)]


@dataclass(frozen=True)
class _Batches:
    """Batches of `size` rows, read by a model and by its start; without `at_start` the model is the start."""

    rows: Rows
    sides: Sequence[str]
    size: int
    model: Model
    tokenizer: Tokenizer
    at_start: AtStart | None
    shared_prefix: bool

    def each(self, of: Callable[[Tensor, Tensor, Tensor], Found], deal: Dealing) -> Iterator[dict[str, Any]]:
        """Yield what `of` returns for each batch.

        It is given token log-probs under the model and the start, and the mask of their tokens: of pairs, chosen answers
        come first, then rejected ones.
        """
        total = -(-len(self.rows) // self.size)
        for found in deal("likelihood", total, lambda number: of(*self._read(number))):
            yield from found

    def _read(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        part = self.rows[number * self.size : (number + 1) * self.size]
        completions = [(row["prompt_ids"], row[f"{side}_ids"]) for side in self.sides for row in part]
        pad_id = self.tokenizer.pad_token_id
        batch = lay_out_together(completions, pad_id=pad_id, shared=self.shared_prefix)
        batch = {key: value.to(self.model.device) for key, value in batch.items()}
        logps = per_token_logps(self.model, batch)
        if self.at_start is None:
            return logps, logps, batch["completion_mask"]
        with self.at_start():
            before = per_token_logps(self.model, batch)
        return logps, before, batch["completion_mask"]
