"""Complete runs of a trainer, from its last complete checkpoint, in a stage's folder."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from allo.console import STEP, Work, bar, logged
from allo.errors import DivergedError
from allo.ranks import barrier, from_first
from allo.training.checkpointing import last_sound_checkpoint, remove_checkpoint
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trackers import tracked
from allo.weights.finite import check_finite
from allo.weights.shards import named_rows

Logged = dict[str, float | None]
"""One logged step. None: a metric that is not finite, such as a mean over nothing."""

# Clock times that the Trainer logs; they would differ between two equal runs.
_CLOCKED = ("_runtime", "_per_second", "_preparation_time", "step_time")


def train(trainer: SelectedTrainer) -> list[Logged]:
    """Train to the end, resuming from the last sound checkpoint; return one row of logs per step.

    Incomplete and damaged checkpoints are removed.
    """
    folder = Path(trainer.args.output_dir)
    checkpoint = from_first(lambda: str(last_sound_checkpoint(folder) or ""))
    return train_from(trainer, Path(checkpoint) if checkpoint else None)


def train_from(trainer: Trainer, checkpoint: Path | None) -> list[Logged]:
    """Train to the end, from the start if there is no checkpoint; return one row of logs per step.

    Raises `DivergedError`, naming the tensor, for weights that training made NaN or infinite.
    """
    trainer.remove_callback(PrinterCallback)
    mask = trainer.mask if isinstance(trainer, SelectedTrainer) else None
    with bar("", total=0, unit=STEP) as steps, tracked(trainer, mask, begins=checkpoint is None):
        trainer.add_callback(shown := _Shown(steps))
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        trainer.remove_callback(shown)
    barrier()  # rank 0 may remove the checkpoints
    check_finite(
        named_rows(trainer.model),
        where="weights are no longer finite",
        advice="Lower the learning rate, or check the data.",
        kind=DivergedError,
    )
    # Logs read from a checkpoint have sorted keys.
    rows = [
        {name: _finite(value) for name, value in sorted(row.items()) if not name.endswith(_CLOCKED)}
        for row in trainer.state.log_history
    ]
    return [row for row in rows if "loss" in row or "eval_loss" in row]


class _Shown(TrainerCallback):
    """Steps and what they log, as the console shows them."""

    def __init__(self, steps: Work) -> None:
        self.steps = steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.steps.begin(state.max_steps, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.steps(state.global_step - self.steps.done, self.steps.note)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs and ("loss" in logs or "eval_loss" in logs):
            show_step(self.steps, state.global_step, logs)


# Metrics that a line shows, with their names, forms and widths; the most telling first.
_SHOWN = (
    ("loss", "loss", ".4g", 8),
    ("eval_loss", "held-out loss", ".4g", 8),
    ("rewards/margins", "margin", ".2g", 7),
    ("rewards/accuracies", "accuracy", ".0%", 4),
    ("probabilities/forgotten", "probability", ".3g", 7),
    ("kl", "KL", ".3g", 7),
    ("reward", "reward", ".3g", 7),
    ("learning_rate", "rate", ".2g", 7),
)


def show_step(steps: Work, step: int, logs: Mapping[str, Any]) -> None:
    """Show a logged step in one line on a terminal, and its loss beside the progress."""
    found = [
        f"{name} {format(logs[key], form):<{width}}"
        for key, name, form, width in _SHOWN
        if _is_number(logs.get(key))
    ]
    logged([f"step {step:>{len(str(steps.total))}}/{steps.total}", *found])
    steps.note = found[0].rstrip() if found else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def state_bytes(trainer: SelectedTrainer) -> int:
    """Return the bytes of the training state: indices, master weights, gradient, slots and the optimizer's moments."""
    return trainer.selected.num_bytes + moment_bytes(trainer)


def moment_bytes(trainer: Trainer) -> int:
    """Return the bytes of the optimizer's moments."""
    return sum(
        value.nbytes
        for state in (trainer.optimizer.state.values() if trainer.optimizer else ())
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def remove_checkpoints(folder: Path) -> None:
    """Remove a stage's checkpoints once its result is written."""
    for checkpoint in folder.glob("checkpoint-*"):
        remove_checkpoint(checkpoint)


def _finite(value: float) -> float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
