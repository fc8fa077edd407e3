"""Training on selected weights: `transformers.Trainer` with a loss and a flat vector of its own.

Gradient accumulation, schedules, logging, checkpoints and resume are the Trainer's. Overridden are the
loss, its denominator, the optimizer's parameters, the clipped gradient, and what a checkpoint saves.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from allo.core import losses
from allo.core.param_mask import ParamMask
from allo.core.selected import SelectedWeights
from allo.errors import UserError
from allo.hf.collate import Batch, CompletionCollator, PairCollator
from allo.hf.policy import check_head, per_token_logps
from allo.hf.rows import CompletionRow, PairRow, completion_rows, pair_rows

SELECTED_FILE = "selected.safetensors"
# Written last into a checkpoint: without it the checkpoint was cut short, and is not resumed from.
COMPLETE_FILE = "complete"


class SelectedTrainer(Trainer):
    """What the forget, improve and fine-tuning trainers share.

    `mask` says which weights train. Raises `UserError` for a mask of another model, for several
    processes (not supported), and when the loss is no longer finite.
    """

    loss_is_scaled_for_ga = True
    slots: tuple[str, ...] = ("ref",)
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Sequence[Mapping[str, Any]],
        processing_class: PreTrainedTokenizerBase,
        *,
        mask: ParamMask,
        data_collator: Any,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if args.world_size > 1:
            raise UserError(
                f"{args.world_size} processes: training on several processes is not supported yet."
            )
        # The collators read the ids' own columns, and a filtered NaN would hide in the logged loss.
        args.remove_unused_columns = False
        args.logging_nan_inf_filter = False
        check_head(model)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # policy and reference must see the same network
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
            callbacks=callbacks,
        )
        self.selected = SelectedWeights(self.model, mask, slots=self.slots)
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self.add_callback(_WriteBack(self.selected))

    def loss(self, batch: Batch, *, denominator: Tensor | float) -> Tensor:
        """The micro-batch's share of the optimizer step's loss -> scalar."""
        raise NotImplementedError

    def num_items(self, batch: Batch) -> Tensor:
        """What the micro-batch adds to the loss's denominator -> scalar."""
        raise NotImplementedError

    def logratios(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """rho_t of the completion tokens [B, T] fp32, and the policy's log-probs behind it."""
        with torch.no_grad(), self.selected.swapped("ref"):
            ref_logps = per_token_logps(self.model, batch)
        logps = per_token_logps(self.model, batch)
        return logps - ref_logps, logps

    def record(self, metrics: dict[str, Any]) -> None:
        """Keep a micro-batch's scalars; `log` reports their means since the last log."""
        for name, value in metrics.items():
            self._metrics[name].append(float(value))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        denominator = self.num_items(inputs) if num_items_in_batch is None else num_items_in_batch
        loss = self.loss(inputs, denominator=torch.as_tensor(denominator).clamp(min=1))
        if not math.isfinite(loss.item()):
            last = get_last_checkpoint(self.args.output_dir) if Path(self.args.output_dir).is_dir() else None
            kept = f"the last good checkpoint is {last}" if last else "no checkpoint was written before it"
            raise UserError(
                f"loss is {loss.item()} at step {self.state.global_step + 1}: stopped; {kept}. "
                "Lower the learning rate, or check the data."
            )
        return (loss, {}) if return_outputs else loss

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Any]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(self.num_items(batch) for batch in batches)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = self.selected.param_groups(weight_decay=self.args.weight_decay)
            self.optimizer = optimizer_class(groups, **kwargs)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return self.selected.clip_grad_norm_(self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        return self.selected.clip_grad_norm_(math.inf) if grad_norm is None else grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        means = {name: sum(values) / len(values) for name, values in self._metrics.items()}
        self._metrics.clear()
        super().log(logs | means, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.selected.state_dict(), folder / SELECTED_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.selected.load_state_dict(load_file(Path(resume_from_checkpoint) / SELECTED_FILE))


class SftTrainer(SelectedTrainer):
    """Supervised fine-tuning: mean negative log-likelihood of the completion tokens."""

    slots = ()

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Iterable[CompletionRow],
        processing_class: PreTrainedTokenizerBase,
        *,
        mask: ParamMask,
        max_length: int = 1200,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        rows, self.num_dropped = completion_rows(processing_class, train_dataset, max_length=max_length)
        collator = CompletionCollator(processing_class.pad_token_id)
        super().__init__(
            model, args, rows, processing_class, mask=mask, data_collator=collator, callbacks=callbacks
        )

    def num_items(self, batch: Batch) -> Tensor:
        return batch["completion_mask"].sum()

    def loss(self, batch: Batch, *, denominator: Tensor | float) -> Tensor:
        token_losses = losses.nll(per_token_logps(self.model, batch))
        return losses.reduce(token_losses, batch["completion_mask"], denominator=denominator)


class ForgetTrainer(SelectedTrainer):
    """Token-weighted NPO on wrong completions (method.md 1.2).

        ForgetTrainer(model, args, train_dataset, processing_class, mask=mask, beta=0.1)

    `train_dataset` has `prompt`, `completion` and, per completion token (EOS included), `token_weights`
    (all tokens count where the column is missing). The reference is the model as given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Iterable[CompletionRow],
        processing_class: PreTrainedTokenizerBase,
        *,
        mask: ParamMask,
        beta: float = 0.1,
        max_length: int = 1200,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        rows, self.num_dropped = completion_rows(processing_class, train_dataset, max_length=max_length)
        collator = CompletionCollator(processing_class.pad_token_id)
        super().__init__(
            model, args, rows, processing_class, mask=mask, data_collator=collator, callbacks=callbacks
        )
        self.beta = beta

    def num_items(self, batch: Batch) -> Tensor:
        return (batch["token_weights"] != 0).sum()

    def loss(self, batch: Batch, *, denominator: Tensor | float) -> Tensor:
        logratios, logps = self.logratios(batch)
        weights = batch["token_weights"]
        kept = weights != 0
        with torch.no_grad():
            self.record(
                {
                    "rewards/rejected": self.beta * logratios.sum(-1).mean(),
                    "logps/rejected": logps.sum(-1).mean(),
                    "logratios/forgotten": (logratios * kept).sum() / kept.sum().clamp(min=1),
                    "forget/kept_tokens": kept.sum() / batch["completion_mask"].sum(),
                    "mask/density": self.selected.density,
                }
            )
        return losses.reduce(losses.npo(logratios, beta=self.beta), weights, denominator=denominator)


class ImproveTrainer(SelectedTrainer):
    """DPO with noisy tokens of the rejected completion filtered out (method.md 1.3).

        ImproveTrainer(model, args, train_dataset, processing_class, mask=mask, beta=0.1, keep=0.5)

    `train_dataset` has `prompt`, `chosen` and `rejected`. With `keep=1.0` it is DPO; with a full mask
    besides, it is plain DPO. The reference is the model as given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Iterable[PairRow],
        processing_class: PreTrainedTokenizerBase,
        *,
        mask: ParamMask,
        beta: float = 0.1,
        keep: float = 0.5,
        label_smoothing: float = 0.0,
        max_length: int = 1200,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        rows, self.num_dropped = pair_rows(processing_class, train_dataset, max_length=max_length)
        collator = PairCollator(processing_class.pad_token_id)
        super().__init__(
            model, args, rows, processing_class, mask=mask, data_collator=collator, callbacks=callbacks
        )
        self.beta, self.keep, self.label_smoothing = beta, keep, label_smoothing

    def num_items(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["input_ids"]) // 2)

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
                {
                    "rewards/chosen": rewards_chosen.mean(),
                    "rewards/rejected": rewards_rejected.mean(),
                    "rewards/margins": (rewards_chosen - rewards_rejected).mean(),
                    "rewards/accuracies": (rewards_chosen > rewards_rejected).float().mean(),
                    "logps/chosen": logps_chosen.mean(),
                    "logps/rejected": logps_rejected.mean(),
                    "improve/kept_tokens": kept.sum() / rejected_mask.sum(),
                    "mask/density": self.selected.density,
                }
            )
        return losses.reduce(pair_losses, torch.ones_like(pair_losses), denominator=denominator)


class _WriteBack(TrainerCallback):
    """After each optimizer step the masters go into the model; a checkpoint is marked complete last."""

    def __init__(self, selected: SelectedWeights) -> None:
        self._selected = selected

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._selected.write_back()
        for flat in self._selected.parameters():
            flat.grad = None

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE_FILE).touch()
