"""The trainer that learns from labelled completions, good and bad, without pairs."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from allo.console import say
from allo.losses import token_losses as losses
from allo.losses.feedback_losses import AnswerSums
from allo.losses.needs import LossFunction, needs_of
from allo.losses.pair_losses import RunningMean
from allo.models.collate import Batch, FeedbackCollator, grouped
from allo.models.policy import per_token_logps, shares_or_says
from allo.models.rows import counted_completions
from allo.models.tokenization import cut_left
from allo.recipe.losses import Filter
from allo.recipe.training import ImproveTraining
from allo.tasks.feedback import feedback_of_rows
from allo.training.chosen_losses import (
    LossSettings,
    check_reference_point,
    chosen_feedback_loss,
    feedback_losses_of,
    loss_title,
    positive,
)
from allo.training.micro_batches import groups_of, own_share
from allo.training.selected_trainer import Row, SelectedTrainer
from allo.training.token_filter import kept_tokens, with_draws
from allo.training.trainer_options import Options, Rows
from allo.weights.ranks import sum_over_ranks

_FAIR = (0.99, 4 / 3 + 0.01)
"""KTO's authors recommend that good rows weigh as much as bad ones in sum, or up to this much more (eq. 8)."""


class FeedbackTrainer(SelectedTrainer):
    """Learning from labelled completions by KTO or BCO (docs/method.md), which need no pairs.

        FeedbackTrainer(model, args, train_dataset, processing_class, mask=mask, loss="kto", beta=0.1)

    The data sets have `prompt`, `completion` and `label`, true for a good completion. `loss` names one of
    `allo.recipe.losses.FEEDBACK_LOSSES`, or is such a function; `loss_settings` are its own. `keep` and `filter` choose
    the tokens of bad completions that count, as in `ImproveTrainer`; good ones count as a whole. The reference is the
    model as given.

    KTO's reference point is the mean log-ratio of a step's completions, each after the prompt of the next row, and
    BCO's shift comes from the steps before. So neither depends on micro-batches or processes.

    Raises `UserError` for a loss or a setting that `chosen_losses.chosen_feedback_loss` refuses.
    """

    metrics = (
        *("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"),
        *("kl", "improve/kept_tokens", "entropy"),
    )
    read_rows = staticmethod(feedback_of_rows)
    make_rows = staticmethod(counted_completions)
    defaults = ImproveTraining()

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        args: TrainingArguments | None = None,
        train_dataset: Rows | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        loss: str | LossFunction = "kto",
        loss_settings: LossSettings | None = None,
        beta: float = 0.1,
        keep: float = 0.5,
        filter: Filter = "lowest",
        **options: Unpack[Options],
    ) -> None:
        self.loss_settings = dict(loss_settings or {})
        self.feedback_loss = chosen_feedback_loss(loss, self.loss_settings, keep=keep)
        self.loss_title = loss_title(self.feedback_loss)
        self.needs = needs_of(self.feedback_loss)
        self.beta, self.filter = positive("beta", beta), filter
        self.keep = positive("keep", keep, most=1.0)
        self.kl = 0.0
        # Mean rewards of good and of bad completions, and those of the current step.
        self.reward_means, self._step_rewards = _two_means(), _two_means()
        super().__init__(model, args, train_dataset, processing_class, **options)
        check_reference_point(self.feedback_loss, reference=self.reference, rows_a_step=self.rows_a_step)
        weighs = "desirable_weight" in inspect.signature(self.feedback_loss).parameters
        if weighs and (advice := balance_advice(self.train_dataset, self.loss_settings)):
            say(f"train_dataset: {advice}")

    def make_collator(self, model: PreTrainedModel, pad_id: int) -> FeedbackCollator:
        return FeedbackCollator(pad_id, self.group == "prompt" and shares_or_says(model))

    def num_items(self, rows: Sequence[Row]) -> int:
        return len(rows)

    def begin_step(self, rows: Sequence[Row]) -> None:
        if self.needs.kl:
            self.kl = self._kl_of(rows)
            self.record(1, {"kl": self.kl})

    @torch.no_grad()
    def _kl_of(self, rows: Sequence[Row]) -> float:
        """Return the mean log-ratio of each row's prompt with the completion of another, at least 0.

        It is that of the row before; if rows of a prompt stand together, that of a row so far before that the prompt
        differs. The result is the same on every rank.
        """
        groups = groups_of(rows)
        rows, apart = [row for group in groups for row in group], max(map(len, groups))
        moved = [self._with_completion(row, rows[place - apart]) for place, row in enumerate(rows)]
        moved = grouped(moved) if self.group == "prompt" else moved
        parts = self._micro_batches(moved)
        batches, idle = list(map(self._batch, own_share(parts))), self._idle(parts)
        total = torch.zeros((), device=self.model.device)
        for batch, reference in zip(batches, self._ref_logps([*batches, *idle]), strict=False):
            total += (per_token_logps(self.model, batch) - reference["ref_logps"]).sum()
        for batch in idle:
            per_token_logps(self.model, batch)
        return max(0.0, sum_over_ranks(total).item() / len(rows))

    def _with_completion(self, row: Row, other: Row) -> dict[str, Any]:
        """Return the row with another's completion; a prompt that no longer fits loses its beginning."""
        ids = other["completion_ids"]
        prompt = cut_left(self.processing_class, row["prompt_ids"], max(1, self.max_length - len(ids)))
        return {"prompt_ids": prompt, "completion_ids": ids, "label": row["label"], "number": row["number"]}

    def training_step(
        self, model: nn.Module, inputs: Sequence[Row], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Take a step; its rewards enter the means from the next step on."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.needs.reward_mean:
            seen, self._step_rewards = self._step_rewards, _two_means()
            sums = torch.tensor([[one.total, one.count] for one in seen], device=self.args.device)
            for mean, both in zip(self.reward_means, sum_over_ranks(sums).tolist(), strict=True):
                mean.add(*both)
        return loss

    def loss_state(self) -> dict[str, float]:
        if not self.needs.reward_mean:
            return {}
        return {
            f"{name}_{key}": value
            for name, mean in zip(("good", "bad"), self.reward_means, strict=True)
            for key, value in vars(mean).items()
        }

    def load_loss_state(self, state: dict[str, float]) -> None:
        self.reward_means = [
            RunningMean(state[f"{name}_total"], state[f"{name}_count"]) for name in ("good", "bad")
        ]

    @property
    def shift(self) -> float:
        """Return BCO's delta, midway between the mean rewards so far of good and of bad completions."""
        return sum(mean.value for mean in self.reward_means) / 2

    def _batch(self, rows: Sequence[Row]) -> Batch:
        step, seed = self.state.global_step, self.args.seed
        return with_draws(super()._batch(rows), rows, filter=self.filter, step=step, seed=seed)

    def loss(self, batch: Batch, *, denominator: Tensor | float) -> Tensor:
        logratios, logps = self.logratios(batch)
        good, mask = batch["label"], batch["completion_mask"]
        kept = kept_tokens(logratios, mask, batch, keep=self.keep, filter=self.filter)
        kept |= good[:, None] & mask
        answers = AnswerSums(good, logps.sum(-1), mask.sum(-1), (logratios * kept).sum(-1))
        found = feedback_losses_of(
            self.feedback_loss,
            answers,
            beta=self.beta,
            kl=self.kl,
            reward_mean=self.shift,
            settings=self.loss_settings,
        )
        if self.needs.reward_mean and torch.is_grad_enabled():  # not in evaluation
            seen = answers.rewards(beta=self.beta).detach()
            for rows, mean in zip((good, ~good), self._step_rewards, strict=True):
                mean.add(seen[rows].sum().item(), int(rows.sum()))
        self._record(answers, self.beta * logratios.detach().sum(-1))
        bad = ~good
        self.record(answers.lengths[bad].sum(), {"improve/kept_tokens": kept[bad].sum()})
        return losses.reduce(found, torch.ones_like(found), denominator=denominator)

    @torch.no_grad()
    def _record(self, answers: AnswerSums, rewards: Tensor) -> None:
        for side, rows in {"chosen": answers.good, "rejected": ~answers.good}.items():
            sums = {f"rewards/{side}": rewards[rows].sum(), f"logps/{side}": answers.logps[rows].sum()}
            self.record(rows.sum(), sums)

    def take_means(self) -> dict[str, float]:
        means = super().take_means()
        chosen, rejected = means.get("rewards/chosen"), means.get("rewards/rejected")
        margins = {} if chosen is None or rejected is None else {"rewards/margins": chosen - rejected}
        return means | margins

    def evaluation_loop(self, dataloader: DataLoader[Row], *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate like the other trainers, with one reference point for all rows."""
        training = self.kl
        try:
            if self.needs.kl:
                self.kl = self._kl_of([row for rows in dataloader for row in rows])
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.kl = training


def _two_means() -> list[RunningMean]:
    return [RunningMean(), RunningMean()]


def balance_advice(rows: Sequence[Mapping[str, Any]], settings: LossSettings) -> str:
    """Return a weight for KTO that balances the numbers of good and of bad rows; nothing if they are balanced."""
    good = sum(bool(row["label"]) for row in rows)
    bad = len(rows) - good
    desirable, undesirable = (float(settings.get(f"{side}desirable_weight", 1.0)) for side in ("", "un"))
    if not (good and bad and desirable and undesirable):
        return ""
    ratio = desirable * good / (undesirable * bad)
    if _FAIR[0] <= ratio <= _FAIR[1]:
        return ""
    return (
        f"{good:,} good and {bad:,} bad completions; in sum the good ones weigh {ratio:.2g} times as much as the bad ones, and "
        f"KTO's authors recommend 1 to 1.33 times: set loss_settings.desirable_weight to {undesirable * bad / good:.3g}"
    )
