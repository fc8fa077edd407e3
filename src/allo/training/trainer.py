"""The three trainers of selected weights: fine-tuning, forgetting, improving."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from allo.console import say
from allo.losses import token_losses as losses
from allo.losses.forgetting_losses import TokenLogps, TokenLogratios
from allo.losses.needs import LossFunction, needs_of
from allo.losses.pair_losses import PairLogps, PairSums, RunningMean
from allo.models.collate import SIDES, Batch, PairCollator
from allo.models.policy import shares_or_says
from allo.models.rows import counted_completions, counted_pairs
from allo.ranks import rank
from allo.recipe.losses import Filter
from allo.recipe.training import ForgetTraining, ImproveTraining, SftTraining
from allo.tasks.pairs import completions_of_rows, pairs_of_rows, wrong_of_rows
from allo.training.chosen_losses import (
    LossSettings,
    chosen_forgetting_loss,
    chosen_pair_loss,
    forgetting_losses_of,
    loss_title,
    pair_losses_of,
    positive,
)
from allo.training.dpo_config import LOSSES, taken
from allo.training.selected_trainer import Row, SelectedTrainer
from allo.training.token_filter import kept_tokens, with_draws
from allo.training.trainer_options import Options, Rows
from allo.weights.ranks import sum_over_ranks


class SftTrainer(SelectedTrainer):
    """Supervised fine-tuning: mean negative log-likelihood of the completion tokens.

    The data sets have `prompt` and `completion`.
    """

    needs_reference = False
    metrics = ("entropy", "mean_token_accuracy")
    defaults = SftTraining()
    read_rows = staticmethod(completions_of_rows)
    make_rows = staticmethod(counted_completions)

    def num_items(self, rows: Sequence[Row]) -> int:
        return sum(len(row["completion_ids"]) for row in rows)

    def loss(self, batch: Batch, *, denominator: Tensor | float) -> Tensor:
        token_losses = losses.nll(self.policy_logps(batch))
        return losses.reduce(token_losses, batch["completion_mask"], denominator=denominator)


class ForgetTrainer(SelectedTrainer):
    """Token-weighted NPO on wrong completions (method.md 1.2).

        ForgetTrainer(model, args, train_dataset, processing_class, mask=mask, beta=0.1)

    `loss` names one of `allo.recipe.losses.FORGETTING_LOSSES`, or is a function like theirs. "token" is NPO of each
    weighted token. "sequence" is NPO of each completion, from the weighted sum of its log-ratios. Two need no reference:
    "unlikelihood" is -log(1 - pi) of each weighted token, and "simnpo" reads a completion's mean log-prob of them. The
    trainer takes the mean over tokens or completions.

    The data sets have `prompt`, `completion` and, per completion token (EOS included), `token_weights` (by default
    all tokens count). Of pairs the `rejected` side is the completion. The reference is the model as given.

    With `until`, training stops once the weighted tokens' mean probability falls below it. AdamW's steps do not
    shrink with the slope. Without `until`, a higher learning rate therefore forgets more rather than sooner.
    """

    metrics = (
        *("rewards/rejected", "logps/rejected", "logratios/forgotten"),
        *("probabilities/forgotten", "forget/kept_tokens", "logits/rejected", "entropy"),
    )
    sides = ("rejected",)
    defaults = ForgetTraining()
    read_rows = staticmethod(wrong_of_rows)
    make_rows = staticmethod(counted_completions)
    takes_config = True

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        args: TrainingArguments | None = None,
        train_dataset: Rows | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        beta: float | None = None,
        loss: str | LossFunction = "token",
        until: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.forgetting_loss = chosen_forgetting_loss(loss)
        self.loss_title = loss_title(self.forgetting_loss)
        self.needs_reference = needs_of(self.forgetting_loss).reference
        self.beta = positive("beta", taken("beta", beta, self._config_settings(args, options), default=0.1))
        super().__init__(model, args, train_dataset, processing_class, **options)
        self._believed = RunningMean()  # of the step's weighted tokens
        if until is not None:
            self.add_callback(_UntilForgotten(self, until))

    def training_step(
        self, model: nn.Module, inputs: Sequence[Row], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self._believed = RunningMean()
        return super().training_step(model, inputs, num_items_in_batch)

    def has_forgotten(self, until: float) -> bool:
        """Return True if the last step's weighted tokens, over all ranks, have a mean probability below `until`."""
        both = torch.tensor([self._believed.total, self._believed.count], device=self.args.device)
        total, count = sum_over_ranks(both).tolist()
        return total < until * count

    def num_items(self, rows: Sequence[Row]) -> int:
        if needs_of(self.forgetting_loss).completions:
            return len(rows)
        return sum(weight != 0 for row in rows for weight in row["token_weights"])

    def loss(self, batch: Batch, *, denominator: Tensor | float) -> Tensor:
        weights = batch["token_weights"]
        if self.needs_reference:
            logratios, logps = self.logratios(batch)
            tokens: TokenLogps = TokenLogratios(logps, weights, logratios)
        else:
            logps = self.policy_logps(batch)
            logratios, tokens = torch.zeros_like(logps), TokenLogps(logps, weights)
        self._record(batch, logps, logratios)
        found = forgetting_losses_of(self.forgetting_loss, tokens, beta=self.beta)
        if needs_of(self.forgetting_loss).completions:
            weights = torch.ones_like(found)
        return losses.reduce(found, weights, denominator=denominator)

    @torch.no_grad()
    def _record(self, batch: Batch, logps: Tensor, logratios: Tensor) -> None:
        kept = batch["token_weights"] != 0
        self.record(len(logps), {"logps/rejected": logps.sum()})
        believed, num_kept = float((logps.exp() * kept).sum()), int(kept.sum())
        self._believed.add(believed, num_kept)
        self.record(num_kept, {"probabilities/forgotten": believed})
        self.record(batch["completion_mask"].sum(), {"forget/kept_tokens": kept.sum()})
        if self.needs_reference:
            self.record(len(logps), {"rewards/rejected": self.beta * logratios.sum()})
            self.record(kept.sum(), {"logratios/forgotten": (logratios * kept).sum()})


class _UntilForgotten(TrainerCallback):
    """A callback that stops training once tokens are forgotten, without a checkpoint: a resumed run would train on."""

    def __init__(self, trainer: ForgetTrainer, until: float) -> None:
        self._trainer, self._until = trainer, until

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._trainer.has_forgotten(self._until):
            control.should_training_stop = control.should_log = True
            control.should_save = False

    on_epoch_end = on_step_end  # a step may end its epoch, which may save a checkpoint


_DPO: str | LossFunction = "dpo"


class ImproveTrainer(SelectedTrainer):
    """Learning from pairs, by DPO with noisy tokens of the rejected completion filtered out (method.md 1.3).

        ImproveTrainer(model, args, train_dataset, processing_class, mask=mask, beta=0.1, keep=0.5)

    `beta` is 0.1 by default. The data sets have `prompt`, `chosen` and `rejected`. With `keep=1.0` and a full mask,
    this is plain DPO. The reference is the model as given.

    `loss` names one of `allo.recipe.losses.PAIR_LOSSES`, or is such a function; `loss_settings` are its own. `anchor` weighs an
    added term: the chosen completion's mean negative log-likelihood per token (RPO, arXiv 2404.19733). `filter` says
    which tokens of a rejected completion are kept: those of "lowest" or "highest" log-ratio, or "random" ones, drawn
    again each step. With `shared_prefix` a pair is one row, its prompt computed once, if the model's attention allows
    it.

    Raises `UserError` for a loss or a setting that `chosen_losses.chosen_pair_loss` refuses.
    """

    metrics = (
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
        *("logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected"),
        *("entropy", "mean_token_accuracy", "improve/kept_tokens"),
    )
    sides = SIDES
    defaults = ImproveTraining()
    read_rows = staticmethod(pairs_of_rows)
    make_rows = staticmethod(counted_pairs)
    takes_config = True
    config_losses = LOSSES

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        args: TrainingArguments | None = None,
        train_dataset: Rows | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        beta: float | None = None,
        keep: float = 0.5,
        loss: str | LossFunction | None = None,
        loss_settings: LossSettings | None = None,
        anchor: float = 0.0,
        filter: Filter = "lowest",
        shared_prefix: bool = True,
        **options: Unpack[Options],
    ) -> None:
        config = self._config_settings(args, options)
        self._may_share_prefix = shared_prefix
        self.loss_settings = dict(taken("loss_settings", loss_settings, config, default={}))
        self.pair_loss = chosen_pair_loss(
            taken("loss", loss, config, default=_DPO),
            self.loss_settings,
            keep=positive("keep", keep, most=1.0),
        )
        self.loss_title = loss_title(self.pair_loss)
        self.needs = needs_of(self.pair_loss)
        self.needs_reference = self.needs.reference
        self.beta = positive("beta", taken("beta", beta, config, default=0.1))
        self.keep, self.filter, self.anchor = keep, filter, anchor
        if config and keep < 1 and rank() == 0:
            say(
                f"keep={keep:g}: `loss` counts this share of a rejected answer's tokens, and does not compare with TRL's; keep=1.0 "
                "counts all"
            )
        self.reward_mean, self._step_rewards = RunningMean(), RunningMean()
        super().__init__(model, args, train_dataset, processing_class, **options)

    def make_collator(self, model: PreTrainedModel, pad_id: int) -> PairCollator:
        return PairCollator(pad_id, self._may_share_prefix and shares_or_says(model))

    def num_items(self, rows: Sequence[Row]) -> int:
        return len(rows)

    def training_step(
        self, model: nn.Module, inputs: Sequence[Row], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Take a step; its rewards enter the mean from the next step on.

        All micro-batches and ranks of a step thus use one mean. At the first step all rewards are 0, so it is exact.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.needs.reward_mean:
            seen, self._step_rewards = self._step_rewards, RunningMean()
            both = torch.tensor([seen.total, seen.count], device=self.args.device)
            self.reward_mean.add(*sum_over_ranks(both).tolist())
        return loss

    def loss_state(self) -> dict[str, float]:
        return vars(self.reward_mean) if self.needs.reward_mean else {}

    def load_loss_state(self, state: dict[str, float]) -> None:
        self.reward_mean = RunningMean(**state)

    def _batch(self, rows: Sequence[Row]) -> Batch:
        step, seed = self.state.global_step, self.args.seed
        return with_draws(super()._batch(rows), rows, filter=self.filter, step=step, seed=seed)

    def loss(self, batch: Batch, *, denominator: Tensor | float) -> Tensor:
        pairs, kept, rewards = self._pairs(batch)
        pair_losses = pair_losses_of(
            self.pair_loss,
            pairs,
            beta=self.beta,
            reward_mean=self.reward_mean.value,
            settings=self.loss_settings,
        )
        if self.anchor:
            pair_losses = pair_losses + self.anchor * losses.nll(pairs.chosen_logps / pairs.chosen_lengths)
        if self.needs.reward_mean and torch.is_grad_enabled():  # not in evaluation
            own = pairs.rewards if isinstance(pairs, PairSums) else pairs.mean_rewards
            seen = torch.cat(own(beta=self.beta)).detach()
            self._step_rewards.add(seen.sum().item(), len(seen))
        with torch.no_grad():
            rewards_chosen, rewards_rejected = rewards.chunk(2)
            self.record(
                len(pair_losses),
                {
                    "rewards/chosen": rewards_chosen.sum(),
                    "rewards/rejected": rewards_rejected.sum(),
                    "rewards/margins": (rewards_chosen - rewards_rejected).sum(),
                    "rewards/accuracies": (rewards_chosen > rewards_rejected).sum(),
                    "logps/chosen": pairs.chosen_logps.sum(),
                    "logps/rejected": pairs.rejected_logps.sum(),
                },
            )
            self.record(pairs.rejected_lengths.sum(), {"improve/kept_tokens": kept.sum()})
        return losses.reduce(pair_losses, torch.ones_like(pair_losses), denominator=denominator)

    def _pairs(self, batch: Batch) -> tuple[PairLogps, Tensor, Tensor]:
        """Return the loss's input, a mask of the kept rejected tokens [B, L], and the completions' rewards [2B]."""
        chosen_lengths, rejected_lengths = batch["completion_mask"].sum(-1).chunk(2)
        _, rejected_mask = batch["completion_mask"].chunk(2)
        if self.needs_reference:
            logratios, logps = self.logratios(batch)
        else:
            logps = self.policy_logps(batch)
        chosen_logps, rejected_logps = logps.sum(-1).chunk(2)
        policy = PairLogps(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths)
        if not self.needs_reference:
            return policy, rejected_mask, torch.cat(policy.mean_rewards(beta=self.beta)).detach()
        chosen, rejected = logratios.chunk(2)
        kept = kept_tokens(rejected, rejected_mask, batch, keep=self.keep, filter=self.filter)
        beside = {"chosen_logratios": chosen.sum(-1), "rejected_logratios": (rejected * kept).sum(-1)}
        return PairSums(**vars(policy), **beside), kept, self.beta * logratios.detach().sum(-1)
