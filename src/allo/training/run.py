"""Run a trainer to its end, from its last whole checkpoint, in a stage's folder."""

import math
from pathlib import Path

import torch
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from allo.errors import DivergedError
from allo.training.checkpointing import last_sound_checkpoint, remove_checkpoint
from allo.training.selected_trainer import SelectedTrainer
from allo.weights.finite import check_finite

Logged = dict[str, float | None]
"""One logged step. None: a metric that is no finite number, such as a mean over nothing."""

# What the Trainer measures with a clock; it would differ between two equal runs.
_CLOCKED = ("_runtime", "_per_second", "_preparation_time", "step_time")


def train(trainer: SelectedTrainer) -> list[Logged]:
    """Train to the end, resuming from the last sound checkpoint; returns what was logged, a step a row.

    Checkpoints that a kill cut short, and damaged ones, are removed.
    """
    return train_from(trainer, last_sound_checkpoint(Path(trainer.args.output_dir)))


def train_from(trainer: Trainer, checkpoint: Path | None) -> list[Logged]:
    """Train to the end, from the start if there is no checkpoint; returns what was logged, a step a row.

    Raises `DivergedError`, naming the tensor, for weights that training made NaN or infinite.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    check_finite(
        trainer.model.named_parameters(),
        where="weights are no longer finite",
        advice="Lower the learning rate, or check the data.",
        kind=DivergedError,
    )
    # A checkpoint's log is read back with its keys sorted.
    logged = [
        {name: _finite(value) for name, value in sorted(row.items()) if not name.endswith(_CLOCKED)}
        for row in trainer.state.log_history
    ]
    return [row for row in logged if "loss" in row or "eval_loss" in row]


def state_bytes(trainer: SelectedTrainer) -> int:
    """Bytes of the training state: indices, masters, gradient, slots and the optimizer's moments."""
    return trainer.selected.num_bytes + moment_bytes(trainer)


def moment_bytes(trainer: Trainer) -> int:
    """Bytes of the optimizer's moments."""
    return sum(
        value.nbytes
        for state in (trainer.optimizer.state.values() if trainer.optimizer else ())
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def remove_checkpoints(folder: Path) -> None:
    """Once a stage's result stands, its checkpoints have served."""
    for checkpoint in folder.glob("checkpoint-*"):
        remove_checkpoint(checkpoint)


def _finite(value: float) -> float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
