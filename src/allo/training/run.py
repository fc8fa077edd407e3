"""Complete runs of a trainer, from its last complete checkpoint, in a stage's folder."""

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
"""One logged step. None: a metric that is not finite, such as a mean over nothing."""

# Clock times that the Trainer logs; they would differ between two equal runs.
_CLOCKED = ("_runtime", "_per_second", "_preparation_time", "step_time")


def train(trainer: SelectedTrainer) -> list[Logged]:
    """Train to the end, resuming from the last sound checkpoint; return one row of logs per step.

    Incomplete and damaged checkpoints are removed.
    """
    return train_from(trainer, last_sound_checkpoint(Path(trainer.args.output_dir)))


def train_from(trainer: Trainer, checkpoint: Path | None) -> list[Logged]:
    """Train to the end, from the start if there is no checkpoint; return one row of logs per step.

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
    # Logs read from a checkpoint have sorted keys.
    logged = [
        {name: _finite(value) for name, value in sorted(row.items()) if not name.endswith(_CLOCKED)}
        for row in trainer.state.log_history
    ]
    return [row for row in logged if "loss" in row or "eval_loss" in row]


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
