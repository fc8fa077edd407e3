"""Training on selected weights: `transformers.Trainer` with its own flat vector.

Schedules, logging, checkpoints and resuming are the Trainer's. Its unit here is the optimizer step: the data loader
yields a step's rows, the same on every rank. `training_step` cuts them into micro-batches and accumulates the flat
gradient. `checkpointing.py` defines a checkpoint's content, `trainer.py` the losses.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack, get_type_hints

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)

from allo.errors import DivergedError, UserError
from allo.files.rows import Reading
from allo.models.collate import Batch, Collator, CompletionCollator
from allo.models.load import check_whole, switch_off_dropout
from allo.models.policy import check_head, per_token_logps, shares_or_says
from allo.models.rows import Counts, counted_pairs
from allo.models.tokenizer_checks import check_ids_fit, require_pad_token
from allo.ranks import is_joined
from allo.recipe.training import Group, Training
from allo.tasks.pairs import pairs_of_rows
from allo.training.arguments import faults_before_loading, lean_settings, optimizer_of, own_arguments
from allo.training.checkpointing import whole_checkpoints
from allo.training.dpo_config import Settings, check_held, settings_of, taken
from allo.training.evaluating import EvaluatedTrainer
from allo.training.given import (
    Optimizers,
    given_arguments,
    given_model,
    given_tokenizer,
    unsupported,
    use_optimizer,
)
from allo.training.group_order import prompts_sampler
from allo.training.micro_batches import own_share
from allo.training.reference import add_reference
from allo.training.trainer_options import ComputeMetrics, Options, Rows, Unsupported, known_group
from allo.training.trainer_rows import RowReader
from allo.training.write_back import WriteBack
from allo.weights.lean_adamw import LeanAdamW
from allo.weights.param_mask import ParamMask
from allo.weights.ranks import sum_over_ranks
from allo.weights.selected import SelectedWeights

Row = Mapping[str, Any]
REFERENCE_FILE = "reference.safetensors"
DENSITY = 0.1  # of a mask that a trainer locates itself


def _prepare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Switch a model's dropout off. Raises `UserError` for one that the losses cannot read, or another tokenizer's."""
    require_pad_token(tokenizer)
    check_ids_fit(tokenizer, model.config, ref=model.name_or_path or type(model).__name__)
    switch_off_dropout(model)
    check_whole(model)
    check_head(model)


class SelectedTrainer(EvaluatedTrainer):
    """The base class of the forget, improve and fine-tuning trainers.

    `model` is a model, or its folder or hub id (`given.given_model`). Without `args`, those of a recipe are taken, and
    without `processing_class` the model's own tokenizer. `mask` says which weights train: a `ParamMask`, its file, or a
    density or criterion by which they are located first (`trainer_mask.py`).

    The data sets are iterables of rows, such as a list or a `datasets.Dataset`, in
    every form that `data.pairs` reads: text or messages, with `prompt` or with the prompt inside the answers.
    `records`: the rows are a run's own records, used unchanged. `num_dropped` training rows did not fit into
    `max_length` tokens. The model's dropout is switched off permanently.

    An optimizer step has per_device_train_batch_size * gradient_accumulation_steps * processes rows. A micro-batch
    has per_device_train_batch_size rows or, with `max_tokens_per_batch`, as many as fit into that many tokens,
    padding included. The loss is the same. `eval_dataset` may be a dict of data sets by name.

    With `group` "prompt", steps are filled with whole prompts' rows (`group_order.py`), and a prompt and each distinct
    completion of it are read once a micro-batch. A model that cannot share prompts reads each completion once.

    Rows have at most `max_length` tokens (1200), prompt and completion together.

    `reference`: "swap" (the default) puts the reference's weights in place once per step, for a forward pass of its
    rows. "precomputed" computes its log-probs once, before training, and keeps them in the output folder.
    `gradient_dtype` is the dtype in which processes sum their gradients. With `lean` a trained weight takes 8 bytes
    of training state instead of 20 (`weights/lean_adamw.py`).

    Trainers with `takes_config` also accept `trl.DPOConfig` as `args`: see `dpo_config.py`.

    Raises `UserError` for a mask of another model, for unsupported settings, and if the loss becomes NaN or infinite.
    """

    needs_reference = True
    loss_title = "loss"  # in errors
    takes_config = False  # from TRL
    defaults: Training = Training()  # the arguments if none are given
    config_losses: Collection[str] = ()  # the config's `loss_type`s that the trainer has
    read_rows: Callable[..., tuple[list[Any], Reading]]
    make_rows: Callable[..., tuple[list[dict[str, Any]], Counts]]
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        args: TrainingArguments | None = None,
        train_dataset: Rows | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        mask: ParamMask | float | str | Path = DENSITY,
        density: float | None = None,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        max_length: int | None = None,
        max_tokens_per_batch: int | None = None,
        group: Group = "none",
        reference: Literal["swap", "precomputed"] | None = None,
        gradient_dtype: torch.dtype = torch.float32,
        lean: bool = False,
        records: bool = False,
        callbacks: list[TrainerCallback] | None = None,
        compute_metrics: ComputeMetrics | None = None,
        optimizers: Optimizers = (None, None),
        **others: Unpack[Unsupported],
    ) -> None:
        settings = self._config_settings(args, {"lean": lean, **others})
        if train_dataset is None:
            raise UserError("train_dataset: none is given: give rows, such as a datasets.Dataset or a list.")
        given = given_arguments(args, model, self.defaults)
        model = given_model(model, given)
        self.processing_class = given_tokenizer(processing_class, model, given)
        evaluates = eval_dataset is not None
        args = own_arguments(given, model, lean=lean, is_config=bool(settings), evaluates=evaluates)
        check_held(args, model, self.processing_class)
        self._take_steps(args)
        _prepare(model, self.processing_class)
        self.max_length = taken("max_length", max_length, settings, default=1200)
        self.cuts_ends = "max_length" in settings and (max_length is None or settings["max_length"].said)
        self.max_tokens_per_batch, self.group = max_tokens_per_batch, known_group(group)
        self.reference = taken("reference", reference, settings, default="swap")
        self.gradient_dtype, self.lean = gradient_dtype, lean
        read = None if records else self.read_rows
        self._reader = RowReader(
            model, self.processing_class, read, self.make_rows, self.max_length, self.cuts_ends
        )
        dataset = list(train_dataset) if isinstance(train_dataset, Iterator) else train_dataset
        rows, self.counts = self._rows(dataset, "train_dataset")
        held_out = None if eval_dataset is None else self._eval_rows(eval_dataset)
        self.mask = self._mask(mask, density, given, model, dataset, rows)
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=self.processing_class,
            data_collator=self.make_collator(model, self.processing_class.pad_token_id),
            callbacks=callbacks,
            compute_metrics=compute_metrics,
        )
        self._select(optimizers)

    def _select(self, optimizers: Optimizers) -> None:
        """Make the selected weights trainable, by the given optimizer if there is one."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError(
                "the launcher asks for FSDP or DeepSpeed: start plain processes, and load a model that no GPU holds by "
                "allo.load_shards, or set `shards` in the recipe."
            )
        slots = ("ref",) if self.needs_reference and self.reference == "swap" else ()
        self.selected = SelectedWeights(self.model, self.mask, slots=slots, lean=self.lean)
        use_optimizer(optimizers, self.selected, self.model, lean=self.lean)
        self.optimizer, self.lr_scheduler = optimizers
        self._sums, self._num_seen = {}, 0
        self.add_callback(WriteBack(self.selected))

    def _take_steps(self, args: TrainingArguments) -> None:
        """Make a step one batch for the Trainer, of all micro-batches and processes.

        A script's processes add rows, as those of any Trainer; a recipe's share its rows.
        """
        self.rows_a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.rows_a_step *= 1 if is_joined() else max(args.world_size, 1)
        args.gradient_accumulation_steps = 1

    def _mask(
        self,
        mask: ParamMask | float | str | Path,
        density: float | None,
        args: TrainingArguments,
        model: PreTrainedModel,
        dataset: Rows,
        rows: list[dict[str, Any]],
    ) -> ParamMask:
        # It trains an ImproveTrainer, which is built on this module.
        from allo.training.trainer_mask import trainer_mask

        return trainer_mask(
            mask,
            density,
            model=model,
            args=args,
            tokenizer=self.processing_class,
            rows=lambda: self._pairs_to_locate(dataset, rows),
            max_tokens_per_batch=self.max_tokens_per_batch,
        )

    def _pairs_to_locate(self, dataset: Rows, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the training rows' pairs, or their labelled completions. Raises `UserError` for rows that are neither."""
        if rows[0].keys() & {"chosen_ids", "label"}:
            return rows
        reader = replace(self._reader, read=pairs_of_rows, tokenize=counted_pairs)
        try:
            return reader(dataset, "train_dataset")[0]
        except UserError as error:
            raise UserError(
                f"mask: a warm-up needs pairs, and these rows are none: {error} Give a mask that was located on pairs: "
                "allo.locate(model, pairs), or its file."
            ) from error

    def _config_settings(self, args: TrainingArguments | None, options: Mapping[str, Any]) -> Settings:
        """Return the settings that a config holds. Raises `UserError` with all that cannot be honoured, before loading."""
        beside = [
            *unsupported(options, known=get_type_hints(Options)),
            *faults_before_loading(args, lean=bool(options.get("lean"))),
        ]
        return settings_of(
            args,
            trainer=type(self).__name__,
            takes_config=self.takes_config,
            losses=self.config_losses,
            beside=beside,
        )

    def make_collator(self, model: PreTrainedModel, pad_id: int) -> Collator:
        """Return the collator for this model."""
        return CompletionCollator(pad_id, self.group == "prompt" and shares_or_says(model))

    def begin_step(self, rows: Sequence[Row]) -> None:
        """Compute what the losses of all micro-batches and ranks of a step share; most losses share nothing."""

    def logratios(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return rho_t of the completion tokens [C, L] fp32, and the policy's log-probs that it comes from."""
        if "ref_logps" not in batch:
            (reference,) = self._ref_logps([batch])
            batch = batch | reference
        logps = self.policy_logps(batch)
        return logps - batch["ref_logps"], logps

    @torch.no_grad()
    def _ref_logps(self, batches: Iterable[Batch]) -> list[Batch]:
        """Return the reference's `ref_logps` [C, L] of each batch, with one swap for all."""
        with self.selected.swapped("ref"):
            return [{"ref_logps": per_token_logps(self.model, batch)} for batch in batches]

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
        several = isinstance(self.eval_dataset, dict)
        sets = list(self.eval_dataset.values()) if several else [self.eval_dataset or []]
        for number, rows in enumerate(filter(None, sets)):
            steps, size = list(self.get_eval_dataloader(rows)), self.args.per_device_eval_batch_size
            name = f"eval_{number}_{REFERENCE_FILE}" if several else f"eval_{REFERENCE_FILE}"
            self._add_reference(rows, steps, name, max_rows=size)

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

    def get_train_dataloader(self) -> DataLoader[Row]:
        """Return a loader of each optimizer step's rows, the same on every rank."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.rows_a_step,
            sampler=(
                self._get_train_sampler(self.train_dataset)
                if self.group == "none"
                else prompts_sampler(self.train_dataset, self.args, rows_a_step=self.rows_a_step)
            ),
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

    def training_step(
        self, model: nn.Module, inputs: Sequence[Row], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run forward and backward passes of a step's rows; return its loss, the same on every rank."""
        self.count_tokens(inputs)
        self.model.train()
        if callable(mode := getattr(self.optimizer, "train", None)):  # schedule-free ones have two
            mode()
        self.begin_step(inputs)
        denominator = max(self.num_items(inputs), 1)
        total = torch.zeros((), device=self.model.device)
        parts = self._micro_batches(inputs)
        batches, idle = list(map(self._batch, own_share(parts))), self._idle(parts)
        swaps = self.needs_reference and self.reference == "swap"
        references = self._ref_logps([*batches, *idle]) if swaps else itertools.repeat({})
        for batch, reference in zip(batches, references, strict=False):
            loss = self.loss(batch | reference, denominator=denominator)
            self.selected.backward(loss)
            total += loss.detach()
        for batch in idle:
            self.selected.backward(0 * per_token_logps(self.model, batch).sum())
        self.selected.sum_gradients_over_ranks(self.gradient_dtype)
        self._check_finite(self.loss_title, sum_over_ranks(total))
        return total

    def floating_point_ops(self, inputs: Sequence[Row]) -> int:
        """Estimate operations like the Trainer, for the rows' own tokens."""
        tokens = sum(self.data_collator.num_tokens([row]) for row in inputs)
        return 6 * tokens * self.model.num_parameters(exclude_embeddings=True)

    def _track_num_input_tokens(self, inputs: Sequence[Row]) -> None:
        """Count a step's tokens as the model reads them; "all" includes the padding of micro-batches."""
        match self.args.include_num_input_tokens_seen:
            case "all":
                parts = self._micro_batches(inputs)
                seen = sum(map(self.data_collator.num_tokens, parts))
            case "non_padding":
                seen = sum(map(self.data_collator.num_read, self._micro_batches(inputs)))
            case _:
                return
        self.state.num_input_tokens_seen += seen

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
