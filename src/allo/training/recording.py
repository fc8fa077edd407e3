"""Metrics of training and evaluation: totals of micro-batches, logged as means over all ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from allo.models.collate import SIDES, Batch
from allo.models.policy import measured_token_logps, per_token_logps
from allo.training.checkpointing import CheckpointedTrainer
from allo.weights.ranks import sum_over_ranks

NUM_TOKENS = "num_tokens"


class RecordedTrainer(CheckpointedTrainer):
    """A trainer that logs the means of what its loss records.

    `sides` names the completions of a batch, in its order. Their tokens' `entropy`, `logits/<side>` (the mean over the
    vocabulary) and, of the first side, `mean_token_accuracy` are TRL's metrics if they are in `metrics`. They are
    means over all tokens since the last log. `num_tokens` is TRL's too: all tokens trained on so far.
    """

    # The names given to `record`, in the order in which ranks sum them.
    metrics: tuple[str, ...] = ()
    sides: tuple[str, ...] = ("completion",)
    _sums: dict[str, tuple[float, float]]  # name -> total, count
    _num_seen: int  # tokens of the training rows since they were last logged

    def policy_logps(self, batch: Batch) -> Tensor:
        """Return the policy's log-probs [C, L] and record measures of its distributions, if they will be logged."""
        if torch.is_grad_enabled() and self.args.logging_strategy == "no":
            return per_token_logps(self.model, batch)
        logps, measures = measured_token_logps(self.model, batch)
        lengths = batch["completion_mask"].sum(-1, keepdim=True)
        sums = torch.cat([measures, lengths], dim=1).unflatten(0, (len(self.sides), -1)).sum(1).tolist()
        for place, (side, (entropy, logits, hits, count)) in enumerate(zip(self.sides, sums, strict=True)):
            found = {"entropy": entropy, f"logits/{side}": logits}
            found |= {} if place else {"mean_token_accuracy": hits}
            self.record(count, {name: total for name, total in found.items() if name in self.metrics})
        return logps

    def record(self, count: Tensor | float, totals: Mapping[str, Tensor | float]) -> None:
        """Add a micro-batch's totals over `count` items; `log` reports the means since the last log."""
        for name, total in totals.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + float(total), before[1] + float(count))

    def take_means(self) -> dict[str, float]:
        """Return the means over all ranks since the last call."""
        assert self._sums.keys() <= {"loss", *self.metrics}, f"{sorted(self._sums)} are not all in `metrics`"
        names = ("loss", *self.metrics)
        # With several ranks, on the device that they communicate through.
        sums = torch.tensor([self._sums.get(name, (0.0, 0.0)) for name in names], device=self.args.device)
        self._sums = {}
        totals = sum_over_ranks(sums).tolist()
        return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}

    def count_tokens(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count a step's tokens as TRL does: each completion with its prompt."""
        for row in rows:
            sides = [row[f"{side}_ids"] for side in ("completion", *SIDES) if f"{side}_ids" in row]
            self._num_seen += sum(len(row["prompt_ids"]) + len(side) for side in sides)

    @property
    def num_tokens(self) -> int:
        """Return the tokens of all rows trained on. A checkpoint has them in its logs, which end where it was saved."""
        logged = (
            value
            for row in reversed(self.state.log_history)
            for name, value in row.items()
            if name.endswith(NUM_TOKENS)
        )
        return int(next(logged, 0)) + self._num_seen

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a training step's row; evaluation adds its own means
            logs |= self.take_means() | {
                NUM_TOKENS: self.num_tokens,
                "mask/density": self.selected.density,
            }
        if any(name.endswith(NUM_TOKENS) for name in logs):
            self._num_seen = 0
        super().log(logs, start_time)
