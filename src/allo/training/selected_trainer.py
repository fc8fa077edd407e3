"""Training on selected weights: `transformers.Trainer` with its own flat vector.

Schedules, logging, checkpoints and resuming are the Trainer's. Its unit here is the optimizer step: the data loader
yields a step's rows, the same on every rank. `training_step` cuts them into micro-batches and accumulates the flat
gradient. `checkpointing.py` defines a checkpoint's content, `trainer.py` the losses.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from allo.errors import DivergedError, UserError
from allo.files.rows import Reading
from allo.models.collate import Batch, CompletionCollator, PairCollator
from allo.models.load import check_whole, switch_off_dropout
from allo.models.policy import check_head, per_token_logps
from allo.models.rows import Counts
from allo.models.tokenizer_checks import check_ids_fit, require_pad_token
from allo.training.arguments import lean_settings, optimizer_of, own_arguments
from allo.training.checkpointing import CheckpointedTrainer, whole_checkpoints
from allo.training.dpo_config import Settings, check_held, settings_of, taken
from allo.training.micro_batches import micro_batches, own_share
from allo.training.reference import add_reference
from allo.training.trainer_rows import RowReader
from allo.training.write_back import WriteBack
from allo.weights.lean_adamw import LeanAdamW
from allo.weights.param_mask import ParamMask
from allo.weights.ranks import num_ranks, sum_over_ranks
from allo.weights.selected import SelectedWeights

Row = Mapping[str, Any]
REFERENCE_FILE = "reference.safetensors"


class SelectedTrainer(CheckpointedTrainer):
    """The base class of the forget, improve and fine-tuning trainers.

    `mask` says which weights train. The data sets are iterables of rows, such as a list or a `datasets.Dataset`, in
    every form that `data.pairs` reads: text or messages, with `prompt` or with the prompt inside the answers.
    `records`: the rows are a run's own records, used unchanged. `num_dropped` training rows did not fit into
    `max_length` tokens. The model's dropout is switched off permanently.

    An optimizer step has per_device_train_batch_size * gradient_accumulation_steps * processes rows. A micro-batch
    has per_device_train_batch_size rows or, with `max_tokens_per_batch`, as many as fit into that many tokens,
    padding included. The loss is the same.

    Rows have at most `max_length` tokens (1200), prompt and completion together.

    `reference`: "swap" (the default) puts the reference's weights in place once per step, for a forward pass of its
    rows. "precomputed" computes its log-probs once, before training, and keeps them in the output folder.
    `gradient_dtype` is the dtype in which processes sum their gradients. With `lean` a trained weight takes 8 bytes
    of training state instead of 20 (`weights/lean_adamw.py`).

    Trainers with `takes_config` also accept `trl.DPOConfig` as `args`: see `dpo_config.py`.

    Raises `UserError` for a mask of another model, for unsupported settings, and if the loss becomes NaN or infinite.
    """

    # The names given to `record`, in the order in which ranks sum them.
    metrics: tuple[str, ...] = ()
    needs_reference = True
    loss_title = "loss"  # in errors
    takes_config = False  # from TRL
    config_losses: Collection[str] = ()  # the config's `loss_type`s that the trainer has
    read_rows: Callable[..., tuple[list[Any], Reading]]
    make_rows: Callable[..., tuple[list[dict[str, Any]], Counts]]
    optimizer: torch.optim.Optimizer | None
    data_collator: PairCollator | CompletionCollator
    control: TrainerControl

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Iterable[Row],
        processing_class: PreTrainedTokenizerBase,
        *,
        mask: ParamMask,
        eval_dataset: Iterable[Row] | None = None,
        max_length: int | None = None,
        max_tokens_per_batch: int | None = None,
        reference: Literal["swap", "precomputed"] | None = None,
        gradient_dtype: torch.dtype = torch.float32,
        lean: bool = False,
        records: bool = False,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        settings = self._config_settings(args)
        args = own_arguments(
            args, model, lean=lean, is_config=bool(settings), evaluates=eval_dataset is not None
        )
        check_held(args, model, processing_class)
        require_pad_token(processing_class)
        check_ids_fit(processing_class, model.config, ref=model.name_or_path or type(model).__name__)
        self.rows_a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.rows_a_step *= max(args.world_size, 1)
        args.gradient_accumulation_steps = 1  # for the Trainer, a step is one batch
        switch_off_dropout(model)
        check_whole(model)
        check_head(model)
        self.max_length = taken("max_length", max_length, settings, default=1200)
        self.cuts_ends = "max_length" in settings and (max_length is None or settings["max_length"].said)
        self.max_tokens_per_batch = max_tokens_per_batch
        self.reference = taken("reference", reference, settings, default="swap")
        self.gradient_dtype, self.lean = gradient_dtype, lean
        self.processing_class = processing_class
        self._reader = RowReader(
            model,
            processing_class,
            read=None if records else self.read_rows,
            tokenize=self.make_rows,
            max_length=self.max_length,
            cuts_ends=self.cuts_ends,
        )
        rows, self.counts = self._rows(train_dataset, "train_dataset")
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            eval_dataset=None if eval_dataset is None else self._rows(eval_dataset, "eval_dataset")[0],
            processing_class=processing_class,
            data_collator=self.make_collator(model, processing_class.pad_token_id),
            callbacks=callbacks,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError("sharded parameters (FSDP, ZeRO) are not supported: launch plain processes.")
        slots = ("ref",) if self.needs_reference and self.reference == "swap" else ()
        self.selected = SelectedWeights(self.model, mask, slots=slots, lean=lean)
        self._sums: dict[str, tuple[float, float]] = {}  # name -> total, count
        self.add_callback(WriteBack(self.selected))

    def _config_settings(self, args: TrainingArguments) -> Settings:
        return settings_of(
            args, trainer=type(self).__name__, takes_config=self.takes_config, losses=self.config_losses
        )

    def make_collator(self, model: PreTrainedModel, pad_id: int) -> PairCollator | CompletionCollator:
        """Return the collator for this model."""
        return CompletionCollator(pad_id)

    def loss(self, batch: Batch, *, denominator: Tensor | float) -> Tensor:
        """Return the micro-batch's share of the optimizer step's loss, a scalar."""
        raise NotImplementedError

    def num_items(self, rows: Sequence[Row]) -> int:
        """Return what these rows add to the loss's denominator."""
        raise NotImplementedError

    def begin_step(self, rows: Sequence[Row]) -> None:
        """Compute what the losses of all micro-batches and ranks of a step share; most losses share nothing."""

    def logratios(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return rho_t of the completion tokens [C, L] fp32, and the policy's log-probs that it comes from."""
        if "ref_logps" not in batch:
            (reference,) = self._ref_logps([batch])
            batch = batch | reference
        logps = per_token_logps(self.model, batch)
        return logps - batch["ref_logps"], logps

    @torch.no_grad()
    def _ref_logps(self, batches: Iterable[Batch]) -> list[Batch]:
        """Return the reference's `ref_logps` [C, L] of each batch, with one swap for all."""
        with self.selected.swapped("ref"):
            return [{"ref_logps": per_token_logps(self.model, batch)} for batch in batches]

    def _batch(self, rows: Sequence[Row]) -> Batch:
        """Collate rows onto the model's device."""
        batch: Batch = self._prepare_inputs(self.data_collator(rows))
        return batch

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train like the Trainer, after computing a precomputed reference."""
        self.precompute_reference()
        return super().train(*args, **kwargs)

    def precompute_reference(self) -> None:
        """Compute the reference from the current weights if `reference` is "precomputed" and it is missing."""
        if (
            not self.needs_reference
            or self.reference != "precomputed"
            or self._has_reference(self.train_dataset)
        ):
            return
        steps = list(self.get_train_dataloader())
        seen = {row["number"] for rows in steps for row in rows}
        steps.append([row for row in self.train_dataset if row["number"] not in seen])
        size = self.args.per_device_train_batch_size
        self._add_reference(self.train_dataset, steps, REFERENCE_FILE, max_rows=size)
        if self.eval_dataset is not None:
            steps, size = list(self.get_eval_dataloader()), self.args.per_device_eval_batch_size
            self._add_reference(self.eval_dataset, steps, f"eval_{REFERENCE_FILE}", max_rows=size)

    def _add_reference(
        self, rows: list[dict[str, Any]], steps: Sequence[Sequence[Row]], name: str, *, max_rows: int
    ) -> None:
        batches = [part for step in steps for part in self._micro_batches(step, max_rows=max_rows)]
        add_reference(self.model, rows, batches, self.data_collator, Path(self.args.output_dir) / name)

    @staticmethod
    def _has_reference(rows: Sequence[Row]) -> bool:
        return any(name.endswith("_ref_logps") for name in rows[0])

    @property
    def num_dropped(self) -> int:
        return self.counts.dropped

    def _rows(self, dataset: Iterable[Row], name: str) -> tuple[list[dict[str, Any]], Counts]:
        rows, counts = self._reader(dataset, name)
        return [row | {"number": number} for number, row in enumerate(rows)], counts

    def _micro_batches(self, rows: Sequence[Row], *, max_rows: int | None = None) -> list[list[Row]]:
        return micro_batches(
            rows,
            self.data_collator.num_tokens,
            max_rows=max_rows or self.args.per_device_train_batch_size,
            max_tokens=self.max_tokens_per_batch,
        )

    def get_train_dataloader(self) -> DataLoader[Row]:
        """Return a loader of each optimizer step's rows, the same on every rank."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.rows_a_step,
            sampler=self._get_train_sampler(self.train_dataset),
            collate_fn=list,
            drop_last=self.args.dataloader_drop_last,
        )
        return prepare_data_loader(
            loader,
            num_processes=1,
            process_index=0,
            use_seedable_sampler=True,
            data_seed=self.args.data_seed,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Row]:
        """Return a loader of the rows in order, the same on every rank."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        size = self.args.per_device_eval_batch_size * num_ranks()
        return DataLoader(rows, batch_size=size, collate_fn=list)

    def training_step(
        self, model: nn.Module, inputs: Sequence[Row], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run forward and backward passes of a step's rows; return its loss, the same on every rank."""
        self.model.train()
        if callable(mode := getattr(self.optimizer, "train", None)):  # schedule-free ones have two
            mode()
        self.begin_step(inputs)
        denominator = max(self.num_items(inputs), 1)
        total = torch.zeros((), device=self.model.device)
        batches = list(map(self._batch, own_share(self._micro_batches(inputs))))
        swaps = self.needs_reference and self.reference == "swap"
        references = self._ref_logps(batches) if swaps else itertools.repeat({})
        for batch, reference in zip(batches, references, strict=False):
            loss = self.loss(batch | reference, denominator=denominator)
            loss.backward()
            total += loss.detach()
        self.selected.sum_gradients_over_ranks(self.gradient_dtype)
        self._check_finite(self.loss_title, sum_over_ranks(total))
        return total

    def floating_point_ops(self, inputs: Sequence[Row]) -> int:
        """Estimate operations like the Trainer, for the rows' own tokens."""
        tokens = sum(map(self.data_collator.num_tokens, inputs))
        return 6 * tokens * self.model.num_parameters(exclude_embeddings=True)

    def _track_num_input_tokens(self, inputs: Sequence[Row]) -> None:
        """Count a step's tokens as the model reads them; "all" includes the padding of micro-batches."""
        match self.args.include_num_input_tokens_seen:
            case "all":
                parts = self._micro_batches(inputs)
                seen = sum(len(part) * self.data_collator.num_tokens(part[0]) for part in parts)
            case "non_padding":
                seen = sum(map(self.data_collator.num_read, inputs))
            case _:
                return
        self.state.num_input_tokens_seen += seen

    def record(self, count: Tensor | int, totals: Mapping[str, Tensor | float]) -> None:
        """Add a micro-batch's totals over `count` items; `log` reports the means since the last log."""
        for name, total in totals.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + float(total), before[1] + float(count))

    def _take_means(self) -> dict[str, float]:
        """Return the means over all ranks since the last call."""
        assert self._sums.keys() <= {"loss", *self.metrics}, f"{sorted(self._sums)} are not all in `metrics`"
        names = ("loss", *self.metrics)
        # With several ranks, on the device that they communicate through.
        sums = torch.tensor([self._sums.get(name, (0.0, 0.0)) for name in names], device=self.args.device)
        self._sums = {}
        totals = sum_over_ranks(sums).tolist()
        return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}

    def _check_finite(self, name: str, value: Tensor) -> None:
        """Raise DivergedError before a broken step. A checkpoint counts as good after one more sound step."""
        if math.isfinite(value.item()):
            return
        checkpoints = whole_checkpoints(Path(self.args.output_dir))
        good = [path for step, path in checkpoints.items() if step < self.state.global_step]
        kept = (
            f"the last good checkpoint is {good[-1]}" if good else "no good checkpoint was written before it"
        )
        raise DivergedError(
            f"{name} is {value.item()} at step {self.state.global_step + 1}: stopped; {kept}. "
            "Lower the learning rate, or check the data."
        )

    def evaluate(
        self,
        eval_dataset: Iterable[Row] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Return the loss and metrics of `eval_dataset`'s rows, by default those given to the constructor."""
        rows = None if eval_dataset is None else self._rows(eval_dataset, "eval_dataset")[0]
        if rows and self.needs_reference and self.reference == "precomputed":
            raise UserError(
                "the reference was precomputed for the constructor's data sets only: give this eval_dataset to the "
                "constructor, or set reference to swap."
            )
        return super().evaluate(rows, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Row],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute the training step's loss and metrics, over their own denominators for any batches."""
        self.precompute_reference()
        training, self._sums = self._sums, {}
        self.model.eval()
        count = 0
        for rows in dataloader:
            for part in own_share(self._micro_batches(rows, max_rows=self.args.per_device_eval_batch_size)):
                with torch.no_grad():
                    loss = self.loss(self._batch(part), denominator=1.0)
                self.record(self.num_items(part), {"loss": loss})
            count += len(rows)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = {f"{metric_key_prefix}_{name}": mean for name, mean in self._take_means().items()}
        self._sums = training
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=count)

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator without wrapping the model: DDP would send dense gradients in dense buckets."""
        super().create_accelerator_and_postprocess()
        prepare = self.accelerator.prepare_model
        self.accelerator.prepare_model = lambda model, **_: prepare(model, evaluation_mode=True)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = self.selected.param_groups(weight_decay=self.args.weight_decay)
            if self.lean:
                self.optimizer = LeanAdamW(groups, self.selected.walk, **lean_settings(self.args))
            else:
                optimizer_class, kwargs = optimizer_of(self.args)
                self.optimizer = optimizer_class(groups, **kwargs)
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
