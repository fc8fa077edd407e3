"""Training on selected weights: `transformers.Trainer` with a flat vector of its own.

Gradient accumulation, schedules, logging, checkpoints and resume are the Trainer's. Overridden are the
loss, its denominator, the optimizer's parameters and the clipped gradient; `checkpointing.py` has what
a checkpoint saves, `trainer.py` the losses.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
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
from transformers.trainer_utils import EvalLoopOutput

from allo.core.param_mask import ParamMask
from allo.core.selected import SelectedWeights
from allo.errors import UserError
from allo.hf.checkpointing import COMPLETE_FILE, CheckpointedTrainer, whole_checkpoints
from allo.hf.collate import Batch
from allo.hf.policy import check_head, per_token_logps

Row = Mapping[str, Any]


class SelectedTrainer(CheckpointedTrainer):
    """What the forget, improve and fine-tuning trainers share.

    `mask` says which weights train. The data sets are iterables of text rows, such as a list or a
    `datasets.Dataset`; `num_dropped` training rows did not fit into `max_length` tokens. The model's
    dropout is switched off for good.
    Raises `UserError` for a mask of another model, for settings that are not supported, and when the
    loss is no longer finite.
    """

    loss_is_scaled_for_ga = True
    slots: tuple[str, ...] = ("ref",)
    make_rows: Callable[..., tuple[list[dict[str, Any]], int]]
    make_collator: Callable[[int], Callable[..., Batch]]
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Iterable[Row],
        processing_class: PreTrainedTokenizerBase,
        *,
        mask: ParamMask,
        eval_dataset: Iterable[Row] | None = None,
        max_length: int = 1200,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        check_arguments(args)
        if args.world_size > 1:
            raise UserError(
                f"{args.world_size} processes: training on several processes is not supported yet."
            )
        if processing_class.pad_token_id is None:
            raise UserError(
                "the tokenizer has no pad token; set tokenizer.pad_token, for example to its eos_token."
            )
        if eval_dataset is None and args.eval_strategy != "no":
            raise UserError(
                f"eval_strategy: {args.eval_strategy.value} needs an eval_dataset; remove the key."
            )
        if args.n_gpu > 1:  # the Trainer would multiply the batch by the number of visible GPUs
            args._n_gpu = 1
        # The collators read the ids' own columns, and a filtered NaN would hide in the logged loss.
        args.remove_unused_columns = False
        args.logging_nan_inf_filter = False
        _switch_off_dropout(model)
        check_head(model)
        self._optimizer_class, self._optimizer_kwargs = _optimizer(args)
        self.max_length = max_length
        self.processing_class = processing_class
        rows, self.num_dropped = self.make_rows(processing_class, train_dataset, max_length=max_length)
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            eval_dataset=None if eval_dataset is None else self._eval_rows(eval_dataset),
            processing_class=processing_class,
            data_collator=self.make_collator(processing_class.pad_token_id),
            callbacks=callbacks,
        )
        self.selected = SelectedWeights(self.model, mask, slots=self.slots)
        self._sums: dict[str, tuple[float, float]] = {}  # name -> total, count
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

    def record(self, count: Tensor | int, totals: Mapping[str, Tensor | float]) -> None:
        """Add a micro-batch's totals over `count` things; `log` reports the means since the last log."""
        for name, total in totals.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + float(total), before[1] + float(count))

    def _take_means(self) -> dict[str, float]:
        means = {name: total / max(count, 1.0) for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        denominator = self.num_items(inputs) if num_items_in_batch is None else num_items_in_batch
        loss = self.loss(inputs, denominator=torch.as_tensor(denominator).clamp(min=1))
        self._check_finite("loss", loss)
        return (loss, {}) if return_outputs else loss

    def _check_finite(self, name: str, value: Tensor) -> None:
        """Stop before a broken step. A checkpoint is known to be good once a later step was sound."""
        if math.isfinite(value.item()):
            return
        checkpoints = whole_checkpoints(Path(self.args.output_dir))
        good = [path for step, path in checkpoints.items() if step < self.state.global_step]
        kept = (
            f"the last good checkpoint is {good[-1]}" if good else "no good checkpoint was written before it"
        )
        raise UserError(
            f"{name} is {value.item()} at step {self.state.global_step + 1}: stopped; {kept}. "
            "Lower the learning rate, or check the data."
        )

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Any]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(self.num_items(batch) for batch in batches)

    def evaluate(
        self,
        eval_dataset: Iterable[Row] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss and metrics of `eval_dataset`'s rows, or of those given at the beginning."""
        rows = None if eval_dataset is None else self._eval_rows(eval_dataset)
        return super().evaluate(rows, ignore_keys, metric_key_prefix)

    def _eval_rows(self, dataset: Iterable[Row]) -> list[dict[str, Any]]:
        rows, _ = self.make_rows(self.processing_class, dataset, max_length=self.max_length)
        return rows

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        inputs = self._prepare_inputs(inputs)
        num_items = self.num_items(inputs)
        with torch.no_grad():
            loss = self.compute_loss(model, inputs)
        self.record(num_items, {"loss": loss * num_items})
        return loss, None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The Trainer's, with the metrics, and with the loss over its own denominator whatever the batches."""
        training, self._sums = self._sums, {}
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        output.metrics.update({f"{metric_key_prefix}_{k}": mean for k, mean in self._take_means().items()})
        self._sums = training
        return output

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = self.selected.param_groups(weight_decay=self.args.weight_decay)
            self.optimizer = self._optimizer_class(groups, **self._optimizer_kwargs)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return self.selected.clip_grad_norm_(self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        norm = self.selected.clip_grad_norm_(math.inf) if grad_norm is None else grad_norm
        self._check_finite("the gradient's norm", norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a training step's row; evaluation adds its own means
            logs |= self._take_means() | {"mask/density": self.selected.density}
        super().log(logs, start_time)


class _WriteBack(TrainerCallback):
    """After each optimizer step the masters go into the model; a checkpoint is marked complete last.

    A checkpoint ends an interval of logging, so that a run resumed from it logs the same means.
    """

    def __init__(self, selected: SelectedWeights) -> None:
        self._selected = selected

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._selected.write_back()
        for flat in self._selected.parameters():
            flat.grad = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_log |= control.should_save

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE_FILE).touch()


_MIXED = (
    "mixed precision does not apply: the model computes in its own dtype, and the selected "
    "weights are trained in fp32. Load the model in bfloat16."
)
_ROUNDED = "evaluation would round the model's weights in place. Load the model in bfloat16."
_SPREAD = "training on several processes is not supported yet."
# Arguments that would be ignored or wrong, and why.
_REFUSED = {
    "bf16": _MIXED,
    "fp16": _MIXED,
    "bf16_full_eval": _ROUNDED,
    "fp16_full_eval": _ROUNDED,
    "fsdp": _SPREAD,
    "deepspeed": _SPREAD,
    "auto_find_batch_size": "a smaller batch would be other training than the one asked for. Lower "
    "per_device_train_batch_size and raise gradient_accumulation_steps.",
    "save_only_model": "a checkpoint holds the selected weights, which need the optimizer's state to go on.",
    "push_to_hub": "a checkpoint is no model, and nothing is uploaded. Upload the result with `hf upload`.",
    "neftune_noise_alpha": "policy and reference must see the same embeddings.",
    "label_smoothing_factor": "the losses have no such term; improve has a label_smoothing of its own.",
}


def check_arguments(args: TrainingArguments) -> None:
    """Refuse what would be ignored or wrong: a `UserError` that begins with the argument's name."""
    for name, reason in _REFUSED.items():
        if getattr(args, name):
            raise UserError(f"{name}: {reason} Remove the key.")
    _optimizer(args)


# What an optimizer asks for that trains the model's own tensors, one by one.
_WHOLE_MODEL = {"params", "model", "optimizer_dict"}


def _optimizer(args: TrainingArguments) -> tuple[Any, dict[str, Any]]:
    """The class of `args.optim` and its settings. Raises `UserError` where it cannot train a flat vector."""
    name = getattr(args.optim, "value", args.optim)
    try:
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError, AttributeError) as error:
        raise UserError(f"optim: {name} is not available: {error}") from error
    if _WHOLE_MODEL & kwargs.keys():
        raise UserError(
            f"optim: {name} works on a model's own tensors, but the selected weights are one flat vector; "
            "use an element-wise one, such as adamw_torch."
        )
    return optimizer_class, kwargs


def _switch_off_dropout(model: PreTrainedModel) -> None:
    """Policy and reference must see the same network, also where attention takes its rate from an attribute."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or isinstance(module, nn.Dropout)):
                setattr(module, name, 0.0)
