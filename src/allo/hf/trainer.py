"""The three losses that train selected weights: fine-tuning, forgetting, improving."""

from collections.abc import Iterable, Sequence
from typing import Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from allo.console import say
from allo.core import losses
from allo.hf.collate import Batch, PairCollator
from allo.hf.policy import per_token_logps, shares_prefix
from allo.hf.rows import completion_rows, pair_rows
from allo.hf.selected_trainer import Options, Row, SelectedTrainer


class SftTrainer(SelectedTrainer):
    """Supervised fine-tuning: mean negative log-likelihood of the completion tokens.

    The data sets have `prompt` and `completion`.
    """

    compares = False
    make_rows = staticmethod(completion_rows)

    def num_items(self, rows: Sequence[Row]) -> int:
        return sum(len(row["completion_ids"]) for row in rows)

    def loss(self, batch: Batch, *, denominator: Tensor | float) -> Tensor:
        token_losses = losses.nll(per_token_logps(self.model, batch))
        return losses.reduce(token_losses, batch["completion_mask"], denominator=denominator)


class ForgetTrainer(SelectedTrainer):
    """Token-weighted NPO on wrong completions (method.md 1.2).

        ForgetTrainer(model, args, train_dataset, processing_class, mask=mask, beta=0.1)

    The data sets have `prompt`, `completion` and, per completion token (EOS included), `token_weights`
    (all tokens count where the column is missing). The reference is the model as given.
    """

    metrics = ("rewards/rejected", "logps/rejected", "logratios/forgotten", "forget/kept_tokens")
    make_rows = staticmethod(completion_rows)

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Iterable[Row],
        processing_class: PreTrainedTokenizerBase,
        *,
        beta: float = 0.1,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, args, train_dataset, processing_class, **options)
        self.beta = beta

    def num_items(self, rows: Sequence[Row]) -> int:
        return sum(weight != 0 for row in rows for weight in row["token_weights"])

    def loss(self, batch: Batch, *, denominator: Tensor | float) -> Tensor:
        logratios, logps = self.logratios(batch)
        weights = batch["token_weights"]
        kept = weights != 0
        with torch.no_grad():
            self.record(
                len(logps),
                {
                    "rewards/rejected": self.beta * logratios.sum(),
                    "logps/rejected": logps.sum(),
                },
            )
            self.record(kept.sum(), {"logratios/forgotten": (logratios * kept).sum()})
            self.record(batch["completion_mask"].sum(), {"forget/kept_tokens": kept.sum()})
        return losses.reduce(losses.npo(logratios, beta=self.beta), weights, denominator=denominator)


class ImproveTrainer(SelectedTrainer):
    """DPO with noisy tokens of the rejected completion filtered out (method.md 1.3).

        ImproveTrainer(model, args, train_dataset, processing_class, mask=mask, beta=0.1, keep=0.5)

    The data sets have `prompt`, `chosen` and `rejected`. With `keep=1.0` it is DPO; with a full mask
    besides, it is plain DPO. The reference is the model as given.
    With `shared_prefix` a pair is one row, its prompt computed once, where the model's attention allows it.
    """

    metrics = (
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
        *("logps/chosen", "logps/rejected", "improve/kept_tokens"),
    )
    make_rows = staticmethod(pair_rows)

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Iterable[Row],
        processing_class: PreTrainedTokenizerBase,
        *,
        beta: float = 0.1,
        keep: float = 0.5,
        label_smoothing: float = 0.0,
        shared_prefix: bool = True,
        **options: Unpack[Options],
    ) -> None:
        self._may_share_prefix = shared_prefix
        super().__init__(model, args, train_dataset, processing_class, **options)
        self.beta, self.keep, self.label_smoothing = beta, keep, label_smoothing

    def make_collator(self, model: PreTrainedModel, pad_id: int) -> PairCollator:
        shared = self._may_share_prefix and shares_prefix(model)
        if self._may_share_prefix and not shared:
            say(f"{type(model).__name__}: its attention takes no shared prefix; prompts are computed twice")
        return PairCollator(pad_id, shared_prefix=shared)

    def num_items(self, rows: Sequence[Row]) -> int:
        return len(rows)

    def loss(self, batch: Batch, *, denominator: Tensor | float) -> Tensor:
        logratios, logps = self.logratios(batch)
        chosen, rejected = logratios.chunk(2)
        _, rejected_mask = batch["completion_mask"].chunk(2)
        kept = losses.keep_lowest(rejected, rejected_mask, keep=self.keep)
        pair_losses = losses.dpo(
            chosen.sum(-1),
            (rejected * kept).sum(-1),
            beta=self.beta,
            label_smoothing=self.label_smoothing,
        )
        with torch.no_grad():
            rewards_chosen, rewards_rejected = (self.beta * logratios.sum(-1)).chunk(2)
            logps_chosen, logps_rejected = logps.sum(-1).chunk(2)
            self.record(
                len(pair_losses),
                {
                    "rewards/chosen": rewards_chosen.sum(),
                    "rewards/rejected": rewards_rejected.sum(),
                    "rewards/margins": (rewards_chosen - rewards_rejected).sum(),
                    "rewards/accuracies": (rewards_chosen > rewards_rejected).sum(),
                    "logps/chosen": logps_chosen.sum(),
                    "logps/rejected": logps_rejected.sum(),
                },
            )
            self.record(rejected_mask.sum(), {"improve/kept_tokens": kept.sum()})
        return losses.reduce(pair_losses, torch.ones_like(pair_losses), denominator=denominator)
