"""Run a trainer to its end, from its last whole checkpoint, in a stage's folder."""

import shutil
from pathlib import Path

import torch
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from allo.core.finite import check_finite
from allo.errors import DivergedError
from allo.hf.checkpointing import COMPLETE_FILE, whole_checkpoints
from allo.hf.selected_trainer import SelectedTrainer

# What the Trainer measures with a clock; it would differ between two equal runs.
_CLOCKED = ("_runtime", "_per_second", "_preparation_time", "step_time")


def train(trainer: SelectedTrainer) -> list[dict[str, float]]:
    """Train to the end, resuming from the last whole checkpoint; returns what was logged, a step a row.

    Checkpoints that a kill cut short are removed.
    """
    return train_from(trainer, _last_whole_checkpoint(Path(trainer.args.output_dir)))


def train_from(trainer: Trainer, checkpoint: str | None) -> list[dict[str, float]]:
    """Train to the end, from the start where there is no checkpoint; returns what was logged, a step a row.

    Raises `DivergedError`, naming the tensor, for weights that training made NaN or infinite.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    check_finite(
        trainer.model.named_parameters(),
        where="weights are no longer finite",
        advice="Lower the learning rate, or check the data.",
        kind=DivergedError,
    )
    # A checkpoint's log is read back with its keys sorted.
    logged = [
        {name: value for name, value in sorted(row.items()) if not name.endswith(_CLOCKED)}
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
        _remove(checkpoint)


def _remove(checkpoint: Path) -> None:
    """Its mark goes first, so that what a kill leaves of it is not resumed from."""
    (checkpoint / COMPLETE_FILE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _last_whole_checkpoint(folder: Path) -> str | None:
    whole = list(whole_checkpoints(folder).values())
    for checkpoint in set(folder.glob("checkpoint-*")) - set(whole):
        shutil.rmtree(checkpoint)
    return str(whole[-1]) if whole else None
