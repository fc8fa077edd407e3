"""What locates weights without an optimizer's state: gradients taken tensor by tensor over preference pairs.

The loss is plain DPO. Its reference is the starting model, so at the start the log-ratios are zero, and
while the model moves the reference's log-probs are those that it had before: no second model, no slot.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments, get_scheduler

from allo.console import track
from allo.core import losses
from allo.core.fused_warmup import FusedWarmup
from allo.core.taken_gradients import Take, gradients_taken
from allo.errors import UserError
from allo.hf.collate import Batch, PairCollator
from allo.hf.policy import check_head, per_token_logps

# As `rows.pair_rows` makes them.
Rows = Sequence[dict[str, Any]]


def take_start_gradients(
    model: PreTrainedModel, rows: Rows, *, beta: float, batch_size: int, pad_id: int, take: Take
) -> None:
    """One backward pass a batch at the starting point; `take` gets each tensor's gradient of the summed loss."""
    check_head(model)
    batches = [range(start, min(start + batch_size, len(rows))) for start in range(0, len(rows), batch_size)]
    with gradients_taken(model, take):
        for batch in track(batches, "locate", total=len(batches)):
            logps = _pair_logps(model, _collated(model, rows, batch, pad_id=pad_id))
            _dpo(logps - logps.detach(), beta=beta).sum().backward()


def train_fused(
    model: PreTrainedModel, rows: Rows, arguments: TrainingArguments, *, beta: float, pad_id: int
) -> tuple[FusedWarmup, list[dict[str, float]]]:
    """Warm the model up in place, an update a micro-batch; returns it with a row of metrics a step.

    A step is `gradient_accumulation_steps` micro-batches under one learning rate of the schedule, of
    which each takes the share that its pairs have in a full step: where all agree on a weight's
    direction, it moves as far as one update of the whole step would move it.
    Raises `UserError` when a loss is no longer finite.
    """
    check_head(model)
    size, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    ref_logps = _start_logps(model, rows, batch_size=size, pad_id=pad_id)
    steps_an_epoch = math.ceil(math.ceil(len(rows) / size) / accumulation)
    num_steps = arguments.max_steps
    if num_steps <= 0:
        num_steps = math.ceil(arguments.num_train_epochs * steps_an_epoch)
    steps = zip(learning_rates(arguments, num_steps), _steps(len(rows), arguments), strict=False)
    warmup, metrics = FusedWarmup(model), []
    with gradients_taken(model, warmup.update):
        for number, (rate, batches) in enumerate(track(steps, "locate", total=num_steps), start=1):
            logratios = []
            for batch in batches:
                warmup.rate = rate * len(batch) / (size * accumulation)
                logps = _pair_logps(model, _collated(model, rows, batch, pad_id=pad_id))
                logratios.append(logps - ref_logps[batch].to(logps.device))
                _dpo(logratios[-1], beta=beta).mean().backward()
            row = _metrics(torch.cat(logratios).detach(), beta=beta)
            if not math.isfinite(row["loss"]):
                raise UserError(
                    f"locate: the loss is {row['loss']} at step {number} of the warm-up: lower "
                    "locate.training.learning_rate, or check the data."
                )
            metrics.append({"step": number, "epoch": number / steps_an_epoch, "learning_rate": rate, **row})
    return warmup, metrics


def learning_rates(arguments: TrainingArguments, num_steps: int) -> list[float]:
    """The rate of each step under the schedule of `arguments`, as the Trainer would set it."""
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


def _steps(num_rows: int, arguments: TrainingArguments) -> Iterator[list[list[int]]]:
    """The row numbers of each step's micro-batches, without end; every epoch in an order of its own."""
    random = torch.Generator().manual_seed(arguments.seed)
    size, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    while True:
        order = torch.randperm(num_rows, generator=random).split(size)
        batches = [batch.tolist() for batch in order]
        yield from (batches[start : start + accumulation] for start in range(0, len(batches), accumulation))


@torch.no_grad()
def _start_logps(model: PreTrainedModel, rows: Rows, *, batch_size: int, pad_id: int) -> Tensor:
    """Summed log-probs of chosen and rejected under the model as it is: [N, 2] fp32 on the CPU."""
    starts = range(0, len(rows), batch_size)
    found = [
        _pair_logps(
            model,
            _collated(model, rows, range(start, min(start + batch_size, len(rows))), pad_id=pad_id),
        ).cpu()
        for start in track(starts, "reference", total=len(starts))
    ]
    return torch.cat(found)


def _collated(model: PreTrainedModel, rows: Rows, numbers: Sequence[int], *, pad_id: int) -> Batch:
    batch = PairCollator(pad_id)([rows[number] for number in numbers])
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def _pair_logps(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Summed log-probs of each pair's chosen and rejected completion: [B, 2] fp32."""
    return torch.stack(per_token_logps(model, batch).sum(-1).chunk(2), dim=1)


def _dpo(logratios: Tensor, *, beta: float) -> Tensor:
    """Each pair's loss [B] from the log-ratios [B, 2] of its chosen and rejected completion."""
    chosen, rejected = logratios.unbind(1)
    return losses.dpo(chosen, rejected, beta=beta)


def _metrics(logratios: Tensor, *, beta: float) -> dict[str, float]:
    """Means over a step's pairs, under the names of the other trainers."""
    chosen, rejected = (beta * logratios).unbind(1)
    return {
        "loss": _dpo(logratios, beta=beta).mean().item(),
        "rewards/chosen": chosen.mean().item(),
        "rewards/rejected": rejected.mean().item(),
        "rewards/margins": (chosen - rejected).mean().item(),
        "rewards/accuracies": (chosen > rejected).float().mean().item(),
    }
