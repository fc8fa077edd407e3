"""Backward passes of plain DPO over pairs, or of its form for labelled completions, without optimizer state.

The reference is the starting model, so the log-ratios are zero at the start. While the model moves, the reference's
log-probs are those computed beforehand, without a second model or a slot.
"""

import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments, get_scheduler
from transformers.modeling_layers import GradientCheckpointingLayer

from allo.console import STEP, bar, say, track
from allo.errors import DivergedError, UserError
from allo.losses import token_losses as losses
from allo.losses.feedback_losses import AnswerSums, classified
from allo.models.collate import Batch, FeedbackCollator, PairCollator, grouped
from allo.models.policy import check_head, per_token_logps, shares_prefix
from allo.models.row_lengths import check_rows_fit
from allo.ranks import num_ranks, rank
from allo.recipe.training import Group
from allo.training.arguments import is_default
from allo.training.group_order import GroupSampler
from allo.training.micro_batches import idle_share, micro_batches, own_share
from allo.training.reference import add_reference
from allo.training.run import show_step
from allo.training.selected_trainer import REFERENCE_FILE, Row
from allo.training.trainer_rows import kind_of
from allo.weights.finite import check_finite
from allo.weights.fused_warmup import FusedWarmup
from allo.weights.ranks import sum_over_ranks
from allo.weights.shards import Ranks, named_rows
from allo.weights.taken_gradients import Take, gradients_taken

# The fields of `TrainingArguments` that the passes at the start read, and below, those that the warm-up reads.
READ_AT_START = frozenset(
    {"per_device_train_batch_size", "activation_checkpointing", "gradient_checkpointing"}
)
READ_IN_WARMUP = READ_AT_START | {
    *(
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "num_train_epochs",
        "max_steps",
    ),
    *("gradient_accumulation_steps", "seed", "data_seed"),
}
# Fields that affect only files, logs and the device.
_BESIDE = re.compile(
    "output_dir|use_cpu|debug|dataloader_pin_memory|disable_tqdm|report_to|run_name|project|(save|log|logging|trackio)_.*"
)


def _check_read(arguments: TrainingArguments) -> None:
    """Refuse a field that the fused warm-up would ignore, and say that it logs to no tracker."""
    for field in type(arguments).__dataclass_fields__:
        is_read = field in READ_IN_WARMUP or _BESIDE.fullmatch(field)
        if not (is_read or is_default(arguments, field)):
            raise UserError(
                f"{field}: the fused warm-up has its own update rule and would ignore it; remove it."
            )
    if arguments.report_to:
        say(
            f"locate: report_to: the fused warm-up logs to no tracker; its steps are in {arguments.output_dir}/"
            "metrics.jsonl. locate.criterion=warmup logs to it."
        )


class DpoPasses:
    """Passes of a model in eval mode over `rows` from `rows.counted_pairs`, or labelled from `rows.counted_completions`.

    Micro-batches are cut as in the trainers. With `among`, only these tensors have gradients.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[dict[str, Any]],
        arguments: TrainingArguments,
        *,
        beta: float,
        pad_id: int,
        max_tokens_per_batch: int | None = None,
        group: Group = "none",
        among: Collection[str] | None = None,
    ) -> None:
        check_head(model)
        check_rows_fit(model, rows, name="locate")
        self.model, self.arguments, self.beta = model, arguments, beta
        rows = grouped(rows) if group == "prompt" else rows
        self.rows = [row | {"number": number} for number, row in enumerate(rows)]
        self.start: Mapping[str, Tensor] = {}  # of a warm-up, by name: the weights before it
        self.rows_a_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        self._max_tokens, self._group, self._among = max_tokens_per_batch, group, among
        self._labelled = kind_of(rows) == "completions"
        shared = (group == "prompt" or not self._labelled) and shares_prefix(model)
        self._collate = (FeedbackCollator if self._labelled else PairCollator)(pad_id, shared)
        self._is_sharded = Ranks.of(model).num > 1
        if arguments.activation_checkpointing:
            _checkpoint_layers(model)

    def take_start_gradients(self, take: Take, *, of_pairs: bool = False) -> None:
        """Give `take` the gradient of the summed losses at the starting model, one micro-batch or pair at a time."""
        batches = self._micro_batches(self.rows)
        if of_pairs:
            batches = [[row] for row in self.rows]
        own: list[tuple[Sequence[Row], int]] = [(rows, 1) for rows in batches]
        if self._is_sharded and not of_pairs:
            # The gradient is the mean over ranks. All of them pass each single pair, whose square is no sum.
            own = [(rows, num_ranks()) for rows in own_share(batches)]
            own += [(rows, 0) for rows in idle_share(batches)]
        with gradients_taken(self.model, take, among=self._among):
            for rows, times in track(own, "gradients", total=len(own)):
                batch = self._collated(rows)
                logps = per_token_logps(self.model, batch)
                (times * self._losses(logps - logps.detach(), batch).sum()).backward()

    def train_fused(self) -> tuple[FusedWarmup, list[dict[str, float]]]:
        """Warm the model up in place, one update per micro-batch; return the warm-up and a row of metrics per step.

        Each micro-batch gets the share of the step's learning rate that its pairs have in a full step. If all agree
        on a weight's direction, the step moves it as far as one update would.

        Raises `UserError` for a field that is neither at its default nor in `READ_IN_WARMUP`. Also if a loss or, at
        the end, a weight is not finite.
        """
        _check_read(self.arguments)
        num_steps = number_of_steps(self.arguments, len(self.rows))
        steps_an_epoch = math.ceil(len(self.rows) / self.rows_a_step)
        self._add_reference(steps_an_epoch)
        steps = zip(learning_rates(self.arguments, num_steps), self._steps(), strict=False)
        warmup, metrics = FusedWarmup(self.model, among=self._among), []
        self.start = warmup.start
        with (
            gradients_taken(self.model, warmup.update, among=self._among),
            bar("", total=num_steps, unit=STEP) as shown,
        ):
            for number, (rate, rows) in enumerate(steps, start=1):
                seen = []
                for part in self._micro_batches(rows):
                    warmup.rate = rate * len(part) / self.rows_a_step
                    own, times = self._own_rows(part)
                    batch = self._collated(own)
                    logratios = per_token_logps(self.model, batch) - batch["ref_logps"]
                    own_losses = self._losses(logratios, batch)
                    (times * own_losses.sum() / len(part)).backward()
                    if times:
                        seen.append(self._seen(own_losses, logratios, batch))
                row = self._metrics(seen)
                if not math.isfinite(row["loss"]):
                    raise UserError(
                        f"locate: the loss is {row['loss']} at step {number} of the warm-up: lower "
                        "locate.training.learning_rate, or check the data."
                    )
                place = {"step": number, "epoch": number / steps_an_epoch, "learning_rate": rate}
                metrics.append(place | row)
                shown(1)
                show_step(shown, number, metrics[-1])
        check_finite(
            named_rows(self.model),
            where="locate: weights are no longer finite after the warm-up",
            advice="Lower locate.training.learning_rate, or check the data.",
            kind=DivergedError,
        )
        return warmup, metrics

    def _add_reference(self, steps_an_epoch: int) -> None:
        """Add the starting model's log-probs to every row, in the first epoch's batches, for equal rounding."""
        epoch = zip(range(steps_an_epoch), self._steps(), strict=False)
        batches = [part for _, rows in epoch for part in self._micro_batches(rows)]
        file = Path(self.arguments.output_dir) / REFERENCE_FILE
        add_reference(self.model, self.rows, batches, self._collate, file)

    def _steps(self) -> Iterator[list[Row]]:
        """Yield the rows of each step, epoch after epoch without end, in the order of the Trainer's data loader."""
        seed = self.arguments.seed if self.arguments.data_seed is None else self.arguments.data_seed
        of_prompts = None
        if self._group == "prompt":
            of_prompts = GroupSampler(self.rows, rows_a_step=self.rows_a_step, seed=seed)
        for epoch in itertools.count():
            if of_prompts is not None:
                of_prompts.set_epoch(epoch)
                order = torch.tensor(list(of_prompts))
            else:
                generator = torch.Generator().manual_seed(seed + epoch)
                order = torch.randperm(len(self.rows), generator=generator)
            for numbers in order.split(self.rows_a_step):
                yield [self.rows[number] for number in numbers.tolist()]

    def _micro_batches(self, rows: Sequence[Row]) -> list[list[Row]]:
        return micro_batches(
            rows,
            self._collate.num_tokens,
            max_rows=self.arguments.per_device_train_batch_size,
            max_tokens=self._max_tokens,
        )

    def _collated(self, rows: Sequence[Row]) -> Batch:
        return {name: tensor.to(self.model.device) for name, tensor in self._collate(rows).items()}

    def _own_rows(self, part: Sequence[Row]) -> tuple[Sequence[Row], int]:
        """Return the rows of a micro-batch that this rank computes, and how often their loss counts.

        Ranks of a sharded model share each micro-batch's rows: the gradient is the mean over ranks. A rank without any
        makes a pass that does not count.
        """
        if not self._is_sharded:
            return part, 1
        own = part[rank() :: num_ranks()]
        return (own, num_ranks()) if own else (part[-1:], 0)

    def _losses(self, logratios: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each pair or labelled completion [B] from its tokens' log-ratios."""
        sums = logratios.sum(-1)
        if not self._labelled:
            chosen, rejected = sums.chunk(2)
            return losses.dpo_of_logratios(chosen, rejected, beta=self.beta)
        answers = AnswerSums(batch["label"], sums, batch["completion_mask"].sum(-1), sums)
        return classified(answers, beta=self.beta)

    def _seen(self, own_losses: Tensor, logratios: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return a micro-batch's values under the names that other trainers use."""
        rewards = self.beta * logratios.detach().sum(-1)
        if self._labelled:
            sides = {"chosen": rewards[batch["label"]], "rejected": rewards[~batch["label"]]}
            more = {}
        else:
            chosen, rejected = rewards.chunk(2)
            sides = {"chosen": chosen, "rejected": rejected}
            more = {"margins": chosen - rejected, "accuracies": (chosen > rejected).float()}
        return {"loss": own_losses.detach()} | {f"rewards/{k}": v for k, v in (sides | more).items()}

    def _metrics(self, seen: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        """Return means over a step's rows, of all ranks if the model is sharded; none over no rows."""
        names = ["loss", "rewards/chosen", "rewards/rejected"]
        names += [] if self._labelled else ["rewards/margins", "rewards/accuracies"]
        whole = {
            name: torch.cat([torch.empty(0, device=self.model.device), *(part[name] for part in seen)])
            for name in names
        }
        if not self._is_sharded:
            return {name: values.mean().item() for name, values in whole.items() if len(values)}
        sums = torch.stack(
            [torch.stack([values.sum(), values.new_tensor(len(values))]) for values in whole.values()]
        )
        totals = sum_over_ranks(sums).tolist()
        return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}


def number_of_steps(arguments: TrainingArguments, num_rows: int) -> int:
    """Return the optimizer steps of a training on so many rows, on one process."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    rows_a_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return math.ceil(arguments.num_train_epochs * math.ceil(num_rows / rows_a_step))


def learning_rates(arguments: TrainingArguments, num_steps: int) -> list[float]:
    """Return the rate of each step under the schedule of `arguments`, as the Trainer would set it."""
    placeholder = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type,
        placeholder,
        num_warmup_steps=arguments.get_warmup_steps(num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    rates = []
    for _ in range(num_steps):
        rates.append(float(scheduler.get_last_lr()[0]))
        placeholder.step()
        scheduler.step()
    return rates


def _checkpoint_layers(model: PreTrainedModel) -> None:
    """Recompute each layer's activations in the backward pass, from weights that have not moved yet.

    Layers do so only in training mode; their contents stay in eval mode, without dropout.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
