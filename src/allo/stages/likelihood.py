"""The change in likelihood of chosen and rejected, or good and bad answers, on rows of the run or on held-out ones."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allo.console import track
from allo.files.records import Feedback, Pair
from allo.models.collate import CompletionCollator, PairCollator
from allo.models.load import Model, Tokenizer
from allo.models.policy import per_token_logps
from allo.models.rows import counted_completions, counted_pairs
from allo.stats.metrics import Estimate, auc, bootstrap, wilson

ROWS = 64
"""Completions that are read together at most; a pair has two."""
AtStart = Callable[[], AbstractContextManager[None]]
Rows = list[dict[str, Any]]


@torch.inference_mode()
def likelihood(
    pairs: Sequence[Pair],
    model: Model,
    tokenizer: Tokenizer,
    at_start: AtStart,
    *,
    max_length: int,
    size: int = ROWS,
) -> dict[str, Any]:
    """Return the mean log-ratio of a token to the starting model, in nats, of chosen and of rejected answers.

    `at_start` turns `model` into the starting model for a block; `size` completions are read together.
    """
    rows, _ = counted_pairs(tokenizer, map(vars, pairs), max_length=max_length)
    sums = torch.zeros(2, dtype=torch.float64)
    counts = torch.zeros(2)
    collate = PairCollator(tokenizer.pad_token_id, shared_prefix=False)
    for logps, start, mask in _batches(rows, collate, max(1, size // 2), model, at_start):
        sums += torch.stack([side.double().sum().cpu() for side in (logps - start).chunk(2)])
        counts += torch.stack([side.sum().cpu() for side in mask.chunk(2)])
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
) -> dict[str, Any]:
    """Return a model's accuracies on held-out pairs and, unless it is the start itself, its changes from the start.

    `chosen_logp` and `rejected_logp` are an answer's mean log-likelihoods under the model.
    A pair's margin is beta times the difference between the log-ratios of chosen and rejected answer, DPO's implicit
    reward; it is right if the margin is above 0. By likelihood it is right if the chosen answer is likelier. Intervals
    are over prompts.
    """
    rows, counts = counted_pairs(tokenizer, map(vars, pairs), max_length=max_length)
    found = list(_of_pairs(rows, model, tokenizer, at_start, max(1, size // 2)))
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
) -> dict[str, Any]:
    """Return how well a model tells held-out good from bad completions and, unless it is the start itself, its changes.

    `reward_auc` is the chance that a good completion has a higher reward than a bad one: beta times its log-ratio to the
    start. `likelihood_auc` is that of a higher mean log-prob of a token. Intervals are over prompts.
    """
    kept, counts = counted_completions(tokenizer, map(vars, rows), max_length=max_length)
    collate = CompletionCollator(tokenizer.pad_token_id)
    sums: list[float] = []
    means: list[float] = []
    ratios: list[list[float]] = []
    for logps, start, mask in _batches(kept, collate, size, model, at_start):
        sums += (total := logps.double().sum(-1)).tolist()
        means += (total / mask.sum(-1)).tolist()
        ratios += [one[own].tolist() for one, own in zip((logps - start).double(), mask, strict=True)]
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


def _of_pairs(
    rows: Rows, model: Model, tokenizer: Tokenizer, at_start: AtStart | None, size: int
) -> Iterator[_Ratios]:
    collate = PairCollator(tokenizer.pad_token_id, shared_prefix=False)
    for logps, start, mask in _batches(rows, collate, size, model, at_start):
        sums = logps.double().sum(-1).tolist()
        ratios = [one[kept].tolist() for one, kept in zip((logps - start).double(), mask, strict=True)]
        half = len(sums) // 2
        yield from map(_Ratios, ratios[:half], ratios[half:], sums[:half], sums[half:])


def _batches(
    rows: Rows,
    collate: PairCollator | CompletionCollator,
    size: int,
    model: Model,
    at_start: AtStart | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield, for each batch of `size` rows, token log-probs under the model and the start, and the mask of their tokens.

    Of pairs, chosen answers come first, then rejected ones. Without `at_start` the model is the start.
    """
    starts = range(0, len(rows), size)
    for start in track(starts, "likelihood", total=len(starts)):
        batch = {key: value.to(model.device) for key, value in collate(rows[start : start + size]).items()}
        logps = per_token_logps(model, batch)
        if at_start is None:
            yield logps, logps, batch["completion_mask"]
            continue
        with at_start():
            before = per_token_logps(model, batch)
        yield logps, before, batch["completion_mask"]
